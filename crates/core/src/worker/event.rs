//! What can be heard about a slot.

use std::sync::Arc;
use std::time::Duration;

use super::state::{StopWhy, Target, Then};
use super::verdict::ExitHow;
use crate::backoff::Jitter;
use crate::id::{ProcessId, StartNo};
use crate::signal::Signal;
use crate::time::MonoTime;
use crate::units::Bytes;

/// What can be heard about a slot. One that does not apply changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A worker of this target is wanted. Where one runs, or waits for its backoff at the same generation: already so; another
    /// generation ends a backoff or a quarantine, and is what follows a stop.
    Start {
        /// What is to run.
        target: Arc<Target>,
    },
    /// As `Start`, on the word of an operator: ends a backoff or a quarantine (then it is a probe) at any generation.
    StartNow {
        /// What is to run.
        target: Arc<Target>,
    },
    /// The keeper made the process.
    Spawned {
        /// Which start.
        start: StartNo,
        /// The main process.
        process: ProcessId,
    },
    /// The keeper could not make the process: there is none.
    SpawnFailed {
        /// Which start.
        start: StartNo,
        /// Why, for people.
        error: Box<str>,
        /// Luck.
        jitter: Jitter,
    },
    /// What `ready:` asks for was seen.
    ReadySeen {
        /// Which start.
        start: StartNo,
    },
    /// What `ready:` asks for was looked for and not seen; it is looked for again.
    ReadyNotSeen {
        /// Which start.
        start: StartNo,
        /// What was met, for people.
        met: Box<str>,
    },
    /// The main process ended and was reaped (or, adopted, was seen to be gone).
    Exited {
        /// Which start.
        start: StartNo,
        /// How.
        how: ExitHow,
        /// Luck.
        jitter: Jitter,
    },
    /// Nothing of the worker's tree is left; the answer to [`super::Effect::ClearTree`].
    TreeGone {
        /// Which start.
        start: StartNo,
        /// How many processes had to be killed.
        killed: u32,
    },
    /// The worker is to be stopped by the ladder. While it is stopping: only what follows changes.
    StopRequested {
        /// Why.
        why: StopWhy,
        /// What follows.
        then: Then,
    },
    /// A worker that is stopping gets the last rung now. Others are left alone.
    KillNow,
    /// The moment that [`super::next_deadline`] named has come.
    DeadlineReached,
    /// The memory of the worker's whole tree was measured.
    MemorySample {
        /// Which start.
        start: StartNo,
        /// `None`: could not be read.
        sample: Option<Bytes>,
    },
    /// A job of this worker is stale ([`crate::job`]).
    StaleJob {
        /// Which start.
        start: StartNo,
        /// What was seen.
        job: StaleJobSeen,
    },
    /// An operator wants a signal to be sent to the main process.
    SignalRequested {
        /// Which.
        signal: Signal,
    },
    /// The agent came back and this worker lives (or its exit is still to be told: `Exited` follows).
    Adopted {
        /// Which start.
        start: StartNo,
        /// The main process.
        process: ProcessId,
        /// What it runs.
        target: Arc<Target>,
        /// When it was started (the process's own start will do).
        since: MonoTime,
        /// Since when it has been ready; `None`: not, as far as is known (then what was saved of the slot decides).
        ready_since: Option<MonoTime>,
    },
    /// The agent came back, and nobody knows of a worker of this start any more: it ended, and how is not known.
    Vanished {
        /// Which start.
        start: StartNo,
        /// Luck.
        jitter: Jitter,
    },
    /// The slot is not to be minded until `Resume`.
    Pause,
    /// The slot is minded again, from what is true now.
    Resume,
}

/// A stale job, as it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaleJobSeen {
    /// The process that does the job.
    pub child: ProcessId,
    /// Its title, to be read again before it is killed.
    pub title: Arc<[u8]>,
    /// The job's class, where the title shows one.
    pub class: Option<Box<str>>,
    /// The queue it came from.
    pub queue: Box<str>,
    /// How old it is.
    pub age: Duration,
    /// How old it may become.
    pub timeout: Duration,
}

impl Event {
    /// Returns which start the event is about; `None`: about the slot, whatever is in it.
    #[must_use]
    pub fn start(&self) -> Option<StartNo> {
        match self {
            Self::Spawned { start, .. }
            | Self::SpawnFailed { start, .. }
            | Self::ReadySeen { start }
            | Self::ReadyNotSeen { start, .. }
            | Self::Exited { start, .. }
            | Self::TreeGone { start, .. }
            | Self::MemorySample { start, .. }
            | Self::StaleJob { start, .. }
            | Self::Adopted { start, .. }
            | Self::Vanished { start, .. } => Some(*start),
            Self::Start { .. }
            | Self::StartNow { .. }
            | Self::StopRequested { .. }
            | Self::KillNow
            | Self::DeadlineReached
            | Self::SignalRequested { .. }
            | Self::Pause
            | Self::Resume => None,
        }
    }
}
