//! What is run beside the build: hooks, and what undoes the build steps of a deploy that failed.
//!
//! One after the other. Each is run in a release that is whole or was built as far as it came, and may run again after a kill.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::deploy::step::Turn;
use crate::deploy::{Blame, Change, ChangeWhy, Effect, Job, Mode, News, Outcome, Phase, Plan, RequestId, Said};
use crate::id::{ReleaseId, Revision};

/// How many commands each of `hooks:` has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the contract's")]
pub struct HookCounts {
    pub before_switch: u32,
    pub after_switch: u32,
    pub after_rollout: u32,
    pub after_rollback: u32,
    pub on_failed: u32,
}

/// A command to be run, by its number from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Chore {
    /// `on_rollback` of that build step.
    Undo(u32),
    /// Before `current` moves to what was built: its failure is that of the build.
    BeforeSwitch(u32),
    /// After it moved, before the pools follow: its failure is that of the rollout.
    AfterSwitch(u32),
    /// When all pools run it: its failure is told.
    AfterRollout(u32),
    /// When all pools are back on an older one: its failure is told.
    AfterRollback(u32),
    /// When a deploy failed and is undone: its failure is told.
    OnFailed(u32),
}

impl Chore {
    /// Returns the key in the configuration, and the number there.
    #[must_use]
    pub fn named(self) -> (&'static str, u32) {
        match self {
            Self::Undo(step) => ("on_rollback of build step", step),
            Self::BeforeSwitch(number) => ("hooks.before_switch", number),
            Self::AfterSwitch(number) => ("hooks.after_switch", number),
            Self::AfterRollout(number) => ("hooks.after_rollout", number),
            Self::AfterRollback(number) => ("hooks.after_rollback", number),
            Self::OnFailed(number) => ("hooks.on_failed", number),
        }
    }
}

impl std::fmt::Display for Chore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (key, number) = self.named();
        write!(f, "{key} {number}")
    }
}

/// A chore and where it is run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// In which release.
    pub release: ReleaseId,
    /// What.
    pub chore: Chore,
}

/// What follows when the last chore is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Then {
    /// `current` moves.
    Switch(Plan),
    /// The pools follow.
    Follow(Change),
    /// It was done: who waits is told so.
    Done(Vec<RequestId>),
    /// It failed: who waits is told why.
    Failed {
        /// Who.
        ids: Vec<RequestId>,
        /// Why.
        text: String,
    },
}

impl Then {
    /// Who waits for it; each is answered once.
    pub(super) fn ids(self) -> Vec<RequestId> {
        match self {
            Self::Switch(plan) => plan.job.ids,
            Self::Follow(change) => super::step::ids_of(change.why),
            Self::Done(ids) | Self::Failed { ids, .. } => ids,
        }
    }

    pub(super) fn job(&self) -> Option<&Job> {
        match self {
            Self::Switch(plan) => Some(&plan.job),
            Self::Follow(Change { why: ChangeWhy::Deploy(job), .. }) => Some(job),
            _ => None,
        }
    }
}

fn tasks(release: &ReleaseId, count: u32, chore: impl Fn(u32) -> Chore) -> impl Iterator<Item = Task> {
    let release = release.clone();
    (1..=count).map(move |number| Task { release: release.clone(), chore: chore(number) })
}

impl Turn<'_> {
    /// Moves `current` to what a deploy made, when the hooks before that are done.
    pub(super) fn approach(&mut self, plan: Plan) {
        let left = tasks(&plan.release, self.policy.hooks.before_switch, Chore::BeforeSwitch).collect();
        self.run_chores(left, Then::Switch(plan));
    }

    /// `current` has moved: the pools follow when the hooks after that are done.
    pub(super) fn depart(&mut self, change: Change) {
        let count = if matches!(change.why, ChangeWhy::Deploy(_)) { self.policy.hooks.after_switch } else { 0 };
        let left = tasks(&change.release, count, Chore::AfterSwitch).collect();
        self.run_chores(left, Then::Follow(change));
    }

    /// The pools run it: who waits is told when the hooks after that are done.
    pub(super) fn arrive(&mut self, release: &ReleaseId, why: ChangeWhy) {
        let hooks = self.policy.hooks;
        let left = match &why {
            ChangeWhy::Deploy(_) => tasks(release, hooks.after_rollout, Chore::AfterRollout).collect(),
            ChangeWhy::Rollback(_) => tasks(release, hooks.after_rollback, Chore::AfterRollback).collect(),
            ChangeWhy::Repair => VecDeque::new(),
        };
        self.run_chores(left, Then::Done(super::step::ids_of(why)));
    }

    /// What undoes a failed deploy, in the order in which it is done: its steps that were run here, the last first; then those are told who
    /// want to know of failures.
    pub(super) fn undoing(&self, release: &ReleaseId, ran: &[u32]) -> Vec<Task> {
        let undo = ran.iter().rev().filter(|step| self.policy.undo.contains(step));
        let undo = undo.map(|step| Task { release: release.clone(), chore: Chore::Undo(*step) });
        undo.chain(tasks(release, self.policy.hooks.on_failed, Chore::OnFailed)).collect()
    }

    /// What follows when the pools are back on an older one.
    pub(super) fn after_return(&self, from: &ReleaseId, to: &ReleaseId, why: &ChangeWhy) -> Vec<Task> {
        let back = tasks(to, self.policy.hooks.after_rollback, Chore::AfterRollback);
        let undo = match why {
            ChangeWhy::Deploy(job) => self.undoing(from, &job.trigger.ran),
            // Out of its probation: it was deployed, and jobs were worked on what its steps made.
            ChangeWhy::Repair => self.undoing(from, &[]),
            ChangeWhy::Rollback(_) => vec![],
        };
        back.chain(undo).collect()
    }

    pub(super) fn run_chores(&mut self, left: VecDeque<Task>, then: Then) {
        let Some(Task { release, chore }) = left.front().cloned() else { return self.go_on(then) };
        let Some(revision) = self.deploy.book.get(&release).map(|entry| entry.revision.clone()) else {
            return self.skip_chore(left, then, format!("{release} is gone"));
        };
        self.effects.push(Effect::RunChore { release, revision, chore });
        self.deploy.phase = Phase::Chores { left, then };
    }

    fn go_on(&mut self, then: Then) {
        match then {
            Then::Switch(mut plan) => {
                plan.job.trigger.ran = plan.ran.clone();
                // It is whole: a hold or a rollback that came meanwhile goes first.
                if let Some(plan) = self.unless_blocked(plan) {
                    self.switch(plan.release, plan.revision, ChangeWhy::Deploy(plan.job));
                }
            }
            Then::Follow(change) => self.follow(change),
            Then::Done(ids) => {
                self.done(&ids, true);
                self.end();
            }
            Then::Failed { ids, text } => {
                self.answer(&ids, &Outcome::Failed { text });
                self.end();
            }
        }
    }

    pub(super) fn take_chore_done(&mut self, mut left: VecDeque<Task>, then: Then) {
        left.pop_front();
        self.run_chores(left, then);
    }

    pub(super) fn take_chore_failed(&mut self, left: VecDeque<Task>, then: Then, blame: Blame, what: &str) {
        match then {
            Then::Switch(mut plan) => {
                // It is whole: another try needs no other build.
                plan.job.trigger.made = Some(plan.release.clone());
                plan.job.trigger.ran = plan.ran.clone();
                self.take_failure(plan, blame, what.to_owned());
            }
            Then::Follow(change) if self.deploy.mode == Mode::Minding => self.go_back(change, what.to_owned()),
            then => self.skip_chore(left, then, what.to_owned()),
        }
    }

    /// The others are done all the same.
    fn skip_chore(&mut self, left: VecDeque<Task>, then: Then, text: String) {
        self.deploy.last_error = Some(Said { at: self.now.wall, text: text.clone() });
        self.effects.push(Effect::Tell(News::ChoreFailed { text }));
        self.take_chore_done(left, then);
    }

    /// Takes up what an agent was cut short in.
    pub(super) fn resume_chores(&mut self, left: VecDeque<Task>, text: Option<String>) {
        let then = match text {
            Some(text) => Then::Failed { ids: vec![], text },
            None => Then::Done(vec![]),
        };
        self.run_chores(left, then);
    }

    /// A plan of what was made before.
    pub(super) fn plan_of_made(&self, job: Job, release: ReleaseId, revision: Revision) -> Plan {
        let (build, steps, ran) = (self.policy.build.clone(), self.policy.steps, job.trigger.ran.clone());
        Plan { job, release, revision, build, steps, ran }
    }
}
