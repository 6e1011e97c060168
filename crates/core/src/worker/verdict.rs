//! Why a worker ended: facts, and one way to say them.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::effect::Rung;
use super::state::StopWhy;
use crate::id::{Generation, StartNo};
use crate::memory::MemoryPassed;
use crate::signal::Signal;
use crate::time::{Human, MonoTime};
use crate::units::Bytes;

/// Why a worker ended, could not start, or lost a job. The text is its `Display`; dates are added by the shell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Which start.
    pub start: StartNo,
    /// Of which rollout.
    pub generation: Generation,
    /// When it was decided, on this boot's clock.
    pub at: MonoTime,
    /// The facts.
    pub what: What,
}

/// The facts of a verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// A worker ended.
    Ended {
        /// Who wanted it.
        why: EndWhy,
        /// What the kernel says.
        how: ExitHow,
        /// How long it ran.
        ran: Duration,
        /// How many processes of its tree had to be killed after it; 0 too while that is not yet known.
        leftovers: u32,
        /// What follows.
        sequel: Sequel,
    },
    /// No process could be made.
    StartFailed {
        /// Why.
        error: Box<str>,
        /// What follows.
        sequel: Sequel,
    },
    /// A stale job's process was killed; the worker stays.
    StaleJob(StaleJobFacts),
}

/// Who wanted the end of a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndWhy {
    /// Nobody.
    ItsOwn,
    /// We did.
    Asked {
        /// Why.
        why: StopWhy,
        /// The last that was done to end it; `None`: it ended before anything was done.
        rung: Option<Rung>,
        /// What it had ignored when it was killed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ignored: Option<Ignored>,
    },
}

/// The last polite signal of a ladder, by which a worker did not end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ignored {
    /// The signal.
    pub signal: Signal,
    /// From then to the kill.
    pub span: Duration,
}

/// How a main process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitHow {
    /// With this code.
    Code(i32),
    /// By a signal.
    Signal {
        /// Its number.
        number: i32,
        /// Whether it left a core dump.
        core: bool,
    },
    /// It was adopted, or gone when we came back: the status went to another parent.
    Unknown,
    /// By the kernel, for want of memory: its tree needed more than its limit, or the machine had no more.
    OutOfMemory {
        /// The most that its tree ever had, where the kernel says so.
        peak: Option<Bytes>,
    },
}

/// What follows the end of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sequel {
    /// Nothing: none is wanted.
    Stopped,
    /// A new one, at once.
    Restarted,
    /// A new one, later: so many crashes in a row (0: restarts follow too fast on each other).
    Backoff {
        /// How long.
        wait: Duration,
        /// After so many crashes.
        crashes: u32,
    },
    /// The slot rests.
    Quarantined {
        /// How long until the probe.
        wait: Duration,
    },
    /// Nothing until the slot is resumed.
    Paused,
}

/// A job that took too long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StaleJobFacts {
    /// The process that did it.
    pub pid: i32,
    /// The job's class, where the title showed one.
    pub class: Option<Box<str>>,
    /// The queue it came from.
    pub queue: Box<str>,
    /// How old it was.
    pub age: Duration,
    /// How old it might become.
    pub timeout: Duration,
}

/// The kind of a verdict: a fixed set, for JSON, metrics and filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VerdictKind {
    /// It ended by itself with a code.
    Exit,
    /// It ended by a signal that was not ours.
    Signal,
    /// It ended, and how is not known.
    Unknown,
    /// Too much memory, by our samples.
    Memory,
    /// Too much memory, by the kernel.
    Oom,
    /// A stale job.
    Stale,
    /// A new release.
    Deploy,
    /// Fewer are wanted.
    Scale,
    /// Somebody said so.
    Operator,
    /// A changed configuration.
    Reload,
    /// The node is drained.
    Drain,
    /// It did not become ready.
    NotReady,
    /// No process could be made.
    StartFailed,
}

impl VerdictKind {
    /// Returns the word for it in JSON and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exit => "exit",
            Self::Signal => "signal",
            Self::Unknown => "unknown",
            Self::Memory => "memory",
            Self::Oom => "oom",
            Self::Stale => "stale",
            Self::Deploy => "deploy",
            Self::Scale => "scale",
            Self::Operator => "operator",
            Self::Reload => "reload",
            Self::Drain => "drain",
            Self::NotReady => "not_ready",
            Self::StartFailed => "start_failed",
        }
    }
}

impl Verdict {
    /// Returns its kind.
    #[must_use]
    pub fn kind(&self) -> VerdictKind {
        match &self.what {
            What::StartFailed { .. } => VerdictKind::StartFailed,
            What::StaleJob(_) => VerdictKind::Stale,
            What::Ended { why: EndWhy::ItsOwn, how: ExitHow::Code(_), .. } => VerdictKind::Exit,
            What::Ended { why: EndWhy::ItsOwn, how: ExitHow::Signal { .. }, .. } => VerdictKind::Signal,
            What::Ended { why: EndWhy::ItsOwn, how: ExitHow::Unknown, .. } => VerdictKind::Unknown,
            What::Ended { why: EndWhy::ItsOwn, how: ExitHow::OutOfMemory { .. }, .. } => VerdictKind::Oom,
            What::Ended { why: EndWhy::Asked { why, .. }, .. } => why.kind(),
        }
    }
}

/// Returns the name of a signal's number on x86-64 and arm64 (`signal(7)`).
#[must_use]
pub const fn signal_name(number: i32) -> Option<&'static str> {
    Some(match number {
        1 => "HUP",
        2 => "INT",
        3 => "QUIT",
        4 => "ILL",
        5 => "TRAP",
        6 => "ABRT",
        7 => "BUS",
        8 => "FPE",
        9 => "KILL",
        10 => "USR1",
        11 => "SEGV",
        12 => "USR2",
        13 => "PIPE",
        14 => "ALRM",
        15 => "TERM",
        24 => "XCPU",
        25 => "XFSZ",
        31 => "SYS",
        _ => return None,
    })
}

impl ExitHow {
    /// Returns whether this signal ended it.
    pub(super) fn is_by(self, signal: Signal) -> bool {
        matches!(self, Self::Signal { number, .. } if signal_name(number) == Some(signal.name()))
    }
}

impl fmt::Display for ExitHow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exited with code {code}"),
            Self::Signal { number, core } => {
                match signal_name(*number) {
                    Some(name) => write!(f, "killed by {name}")?,
                    None => write!(f, "killed by signal {number}")?,
                }
                f.write_str(if *core { " (core dumped)" } else { "" })
            }
            Self::Unknown => f.write_str("ended, how is not known"),
            Self::OutOfMemory { peak: None } => f.write_str("killed by the kernel for want of memory"),
            Self::OutOfMemory { peak: Some(peak) } => {
                write!(f, "killed by the kernel for want of memory (at most it had {})", InOneUnit(&[*peak]))
            }
        }
    }
}

impl fmt::Display for Sequel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped => f.write_str("stopped"),
            Self::Restarted => f.write_str("restarted"),
            Self::Backoff { wait, crashes: 0 } => write!(f, "next start in {}", Human::rough(*wait)),
            Self::Backoff { wait, crashes } => write!(f, "next start in {} (crash {crashes} in a row)", Human::rough(*wait)),
            Self::Quarantined { wait } => write!(f, "quarantined, one probe in {}", Human::rough(*wait)),
            Self::Paused => f.write_str("paused, so not restarted"),
        }
    }
}

/// Sizes in one unit: `350 MB`, `361, 374 MB`; one decimal below ten units.
struct InOneUnit<'a>(&'a [Bytes]);

impl fmt::Display for InOneUnit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let least = self.0.iter().map(|amount| amount.0).min().unwrap_or(0);
        let (unit, size) =
            [("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1_000)].into_iter().find(|(_, size)| least >= *size).unwrap_or(("B", 1_u64));
        for (index, Bytes(amount)) in self.0.iter().enumerate() {
            f.write_str(if index > 0 { ", " } else { "" })?;
            let tenths = u128::from(*amount) * 10 / u128::from(size);
            if tenths < 100 && tenths % 10 > 0 {
                write!(f, "{}.{}", tenths / 10, tenths % 10)?;
            } else {
                write!(f, "{}", tenths / 10)?;
            }
        }
        write!(f, " {unit}")
    }
}

impl fmt::Display for MemoryPassed {
    /// `350 MB was passed in 2 of 2 samples (361, 374 MB)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (limit, samples) = ([self.limit], InOneUnit(&self.samples));
        let plural = if self.of == 1 { "" } else { "s" };
        write!(f, "{} was passed in {} of {} sample{plural} ({samples})", InOneUnit(&limit), self.samples.len(), self.of)
    }
}

impl fmt::Display for StaleJobFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let class = self.class.as_deref().unwrap_or("of unknown class");
        let (age, timeout) = (Human::rough(self.age), Human(self.timeout));
        write!(f, "job {class} from {} (process {}) killed after {age}: longer than {timeout}; the worker stays", self.queue, self.pid)
    }
}

impl fmt::Display for StopWhy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(passed) => passed.fmt(f),
            Self::Deploy(generation) => write!(f, "generation {generation} takes its place"),
            Self::Scale => f.write_str("fewer workers are wanted"),
            Self::Operator => f.write_str("an operator asked for it"),
            Self::Signalled => f.write_str("selfstart sent it by an operator's order"),
            Self::Reload => f.write_str("the configuration changed"),
            Self::Drain => f.write_str("the node is drained"),
            Self::NotReady(within) => write!(f, "it was not ready within {}", Human(*within)),
            Self::NotReadySince { within, met } => write!(f, "it was not ready within {}: {met}", Human(*within)),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            What::StartFailed { error, sequel } => write!(f, "could not be started: {error}; {sequel}"),
            What::StaleJob(job) => job.fmt(f),
            What::Ended { why, how, ran, leftovers, sequel } => {
                match why {
                    EndWhy::ItsOwn if *how == ExitHow::Unknown => how.fmt(f)?,
                    EndWhy::ItsOwn => write!(f, "{how} after {}", Human::rough(*ran))?,
                    EndWhy::Asked { why, rung: Some(rung), ignored } => {
                        if let Some(Ignored { signal, span }) = ignored {
                            write!(f, "ignored {signal} for {}; ", Human::rough(*span))?;
                        }
                        let word = if matches!(why, StopWhy::Memory(_)) { "after" } else { "because" };
                        write!(f, "ended by {rung} {word} {why}")?;
                    }
                    EndWhy::Asked { why, rung: None, .. } => write!(f, "{how} before it was stopped because {why}")?,
                }
                match leftovers {
                    0 => {}
                    1 => f.write_str("; 1 process that it left was killed")?,
                    more => write!(f, "; {more} processes that it left were killed")?,
                }
                write!(f, "; {sequel}")
            }
        }
    }
}
