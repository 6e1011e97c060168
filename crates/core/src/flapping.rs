//! When a slot crashes too often to go on as before.
//!
//! Only the counting; what follows (quarantine, one probe after `retry_after`) is decided in [`crate::worker`].

use serde::{Deserialize, Serialize};

use crate::policy::FlappingPolicy;
use crate::time::MonoTime;

/// The crashes of one slot and generation that may still count.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrashWindow {
    /// Oldest first; never more than `crashes` of the policy.
    at: Vec<MonoTime>,
}

impl CrashWindow {
    /// Notes a crash at `now` and returns whether there were `crashes` of them in the last `within` (its ends included).
    ///
    /// `crashes: 0` is read as 1: a slot that must not crash at all.
    #[must_use]
    pub fn crashed(&mut self, now: MonoTime, policy: &FlappingPolicy) -> bool {
        let enough = policy.crashes.max(1) as usize;
        self.at.retain(|at| now.since(*at) <= policy.within);
        self.at.push(now);
        if self.at.len() > enough {
            self.at.drain(..self.at.len() - enough);
        }
        self.at.len() >= enough
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn flaps(times: &[u64]) -> Vec<bool> {
        let policy = FlappingPolicy { crashes: 3, within: Duration::from_secs(10), retry_after: Duration::from_secs(60) };
        let mut window = CrashWindow::default();
        times.iter().map(|secs| window.crashed(MonoTime::from_boot(Duration::from_secs(*secs)), &policy)).collect()
    }

    #[test]
    fn enough_crashes_in_the_window_are_flapping() {
        assert_eq!(flaps(&[0, 5, 10, 11]), [false, false, true, true]);
    }

    #[test]
    fn crashes_that_are_far_apart_are_not() {
        assert_eq!(flaps(&[0, 5, 11, 16, 22]), [false; 5]);
    }

    #[test]
    fn a_limit_of_none_is_read_as_one() {
        let policy = FlappingPolicy { crashes: 0, within: Duration::ZERO, retry_after: Duration::ZERO };
        assert!(CrashWindow::default().crashed(MonoTime::ZERO, &policy));
    }
}
