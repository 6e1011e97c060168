//! What becomes of triggers before the machine of deploys gets them: a burst is one deploy of the newest revision, none is lost; and when the
//! source is asked whether its head has changed.
//!
//! Not for: an operator's `deploy`, which is not debounced (somebody waits for it), boots and reloads; how the source is asked; the deploys.
//!
//! ```text
//! Quiet ──trigger──▶ Window ──wait after the last trigger, or cap after the first──▶ Deploy, Quiet
//! leading:  Quiet ──trigger──▶ Deploy, Window ──the same──▶ Deploy if something came meanwhile, Quiet
//! Deploy ──Safe (the journal of deploys has it)──▶ forgotten here
//! ```
//!
//! A trigger only says "look at the source", so the newest revision wins by being what is fetched, and a repeated trigger costs one look.
//! [`Saved`] says that something waits from the trigger until the machine of deploys has it on disk: whoever is killed between the two does it
//! once more. What waited when the agent ended is given on at once by the next: it has waited.
//!
//! # What the shell must do
//!
//! Carry out [`Effect::Save`] (durably) before the effects behind it, answer whoever sent a trigger when that is done, and send
//! [`Event::Safe`] once the deploy that [`Effect::Deploy`] began is in the journal of deploys.

#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::deploy::{Jitter, Origin, RetryPolicy};
use crate::id::Revision;
use crate::time::MonoTime;

/// `source.debounce`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Debounce {
    /// So long after the last trigger the deploy begins; zero: at once.
    pub wait: Duration,
    /// So long after the first one at the latest.
    pub cap: Duration,
    /// Whether the first one is deployed at once.
    pub leading: Leading,
}

impl Debounce {
    /// The cap when none is said; at least the wait.
    pub const CAP: Duration = Duration::from_secs(30);

    /// Returns what `debounce: WAIT` means.
    #[must_use]
    pub fn of(wait: Duration) -> Self {
        Self { wait, cap: Self::CAP.max(wait), leading: Leading::No }
    }
}

impl Default for Debounce {
    /// 2 s: a person's `git push` of two branches, or a merge and its tag, is one deploy.
    fn default() -> Self {
        Self::of(Duration::from_secs(2))
    }
}

/// Whether the first trigger of a burst is deployed at once; what comes behind it is deployed after the burst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Leading {
    #[default]
    No,
    Yes,
}

/// How triggers are dealt with now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// `source.debounce`.
    pub debounce: Debounce,
    /// `source.poll`; `None`: the source is not asked (now).
    pub poll: Option<Duration>,
    /// The waits after failures to ask; never shorter than `poll`.
    pub retry: RetryPolicy,
}

/// What must outlive the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Saved {
    /// Something waits to be deployed; where its last trigger came from.
    pub waiting: Option<Origin>,
    /// The head that the source had when it was last asked.
    pub seen: Option<Revision>,
    /// What of the configured source had been fetched by then.
    pub seen_with: Option<Revision>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The first of all: the machine of deploys takes triggers now.
    Booted,
    /// A webhook came.
    Arrived(Origin),
    /// The machine of deploys has on disk all that it was given.
    Safe,
    /// Answers [`Effect::Look`].
    Seen {
        /// The head of what is configured.
        revision: Revision,
        /// What was fetched last.
        fetched: Option<Revision>,
        /// The last that was fetched of what is configured: not by `--ref`, of which an operator wants that it stays.
        configured: Option<Revision>,
    },
    /// Answers [`Effect::Look`].
    LookFailed {
        /// Why, for people.
        text: String,
    },
    /// The configuration of the source or of triggers is another one.
    Reloaded,
    /// The moment that [`Triggers::next_deadline`] named has come.
    DeadlineReached,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Make this durable before the next effect.
    Save(Saved),
    /// Give the machine of deploys a trigger for what is configured.
    Deploy(Origin),
    /// Ask the source for its head; answered by [`Event::Seen`] or [`Event::LookFailed`].
    Look,
    /// Tell: the source cannot be asked; once for each reason.
    TellUnreached {
        /// Why.
        text: String,
        /// When it is tried again.
        again_in: Duration,
    },
    /// Tell: it answers again.
    TellBack,
}

/// Triggers that wait, and the next look at the source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Triggers {
    window: Option<Window>,
    /// Given to the machine of deploys, which may not have it on disk yet.
    given: Option<Origin>,
    /// What a former agent left waiting.
    recalled: Option<Origin>,
    seen: Option<Revision>,
    seen_with: Option<Revision>,
    poll: Poll,
    booted: bool,
}

/// From the first trigger of a burst to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    first: MonoTime,
    last: MonoTime,
    waiting: Option<Origin>,
}

impl Window {
    fn ends(&self, debounce: &Debounce) -> MonoTime {
        (self.last + debounce.wait).min(self.first + debounce.cap)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Poll {
    next: Option<MonoTime>,
    looking: bool,
    failures: u32,
    told: Option<String>,
}

impl Triggers {
    /// Returns what a former agent left; `Saved::default()`: nothing.
    #[must_use]
    pub fn new(saved: Saved) -> Self {
        Self { recalled: saved.waiting, seen: saved.seen, seen_with: saved.seen_with, ..Self::default() }
    }

    /// What must outlive the agent.
    #[must_use]
    pub fn saved(&self) -> Saved {
        let waiting = self.window.and_then(|window| window.waiting).or(self.given).or(self.recalled);
        Saved { waiting, seen: self.seen.clone(), seen_with: self.seen_with.clone() }
    }

    /// Whether a deploy was given that is not known to be in the journal of deploys.
    #[must_use]
    pub fn is_given(&self) -> bool {
        self.given.is_some()
    }

    /// When the deploy of what waits begins, at the latest; `None`: nothing waits.
    #[must_use]
    pub fn due(&self, policy: &Policy) -> Option<MonoTime> {
        self.window.filter(|window| window.waiting.is_some()).map(|window| window.ends(&policy.debounce))
    }

    /// The next moment at which [`step`] must see [`Event::DeadlineReached`], if any.
    #[must_use]
    pub fn next_deadline(&self, policy: &Policy) -> Option<MonoTime> {
        if !self.booted {
            return None;
        }
        let window = self.window.map(|window| window.ends(&policy.debounce));
        let poll = self.poll.next.filter(|_| policy.poll.is_some() && !self.poll.looking);
        window.into_iter().chain(poll).min()
    }
}

/// Decides what to do about one event. Pure: same inputs, same answer. An event that does not apply changes nothing.
#[must_use]
pub fn step(mut triggers: Triggers, event: Event, now: MonoTime, jitter: Jitter, policy: &Policy) -> (Triggers, Vec<Effect>) {
    let before = triggers.saved();
    let mut effects = Vec::new();
    match event {
        Event::Booted => {
            triggers.booted = true;
            triggers.poll.next = policy.poll.map(|every| now + jitter.spread(every));
            if let Some(origin) = triggers.recalled.take() {
                triggers.give(origin, &mut effects);
            }
        }
        Event::Arrived(origin) => triggers.arrive(origin, now, policy, &mut effects),
        Event::Safe => triggers.given = None,
        Event::Seen { revision, fetched, configured } => {
            triggers.poll.looking = false;
            triggers.poll.failures = 0;
            triggers.poll.next = policy.poll.map(|every| now + jitter.spread(every));
            if triggers.poll.told.take().is_some() {
                effects.push(Effect::TellBack);
            }
            // What was fetched last was given to the machine of deploys, whatever became of it there.
            let other = triggers.seen.as_ref() != Some(&revision);
            // It is as it was seen, and something else was fetched in between: the branch was set back.
            let back = triggers.seen_with.is_some() && triggers.seen_with != configured;
            let news = (other || back) && fetched.as_ref() != Some(&revision);
            (triggers.seen, triggers.seen_with) = (Some(revision), configured);
            if news {
                triggers.arrive(Origin::Poll, now, policy, &mut effects);
            }
        }
        Event::LookFailed { text } => triggers.look_failed(text, now, jitter, policy, &mut effects),
        Event::Reloaded => {
            triggers.poll.next = policy.poll.map(|every| now + jitter.spread(every));
        }
        Event::DeadlineReached => {}
    }
    triggers.begin_due(now, policy, &mut effects);
    let after = triggers.saved();
    if after != before {
        effects.insert(0, Effect::Save(after));
    }
    (triggers, effects)
}

impl Triggers {
    fn arrive(&mut self, origin: Origin, now: MonoTime, policy: &Policy, effects: &mut Vec<Effect>) {
        match &mut self.window {
            Some(window) => {
                window.last = now;
                window.waiting = Some(origin);
            }
            None => {
                let at_once = policy.debounce.leading == Leading::Yes && self.booted;
                self.window = Some(Window { first: now, last: now, waiting: (!at_once).then_some(origin) });
                if at_once {
                    self.give(origin, effects);
                }
            }
        }
    }

    fn give(&mut self, origin: Origin, effects: &mut Vec<Effect>) {
        self.given = Some(origin);
        effects.push(Effect::Deploy(origin));
    }

    fn look_failed(&mut self, text: String, now: MonoTime, jitter: Jitter, policy: &Policy, effects: &mut Vec<Effect>) {
        self.poll.looking = false;
        self.poll.failures = self.poll.failures.saturating_add(1);
        let wait = jitter.spread(policy.poll.unwrap_or_default().max(policy.retry.wait(self.poll.failures)));
        self.poll.next = Some(now + wait);
        if self.poll.told.as_ref() != Some(&text) {
            effects.push(Effect::TellUnreached { text: text.clone(), again_in: wait });
            self.poll.told = Some(text);
        }
    }

    /// What is due: the end of a burst, a look at the source.
    fn begin_due(&mut self, now: MonoTime, policy: &Policy, effects: &mut Vec<Effect>) {
        if !self.booted {
            return;
        }
        if let Some(window) = self.window.filter(|window| window.ends(&policy.debounce) <= now) {
            self.window = None;
            if let Some(origin) = window.waiting {
                self.give(origin, effects);
            }
        }
        if policy.poll.is_some() && !self.poll.looking && self.poll.next.is_some_and(|at| at <= now) {
            self.poll.looking = true;
            effects.push(Effect::Look);
        }
    }
}
