//! What the shell is asked to do about a slot, and what it is told.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::state::{StopWhy, Target};
use super::verdict::{ExitHow, StaleJobFacts, Verdict};
use crate::id::{ProcessId, StartNo};
use crate::memory::MemoryPassed;
use crate::signal::Signal;
use crate::time::Human;

/// What the shell is asked to do. A signal to a process that is gone does nothing: its exit is on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Make the process; the answer is `Spawned` or `SpawnFailed`.
    Spawn {
        /// Which start.
        start: StartNo,
        /// What it runs.
        target: Arc<Target>,
    },
    /// Send a signal to the main process only.
    Signal {
        /// Which start.
        start: StartNo,
        /// Which signal.
        signal: Signal,
    },
    /// Kill the main process and its whole tree.
    KillTree {
        /// Which start.
        start: StartNo,
    },
    /// The main process is gone: end what it left behind; the answer is `TreeGone`, always.
    ClearTree {
        /// Which start.
        start: StartNo,
    },
    /// Look for what `ready:` asks for, until it is seen (`ReadySeen`) or this start is over.
    WatchReady {
        /// Which start.
        start: StartNo,
    },
    /// Kill the process of a stale job, if it still has this title.
    KillJob {
        /// Which start of the slot it works for.
        start: StartNo,
        /// The process.
        child: ProcessId,
        /// What its title must be.
        title: Arc<[u8]>,
    },
    /// Tell what happened.
    Tell(Happening),
}

/// What happened to a slot: for the log, the events and the metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happening {
    /// The process is there.
    Started {
        /// Which start.
        start: StartNo,
        /// The main process.
        process: ProcessId,
    },
    /// A worker from before the agent came back is minded again.
    Adopted {
        /// Which start.
        start: StartNo,
        /// The main process.
        process: ProcessId,
    },
    /// It is ready.
    Ready {
        /// Which start.
        start: StartNo,
        /// How long that took.
        took: Duration,
    },
    /// The main process ended; [`Happening::Judged`] follows when nothing of its tree is left.
    Exited {
        /// Which start.
        start: StartNo,
        /// How.
        how: ExitHow,
    },
    /// The worker is over (or a stale job of it was killed): the verdict.
    Judged(Arc<Verdict>),
    /// A stop has begun.
    StopBegun {
        /// Which start.
        start: StartNo,
        /// Why.
        why: StopWhy,
    },
    /// A rung of the stop ladder was taken.
    RungSent {
        /// Which start.
        start: StartNo,
        /// Which.
        rung: Rung,
    },
    /// A memory limit was passed for which a signal is sent.
    MemorySignal {
        /// Which start.
        start: StartNo,
        /// The signal.
        signal: Signal,
        /// The facts.
        passed: MemoryPassed,
    },
    /// The next start waits.
    BackedOff {
        /// How long.
        wait: Duration,
        /// After so many crashes in a row; 0: the wait between two restarts that were no crashes.
        crashes: u32,
    },
    /// Too many crashes: the slot rests.
    Quarantined {
        /// How long until the probe.
        wait: Duration,
    },
    /// A stale job was found and its process is to be killed.
    StaleJobFound {
        /// Which start of the slot it works for.
        start: StartNo,
        /// The facts.
        job: StaleJobFacts,
    },
    /// No longer minded.
    Paused,
    /// Minded again.
    Resumed,
}

/// A step of a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rung {
    /// This signal to the main process.
    Polite(Signal),
    /// KILL to the whole tree.
    Kill,
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Polite(signal) => signal.fmt(f),
            Self::Kill => f.write_str("KILL"),
        }
    }
}

impl fmt::Display for Happening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started { start, process } => write!(f, "start {} is process {}", start.0, process.pid),
            Self::Adopted { start, process } => write!(f, "start {} is still process {}: minded again", start.0, process.pid),
            Self::Ready { start, took } => write!(f, "start {} is ready after {}", start.0, Human::rough(*took)),
            Self::Exited { start, how } => write!(f, "start {}: {how}", start.0),
            Self::Judged(verdict) => verdict.fmt(f),
            Self::StopBegun { start, why } => write!(f, "start {} is being stopped: {why}", start.0),
            Self::RungSent { start, rung } => write!(f, "start {} gets {rung}", start.0),
            Self::MemorySignal { start, signal, passed } => write!(f, "start {} gets {signal}: {passed}", start.0),
            Self::BackedOff { wait, crashes: 0 } => {
                write!(f, "restarted too soon after the last time: next start in {}", Human::rough(*wait))
            }
            Self::BackedOff { wait, crashes } => write!(f, "next start in {}, after {crashes} crashes", Human::rough(*wait)),
            Self::Quarantined { wait } => write!(f, "quarantined: too many crashes; one probe in {}", Human::rough(*wait)),
            Self::StaleJobFound { job, .. } => job.fmt(f),
            Self::Paused => f.write_str("paused"),
            Self::Resumed => f.write_str("resumed"),
        }
    }
}
