//! What can be heard about a pool, and what the shell is asked to do.

use std::fmt;
use std::sync::Arc;

use crate::id::{Generation, ReleaseId, Revision};
use crate::signal::Signal;
use crate::worker::{self, StopWhy, Target, Verdict};

/// What can be heard about a pool. One that does not apply changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Something about the worker of a slot.
    Slot {
        /// Which.
        slot: u32,
        /// What. Of `worker::Event`, only news (of processes, of the keeper, samples): wishes have their own events here.
        event: worker::Event,
    },
    /// A release is wanted in every slot; workers that run it already are left alone (a rollback after a failed rollout touches only those
    /// that had been replaced). The same release again: goes on with what is left, and makes a new try of one that failed.
    RollOut {
        /// The release.
        release: ReleaseId,
        /// What it was built from.
        revision: Revision,
    },
    /// An operator wants workers (also: ends a backoff, a quarantine, a drain).
    Start(Which),
    /// An operator wants none.
    Stop(Which),
    /// New workers for the old ones: one slot at once, the pool as a rollout of a new generation of the same release.
    Restart {
        /// Which; `All` starts stopped slots too.
        which: Which,
        /// Why.
        why: RestartWhy,
    },
    /// What is being stopped gets the last rung now.
    KillNow(Which),
    /// Stop minding, without touching.
    Pause(Which),
    /// Mind again.
    Resume(Which),
    /// A signal to the main processes.
    Signal {
        /// Whose.
        which: Which,
        /// Which signal.
        signal: Signal,
    },
    /// Another number of slots.
    Scale(Scale),
    /// The policy may have another `count` than before.
    Reloaded,
    /// Stop everything and start nothing until `Undrain` or a `Start` of the pool; what is wanted stays known.
    Drain,
    /// Start again what is wanted.
    Undrain,
    /// The moment that [`super::next_deadline`] named has come.
    DeadlineReached,
}

/// What of a pool is meant. A slot that the pool does not have is nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Every slot, and those to come.
    All,
    /// One.
    Slot(u32),
}

/// Why workers are replaced by like ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartWhy {
    /// Somebody said so.
    Operator,
    /// The configuration of the workers changed.
    Reload,
}

impl RestartWhy {
    pub(super) const fn stop_why(self) -> StopWhy {
        match self {
            Self::Operator => StopWhy::Operator,
            Self::Reload => StopWhy::Reload,
        }
    }
}

/// How many slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// So many (at most [`crate::policy::MAX_COUNT`]), until `count` in the configuration changes.
    To(u32),
    /// As configured.
    Config,
}

/// What the shell is asked to do, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Something for one slot.
    Slot {
        /// Which.
        slot: u32,
        /// What.
        effect: worker::Effect,
    },
    /// A rollout has begun: slots take part in it.
    RolloutBegun {
        /// Its target.
        target: Arc<Target>,
    },
    /// Every slot that takes part has had its turn. No rollout begins, and so none ends, where no slot takes part.
    RolledOut {
        /// Its target.
        target: Arc<Target>,
        /// How many slots came to be ready in it.
        ready: u32,
        /// How many did not, but had no vote: they were not well before either, or had no worker.
        failing: u32,
    },
    /// A slot that was well before crashed into a wait at the new target; the slots that had not had their turn keep what they run.
    RolloutFailed {
        /// Its target.
        target: Arc<Target>,
        /// The slot.
        slot: u32,
        /// Why.
        verdict: Option<Arc<Verdict>>,
    },
    /// A rollout ended before all had their turn.
    RolloutDropped {
        /// Its target.
        target: Arc<Target>,
        /// Why.
        why: Dropped,
    },
}

/// Why a rollout was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// A newer one, of this generation, takes its place.
    Superseded(Generation),
    /// The pool is drained.
    Drained,
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Superseded(generation) => write!(f, "generation {generation} takes its place"),
            Self::Drained => f.write_str("the pool is drained"),
        }
    }
}

/// Says how a rollout went.
#[must_use]
pub fn rolled_out_text(target: &Target, ready: u32, failing: u32) -> String {
    let failing = match failing {
        0 => String::new(),
        // The first of a pool: there was no worker that could have been well.
        _ if target.generation <= Generation(1) => format!(", {failing} not ready"),
        _ => format!(", {failing} not ready, as before"),
    };
    format!("{} is rolled out: {ready} ready{failing}", target.release)
}
