//! Answers operators: each command when it took effect, at once if it is so already, or why not.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use selfstart_core::command::{self, Command, PoolShape, ScaleTo, Selection, Target, TargetError};
use selfstart_core::date::Timestamp;
use selfstart_core::deploy::{
    Asker, Event as DeployEvent, Force, Hold, Origin, Outcome as DeployOutcome, PhaseName, Refusal, Request, RequestId, RollbackTo, Wanted,
};
use selfstart_core::drain;
use selfstart_core::id::{Generation, PoolName, ProcessId, ReleaseId, SlotId, StartNo, WorkerKey};
use selfstart_core::pool::{self, Event, Pool, RestartWhy, Scale, Which};
use selfstart_core::status::{ReleaseState, ReleaseStatus};
use selfstart_core::time::MonoTime;
use selfstart_core::worker::SlotState;

use super::deploying::{self, chain};
use super::launch;
use super::minding::PoolRun;
use super::output;
use super::readers;
use super::run::{Agent, Ending, Worked};
use super::store;
use crate::config::explain::{Difference, EnvValues, Explained};
use crate::config::settings::{Changes, ControlSettings, Settings};
use crate::control::server::{Call, FAREWELL, Gate, Peer, Reply, Verdict};
use crate::control::socket;
use crate::control::wire::{Change, Done, Facts, Failed, Launch, Live, Outcome, Progress, RefusalCode, Refused, ValueChange};
use crate::keeper::protocol::{Ask, HowUpgraded, Upgraded};
use crate::release::layout::{Layout, Owner};
use crate::release::prune;
use crate::sys::process::Variable;
use crate::sys::{cgroup, clock, process, users};

/// Progress of a deploy is shown at most this often.
const SHOW_EVERY: Duration = Duration::from_millis(200);

/// Who waits for what.
#[derive(Debug, Default)]
pub(crate) struct Serving {
    next_request: u64,
    deploys: BTreeMap<RequestId, Asked>,
    pending: Vec<Pending>,
    /// What is so already, and is answered once a write of the state that contains it is over; with the number of that write.
    unsaved: Vec<(u64, Reply, Box<Done>)>,
    shown: Option<(MonoTime, String)>,
    /// Who waits for an upgrade. When it is begun this agent ends, and they ask the next one.
    upgrades: Vec<Reply>,
    /// `control.workers`, as the gate reads it.
    workers_may: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Asked {
    reply: Reply,
    wait: bool,
    since: MonoTime,
    /// Whether it changes what must outlive the agent, and so is not done before that is on disk.
    saved: bool,
    /// Whether it has been tried to write it once more for this answer.
    tried_again: bool,
    what: Asking,
    /// What was live when it was asked.
    live: Option<ReleaseId>,
}

/// What the machine of deploys was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asking {
    Deploy,
    Rollback,
    Hold,
    Unhold,
}

impl Asking {
    /// What was done all the same, if the deploy that the answer waits for does not come about; may be empty.
    fn done(self) -> &'static str {
        if self == Self::Unhold { "updates are let through again, but what was remembered is not live: " } else { "" }
    }

    /// Returns what it is so now, for people; `live`: "X is live".
    fn answer(self, live: String, changed: bool, held: Option<&Hold>) -> String {
        let why = held.filter(|hold| !hold.why.is_empty()).map_or_else(String::new, |hold| format!(": {}", hold.why));
        match self {
            Self::Deploy => live,
            Self::Rollback if held.is_some() => format!("{live}; updates are held until `selfstart unhold`"),
            Self::Rollback => live,
            Self::Hold if changed => format!("updates are held until `selfstart unhold`{why}"),
            Self::Hold => format!("updates are held already, by {}{why}", held.map_or("", |hold| &hold.by)),
            Self::Unhold if changed => format!("updates are let through again; {live}"),
            Self::Unhold => format!("updates were not held; {live}"),
        }
    }
}

#[derive(Debug)]
struct Pending {
    reply: Reply,
    goal: Goal,
    text: String,
}

/// What must be true before a command is answered.
#[derive(Debug)]
enum Goal {
    /// These slots are ready, with a later start than the one named, if one is.
    Ready(BTreeMap<SlotId, Option<StartNo>>),
    /// These slots are stopped.
    Stopped(Vec<SlotId>),
    /// These pools run this generation or a later one, whole.
    Generation(BTreeMap<PoolName, Generation>),
    /// This pool has so many slots, all ready, and none on its way out.
    Count(PoolName),
    /// The whole node is.
    Drained,
    /// Every pool is ready.
    AllReady,
    /// This pool, which the configuration has no more, has no worker left.
    Gone(PoolName),
    /// No deploy goes on; with the date of the last thing that had failed before.
    Deployed(Option<selfstart_core::time::WallTime>),
    /// All of these, in this order.
    All(Vec<Goal>),
}

impl Goal {
    /// Whether a deploy is part of it, and so something to be shown while it is waited for.
    fn has_a_deploy(&self) -> bool {
        match self {
            Self::Deployed(_) => true,
            Self::All(goals) => goals.iter().any(Self::has_a_deploy),
            _ => false,
        }
    }
}

impl Serving {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self { workers_may: Arc::new(AtomicBool::new(settings.control.workers)), ..Self::default() }
    }

    /// Whether somebody waits for the state to be written.
    pub(crate) fn waits_for_save(&self) -> bool {
        !self.unsaved.is_empty()
    }

    /// This write of the state is over: answers those whose change it contains.
    pub(crate) fn saved(&mut self, write: u64, trouble: Option<&str>) {
        for (needed, reply, done) in std::mem::take(&mut self.unsaved) {
            match trouble {
                _ if needed > write => self.unsaved.push((needed, reply, done)),
                None => reply.finish(Outcome::Done(done)),
                Some(why) => reply.finish(not_saved(&done.text, why)),
            }
        }
    }
}

/// It is so, but only as long as this agent lives: no success, as the next agent knows nothing of it.
fn not_saved(done: &str, why: &str) -> Outcome {
    let reason = format!("done ({done}), but not saved: {why}; it is forgotten if the agent ends");
    Outcome::Failed(Failed { reason, hint: Some("free space, and repeat it".to_owned()), ..Failed::default() })
}

impl Agent {
    /// Answers a command that changed what must outlive the agent, once that is on disk, or at once if it cannot be written.
    fn finish_saved(&mut self, reply: Reply, outcome: Outcome) {
        let done = match outcome {
            Outcome::Done(done) => done,
            other => return reply.finish(other),
        };
        // What is repeated changes nothing, and may still be what could not be written before.
        self.dirty = self.dirty || self.state_trouble.is_some() && !self.saving_state;
        match (self.dirty, self.saving_state) {
            (true, _) => self.serving.unsaved.push((self.saves_begun + 1, reply, done)),
            (false, true) => self.serving.unsaved.push((self.saves_begun, reply, done)),
            (false, false) => reply.finish(Outcome::Done(done)),
        }
    }

    /// Takes a command.
    pub(crate) fn call(&mut self, call: Call) {
        let Call { request, peer, by, reply } = call;
        let wait = request.wait;
        if self.ending == Ending::Leaving && !matches!(request.command, Command::Status {} | Command::Releases {}) {
            return reply.finish(refused(RefusalCode::Draining, "selfstart is ending", None));
        }
        match request.command {
            Command::Status {} => reply.finish(Done::facts(Facts::Status(Box::new(self.status())))),
            Command::Releases {} => {
                self.forget_missing();
                self.releases(reply);
            }
            Command::Deploy { reference, force } => {
                let wanted = reference.map_or(Wanted::Configured, Wanted::Ref);
                let force = if force { Force::Yes } else { Force::No };
                self.request(Request::Deploy { wanted, force }, by, reply, wait);
            }
            Command::Rollback { to } => {
                self.forget_missing();
                self.request(Request::Rollback(to.map_or(RollbackTo::Previous, RollbackTo::To)), by, reply, wait);
            }
            Command::Hold { why } => self.request(Request::Hold { why: why.unwrap_or_default() }, by, reply, true),
            Command::Unhold {} => self.request(Request::Unhold, by, reply, wait),
            Command::Start { targets } => self.on_targets(&targets, reply, wait, Self::start),
            Command::Stop { targets } => self.on_targets(&targets, reply, wait, Self::stop),
            Command::Restart { targets } => self.on_targets(&targets, reply, wait, Self::restart),
            Command::Pause { targets } => self.on_targets(&targets, reply, wait, |agent, chosen| agent.pause(chosen, true)),
            Command::Resume { targets } => self.on_targets(&targets, reply, wait, |agent, chosen| agent.pause(chosen, false)),
            Command::Signal { target, signal } => self.on_targets(&[target], reply, wait, move |agent, chosen| {
                let mut sent = 0;
                for (name, which) in whiches(chosen) {
                    sent += agent.slots_of(&name, which).filter(|(_, slot)| slot.process().is_some()).count();
                    agent.pool_event(&name, Event::Signal { which, signal });
                }
                Effect::Now(format!("{signal} sent to {sent} worker{}", if sent == 1 { "" } else { "s" }))
            }),
            Command::Scale { pool, to } => self.scale(pool, to, reply, wait),
            Command::Drain {} => self.drain(&by, reply, wait),
            Command::Reload { plan: true } => self.reload_plan(&peer, reply),
            Command::Reload { plan: false } => self.reload(Some((by, reply, wait))),
            Command::Wait {} => self.pending(reply, true, Goal::AllReady, "every pool is ready".into()),
            Command::Upgrade { placed } => self.upgrade(placed, by, reply),
            Command::Launch { pool } => reply.finish(self.launch_facts(pool, peer.uid)),
        }
    }

    fn request(&mut self, what: Request, by: String, reply: Reply, wait: bool) {
        self.serving.next_request += 1;
        let id = RequestId(self.serving.next_request);
        let asking = match what {
            Request::Deploy { .. } => Asking::Deploy,
            Request::Rollback(_) => Asking::Rollback,
            Request::Hold { .. } => Asking::Hold,
            Request::Unhold => Asking::Unhold,
        };
        let saved = asking != Asking::Deploy;
        let live = self.deploying.machine().live().map(|entry| entry.id.clone());
        self.serving.deploys.insert(id, Asked { reply, wait, since: clock::now(), saved, tried_again: false, what: asking, live });
        self.serving.shown = None;
        self.deploy_event(DeployEvent::Requested { id, by, what });
    }

    /// The machine of deploys has an answer.
    pub(crate) fn answered_deploy(&mut self, id: RequestId, outcome: DeployOutcome) {
        let Some(mut asked) = self.serving.deploys.remove(&id) else { return };
        let unsaved = self.deploying.unsaved().filter(|_| asked.saved && matches!(outcome, DeployOutcome::Done { .. })).map(str::to_owned);
        let Some(why) = unsaved else { return self.finish_deploy(asked, outcome) };
        if asked.tried_again {
            return asked.reply.finish(not_saved("it is so", &why));
        }
        // Somebody who repeats it has made room: then it is written now, and not when it is next tried.
        asked.tried_again = true;
        self.serving.deploys.insert(id, asked);
        self.answer_when_saved(id, outcome);
    }

    fn finish_deploy(&mut self, asked: Asked, outcome: DeployOutcome) {
        let seconds = clock::now().since(asked.since).as_secs();
        asked.reply.finish(match outcome {
            DeployOutcome::Done { release, changed } => {
                let live = release.and_then(|id| self.deploying.machine().book().get(&id).cloned());
                // Of slots that are not ready it can only be said why after a rollout, which waits for those that it has to.
                let rolled_out = match asked.what {
                    Asking::Deploy | Asking::Rollback => changed,
                    Asking::Unhold => live.as_ref().map(|entry| &entry.id) != asked.live.as_ref(),
                    Asking::Hold => false,
                };
                let warning = if rolled_out { self.not_ready() } else { None };
                let facts =
                    live.map(|entry| Facts::Live(Live { release: entry.id, revision: entry.revision, seconds: Some(seconds), warning }));
                let already = matches!(asked.what, Asking::Deploy | Asking::Rollback) && !changed;
                let text = match &facts {
                    Some(Facts::Live(live)) if already => format!("{} is live already ({})", live.release, live.revision.short()),
                    Some(Facts::Live(live)) => {
                        let but = live.warning.as_deref().map_or_else(String::new, |warning| format!("; {warning}"));
                        format!("{} is live ({}){but}", live.release, live.revision.short())
                    }
                    _ => "nothing is live yet".into(),
                };
                let text = asked.what.answer(text, changed, self.deploying.machine().held());
                Outcome::Done(Box::new(Done { text, already: !changed, facts }))
            }
            DeployOutcome::Failed { text } => {
                let (reason, hint) = match text.split_once("\nhint: ") {
                    Some((reason, hint)) => (reason.to_owned(), Some(hint.to_owned())),
                    // The text is all that `why deploy` knows, too.
                    None if text.contains("; tried again in ") => (text, Some("`selfstart status` shows the next try".to_owned())),
                    None => (text, None),
                };
                Outcome::Failed(Failed { reason: format!("{}{reason}", asked.what.done()), hint, ..Failed::default() })
            }
            DeployOutcome::Refused(refusal) => {
                let done = if refusal == Refusal::Ending { "" } else { asked.what.done() };
                let remembered = asked.what == Asking::Deploy;
                let held = self.deploying.machine().held().is_some();
                let (code, hint) = match &refusal {
                    Refusal::Held(_) if remembered => (RefusalCode::Held, "remembered: `selfstart unhold` deploys it"),
                    Refusal::Draining if remembered && held => {
                        (RefusalCode::Draining, "remembered: `selfstart start`, then `selfstart unhold`, deploys it")
                    }
                    Refusal::Draining if remembered => (RefusalCode::Draining, "remembered: `selfstart start` deploys it"),
                    Refusal::Held(_) => (RefusalCode::Held, "`selfstart unhold` lets updates through again"),
                    Refusal::Quarantined(_) => (RefusalCode::Quarantined, "push a fix, or try it again with `selfstart deploy --force`"),
                    Refusal::Draining => (RefusalCode::Draining, "`selfstart start` ends the drain"),
                    Refusal::Superseded => (RefusalCode::Busy, "`selfstart status` shows what is deployed instead"),
                    Refusal::Busy => (RefusalCode::Busy, "try again in a moment"),
                    Refusal::Ending => (RefusalCode::Draining, "selfstart is ending"),
                };
                refused(code, format!("{done}{refusal}"), Some(hint))
            }
        });
    }

    /// Which wanted workers are not ready; `None`: all are. What operators have stopped or paused is their business.
    fn not_ready(&self) -> Option<String> {
        /// More of them are no help to anybody.
        const NAMED: usize = 5;
        let (mut wanted, mut down) = (0_usize, Vec::new());
        for (name, run) in self.pools.iter().filter(|(_, run)| !run.leaving) {
            let machine = run.machine();
            for (number, slot) in machine.slots().filter(|(number, _)| machine.wanted(*number) == Some(pool::Wanted::Running)) {
                match slot.shown() {
                    SlotState::Paused => {}
                    SlotState::Ready => wanted += 1,
                    _ => {
                        wanted += 1;
                        down.push(format!("{name}/{number}"));
                    }
                }
            }
        }
        let more = down.len().checked_sub(NAMED).filter(|more| *more > 0).map_or_else(String::new, |more| format!(" and {more} more"));
        let names = down.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        // A worker that was ready before would have failed the deploy.
        (!down.is_empty())
            .then(|| format!("{} of {wanted} ready: {names}{more} failed, and had no ready worker before it", wanted - down.len()))
    }

    /// Answers those whose time has come, and shows the others how far it is.
    pub(crate) fn answer_pending(&mut self) {
        self.release_waiting();
        self.drain_waves();
        if !self.deploying.busy() {
            let accepted: Vec<RequestId> = self.serving.deploys.iter().filter(|(_, asked)| !asked.wait).map(|(id, _)| *id).collect();
            for id in accepted {
                if let Some(asked) = self.serving.deploys.remove(&id) {
                    asked.reply.finish(match self.deploying.unsaved().filter(|_| asked.saved) {
                        Some(why) => not_saved("accepted", why),
                        None => Done::text("accepted; `selfstart status` shows how far it is"),
                    });
                }
            }
        }
        if !self.serving.deploys.is_empty() || self.serving.pending.iter().any(|waiting| waiting.goal.has_a_deploy()) {
            self.show_deploy();
        }
        if self.serving.pending.is_empty() {
            return;
        }
        for waiting in std::mem::take(&mut self.serving.pending) {
            if waiting.reply.is_gone() {
                continue;
            }
            match self.reached(&waiting.goal) {
                None => self.serving.pending.push(waiting),
                // Who only waited changed nothing.
                Some(Ok(())) if matches!(waiting.goal, Goal::AllReady) => waiting.reply.finish(Done::text(waiting.text)),
                Some(Ok(())) => self.finish_saved(waiting.reply, Done::text(waiting.text)),
                Some(Err(reason)) => {
                    let (reason, hint) = match reason.split_once("\nhint: ") {
                        Some((reason, hint)) => (reason.to_owned(), Some(hint.to_owned())),
                        None => {
                            let hint = self.way_out(&reason);
                            (reason, hint)
                        }
                    };
                    waiting.reply.finish(Outcome::Failed(Failed { reason, hint, ..Failed::default() }));
                }
            }
        }
    }

    /// What to do about what somebody waits for in vain: a reason about a slot begins with its name.
    fn way_out(&self, reason: &str) -> Option<String> {
        if self.ending != Ending::No {
            return Some("`selfstart start` ends the drain".to_owned());
        }
        let id: SlotId = reason.split(' ').next()?.parse().ok()?;
        let run = self.pools.get(&id.pool)?;
        Some(match run.machine().slot(id.slot)?.shown() {
            SlotState::Paused => format!("`selfstart resume {id}` lets it be minded again"),
            _ if run.machine().wanted(id.slot) == Some(pool::Wanted::Stopped) => format!("`selfstart start {id}` starts it"),
            _ => format!("`selfstart why {id}` tells more, `selfstart logs {id}` what it said"),
        })
    }

    fn show_deploy(&mut self) {
        let status = self.deploy_status();
        let progress = status.progress.clone().unwrap_or_default();
        let key = format!("{:?} {:?} {:?} {:?}", status.phase, progress.step, progress.detail, progress.objects);
        let now = clock::now();
        if self.serving.shown.as_ref().is_some_and(|(at, shown)| *shown == key || now.since(*at) < SHOW_EVERY && same_phase(shown, &key)) {
            return;
        }
        let reloads = self.serving.pending.iter().filter(|waiting| waiting.goal.has_a_deploy()).map(|waiting| &waiting.reply);
        for reply in self.serving.deploys.values().map(|asked| &asked.reply).chain(reloads) {
            reply.progress(Progress::deploy(status.clone()));
        }
        self.serving.shown = Some((now, key));
    }

    fn pending(&mut self, reply: Reply, wait: bool, goal: Goal, text: String) {
        if !wait {
            return self.finish_saved(reply, Done::text("accepted; `selfstart status` shows how far it is"));
        }
        self.serving.pending.push(Pending { reply, goal, text });
    }

    /// Whether what was asked for is so; an error when it will not be without somebody's help.
    fn reached(&self, goal: &Goal) -> Option<Result<(), String>> {
        match goal {
            Goal::Ready(slots) => self.slots_ready(slots),
            Goal::Stopped(slots) => self.slots_stopped(slots),
            Goal::Generation(pools) => self.generations_ready(pools),
            Goal::Count(name) => self.count_reached(name),
            Goal::Drained => match self.ending {
                Ending::Drained => Some(Ok(())),
                Ending::No => Some(Err("the drain was ended by `start`".into())),
                Ending::Draining | Ending::Leaving => None,
            },
            // Put back by another reload, it is somebody else's business.
            Goal::Gone(name) => self.pools.get(name).is_none_or(|run| !run.leaving).then_some(Ok(())),
            Goal::Deployed(before) => self.deploy_over(*before),
            Goal::All(goals) => {
                let reached: Vec<_> = goals.iter().map(|goal| self.reached(goal)).collect();
                let all = reached.iter().all(Option::is_some);
                match reached.into_iter().flatten().find(Result::is_err) {
                    Some(failed) => Some(failed),
                    None => all.then_some(Ok(())),
                }
            }
            Goal::AllReady => self.node_ready(),
        }
    }

    /// Each slot has a worker that is ready, of a later start than the one beside it.
    fn slots_ready(&self, slots: &BTreeMap<SlotId, Option<StartNo>>) -> Option<Result<(), String>> {
        for (id, former) in slots {
            let Some(slot) = self.pools.get(&id.pool).and_then(|run| run.machine().slot(id.slot)) else {
                return Some(Err(format!("{id} is gone")));
            };
            let later = former.is_none_or(|former| slot.last_start() > former);
            if let Some(why) = self.hopeless(id, slot, later) {
                return Some(Err(why));
            }
            if !later || slot.shown() != SlotState::Ready {
                return None;
            }
        }
        Some(Ok(()))
    }

    fn slots_stopped(&self, slots: &[SlotId]) -> Option<Result<(), String>> {
        for id in slots {
            let Some(run) = self.pools.get(&id.pool) else { continue };
            if run.machine().slot(id.slot).is_some_and(|slot| !slot.is_stopped()) {
                let started = run.machine().wanted(id.slot) == Some(pool::Wanted::Running) && self.ending == Ending::No;
                return started.then(|| Err(format!("{id} was started again")));
            }
        }
        Some(Ok(()))
    }

    /// Each pool has come to that generation or a later one.
    fn generations_ready(&self, pools: &BTreeMap<PoolName, Generation>) -> Option<Result<(), String>> {
        for (name, wanted) in pools {
            let Some(run) = self.pools.get(name) else { return Some(Err(format!("{name} is gone"))) };
            if run.machine().target().is_none_or(|target| target.generation < *wanted) {
                return None;
            }
            if let Some(unready) = self.unready(name, run) {
                return unready.err().map(Err);
            }
        }
        Some(Ok(()))
    }

    /// The pool has as many slots as it should, no more, and they are ready.
    fn count_reached(&self, name: &PoolName) -> Option<Result<(), String>> {
        let Some(run) = self.pools.get(name) else { return Some(Err(format!("{name} is gone"))) };
        if let Some(waits) = self.waits_for_others(run) {
            return waits.err().map(Err);
        }
        if u32::try_from(run.machine().slots().count()).ok()? != run.machine().count() {
            return None;
        }
        match self.unready(name, run) {
            Some(unready) if run.machine().target().is_some() && self.ending == Ending::No => unready.err().map(Err),
            _ => Some(Ok(())),
        }
    }

    /// No deploy is under way any more; one that failed after `before` is an error.
    fn deploy_over(&self, before: Option<selfstart_core::time::WallTime>) -> Option<Result<(), String>> {
        let machine = self.deploying.machine();
        let failed = machine.last_error().filter(|said| Some(said.at) != before).map(|said| said.text.clone());
        let over = matches!(machine.phase_name(), PhaseName::Idle) && !self.deploying.busy();
        match failed {
            // It is tried again and again; whoever asked is told now.
            Some(text) if over || machine.next_try().is_some() => Some(Err(text)),
            _ => over.then_some(Ok(())),
        }
    }

    /// Every pool serves.
    fn node_ready(&self) -> Option<Result<(), String>> {
        let mut pools = self.pools.iter().filter(|(_, run)| !run.leaving);
        let stopped = self.stopped_by_hand();
        if !stopped.is_empty() && self.ending == Ending::No {
            // Ready is what serves: a pool that was stopped is not, however few it has to have then.
            let (were, names) = (if stopped.len() == 1 { "was" } else { "were" }, stopped.join(" "));
            return Some(Err(format!("{} {were} stopped by an operator\nhint: `selfstart start {names}`", stopped.join(", "))));
        }
        // Without any pool, as `only:` may have it, what is ready is the release.
        let whole = !self.pools.is_empty() || self.deploying.machine().live().is_some();
        if whole && pools.clone().all(|(_, run)| run.machine().is_ready()) {
            return Some(Ok(()));
        }
        if matches!(self.ending, Ending::Draining | Ending::Drained) {
            return Some(Err("the node is drained, and starts nothing until `selfstart start`".into()));
        }
        let given_up = pools.find_map(|(name, run)| self.given_up(name, run));
        given_up.map(|why| self.with_failed_deploy(why)).or_else(|| self.nothing_to_run()).map(Err)
    }

    /// Why nothing will be ready until somebody helps: nothing is live, and what was fetched failed, which is not tried again by itself.
    fn nothing_to_run(&self) -> Option<String> {
        let machine = self.deploying.machine();
        let over = matches!(machine.phase_name(), PhaseName::Idle) && !self.deploying.busy() && !machine.quarantined().is_empty();
        let failed = machine.last_error().filter(|_| over && machine.live().is_none())?;
        Some(format!("nothing is live, and the last deploy failed: {}", failed.text))
    }

    /// Adds what became of the last deploy, if it failed: the release that runs may not be the one that would be ready.
    fn with_failed_deploy(&self, why: String) -> String {
        match self.deploying.machine().last_error() {
            Some(failed) => format!("{why}\nthe last deploy failed: {}", failed.text),
            None => why,
        }
    }

    /// The pools and slots that an operator has stopped, as `start` takes them.
    fn stopped_by_hand(&self) -> Vec<String> {
        let mut names = Vec::new();
        for (name, run) in self.pools.iter().filter(|(_, run)| !run.leaving) {
            let machine = run.machine();
            let slots: Vec<u32> = (0..machine.count()).filter(|number| machine.wanted(*number) == Some(pool::Wanted::Stopped)).collect();
            if slots.len() == machine.count() as usize {
                names.extend((!slots.is_empty()).then(|| name.to_string()));
            } else {
                names.extend(slots.iter().map(|number| format!("{name}/{number}")));
            }
        }
        names
    }

    /// Of a pool whose turn has not come: `Err` when it does not come without somebody's help, `Ok` when it may; `None`: it has had its turn.
    fn waits_for_others(&self, run: &PoolRun) -> Option<Result<(), String>> {
        if run.waiting.is_none() || self.ending != Ending::No {
            return None;
        }
        let others = run.settings.policy.after.iter().filter_map(|other| self.pools.get_key_value(other));
        for (name, other) in others {
            let stuck = self.unready(name, other).and_then(Result::err).or_else(|| self.waits_for_others(other).and_then(Result::err));
            if let Some(why) = stuck {
                return Some(Err(format!("{} waits for {name}: {why}", run.settings.policy.name)));
            }
        }
        Some(Ok(()))
    }

    /// Why a pool that is only waited for will not be ready in any time that somebody would wait: not for a crash or two, as one who waits
    /// from the boot on must see the second try, nor while a deploy goes on, which may be the cure.
    fn given_up(&self, name: &PoolName, run: &PoolRun) -> Option<String> {
        if !matches!(self.deploying.machine().phase_name(), PhaseName::Idle) {
            return None;
        }
        run.machine().slots().find_map(|(number, slot)| {
            let resting = matches!(slot.shown(), SlotState::Quarantined | SlotState::Paused);
            if !resting || run.machine().wanted(number) != Some(pool::Wanted::Running) {
                return None;
            }
            self.hopeless(&SlotId { pool: name.clone(), slot: number }, slot, true)
        })
    }

    /// Why a slot does not become ready without somebody's help; `None`: it may.
    fn hopeless(&self, id: &SlotId, slot: &selfstart_core::worker::Slot, later: bool) -> Option<String> {
        let run = self.pools.get(&id.pool)?;
        if later && (slot.shown() == SlotState::Quarantined || slot.waits_after_crash()) {
            let why = slot.last_verdict().map_or_else(String::new, |verdict| verdict.to_string());
            return Some(format!("{id} does not become ready: {why}"));
        }
        if self.ending != Ending::No {
            return Some(format!("{id} is not started, because the node is drained"));
        }
        if slot.shown() == SlotState::Paused {
            return Some(format!("{id} is paused, and not minded until `selfstart resume`"));
        }
        (run.machine().wanted(id.slot) == Some(pool::Wanted::Stopped)).then(|| format!("{id} was stopped by an operator"))
    }

    /// Of a pool that is not whole: `Err` when it will not be without somebody's help, `Ok` when it may; `None`: it is whole.
    fn unready(&self, name: &PoolName, run: &PoolRun) -> Option<Result<(), String>> {
        let machine = run.machine();
        if machine.rolling_out().is_none() && machine.is_ready() {
            return None;
        }
        for (number, slot) in machine.slots() {
            let id = SlotId { pool: name.clone(), slot: number };
            if slot.shown() != SlotState::Ready && machine.wanted(number) == Some(pool::Wanted::Running) {
                if let Some(why) = self.hopeless(&id, slot, true) {
                    return Some(Err(why));
                }
            }
        }
        Some(Ok(()))
    }

    // ---- pools

    fn shapes(&self) -> Vec<PoolShape> {
        let shape = |(name, run): (&PoolName, &PoolRun)| PoolShape {
            name: name.clone(),
            group: run.settings.group.clone(),
            slots: run.machine().slots().map(|(number, _)| number + 1).max().unwrap_or(0),
        };
        self.pools.iter().filter(|(_, run)| !run.leaving).map(shape).collect()
    }

    fn slots_of(&self, name: &PoolName, which: Which) -> impl Iterator<Item = (u32, &selfstart_core::worker::Slot)> {
        let machine: Option<&Pool> = self.pools.get(name).map(PoolRun::machine);
        machine.into_iter().flat_map(Pool::slots).filter(move |(number, _)| match which {
            Which::All => true,
            Which::Slot(one) => one == *number,
        })
    }

    fn on_targets(
        &mut self,
        targets: &[Target],
        reply: Reply,
        wait: bool,
        act: impl FnOnce(&mut Self, &BTreeMap<PoolName, Selection>) -> Effect,
    ) {
        let chosen = match command::resolve(targets, &self.shapes()) {
            Ok(chosen) => chosen,
            Err(error) => return reply.finish(unknown(&error)),
        };
        match act(self, &chosen) {
            Effect::Now(text) => reply.finish(Done::text(text)),
            Effect::Changed(text) => self.finish_saved(reply, Done::text(text)),
            Effect::Refused(outcome) => reply.finish(outcome),
            Effect::When(goal, text) => self.pending(reply, wait, goal, text),
        }
    }

    fn start(&mut self, chosen: &BTreeMap<PoolName, Selection>) -> Effect {
        if matches!(self.ending, Ending::Draining | Ending::Drained) {
            let whole = self.shapes().iter().all(|shape| chosen.get(&shape.name) == Some(&Selection::All));
            if !whole {
                // The end of a drain is the whole node's; nobody who names one worker means that.
                let hint = "`selfstart start` ends the drain and starts everything; `selfstart stop` stops what is not wanted";
                return Effect::Refused(refused(RefusalCode::Draining, "the node is drained, and starts no single workers", Some(hint)));
            }
            self.ending = Ending::No;
            self.drained = false;
            self.dirty = true;
            for name in self.pools.iter().filter(|(_, run)| !run.leaving).map(|(name, _)| name.clone()).collect::<Vec<_>>() {
                self.undrain_pool(&name);
            }
            self.deploy_event(DeployEvent::DrainEnded);
        }
        if let Some(refusal) = self.nothing_to_start() {
            return refusal;
        }
        let mut slots = BTreeMap::new();
        for (name, which) in whiches(chosen) {
            self.pool_event(&name, Event::Start(which));
            slots.extend(self.slots_of(&name, which).map(|(number, _)| (SlotId { pool: name.clone(), slot: number }, None)));
        }
        let text = count(slots.len(), "ready");
        Effect::When(Goal::Ready(slots), text)
    }

    fn nothing_to_start(&self) -> Option<Effect> {
        let hint = "`selfstart status` shows how far the deploy is";
        let refusal = || Effect::Refused(refused(RefusalCode::Nothing, "there is no release to start yet", Some(hint)));
        self.deploying.machine().live().is_none().then(refusal)
    }

    fn stop(&mut self, chosen: &BTreeMap<PoolName, Selection>) -> Effect {
        let mut slots = Vec::new();
        let running = |agent: &Self| whiches(chosen).any(|(name, which)| agent.slots_of(&name, which).any(|(_, slot)| !slot.is_stopped()));
        let running = running(self);
        for (name, which) in whiches(chosen) {
            slots.extend(self.slots_of(&name, which).map(|(number, _)| SlotId { pool: name.clone(), slot: number }));
            self.pool_event(&name, Event::Stop(which));
        }
        let text = count(slots.len(), if running { "stopped" } else { "stopped already" });
        Effect::When(Goal::Stopped(slots), text)
    }

    fn restart(&mut self, chosen: &BTreeMap<PoolName, Selection>) -> Effect {
        if self.ending != Ending::No {
            return Effect::Refused(refused(RefusalCode::Draining, "the node is drained", Some("`selfstart start` ends the drain")));
        }
        if let Some(refusal) = self.nothing_to_start() {
            return refusal;
        }
        let mut slots = BTreeMap::new();
        let mut pools = BTreeMap::new();
        for (name, which) in whiches(chosen) {
            if let Which::Slot(_) = which {
                slots.extend(
                    self.slots_of(&name, which)
                        .map(|(number, slot)| (SlotId { pool: name.clone(), slot: number }, Some(slot.last_start()))),
                );
            }
            self.pool_event(&name, Event::Restart { which, why: RestartWhy::Operator });
            if which == Which::All {
                if let Some(target) = self.pools.get(&name).and_then(|run| run.machine().target()) {
                    pools.insert(name, target.generation);
                }
            }
        }
        if slots.is_empty() {
            let text = format!("{} restarted", pools.keys().map(ToString::to_string).collect::<Vec<_>>().join(", "));
            return Effect::When(Goal::Generation(pools), text);
        }
        let text = count(slots.len(), "restarted");
        Effect::When(Goal::Ready(slots), text)
    }

    fn pause(&mut self, chosen: &BTreeMap<PoolName, Selection>, pause: bool) -> Effect {
        for (name, which) in whiches(chosen) {
            self.pool_event(&name, if pause { Event::Pause(which) } else { Event::Resume(which) });
        }
        let names: Vec<String> = whiches(chosen).map(|(name, which)| target_text(&name, which)).collect();
        Effect::Changed(format!("{} {}", names.join(", "), if pause { "paused: not minded, not touched" } else { "minded again" }))
    }

    fn scale(&mut self, name: PoolName, to: ScaleTo, reply: Reply, wait: bool) {
        if let Err(error) = command::find_pool(&name, &self.shapes()) {
            return reply.finish(unknown(&error));
        }
        let scale = match to {
            ScaleTo::Count(count) => Scale::To(count),
            ScaleTo::Config => Scale::Config,
        };
        self.pool_event(&name, Event::Scale(scale));
        let count = self.pools.get(&name).map_or(0, |run| run.machine().count());
        self.telling.scaled(&name, count);
        let workers = format!("{count} worker{}", if count == 1 { "" } else { "s" });
        let text = match self.deploying.machine().live() {
            None => format!("{name} will have {workers}: there is no release to start yet"),
            Some(_) if self.ending != Ending::No => format!("{name} will have {workers}: the node is drained until `selfstart start`"),
            Some(_) => format!("{name} has {workers}"),
        };
        self.pending(reply, wait, Goal::Count(name), text);
    }

    // ---- the node

    fn drain(&mut self, by: &str, reply: Reply, wait: bool) {
        match self.ending {
            Ending::Drained => return self.finish_saved(reply, Done::already("the node is drained already")),
            Ending::No => {
                self.ending = Ending::Draining;
                self.drained = true;
                self.dirty = true;
                self.rolling = None;
                self.telling.draining(by);
                self.deploy_event(DeployEvent::DrainBegun);
                self.drain_waves();
            }
            Ending::Draining | Ending::Leaving => {}
        }
        self.pending(reply, wait, Goal::Drained, "drained: everything is stopped, and the agent stays".into());
    }

    /// Stops the pools whose turn has come: a pool stops before those that it comes after.
    pub(crate) fn drain_waves(&mut self) {
        if !matches!(self.ending, Ending::Draining | Ending::Leaving) {
            return;
        }
        let needs = |(name, run): (&PoolName, &PoolRun)| drain::Needs { pool: name.clone(), after: run.settings.policy.after.clone() };
        let pools: Vec<drain::Needs> = self.pools.iter().map(needs).collect();
        let running = self.pools.iter().filter(|(_, run)| !run.machine().is_empty()).map(|(name, _)| name.clone()).collect();
        // Those without a worker too: one may be due after a backoff.
        let empty = self.pools.iter().filter(|(_, run)| run.machine().is_empty()).map(|(name, _)| name.clone());
        let now: Vec<PoolName> = drain::stoppable(&pools, &running).into_iter().chain(empty).collect();
        for name in now {
            self.drain_pool(&name);
        }
    }

    /// Has the keeper and us renewed.
    fn upgrade(&mut self, placed: bool, by: String, reply: Reply) {
        if !self.serving.upgrades.is_empty() {
            return reply.finish(refused(
                RefusalCode::Busy,
                "an upgrade is under way already",
                Some("`selfstart status` shows what comes of it"),
            ));
        }
        self.serving.upgrades.push(reply);
        self.ask(Ask::Upgrade { placed, by });
    }

    /// The keeper says what became of the last upgrade; again after each start of an agent.
    pub(crate) fn upgraded(&mut self, upgraded: Upgraded) {
        if !upgraded.told {
            self.telling.upgraded(&upgraded);
            self.ask(Ask::UpgradeNoted { number: upgraded.number });
        }
        for reply in std::mem::take(&mut self.serving.upgrades) {
            reply.finish(match upgraded.how {
                HowUpgraded::Done => Done::text(upgraded.text.clone()),
                HowUpgraded::Refused | HowUpgraded::WentBack => Failed::because(upgraded.text.clone()),
            });
        }
        self.upgraded = Some(upgraded);
    }

    /// A signal for the node.
    pub(crate) fn signalled(&mut self, number: i32) {
        match number {
            libc::SIGHUP => self.reload(None),
            libc::SIGUSR1 => {
                self.outputs.reopen();
                self.telling.reopened();
            }
            libc::SIGTERM | libc::SIGINT => {
                if self.ending == Ending::Leaving {
                    self.telling.warn("a second signal: what still runs is killed now");
                    for name in self.pools.keys().cloned().collect::<Vec<_>>() {
                        self.drain_pool(&name);
                        self.pool_event(&name, Event::KillNow(Which::All));
                    }
                } else {
                    self.ending = Ending::Leaving;
                    self.telling.leaving();
                    self.ask(Ask::Notify { state: "STOPPING=1\nSTATUS=draining".into() });
                    self.deploy_event(DeployEvent::Shutdown);
                    for key in self.errands.keys(|_| true) {
                        self.end_errand(&key);
                    }
                    self.drain_waves();
                }
            }
            _ => {}
        }
    }

    /// Ends a drain, or selfstart, when everything has stopped.
    pub(crate) fn see_end(&mut self) {
        let gone: Vec<PoolName> =
            self.pools.iter().filter(|(_, run)| run.leaving && run.machine().is_empty()).map(|(name, _)| name.clone()).collect();
        for name in gone {
            self.pools.remove(&name);
            self.dirty = true;
            if let Some(rolling) = &mut self.rolling {
                rolling.waiting.remove(&name);
            }
            self.rolled_out_if_all();
        }
        if self.any_worker() {
            return;
        }
        match self.ending {
            Ending::Draining => {
                self.ending = Ending::Drained;
                self.dirty = true;
                self.telling.drained();
                self.answer_pending();
            }
            Ending::Leaving
                if self.errands.is_empty()
                    && !self.onces.is_letting_go()
                    && !self.deploying.busy()
                    && !self.dirty
                    && !self.saving_state =>
            {
                self.telling.left();
                self.quit = Some(0);
            }
            Ending::No | Ending::Drained | Ending::Leaving => {}
        }
    }

    /// Answers whoever still waits, and sees that they hear it: who stopped the node must not look like a crash of it.
    pub(crate) async fn farewell(&mut self) {
        let pending = std::mem::take(&mut self.serving.pending).into_iter().map(|pending| pending.reply);
        let deploys = std::mem::take(&mut self.serving.deploys).into_values().map(|asked| asked.reply);
        for (_, reply, done) in std::mem::take(&mut self.serving.unsaved) {
            reply.finish(not_saved(&done.text, "selfstart ends"));
        }
        for reply in pending.chain(deploys) {
            let hint = Some("start it with `selfstart run`".to_owned());
            let reason = "selfstart was stopped before this was so".to_owned();
            reply.finish(Outcome::Failed(Failed { reason, hint, ..Failed::default() }));
        }
        // Lets the server end, once all has been read or has had its time.
        self.calls.close();
        while let Ok(call) = self.calls.try_recv() {
            call.reply.finish(refused(RefusalCode::Draining, "selfstart is ending", None));
        }
        let served = async {
            while let Some(worked) = self.works.join_next().await {
                if matches!(worked, Ok(Worked::Served)) {
                    break;
                }
            }
        };
        // Its own time is the same; what else goes on (a probe) has no end.
        let _in_vain = tokio::time::timeout(FAREWELL * 2, served).await;
    }

    // ---- configuration

    fn reload_plan(&mut self, peer: &Peer, reply: Reply) {
        match super::boot::load_usable(&self.at) {
            Ok(loaded) => {
                let changes = Settings::changes(&self.settings, &loaded.settings);
                let differences = Explained::of(&self.settings).differences(&loaded.explained);
                // As `launch`, which gives the environment to nobody else but the worker's own user.
                let ours = peer.uid == 0 || peer.uid == rustix::process::geteuid().as_raw();
                let env = if ours { EnvValues::Shown } else { EnvValues::Hidden };
                reply.finish(Done::facts(Facts::Changes(describe(&changes, &differences, env))));
            }
            Err(error) => reply.finish(refused(RefusalCode::Configuration, chain(&error), Some("nothing would be changed"))),
        }
    }

    /// Takes over a changed configuration; a broken one changes nothing, and says so until it is mended.
    /// `asked`: by an operator, who waits for the answer or not; `None`: by HUP.
    pub(crate) fn reload(&mut self, asked: Option<Reloader>) {
        if super::is_apart() {
            return self.reload_after_order(asked);
        }
        self.reload_ordered(asked, Ok(()));
    }

    /// As [`Self::reload`], once the keeper knows who may run; `order`: why it stays with who might so far.
    pub(super) fn reload_ordered(&mut self, asked: Option<Reloader>, order: Result<(), String>) {
        let (by, reply) = asked.map(|(by, reply, wait)| (by, (reply, wait))).unzip();
        let by = by.as_deref();
        let finish = |reply: Option<(Reply, bool)>, outcome: Outcome| {
            if let Some((reply, _)) = reply {
                reply.finish(outcome);
            }
        };
        let loaded = match super::boot::load_usable(&self.at) {
            Ok(loaded) => loaded,
            Err(error) => {
                let text = chain(&error);
                self.telling.config_refused(&text);
                self.notes =
                    vec![format!("the running configuration is kept, because `{}` cannot be used: {text}", self.at.config.display())];
                return finish(reply, refused(RefusalCode::Configuration, text, Some("the running configuration is kept")));
            }
        };
        let changes = Settings::changes(&self.settings, &loaded.settings);
        if let Some(key) = changes.needs_agent_restart.first() {
            let text = format!("`{key}` cannot be changed by a reload");
            self.telling.config_refused(&text);
            return finish(reply, refused(RefusalCode::Configuration, text, Some("restart selfstart to change it; nothing was changed")));
        }
        if let Err(why) = order {
            self.telling.config_refused(&why);
            self.notes = vec![format!("the running configuration is kept: {why}")];
            return finish(reply, refused(RefusalCode::Configuration, why, Some("the running configuration is kept")));
        }
        let mut readers = None;
        if changes.control_changed {
            // First of all, as only this can fail.
            let given = owner(&loaded.settings.control).map_err(|error| chain(&error));
            // Given already by the keeper where we could not.
            let given = if super::is_apart() {
                given
            } else {
                given.and_then(|owner| socket::give(&self.layout.control_socket(), owner).map_err(|error| chain(&error)).map(|()| owner))
            };
            if let Err(error) = &given {
                let text = format!("`control` cannot be put in force: {error}");
                self.telling.config_refused(&text);
                self.notes = vec![format!("the running configuration is kept: {text}")];
                return finish(reply, refused(RefusalCode::Configuration, text, Some("the running configuration is kept")));
            }
            self.serving.workers_may.store(loaded.settings.control.workers, Ordering::Relaxed);
            readers = given.ok().map(|owner| owner.gid);
        }
        self.notes = crate::sys::hidden::processes().map(|hidden| hidden.to_string()).into_iter().collect();
        let (good, bytes) = (self.layout.good_config(), loaded.bytes);
        self.work(move || Worked::ConfigKept(store::write_atomic(&good, &bytes).map_err(|error| chain(&error))));
        if changes.is_empty() {
            if self.settings.http.is_some() {
                // Its token or certificate may be another one.
                self.begin_http();
            }
            return finish(reply, Done::already("the configuration is as it was"));
        }
        let other_user = self.settings.user != loaded.settings.user;
        // Events are read by more people than an environment.
        let lines = describe(&changes, &Explained::of(&self.settings).differences(&loaded.explained), EnvValues::Hidden);
        let former = std::mem::replace(&mut self.settings, Arc::new(loaded.settings));
        if let Some(group) = readers {
            self.give_to_readers(group, &former);
        }
        if other_user {
            self.give_to_user();
        }
        self.deploying.policy = deploying::policy(&self.settings);
        let counts: BTreeMap<PoolName, u32> = self.pools.iter().map(|(name, run)| (name.clone(), run.machine().count())).collect();
        let failed_before = self.deploying.machine().last_error().map(|said| said.at);
        self.apply(&changes, by);
        self.triggers_reloaded(&former);
        self.telling.config_reloaded(&lines, by);
        if let Some((reply, wait)) = reply {
            let restarted: BTreeMap<PoolName, Generation> = changes
                .restart
                .iter()
                .filter_map(|name| Some((name.clone(), self.pools.get(name)?.machine().target()?.generation)))
                .collect();
            let text = format!("reloaded: {}", lines.iter().map(Change::named).collect::<Vec<_>>().join(", "));
            let mut goals: Vec<Goal> = changes.pools_removed.iter().cloned().map(Goal::Gone).collect();
            // On a drained node it is remembered for the time after.
            if self.ending == Ending::No {
                goals.push(Goal::Generation(restarted));
                let other_count = |name: &PoolName| self.pools.get(name).map(|run| run.machine().count()) != counts.get(name).copied();
                let counted = self.settings.pools.iter().map(|pool| &pool.policy.name);
                let counted = counted.filter(|name| changes.pools_added.contains(*name) || other_count(name));
                goals.extend(counted.cloned().map(Goal::Count));
                if changes.build_changed || changes.source_changed {
                    goals.push(Goal::Deployed(failed_before));
                }
            }
            self.pending(reply, wait, Goal::All(goals), text);
        }
    }

    /// Events and logs are read by who may ask the agent.
    fn give_to_readers(&mut self, group: Option<u32>, former: &Settings) {
        self.telling.set_readers(group);
        self.outputs.set_readers(group);
        if super::is_apart() {
            return;
        }
        let had = owner(&former.control).ok().and_then(|owner| owner.gid);
        let trouble = match (group, had) {
            (Some(group), _) => readers::give(&self.layout, &self.settings, group, None),
            // Only what the former group still has: what somebody gave to another by hand stays.
            (None, Some(had)) => readers::give(&self.layout, &self.settings, rustix::process::getegid().as_raw(), Some(had)),
            (None, None) => None,
        };
        if let Some(text) = trouble {
            self.telling.warn(&text);
            self.notes.push(text);
        }
    }

    /// What helpers and workers write must belong to who they are now.
    fn give_to_user(&mut self) {
        let owner = launch::who(self.settings.user.as_ref())
            .map(|user| user.map(|user| Owner { uid: user.credentials.uid, gid: user.credentials.gid }));
        match owner
            .map_err(|error| chain(&error))
            .and_then(|owner| Ok((owner, self.layout.create(owner.filter(|_| !super::is_apart())).map_err(|error| chain(&error))?)))
        {
            Ok((owner, said)) => {
                said.iter().for_each(|text| self.telling.warn(text));
                let release = &self.settings.release;
                let shared = release.linked_dirs.iter().chain(&release.linked_files);
                if let Some(text) = owner.and_then(|owner| self.layout.foreign(shared, owner)) {
                    self.telling.warn(&text);
                    self.notes.push(text);
                }
            }
            Err(error) => self.telling.warn(&format!("the folders below `root` could not be given to the new user: {error}")),
        }
    }

    fn apply(&mut self, changes: &Changes, by: Option<&str>) {
        let settings = self.settings.clone();
        let live = self.deploying.machine().live().map(|entry| (entry.id.clone(), entry.revision.clone()));
        for pool in &settings.pools {
            let name = &pool.policy.name;
            match self.pools.get_mut(name) {
                Some(run) => {
                    run.settings = Arc::new(pool.clone());
                    if std::mem::take(&mut run.leaving) {
                        run.waiting = live.clone();
                        if self.ending == Ending::No {
                            self.undrain_pool(name);
                        }
                    }
                    self.pool_event(name, Event::Reloaded);
                    if changes.restart.contains(name) {
                        self.pool_event(name, Event::Restart { which: Which::All, why: RestartWhy::Reload });
                    }
                }
                None => {
                    let mut run = PoolRun::new(pool.clone(), Pool::new(&pool.policy));
                    run.waiting = live.clone();
                    self.pools.insert(name.clone(), run);
                    if self.ending != Ending::No {
                        self.drain_pool(name);
                    }
                }
            }
        }
        self.redirect_outputs();
        for name in &changes.pools_removed {
            if let Some(run) = self.pools.get_mut(name) {
                run.leaving = true;
                run.waiting = None;
                self.drain_pool(name);
            }
        }
        if changes.build_changed || changes.source_changed {
            self.deploy_event(DeployEvent::Triggered(Asker { origin: Origin::Reload, by: by.map(str::to_owned) }));
        }
        self.dirty = true;
    }

    /// Lets what running workers write go where the configuration says now: one that runs for months must not fill a file that nobody reads.
    fn redirect_outputs(&mut self) {
        let sinks: Vec<_> = self
            .outputs
            .workers()
            .filter_map(|key| {
                let slot = key.parse::<WorkerKey>().ok()?.slot;
                let run = self.pools.get(&slot.pool).filter(|run| !run.leaving)?;
                Some((key.to_owned(), self.sink(&run.settings, &slot)))
            })
            .collect();
        let now = output::Now { mono: clock::now(), wall: clock::wall() };
        for (key, sink) in sinks {
            self.outputs.redirect(&key, &sink, now);
        }
    }

    // ---- facts

    fn releases(&mut self, reply: Reply) {
        let layout = self.layout.clone();
        let in_use = self.layout.clone();
        let entries = self.deploying.machine().book().entries().to_vec();
        let none = entries.is_empty();
        let mut slots: BTreeMap<i32, String> = BTreeMap::new();
        for (name, run) in &self.pools {
            slots.extend(run.machine().slots().filter_map(|(number, slot)| Some((slot.process()?.pid, format!("{name}/{number}")))));
        }
        let answer = move |uses: Result<prune::Uses, Outcome>| {
            let uses = match uses {
                Ok(uses) => uses,
                Err(outcome) => {
                    reply.finish(outcome);
                    return Worked::Nothing;
                }
            };
            let facts = entries.into_iter().rev().map(|entry| ReleaseStatus {
                size_bytes: prune::size(&layout.release(&entry.id)),
                used_by: uses
                    .by_release
                    .get(&entry.id)
                    .into_iter()
                    .flatten()
                    .map(|pid| slots.get(pid).cloned().unwrap_or_else(|| format!("pid {pid}")))
                    .collect(),
                state: match &entry.state {
                    selfstart_core::deploy::ReleaseState::Staged => ReleaseState::Staged,
                    selfstart_core::deploy::ReleaseState::Built => ReleaseState::Built,
                    selfstart_core::deploy::ReleaseState::Live => ReleaseState::Live,
                    selfstart_core::deploy::ReleaseState::Retired => ReleaseState::Retired,
                    selfstart_core::deploy::ReleaseState::Failed { .. } => ReleaseState::Failed,
                },
                why: match &entry.state {
                    selfstart_core::deploy::ReleaseState::Failed { why } => Some(why.clone()),
                    _ => None,
                },
                at: Timestamp(entry.staged_at),
                release: entry.id,
                revision: entry.revision,
            });
            reply.finish(Done::facts(Facts::Releases(facts.collect())));
            Worked::Nothing
        };
        if super::is_apart() && !none {
            self.with_uses(move |seen| answer(seen.map_err(|why| Failed::because(format!("who uses the releases cannot be seen: {why}")))));
        } else {
            self.work(move || answer(uses(&in_use, none)));
        }
    }

    fn launch_facts(&self, pool: Option<PoolName>, peer: u32) -> Outcome {
        let nothing = |what: &str, hint: &str| refused(RefusalCode::Nothing, what, Some(hint));
        let Some(live) = self.deploying.machine().live() else {
            return nothing("there is no release yet", "`selfstart status` shows how far the deploy is");
        };
        let name = match pool.or_else(|| self.settings.pools.first().map(|pool| pool.policy.name.clone())) {
            Some(name) => name,
            None => return nothing("the configuration has no pools", "`selfstart exec` runs as a pool's worker would"),
        };
        let run = match command::find_pool(&name, &self.shapes()) {
            Err(error) => return unknown(&error),
            Ok(_) => self.pools.get(&name),
        };
        let Some(run) = run else { return nothing("the pool is gone", "`selfstart status` lists them") };
        let generation = run.machine().target().map_or(Generation(0), |target| target.generation);
        let which = launch::Which { slot: SlotId { pool: name.clone(), slot: 0 }, start: StartNo(0), generation };
        let from = self.from(&live.id, &live.revision);
        match from.and_then(|from| {
            launch::worker(&self.settings, &self.known, &run.settings, &which, &from, String::new(), &crate::config::process_env)
        }) {
            Ok(start) => {
                let own = || {
                    // The kernel refuses this to nobody (getgroups(2)); without, what is run would have fewer rights, never more.
                    let groups = rustix::process::getgroups().unwrap_or_default().into_iter().map(rustix::process::Gid::as_raw).collect();
                    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw(), groups)
                };
                let (uid, gid, groups) = start.user.unwrap_or_else(own);
                if peer != 0 && peer != uid {
                    // The environment holds the worker's secrets.
                    return refused(
                        RefusalCode::Forbidden,
                        "only root and the worker's own user may see its environment",
                        Some("run it with sudo"),
                    );
                }
                Done::facts(Facts::Launch(Launch {
                    pool: name,
                    argv: start.argv,
                    env: start.env.into_iter().collect(),
                    cwd: start.cwd.into(),
                    uid,
                    gid,
                    groups,
                    nofile: start.nofile,
                    nice: start.nice,
                    umask: start.umask,
                }))
            }
            Err(error) => Failed::because(chain(&error)),
        }
    }
}

/// Who asks for a reload: a name, whom to answer, and whether that one waits for its end.
pub(crate) type Reloader = (String, Reply, bool);

/// Looks who uses each release: not seen is not unused. `none`: there is nothing that could be used, nor a folder perhaps.
fn uses(layout: &Layout, none: bool) -> Result<prune::Uses, Outcome> {
    match prune::uses(&layout.releases()) {
        Err(_) if none => Ok(prune::Uses::default()),
        seen => seen.map_err(|error| Failed::because(format!("who uses the releases cannot be seen: {}", chain(&error)))),
    }
}

/// What an operator's word about slots leads to.
enum Effect {
    /// It is done, and nothing of it lasts.
    Now(String),
    /// It is done, and must outlive the agent.
    Changed(String),
    Refused(Outcome),
    When(Goal, String),
}

fn whiches(chosen: &BTreeMap<PoolName, Selection>) -> impl Iterator<Item = (PoolName, Which)> + '_ {
    chosen.iter().flat_map(|(name, selection)| {
        let whiches: Vec<Which> = match selection {
            Selection::All => vec![Which::All],
            Selection::Only(slots) => slots.iter().map(|slot| Which::Slot(*slot)).collect(),
        };
        whiches.into_iter().map(move |which| (name.clone(), which))
    })
}

fn target_text(name: &PoolName, which: Which) -> String {
    match which {
        Which::All => name.to_string(),
        Which::Slot(slot) => format!("{name}/{slot}"),
    }
}

fn count(slots: usize, what: &str) -> String {
    format!("{slots} worker{} {what}", if slots == 1 { "" } else { "s" })
}

/// Whether two shown states are of one phase, so that only numbers differ.
fn same_phase(a: &str, b: &str) -> bool {
    a.split(' ').next() == b.split(' ').next()
}

fn refused(code: RefusalCode, reason: impl Into<String>, hint: Option<&str>) -> Outcome {
    Outcome::Refused(Refused { code, reason: reason.into(), hint: hint.map(str::to_owned) })
}

fn unknown(error: &TargetError) -> Outcome {
    refused(RefusalCode::UnknownTarget, error.to_string(), Some(&error.hint()))
}

/// Says what a reload changes. What pools have of `queue:` is said of them.
fn describe(changes: &Changes, differences: &[Difference], env: EnvValues) -> Vec<Change> {
    let change = |key: String, effect: &str, restarts: Vec<PoolName>| {
        let values = differences.iter().filter(|difference| part(difference) == key).map(|difference| {
            let (old, new) = difference.json(env);
            ValueChange { key: difference.key(), old, new, text: difference.text(env) }
        });
        Change { values: values.collect(), key, effect: effect.to_owned(), restarts }
    };
    let mut lines = Vec::new();
    for name in &changes.pools_added {
        lines.push(change(format!("pools.{name}"), "new: its workers are started", Vec::new()));
    }
    for name in &changes.pools_removed {
        lines.push(change(format!("pools.{name}"), "gone: its workers are stopped", Vec::new()));
    }
    for name in &changes.restart {
        lines.push(change(format!("pools.{name}"), "its workers are replaced, in the order of `update`", vec![name.clone()]));
    }
    for name in &changes.by_release {
        lines.push(change(format!("pools.{name}"), "its workers are replaced by ones of the new user with the new release", Vec::new()));
    }
    for name in &changes.policy_only {
        lines.push(change(
            format!("pools.{name}"),
            "minded otherwise, and logged as it says, from now on; running workers stay",
            Vec::new(),
        ));
    }
    for (changed, key, effect) in [
        (changes.build_changed, "build", "a new release of the same revision is made"),
        (changes.source_changed, "source", "fetched, and deployed if it is new"),
        (changes.retention_changed, "release", "counts from the next deploy on"),
        (changes.roles_changed, "roles", "pools and steps come and go by it, as is said of them"),
        (changes.attributes_changed, "attributes", "pools and steps come and go by it, as is said of them"),
        (changes.fleet_changed, "fleet", "counts from the next step on"),
        (changes.control_changed, "control", "in force from now on; who is connected stays so"),
        (changes.triggers_changed, "source", "triggers count as it says from now on"),
        (changes.http_changed, "http", "served as it says from now on; who is connected is cut off"),
        (changes.notify_changed, "notify", "counts for what happens from now on"),
        (changes.log_changed, "log", "counts for what is started from now on"),
    ] {
        if changed {
            lines.push(change(key.to_owned(), effect, Vec::new()));
        }
    }
    for key in &changes.needs_agent_restart {
        lines.push(change((*key).to_owned(), "cannot be changed by a reload: restart selfstart", Vec::new()));
    }
    lines
}

/// The part of the configuration that a reload takes as one, to which a value belongs.
fn part(difference: &Difference) -> String {
    match difference.path.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["pools", name, ..] => format!("pools.{name}"),
        // What makes another release of the same revision.
        ["user"] | ["release", "linked_dirs" | "linked_files"] => "build".to_owned(),
        [first, ..] => (*first).to_owned(),
        [] => String::new(),
    }
}

/// Who owns the control socket.
///
/// # Errors
/// When the configuration names somebody who is not there.
pub(crate) fn owner(control: &ControlSettings) -> Result<socket::Owner, users::UserError> {
    Ok(socket::Owner {
        uid: control.owner.as_deref().map(|name| users::user(name, None).map(|user| user.credentials.uid)).transpose()?,
        gid: control.group.as_deref().map(users::group_number).transpose()?,
    })
}

/// As [`owner`], for who has the settings; nobody when it cannot be told.
pub(crate) fn control_owner(settings: &Settings) -> Option<socket::Owner> {
    owner(&settings.control).ok()
}

/// Names a user. Asks the machine, which may take its time.
pub(crate) fn name_of(uid: u32) -> Option<String> {
    users::user(&uid.to_string(), None).ok().map(|user| user.name)
}

/// Judges who may speak: workers may not, whoever their user is, unless `control.workers` says so. Others are judged by the socket's mode.
pub(crate) fn gate(settings: &Arc<Settings>, serving: &Serving, keeper_pid: i32, groups: Option<&str>) -> Gate {
    let groups = groups.and_then(|path| cgroup::below_mount(Path::new(path)));
    let (workers, root) = (Arc::clone(&serving.workers_may), settings.root.display().to_string());
    Arc::new(move |peer: &Peer| {
        if workers.load(Ordering::Relaxed) {
            return Verdict::Welcome;
        }
        match who_asks(peer, keeper_pid, &root, groups.as_deref()) {
            Standing::Outsider => Verdict::Welcome,
            Standing::Worker => Verdict::Refused("workers may not speak to the agent (`control.workers` is false)".into()),
            Standing::Unseen => Verdict::Refused(
                "whether a worker asks cannot be seen now, and workers may not (`control.workers` is false); try again".into(),
            ),
        }
    })
}

/// What a peer is to the workers of this root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Certainly none of them, nor started by one.
    Outsider,
    /// One of them, or started by the keeper or by one of them.
    Worker,
    /// It could not be seen: it has ended, is executing a program, or we are out of something.
    Unseen,
}

/// Looks at who asks: whether it is in a worker's cgroup, where workers have some (`groups`), whether its environment names a worker of this
/// root, and whether the keeper is among its ancestors. What cannot be read is neither.
fn who_asks(peer: &Peer, keeper_pid: i32, root: &str, groups: Option<&str>) -> Standing {
    let Some(pid) = peer.pid.and_then(|pid| i32::try_from(pid.get()).ok()) else { return Standing::Unseen };
    let ours = |value: &str| value.split_once('@').is_some_and(|(_, of)| of == root);
    let mut next = pid;
    let mut seen: Vec<ProcessId> = Vec::new();
    // Deeper than any real chain.
    while seen.len() < 256 {
        match next {
            // First: in a container the keeper is process 1.
            pid if pid == keeper_pid => return Standing::Worker,
            0 | 1 => break,
            _ => {}
        }
        let Ok(stat) = process::stat(next) else { return Standing::Unseen };
        // A parent is older than its child: what is younger has the number of one that ended while we walked.
        if stat.zombie || seen.last().is_some_and(|child| child.start_ticks < stat.start_ticks) {
            return Standing::Unseen;
        }
        seen.push(stat.id(next));
        next = stat.ppid;
    }
    let name = process::look_for(pid, crate::keeper::protocol::KEY_VARIABLE);
    if let Some(groups) = groups {
        match cgroup::of(pid) {
            // Whatever it has made of its environment.
            Ok(group) if group.strip_prefix(groups).is_some_and(|rest| rest.starts_with('/') && rest[1..] != *cgroup::HOLDER) => {
                return Standing::Worker;
            }
            Ok(_) => {}
            Err(_) => return Standing::Unseen,
        }
    }
    // Who has ended meanwhile, whichever of them, may have been a worker's; its number may be a stranger's by now, and who had it for a
    // parent is the keeper's child. So the same ones must still be there, after everything else was looked at.
    let still = |id: &ProcessId| process::stat(id.pid).is_ok_and(|stat| stat.start_ticks == id.start_ticks && !stat.zombie);
    match name {
        Variable::Is(value) if ours(&value) => Standing::Worker,
        Variable::Unknown => Standing::Unseen,
        Variable::Is(_) | Variable::None if matches!(next, 0 | 1) && seen.iter().all(still) => Standing::Outsider,
        Variable::Is(_) | Variable::None => Standing::Unseen,
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::process::{Child, Command as Program, Stdio};

    use super::*;
    use crate::keeper::protocol::KEY_VARIABLE;
    use crate::sys::fault;

    fn peer(pid: u32) -> Peer {
        Peer { pid: NonZeroU32::new(pid), uid: 0, gid: 0 }
    }

    /// Starts one that waits, and waits until it has executed its program.
    fn start(command: &mut Program) -> Child {
        let child = command.stdin(Stdio::null()).spawn().expect("a program");
        let pid = i32::try_from(child.id()).expect("a pid");
        while !process::title(pid).is_ok_and(|title| title.starts_with(b"sleep\0")) {
            std::thread::yield_now();
        }
        child
    }

    #[test]
    fn who_uses_releases_is_said_or_why_it_cannot_be_seen() {
        let root = tempfile::tempdir().expect("a folder");
        let layout = Layout::new(root.path());
        assert!(uses(&layout, true).is_ok());
        let Err(Outcome::Failed(failed)) = uses(&layout, false) else { panic!("the folder is gone") };
        assert!(failed.reason.starts_with("who uses the releases cannot be seen: "), "{}", failed.reason);
        fs_err::create_dir(layout.releases()).expect("a folder");
        assert!(uses(&layout, false).is_ok());
    }

    #[test]
    fn only_who_is_certainly_no_worker_is_an_outsider() {
        let me = i32::try_from(std::process::id()).expect("a pid");
        let sleep = || {
            let mut command = Program::new("sleep");
            command.arg("1000").env_remove(KEY_VARIABLE);
            command
        };
        let mut plain = start(&mut sleep());
        let mut named = start(sleep().env(KEY_VARIABLE, "w/0#1:0000000001@/srv/x"));
        // A keeper that is none of theirs.
        const OTHER: i32 = 1 << 22;
        let who = |child: &Child, keeper: i32, root: &str| who_asks(&peer(child.id()), keeper, root, None);
        let seen = [who(&plain, OTHER, "/srv/x"), who(&plain, me, "/srv/x"), who(&named, OTHER, "/srv/x"), who(&named, OTHER, "/srv/y")];
        let blind = ["environ", "stat"].map(|what| {
            fault::set_proc(Some(what));
            let seen = [who(&plain, OTHER, "/srv/x"), who(&named, OTHER, "/srv/x")];
            fault::set_proc(None);
            seen
        });
        // One that has ended, not reaped, and reaped; one in a namespace that is not seen from here.
        plain.kill().expect("ours");
        while !process::stat(i32::try_from(plain.id()).expect("a pid")).expect("not reaped").zombie {
            std::thread::yield_now();
        }
        let zombie = who(&plain, OTHER, "/srv/x");
        plain.wait().expect("its end");
        let gone = who(&plain, OTHER, "/srv/x");
        named.kill().expect("ours");
        named.wait().expect("its end");
        assert_eq!(seen, [Standing::Outsider, Standing::Worker, Standing::Worker, Standing::Outsider]);
        assert_eq!(blind, [[Standing::Unseen; 2]; 2]);
        assert_eq!([zombie, gone, who_asks(&Peer { pid: None, ..peer(1) }, OTHER, "/srv/x", None)], [Standing::Unseen; 3]);
    }

    #[test]
    fn who_is_in_a_workers_cgroup_is_a_worker_whatever_its_environment() {
        let Some(own) = cgroup::tests::Own::make("gate") else { return eprintln!("skipped: no cgroup v2 to write to") };
        let groups = cgroup::below_mount(own.0.path()).expect("below the mount");
        let mut hidden = start(Program::new("sleep").arg("1000").env_clear());
        let pid = i32::try_from(hidden.id()).expect("a pid");
        let who = |groups| who_asks(&peer(hidden.id()), 1 << 22, "/srv/x", groups);
        let before = who(Some(&groups));
        own.0.make("w.0#1", &[]).and_then(|group| group.take(pid)).expect("moved");
        let (inside, blind, beside) = (who(Some(&groups)), who(None), who(Some(&groups[..groups.len() - 1])));
        own.0.make(cgroup::HOLDER, &[]).and_then(|group| group.take(pid)).expect("moved");
        let holder = who(Some(&groups));
        hidden.kill().expect("ours");
        hidden.wait().expect("its end");
        use Standing::{Outsider, Worker};
        assert_eq!([before, inside, blind, beside, holder], [Outsider, Worker, Outsider, Outsider, Outsider]);
    }
}
