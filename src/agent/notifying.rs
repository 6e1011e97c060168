//! `notify:`: takes what was told to those who are to hear of it. Each message is an errand of the keeper, so a receiver that hangs holds up
//! nothing here, and TLS is never in the agent.

use std::collections::VecDeque;

use selfstart_core::date::Timestamp;
use selfstart_core::deploy::Jitter;
use selfstart_core::notify::{Effect, Event, Receiver};
use selfstart_core::time::{MonoTime, WallTime};
use serde_json::{Value, json};

use super::deploying::chain;
use super::errands::{Over, What};
use super::launch;
use super::run::Agent;
use crate::config::QUARANTINED;
use crate::config::settings::{NotifySettings, NotifyTo};
use crate::keeper::protocol::{Ask, Start};
use crate::sys::clock;
use crate::sys::process::Ended;
use crate::telling::Happening;
use crate::telling::notify::{Post, TRY_TIMEOUT, VERB};

/// What the loop has not taken yet; it takes all in each turn.
const UNTAKEN_MAX: usize = 1000;

/// What was told and may be worth a message.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    on: bool,
    told: VecDeque<(WallTime, Happening)>,
}

impl Outbox {
    pub(crate) fn new(on: bool) -> Self {
        Self { on, told: VecDeque::new() }
    }

    pub(crate) fn put(&mut self, at: WallTime, happening: &Happening) {
        if self.on && self.told.len() < UNTAKEN_MAX {
            self.told.push_back((at, happening.clone()));
        }
    }
}

/// Who is told.
#[derive(Debug, Default)]
pub(crate) struct Notifying {
    receivers: Vec<(NotifySettings, u64, Receiver<Value>)>,
    next: u64,
}

impl Notifying {
    pub(crate) fn new(settings: &[NotifySettings]) -> Self {
        let mut notifying = Self::default();
        notifying.reload(settings);
        notifying
    }

    /// Those who stay keep what waits for them.
    pub(super) fn reload(&mut self, settings: &[NotifySettings]) {
        let mut former = std::mem::take(&mut self.receivers);
        for entry in settings {
            let known = former.iter().position(|(it, ..)| it == entry);
            let receiver = known.map(|at| former.swap_remove(at)).unwrap_or_else(|| {
                self.next += 1;
                (entry.clone(), self.next, Receiver::default())
            });
            self.receivers.push(receiver);
        }
    }

    pub(super) fn next_deadline(&self) -> Option<MonoTime> {
        self.receivers.iter().filter_map(|(.., receiver)| receiver.next_deadline()).min()
    }
}

/// Whether these are to hear of it.
fn wanted(settings: &NotifySettings, happening: &Happening) -> bool {
    let kind = happening.kind.as_str();
    let quarantined = kind.ends_with(QUARANTINED) || happening.verdict.as_deref() == Some(QUARANTINED);
    settings.on.contains(kind) || (quarantined && settings.on.contains(QUARANTINED))
}

impl Agent {
    /// After each turn: what was told in it is taken to who is to hear of it.
    pub(super) fn settle_notify(&mut self) {
        for (at, happening) in std::mem::take(&mut self.telling.outbox().told) {
            let message = self.message(at, &happening);
            let mut incident = format!("{} {:?} {:?}", happening.kind, happening.pool, happening.slot);
            if happening.kind.as_str().starts_with("deploy") {
                // Of each revision that fails people want to hear.
                let revision = self.deploying.machine().fetched().map(|stamp| stamp.revision.to_string());
                incident.push_str(&revision.unwrap_or_default());
            }
            let numbers: Vec<u64> = self.notifying.receivers.iter().filter(|(to, ..)| wanted(to, &happening)).map(|it| it.1).collect();
            for number in numbers {
                self.notify_event(number, Event::Happened { incident: incident.clone(), message: message.clone() });
            }
        }
    }

    fn message(&self, at: WallTime, happening: &Happening) -> Value {
        let mut message = happening.more.clone();
        let fields = json!({
            "schema": 1, "app": self.settings.app, "node": super::showing::machine_id(), "at": Timestamp(at).to_string(),
            "kind": happening.kind.as_str(), "pool": happening.pool.as_ref().map(ToString::to_string), "slot": happening.slot,
            "verdict": happening.verdict, "text": happening.text,
        });
        if let Value::Object(fields) = fields {
            message.extend(fields.into_iter().filter(|(_, value)| !value.is_null()));
        }
        Value::Object(message)
    }

    fn notify_event(&mut self, number: u64, event: Event<Value>) {
        let jitter = Jitter::new(fastrand::u16(0..=1000));
        let Some((settings, _, receiver)) = self.notifying.receivers.iter_mut().find(|it| it.1 == number) else { return };
        let effects = receiver.step(event, clock::now(), jitter);
        let to = settings.to.clone();
        let shown = match &to {
            NotifyTo::Webhook(url) => format!("webhook {url}"),
            NotifyTo::Command(words) => format!("command `{}`", words.join(" ")),
        };
        for effect in effects {
            match effect {
                Effect::Send { mut message, repeated, dropped } => {
                    for (name, count) in [("repeated", repeated), ("dropped", dropped)] {
                        if let (Value::Object(fields), 1..) = (&mut message, count) {
                            fields.insert(name.to_owned(), count.into());
                        }
                    }
                    if let Err(text) = self.begin_notify(number, &to, &message) {
                        self.notify_event(number, Event::Failed { text });
                    }
                }
                Effect::TellUnreached { text } => self.telling.warn(&format!("notify, {shown}: {text}; it is tried again")),
                Effect::TellGivenUp { text } => self.telling.warn(&format!("notify, {shown}: a message is let go: {text}")),
            }
        }
    }

    fn begin_notify(&mut self, number: u64, to: &NotifyTo, message: &Value) -> Result<(), String> {
        let body = message.to_string();
        let own = launch::own_helper(&self.settings, &self.known, VERB, String::new(), &super::deploying::proxies());
        let own = own.map_err(|error| chain(&error))?;
        let (start, input) = match to {
            NotifyTo::Webhook(url) => {
                let env = |name: &str| std::env::var(name).ok();
                let url = url.resolve("notify[].webhook", &env).map_err(|error| chain(&error))?.expose().to_owned();
                (own, serde_json::to_string(&Post { url, body }).map_err(|error| error.to_string())?)
            }
            NotifyTo::Command(words) => (launch::command_helper(own, words), body + "\n"),
        };
        let input = crate::sys::memory_file(input.as_bytes()).map_err(|error| error.to_string())?;
        let key = self.errands.begin("notify", What::Notify { number }, Some(clock::now() + TRY_TIMEOUT * 2));
        let start = Box::new(Start { key, ..start });
        self.ask_with(Ask::SpawnIn { start, settings: Vec::new() }, Some(input));
        Ok(())
    }

    /// A try to send a message is over.
    pub(super) fn notify_over(&mut self, number: u64, over: &Over) {
        let event = match (over.how, over.timed_out) {
            (Some(Ended::Code(0)), false) => Event::Sent,
            (_, true) => Event::Failed { text: "it took too long".into() },
            (how, _) => {
                let said = over.last_message.clone().or_else(|| over.last_lines.last().cloned());
                Event::Failed { text: said.unwrap_or_else(|| super::deploying::how(how)) }
            }
        };
        self.notify_event(number, event);
    }

    pub(super) fn notify_deadline(&mut self, now: MonoTime) {
        let due = self.notifying.receivers.iter().filter(|it| it.2.next_deadline().is_some_and(|at| at <= now));
        for number in due.map(|it| it.1).collect::<Vec<_>>() {
            self.notify_event(number, Event::DeadlineReached);
        }
    }
}
