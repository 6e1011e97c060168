//! What a slot remembers of its crashes, by generation.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::backoff::{self, Jitter};
use crate::flapping::CrashWindow;
use crate::id::Generation;
use crate::policy::RestartPolicy;
use crate::time::MonoTime;

/// The crashes of one generation since the slot last was well.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CrashRecord {
    generation: Generation,
    /// In a row: since a worker was ready for `reset_after`.
    count: u32,
    probe: Probe,
    window: CrashWindow,
}

/// Whether the worker is the one start that a quarantined slot gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Probe {
    #[default]
    No,
    Yes,
}

/// What a crash leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Penalty {
    /// A start after this wait.
    Wait { wait: Duration, crashes: u32 },
    /// A rest of this length, then a probe.
    Rest { wait: Duration },
}

impl CrashRecord {
    /// Notes a crash of a worker of `generation` and returns what it leads to. Crashes of another generation are forgotten.
    pub(super) fn crashed(&mut self, generation: Generation, now: MonoTime, policy: &RestartPolicy, jitter: Jitter) -> Penalty {
        if self.generation != generation {
            *self = Self { generation, ..Self::default() };
        }
        self.count = self.count.saturating_add(1);
        let flapping = self.window.crashed(now, &policy.flapping);
        if flapping || self.probe == Probe::Yes {
            return Penalty::Rest { wait: policy.flapping.retry_after };
        }
        Penalty::Wait { wait: backoff::wait(self.count, policy, jitter), crashes: self.count }
    }

    /// Notes that the next start is a probe: if it crashes, the slot rests again.
    pub(super) fn probed(&mut self) {
        self.probe = Probe::Yes;
    }

    /// Forgets everything: a worker was well.
    pub(super) fn well(&mut self) {
        *self = Self { generation: self.generation, ..Self::default() };
    }

    /// Returns how many crashes in a row there were at this generation.
    pub(super) fn count(&self, generation: Generation) -> u32 {
        if self.generation == generation { self.count } else { 0 }
    }
}
