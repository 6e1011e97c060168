//! Mistakes that the machine of deploys could have: its histories must find each of them, or they hold nothing.
//!
//! A mistake is a `step` around the right one that does as code would that was written wrongly: it hears what it should not, forgets what
//! was decided, or takes another policy for the true one.

use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

use super::histories::{live, ops};
use super::*;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mistake {
    None,
    /// The last build step is left out.
    OneStepLess,
    /// The switch does not wait for the mark of a whole release.
    SwitchBeforeTheMark,
    /// Nothing is written down.
    NothingIsSaved,
    /// Who asks is answered twice.
    AnswersTwice,
    /// Who asks for a deploy is never answered.
    NeverAnswers,
    /// Every deploy is forced.
    ForcesAll,
    /// A failed revision is not remembered.
    NoQuarantine,
    /// The next try does not wait.
    NoBackoff,
    /// A reload that wants a deploy is not heard.
    DeafToReloads,
    /// A drain is not heard.
    DeafToDrains,
    /// A fetch that failed has brought what was there before.
    OldNewsWillDo,
    /// The release before the live one is removed with the old ones.
    PrunesTheWayBack,
    /// A fetch begins before the last one has ended.
    FetchesTwice,
    /// A roll out that failed is one that is over.
    FailuresAreSuccess,
    /// A release that crash-loops is left as it is.
    DeafToCrashLoops,
    /// A probation has no end.
    EternalProbation,
}

impl Mistake {
    /// [`step`], done wrongly.
    pub(super) fn step(self, deploy: Deploy, event: Event, now: Now, policy: &DeployPolicy) -> (Deploy, Vec<Effect>) {
        let event = match (self, event) {
            (Self::ForcesAll, Event::Requested { id, by, what: Request::Deploy { wanted, .. } }) => {
                Event::Requested { id, by, what: Request::Deploy { wanted, force: Force::Yes } }
            }
            (Self::DeafToReloads, Event::Triggered(_))
            | (Self::DeafToDrains, Event::DrainBegun)
            | (Self::DeafToCrashLoops, Event::Unwell { .. }) => Event::DeadlineReached,
            (Self::NoQuarantine, Event::StepFailed { release, step, what, last_lines, .. }) => {
                Event::StepFailed { release, step, blame: Blame::Machine, what, last_lines }
            }
            (Self::FailuresAreSuccess, Event::RolloutFailed { release, .. }) => Event::RolledOut { release },
            (Self::OldNewsWillDo, Event::FetchFailed { fetch, .. }) => Event::Fetched { fetch, revision: rev(1) },
            (_, event) => event,
        };
        let mut other = policy.clone();
        match self {
            Self::OneStepLess => other.steps -= 1,
            Self::EternalProbation => other.probation = Duration::from_secs(1_000_000),
            Self::NoBackoff => {
                other.retry = RetryPolicy { first: Duration::ZERO, longest: Duration::ZERO, slow: Duration::ZERO };
            }
            _ => {}
        }
        let previous = deploy.book().previous_good().map(|entry| entry.id.clone());
        let (deploy, effects) = step(deploy, event, now, &other);
        let effects = effects.into_iter().flat_map(|effect| match (self, effect) {
            (Self::SwitchBeforeTheMark, Effect::MarkBuilt { release, .. }) => vec![Effect::Switch { release }],
            (Self::NothingIsSaved, Effect::Save(_)) => vec![],
            (Self::AnswersTwice, effect @ Effect::Answer { .. }) => vec![effect.clone(), effect],
            (Self::NeverAnswers, Effect::Answer { .. }) => vec![],
            (Self::FetchesTwice, effect @ Effect::Fetch { .. }) => vec![effect.clone(), effect],
            (Self::PrunesTheWayBack, Effect::Prune { mut ids }) => {
                ids.extend(previous.clone());
                vec![Effect::Prune { ids }]
            }
            (_, effect) => vec![effect],
        });
        (deploy, effects.collect())
    }
}

/// Looks for a mistake, which shows in one of several ways (`|`), in a number of histories that are the same each time; returns what is amiss with that.
fn missed(mistake: Mistake, reason: &str) -> Option<String> {
    let config = Config { cases: 2_000, failure_persistence: None, max_shrink_iters: 0, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    match runner.run(&ops(), |ops| live(mistake, ops)) {
        Err(TestError::Fail(why, _)) if reason.split('|').any(|reason| why.to_string().contains(reason)) => None,
        Err(other) => {
            let why: String = other.to_string().chars().take(300).collect();
            Some(format!("{mistake:?} was found, but not since `{reason}`: {why}"))
        }
        Ok(()) => Some(format!("{mistake:?} was not found")),
    }
}

#[test]
fn mistakes_of_a_deploy_are_found() {
    let all = [
        (Mistake::OneStepLess, "built without all its steps"),
        (Mistake::SwitchBeforeTheMark, "which is not whole"),
        (Mistake::NothingIsSaved, "something was not saved"),
        (Mistake::AnswersTwice, "answered twice or not asked"),
        (Mistake::NeverAnswers, "never answered"),
        (Mistake::ForcesAll, "forced by nobody"),
        (Mistake::NoQuarantine, "failed, and is not remembered"),
        (Mistake::NoBackoff, "a wait shorter than the shortest"),
        (Mistake::DeafToReloads, "was owed"),
        (Mistake::DeafToDrains, "something is started on a drained node|with workers on None"),
        (Mistake::OldNewsWillDo, "was owed"),
        (Mistake::PrunesTheWayBack, "the rollback target would be removed"),
        (Mistake::FetchesTwice, "more than one at a time"),
        (Mistake::FailuresAreSuccess, "on which no pool comes up"),
        (Mistake::DeafToCrashLoops, "does not go back"),
        (Mistake::EternalProbation, "goes back after its probation"),
    ];
    let missed: Vec<String> = all.into_iter().filter_map(|(mistake, reason)| missed(mistake, reason)).collect();
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}
