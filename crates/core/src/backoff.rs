//! How long a slot waits before it starts a worker again after a crash.
//!
//! Only the arithmetic: when the count grows and when it starts anew is decided in [`crate::worker`].

use std::time::Duration;

use crate::policy::RestartPolicy;

/// Luck, as a value from outside, in thousandths: 0 leaves a wait as it is, 1000 (and more) shortens it by a tenth.
///
/// It keeps slots that crashed together from starting together for ever, and never makes a wait longer than the policy says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Jitter(pub u16);

/// Returns the wait before the start that follows crash number `count` of a row: none after the first, `backoff_first`
/// after the second, then twice as long each time, up to `backoff_longest`. A count of 0 is no crash: no wait.
#[must_use]
pub fn wait(count: u32, policy: &RestartPolicy, jitter: Jitter) -> Duration {
    let Some(doublings) = count.checked_sub(2) else { return Duration::ZERO };
    let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
    let full = policy.backoff_first.saturating_mul(factor).min(policy.backoff_longest);
    // A tenth of the wait, times thousandths.
    full.saturating_sub((full / 10_000).saturating_mul(u32::from(jitter.0.min(1_000))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(count: u32) -> f64 {
        wait(count, &RestartPolicy::default(), Jitter(0)).as_secs_f64()
    }

    #[test]
    fn the_first_restart_is_at_once_and_each_wait_is_twice_the_last() {
        assert_eq!([0, 1, 2, 3, 4, 7].map(secs), [0.0, 0.0, 1.0, 2.0, 4.0, 32.0]);
    }

    #[test]
    fn no_wait_is_longer_than_the_longest() {
        assert_eq!([8, 9, 33, 34, 35, u32::MAX].map(secs), [60.0; 6]);
    }

    #[test]
    fn a_first_wait_above_the_longest_is_cut() {
        let policy = RestartPolicy { backoff_longest: Duration::from_millis(300), ..RestartPolicy::default() };
        assert_eq!(wait(2, &policy, Jitter(0)), Duration::from_millis(300));
    }

    #[test]
    fn jitter_shortens_by_at_most_a_tenth() {
        let policy = RestartPolicy::default();
        assert_eq!(wait(3, &policy, Jitter(500)), Duration::from_millis(1_900));
        assert_eq!(wait(3, &policy, Jitter(1_000)), Duration::from_millis(1_800));
        assert_eq!(wait(3, &policy, Jitter(u16::MAX)), Duration::from_millis(1_800));
    }
}
