//! Mistakes that the machines could have: the properties must find each of them, or they hold nothing.
//!
//! A mistake is a `step` around the right one that does as code would that was written wrongly: it hears what it should not, forgets what
//! was decided, or takes another moment or policy for the true one.

use std::sync::Arc;

use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

use super::*;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mistake {
    None,
    /// An exit frees the slot, whatever the worker has left behind.
    ExitFreesTheSlot,
    /// News about a former worker is taken for news about the present one.
    LateNewsCounts,
    /// Waits are over a second too soon.
    WaitsAreShort,
    /// Crashes are never too many.
    NoFlapping,
    /// Who is asked to stop and does so has crashed.
    StopsAreCrashes,
    /// The last rung is not taken.
    NobodyIsKilled,
    /// A stop forgets when the next rung is due.
    RungsAreForgotten,
    /// All slots are taken at once.
    AllAtOnce,
    /// A rollout takes the next slot although the last one is not ready.
    NextBeforeReady,
    /// What is to start during a rollout is not started.
    RolloutsStartNothing,
    /// Nothing of the pool is saved.
    NothingIsSaved,
}

impl Mistake {
    /// [`pool::step`], done wrongly.
    pub(crate) fn step(self, pool: Pool, event: Event, now: MonoTime, policy: &PoolPolicy) -> (Pool, Vec<Effect>) {
        let right = |pool, event| pool::step(pool, event, now, policy);
        match (self, event) {
            (Self::ExitFreesTheSlot, Event::Slot { slot, event: event @ worker::Event::Exited { start, .. } }) => {
                let (pool, mut effects) = right(pool, Event::Slot { slot, event });
                let (pool, more) = right(pool, Event::Slot { slot, event: worker::Event::TreeGone { start, killed: 0 } });
                effects.extend(more);
                (pool, effects)
            }
            (Self::LateNewsCounts, Event::Slot { slot, event: worker::Event::Exited { start, how, jitter } }) => {
                let start = pool.slot(slot).and_then(worker::Slot::start).unwrap_or(start);
                right(pool, Event::Slot { slot, event: worker::Event::Exited { start, how, jitter } })
            }
            (Self::LateNewsCounts, Event::Slot { slot, event: worker::Event::TreeGone { start, killed } }) => {
                let start = pool.slot(slot).and_then(worker::Slot::start).unwrap_or(start);
                right(pool, Event::Slot { slot, event: worker::Event::TreeGone { start, killed } })
            }
            (Self::WaitsAreShort, event) => {
                let next = |pool: &Pool| pool.slots().filter_map(|(_, slot)| slot.waits_until()).min();
                match next(&pool) {
                    Some(until) if now < until && now + ms(1_000) >= until => {
                        let (pool, mut effects) = right(pool, event);
                        let (pool, more) = pool::step(pool, Event::DeadlineReached, until, policy);
                        effects.extend(more);
                        (pool, effects)
                    }
                    _ => right(pool, event),
                }
            }
            (Self::NoFlapping, event) => {
                let mut other = policy.clone();
                other.worker.restart.flapping.crashes = u32::MAX;
                (other.worker.restart.backoff_first, other.worker.restart.backoff_longest) = (ms(0), ms(0));
                pool::step(pool, event, now, &other)
            }
            (Self::StopsAreCrashes, event) => {
                let (pool, mut effects) = right(pool, event);
                for effect in &mut effects {
                    if let Effect::Slot { effect: worker::Effect::Tell(Happening::Judged(verdict)), .. } = effect
                        && let What::Ended { sequel, .. } = &mut Arc::make_mut(verdict).what
                        && *sequel == Sequel::Restarted
                    {
                        *sequel = Sequel::Backoff { wait: ms(1_000), crashes: 1 };
                    }
                }
                (pool, effects)
            }
            (Self::NobodyIsKilled, event) => {
                let (pool, mut effects) = right(pool, event);
                effects.retain(|effect| !matches!(effect, Effect::Slot { effect: worker::Effect::KillTree { .. }, .. }));
                (pool, effects)
            }
            (Self::RungsAreForgotten, Event::DeadlineReached) => {
                let stopping = pool.slots().any(|(_, slot)| slot.shown() == worker::SlotState::Stopping);
                if stopping { (pool, Vec::new()) } else { right(pool, Event::DeadlineReached) }
            }
            (Self::AllAtOnce, event) => {
                let mut other = policy.clone();
                other.update.how = UpdateHow::AllAtOnce;
                pool::step(pool, event, now, &other)
            }
            (Self::NextBeforeReady, event) => {
                let mut other = policy.clone();
                other.worker.ready = ReadyPolicy { how: ReadyHow::After(ms(0)), ..other.worker.ready };
                pool::step(pool, event, now, &other)
            }
            (Self::RolloutsStartNothing, event) => {
                let (pool, mut effects) = right(pool, event);
                let rolling = pool.rolling_out().is_some();
                effects.retain(|effect| !(rolling && matches!(effect, Effect::Slot { effect: worker::Effect::Spawn { .. }, .. })));
                (pool, effects)
            }
            (_, event) => right(pool, event),
        }
    }

    /// What is on disk of a pool when the agent dies.
    pub(crate) fn saved(self, pool: &Pool, policy: &PoolPolicy) -> pool::SavedPool {
        if self == Self::NothingIsSaved { Pool::new(policy).saved() } else { pool.saved() }
    }
}

/// Looks for a mistake in a number of histories that are the same each time; returns what is amiss with that.
fn missed<S: Strategy>(mistake: Mistake, reason: &str, histories: S, holds: impl Fn(Mistake, S::Value)) -> Option<String> {
    let config = Config { cases: 2_000, failure_persistence: None, max_shrink_iters: 0, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let found = runner.run(&histories, |history| {
        holds(mistake, history);
        Ok(())
    });
    match found {
        Err(TestError::Fail(why, _)) if why.to_string().contains(reason) => None,
        Err(other) => {
            let why: String = other.to_string().chars().take(300).collect();
            Some(format!("{mistake:?} was found, but not since `{reason}`: {why}"))
        }
        Ok(()) => Some(format!("{mistake:?} was not found")),
    }
}

#[test]
fn mistakes_of_a_pool_are_found() {
    let in_a_life = [
        (Mistake::ExitFreesTheSlot, "a second worker in slot"),
        (Mistake::LateNewsCounts, "the tree of a living worker is cleared"),
        (Mistake::WaitsAreShort, "in a wait until"),
        (Mistake::StopsAreCrashes, "is punished for what was asked of it"),
        (Mistake::NobodyIsKilled, "a stop does not end"),
        (Mistake::RungsAreForgotten, "it goes on and on at one moment"),
        (Mistake::RolloutsStartNothing, "does not end"),
        (Mistake::NothingIsSaved, "is free before its worker is gone"),
    ];
    let in_rollouts = [(Mistake::AllAtOnce, "are there"), (Mistake::NextBeforeReady, "are there")];
    let in_crashes = [(Mistake::NoFlapping, "crashes in a hot loop"), (Mistake::WaitsAreShort, "in a wait until")];
    let mut all = Vec::new();
    for (mistake, reason) in in_a_life {
        all.extend(missed(mistake, reason, lives(), |mistake, (policy, tempers, ops)| live(mistake, policy, tempers, ops)));
    }
    for (mistake, reason) in in_rollouts {
        all.extend(missed(mistake, reason, rolls(), |mistake, (policy, rollouts)| roll(mistake, policy, rollouts)));
    }
    for (mistake, reason) in in_crashes {
        all.extend(missed(mistake, reason, crashes(), |mistake, (policy, tempers)| crash(mistake, policy, tempers)));
    }
    assert!(all.is_empty(), "{}", all.join("\n"));
}
