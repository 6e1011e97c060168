//! Who is told of what happens, when, and when not: one message for an incident, so many a minute, again after a failure. Pure; per receiver.
//!
//! Not for: what is worth a message (`notify[].on`, which the shell looks at), its form, or how it is sent.
//!
//! An incident is one kind of event about one thing (a slot, a pool, or the node). What happens again within [`AGAIN_AFTER`] of its message is
//! counted, and the next message says so. Messages go one at a time, in order; what finds no room to wait is counted too. Nothing of it
//! outlives the agent: the journal of events does, and the next agent's first message says that there was another.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::deploy::Jitter;
use crate::time::MonoTime;

/// The same incident makes no second message before this: a person who was told acts, or has decided not to.
pub const AGAIN_AFTER: Duration = Duration::from_secs(600);

/// So many messages in [`RATE_WINDOW`] at the most: a node that falls apart must not bury what others say.
pub const RATE: usize = 10;

/// See [`RATE`].
pub const RATE_WINDOW: Duration = Duration::from_secs(60);

/// Messages that wait: with [`RATE`], ten minutes of the worst.
pub const WAITING_MAX: usize = 100;

/// A message is tried so often, over some 40 minutes; then it is let go and that is told.
pub const TRIES_MAX: u32 = 14;

/// Incidents remembered; the oldest is forgotten, which costs a message.
const INCIDENTS_MAX: usize = 1000;

const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// What happened: `M` is the message, `incident` names what it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<M> {
    /// Something worth a message.
    Happened {
        /// Kind and thing.
        incident: String,
        /// What to send.
        message: M,
    },
    /// Answers [`Effect::Send`].
    Sent,
    /// Answers [`Effect::Send`].
    Failed {
        /// Why, for people.
        text: String,
    },
    /// The moment that [`Receiver::next_deadline`] named has come.
    DeadlineReached,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect<M> {
    /// Send it; answered by [`Event::Sent`] or [`Event::Failed`].
    Send {
        /// What.
        message: M,
        /// How often the same happened since its last message, and was not sent.
        repeated: u32,
        /// How many messages found no room since the last one.
        dropped: u32,
    },
    /// Tell: this receiver cannot be reached; once until it can.
    TellUnreached {
        /// Why.
        text: String,
    },
    /// Tell: a message was let go after [`TRIES_MAX`].
    TellGivenUp {
        /// Why.
        text: String,
    },
}

#[derive(Clone, Debug)]
struct Message<M> {
    message: M,
    repeated: u32,
}

#[derive(Clone, Debug)]
struct Incident {
    told: MonoTime,
    repeated: u32,
}

/// One receiver.
#[derive(Clone, Debug)]
pub struct Receiver<M> {
    waiting: VecDeque<Message<M>>,
    sending: bool,
    failures: u32,
    again: Option<MonoTime>,
    sent: VecDeque<MonoTime>,
    incidents: BTreeMap<String, Incident>,
    dropped: u32,
    /// How many of those the message that is being sent tells of; what is dropped meanwhile is for the next one.
    said: u32,
    told: bool,
}

impl<M> Default for Receiver<M> {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            sending: false,
            failures: 0,
            again: None,
            sent: VecDeque::new(),
            incidents: BTreeMap::new(),
            dropped: 0,
            said: 0,
            told: false,
        }
    }
}

impl<M: Clone> Receiver<M> {
    /// Takes one event; returns what is to be done.
    pub fn step(&mut self, event: Event<M>, now: MonoTime, jitter: Jitter) -> Vec<Effect<M>> {
        let mut effects = Vec::new();
        match event {
            Event::Happened { incident, message } => self.happened(incident, message, now),
            Event::Sent if self.sending => {
                (self.sending, self.failures, self.told) = (false, 0, false);
                self.dropped = self.dropped.saturating_sub(self.said);
                self.waiting.pop_front();
            }
            Event::Failed { text } if self.sending => {
                self.sending = false;
                self.failures += 1;
                let wait = FIRST_WAIT.saturating_mul(1 << (self.failures - 1).min(16)).min(LONGEST_WAIT);
                self.again = Some(now + jitter.spread(wait));
                if !std::mem::replace(&mut self.told, true) {
                    effects.push(Effect::TellUnreached { text: text.clone() });
                }
                if self.failures >= TRIES_MAX {
                    self.failures = 0;
                    self.waiting.pop_front();
                    effects.push(Effect::TellGivenUp { text });
                }
            }
            Event::Sent | Event::Failed { .. } | Event::DeadlineReached => {}
        }
        self.send_next(now, &mut effects);
        effects
    }

    fn happened(&mut self, incident: String, message: M, now: MonoTime) {
        let mut repeated = 0;
        if let Some(known) = self.incidents.get_mut(&incident) {
            if now < known.told + AGAIN_AFTER {
                known.repeated = known.repeated.saturating_add(1);
                return;
            }
            repeated = known.repeated;
        }
        if self.waiting.len() >= WAITING_MAX {
            self.dropped = self.dropped.saturating_add(1);
            return;
        }
        self.incidents.insert(incident, Incident { told: now, repeated: 0 });
        if self.incidents.len() > INCIDENTS_MAX {
            let oldest = self.incidents.iter().min_by_key(|(_, incident)| incident.told).map(|(name, _)| name.clone());
            if let Some(oldest) = oldest {
                self.incidents.remove(&oldest);
            }
        }
        self.waiting.push_back(Message { message, repeated });
    }

    fn send_next(&mut self, now: MonoTime, effects: &mut Vec<Effect<M>>) {
        if self.sending || self.next_deadline().is_some_and(|at| at > now) {
            return;
        }
        let Some(Message { message, repeated }) = self.waiting.front().cloned() else { return };
        self.again = None;
        self.sending = true;
        self.sent.push_back(now);
        while self.sent.len() > RATE {
            self.sent.pop_front();
        }
        self.said = self.dropped;
        effects.push(Effect::Send { message, repeated, dropped: self.dropped });
    }

    /// The next moment at which [`Self::step`] must see [`Event::DeadlineReached`]; `None`: nothing waits for a moment.
    #[must_use]
    pub fn next_deadline(&self) -> Option<MonoTime> {
        if self.sending || self.waiting.is_empty() {
            return None;
        }
        let oldest = self.sent.front().filter(|_| self.sent.len() >= RATE).map(|at| *at + RATE_WINDOW);
        oldest.into_iter().chain(self.again).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> MonoTime {
        MonoTime::ZERO + Duration::from_secs(secs)
    }

    fn happens(receiver: &mut Receiver<u32>, secs: u64, incident: &str, message: u32) -> Vec<Effect<u32>> {
        receiver.step(Event::Happened { incident: incident.into(), message }, at(secs), Jitter::default())
    }

    fn step(receiver: &mut Receiver<u32>, secs: u64, event: Event<u32>) -> Vec<Effect<u32>> {
        receiver.step(event, at(secs), Jitter::default())
    }

    fn send(message: u32, repeated: u32, dropped: u32) -> Vec<Effect<u32>> {
        vec![Effect::Send { message, repeated, dropped }]
    }

    #[test]
    fn one_at_a_time_and_in_order() {
        let mut receiver = Receiver::default();
        assert_eq!(happens(&mut receiver, 0, "a", 1), send(1, 0, 0));
        assert_eq!(happens(&mut receiver, 0, "b", 2), []);
        assert_eq!(step(&mut receiver, 1, Event::Sent), send(2, 0, 0));
        assert_eq!(step(&mut receiver, 1, Event::Sent), []);
        assert_eq!(receiver.next_deadline(), None);
    }

    #[test]
    fn an_incident_is_one_message_and_the_next_one_says_how_often_it_was() {
        let mut receiver = Receiver::default();
        assert_eq!(happens(&mut receiver, 0, "a", 1), send(1, 0, 0));
        step(&mut receiver, 0, Event::Sent);
        for secs in [1, 2, 599] {
            assert_eq!(happens(&mut receiver, secs, "a", 2), []);
        }
        assert_eq!(happens(&mut receiver, 600, "a", 3), send(3, 3, 0));
    }

    #[test]
    fn a_receiver_that_is_away_is_tried_ever_less_often_told_of_once_and_a_message_let_go_in_the_end() {
        let mut receiver = Receiver::default();
        happens(&mut receiver, 0, "a", 1);
        happens(&mut receiver, 0, "b", 2);
        let (mut now, mut told, mut sent, mut waits) = (0, 0, Vec::new(), Vec::new());
        for _ in 0..TRIES_MAX {
            for effect in step(&mut receiver, now, Event::Failed { text: "away".into() }) {
                told += u32::from(matches!(effect, Effect::TellUnreached { .. }));
            }
            let due = receiver.next_deadline().expect("another try");
            waits.push(due.since(at(now)).as_secs());
            now = due.since(MonoTime::ZERO).as_secs();
            for effect in step(&mut receiver, now, Event::DeadlineReached) {
                if let Effect::Send { message, .. } = effect {
                    sent.push(message);
                }
            }
        }
        assert_eq!(told, 1);
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300, 300, 300]);
        assert_eq!(sent, [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2]);
    }

    #[test]
    fn no_more_than_its_rate_is_sent_and_what_finds_no_room_is_counted() {
        let mut receiver = Receiver::default();
        let mut sent = 0;
        for number in 0..200 {
            sent += happens(&mut receiver, 0, &number.to_string(), number).len();
            sent += step(&mut receiver, 0, Event::Sent).len();
        }
        assert_eq!(sent, RATE);
        assert_eq!(receiver.next_deadline(), Some(at(60)));
        let dropped = u32::try_from(200 - RATE - WAITING_MAX).expect("small");
        assert_eq!(step(&mut receiver, 60, Event::DeadlineReached), send(10, 0, dropped));
    }

    #[test]
    fn a_receiver_that_was_reached_again_is_as_new() {
        let mut receiver = Receiver::default();
        happens(&mut receiver, 0, "a", 1);
        for secs in [0, 100, 200] {
            step(&mut receiver, secs, Event::Failed { text: "away".into() });
            step(&mut receiver, secs + 50, Event::DeadlineReached);
        }
        assert_eq!(step(&mut receiver, 300, Event::Sent), []);
        happens(&mut receiver, 300, "b", 2);
        let told = step(&mut receiver, 300, Event::Failed { text: "again".into() });
        assert_eq!(told, [Effect::TellUnreached { text: "again".into() }]);
        assert_eq!(receiver.next_deadline(), Some(at(301)));
    }

    #[test]
    fn a_message_that_was_let_go_costs_the_next_one_no_try() {
        let mut receiver = Receiver::default();
        happens(&mut receiver, 0, "a", 1);
        happens(&mut receiver, 0, "b", 2);
        let mut given_up = Vec::new();
        for number in 1..=2 * TRIES_MAX {
            let secs = u64::from(number) * 1_000;
            let effects = step(&mut receiver, secs, Event::Failed { text: "away".into() });
            given_up.extend(effects.iter().any(|effect| matches!(effect, Effect::TellGivenUp { .. })).then_some(number));
            step(&mut receiver, secs + 500, Event::DeadlineReached);
        }
        assert_eq!(given_up, [TRIES_MAX, 2 * TRIES_MAX]);
    }

    #[test]
    fn what_found_no_room_is_told_once_and_is_no_incident_that_was_told() {
        let mut receiver = Receiver::default();
        for number in 0..=WAITING_MAX {
            let number = u32::try_from(number).expect("small");
            happens(&mut receiver, 0, &number.to_string(), number);
        }
        let waiting = receiver.waiting.len();
        let last = u32::try_from(WAITING_MAX).expect("small");
        let next = step(&mut receiver, 0, Event::Sent);
        assert_eq!((waiting, next), (WAITING_MAX, send(1, 0, 1)));
        assert_eq!(step(&mut receiver, 0, Event::Sent), send(2, 0, 0));
        happens(&mut receiver, 1, &last.to_string(), last);
        assert_eq!(receiver.waiting.back().map(|it| (it.message, it.repeated)), Some((last, 0)));
    }

    #[test]
    fn of_too_many_incidents_the_oldest_is_forgotten() {
        let mut receiver = Receiver::default();
        let incidents = u32::try_from(INCIDENTS_MAX).expect("small");
        for number in 0..=incidents {
            happens(&mut receiver, u64::from(number) * 10, &number.to_string(), number);
            step(&mut receiver, u64::from(number) * 10, Event::Sent);
        }
        assert_eq!(receiver.incidents.len(), INCIDENTS_MAX);
        assert!(!receiver.incidents.contains_key("0") && receiver.incidents.contains_key(&incidents.to_string()));
    }

    #[test]
    fn an_answer_to_nothing_changes_nothing() {
        let mut receiver = Receiver::default();
        assert_eq!(step(&mut receiver, 0, Event::Sent), []);
        assert_eq!(step(&mut receiver, 0, Event::Failed { text: String::new() }), []);
        assert_eq!(happens(&mut receiver, 0, "a", 1), send(1, 0, 0));
    }
}
