//! Examples, and random histories: nodes that die, a store that restarts, messages that are late or lost.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

fn at(millis: u64) -> MonoTime {
    MonoTime::from_boot(Duration::from_millis(millis))
}

fn failed(blame: Blame, what: &str) -> StepEnd {
    StepEnd::Failed { blame, what: what.to_owned(), last_lines: vec!["the last line".to_owned()] }
}

/// Feeds events one a second, from second 0; returns all effects but what is told.
fn play(events: &[Event]) -> (Once, Vec<Effect>) {
    let (mut once, mut all) = Once::begin(LeasePolicy::default(), false);
    for (second, event) in (0..).zip(events) {
        let (next, effects) = once.step(event.clone(), at(second * 1000));
        once = next;
        all.extend(effects.into_iter().filter(|effect| !matches!(effect, Effect::Tell(_))));
    }
    (once, all)
}

const T: Token = Token(7);

fn taken() -> Event {
    Event::Taken { token: T, asked: at(0) }
}

#[test]
fn who_takes_it_does_the_step_and_writes_the_result() {
    let (once, effects) = play(&[taken(), Event::StepEnded(StepEnd::Done), Event::Written]);
    let write = Effect::Write { token: T, verdict: Verdict::Done };
    assert_eq!(effects, [Effect::Take { force: false }, Effect::Start { token: T }, write, Effect::Answer(StepEnd::Done)]);
    assert!(once.is_over() && once.next_deadline().is_none());
}

#[test]
fn the_others_end_with_the_result_of_the_one() {
    let held = Event::Held { by: "a".into(), lasts: Duration::from_secs(20) };
    let known = |verdict| Event::Known(Known { by: "a".into(), verdict });
    let (_, effects) = play(&[held.clone(), Event::News, known(Verdict::Done)]);
    let take = Effect::Take { force: false };
    assert_eq!(effects, [take.clone(), Effect::Listen, take, Effect::Answer(StepEnd::Done)]);
    let (_, effects) = play(&[held, Event::News, known(Verdict::Failed("exit 3".into()))]);
    let Some(Effect::Answer(StepEnd::Failed { blame: Blame::Revision, what, .. })) = effects.last() else { panic!("{effects:?}") };
    assert_eq!(what, "failed on node a, which did it for the fleet: exit 3");
}

#[test]
fn trouble_of_the_machine_is_no_result_and_frees_the_lease() {
    let end = failed(Blame::Machine, "killed");
    let (_, effects) = play(&[taken(), Event::StepEnded(end.clone())]);
    assert_eq!(effects[2..], [Effect::Release { token: T }, Effect::Answer(end)]);
}

#[test]
fn the_fault_of_the_revision_is_a_result_with_its_words() {
    let end = failed(Blame::Revision, "exit 3");
    let (_, effects) = play(&[taken(), Event::StepEnded(end.clone()), Event::Written]);
    let verdict = Verdict::Failed("exit 3\nthe last line".into());
    assert_eq!(effects[2..], [Effect::Write { token: T, verdict }, Effect::Answer(end)]);
}

#[test]
fn a_step_whose_lease_cannot_be_renewed_ends_before_the_lease_does() {
    let (mut once, _) = play(&[taken()]);
    let policy = LeasePolicy::default();
    let mut ended = None;
    while let (Some(due), None) = (once.next_deadline(), ended) {
        let (next, effects) = once.step(Event::DeadlineReached, due);
        once = next;
        if effects.contains(&Effect::End) {
            ended = Some(due);
        } else if effects.contains(&Effect::Renew { token: T }) {
            once = once.step(Event::RenewFailed, due + Duration::from_millis(10)).0;
        }
    }
    assert_eq!(ended, Some(at(0) + policy.ttl - policy.margin));
    let (once, effects) = once.step(Event::StepEnded(StepEnd::Done), at(17_000));
    assert!(matches!(&effects[..], [Effect::Answer(StepEnd::Failed { blame: Blame::Machine, .. })]), "{effects:?}");
    assert!(once.is_over());
}

#[test]
fn a_renewal_counts_from_when_it_was_asked_for() {
    let (once, _) = play(&[taken()]);
    let (once, _) = once.step(Event::DeadlineReached, at(5_000));
    let (once, _) = once.step(Event::Renewed { asked: at(5_000) }, at(12_000));
    let (once, effects) = once.step(Event::DeadlineReached, at(12_000));
    assert_eq!(effects, [Effect::Renew { token: T }]);
    let (_, effects) = once.step(Event::DeadlineReached, at(21_000));
    assert!(effects.contains(&Effect::End), "{effects:?}");
}

#[test]
fn a_result_that_could_not_be_written_is_written_later() {
    let (once, _) = play(&[taken(), Event::StepEnded(StepEnd::Done)]);
    let (once, _) = once.step(Event::WriteFailed { why: "refused".into() }, at(2_000));
    let due = once.next_deadline().expect("tried again");
    let (once, effects) = once.step(Event::DeadlineReached, due);
    assert_eq!(effects, [Effect::Write { token: T, verdict: Verdict::Done }]);
    let (_, effects) = once.step(Event::Written, due);
    assert_eq!(effects, [Effect::Answer(StepEnd::Done)]);
}

#[test]
fn what_is_cancelled_leaves_no_lease_and_no_step() {
    // While it is asked, and once it is had.
    let (_, effects) = play(&[Event::Cancelled, taken()]);
    assert_eq!(effects[1], Effect::Release { token: T });
    let (_, effects) = play(&[taken(), Event::Cancelled, Event::StepEnded(failed(Blame::Revision, "killed"))]);
    assert_eq!(effects[2..4], [Effect::End, Effect::Release { token: T }]);
    assert!(matches!(effects[4], Effect::Answer(_)));
    let held = Event::Held { by: "a".into(), lasts: Duration::from_secs(20) };
    let (_, effects) = play(&[held, Event::Cancelled]);
    assert_eq!(effects[2], Effect::StopListening);
}

#[test]
fn force_forgets_the_failure_that_was_there_and_no_later_one() {
    let (once, effects) = Once::begin(LeasePolicy::default(), true);
    assert_eq!(effects, [Effect::Take { force: true }]);
    let (once, _) = once.step(Event::Unreached { why: "refused".into() }, at(0));
    let (once, effects) = once.step(Event::DeadlineReached, at(1_000));
    assert_eq!(effects, [Effect::Take { force: true }], "nobody has heard it yet");
    let (once, _) = once.step(Event::Held { by: "a".into(), lasts: Duration::from_secs(20) }, at(1_000));
    let (_, effects) = once.step(Event::News, at(2_000));
    assert_eq!(effects, [Effect::Take { force: false }]);
}

#[test]
fn a_store_out_of_reach_is_the_machines_trouble_after_a_while() {
    let unreached = Event::Unreached { why: "refused".into() };
    let (mut once, _) = play(&[]);
    let mut now = at(0);
    loop {
        let (next, effects) = once.step(unreached.clone(), now);
        once = next;
        if let Some(Effect::Answer(StepEnd::Failed { blame, .. })) = effects.first() {
            assert_eq!(*blame, Blame::Machine);
            break;
        }
        now = once.next_deadline().expect("asked again");
        once = once.step(Event::DeadlineReached, now).0;
    }
    assert_eq!(now, at(0) + LeasePolicy::default().patience);
}

// ---- random histories

/// What the scripts of `src/fleet` do, over a simulated clock of the store's own.
#[derive(Clone, Debug, Default)]
struct Store {
    /// When it was started; a lease is granted only so long after that.
    started: u64,
    down: bool,
    /// Token, node, end.
    lease: Option<(u64, usize, u64)>,
    fence: Option<u64>,
    result: Option<(u64, usize, Verdict)>,
    /// Mistakes that a test plants.
    mistake: Option<Mistake>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    /// Grants at once after a start.
    NeverYoung,
    /// The step is ended only when the lease is.
    NoMargin,
    /// The holder counts from when it hears of it.
    CountsFromHearing,
}

impl Store {
    fn held(&self, now: u64) -> Option<(u64, usize, u64)> {
        self.lease.filter(|(_, _, end)| *end > now)
    }

    fn take(&mut self, node: usize, now: u64, asked: MonoTime, ttl: u64) -> Event {
        if let Some((_, by, verdict)) = &self.result {
            return Event::Known(Known { by: by.to_string(), verdict: verdict.clone() });
        }
        if let Some((_, by, end)) = self.held(now).filter(|(_, by, _)| *by != node) {
            return Event::Held { by: by.to_string(), lasts: Duration::from_millis(end - now) };
        }
        let age = now - self.started;
        if age < ttl && self.mistake != Some(Mistake::NeverYoung) {
            return Event::Young { wait: Duration::from_millis(ttl - age) };
        }
        // The store's clock, so that one that has forgotten everything grants larger ones, too.
        let token = (self.fence.unwrap_or(0) + 1).max(now + 1);
        self.fence = Some(token);
        self.lease = Some((token, node, now + ttl));
        Event::Taken { token: Token(token), asked }
    }

    fn may(&self, token: u64, now: u64) -> bool {
        self.held(now).map_or(self.fence.is_none_or(|fence| fence == token), |(held, _, _)| held == token)
    }

    fn renew(&mut self, node: usize, token: u64, now: u64, asked: MonoTime, ttl: u64) -> Event {
        let may = self.may(token, now) && self.result.is_none();
        if !may {
            return Event::NotOurs;
        }
        (self.lease, self.fence) = (Some((token, node, now + ttl)), Some(token));
        Event::Renewed { asked }
    }

    fn write(&mut self, node: usize, token: u64, verdict: Verdict, now: u64) -> Event {
        if let Some((by_token, ..)) = &self.result {
            return if *by_token == token { Event::Written } else { Event::Refused };
        }
        if !self.may(token, now) {
            return Event::Refused;
        }
        (self.lease, self.fence, self.result) = (None, Some(token), Some((token, node, verdict)));
        Event::Written
    }
}

#[derive(Clone, Debug)]
enum Op {
    /// Time passes.
    Pass(u16),
    /// The oldest message of that node goes to the store, and its answer comes back so much later, or never.
    Deliver {
        node: usize,
        late: u16,
        lost: bool,
    },
    /// The step of that node ends.
    End {
        node: usize,
        end: u8,
    },
    /// The machine or the agent of that node is gone, and comes up again.
    Die {
        node: usize,
    },
    /// The store ends, with or without what it knows, or is up again.
    Down {
        keeps: bool,
    },
    Up,
}

const NODES: usize = 3;

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let node = || 0..NODES;
    let op = prop_oneof![
        4 => (1_u16..6_000).prop_map(Op::Pass),
        8 => (node(), prop_oneof![3 => 0_u16..50, 1 => 0_u16..4_900], prop::bool::weighted(0.1)).prop_map(|(node, late, lost)| Op::Deliver { node, late, lost }),
        2 => (node(), 0_u8..8).prop_map(|(node, end)| Op::End { node, end }),
        1 => node().prop_map(|node| Op::Die { node }),
        1 => any::<bool>().prop_map(|keeps| Op::Down { keeps }),
        2 => Just(Op::Up),
    ];
    prop::collection::vec(op, 1..150)
}

/// A message on its way: to the store, or its answer back.
#[derive(Clone, Debug)]
struct Mail {
    effect: Effect,
    asked: MonoTime,
    /// When it is given up by who sent it.
    until: u64,
}

#[derive(Clone, Debug, Default)]
struct Node {
    once: Option<Once>,
    out: Vec<Mail>,
    /// Due at; what.
    back: Vec<(u64, Event)>,
    listens: bool,
    /// The step runs, with this token.
    runs: Option<u64>,
    answers: Vec<StepEnd>,
}

/// How long an answer of the store is waited for: as in `src/fleet`.
const PATIENCE_MILLIS: u64 = 5_000;

struct World {
    now: u64,
    store: Store,
    nodes: Vec<Node>,
    tokens: Vec<u64>,
    broken: Option<String>,
}

impl World {
    fn new(mistake: Option<Mistake>) -> Self {
        let store = Store { mistake, ..Store::default() };
        let mut world = Self { now: 100_000, store, nodes: vec![Node::default(); NODES], tokens: Vec::new(), broken: None };
        (0..NODES).for_each(|node| world.begin(node));
        world
    }

    fn begin(&mut self, node: usize) {
        let mut policy = LeasePolicy::default();
        if self.store.mistake == Some(Mistake::NoMargin) {
            policy.margin = Duration::ZERO;
        }
        let (once, effects) = Once::begin(policy, false);
        self.nodes[node].once = Some(once);
        self.carry_out(node, effects);
    }

    fn tell(&mut self, node: usize, event: Event) {
        let Some(once) = self.nodes[node].once.take() else { return };
        let event = match event {
            Event::Taken { token, .. } if self.store.mistake == Some(Mistake::CountsFromHearing) => {
                Event::Taken { token, asked: at(self.now) }
            }
            Event::Renewed { .. } if self.store.mistake == Some(Mistake::CountsFromHearing) => Event::Renewed { asked: at(self.now) },
            event => event,
        };
        let (once, effects) = once.step(event, at(self.now));
        self.nodes[node].once = Some(once);
        self.carry_out(node, effects);
    }

    fn carry_out(&mut self, node: usize, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Start { token } => {
                    self.tokens.push(token.0);
                    self.nodes[node].runs = Some(token.0);
                    let running: BTreeSet<usize> = (0..NODES).filter(|node| self.nodes[*node].runs.is_some()).collect();
                    if running.len() > 1 {
                        self.broken = Some(format!("at {}: {running:?} run it", self.now));
                    }
                }
                // KILL and the reaping take some time; less than the margin.
                Effect::End => self.nodes[node].back.push((self.now + 500, Event::StepEnded(failed(Blame::Revision, "killed")))),
                Effect::Listen => self.nodes[node].listens = true,
                Effect::StopListening => self.nodes[node].listens = false,
                Effect::Answer(end) => {
                    self.nodes[node].answers.push(end.clone());
                    // Trouble of the machine: the deploy is tried again.
                    if matches!(end, StepEnd::Failed { blame: Blame::Machine, .. }) {
                        self.begin(node);
                        return;
                    }
                }
                Effect::Take { .. } | Effect::Renew { .. } | Effect::Write { .. } | Effect::Release { .. } => {
                    let until = self.now + PATIENCE_MILLIS;
                    self.nodes[node].out.push(Mail { effect, asked: at(self.now), until });
                }
                Effect::Tell(_) => {}
            }
        }
    }

    /// Answers what was waited for too long, as the client does.
    fn unanswered(effect: &Effect) -> Option<Event> {
        Some(match effect {
            Effect::Take { .. } => Event::Unreached { why: "late".into() },
            Effect::Renew { .. } => Event::RenewFailed,
            Effect::Write { .. } => Event::WriteFailed { why: "late".into() },
            _ => return None,
        })
    }

    fn deliver(&mut self, node: usize, late: u16, lost: bool) {
        if self.nodes[node].out.is_empty() || self.store.down {
            return;
        }
        let mail = self.nodes[node].out.remove(0);
        let (now, ttl) = (self.now, u64::try_from(LeasePolicy::default().ttl.as_millis()).expect("it fits"));
        let before = (self.store.lease, self.store.result.clone());
        let answer = match mail.effect.clone() {
            Effect::Take { .. } => Some(self.store.take(node, now, mail.asked, ttl)),
            Effect::Renew { token } => Some(self.store.renew(node, token.0, now, mail.asked, ttl)),
            Effect::Write { token, verdict } => Some(self.store.write(node, token.0, verdict, now)),
            Effect::Release { token } => {
                if self.store.held(now).is_some_and(|(held, ..)| held == token.0) {
                    self.store.lease = None;
                }
                None
            }
            _ => None,
        };
        if before.0.is_some() && self.store.lease.is_none() || before.1 != self.store.result {
            for other in 0..NODES {
                if std::mem::take(&mut self.nodes[other].listens) {
                    self.nodes[other].back.push((now, Event::News));
                }
            }
        }
        let due = now + u64::from(late);
        let answer = if lost || due >= mail.until {
            Self::unanswered(&mail.effect).map(|event| (mail.until, event))
        } else {
            answer.map(|event| (due, event))
        };
        self.nodes[node].back.extend(answer);
    }

    /// Lets time pass, from one thing that is due to the next.
    fn pass(&mut self, millis: u64) {
        let end = self.now + millis;
        loop {
            let mut due: BTreeMap<u64, usize> = BTreeMap::new();
            for (number, node) in self.nodes.iter().enumerate() {
                let deadline = node.once.as_ref().and_then(Once::next_deadline);
                let deadline = deadline.map(|it| u64::try_from(it.since_boot().as_millis()).expect("it fits"));
                let mails = node.back.iter().map(|(at, _)| *at).chain(node.out.iter().map(|mail| mail.until));
                if let Some(first) = mails.chain(deadline).min() {
                    due.entry(first.max(self.now)).or_insert(number);
                }
            }
            let Some((&first, &number)) = due.first_key_value().filter(|(first, _)| **first <= end) else { break };
            self.now = first;
            self.happen(number);
        }
        self.now = end;
    }

    fn happen(&mut self, number: usize) {
        let now = self.now;
        if let Some(which) = self.nodes[number].out.iter().position(|mail| mail.until <= now) {
            let mail = self.nodes[number].out.remove(which);
            if let Some(event) = Self::unanswered(&mail.effect) {
                self.tell(number, event);
            }
        } else if let Some(which) = self.nodes[number].back.iter().position(|(at, _)| *at <= now) {
            let (_, event) = self.nodes[number].back.remove(which);
            if let Event::StepEnded(_) = &event {
                if self.nodes[number].runs.take().is_none() {
                    return;
                }
            }
            self.tell(number, event);
        } else {
            self.tell(number, Event::DeadlineReached);
        }
    }

    fn end(&mut self, node: usize, end: StepEnd) {
        if self.nodes[node].runs.take().is_some() {
            self.tell(node, Event::StepEnded(end));
        }
    }

    /// What an agent that is gone had sent may still arrive; nobody hears the answer.
    fn die(&mut self, node: usize) {
        let answers = std::mem::take(&mut self.nodes[node].answers);
        self.nodes[node] = Node { answers, ..Node::default() };
        self.begin(node);
    }

    fn do_op(&mut self, op: &Op) {
        match *op {
            Op::Pass(millis) => self.pass(u64::from(millis)),
            Op::Deliver { node, late, lost } => self.deliver(node, late, lost),
            Op::End { node, end } => {
                let end = match end {
                    0 => failed(Blame::Revision, "exit 1"),
                    1 | 2 => failed(Blame::Machine, "killed"),
                    _ => StepEnd::Done,
                };
                self.end(node, end);
            }
            // A node that comes back ends what its former agent has left before it does anything else.
            Op::Die { node } => self.die(node),
            Op::Down { keeps } => {
                self.store.down = true;
                if !keeps {
                    (self.store.lease, self.store.fence, self.store.result) = (None, None, None);
                }
                for node in &mut self.nodes {
                    if std::mem::take(&mut node.listens) {
                        node.back.push((self.now, Event::News));
                    }
                }
            }
            Op::Up if self.store.down => (self.store.down, self.store.started) = (false, self.now),
            Op::Up => {}
        }
    }

    /// From now on all goes well: returns whether everybody came to the same end.
    fn settle(&mut self) -> Result<(), String> {
        self.do_op(&Op::Up);
        for _ in 0..400 {
            for node in 0..NODES {
                while !self.nodes[node].out.is_empty() {
                    self.deliver(node, 0, false);
                }
                if self.nodes[node].runs.is_some() {
                    self.end(node, StepEnd::Done);
                }
            }
            self.pass(500);
        }
        let ends: Vec<Option<&StepEnd>> = self.nodes.iter().map(|node| node.answers.last()).collect();
        let well = self.nodes.iter().all(|node| node.once.as_ref().is_some_and(Once::is_over));
        if well { Ok(()) } else { Err(format!("{ends:?} {:#?}", self.nodes)) }
    }
}

fn holds(ops: &[Op], mistake: Option<Mistake>) -> Result<(), String> {
    let mut world = World::new(mistake);
    for op in ops {
        world.do_op(op);
        if let Some(broken) = world.broken.take() {
            return Err(broken);
        }
    }
    let rising = |tokens: &[u64]| tokens.windows(2).all(|pair| pair[0] < pair[1]);
    world.settle()?;
    if let Some(broken) = world.broken.take() {
        return Err(broken);
    }
    if !rising(&world.tokens) {
        return Err(format!("tokens: {:?}", world.tokens));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn never_do_two_nodes_run_it_tokens_grow_and_everybody_comes_to_an_end(ops in ops()) {
        prop_assert_eq!(holds(&ops, None), Ok(()));
    }
}

#[test]
fn the_histories_find_each_planted_mistake() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    for mistake in [Mistake::NeverYoung, Mistake::NoMargin, Mistake::CountsFromHearing] {
        let mut runner = TestRunner::deterministic();
        let found = (0..20_000).any(|_| holds(&ops().new_tree(&mut runner).expect("a history").current(), Some(mistake)).is_err());
        assert!(found, "{mistake:?} is not found");
    }
}
