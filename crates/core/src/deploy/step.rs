//! One event in, the next state and the effects out.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::deploy::name::release_name;
use crate::deploy::{
    Asker, BackStep, Blame, BuildTime, Change, ChangeWhy, Complaint, Deploy, DeployPolicy, Effect, Entry, Event, FetchId, FetchTrouble,
    Force, Hold, Job, Mode, News, Now, Origin, Outcome, Phase, Plan, Pools, Probation, Quarantine, Refusal, ReleaseState, Request,
    RequestId, RollbackTo, Said, Stamp, Task, Then, Trigger, WaitWhy, Wanted, recover, resolve_rollback, saved,
};
use crate::id::{ReleaseId, Revision};
use crate::retention::prunable;
use crate::time::{Human, MonoTime};

/// So many failed tries for want of network are borne in silence before who asked for the deploy is told that it does not
/// work: 1 s and 2 s apart they ride out a server's restart, and a person does not wait for ever. The tries go on.
const SILENT_FAILURES: u32 = 2;

/// The quarantine remembers that many failures; an older one may be tried again, which costs one build.
const QUARANTINE_LENGTH: usize = 50;

/// What could not be removed since a process had something in it is asked for again after that: a worker may drain for minutes,
/// and looking through /proc is not free.
const SWEEP_AFTER: Duration = Duration::from_secs(600);

/// What could not be removed or recorded since the disk refused is asked for again after that: a full one has room again any moment.
const REFUSED_SWEEP_AFTER: Duration = Duration::from_secs(10);

/// Decides what to do about one event. Pure: same inputs, same answer. An event that does not apply changes nothing.
#[must_use]
pub fn step(deploy: Deploy, event: Event, now: Now, policy: &DeployPolicy) -> (Deploy, Vec<Effect>) {
    let before = deploy.saved();
    let mut turn = Turn { deploy, now, policy, effects: vec![] };
    let sweep = event == Event::DeadlineReached && turn.deploy.sweep_at.is_some_and(|at| now.mono >= at);
    turn.take(event);
    if sweep {
        turn.sweep();
    }
    turn.start_pools();
    turn.begin_next();
    turn.start_pools();
    let Turn { deploy, mut effects, .. } = turn;
    let after = deploy.saved();
    if after != before {
        effects.insert(0, Effect::Save(Box::new(after)));
    }
    (deploy, effects)
}

/// Returns the next moment at which [`step`] must see [`Event::DeadlineReached`], if any.
#[must_use]
pub fn next_deadline(deploy: &Deploy) -> Option<MonoTime> {
    let phase = match &deploy.phase {
        Phase::Waiting { at, .. } => Some(*at),
        Phase::Building { time: BuildTime::Until(at), .. } => Some(*at),
        Phase::RollingBack { step: BackStep::Waiting { at, .. }, .. } => Some(*at),
        _ => None,
    };
    let pools = match (deploy.pools, &deploy.phase) {
        (Pools::NotStarted { until }, Phase::Waiting { .. } | Phase::Fetching { .. })
            if deploy.mode == Mode::Minding && deploy.live().is_some() =>
        {
            Some(until)
        }
        _ => None,
    };
    let sweep = deploy.sweep_at.filter(|_| !matches!(deploy.phase, Phase::Asleep(_) | Phase::Ending(_)));
    phase.into_iter().chain(pools).chain(sweep).min()
}

impl Job {
    pub(super) fn of(trigger: Trigger) -> Self {
        Self { trigger, ids: vec![], failures: 0 }
    }

    pub(super) fn configured(asker: impl Into<Asker>) -> Self {
        let Asker { origin, by } = asker.into();
        Self::of(Trigger { wanted: Wanted::Configured, force: Force::No, origin, by, cuts: 0, displaced: false, made: None, ran: vec![] })
    }
}

/// One call of [`step`].
pub(super) struct Turn<'a> {
    pub(super) deploy: Deploy,
    pub(super) now: Now,
    pub(super) policy: &'a DeployPolicy,
    pub(super) effects: Vec<Effect>,
}

impl Turn<'_> {
    /// What means the same in every phase comes first; what answers an effect goes to the part of the deploy that waits for it.
    fn take(&mut self, event: Event) {
        // Taken out, so that each arm owns the state it leaves; every arm that does not move on puts it back.
        let phase = std::mem::replace(&mut self.deploy.phase, Phase::Idle);
        match (phase, event) {
            (Phase::Ending(journal), event) => {
                self.deploy.phase = Phase::Ending(journal);
                self.take_while_ending(event);
            }
            (Phase::Asleep(journal), Event::Booted(found)) => recover::boot(self, journal, found),
            (phase, Event::Booted(_)) => self.deploy.phase = phase,
            (phase, Event::Shutdown) => self.shut_down(phase),
            (phase, Event::Requested { id, by, what }) => {
                self.deploy.phase = phase;
                self.take_request(id, by, what);
            }
            (phase, Event::Triggered(origin)) => {
                self.deploy.phase = phase;
                self.remember(Job::configured(origin));
                self.wake_waiting();
            }
            (phase, Event::Seen { revision }) => {
                self.deploy.phase = phase;
                self.take_seen(revision);
            }
            (phase, Event::DrainBegun) => self.begin_drain(phase),
            (phase, Event::DrainEnded) => {
                self.deploy.phase = phase;
                self.end_drain();
            }
            (phase, Event::Pruned { gone, kept }) => {
                self.deploy.phase = phase;
                self.take_pruned(&gone, &kept);
            }
            (phase, Event::Unwell { release, text }) => {
                self.deploy.phase = phase;
                self.take_unwell(&release, text);
            }
            (phase, Event::NotPruned { ids }) => {
                self.deploy.phase = phase;
                self.take_not_pruned(&ids);
            }
            (phase, Event::Missing { releases }) => {
                self.deploy.phase = phase;
                self.take_missing(&releases);
            }

            (phase, Event::DeadlineReached) => self.take_deadline(phase),
            (phase, event @ (Event::Fetched { .. } | Event::FetchFailed { .. })) => self.take_from_source(phase, event),
            (phase, event @ (Event::Staged { .. } | Event::Linked { .. } | Event::PrepareFailed { .. } | Event::MarkedBuilt { .. })) => {
                self.take_from_release(phase, event)
            }
            (phase, event @ (Event::StepDone { .. } | Event::StepSkipped { .. } | Event::StepFailed { .. })) => {
                self.take_from_build(phase, event)
            }
            (phase, event @ (Event::ChoreDone { .. } | Event::ChoreFailed { .. })) => self.take_from_chore(phase, event),
            (phase, event @ (Event::Switched { .. } | Event::SwitchFailed { .. })) => self.take_from_switch(phase, event),
            (phase, event @ (Event::RolledOut { .. } | Event::RolloutFailed { .. })) => self.take_from_pools(phase, event),
        }
    }

    fn take_deadline(&mut self, phase: Phase) {
        match phase {
            Phase::Waiting { job, at, .. } if self.now.mono >= at => self.try_again(job),
            Phase::Building { plan, step, time: BuildTime::Until(at) } if self.now.mono >= at => {
                self.effects.push(Effect::EndStep { release: plan.release.clone(), step });
                self.deploy.phase = Phase::Building { plan, step, time: BuildTime::Over };
            }
            Phase::RollingBack { from, to, text, ids, step: BackStep::Waiting { at, failures }, after } if self.now.mono >= at => {
                self.effects.push(Effect::Switch { release: to.clone() });
                self.deploy.phase = Phase::RollingBack { from, to, text, ids, step: BackStep::Switching { failures }, after };
            }
            phase => self.deploy.phase = phase,
        }
    }

    /// The answers to [`Effect::Fetch`].
    fn take_from_source(&mut self, phase: Phase, event: Event) {
        match (phase, event) {
            (Phase::Fetching { job, fetch }, Event::Fetched { fetch: answered, revision }) if fetch == answered => {
                self.take_fetched(job, revision);
            }
            (Phase::Fetching { job, fetch }, Event::FetchFailed { fetch: answered, trouble, text }) if fetch == answered => {
                self.take_fetch_failure(job, trouble, text);
            }
            (phase, _) => self.deploy.phase = phase,
        }
    }

    /// The answers to [`Effect::Stage`], [`Effect::LinkShared`] and [`Effect::MarkBuilt`].
    fn take_from_release(&mut self, phase: Phase, event: Event) {
        match (phase, event) {
            (Phase::Staging(plan), Event::Staged { release }) if plan.release == release => {
                if let Some(plan) = self.unless_blocked(plan) {
                    self.effects.push(Effect::LinkShared { release });
                    self.deploy.phase = Phase::Linking(plan);
                }
            }
            (Phase::Linking(plan), Event::Linked { release }) if plan.release == release => {
                let until = self.now.mono + self.policy.build_timeout;
                self.run_step(plan, 1, until);
            }
            (Phase::Sealing(plan), Event::MarkedBuilt { release }) if plan.release == release => {
                if let Some(entry) = self.deploy.book.get_mut(&release) {
                    entry.state = ReleaseState::Built;
                    entry.built_at = Some(self.now.wall);
                }
                if let Some(plan) = self.unless_blocked(plan) {
                    self.approach(plan);
                }
            }
            (Phase::Staging(plan) | Phase::Linking(plan) | Phase::Sealing(plan), Event::PrepareFailed { release, blame, text })
                if plan.release == release =>
            {
                self.take_failure(plan, blame, text)
            }
            (phase, _) => self.deploy.phase = phase,
        }
    }

    /// The answers to [`Effect::RunStep`]: how a step ended counts only while its build had time and was wanted.
    fn take_from_build(&mut self, phase: Phase, event: Event) {
        match (phase, event) {
            (Phase::Building { mut plan, step, time }, event @ (Event::StepDone { .. } | Event::StepSkipped { .. }))
                if is_of_step(&event, &plan.release, step) =>
            {
                if matches!(event, Event::StepDone { .. }) {
                    plan.ran.push(step);
                }
                match time {
                    BuildTime::Until(until) => self.run_step(plan, step + 1, until),
                    BuildTime::Over => self.take_overlong(plan, step),
                    BuildTime::GivingWay => self.give_way(plan),
                }
            }
            (Phase::Building { plan, step, time }, Event::StepFailed { release, step: failed, blame, what, last_lines })
                if plan.release == release && step == failed =>
            {
                match time {
                    BuildTime::Until(_) => {
                        let text = step_failed(step, plan.steps, &what, &last_lines);
                        self.take_failure(plan, blame, text);
                    }
                    // Another node's result was waited for: that says nothing about the revision.
                    BuildTime::Over if blame == Blame::Machine => {
                        let text = step_failed(step, plan.steps, &what, &last_lines);
                        self.take_failure(plan, blame, text);
                    }
                    BuildTime::Over => self.take_overlong(plan, step),
                    BuildTime::GivingWay => self.give_way(plan),
                }
            }
            (phase, _) => self.deploy.phase = phase,
        }
    }

    /// The answers to [`Effect::Switch`], forward and back.
    fn take_from_switch(&mut self, phase: Phase, event: Event) {
        match (phase, event) {
            (Phase::Switching(change), Event::Switched { release }) if change.release == release => self.take_switched(change),
            (Phase::Switching(change), Event::SwitchFailed { release, text }) if change.release == release => {
                self.take_switch_failure(change, text);
            }
            (Phase::RollingBack { from, to, text, ids, step: BackStep::Switching { .. }, after }, Event::Switched { release })
                if to == release =>
            {
                self.deploy.book.set_live(&to, self.now.wall);
                self.fail(&from, text.clone());
                if self.deploy.mode == Mode::Drained {
                    self.end_return(ids, format!("{text}; {to} is live again, drained"), after);
                } else {
                    self.roll_out(&to);
                    self.deploy.phase = Phase::RollingBack { from, to, text, ids, step: BackStep::RollingOut, after };
                }
            }
            (
                Phase::RollingBack { from, to, text, ids, step: BackStep::Switching { failures }, after },
                Event::SwitchFailed { release, text: trouble },
            ) if to == release => {
                let failures = failures.saturating_add(1);
                let wait = self.now.jitter.spread(self.policy.retry.wait(failures));
                self.complain(Complaint::Machine(trouble.clone()), News::Interrupted { text: trouble.clone(), again_in: wait });
                self.deploy.last_error = Some(Said { at: self.now.wall, text: trouble });
                let step = BackStep::Waiting { at: self.now.mono + wait, failures };
                self.deploy.phase = Phase::RollingBack { from, to, text, ids, step, after };
            }
            (phase, _) => self.deploy.phase = phase,
        }
    }

    /// The answers to [`Effect::RollOut`], forward and back, and to [`Effect::StartPools`].
    fn take_from_pools(&mut self, phase: Phase, event: Event) {
        match (phase, event) {
            (Phase::RollingOut(change), Event::RolledOut { release }) if change.release == release => self.take_rolled_out(change),
            (Phase::RollingOut(change), Event::RolloutFailed { release, text }) if change.release == release => {
                self.take_rollout_failure(change, text);
            }
            (Phase::RollingBack { to, text, ids, step: BackStep::RollingOut, after, .. }, Event::RolledOut { release })
                if to == release =>
            {
                self.effects.push(Effect::Tell(News::WentBack { to: to.clone() }));
                self.end_return(ids, format!("{text}; back on {to}"), after);
            }
            (
                Phase::RollingBack { to, text, ids, step: BackStep::RollingOut, after, .. },
                Event::RolloutFailed { release, text: trouble },
            ) if to == release => {
                self.effects.push(Effect::Tell(News::StaysFailing { release: to.clone(), why: trouble.clone() }));
                self.end_return(ids, format!("{text}; back on {to}, on which the pools do not come up either: {trouble}"), after);
            }
            // The answer to `StartPools` of a release that no roll out has proven, since a drain came between.
            (phase, Event::RolledOut { release }) => {
                self.deploy.phase = phase;
                if let Some(entry) = self.deploy.book.get_mut(&release)
                    && entry.state == ReleaseState::Live
                {
                    entry.proven = true;
                }
            }
            (phase, _) => self.deploy.phase = phase,
        }
    }

    /// The answers to [`Effect::RunChore`].
    fn take_from_chore(&mut self, phase: Phase, event: Event) {
        match (phase, event) {
            (Phase::Chores { left, then }, Event::ChoreDone { release, chore })
                if left.front() == Some(&Task { release: release.clone(), chore }) =>
            {
                self.take_chore_done(left, then);
            }
            (Phase::Chores { left, then }, Event::ChoreFailed { release, chore, blame, what, last_lines })
                if left.front() == Some(&Task { release: release.clone(), chore }) =>
            {
                let text = with_lines(format!("{chore} failed: {what}"), &last_lines);
                self.take_chore_failed(left, then, blame, &text);
            }
            (phase, _) => self.deploy.phase = phase,
        }
    }

    // ---- requests ----

    fn take_request(&mut self, id: RequestId, by: String, what: Request) {
        match what {
            Request::Deploy { wanted, force } => self.take_deploy(id, by, wanted, force),
            Request::Rollback(to) => self.take_rollback(id, by, &to),
            Request::Hold { why } => {
                // A new reason takes the place of the old one; without one there is nothing new.
                let changed = self.deploy.held.as_ref().is_none_or(|hold| !why.is_empty() && hold.why != why);
                if changed {
                    self.hold(by, why);
                }
                self.done(&[id], changed);
            }
            Request::Unhold => {
                // Also the hold that a rollback on its way would bring.
                let coming = self.deploy.rollback_by.take().is_some();
                let held = self.deploy.held.take().is_some() || coming;
                // What was unwell while it was held goes back now, unless it has had longer than its probation: somebody saw to it.
                let now = self.now.mono;
                if let Some(probation) = self.deploy.probation.as_mut().filter(|it| held && now >= it.until) {
                    probation.failed = None;
                }
                if held {
                    self.effects.push(Effect::Tell(News::Unheld { by }));
                }
                match self.held_back() {
                    Some(job) if held => job.ids.push(id),
                    _ => self.done(&[id], held),
                }
            }
        }
    }

    /// Returns what a hold that has just ended kept from being done: what is remembered, or else what would have given way to it before its
    /// switch; `None`: nothing, or the drain keeps it too.
    fn held_back(&mut self) -> Option<&mut Job> {
        if self.blocked().is_some() {
            return None;
        }
        let under_way = match &mut self.deploy.phase {
            Phase::Fetching { job, .. } | Phase::Waiting { job, .. } => Some(job),
            Phase::Staging(plan) | Phase::Linking(plan) | Phase::Sealing(plan) | Phase::Building { plan, .. } => Some(&mut plan.job),
            _ => None,
        };
        self.deploy.next.as_mut().or(under_way)
    }

    fn take_deploy(&mut self, id: RequestId, by: String, wanted: Wanted, force: Force) {
        let trigger = Trigger { wanted, force, origin: Origin::Operator, by: Some(by), cuts: 0, displaced: false, made: None, ran: vec![] };
        let mut job = Job::of(trigger);
        match self.blocked() {
            Some(refusal) => self.refuse(&[id], &refusal),
            None => job.ids.push(id),
        }
        self.remember(job);
        self.wake_waiting();
    }

    fn take_rollback(&mut self, id: RequestId, by: String, to: &RollbackTo) {
        if matches!(self.deploy.phase, Phase::Asleep(_)) {
            return self.refuse(&[id], &Refusal::Busy);
        }
        if self.deploy.mode == Mode::Drained {
            return self.refuse(&[id], &Refusal::Draining);
        }
        match resolve_rollback(&self.deploy.book, to) {
            Err(error) => {
                let text = error.to_string();
                self.tell_failed("the rollback failed", &text);
                self.answer(&[id], &Outcome::Failed { text });
            }
            Ok(release) => {
                // Held when it is so: a node whose rollback failed is not held for the sake of what did not happen.
                self.deploy.rollback_by = Some(by);
                self.make_way_for(&release);
                if let Some((_, older)) = self.deploy.rollback.replace((release, vec![id])) {
                    self.refuse(&older, &Refusal::Superseded);
                }
            }
        }
    }

    /// Whoever rolls back does not want to see the end of a roll out, nor to wait for that of a build.
    fn make_way_for(&mut self, target: &ReleaseId) {
        match std::mem::replace(&mut self.deploy.phase, Phase::Idle) {
            Phase::RollingOut(change) if change.release != *target => self.refuse(&ids_of(change.why), &Refusal::Superseded),
            Phase::Building { plan, step, time: BuildTime::Until(_) } => {
                self.effects.push(Effect::EndStep { release: plan.release.clone(), step });
                self.deploy.phase = Phase::Building { plan, step, time: BuildTime::GivingWay };
            }
            Phase::Waiting { job, .. } => self.give_back(job),
            other => self.deploy.phase = other,
        }
    }

    /// A rollback is so: no update undoes it before an operator says so.
    pub(super) fn hold_rolled_back(&mut self, release: &ReleaseId) {
        // A newer rollback that waits for its turn needs the name too.
        let by = if self.deploy.rollback.is_some() { self.deploy.rollback_by.clone() } else { self.deploy.rollback_by.take() };
        if let Some(by) = by {
            self.hold(by, format!("rolled back to {release}"));
        }
    }

    fn end_failed_rollback(&mut self, ids: &[RequestId], text: String) {
        if self.deploy.rollback.is_none() {
            self.deploy.rollback_by = None;
        }
        self.tell_failed("the rollback failed", &text);
        self.answer(ids, &Outcome::Failed { text });
    }

    fn hold(&mut self, by: String, why: String) {
        self.effects.push(Effect::Tell(News::Held { by: by.clone(), why: why.clone() }));
        self.deploy.held = Some(Hold { by, at: self.now.wall, why });
        self.let_waiting_give_way();
    }

    /// Lets go of what only waits: it is remembered, and who waits for it is told.
    fn let_waiting_give_way(&mut self) {
        if let Phase::Waiting { .. } = self.deploy.phase
            && let Phase::Waiting { job, .. } = std::mem::replace(&mut self.deploy.phase, Phase::Idle)
        {
            self.give_back(job);
        }
        if let Some(refusal) = self.blocked()
            && let Some(job) = &mut self.deploy.next
        {
            let ids = std::mem::take(&mut job.ids);
            self.refuse(&ids, &refusal);
        }
    }

    /// Remembers a trigger; it joins the one that waits if both want the same, else it takes its place.
    fn remember(&mut self, mut job: Job) {
        if let Some(mut older) = self.deploy.next.take() {
            if older.trigger.wanted != job.trigger.wanted {
                let ids = std::mem::take(&mut older.ids);
                self.refuse(&ids, &Refusal::Superseded);
            }
            join(&mut job, older);
        }
        self.deploy.next = Some(job);
    }

    /// Remembers a trigger that was under way and is older than what waits.
    fn give_back(&mut self, mut job: Job) {
        if let Some(refusal) = self.blocked() {
            let ids = std::mem::take(&mut job.ids);
            self.refuse(&ids, &refusal);
        }
        match self.deploy.next.take() {
            None => self.deploy.next = Some(job),
            Some(newer) => {
                self.deploy.next = Some(job);
                self.remember(newer);
            }
        }
    }

    /// A new trigger does not wait for the end of a backoff: what waits is tried again now, with it or instead of it.
    fn wake_waiting(&mut self) {
        if self.may_begin()
            && let Phase::Waiting { .. } = self.deploy.phase
            && let Phase::Waiting { job, .. } = std::mem::replace(&mut self.deploy.phase, Phase::Idle)
        {
            self.give_back(job);
        }
    }

    /// A build of what is no longer wanted is stopped, if that is wished for.
    fn take_seen(&mut self, revision: Revision) {
        self.deploy.seen = Some(revision);
        match std::mem::replace(&mut self.deploy.phase, Phase::Idle) {
            Phase::Building { plan, step, time: BuildTime::Until(_) } if self.is_superseded(&plan) => {
                self.effects.push(Effect::EndStep { release: plan.release.clone(), step });
                self.deploy.phase = Phase::Building { plan, step, time: BuildTime::GivingWay };
            }
            other => self.deploy.phase = other,
        }
    }

    /// Whether the source has something else by now than what is being made of what is configured. What an operator named by `--ref` is
    /// wanted whatever the branch does.
    fn is_superseded(&self, plan: &Plan) -> bool {
        let newer = self.deploy.seen.as_ref().is_some_and(|seen| *seen != plan.revision);
        self.policy.supersede && newer && plan.job.trigger.wanted == Wanted::Configured
    }

    // ---- what may begin ----

    /// Why no deploy may begin or go on to its switch.
    fn blocked(&self) -> Option<Refusal> {
        match (self.deploy.mode, &self.deploy.held) {
            (Mode::Drained, _) => Some(Refusal::Draining),
            (Mode::Minding, Some(hold)) => Some(Refusal::Held(hold.clone())),
            (Mode::Minding, None) => None,
        }
    }

    fn may_begin(&self) -> bool {
        self.blocked().is_none() && self.deploy.rollback.is_none() && !self.returns()
    }

    /// Whether what is live goes back by itself, as soon as nothing is in the way.
    fn returns(&self) -> bool {
        self.deploy.held.is_none() && self.deploy.probation.as_ref().is_some_and(|it| it.failed.is_some())
    }

    fn begin_next(&mut self) {
        if self.deploy.phase != Phase::Idle || self.deploy.mode == Mode::Drained {
            return;
        }
        if let Some((release, ids)) = self.deploy.rollback.take() {
            self.begin_rollback(release, ids);
        }
        if self.deploy.phase == Phase::Idle && self.returns() {
            self.begin_return();
        }
        // Where it is rolled back to may be live already: then it is the trigger's turn.
        if self.deploy.phase != Phase::Idle || self.blocked().is_some() {
            return;
        }
        let Some(job) = self.deploy.next.take() else { return };
        match job.trigger.cuts {
            0 | 1 => self.fetch(job),
            // Each try of it ended the agent: not in a hot loop.
            cuts => {
                let wait = self.now.jitter.spread(self.policy.retry.wait(cuts - 1));
                self.deploy.phase = Phase::Waiting { job, at: self.now.mono + wait, why: WaitWhy::Machine };
            }
        }
    }

    fn begin_rollback(&mut self, release: ReleaseId, ids: Vec<RequestId>) {
        let Some(entry) = self.deploy.book.get(&release).filter(|entry| entry.is_whole()) else {
            return self.end_failed_rollback(&ids, format!("release `{release}` is no longer whole"));
        };
        let revision = entry.revision.clone();
        if entry.state == ReleaseState::Live {
            self.deploy.wanted = Some(Stamp { revision, at: self.now.wall });
            self.hold_rolled_back(&release);
            return self.done(&ids, false);
        }
        self.switch(release, revision, ChangeWhy::Rollback(ids));
    }

    /// Starts the pools on what is live, unless something newer is on its way in time.
    pub(super) fn start_pools(&mut self) {
        let Pools::NotStarted { until } = self.deploy.pools else { return };
        let Some(live) = self.deploy.live() else { return };
        let (release, revision) = (live.id.clone(), live.revision.clone());
        let late = self.now.mono >= until;
        let why = match &self.deploy.phase {
            Phase::Idle if self.deploy.next.is_some() && self.may_begin() => late.then_some("it was live before"),
            Phase::Idle => (self.deploy.rollback.is_none()).then_some("it is live"),
            Phase::Fetching { .. } | Phase::Waiting { why: WaitWhy::Source(FetchTrouble::Network), .. } => {
                late.then_some("it is live, and the source has not answered in time")
            }
            Phase::Waiting { .. } => Some("it is live, and the update has to wait"),
            _ => None,
        };
        if let Some(why) = why
            && self.deploy.mode == Mode::Minding
        {
            self.deploy.pools = Pools::Started;
            self.effects.push(Effect::Tell(News::PoolsStart { release: release.clone(), why: why.to_owned() }));
            self.effects.push(Effect::StartPools { release, revision });
        }
    }

    // ---- fetch ----

    /// The wait of a job is over. If `current` leads nowhere although something is whole, that comes first.
    fn try_again(&mut self, job: Job) {
        let last_good = self.deploy.book.last_good().filter(|entry| entry.state != ReleaseState::Live);
        match last_good.map(|entry| (entry.id.clone(), entry.revision.clone())) {
            Some((release, revision)) if self.deploy.live().is_none() => {
                self.give_back(job);
                self.switch(release, revision, ChangeWhy::Repair);
            }
            _ => self.fetch(job),
        }
    }

    fn fetch(&mut self, job: Job) {
        self.deploy.fetches += 1;
        let fetch = FetchId(self.deploy.fetches);
        let (try_no, wanted) = (job.failures.saturating_add(1), job.trigger.wanted.clone());
        self.effects.push(Effect::Fetch { fetch, try_no, wanted });
        self.deploy.phase = Phase::Fetching { job, fetch };
    }

    fn take_fetched(&mut self, job: Job, revision: Revision) {
        if let Some(Complaint::Source(..)) = self.deploy.complaint {
            self.effects.push(Effect::Tell(News::SourceBack { revision: revision.clone() }));
            self.deploy.complaint = None;
        }
        self.deploy.seen = None;
        if job.trigger.wanted == Wanted::Configured {
            self.deploy.configured = Some(revision.clone());
        }
        // The source was reached: from now on nothing else delays the pools.
        if let Pools::NotStarted { until } = &mut self.deploy.pools {
            *until = (*until).min(self.now.mono);
        }
        for stamp in [&mut self.deploy.fetched, &mut self.deploy.wanted] {
            if stamp.as_ref().is_none_or(|known| known.revision != revision) {
                *stamp = Some(Stamp { revision: revision.clone(), at: self.now.wall });
            }
        }
        if !self.may_begin() {
            self.effects.push(Effect::Tell(News::GaveWay { revision: Some(revision) }));
            return self.give_back(job);
        }
        if let Some(made) = &job.trigger.made
            && let Some(entry) = self.deploy.book.get(made)
            && entry.is_whole()
            && entry.state != ReleaseState::Live
            && (&entry.revision, &entry.build) == (&revision, &self.policy.build)
        {
            let release = made.clone();
            self.deploy.book.move_to_end(&release);
            let plan = self.plan_of_made(job, release, revision);
            return self.approach(plan);
        }
        if job.trigger.force == Force::No {
            let build = &self.policy.build;
            if let Some(known) = self.deploy.quarantined.iter().find(|it| it.revision == revision && it.build == *build) {
                let known = known.clone();
                return self.pass_over(job, known);
            }
            if let Some(entry) = self.deploy.book.whole(&revision, build) {
                let (release, state) = (entry.id.clone(), entry.state.clone());
                if state == ReleaseState::Live {
                    self.effects.push(Effect::Tell(News::UpToDate { revision, release }));
                    self.all_is_well();
                    self.done(&job.ids, false);
                    return self.end();
                }
                self.deploy.book.move_to_end(&release);
                return self.switch(release, revision, ChangeWhy::Deploy(job));
            }
        }
        self.stage(job, revision);
    }

    fn pass_over(&mut self, job: Job, known: Quarantine) {
        let Quarantine { revision, why, .. } = known.clone();
        self.complain(Complaint::Quarantined(revision.clone()), News::PassedOver { revision, why });
        self.refuse(&job.ids, &Refusal::Quarantined(known));
        self.end();
    }

    fn take_fetch_failure(&mut self, mut job: Job, trouble: FetchTrouble, text: String) {
        job.failures = job.failures.saturating_add(1);
        self.deploy.last_error = Some(Said { at: self.now.wall, text: text.clone() });
        if matches!(trouble, FetchTrouble::NoSuchRef | FetchTrouble::Unsigned) && job.trigger.wanted != Wanted::Configured {
            // A slip of the hand, not a state of the world: waiting for it to come true would keep what is configured away.
            self.tell_failed("the deploy failed", &text);
            self.answer(&job.ids, &Outcome::Failed { text });
            if job.trigger.displaced {
                let displaced = Job::configured(Origin::Boot);
                match &mut self.deploy.next {
                    Some(newer) => newer.trigger = newer.trigger.over(&displaced.trigger),
                    None => self.deploy.next = Some(displaced),
                }
            }
            return self.end();
        }
        let wait = match trouble {
            FetchTrouble::Network | FetchTrouble::Disk => self.policy.retry.wait(job.failures),
            FetchTrouble::Refused | FetchTrouble::NoSuchRef | FetchTrouble::Unsigned => self.policy.retry.slow,
        };
        let wait = self.now.jitter.spread(wait);
        if !job.ids.is_empty() && (trouble != FetchTrouble::Network || job.failures > SILENT_FAILURES) {
            // What was told before was not about this request.
            self.deploy.complaint = None;
            let text = format!("the source could not be fetched: {text}; tried again in {}", Human::rough(wait));
            self.answer(&std::mem::take(&mut job.ids), &Outcome::Failed { text });
        }
        let nothing_live = self.deploy.live().is_none();
        self.complain(Complaint::Source(trouble, text.clone()), News::SourceFailed { trouble, text, again_in: wait, nothing_live });
        self.wait(job, wait, WaitWhy::Source(trouble));
    }

    /// Waits with a job, unless something else is to be done first.
    fn wait(&mut self, job: Job, wait: Duration, why: WaitWhy) {
        if self.blocked().is_some() || self.deploy.rollback.is_some() {
            return self.give_back(job);
        }
        let at = self.now.mono + wait;
        let job = match self.deploy.next.take() {
            None => job,
            // A burst of triggers for the same does not outrun the backoff.
            Some(mut newer) if newer.trigger.wanted == job.trigger.wanted => {
                join(&mut newer, job);
                newer
            }
            Some(newer) => {
                self.deploy.next = Some(job);
                return self.remember(newer);
            }
        };
        self.deploy.phase = Phase::Waiting { job, at, why };
    }

    // ---- making a release ----

    fn stage(&mut self, job: Job, revision: Revision) {
        let release = release_name(self.now.wall, &revision, |id| self.deploy.book.get(id).is_some());
        let build = self.policy.build.clone();
        self.deploy.book.push(Entry {
            id: release.clone(),
            revision: revision.clone(),
            build: build.clone(),
            state: ReleaseState::Staged,
            staged_at: self.now.wall,
            built_at: None,
            live_at: None,
            proven: false,
            leaving: false,
        });
        self.effects.push(Effect::Tell(News::Begun { release: release.clone(), revision: revision.clone() }));
        self.effects.push(Effect::Stage { release: release.clone(), revision: revision.clone() });
        self.deploy.phase = Phase::Staging(Plan { job, release, revision, build, steps: self.policy.steps, ran: vec![] });
    }

    /// Returns the plan if it may go on; else the deploy gives way here.
    pub(super) fn unless_blocked(&mut self, plan: Plan) -> Option<Plan> {
        if self.may_begin() {
            return Some(plan);
        }
        self.give_way(plan);
        None
    }

    /// Ends a deploy that is not to blame for it: it is remembered, and so is what it made if that is whole.
    fn give_way(&mut self, plan: Plan) {
        let Plan { mut job, release, revision, ran, .. } = plan;
        self.effects.push(Effect::Tell(News::GaveWay { revision: Some(revision) }));
        job.trigger.made = self.deploy.book.get(&release).filter(|entry| entry.is_whole()).map(|entry| entry.id.clone());
        job.trigger.ran = if job.trigger.made.is_some() { ran } else { vec![] };
        self.give_back(job);
        self.end();
    }

    fn run_step(&mut self, plan: Plan, step: u32, until: MonoTime) {
        let Some(plan) = self.unless_blocked(plan) else { return };
        if step <= plan.steps && self.is_superseded(&plan) {
            return self.give_way(plan);
        }
        let (release, revision, build) = (plan.release.clone(), plan.revision.clone(), plan.build.clone());
        if step > plan.steps {
            self.effects.push(Effect::MarkBuilt { release, revision, build });
            self.deploy.phase = Phase::Sealing(plan);
        } else if self.now.mono >= until {
            self.take_overlong(plan, step - 1);
        } else {
            self.effects.push(Effect::RunStep { release, revision, step, build });
            self.deploy.phase = Phase::Building { plan, step, time: BuildTime::Until(until) };
        }
    }

    fn take_overlong(&mut self, plan: Plan, step: u32) {
        let text = format!("the build took longer than {}, at step {step} of {}", Human(self.policy.build_timeout), plan.steps);
        self.take_failure(plan, Blame::Revision, text);
    }

    pub(super) fn take_failure(&mut self, plan: Plan, blame: Blame, text: String) {
        let Plan { mut job, release, revision, build, ran, .. } = plan;
        self.deploy.last_error = Some(Said { at: self.now.wall, text: text.clone() });
        match blame {
            Blame::Revision => {
                self.fail(&release, text.clone());
                self.quarantine(revision.clone(), build, text.clone());
                self.deploy.complaint = Some(Complaint::Quarantined(revision.clone()));
                self.effects.push(Effect::Tell(News::Failed { release: release.clone(), revision, why: text.clone() }));
                let left = self.undoing(&release, &ran).into();
                self.run_chores(left, Then::Failed { ids: job.ids, text });
            }
            Blame::Machine => {
                job.failures = job.failures.saturating_add(1);
                let wait = self.now.jitter.spread(self.policy.retry.wait(job.failures));
                if !job.ids.is_empty() {
                    // What was told before was not about this request.
                    self.deploy.complaint = None;
                }
                self.complain(Complaint::Machine(text.clone()), News::Interrupted { text: text.clone(), again_in: wait });
                let ids = std::mem::take(&mut job.ids);
                self.answer(&ids, &Outcome::Failed { text: format!("{text}; tried again in {}", Human::rough(wait)) });
                self.wait(job, wait, WaitWhy::Machine);
                self.prune();
            }
        }
    }

    pub(super) fn fail(&mut self, release: &ReleaseId, why: String) {
        self.deploy.verdict = Some(Said { at: self.now.wall, text: why.clone() });
        if let Some(entry) = self.deploy.book.get_mut(release) {
            entry.state = ReleaseState::Failed { why };
            entry.proven = false;
        }
    }

    fn quarantine(&mut self, revision: Revision, build: crate::deploy::Fingerprint, why: String) {
        self.deploy.quarantined.retain(|it| it.revision != revision || it.build != build);
        self.deploy.quarantined.push(Quarantine { revision, build, why, at: self.now.wall });
        let excess = self.deploy.quarantined.len().saturating_sub(QUARANTINE_LENGTH);
        self.deploy.quarantined.drain(..excess);
    }

    // ---- moving to a release ----

    pub(super) fn switch(&mut self, release: ReleaseId, revision: Revision, why: ChangeWhy) {
        let previous = self.deploy.live().map(|entry| entry.id.clone());
        self.effects.push(Effect::Switch { release: release.clone() });
        self.deploy.phase = Phase::Switching(Change { release, revision, previous, why });
    }

    fn take_switched(&mut self, change: Change) {
        self.deploy.book.set_live(&change.release, self.now.wall);
        let Change { release, revision, previous, why } = change.clone();
        self.effects.push(Effect::Tell(News::Switched { release: release.clone(), revision: revision.clone(), previous }));
        if let ChangeWhy::Rollback(_) = why {
            self.deploy.wanted = Some(Stamp { revision, at: self.now.wall });
            self.hold_rolled_back(&release);
        }
        self.depart(change);
    }

    /// Lets the pools follow `current`, which has moved.
    pub(super) fn follow(&mut self, change: Change) {
        if self.deploy.mode == Mode::Drained {
            return self.stop_following(change);
        }
        self.roll_out(&change.release);
        self.deploy.phase = Phase::RollingOut(change);
    }

    /// The drain stops the workers: there is nothing to follow, and nothing to learn about the release.
    fn stop_following(&mut self, change: Change) {
        let text = format!("{} is live; the node was drained before the pools ran it, they will start on it", change.release);
        let ids = ids_of(change.why);
        if !ids.is_empty() {
            self.effects.push(Effect::Tell(News::RequestFailed { text: text.clone() }));
        }
        self.answer(&ids, &Outcome::Failed { text: text.clone() });
        self.deploy.verdict = Some(Said { at: self.now.wall, text });
        self.end();
    }

    pub(super) fn roll_out(&mut self, release: &ReleaseId) {
        let Some(entry) = self.deploy.book.get(release) else { return };
        let (release, revision) = (entry.id.clone(), entry.revision.clone());
        self.effects.push(match self.deploy.pools {
            Pools::NotStarted { .. } => Effect::StartPools { release, revision },
            Pools::Started => Effect::RollOut { release, revision },
        });
        self.deploy.pools = Pools::Started;
    }

    fn take_switch_failure(&mut self, change: Change, text: String) {
        let text = format!("`current` could not be moved to {}: {text}", change.release);
        self.deploy.last_error = Some(Said { at: self.now.wall, text: text.clone() });
        match change.why {
            ChangeWhy::Deploy(mut job) => {
                job.trigger.made = Some(change.release);
                job.failures = job.failures.saturating_add(1);
                let wait = self.now.jitter.spread(self.policy.retry.wait(job.failures));
                if !job.ids.is_empty() {
                    // What was told before was not about this request.
                    self.deploy.complaint = None;
                }
                self.complain(Complaint::Machine(text.clone()), News::Interrupted { text: text.clone(), again_in: wait });
                let ids = std::mem::take(&mut job.ids);
                self.answer(&ids, &Outcome::Failed { text: format!("{text}; tried again in {}", Human::rough(wait)) });
                self.wait(job, wait, WaitWhy::Machine);
            }
            ChangeWhy::Rollback(ids) => {
                self.end_failed_rollback(&ids, text);
                self.end();
            }
            ChangeWhy::Repair => {
                let mut job = self.deploy.next.take().unwrap_or_else(|| Job::configured(Origin::Boot));
                job.failures = job.failures.saturating_add(1);
                let wait = self.now.jitter.spread(self.policy.retry.wait(job.failures));
                self.complain(Complaint::Machine(text.clone()), News::Interrupted { text, again_in: wait });
                self.wait(job, wait, WaitWhy::Machine);
            }
        }
    }

    fn take_rolled_out(&mut self, change: Change) {
        let Change { release, revision, previous, why } = change;
        // That of what was live before lasts until here: if this one had not come up, it would be live again.
        self.deploy.probation = match (&why, previous) {
            (ChangeWhy::Deploy(_), Some(previous)) if !self.policy.probation.is_zero() && previous != release => {
                let until = self.now.mono + self.policy.probation;
                Some(Probation { release: release.clone(), previous, until, failed: None })
            }
            _ => None,
        };
        if let Some(entry) = self.deploy.book.get_mut(&release) {
            entry.proven = true;
        }
        self.deploy.quarantined.retain(|it| it.revision != revision);
        self.deploy.verdict = Some(Said { at: self.now.wall, text: format!("{} is live on all pools, as {release}", revision.short()) });
        self.effects.push(Effect::Tell(News::Live { release: release.clone(), revision }));
        self.all_is_well();
        self.arrive(&release, why);
    }

    /// Workers crash again and again: of a release on probation that is the end, whatever else is under way. While the node is held it is
    /// only remembered: then whoever holds it wants nothing to move.
    fn take_unwell(&mut self, release: &ReleaseId, text: String) {
        let now = self.now.mono;
        if self.deploy.mode == Mode::Drained {
            return;
        }
        let Some(probation) = self.deploy.probation.as_mut().filter(|it| it.release == *release && now < it.until) else { return };
        if probation.failed.is_some() {
            return;
        }
        probation.failed = Some(text);
        if self.deploy.held.is_some() {
            return;
        }
        match std::mem::replace(&mut self.deploy.phase, Phase::Idle) {
            Phase::Building { plan, step, time: BuildTime::Until(_) } => {
                self.effects.push(Effect::EndStep { release: plan.release.clone(), step });
                self.deploy.phase = Phase::Building { plan, step, time: BuildTime::GivingWay };
            }
            Phase::Waiting { job, .. } => self.give_back(job),
            other => self.deploy.phase = other,
        }
    }

    /// Lets what has not stood its probation go back.
    fn begin_return(&mut self) {
        let Some(Probation { release, previous, failed: Some(text), .. }) = self.deploy.probation.take() else { return };
        let Some(entry) = self.deploy.book.get(&release).filter(|entry| entry.state == ReleaseState::Live) else { return };
        let revision = entry.revision.clone();
        let text = format!("{release} did not stand its probation: {text}");
        self.go_back(Change { release, revision, previous: Some(previous), why: ChangeWhy::Repair }, text);
    }

    fn take_rollout_failure(&mut self, change: Change, text: String) {
        let text = format!("the pools did not come up on {}: {text}", change.release);
        self.go_back(change, text);
    }

    /// What was live is live again, and is what is wanted. Whoever rolled back still wants no update: the node stays held, for what is so.
    fn rollback_came_to_nothing(&mut self, release: &ReleaseId, to: &ReleaseId) {
        if let Some(revision) = self.deploy.book.get(to).map(|entry| entry.revision.clone()) {
            self.deploy.wanted = Some(Stamp { revision, at: self.now.wall });
        }
        if let Some(hold) = &mut self.deploy.held {
            hold.why = format!("the rollback to {release} failed: back on {to}");
        }
    }

    pub(super) fn go_back(&mut self, change: Change, text: String) {
        let Change { release, revision, previous, why } = change;
        let asked_back = matches!(why, ChangeWhy::Rollback(_));
        let after = previous.as_ref().map(|to| self.after_return(&release, to, &why)).unwrap_or_default();
        let ids = ids_of(why);
        self.deploy.last_error = Some(Said { at: self.now.wall, text: text.clone() });
        let back = previous.filter(|id| self.deploy.book.get(id).is_some_and(Entry::is_whole));
        let Some(to) = back else {
            self.deploy.probation = None;
            self.deploy.verdict = Some(Said { at: self.now.wall, text: text.clone() });
            self.effects.push(Effect::Tell(News::StaysFailing { release, why: text.clone() }));
            self.answer(&ids, &Outcome::Failed { text });
            return self.end();
        };
        if asked_back {
            self.rollback_came_to_nothing(&release, &to);
        } else if let Some(build) = self.deploy.book.get(&release).map(|entry| entry.build.clone()) {
            self.quarantine(revision.clone(), build, text.clone());
            self.deploy.complaint = Some(Complaint::Quarantined(revision));
        }
        self.effects.push(Effect::Tell(News::GoingBack { from: release.clone(), to: to.clone(), why: text.clone() }));
        self.effects.push(Effect::Switch { release: to.clone() });
        self.deploy.phase = Phase::RollingBack { from: release, to, text, ids, step: BackStep::BEGIN, after };
    }

    fn end_return(&mut self, ids: Vec<RequestId>, text: String, after: Vec<Task>) {
        self.deploy.verdict = Some(Said { at: self.now.wall, text: text.clone() });
        self.run_chores(after.into(), Then::Failed { ids, text });
    }

    // ---- ends ----

    /// Ends what was under way: what is no longer needed goes.
    pub(super) fn end(&mut self) {
        self.deploy.phase = Phase::Idle;
        let nothing_to_run = self.deploy.live().is_none() && self.deploy.next.is_none() && self.deploy.rollback.is_none();
        if nothing_to_run && self.blocked().is_none() {
            // A node without a live release is of no use as it is: it asks for something newer, slowly.
            let at = self.now.mono + self.now.jitter.spread(self.policy.retry.slow);
            self.deploy.phase = Phase::Waiting { job: Job::configured(Origin::Boot), at, why: WaitWhy::NothingLive };
        }
        self.prune();
    }

    pub(super) fn prune(&mut self) {
        let mut busy: BTreeSet<ReleaseId> = self.deploy.working_on().into_iter().cloned().collect();
        busy.extend(self.deploy.rollback.iter().map(|(release, _)| release.clone()));
        busy.extend(self.deploy.next.iter().filter_map(|job| job.trigger.made.clone()));
        // Not always the one before it in the book, which is kept anyway: a rollback may have come between.
        busy.extend(self.deploy.probation.iter().map(|it| it.previous.clone()));
        match &self.deploy.phase {
            Phase::Waiting { job, .. } | Phase::Fetching { job, .. } => busy.extend(job.trigger.made.clone()),
            Phase::Switching(change) | Phase::RollingOut(change) => busy.extend(change.previous.clone()),
            Phase::RollingBack { from, .. } => busy.extend([from.clone()]),
            Phase::Chores { left, then } => {
                busy.extend(left.iter().map(|task| task.release.clone()));
                if let Then::Follow(change) = then {
                    busy.extend(change.previous.clone());
                }
            }
            _ => {}
        }
        let ids = prunable(&self.deploy.book, &self.policy.keep, &BTreeSet::new(), &busy);
        if ids.is_empty() {
            return;
        }
        for entry in self.deploy.book.iter_mut().filter(|entry| ids.contains(&entry.id)) {
            entry.leaving = true;
        }
        self.effects.push(Effect::Prune { ids });
    }

    fn sweep(&mut self) {
        if !matches!(self.deploy.phase, Phase::Asleep(_) | Phase::Ending(_)) {
            self.deploy.sweep_at = None;
            self.prune();
        }
    }

    fn take_pruned(&mut self, gone: &[ReleaseId], kept: &[ReleaseId]) {
        self.deploy.book.retain(|entry| !(entry.leaving && gone.contains(&entry.id)));
        for entry in self.deploy.book.iter_mut().filter(|entry| kept.contains(&entry.id)) {
            entry.leaving = false;
        }
        if !kept.is_empty() {
            self.deploy.sweep_at = Some(self.now.mono + SWEEP_AFTER);
        }
    }

    /// Nothing was looked at: what keeps the disk from being written may well be that they are still there.
    fn take_not_pruned(&mut self, ids: &[ReleaseId]) {
        self.take_pruned(&[], ids);
        self.deploy.sweep_at = Some(self.now.mono + REFUSED_SWEEP_AFTER);
    }

    /// Somebody removed whole releases: nobody can go back to them.
    fn take_missing(&mut self, missing: &[ReleaseId]) {
        // What is being made or removed has its own answer, what failed may never have had a directory, and what is live stays so: workers
        // may still run in it.
        let removable = |entry: &Entry| matches!(entry.state, ReleaseState::Built | ReleaseState::Retired) && !entry.leaving;
        self.deploy.book.retain(|entry| !(missing.contains(&entry.id) && removable(entry)));
    }

    fn begin_drain(&mut self, phase: Phase) {
        self.deploy.mode = Mode::Drained;
        match phase {
            Phase::RollingOut(change) => self.stop_following(change),
            Phase::RollingBack { to, text, ids, step: BackStep::RollingOut, after, .. } => {
                self.end_return(ids, format!("{text}; {to} is live again, drained"), after);
            }
            other => self.deploy.phase = other,
        }
        self.let_waiting_give_way();
    }

    fn end_drain(&mut self) {
        if self.deploy.mode == Mode::Minding {
            return;
        }
        self.deploy.mode = Mode::Minding;
        self.deploy.pools = Pools::NotStarted { until: self.now.mono };
        // A deploy that the drain did not stop in time may build for long: the pools do not wait for it as after a boot.
        if !matches!(self.deploy.phase, Phase::Asleep(_) | Phase::Switching(_) | Phase::RollingBack { .. })
            && let Some(live) = self.deploy.live()
        {
            let release = live.id.clone();
            self.roll_out(&release);
        }
    }

    fn shut_down(&mut self, phase: Phase) {
        let mut ids = self.deploy.next.iter_mut().flat_map(|job| std::mem::take(&mut job.ids)).collect::<Vec<_>>();
        ids.extend(self.deploy.rollback.iter_mut().flat_map(|(_, ids)| std::mem::take(ids)));
        let journal = saved::journal(&phase);
        match phase {
            Phase::Waiting { mut job, .. } | Phase::Fetching { mut job, .. } => {
                ids.append(&mut job.ids);
                self.give_back(job);
            }
            Phase::Staging(plan) | Phase::Linking(plan) | Phase::Building { plan, .. } | Phase::Sealing(plan) => ids.extend(plan.job.ids),
            Phase::Switching(change) | Phase::RollingOut(change) => ids.extend(ids_of(change.why)),
            Phase::RollingBack { ids: waiting, .. } => ids.extend(waiting),
            Phase::Chores { then, .. } => ids.extend(then.ids()),
            Phase::Asleep(_) | Phase::Idle | Phase::Ending(_) => {}
        }
        self.refuse(&ids, &Refusal::Ending);
        self.deploy.phase = Phase::Ending(journal);
    }

    fn take_while_ending(&mut self, event: Event) {
        match event {
            Event::Requested { id, .. } => self.refuse(&[id], &Refusal::Ending),
            Event::Triggered(origin) => self.remember(Job::configured(origin)),
            Event::Pruned { gone, kept } => self.take_pruned(&gone, &kept),
            Event::NotPruned { ids } => self.take_not_pruned(&ids),
            _ => {}
        }
    }

    // ---- telling ----

    fn all_is_well(&mut self) {
        self.deploy.last_error = None;
        self.deploy.complaint = None;
    }

    /// Tells of a request that comes to nothing; what to do about it is only said to who asked.
    fn tell_failed(&mut self, what: &str, text: &str) {
        let why = text.split_once("\nhint: ").map_or(text, |(why, _)| why);
        self.effects.push(Effect::Tell(News::RequestFailed { text: format!("{what}: {why}") }));
    }

    /// Tells it unless it is what was told last.
    fn complain(&mut self, complaint: Complaint, news: News) {
        if self.deploy.complaint.as_ref() != Some(&complaint) {
            self.effects.push(Effect::Tell(news));
            self.deploy.complaint = Some(complaint);
        }
    }

    pub(super) fn done(&mut self, ids: &[RequestId], changed: bool) {
        let release = self.deploy.live().map(|entry| entry.id.clone());
        self.answer(ids, &Outcome::Done { release, changed });
    }

    fn refuse(&mut self, ids: &[RequestId], refusal: &Refusal) {
        self.answer(ids, &Outcome::Refused(refusal.clone()));
    }

    pub(super) fn answer(&mut self, ids: &[RequestId], outcome: &Outcome) {
        self.effects.extend(ids.iter().map(|id| Effect::Answer { id: *id, outcome: outcome.clone() }));
    }
}

/// Joins an older job to a newer one: nobody and nothing that was asked for is lost.
pub(super) fn join(newer: &mut Job, older: Job) {
    if newer.trigger.wanted == older.trigger.wanted {
        newer.failures = newer.failures.max(older.failures);
    }
    newer.trigger = newer.trigger.over(&older.trigger);
    newer.ids.splice(..0, older.ids);
}

impl Trigger {
    /// Returns what is to be done when this one came after `older`: it takes the place of that, or both are done as one.
    pub(super) fn over(&self, older: &Self) -> Self {
        let mut newer = self.clone();
        if newer.wanted != older.wanted {
            newer.displaced |= older.displaced || older.wanted == Wanted::Configured;
            return newer;
        }
        if newer.origin != Origin::Operator {
            newer.cuts = newer.cuts.max(older.cuts);
        }
        if newer.force == Force::No {
            newer.made.clone_from(&older.made);
            newer.ran.clone_from(&older.ran);
        }
        newer.force = newer.force.max(older.force);
        newer.displaced |= older.displaced;
        newer
    }
}

/// What a failed build step is told as, with the last that it said.
fn step_failed(step: u32, steps: u32, what: &str, last_lines: &[String]) -> String {
    with_lines(format!("build step {step} of {steps} failed: {what}"), last_lines)
}

fn with_lines(mut text: String, last_lines: &[String]) -> String {
    for line in last_lines {
        text.push_str("\n  | ");
        text.push_str(line);
    }
    text
}

fn is_of_step(event: &Event, of: &ReleaseId, number: u32) -> bool {
    matches!(event, Event::StepDone { release, step } | Event::StepSkipped { release, step } if release == of && *step == number)
}

pub(super) fn ids_of(why: ChangeWhy) -> Vec<RequestId> {
    match why {
        ChangeWhy::Deploy(job) => job.ids,
        ChangeWhy::Rollback(ids) => ids,
        ChangeWhy::Repair => vec![],
    }
}
