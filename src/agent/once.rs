//! Carries out what the machine of a lease decides: a build step that one node of the fleet does for all (`once_per: revision`).

use std::collections::BTreeMap;

use selfstart_core::deploy::{Blame, Event as DeployEvent, Fingerprint};
use selfstart_core::id::{ReleaseId, Revision};
use selfstart_core::lease::{Effect, Event, Once, StepEnd, Token};
use selfstart_core::time::MonoTime;
use tokio::task::AbortHandle;

use super::deploying::chain;
use super::errands::Over;
use super::run::{Agent, Ending, Worked};
use crate::config::settings::BuildStep;
use crate::fleet::{self, Asker, Listening, Shared};
use crate::sys::clock;
use crate::sys::process::Ended;

/// So many are kept that may still hear a late answer; the oldest are forgotten, and what they might hold ends by itself.
const KEPT: usize = 8;

/// The steps that are asked for, held or waited for; one at most goes on, the others are being let go.
#[derive(Debug, Default)]
pub(crate) struct Onces {
    runs: BTreeMap<u64, OnceRun>,
    next: u64,
    /// Leases that are being let go.
    leaving: usize,
}

#[derive(Debug)]
struct OnceRun {
    machine: Option<Once>,
    shared: Shared,
    release: ReleaseId,
    revision: Revision,
    step: u32,
    build: Fingerprint,
    /// Listens already, from before it was asked.
    news: Option<Listening>,
    listener: Option<AbortHandle>,
}

/// What came of an effect: for which, and what.
#[derive(Debug)]
pub(crate) struct Leased {
    number: u64,
    event: Event,
    news: Option<Listening>,
}

impl Onces {
    pub(crate) fn next_deadline(&self) -> Option<MonoTime> {
        self.runs.values().filter_map(|run| run.machine.as_ref()?.next_deadline()).min()
    }

    /// Whether others would wait in vain for a lease if this agent ended now.
    pub(crate) fn is_letting_go(&self) -> bool {
        self.leaving > 0
    }

    /// The one of this step that has not answered.
    fn of(&self, release: &ReleaseId, step: u32) -> Option<u64> {
        let of = |run: &OnceRun| run.release == *release && run.step == step && run.machine.as_ref().is_some_and(|once| !once.is_over());
        self.runs.iter().rev().find_map(|(number, run)| of(run).then_some(*number))
    }

    /// Forgets the oldest of those that are over.
    fn forget(&mut self) {
        let over = |run: &OnceRun| run.machine.as_ref().is_some_and(Once::is_over);
        let too_many = self.runs.len().saturating_sub(KEPT);
        let oldest: Vec<u64> = self.runs.iter().filter(|(_, run)| over(run)).map(|(number, _)| *number).take(too_many).collect();
        oldest.iter().for_each(|number| drop(self.runs.remove(number)));
    }
}

impl Agent {
    /// Begins a step that is done once, if it is one and there is a fleet; false: it is begun like any.
    pub(crate) fn begin_once(
        &mut self,
        release: &ReleaseId,
        revision: &Revision,
        step: u32,
        build: &Fingerprint,
        wanted: &BuildStep,
    ) -> bool {
        let (Some(_), Some(redis)) = (wanted.once, self.settings.fleet.as_ref().map(|fleet| &fleet.redis)) else { return false };
        let env = |name: &str| std::env::var(name).ok();
        let asker = Asker { holder: fleet::holder(&self.settings.root), node: super::showing::machine_id(), may: wanted.is_here };
        let shared = redis
            .resolve("fleet.redis", &env)
            .map_err(|error| chain(&error))
            .and_then(|url| Shared::step(url.expose(), &self.settings.app, revision, &wanted.run, asker).map_err(|error| chain(&error)));
        let shared = match shared {
            Ok(shared) => shared,
            Err(what) => {
                let (release, last_lines) = (release.clone(), Vec::new());
                self.deploy_event(DeployEvent::StepFailed { release, step, blame: Blame::Machine, what, last_lines });
                return true;
            }
        };
        let (machine, effects) = Once::begin(fleet::policy(), self.deploying.machine().is_forced());
        self.onces.next += 1;
        let number = self.onces.next;
        let (release, revision, build) = (release.clone(), revision.clone(), build.clone());
        let run = OnceRun { machine: Some(machine), shared, release, revision, step, build, news: None, listener: None };
        self.onces.runs.insert(number, run);
        self.onces.forget();
        self.carry_out_once(number, effects);
        true
    }

    /// The build gives way, or its time is over; whether the step was one of those here.
    pub(crate) fn cancel_once(&mut self, release: &ReleaseId, step: u32) -> bool {
        let number = self.onces.of(release, step);
        if let Some(number) = number {
            self.once_event(number, Event::Cancelled);
        }
        number.is_some()
    }

    /// A step is over here, which may be done for the whole fleet; `over`: `None` if it could not be begun.
    pub(crate) fn step_over_for_all(&mut self, over: Option<&Over>, event: DeployEvent) {
        let (DeployEvent::StepDone { release, step } | DeployEvent::StepFailed { release, step, .. }) = &event else {
            return self.deploy_event(event);
        };
        let Some(number) = self.onces.of(release, *step) else { return self.deploy_event(event) };
        let end = match event {
            DeployEvent::StepFailed { blame, what, last_lines, .. } => {
                let blame = if over.is_some_and(|over| self.is_no_verdict(over)) { Blame::Machine } else { blame };
                StepEnd::Failed { blame, what, last_lines }
            }
            _ => StepEnd::Done,
        };
        self.once_event(number, Event::StepEnded(end));
    }

    /// Who ends a machine sends signals to all of it: that a step ended by one says nothing to the fleet.
    fn is_no_verdict(&self, over: &Over) -> bool {
        let by_signal = match over.how {
            Some(Ended::Signal { number, .. }) => [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGKILL].contains(&number),
            _ => false,
        };
        !over.timed_out && (self.ending == Ending::Leaving || by_signal && !over.ended_by_us)
    }

    /// An effect has come to something.
    pub(crate) fn leased(&mut self, leased: Leased) {
        let Leased { number, event, news } = leased;
        if let Some(run) = self.onces.runs.get_mut(&number) {
            run.news = news;
        }
        self.once_event(number, event);
    }

    /// A lease was let go, or ends by itself.
    pub(crate) fn let_go(&mut self) {
        self.onces.leaving = self.onces.leaving.saturating_sub(1);
    }

    pub(crate) fn once_deadlines(&mut self, now: MonoTime) {
        let due = |run: &OnceRun| run.machine.as_ref().and_then(Once::next_deadline).is_some_and(|at| at <= now);
        let due: Vec<u64> = self.onces.runs.iter().filter(|(_, run)| due(run)).map(|(number, _)| *number).collect();
        for number in due {
            self.once_event(number, Event::DeadlineReached);
        }
    }

    fn once_event(&mut self, number: u64, event: Event) {
        let Some(run) = self.onces.runs.get_mut(&number) else { return };
        let Some(machine) = run.machine.take() else { return };
        let (machine, effects) = machine.step(event, clock::now());
        run.machine = Some(machine);
        self.carry_out_once(number, effects);
    }

    fn carry_out_once(&mut self, number: u64, effects: Vec<Effect>) {
        for effect in effects {
            let Some(run) = self.onces.runs.get_mut(&number) else { return };
            let (release, step) = (run.release.clone(), run.step);
            match effect {
                Effect::Start { token } => self.begin_held(number, token),
                Effect::End => self.end_step(&release, step),
                Effect::StopListening => {
                    if let Some(listener) = run.listener.take() {
                        listener.abort();
                    }
                }
                Effect::Answer(StepEnd::Done) => self.deploy_event(DeployEvent::StepDone { release, step }),
                Effect::Answer(StepEnd::Failed { blame, what, last_lines }) => {
                    self.deploy_event(DeployEvent::StepFailed { release, step, blame, what, last_lines });
                }
                Effect::Tell(news) => {
                    self.telling.once(&release, step, &news);
                    self.deploying.last_line = Some(news.to_string());
                }
                effect => self.ask_fleet(number, effect),
            }
        }
    }

    /// It is ours: begins the step, as the configuration has it that asked for it.
    fn begin_held(&mut self, number: u64, token: Token) {
        let Some(run) = self.onces.runs.get(&number) else { return };
        let (release, revision, step) = (run.release.clone(), run.revision.clone(), run.step);
        if run.build != self.deploying.policy.build || self.ending == Ending::Leaving {
            let what = if self.ending == Ending::Leaving { "selfstart ends" } else { "the configuration has changed" };
            let end = StepEnd::Failed { blame: Blame::Machine, what: what.to_owned(), last_lines: Vec::new() };
            return self.once_event(number, Event::StepEnded(end));
        }
        self.run_step(release, revision, step, Some(token));
    }

    /// Begins what Redis answers.
    fn ask_fleet(&mut self, number: u64, effect: Effect) {
        let Some(run) = self.onces.runs.get_mut(&number) else { return };
        let shared = run.shared.clone();
        let told = move |event, news| Worked::Leased(Leased { number, event, news });
        match effect {
            Effect::Take { force } => {
                self.works.spawn(async move {
                    let (event, news) = shared.take(force).await;
                    told(event, news)
                });
            }
            Effect::Listen => {
                let news = run.news.take();
                run.listener = Some(self.works.spawn(async move {
                    fleet::listen(news).await;
                    told(Event::News, None)
                }));
            }
            Effect::Renew { token } => {
                self.works.spawn(async move { told(shared.renew(token).await, None) });
            }
            Effect::Write { token, verdict } => {
                self.works.spawn(async move { told(shared.finish(token, &verdict).await, None) });
            }
            Effect::Release { token } => {
                self.onces.leaving += 1;
                self.works.spawn(async move {
                    shared.release(token).await;
                    Worked::LetGo
                });
            }
            Effect::Start { .. } | Effect::End | Effect::StopListening | Effect::Answer(_) | Effect::Tell(_) => {}
        }
    }
}
