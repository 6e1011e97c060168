//! What the operator wants, as values that the machines obey: the configuration makes them, nothing below it sees raw text.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::id::PoolName;
use crate::signal::Signal;
use crate::units::Bytes;

/// How one worker is started, judged, stopped and started again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerPolicy {
    /// `stop:`.
    pub stop: StopLadder,
    /// `restart:`.
    pub restart: RestartPolicy,
    /// `ready:`.
    pub ready: ReadyPolicy,
    /// `memory:`; `None`: no limit.
    pub memory: Option<MemoryPolicy>,
    /// `stale_job_timeout:`; `None`: jobs may run for ever.
    pub stale: Option<StalePolicy>,
}

/// What is sent to a worker in order: polite rungs to the main process, then KILL to its whole tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopLadder {
    /// The polite rungs; may be empty (then the tree is killed at once).
    pub rungs: Vec<StopRung>,
}

impl StopLadder {
    /// The longest that a stop can take before the tree is killed.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.rungs.iter().map(|rung| rung.wait).fold(Duration::ZERO, Duration::saturating_add)
    }
}

impl Default for StopLadder {
    /// `[TERM 10s, KILL]`.
    fn default() -> Self {
        Self { rungs: vec![StopRung { signal: Signal::Term, wait: Duration::from_secs(10) }] }
    }
}

/// One polite rung.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopRung {
    /// What the main process gets; never KILL.
    pub signal: Signal,
    /// How long until the next rung.
    pub wait: Duration,
}

/// When a worker that crashed is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartPolicy {
    /// `backoff: [first, longest]`: the first restart is at once, the second waits `first`, each further one twice as long.
    pub backoff_first: Duration,
    /// The longest wait.
    pub backoff_longest: Duration,
    /// A worker that was ready this long starts the count anew.
    pub reset_after: Duration,
    /// `flapping: {crashes, within, retry_after}`.
    pub flapping: FlappingPolicy,
}

/// When a slot is quarantined, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlappingPolicy {
    /// This many crashes ...
    pub crashes: u32,
    /// ... in this time.
    pub within: Duration,
    /// One probe is started after this; never given up for ever.
    pub retry_after: Duration,
}

impl Default for RestartPolicy {
    /// `{backoff: [1s, 1m], reset_after: 1m, flapping: {crashes: 5, within: 1m, retry_after: 5m}}`.
    fn default() -> Self {
        Self {
            backoff_first: Duration::from_secs(1),
            backoff_longest: Duration::from_secs(60),
            reset_after: Duration::from_secs(60),
            flapping: FlappingPolicy { crashes: 5, within: Duration::from_secs(60), retry_after: Duration::from_secs(300) },
        }
    }
}

/// When a started worker counts as ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadyPolicy {
    /// What shows it.
    pub how: ReadyHow,
    /// Not ready in this time: the start has failed (a crash). Always longer than [`ReadyHow::After`].
    pub within: Duration,
}

impl Default for ReadyPolicy {
    /// `{after: 1s}`, `within: 30s`.
    fn default() -> Self {
        Self { how: ReadyHow::After(Duration::from_secs(1)), within: Duration::from_secs(30) }
    }
}

/// What shows that a worker is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadyHow {
    /// It stayed up this long.
    After(Duration),
    /// Something answers at `HOST:PORT` (placeholders not yet filled in).
    Tcp(String),
    /// This command ends with 0 (words, placeholders not yet filled in).
    Command(Vec<String>),
}

/// `memory:`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPolicy {
    /// From the lowest limit to the highest.
    pub ladder: Vec<MemoryRung>,
    /// The time between two samples.
    pub every: Duration,
}

/// One limit of a memory ladder: `350MB x2/3 drain`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRung {
    /// Passed when a sample is above it.
    pub limit: Bytes,
    /// In this many ...
    pub hits: u8,
    /// ... of the last so many samples; `hits <= of <= 32`.
    pub of: u8,
    /// What is done.
    pub action: MemoryAction,
}

/// What passing a memory limit leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryAction {
    /// The stop ladder, then a new worker.
    Drain,
    /// A signal to the main process, once for each time that the limit is passed.
    Signal(Signal),
    /// KILL to the whole tree, then a new worker.
    Kill,
}

/// `stale_job_timeout:`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StalePolicy {
    /// How old a job may become.
    pub default: Duration,
    /// By class, where the title shows one.
    pub classes: BTreeMap<String, Duration>,
}

/// How many workers of one kind, and in what order they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolPolicy {
    /// Its name.
    pub name: PoolName,
    /// How many workers; at most [`MAX_COUNT`].
    pub count: u32,
    /// `update:`.
    pub update: UpdatePolicy,
    /// The least time between two starts in this pool, except restarts.
    pub start_stagger: Duration,
    /// Pools that must be ready before this one starts, and that stop after it.
    pub after: Vec<PoolName>,
    /// How each of its workers is minded.
    pub worker: WorkerPolicy,
}

/// The most workers that one pool may have: a typing error must not fork-bomb the node.
pub const MAX_COUNT: u32 = 10_000;

/// How a pool changes over to a new release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpdatePolicy {
    /// In what order.
    pub how: UpdateHow,
    /// How many slots may be without a ready worker because of the update; at least 1.
    pub max_unavailable: u32,
    /// How long a replaced slot must have been ready before the next is taken.
    pub settle: Duration,
    /// `release.confirm`: how long the first slot of a deploy must have been ready before the next is taken.
    pub confirm: Duration,
}

impl Default for UpdatePolicy {
    fn default() -> Self {
        Self { how: UpdateHow::OneAtATime, max_unavailable: 1, settle: Duration::ZERO, confirm: Duration::ZERO }
    }
}

/// In what order slots are replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdateHow {
    /// Each is ready before the next is taken.
    OneAtATime,
    /// All at the same time.
    AllAtOnce,
}
