//! What happened, told once: one value becomes a line of the log and a line of the event journal.
//!
//! For: [`Happening`], and the two places it goes to. Not for: deciding what is worth telling, status (`core::status`), or what
//! workers write (`agent::output`).

pub(crate) mod journal;
pub(crate) mod log;
pub(crate) mod notify;
pub(crate) mod rotating;
pub(crate) mod stamp;

use std::fmt;

use selfstart_core::id::{PoolName, SlotId};
use serde_json::{Map, Value};

/// How loud a happening is (design/STYLE: ERROR a person must act, WARN something was worked around, INFO a step of a life).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// A person must act.
    Error,
    /// Something was worked around.
    Warn,
    /// A step in a life.
    Info,
}

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal, $level:ident;)+) => {
        /// What kind of thing happened. The names are an interface: more may come, none is renamed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub(crate) enum Kind { $($(#[doc = $doc])+ $name,)+ }

        impl Kind {
            /// All of them.
            pub(crate) const ALL: &[Self] = &[$(Self::$name,)+];

            /// As events show it.
            #[must_use]
            pub(crate) const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// How loud it is, unless the happening says otherwise.
            #[must_use]
            pub(crate) const fn level(self) -> Level {
                match self { $(Self::$name => Level::$level,)+ }
            }
        }
    };
}

kinds! {
    /// An agent minds the node.
    AgentStarted = "agent_started", Info;
    /// An agent ended, as it was told to.
    AgentStopped = "agent_stopped", Info;
    /// An agent ended by itself or was killed, and the next one took over.
    AgentRestarted = "agent_restarted", Error;
    /// A worker was found running and is minded.
    WorkerAdopted = "worker_adopted", Info;
    /// A worker was started.
    WorkerStarted = "worker_started", Info;
    /// A worker could not be started.
    WorkerStartFailed = "worker_start_failed", Error;
    /// A worker is ready.
    WorkerReady = "worker_ready", Info;
    /// A worker is being stopped.
    WorkerStopping = "worker_stopping", Info;
    /// A worker passed a memory limit.
    WorkerMemory = "worker_memory", Warn;
    /// A worker ended; the verdict says why.
    WorkerEnded = "worker_ended", Info;
    /// A slot is rested, as its workers crash.
    WorkerQuarantined = "worker_quarantined", Error;
    /// A job was in flight too long.
    StaleJob = "stale_job", Warn;
    /// A deploy began.
    DeployStarted = "deploy_started", Info;
    /// A build step began or ended.
    BuildStep = "build_step", Info;
    /// Which ruby, node or python a release runs.
    Runtime = "runtime", Info;
    /// `current` points to another release.
    Switched = "switched", Info;
    /// A deploy is done.
    DeployFinished = "deploy_finished", Info;
    /// A deploy failed.
    DeployFailed = "deploy_failed", Error;
    /// A deploy was not begun, or was cut short, through no fault of its revision.
    DeployPostponed = "deploy_postponed", Warn;
    /// A hook, or what undoes a step, failed; nothing depends on it.
    HookFailed = "hook_failed", Error;
    /// Back to an older release.
    RolledBack = "rolled_back", Warn;
    /// A release went.
    ReleaseRemoved = "release_removed", Info;
    /// The source was not reached.
    FetchFailed = "fetch_failed", Warn;
    /// The mirror was made anew.
    MirrorHealed = "mirror_healed", Warn;
    /// A changed configuration is in use.
    ConfigReloaded = "config_reloaded", Info;
    /// A configuration was refused; the former one goes on.
    ConfigRefused = "config_refused", Error;
    /// No updates until released.
    Held = "held", Info;
    /// Updates again.
    Unheld = "unheld", Info;
    /// A pool has another count.
    Scaled = "scaled", Info;
    /// Not minded, by an operator's word.
    Paused = "paused", Info;
    /// Minded again.
    Resumed = "resumed", Info;
    /// The node drains.
    DrainStarted = "drain_started", Info;
    /// The node is drained.
    Drained = "drained", Info;
    /// Output cannot be written, and workers may have to wait.
    OutputWaits = "output_waits", Error;
    /// Output is written again.
    OutputGoesOn = "output_goes_on", Info;
    /// Something about output files was worked around.
    OutputFile = "output_file", Warn;
    /// A pool changes over to a release.
    Rollout = "rollout", Info;
    /// Another selfstart has taken over.
    Upgraded = "upgraded", Info;
    /// Another selfstart did not take over.
    UpgradeFailed = "upgrade_failed", Error;
    /// Something else did not work as it should, and was worked around.
    Trouble = "trouble", Warn;
    /// Events could not be written before this one.
    EventsLost = "events_lost", Error;
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Happening {
    /// What kind.
    pub kind: Kind,
    /// How loud.
    pub level: Level,
    /// Which pool it is about.
    pub pool: Option<PoolName>,
    /// Which slot of it.
    pub slot: Option<u32>,
    /// Why a worker ended or an update did not happen: exit, signal, memory, stale, ...
    pub verdict: Option<String>,
    /// For people: one line, whole by itself.
    pub text: String,
    /// More fields for machines. Those named like a field of every event are dropped.
    pub more: Map<String, Value>,
}

impl Happening {
    /// A happening about the node.
    #[must_use]
    pub(crate) fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self { kind, level: kind.level(), pool: None, slot: None, verdict: None, text: text.into(), more: Map::new() }
    }

    /// About a pool.
    #[must_use]
    pub(crate) fn pool(mut self, pool: &PoolName) -> Self {
        self.pool = Some(pool.clone());
        self
    }

    /// About a slot.
    #[must_use]
    pub(crate) fn slot(mut self, id: &SlotId) -> Self {
        self.pool = Some(id.pool.clone());
        self.slot = Some(id.slot);
        self
    }

    /// With a verdict.
    #[must_use]
    pub(crate) fn verdict(mut self, verdict: impl Into<String>) -> Self {
        self.verdict = Some(verdict.into());
        self
    }

    /// With another level than its kind has.
    #[must_use]
    pub(crate) const fn level(mut self, level: Level) -> Self {
        self.level = level;
        self
    }

    /// With one more field; null is left out.
    #[must_use]
    pub(crate) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        let value = value.into();
        if !value.is_null() {
            self.more.insert(name.to_owned(), value);
        }
        self
    }

    /// Writes it to the log.
    pub(crate) fn log(&self) {
        let Self { kind, level, pool, slot, verdict, text, .. } = self;
        let (kind, pool, verdict) = (kind.as_str(), pool.as_ref().map(PoolName::as_str), verdict.as_deref());
        match level {
            Level::Error => tracing::error!(kind, pool, slot, verdict, "{text}"),
            Level::Warn => tracing::warn!(kind, pool, slot, verdict, "{text}"),
            Level::Info => tracing::info!(kind, pool, slot, verdict, "{text}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_names_of_their_own() {
        let mut names: Vec<&str> = Kind::ALL.iter().map(|kind| kind.as_str()).collect();
        assert!(names.iter().all(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Kind::ALL.len());
    }
}
