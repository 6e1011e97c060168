//! What one node of the fleet does for all: `once_per: revision` of a build step, by a lease that one of them holds.
//!
//! Not for: how the lease is kept (the shell asks a store that knows time by itself, and answers), which steps are so.
//!
//! ```text
//!             ┌──────────────── Held, Young ◀──────────┐
//!             ▼                                        │
//! Asking ──Taken──▶ Running ──StepEnded──▶ Writing ──Refused──┐      Known (somebody's result) ──▶ Over
//!   ▲  │              │  ▲                    │               │
//!   │  │Unreached     │  └─Renewed            └─Written──▶ Over
//!   │  ▼              │                                       │
//! Waiting             └─NotOurs, or not renewed in time──▶ Ending ──StepEnded──▶ Over: the machine's trouble
//!   ▲ news, its time, a lost connection: asked again          │
//!   └─────────────────────────────────────────────────────────┘
//! ```
//!
//! - A lease counts from **before** it was asked for: here it ends earlier than in the store, by the time that a message takes. The step
//!   is ended [`LeasePolicy::margin`] before that, so that it is gone when another may begin.
//! - The **fencing token** grows with every taking: what the step writes can be refused by who has seen a larger one.
//! - A result is written by who holds the token only, and is what all others end with. Trouble of the machine is no result: the lease is
//!   let go, and another takes it.
//! - Every effect but [`Effect::Answer`], [`Effect::StopListening`] and [`Effect::Release`] is answered by one of the events that it names,
//!   as late as may be; [`Event::DeadlineReached`] comes at [`Once::next_deadline`].

#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::deploy::Blame;
use crate::time::MonoTime;

/// The times of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeasePolicy {
    /// How long it is held without being renewed.
    pub ttl: Duration,
    /// The step of a holder that cannot renew is ended this long before the lease is over.
    pub margin: Duration,
    /// The wait before what did not work is tried again.
    pub retry: Duration,
    /// The store out of reach for this long, before or while others are waited for: the deploy is tried again later.
    pub patience: Duration,
}

impl LeasePolicy {
    /// How often it is renewed: so that two renewals may fail.
    #[must_use]
    pub fn renew_every(&self) -> Duration {
        self.ttl / 4
    }
}

impl Default for LeasePolicy {
    /// 20 s: a store that restarts is back by then, and nobody waits for long for a node that died. The margin is for KILL and the reaping.
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(20),
            margin: Duration::from_secs(4),
            retry: Duration::from_secs(1),
            patience: Duration::from_secs(30),
        }
    }
}

/// Grows with every taking of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// How the step ended for the whole fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is done.
    Done,
    /// It failed, by the fault of the revision; the words of its node.
    Failed(String),
}

/// What the store remembers of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// By which node.
    pub by: String,
    /// How.
    pub verdict: Verdict,
}

/// How the step ended here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepEnd {
    /// With 0.
    Done,
    /// Otherwise.
    Failed {
        /// Whose fault.
        blame: Blame,
        /// The step and its end.
        what: String,
        /// The last lines of its output, oldest first.
        last_lines: Vec<String>,
    },
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Answers [`Effect::Take`]: it is ours.
    Taken {
        /// Its token.
        token: Token,
        /// When it was asked for.
        asked: MonoTime,
    },
    /// Answers [`Effect::Take`]: somebody else holds it, or is to.
    Held {
        /// Which node; empty: none does, and we may not.
        by: String,
        /// For how long, if it is not renewed.
        lasts: Duration,
    },
    /// Answers [`Effect::Take`]: the store was started so lately that it may have forgotten who holds it.
    Young {
        /// Until it can be had.
        wait: Duration,
    },
    /// Answers [`Effect::Take`]: it was done, or has failed.
    Known(Known),
    /// Answers [`Effect::Take`]: nobody knows.
    Unreached {
        /// Why.
        why: String,
    },
    /// Answers [`Effect::Listen`]: something was said of it, or the connection is lost.
    News,
    /// Answers [`Effect::Renew`].
    Renewed {
        /// When it was asked for.
        asked: MonoTime,
    },
    /// Answers [`Effect::Renew`]: it is another's.
    NotOurs,
    /// Answers [`Effect::Renew`]: nobody knows.
    RenewFailed,
    /// Answers [`Effect::Start`].
    StepEnded(StepEnd),
    /// Answers [`Effect::Write`].
    Written,
    /// Answers [`Effect::Write`]: it is another's.
    Refused,
    /// Answers [`Effect::Write`]: nobody knows.
    WriteFailed {
        /// Why.
        why: String,
    },
    /// The build gives way, or its time is over.
    Cancelled,
    /// Its time has come.
    DeadlineReached,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Ask for the lease. Who listens to news of it must do so from before it is asked.
    Take {
        /// Forget a failure first.
        force: bool,
    },
    /// Wait for news.
    Listen,
    /// Wait no more.
    StopListening,
    /// Begin the step.
    Start {
        /// With this token in its environment.
        token: Token,
    },
    /// End the step with its tree.
    End,
    /// Hold the lease for longer.
    Renew {
        /// With this token.
        token: Token,
    },
    /// Write the result, for all, and let the lease go.
    Write {
        /// With this token.
        token: Token,
        /// What.
        verdict: Verdict,
    },
    /// Let the lease go without a result. Unanswered: it would end by itself.
    Release {
        /// With this token.
        token: Token,
    },
    /// The end: what the deploy hears.
    Answer(StepEnd),
    /// For people.
    Tell(News),
}

/// What people should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Another does it.
    WaitsFor {
        /// Which node.
        by: String,
    },
    /// The store was started lately.
    WaitsForStore {
        /// For how long.
        wait: Duration,
    },
    /// We do it.
    Does {
        /// With this token.
        token: Token,
    },
    /// Another has done it.
    DoneBy {
        /// Which node.
        by: String,
    },
    /// The step is ended, as the lease cannot be held.
    Ends {
        /// Why.
        why: &'static str,
    },
    /// What came of it is not written yet.
    NotWritten {
        /// Why.
        why: String,
    },
}

impl std::fmt::Display for News {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::WaitsFor { by } if by.is_empty() => f.write_str("no node that may do it has begun; its result is waited for"),
            Self::WaitsFor { by } => write!(f, "node {by} does it, for this revision or another; it is waited for"),
            Self::WaitsForStore { wait } => {
                write!(f, "the fleet's Redis was just started and may have forgotten who does it: waits for {} s", wait.as_secs().max(1))
            }
            Self::Does { token } => write!(f, "this node does it, with fencing token {}", token.0),
            Self::DoneBy { by } => write!(f, "node {by} has done it"),
            Self::Ends { why } => write!(f, "ended here: {why}"),
            Self::NotWritten { why } => write!(f, "its result is not written yet, and tried again: {why}"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Whether it is ours is being asked; `since`: out of reach since then.
    Asking {
        since: Option<MonoTime>,
        cancelled: bool,
    },
    /// For news or this moment.
    Waiting {
        until: MonoTime,
        since: Option<MonoTime>,
        listens: bool,
    },
    Running {
        token: Token,
        held_until: MonoTime,
        renew_at: Option<MonoTime>,
        cancelled: bool,
    },
    Ending {
        why: &'static str,
    },
    Writing {
        token: Token,
        end: StepEnd,
        again_at: Option<MonoTime>,
    },
    Over,
}

/// One step of one revision, on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Once {
    state: State,
    policy: LeasePolicy,
    /// Whether a failure that is known is still to be forgotten: not one that comes after this was heard of.
    force: bool,
    /// Who was waited for when it was told last.
    told: Option<String>,
}

const GIVEN_UP: &str = "the node that does it for the fleet had not done it in the time of this build";
const NOT_RENEWED: &str = "its lease could not be renewed in time";
const ANOTHERS: &str = "its lease is another node's";

impl Once {
    /// Begins; `force`: a failure that is known already does not count.
    #[must_use]
    pub fn begin(policy: LeasePolicy, force: bool) -> (Self, Vec<Effect>) {
        (Self { state: State::Asking { since: None, cancelled: false }, policy, force, told: None }, vec![Effect::Take { force }])
    }

    /// Whether it is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// Returns the next moment at which [`Self::step`] must see [`Event::DeadlineReached`], if any.
    #[must_use]
    pub fn next_deadline(&self) -> Option<MonoTime> {
        match &self.state {
            State::Waiting { until, .. } => Some(*until),
            State::Running { held_until, renew_at, cancelled: false, .. } => Some(renew_at.map_or(*held_until, |at| at.min(*held_until))),
            State::Writing { again_at, .. } => *again_at,
            State::Asking { .. } | State::Running { .. } | State::Ending { .. } | State::Over => None,
        }
    }

    /// Decides what to do about one event. Pure: same inputs, same answer. An event that does not apply changes nothing.
    #[must_use]
    pub fn step(mut self, event: Event, now: MonoTime) -> (Self, Vec<Effect>) {
        let mut effects = Vec::new();
        let state = std::mem::replace(&mut self.state, State::Over);
        self.state = match state {
            State::Asking { since, cancelled } => self.asking(since, cancelled, event, now, &mut effects),
            State::Waiting { until, since, listens } => match event {
                Event::News if listens => self.ask(since, &mut effects),
                Event::DeadlineReached if now >= until => {
                    effects.extend(listens.then_some(Effect::StopListening));
                    self.ask(since, &mut effects)
                }
                Event::Cancelled => {
                    effects.extend(listens.then_some(Effect::StopListening));
                    over(machine(GIVEN_UP), &mut effects)
                }
                _ => State::Waiting { until, since, listens },
            },
            State::Running { token, held_until, renew_at, cancelled } => {
                self.running(token, held_until, renew_at, cancelled, event, now, &mut effects)
            }
            State::Ending { why } => match event {
                Event::StepEnded(_) => over(machine(why), &mut effects),
                _ => State::Ending { why },
            },
            State::Writing { token, end, again_at } => self.writing(token, end, again_at, event, now, &mut effects),
            State::Over => {
                // Taken after we had given up.
                if let Event::Taken { token, .. } = event {
                    effects.push(Effect::Release { token });
                }
                State::Over
            }
        };
        (self, effects)
    }

    fn ask(&self, since: Option<MonoTime>, effects: &mut Vec<Effect>) -> State {
        effects.push(Effect::Take { force: self.force });
        State::Asking { since, cancelled: false }
    }

    fn asking(&mut self, since: Option<MonoTime>, cancelled: bool, event: Event, now: MonoTime, effects: &mut Vec<Effect>) -> State {
        if matches!(event, Event::Taken { .. } | Event::Held { .. } | Event::Young { .. } | Event::Known(_)) {
            self.force = false;
        }
        match event {
            Event::Cancelled => State::Asking { since, cancelled: true },
            Event::Taken { token, asked } => {
                if cancelled {
                    effects.push(Effect::Release { token });
                    return over(machine(GIVEN_UP), effects);
                }
                let held_until = asked + self.policy.ttl.saturating_sub(self.policy.margin);
                if now >= held_until {
                    // So late that there is nothing left of it; it is ours, and is had again at once.
                    return self.ask(None, effects);
                }
                effects.push(Effect::Tell(News::Does { token }));
                effects.push(Effect::Start { token });
                State::Running { token, held_until, renew_at: Some(asked + self.policy.renew_every()), cancelled: false }
            }
            Event::Held { .. } | Event::Young { .. } | Event::Unreached { .. } | Event::Known(_) if cancelled => {
                over(machine(GIVEN_UP), effects)
            }
            Event::Held { by, lasts } => {
                if self.told.as_ref() != Some(&by) {
                    effects.push(Effect::Tell(News::WaitsFor { by: by.clone() }));
                    self.told = Some(by);
                }
                effects.push(Effect::Listen);
                State::Waiting { until: now + lasts, since: None, listens: true }
            }
            Event::Young { wait } => {
                effects.push(Effect::Tell(News::WaitsForStore { wait }));
                State::Waiting { until: now + wait, since: None, listens: false }
            }
            Event::Known(Known { by, verdict: Verdict::Done }) => {
                effects.push(Effect::Tell(News::DoneBy { by }));
                over(StepEnd::Done, effects)
            }
            Event::Known(Known { by, verdict: Verdict::Failed(what) }) => {
                let what = format!("failed on node {by}, which did it for the fleet: {what}");
                over(StepEnd::Failed { blame: Blame::Revision, what, last_lines: Vec::new() }, effects)
            }
            Event::Unreached { why } => {
                let first = since.unwrap_or(now);
                if now.since(first) >= self.policy.patience {
                    return over(machine(&format!("the fleet's Redis cannot be asked who does it: {why}")), effects);
                }
                State::Waiting { until: now + self.policy.retry, since: Some(first), listens: false }
            }
            _ => State::Asking { since, cancelled },
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one state")]
    fn running(
        &self,
        token: Token,
        held_until: MonoTime,
        renew_at: Option<MonoTime>,
        cancelled: bool,
        event: Event,
        now: MonoTime,
        effects: &mut Vec<Effect>,
    ) -> State {
        let end = |why: &'static str, effects: &mut Vec<Effect>| {
            if !cancelled {
                effects.push(Effect::Tell(News::Ends { why }));
                effects.push(Effect::End);
            }
            State::Ending { why }
        };
        match event {
            Event::StepEnded(StepEnd::Failed { blame: Blame::Machine, what, last_lines }) => {
                effects.push(Effect::Release { token });
                over(StepEnd::Failed { blame: Blame::Machine, what, last_lines }, effects)
            }
            Event::StepEnded(end) if cancelled => {
                // What it was ended for is no result of anybody's; that it was done before that is one.
                if end != StepEnd::Done {
                    effects.push(Effect::Release { token });
                    return over(end, effects);
                }
                write(token, end, effects)
            }
            Event::StepEnded(end) => write(token, end, effects),
            Event::Cancelled if !cancelled => {
                effects.push(Effect::End);
                State::Running { token, held_until, renew_at, cancelled: true }
            }
            Event::NotOurs => end(ANOTHERS, effects),
            Event::DeadlineReached if now >= held_until => end(NOT_RENEWED, effects),
            Event::DeadlineReached if renew_at.is_some_and(|at| now >= at) && !cancelled => {
                effects.push(Effect::Renew { token });
                State::Running { token, held_until, renew_at: None, cancelled }
            }
            Event::Renewed { asked } => {
                let held_until = held_until.max(asked + self.policy.ttl.saturating_sub(self.policy.margin));
                State::Running { token, held_until, renew_at: Some(asked + self.policy.renew_every()), cancelled }
            }
            Event::RenewFailed => State::Running { token, held_until, renew_at: Some(now + self.policy.retry), cancelled },
            _ => State::Running { token, held_until, renew_at, cancelled },
        }
    }

    fn writing(
        &self,
        token: Token,
        end: StepEnd,
        again_at: Option<MonoTime>,
        event: Event,
        now: MonoTime,
        effects: &mut Vec<Effect>,
    ) -> State {
        match event {
            Event::Written => over(end, effects),
            // It has begun anew elsewhere: what comes of that counts for all.
            Event::Refused => self.ask(None, effects),
            Event::WriteFailed { why } => {
                effects.push(Effect::Tell(News::NotWritten { why }));
                State::Writing { token, end, again_at: Some(now + self.policy.retry) }
            }
            Event::DeadlineReached if again_at.is_some_and(|at| now >= at) => write(token, end, effects),
            Event::Cancelled => over(end, effects),
            _ => State::Writing { token, end, again_at },
        }
    }
}

fn write(token: Token, end: StepEnd, effects: &mut Vec<Effect>) -> State {
    let verdict = match &end {
        StepEnd::Done => Verdict::Done,
        StepEnd::Failed { what, last_lines, .. } => Verdict::Failed([std::slice::from_ref(what), last_lines].concat().join("\n")),
    };
    effects.push(Effect::Write { token, verdict });
    State::Writing { token, end, again_at: None }
}

fn over(end: StepEnd, effects: &mut Vec<Effect>) -> State {
    effects.push(Effect::Answer(end));
    State::Over
}

fn machine(what: &str) -> StepEnd {
    StepEnd::Failed { blame: Blame::Machine, what: what.to_owned(), last_lines: Vec::new() }
}
