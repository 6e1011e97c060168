//! What of a slot outlives the agent.
//!
//! Saved on change and read back by the next agent of the same boot; [`Saved::after_reboot`] makes of it what still holds after a reboot.
//! Where a worker was, the slot is recalled: the shell answers for each with `Adopted` (and `Exited`, if that is still to be told) or
//! `Vanished`, and until then nothing is started there.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::history::CrashRecord;
use super::state::{After, End, Ladder, Minding, Recall, Slot, State, StopOrder, Target, Wait};
use super::verdict::Verdict;
use crate::id::StartNo;
use crate::signal::Signal;
use crate::time::MonoTime;

/// A slot on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// The number of its last start. On disk it must be at least that of any worker that was ever started, so it is written
    /// before a start, or with a margin.
    pub last_start: StartNo,
    /// Where it stood.
    pub state: SavedState,
    /// Whether it was minded.
    pub minding: Minding,
    /// How often it was restarted.
    pub restarts: u32,
    /// Its last verdict.
    pub last_verdict: Option<Verdict>,
    crashes: CrashRecord,
    last_policy_start: Option<MonoTime>,
}

/// Where a slot stood.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SavedState {
    /// No worker, none wanted.
    Stopped,
    /// A worker was there, or on its way.
    Up {
        /// Which start.
        start: StartNo,
        /// What it ran.
        target: Target,
        /// Since when it was ready; `None`: it was not.
        ready: Option<MonoTime>,
        /// The last signal that an operator let us send, written before it is sent: an end by it is no crash, also if nobody was there to
        /// see it. What older versions wrote has none.
        #[serde(default)]
        signalled: Option<Signal>,
    },
    /// A worker was being stopped.
    Stopping {
        /// Which start.
        start: StartNo,
        /// What it ran.
        target: Target,
        /// How far the stop had come.
        stop: SavedStop,
    },
    /// A worker had exited, and its tree was being ended.
    Clearing {
        /// Which start.
        start: StartNo,
        /// What it ran.
        target: Target,
        /// What was to follow.
        rest: SavedClearing,
    },
    /// A worker had exited while the slot was paused, and what it left was not touched.
    Exited {
        /// Which start.
        start: StartNo,
        /// What it ran.
        target: Target,
        /// How it ended.
        end: SavedEnd,
    },
    /// The next start waited.
    Backoff {
        /// For this.
        until: MonoTime,
        /// What was to be started.
        target: Target,
        /// Why.
        why: SavedWait,
    },
    /// The slot rested.
    Quarantined {
        /// Until then.
        until: MonoTime,
        /// What was to be started.
        target: Target,
    },
}

/// How far a stop had come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedStop {
    order: StopOrder,
    ladder: Option<Ladder>,
}

/// What was to follow when the tree was gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedClearing {
    end: End,
    after: After,
}

/// How a worker ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedEnd(End);

/// Why a start waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedWait(Wait);

impl Slot {
    /// Returns what the next agent must know.
    #[must_use]
    pub fn saved(&self) -> Saved {
        let up = |start: StartNo, target: &Arc<Target>, ready, signalled| SavedState::Up {
            start,
            target: target.as_ref().clone(),
            ready,
            signalled,
        };
        let stopping = |start: StartNo, target: &Arc<Target>, order: &StopOrder, ladder| SavedState::Stopping {
            start,
            target: target.as_ref().clone(),
            stop: SavedStop { order: order.clone(), ladder },
        };
        let clearing = |start: StartNo, target: &Arc<Target>, end: &End, after: After| SavedState::Clearing {
            start,
            target: target.as_ref().clone(),
            rest: SavedClearing { end: end.clone(), after },
        };
        let state = match &self.state {
            State::Stopped => SavedState::Stopped,
            State::Recalled { start, target, plan: Recall::Mind { ready, signalled } } => up(*start, target, *ready, *signalled),
            State::Recalled { start, target, plan: Recall::Stop { order, ladder } } => stopping(*start, target, order, *ladder),
            State::Recalled { start, target, plan: Recall::Clear { end, after } } => clearing(*start, target, end, after.clone()),
            State::Spawning { start, target, .. } => up(*start, target, None, None),
            State::Starting { worker, .. } => up(worker.start, &worker.target, None, worker.signalled),
            State::Ready { worker, since, .. } => up(worker.start, &worker.target, Some(*since), worker.signalled),
            State::Cancelling { start, target, order, .. } => stopping(*start, target, order, None),
            State::Stopping { worker, order, ladder, .. } => stopping(worker.start, &worker.target, order, Some(*ladder)),
            State::Exited { start, target, end } | State::Recalled { start, target, plan: Recall::Leave { end } } => {
                SavedState::Exited { start: *start, target: target.as_ref().clone(), end: SavedEnd(end.as_ref().clone()) }
            }
            State::Clearing { start, target, end, after } => clearing(*start, target, end, after.clone()),
            State::Backoff { until, target, why } => {
                SavedState::Backoff { until: *until, target: target.as_ref().clone(), why: SavedWait(*why) }
            }
            State::Quarantined { until, target } => SavedState::Quarantined { until: *until, target: target.as_ref().clone() },
        };
        Saved {
            last_start: self.last_start,
            state,
            minding: self.minding,
            restarts: self.restarts,
            last_verdict: self.last_verdict.as_deref().cloned(),
            crashes: self.crashes.clone(),
            last_policy_start: self.last_policy_start,
        }
    }

    /// Returns the slot as it was saved by another agent of this boot.
    #[must_use]
    pub fn recall(saved: Saved) -> Self {
        let state = match saved.state {
            SavedState::Stopped => State::Stopped,
            SavedState::Up { start, target, ready, signalled } => {
                State::Recalled { start, target: Arc::new(target), plan: Recall::Mind { ready, signalled } }
            }
            SavedState::Stopping { start, target, stop: SavedStop { order, ladder } } => {
                State::Recalled { start, target: Arc::new(target), plan: Recall::Stop { order, ladder } }
            }
            SavedState::Clearing { start, target, rest: SavedClearing { end, after } } => {
                State::Recalled { start, target: Arc::new(target), plan: Recall::Clear { end: Box::new(end), after } }
            }
            SavedState::Exited { start, target, end: SavedEnd(end) } => {
                State::Recalled { start, target: Arc::new(target), plan: Recall::Leave { end: Box::new(end) } }
            }
            SavedState::Backoff { until, target, why: SavedWait(why) } => State::Backoff { until, target: Arc::new(target), why },
            SavedState::Quarantined { until, target } => State::Quarantined { until, target: Arc::new(target) },
        };
        Self {
            state,
            minding: saved.minding,
            last_start: saved.last_start,
            restarts: saved.restarts,
            crashes: saved.crashes,
            last_verdict: saved.last_verdict.map(Arc::new),
            last_policy_start: saved.last_policy_start,
        }
    }
}

impl Saved {
    /// Returns what still holds after a reboot: the start numbers and the last verdict. No process is left, and the clock began anew.
    #[must_use]
    pub fn after_reboot(self) -> Self {
        Self {
            state: SavedState::Stopped,
            minding: Minding::Minded,
            restarts: 0,
            crashes: CrashRecord::default(),
            last_policy_start: None,
            ..self
        }
    }
}

/// A target on disk is whole; in memory it is shared by all slots that have it.
pub(super) mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::worker::Target;

    pub(crate) fn serialize<S: Serializer>(target: &Arc<Target>, serializer: S) -> Result<S::Ok, S::Error> {
        target.as_ref().serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<Target>, D::Error> {
        Target::deserialize(deserializer).map(Arc::new)
    }
}
