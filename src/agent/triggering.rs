//! Carries out what the machine of triggers decides, and answers webhooks once what they said is on disk.

use std::collections::VecDeque;

use selfstart_core::deploy::{Asker, Event as DeployEvent, Jitter, Origin, RetryPolicy};
use selfstart_core::time::{Human, MonoTime};
use selfstart_core::trigger::{self, Effect, Event, Policy, Saved, Triggers};
use tokio::sync::{mpsc, oneshot};

use super::deploying::chain;
use super::errands::{Over, What};
use super::run::{Agent, Ending, TRY_AGAIN, Worked};
use super::store;
use crate::config::settings::{Settings, WantedRef};
use crate::http::{Ask, Counts, How, Http, Snapshot};
use crate::release::git;
use crate::release::layout::Layout;
use crate::sys::clock;

/// A secret or a certificate that http could not be begun with is read again after that.
const HTTP_AGAIN: std::time::Duration = std::time::Duration::from_secs(5);

/// The way back to a webhook's sender.
type Reply = oneshot::Sender<Result<(), String>>;

/// Triggers of this node that no operator waits for.
#[derive(Debug)]
pub(crate) struct Triggering {
    machine: Triggers,
    /// Effects that wait for the one before them to be saved.
    queue: VecDeque<Effect>,
    saving: bool,
    /// How many writes were wanted, and how many are over.
    wanted: u64,
    written: u64,
    /// Who is answered when that many writes are over.
    unanswered: Vec<(u64, Reply)>,
    /// Why what is on disk is older than what was decided; `None`: it is not.
    unsaved: Option<String>,
    /// Whether the look that is under way is only for `source.supersede`, and no poll.
    only_to_supersede: bool,
    /// Whether `source.credentials.askpass` is asked for a look, which begins with its answer.
    pub(super) asking: bool,
    http: Option<Http>,
    http_trouble: Option<String>,
    http_again: Option<MonoTime>,
    pub(super) asks: mpsc::Receiver<Ask>,
    to_loop: mpsc::Sender<Ask>,
}

impl Triggering {
    /// Takes up what a former agent left; what cannot be read is told, and looked at as if something had waited: a look costs little.
    pub(crate) fn recall(layout: &Layout) -> Self {
        let path = layout.journal().join(FILE);
        let saved = match store::load::<Saved>(&path, store::SCHEMA_NOW, |_, fields| fields) {
            Ok(store::Loaded::State(saved)) => saved,
            Ok(store::Loaded::Nothing) => Saved::default(),
            Ok(store::Loaded::Bad { .. }) | Err(_) => Saved { waiting: Some(Origin::Boot), ..Saved::default() },
        };
        let (to_loop, asks) = mpsc::channel(crate::http::ASKS);
        Self {
            machine: Triggers::new(saved),
            queue: VecDeque::new(),
            saving: false,
            wanted: 0,
            written: 0,
            unanswered: Vec::new(),
            unsaved: None,
            only_to_supersede: false,
            asking: false,
            http: None,
            http_trouble: None,
            http_again: None,
            asks,
            to_loop,
        }
    }

    /// Why http is not as the configuration says; `None`: it is.
    pub(super) fn http_trouble(&self) -> Option<String> {
        self.http_trouble.clone().or_else(|| self.http.as_ref().and_then(Http::trouble))
    }

    /// Why what waits would be forgotten if the agent ended; `None`: it would not.
    pub(super) fn unsaved(&self) -> Option<&str> {
        self.unsaved.as_deref()
    }
}

/// Beside the journal of deploys.
const FILE: &str = "triggers.json";

impl Agent {
    fn trigger_policy(&self) -> Policy {
        let triggers = &self.settings.triggers;
        // A drained node takes no deploy, and a pinned revision has no head that could change.
        let asks = self.ending == Ending::No && !matches!(self.settings.source.wanted, WantedRef::Revision(_));
        Policy { debounce: triggers.debounce, poll: triggers.poll.filter(|_| asks), retry: RetryPolicy::default() }
    }

    /// The next moment at which the machine of triggers wants to be woken.
    pub(super) fn trigger_deadline(&self) -> Option<MonoTime> {
        self.triggering.machine.next_deadline(&self.trigger_policy())
    }

    /// Gives the machine of triggers one event, and carries out what it wants.
    pub(super) fn trigger_event(&mut self, event: Event) {
        let machine = std::mem::take(&mut self.triggering.machine);
        let jitter = Jitter::new(fastrand::u16(0..=1000));
        let (machine, effects) = trigger::step(machine, event, clock::now(), jitter, &self.trigger_policy());
        self.triggering.machine = machine;
        for effect in effects {
            self.want_trigger(effect);
        }
        self.carry_out_triggers();
    }

    fn want_trigger(&mut self, effect: Effect) {
        if matches!(effect, Effect::Save(_)) {
            self.triggering.wanted += 1;
        }
        self.triggering.queue.push_back(effect);
    }

    fn carry_out_triggers(&mut self) {
        while !self.triggering.saving {
            let Some(effect) = self.triggering.queue.pop_front() else { break };
            match effect {
                Effect::Save(saved) => {
                    self.triggering.saving = true;
                    let path = self.layout.journal().join(FILE);
                    self.work(move || Worked::TriggersSaved(store::save(&path, store::SCHEMA_NOW, &saved).map_err(|error| chain(&error))));
                }
                Effect::Deploy(origin) => {
                    self.deploy_event(DeployEvent::Triggered(Asker::from(origin)));
                    self.look_to_supersede();
                }
                Effect::Look => {
                    // Whatever is asked already, its answer is a poll's, too.
                    self.triggering.only_to_supersede = false;
                    if let Err(text) = self.begin_look() {
                        self.look_failed(text);
                    }
                }
                Effect::TellUnreached { text, again_in } => self.telling.poll_failed(&text, &Human::rough(again_in).to_string()),
                Effect::TellBack => self.telling.poll_back(),
            }
        }
    }

    /// What waits is on disk, or it is not: then it is done all the same, and who sent it is told to send it again.
    pub(super) fn triggers_saved(&mut self, result: Result<(), String>) {
        self.triggering.saving = false;
        self.triggering.written += 1;
        if let Err(error) = &result {
            if self.triggering.unsaved.is_none() {
                self.telling.warn(&format!("what triggers a deploy could not be written down: {error}"));
            }
            self.save_again.get_or_insert_with(|| clock::now() + TRY_AGAIN);
        }
        self.triggering.unsaved = result.as_ref().err().cloned();
        let written = self.triggering.written;
        for (needed, reply) in std::mem::take(&mut self.triggering.unanswered) {
            if needed > written {
                self.triggering.unanswered.push((needed, reply));
            } else {
                // Who is gone sends it again, or knows it to be on its way.
                let _gone = reply.send(result.clone());
            }
        }
        self.carry_out_triggers();
    }

    /// Tries again to write what could not be written.
    pub(super) fn save_triggers_again(&mut self) {
        if self.triggering.unsaved.is_some() && !self.triggering.saving && self.triggering.queue.is_empty() {
            self.want_trigger(Effect::Save(self.triggering.machine.saved()));
            self.carry_out_triggers();
        }
    }

    /// After each turn: what was given to the machine of deploys and is on its disk need not be remembered here.
    pub(super) fn settle_triggers(&mut self) {
        let ours = &self.triggering;
        let idle = !ours.saving && ours.queue.is_empty();
        if ours.machine.is_given() && idle && !self.deploying.busy() && self.deploying.unsaved().is_none() {
            self.trigger_event(Event::Safe);
        }
    }

    /// What http wants.
    pub(super) fn http_asks(&mut self, ask: Ask) {
        match ask {
            Ask::Snapshot(reply) => {
                let counts: Counts = self.telling.counts();
                let _gone = reply.send(Snapshot { status: std::sync::Arc::new(self.status()), counts });
            }
            Ask::Push(reply) => {
                self.trigger_event(Event::Arrived(Origin::Webhook));
                if self.triggering.unsaved.is_some() {
                    self.save_triggers_again();
                }
                if self.triggering.written < self.triggering.wanted {
                    self.triggering.unanswered.push((self.triggering.wanted, reply));
                } else {
                    let _gone = reply.send(self.triggering.unsaved.clone().map_or(Ok(()), Err));
                }
            }
        }
    }

    /// With `source.supersede`, asks what the source has now: a build of something else is no longer wanted. If that cannot be told the build
    /// goes on, and the trigger has its turn after it.
    fn look_to_supersede(&mut self) {
        if !self.settings.source.supersede || self.deploying.machine().build_step().is_none() {
            return;
        }
        let looks = self.triggering.asking || !self.errands.keys(|what| matches!(what, What::Look)).is_empty();
        if !looks && self.begin_look().is_ok() {
            self.triggering.only_to_supersede = true;
        }
    }

    /// The credentials of a look were asked for.
    pub(super) fn look_asked(&mut self, request: Result<Box<git::Fetch>, String>) {
        self.triggering.asking = false;
        if self.ending == Ending::Leaving {
            return;
        }
        if let Err(text) = request.and_then(|request| self.look_now(*request)) {
            self.look_failed(text);
        }
    }

    /// A look did not begin: that is the poll's to say, if it was one.
    fn look_failed(&mut self, text: String) {
        if !std::mem::take(&mut self.triggering.only_to_supersede) {
            self.trigger_event(Event::LookFailed { text });
        }
    }

    /// A look at the source is over.
    pub(super) fn look_over(&mut self, over: &Over) {
        let looked = super::deploying::looked(over);
        if let Ok(Some(revision)) = &looked {
            self.deploy_event(DeployEvent::Seen { revision: revision.clone() });
        }
        if std::mem::take(&mut self.triggering.only_to_supersede) {
            return;
        }
        let event = match looked {
            Ok(Some(revision)) => {
                let fetched = self.deploying.machine().fetched().map(|stamp| stamp.revision.clone());
                Event::Seen { revision, fetched, configured: self.deploying.machine().configured().cloned() }
            }
            Ok(None) => Event::LookFailed { text: "the source does not say what its head is".into() },
            Err(text) => Event::LookFailed { text },
        };
        self.trigger_event(event);
    }

    /// Serves http as the configuration says. What goes on is ended when it is known that something else can take its place; a secret or a
    /// certificate that is being renewed is read again soon.
    pub(super) fn begin_http(&mut self) {
        self.triggering.http_again = None;
        let begun = How::read(&self.settings).and_then(|how| {
            self.triggering.http = None;
            how.map(|how| Http::begin(how, self.triggering.to_loop.clone())).transpose()
        });
        match begun {
            Ok(http) => (self.triggering.http, self.triggering.http_trouble) = (http, None),
            Err(error) => {
                let goes_on = if self.triggering.http.is_some() { "http is served as before" } else { "http is not served" };
                let text = format!("{goes_on}: {}", chain(&error));
                if self.triggering.http_trouble.as_ref() != Some(&text) {
                    self.telling.warn(&format!("{text}; tried again every {} s", HTTP_AGAIN.as_secs()));
                }
                self.triggering.http_trouble = Some(text);
                self.triggering.http_again = Some(clock::now() + HTTP_AGAIN);
            }
        }
    }

    /// When http is to be begun again, if it could not be.
    pub(super) fn http_again(&self) -> Option<MonoTime> {
        self.triggering.http_again
    }

    /// A reload changed what triggers, or how it comes in.
    pub(super) fn triggers_reloaded(&mut self, former: &Settings) {
        if former.notify != self.settings.notify {
            self.notifying.reload(&self.settings.notify);
            *self.telling.outbox() = super::notifying::Outbox::new(!self.settings.notify.is_empty());
        }
        let inputs = |settings: &Settings| (settings.http.clone(), settings.triggers.webhook.clone(), settings.source.wanted.clone());
        // With `http` in the configuration also if nothing of it changed: a token or certificate may have.
        if inputs(former) != inputs(&self.settings) || self.settings.http.is_some() {
            self.begin_http();
        }
        if former.triggers != self.settings.triggers || former.source != self.settings.source {
            self.trigger_event(Event::Reloaded);
        }
    }
}
