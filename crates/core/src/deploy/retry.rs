//! How long until the next try.

use std::time::Duration;

/// Where in its range a wait falls: from -20 % to +20 %.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Jitter(u16);

impl Jitter {
    /// Returns the jitter `thousandths` of the way from the shortest wait to the longest; 500 is none, above 1000 is 1000.
    #[must_use]
    pub const fn new(thousandths: u16) -> Self {
        Self(if thousandths > 1_000 { 1_000 } else { thousandths })
    }

    /// Returns the wait, 20 % shorter to 20 % longer.
    #[must_use]
    pub fn spread(self, wait: Duration) -> Duration {
        // 800 to 1200 thousandths.
        wait.saturating_mul(800 + u32::from(self.0) * 2 / 5) / 1_000
    }
}

impl Default for Jitter {
    fn default() -> Self {
        Self::new(500)
    }
}

/// The waits between tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// After the first failure; twice as long after each further one.
    pub first: Duration,
    /// The longest.
    pub longest: Duration,
    /// Where soon is of no use: access refused, no such branch, nothing new to try.
    pub slow: Duration,
}

impl Default for RetryPolicy {
    /// 1 s, doubling to 60 s: a network that comes up during a boot is met within a second or two, and a fleet whose server is
    /// down asks it once a minute and node.
    fn default() -> Self {
        Self { first: Duration::from_secs(1), longest: Duration::from_secs(60), slow: Duration::from_secs(60) }
    }
}

impl RetryPolicy {
    /// Returns the wait after that many failures in a row (0 counts as 1), without jitter.
    #[must_use]
    pub fn wait(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        self.first.saturating_mul(1 << doublings).min(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_the_longest_and_stay_there() {
        let waits: Vec<u64> = (0..9).map(|n| RetryPolicy::default().wait(n).as_secs()).collect();
        assert_eq!(waits, [1, 1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(RetryPolicy::default().wait(u32::MAX).as_secs(), 60);
    }

    #[test]
    fn jitter_is_a_fifth_either_way() {
        let wait = Duration::from_secs(10);
        assert_eq!(Jitter::new(0).spread(wait), Duration::from_secs(8));
        assert_eq!(Jitter::default().spread(wait), wait);
        assert_eq!(Jitter::new(u16::MAX).spread(wait), Duration::from_secs(12));
        assert!(Jitter::new(1_000).spread(Duration::MAX) > Duration::from_secs(1 << 40));
    }
}
