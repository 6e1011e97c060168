//! What is true of a slot.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::effect::Rung;
use super::history::CrashRecord;
use super::verdict::{ExitHow, Ignored, Verdict, VerdictKind};
use crate::id::{Generation, ProcessId, ReleaseId, Revision, StartNo};
use crate::memory::{MemoryHistory, MemoryPassed};
use crate::time::MonoTime;

/// What a worker runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The rollout it belongs to.
    pub generation: Generation,
    /// The release.
    pub release: ReleaseId,
    /// The revision that the release was built from.
    pub revision: Revision,
}

/// Why a worker is stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopWhy {
    /// It uses too much memory.
    Memory(Box<MemoryPassed>),
    /// A worker of this generation takes its place.
    Deploy(Generation),
    /// Fewer are wanted.
    Scale,
    /// Somebody said so.
    Operator,
    /// It ended by a signal that somebody let us send.
    Signalled,
    /// The configuration changed.
    Reload,
    /// The node is drained.
    Drain,
    /// It was not ready in this time: a crash.
    NotReady(Duration),
    /// As [`Self::NotReady`], and what the last look for it met.
    NotReadySince {
        /// The time.
        within: Duration,
        /// What was met, for people.
        met: Box<str>,
    },
}

impl StopWhy {
    pub(super) const fn kind(&self) -> VerdictKind {
        match self {
            Self::Memory(_) => VerdictKind::Memory,
            Self::Deploy(_) => VerdictKind::Deploy,
            Self::Scale => VerdictKind::Scale,
            Self::Operator | Self::Signalled => VerdictKind::Operator,
            Self::Reload => VerdictKind::Reload,
            Self::Drain => VerdictKind::Drain,
            Self::NotReady(_) | Self::NotReadySince { .. } => VerdictKind::NotReady,
        }
    }
}

/// What follows a stop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Then {
    /// Nothing: the slot stays stopped.
    Stay,
    /// A worker of this target. No crash.
    Start(#[serde(with = "super::saved::shared")] Arc<Target>),
    /// A worker of the same target, as after a crash.
    AsAfterCrash,
}

/// A wish that a worker ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StopOrder {
    /// Why.
    pub(super) why: StopWhy,
    /// What follows.
    pub(super) then: Then,
}

/// Whether a slot is looked after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Minding {
    /// It is.
    #[default]
    Minded,
    /// Not until it is resumed.
    Paused,
}

/// What people see of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "PRODUCT.md, section 4")]
pub enum SlotState {
    Stopped,
    Starting,
    Ready,
    Quiet,
    Stopping,
    Backoff,
    Quarantined,
    Paused,
}

impl SlotState {
    /// Returns the word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Quiet => "quiet",
            Self::Stopping => "stopping",
            Self::Backoff => "backoff",
            Self::Quarantined => "quarantined",
            Self::Paused => "paused",
        }
    }
}

/// A slot: the worker in it, and what outlives a worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    pub(super) state: State,
    pub(super) minding: Minding,
    /// What the last start was; 0: none yet.
    pub(super) last_start: StartNo,
    /// Starts that took the place of a worker that had ended.
    pub(super) restarts: u32,
    pub(super) crashes: CrashRecord,
    pub(super) last_verdict: Option<Arc<Verdict>>,
    /// When a worker was last started after an end that was no crash.
    pub(super) last_policy_start: Option<MonoTime>,
}

/// What is true of the worker in a slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum State {
    /// No worker, none wanted.
    #[default]
    Stopped,
    /// The agent came back; whether this start lives is not yet known.
    Recalled { start: StartNo, target: Arc<Target>, plan: Recall },
    /// The keeper was asked for a process.
    Spawning { start: StartNo, target: Arc<Target>, since: MonoTime },
    /// The keeper was asked for a process, and it is to be stopped as soon as it is known.
    Cancelling { start: StartNo, target: Arc<Target>, since: MonoTime, order: StopOrder, manner: Manner },
    /// The process is there, not yet ready.
    Starting { worker: Worker, wait: ReadyWait, memory: MemoryHistory },
    /// It is ready.
    Ready { worker: Worker, since: MonoTime, memory: MemoryHistory },
    /// It is being stopped.
    Stopping { worker: Worker, ready: Option<MonoTime>, order: StopOrder, ladder: Ladder },
    /// The main process ended while the slot was paused; what it left is not touched.
    Exited { start: StartNo, target: Arc<Target>, end: Box<End> },
    /// The main process ended; what it left is being ended.
    Clearing { start: StartNo, target: Arc<Target>, end: Box<End>, after: After },
    /// No worker; the next start waits.
    Backoff { until: MonoTime, target: Arc<Target>, why: Wait },
    /// No worker; a probe is started later.
    Quarantined { until: MonoTime, target: Arc<Target> },
}

/// A process that is minded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Worker {
    pub(super) start: StartNo,
    pub(super) process: ProcessId,
    pub(super) target: Arc<Target>,
    pub(super) since: MonoTime,
    /// The job that was killed last, and when.
    pub(super) job_killed: Option<Box<(ProcessId, MonoTime)>>,
    /// The last signal that an operator let us send.
    pub(super) signalled: Option<crate::signal::Signal>,
    /// What the last look for its readiness met.
    pub(super) met: Option<Box<str>>,
}

/// How a stop begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Manner {
    Ladder,
    KillAtOnce,
}

/// What a recalled slot does when it is known what became of its worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Recall {
    /// It is minded; `ready`: since when it was ready; `signalled`: as [`Worker`] has it.
    Mind { ready: Option<MonoTime>, signalled: Option<crate::signal::Signal> },
    /// The stop goes on from here; `ladder: None`: from the first rung.
    Stop { order: StopOrder, ladder: Option<Ladder> },
    /// It had exited, and was judged; what it left is to be ended.
    Clear { end: Box<End>, after: After },
    /// It had exited while the slot was paused; what it left is still not touched.
    Leave { end: Box<End> },
}

/// What a starting worker waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadyWait {
    /// It is ready if it still runs then.
    Up { until: MonoTime },
    /// It must be seen to be ready before that.
    Proof { by: MonoTime, within: Duration },
}

/// How far a stop has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Ladder {
    /// This polite rung was taken; the next is due then.
    Polite {
        rung: u16,
        signal: crate::signal::Signal,
        next: MonoTime,
        /// When the signal was sent; `None`: an earlier version did not note it.
        #[serde(default)]
        sent: Option<MonoTime>,
    },
    /// The tree was killed; once more then, if it is still there.
    Killed {
        again: MonoTime,
        /// What it had not ended by; `None`: it was not asked, or not given its time.
        #[serde(default)]
        ignored: Option<Ignored>,
    },
}

impl Ladder {
    pub(super) const fn rung(self) -> Rung {
        match self {
            Self::Polite { signal, .. } => Rung::Polite(signal),
            Self::Killed { .. } => Rung::Kill,
        }
    }

    pub(super) const fn due(self) -> MonoTime {
        match self {
            Self::Polite { next, .. } => next,
            Self::Killed { again, .. } => again,
        }
    }

    /// What a worker that is killed now has ignored.
    pub(super) fn ignored(self, now: MonoTime) -> Option<Ignored> {
        match self {
            Self::Polite { signal, sent, .. } => sent.map(|sent| Ignored { signal, span: now.since(sent) }),
            Self::Killed { ignored, .. } => ignored,
        }
    }
}

/// How a worker ended: a verdict without its sequel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct End {
    pub(super) why: super::verdict::EndWhy,
    pub(super) how: ExitHow,
    pub(super) ran: Duration,
    pub(super) at: MonoTime,
    #[serde(default)]
    pub(super) told: Told,
}

/// Whether a verdict on an end was told already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Told {
    /// It is when the tree is gone, with what follows.
    #[default]
    No,
    /// The slot was paused: nobody knew when something would follow.
    Yes,
}

/// What follows when the tree is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum After {
    /// Nothing.
    Stay,
    /// A worker of this target; what ended was no crash.
    Start(#[serde(with = "super::saved::shared")] Arc<Target>),
    /// A worker after a wait.
    Backoff {
        until: MonoTime,
        #[serde(with = "super::saved::shared")]
        target: Arc<Target>,
        crashes: u32,
    },
    /// A probe after a rest.
    Quarantined {
        until: MonoTime,
        #[serde(with = "super::saved::shared")]
        target: Arc<Target>,
    },
}

/// Why a start waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Wait {
    /// So many crashes in a row.
    Crashes(u32),
    /// The last restart that was no crash is too near.
    Pace,
    /// The slot is paused.
    Resume,
}

impl Slot {
    /// Returns an empty slot whose next start has the number after `last_start`: what a slot of this number had used before.
    #[must_use]
    pub fn after(last_start: StartNo) -> Self {
        Self { last_start, ..Self::default() }
    }

    /// Returns what people see.
    #[must_use]
    pub fn shown(&self) -> SlotState {
        match (&self.state, self.minding) {
            (State::Stopping { .. } | State::Cancelling { .. } | State::Clearing { .. }, _) => SlotState::Stopping,
            (_, Minding::Paused) => SlotState::Paused,
            (State::Stopped, _) => SlotState::Stopped,
            (State::Recalled { .. } | State::Spawning { .. } | State::Starting { .. }, _) => SlotState::Starting,
            (State::Ready { .. }, _) => SlotState::Ready,
            (State::Exited { .. }, _) => SlotState::Stopping,
            (State::Backoff { .. }, _) => SlotState::Backoff,
            (State::Quarantined { .. }, _) => SlotState::Quarantined,
        }
    }

    /// Returns the number of the start in this slot; `None`: no worker, and none on its way.
    #[must_use]
    pub fn start(&self) -> Option<StartNo> {
        match &self.state {
            State::Stopped | State::Backoff { .. } | State::Quarantined { .. } => None,
            State::Recalled { start, .. }
            | State::Spawning { start, .. }
            | State::Cancelling { start, .. }
            | State::Exited { start, .. }
            | State::Clearing { start, .. } => Some(*start),
            State::Starting { worker, .. } | State::Ready { worker, .. } | State::Stopping { worker, .. } => Some(worker.start),
        }
    }

    /// Returns the main process; `None`: there is none, or it is not known yet.
    #[must_use]
    pub fn process(&self) -> Option<ProcessId> {
        self.worker().map(|worker| worker.process)
    }

    /// Returns when the process was started; `None`: as for [`Self::process`].
    #[must_use]
    pub fn up_since(&self) -> Option<MonoTime> {
        self.worker().map(|worker| worker.since)
    }

    /// Returns since when it has been ready; `None`: it is not.
    #[must_use]
    pub fn ready_since(&self) -> Option<MonoTime> {
        match &self.state {
            State::Ready { since, .. } => Some(*since),
            _ => None,
        }
    }

    /// Returns what the worker runs, or, where there is none, what the next start will run; `None`: stopped.
    #[must_use]
    pub fn target(&self) -> Option<&Arc<Target>> {
        match &self.state {
            State::Stopped => None,
            State::Recalled { target, .. }
            | State::Spawning { target, .. }
            | State::Cancelling { target, .. }
            | State::Exited { target, .. }
            | State::Clearing { target, .. }
            | State::Backoff { target, .. }
            | State::Quarantined { target, .. } => Some(target),
            State::Starting { worker, .. } | State::Ready { worker, .. } | State::Stopping { worker, .. } => Some(&worker.target),
        }
    }

    /// Returns the target of the start that comes when the present worker has ended; the present target where none is being stopped;
    /// `None`: none comes.
    #[must_use]
    pub fn next_target(&self) -> Option<&Arc<Target>> {
        let then = match &self.state {
            State::Cancelling { order, .. } | State::Stopping { order, .. } | State::Recalled { plan: Recall::Stop { order, .. }, .. } => {
                &order.then
            }
            State::Clearing { after, .. } | State::Recalled { plan: Recall::Clear { after, .. }, .. } => {
                return match after {
                    After::Stay => None,
                    After::Start(target) | After::Backoff { target, .. } | After::Quarantined { target, .. } => Some(target),
                };
            }
            _ => return self.target(),
        };
        match then {
            Then::Stay => None,
            Then::Start(target) => Some(target),
            Then::AsAfterCrash => self.target(),
        }
    }

    /// Returns when the next start is due, while it waits (backoff, quarantine).
    #[must_use]
    pub fn waits_until(&self) -> Option<MonoTime> {
        match &self.state {
            State::Backoff { until, .. } | State::Quarantined { until, .. } => Some(*until),
            _ => None,
        }
    }

    /// Returns whether it waits because its workers crashed (the wait between two policy restarts is none).
    #[must_use]
    pub fn waits_after_crash(&self) -> bool {
        matches!(&self.state, State::Backoff { why: Wait::Crashes(_), .. } | State::Quarantined { .. })
    }

    /// Returns how many crashes in a row the worker's (or next worker's) generation has behind it.
    #[must_use]
    pub fn crashes_in_a_row(&self) -> u32 {
        self.next_target().map_or(0, |target| self.crashes.count(target.generation))
    }

    /// Returns whether a worker is there or on its way (a process may exist).
    #[must_use]
    pub fn is_occupied(&self) -> bool {
        self.start().is_some()
    }

    /// Returns whether the slot has no worker and wants none.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        matches!(self.state, State::Stopped)
    }

    /// Returns whether a stop of its worker is going on or will be as soon as its process is known.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        matches!(
            self.state,
            State::Cancelling { .. }
                | State::Stopping { .. }
                | State::Clearing { .. }
                | State::Recalled { plan: Recall::Stop { .. } | Recall::Clear { .. }, .. }
        )
    }

    /// Returns whether the end of its worker, which is on its way, counts as a crash.
    #[must_use]
    pub fn ends_as_crash(&self) -> bool {
        match &self.state {
            State::Stopping { order, .. } | State::Cancelling { order, .. } => order.then == Then::AsAfterCrash,
            State::Clearing { after, .. } => matches!(after, After::Backoff { .. } | After::Quarantined { .. }),
            _ => false,
        }
    }

    /// Returns whether it waits to hear what became of the worker from before the agent came back.
    #[must_use]
    pub fn is_recalled(&self) -> bool {
        matches!(self.state, State::Recalled { .. })
    }

    /// Returns whether it is looked after.
    #[must_use]
    pub fn minding(&self) -> Minding {
        self.minding
    }

    /// Returns how many workers took the place of one that had ended.
    #[must_use]
    pub fn restarts(&self) -> u32 {
        self.restarts
    }

    /// Returns the verdict on the last worker that ended here (or on its last stale job).
    #[must_use]
    pub fn last_verdict(&self) -> Option<&Arc<Verdict>> {
        self.last_verdict.as_ref()
    }

    /// Returns the number of the last start; 0: none yet.
    #[must_use]
    pub fn last_start(&self) -> StartNo {
        self.last_start
    }

    pub(super) fn worker(&self) -> Option<&Worker> {
        match &self.state {
            State::Starting { worker, .. } | State::Ready { worker, .. } | State::Stopping { worker, .. } => Some(worker),
            _ => None,
        }
    }
}
