//! What must outlive the agent.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::deploy::{
    BackStep, Book, Change, ChangeWhy, Deploy, Hold, Job, Mode, Phase, Plan, Pools, Probation, Quarantine, Said, Stamp, Task, Then, Trigger,
};
use crate::id::{ReleaseId, Revision};
use crate::time::MonoTime;

/// What must outlive the agent; `default()` is a node on which nothing ever happened.
///
/// A field that is missing in a file of an older version is as by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Saved {
    /// All known releases.
    pub book: Book,
    /// Why no update happens.
    pub held: Option<Hold>,
    /// What failed here.
    pub quarantined: Vec<Quarantine>,
    /// The newest trigger that has not led to anything irreversible yet.
    pub pending: Option<Trigger>,
    /// A rollback that waits for its turn.
    pub rollback: Option<ReleaseId>,
    /// Who asked for a rollback that has not switched yet.
    pub rollback_by: Option<String>,
    /// What was under way.
    pub journal: Option<Journal>,
    /// What should be live.
    pub wanted: Option<Stamp>,
    /// What the source last said.
    pub fetched: Option<Stamp>,
    /// What was fetched last of what is configured.
    pub configured: Option<Revision>,
    /// What went wrong since all was well.
    pub last_error: Option<Said>,
    /// How the last deploy ended.
    pub verdict: Option<Said>,
    /// The run of `selfstart run` whose boot was a trigger, or which found workers: an agent of it that dies before that is here has done
    /// nothing, and the next one boots as it would have.
    pub run: Option<String>,
    /// What can still be rolled back by itself.
    pub probation: Option<Probation>,
}

/// What was under way: recorded before it is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "doing")]
pub enum Journal {
    /// A release is being made; nothing that counts has changed yet.
    Preparing {
        /// For what.
        trigger: Trigger,
        /// The directory.
        release: ReleaseId,
        /// Of what.
        revision: Revision,
    },
    /// `current` and the pools move.
    Changing {
        /// To what.
        release: ReleaseId,
        /// Of what.
        revision: Revision,
        /// From what.
        previous: Option<ReleaseId>,
        /// Why.
        why: ChangeKind,
    },
    /// They move back by themselves.
    Returning {
        /// From what.
        from: ReleaseId,
        /// To what.
        to: ReleaseId,
        /// The verdict.
        text: String,
        /// What is to be run when they are back.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        after: Vec<Task>,
    },
    /// Hooks after a deploy, or what undoes one.
    Chores {
        /// What is left; the first may have run.
        left: VecDeque<Task>,
        /// The verdict of what failed; `None`: nothing did.
        text: Option<String>,
    },
}

/// Why `current` moves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// A deploy.
    Deploy(Trigger),
    /// An operator's rollback.
    Rollback,
    /// It led nowhere, or the pools were behind it.
    Repair,
}

pub(super) fn of(deploy: &Deploy) -> Saved {
    // A trigger that is still being fetched for is only remembered: nothing was done for it. A waiting one is newer.
    let unfetched = match &deploy.phase {
        Phase::Waiting { job, .. } | Phase::Fetching { job, .. } => Some(job),
        _ => None,
    };
    Saved {
        book: deploy.book.clone(),
        held: deploy.held.clone(),
        quarantined: deploy.quarantined.clone(),
        pending: match (&deploy.next, unfetched) {
            (Some(newer), Some(older)) => Some(newer.trigger.over(&older.trigger)),
            (one, other) => one.as_ref().or(other).map(|job| job.trigger.clone()),
        },
        rollback: deploy.rollback.as_ref().map(|(release, _)| release.clone()),
        rollback_by: deploy.rollback_by.clone(),
        journal: journal(&deploy.phase),
        wanted: deploy.wanted.clone(),
        fetched: deploy.fetched.clone(),
        configured: deploy.configured.clone(),
        last_error: deploy.last_error.clone(),
        verdict: deploy.verdict.clone(),
        run: deploy.run.clone(),
        probation: deploy.probation.clone(),
    }
}

pub(super) fn journal(phase: &Phase) -> Option<Journal> {
    match phase {
        Phase::Staging(plan) | Phase::Linking(plan) | Phase::Building { plan, .. } | Phase::Sealing(plan) => {
            let Plan { job, release, revision, .. } = plan;
            Some(Journal::Preparing { trigger: job.trigger.clone(), release: release.clone(), revision: revision.clone() })
        }
        Phase::Switching(change) | Phase::RollingOut(change) => {
            let Change { release, revision, previous, why } = change;
            let why = match why {
                ChangeWhy::Deploy(job) => ChangeKind::Deploy(job.trigger.clone()),
                ChangeWhy::Rollback(_) => ChangeKind::Rollback,
                ChangeWhy::Repair => ChangeKind::Repair,
            };
            Some(Journal::Changing { release: release.clone(), revision: revision.clone(), previous: previous.clone(), why })
        }
        Phase::RollingBack { from, to, text, after, .. } => {
            Some(Journal::Returning { from: from.clone(), to: to.clone(), text: text.clone(), after: after.clone() })
        }
        Phase::Chores { then: Then::Switch(plan), .. } => {
            let Plan { job, release, revision, ran, .. } = plan;
            let trigger = Trigger { ran: ran.clone(), ..job.trigger.clone() };
            Some(Journal::Preparing { trigger, release: release.clone(), revision: revision.clone() })
        }
        Phase::Chores { then: Then::Follow(change), .. } => journal(&Phase::Switching(change.clone())),
        Phase::Chores { left, then: Then::Done(_) } => Some(Journal::Chores { left: left.clone(), text: None }),
        Phase::Chores { left, then: Then::Failed { text, .. } } => Some(Journal::Chores { left: left.clone(), text: Some(text.clone()) }),
        Phase::Asleep(journal) | Phase::Ending(journal) => journal.clone(),
        Phase::Idle | Phase::Waiting { .. } | Phase::Fetching { .. } => None,
    }
}

pub(super) fn wake(saved: Saved) -> Deploy {
    Deploy {
        phase: Phase::Asleep(saved.journal),
        book: saved.book,
        held: saved.held,
        quarantined: saved.quarantined,
        next: saved.pending.map(Job::of),
        rollback: saved.rollback.map(|release| (release, vec![])),
        rollback_by: saved.rollback_by,
        pools: Pools::NotStarted { until: MonoTime::ZERO },
        mode: Mode::default(),
        fetches: 0,
        wanted: saved.wanted,
        fetched: saved.fetched,
        configured: saved.configured,
        seen: None,
        run: saved.run,
        probation: saved.probation,
        complaint: None,
        sweep_at: None,
        last_error: saved.last_error,
        verdict: saved.verdict,
    }
}

impl BackStep {
    pub(super) const BEGIN: Self = Self::Switching { failures: 0 };
}
