//! Whether a worker uses too much memory: N of the last M samples above a limit, for each rung of a ladder.
//!
//! A sample that could not be taken is no sample: it is neither zero nor a hit, and it forgets nothing. What is measured
//! (RSS or PSS, of the whole tree) and how often is the shell's affair.

use serde::{Deserialize, Serialize};

use crate::policy::{MemoryAction, MemoryPolicy, MemoryRung};
use crate::units::Bytes;

/// The last samples of one worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryHistory {
    /// Oldest first, as many as the rung that looks back farthest needs.
    samples: Vec<Bytes>,
    /// Bit i: rung i is passed, and its signal was given.
    signalled: u32,
}

/// A limit, and the samples that passed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPassed {
    /// The limit.
    pub limit: Bytes,
    /// Looked at this many samples at most.
    pub of: u8,
    /// Those that were above the limit, oldest first.
    pub samples: Vec<Bytes>,
}

/// What a sample leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryCall {
    /// What is to be done.
    pub action: MemoryAction,
    /// Why.
    pub passed: MemoryPassed,
}

impl MemoryHistory {
    /// Takes a sample (`None`: not known) and returns what it leads to, usually nothing.
    ///
    /// The highest rung is judged first. A rung that ends the worker (drain, kill) is the only call; else there is one call for
    /// each signal rung that was not passed at the sample before.
    #[must_use]
    pub fn sampled(&mut self, sample: Option<Bytes>, policy: &MemoryPolicy) -> Vec<MemoryCall> {
        let Some(sample) = sample else { return Vec::new() };
        let farthest = policy.ladder.iter().map(|rung| usize::from(rung.of)).max().unwrap_or(0);
        self.samples.push(sample);
        if self.samples.len() > farthest {
            self.samples.drain(..self.samples.len() - farthest);
        }
        let mut signals = Vec::new();
        for (index, rung) in policy.ladder.iter().enumerate().rev() {
            // The 33rd rung of a ladder would signal at each sample; the configuration has no such ladder.
            let bit = u32::try_from(index).ok().and_then(|index| 1_u32.checked_shl(index)).unwrap_or(0);
            let Some(passed) = self.passed(rung) else {
                self.signalled &= !bit;
                continue;
            };
            match rung.action {
                MemoryAction::Drain | MemoryAction::Kill => return vec![MemoryCall { action: rung.action, passed }],
                MemoryAction::Signal(_) if self.signalled & bit == 0 => {
                    self.signalled |= bit;
                    signals.push(MemoryCall { action: rung.action, passed });
                }
                MemoryAction::Signal(_) => {}
            }
        }
        signals
    }

    fn passed(&self, rung: &MemoryRung) -> Option<MemoryPassed> {
        let seen = &self.samples[self.samples.len().saturating_sub(usize::from(rung.of))..];
        let above = seen.iter().filter(|sample| **sample > rung.limit);
        if above.clone().count() < usize::from(rung.hits.max(1)) {
            return None;
        }
        Some(MemoryPassed { limit: rung.limit, of: rung.of, samples: above.copied().collect() })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::signal::Signal;

    fn mb(amount: u64) -> Bytes {
        Bytes(amount * 1_000_000)
    }

    fn rung(limit: u64, hits: u8, of: u8, action: MemoryAction) -> MemoryRung {
        MemoryRung { limit: mb(limit), hits, of, action }
    }

    /// Returns the action for each sample; `0` stands for a sample that could not be taken.
    fn actions(ladder: Vec<MemoryRung>, samples: &[u64]) -> Vec<Vec<MemoryAction>> {
        let policy = MemoryPolicy { ladder, every: Duration::from_secs(10) };
        let mut history = MemoryHistory::default();
        let sample = |amount: &u64| (*amount > 0).then(|| mb(*amount));
        samples.iter().map(|amount| history.sampled(sample(amount), &policy).iter().map(|call| call.action).collect()).collect()
    }

    #[test]
    fn two_of_two_needs_two_in_a_row() {
        let drain = MemoryAction::Drain;
        assert_eq!(actions(vec![rung(350, 2, 2, drain)], &[360, 340, 360, 370]), [vec![], vec![], vec![], vec![drain]]);
    }

    #[test]
    fn two_of_three_forgives_one_sample_between() {
        let drain = MemoryAction::Drain;
        assert_eq!(actions(vec![rung(350, 2, 3, drain)], &[360, 340, 360]), [vec![], vec![], vec![drain]]);
        assert_eq!(actions(vec![rung(350, 2, 3, drain)], &[360, 340, 340, 360]), vec![vec![]; 4]);
    }

    #[test]
    fn a_sample_at_the_limit_has_not_passed_it() {
        assert_eq!(actions(vec![rung(350, 1, 1, MemoryAction::Kill)], &[350]), [vec![]]);
    }

    #[test]
    fn a_sample_that_could_not_be_taken_is_no_hit_and_clears_nothing() {
        let drain = MemoryAction::Drain;
        assert_eq!(actions(vec![rung(350, 2, 2, drain)], &[360, 0, 0, 370]), [vec![], vec![], vec![], vec![drain]]);
    }

    #[test]
    fn the_highest_rung_is_judged_first() {
        let ladder = vec![rung(350, 2, 2, MemoryAction::Drain), rung(500, 1, 1, MemoryAction::Kill)];
        assert_eq!(actions(ladder.clone(), &[510]), [vec![MemoryAction::Kill]]);
        assert_eq!(actions(ladder, &[360, 510]), [vec![], vec![MemoryAction::Kill]]);
    }

    #[test]
    fn a_signal_is_given_once_for_each_time_that_its_limit_is_passed() {
        let usr1 = MemoryAction::Signal(Signal::Usr1);
        assert_eq!(
            actions(vec![rung(100, 1, 1, usr1)], &[110, 120, 0, 120, 90, 110]),
            [vec![usr1], vec![], vec![], vec![], vec![], vec![usr1]]
        );
    }

    #[test]
    fn a_drain_goes_before_the_signal_of_a_higher_rung() {
        let ladder = vec![rung(100, 1, 1, MemoryAction::Drain), rung(200, 1, 1, MemoryAction::Signal(Signal::Usr1))];
        assert_eq!(actions(ladder, &[210]), [vec![MemoryAction::Drain]]);
    }

    #[test]
    fn tells_which_samples_passed() {
        let policy = MemoryPolicy { ladder: vec![rung(350, 2, 3, MemoryAction::Drain)], every: Duration::from_secs(10) };
        let mut history = MemoryHistory::default();
        let calls: Vec<_> = [361, 300, 374].into_iter().flat_map(|sample| history.sampled(Some(mb(sample)), &policy)).collect();
        assert_eq!(calls[0].passed, MemoryPassed { limit: mb(350), of: 3, samples: vec![mb(361), mb(374)] });
        assert_eq!(calls.len(), 1);
    }
}
