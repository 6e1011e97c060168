//! Examples, then random histories of pushes, polls and crashes, with mistakes that they must find.

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

use super::*;

fn at(millis: u64) -> MonoTime {
    MonoTime::ZERO + Duration::from_millis(millis)
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn rev(n: u32) -> Revision {
    format!("{n:040x}").parse().expect("a revision")
}

fn policy(wait: u64, cap: u64, leading: Leading) -> Policy {
    Policy { debounce: Debounce { wait: secs(wait), cap: secs(cap), leading }, poll: None, retry: RetryPolicy::default() }
}

/// A machine with its clock.
struct Rig {
    triggers: Triggers,
    policy: Policy,
    told: Vec<(u64, Effect)>,
}

impl Rig {
    fn new(policy: Policy, saved: Saved) -> Self {
        let mut rig = Self { triggers: Triggers::new(saved), policy, told: Vec::new() };
        rig.event(0, Event::Booted);
        rig
    }

    fn event(&mut self, millis: u64, event: Event) {
        // What is due before comes before.
        while let Some(due) = self.triggers.next_deadline(&self.policy).filter(|due| *due < at(millis)) {
            self.step(u64::try_from(due.since(MonoTime::ZERO).as_millis()).expect("small"), Event::DeadlineReached);
        }
        self.step(millis, event);
    }

    fn step(&mut self, millis: u64, event: Event) {
        let (triggers, effects) = step(std::mem::take(&mut self.triggers), event, at(millis), Jitter::default(), &self.policy);
        self.triggers = triggers;
        self.told.extend(effects.into_iter().map(|effect| (millis, effect)));
    }

    fn deploys(&self) -> Vec<u64> {
        self.told.iter().filter(|(_, effect)| matches!(effect, Effect::Deploy(_))).map(|(millis, _)| *millis).collect()
    }

    fn looks(&self) -> Vec<u64> {
        self.told.iter().filter(|(_, effect)| matches!(effect, Effect::Look)).map(|(millis, _)| *millis).collect()
    }
}

const HOOK: Event = Event::Arrived(Origin::Webhook);

#[test]
fn a_burst_is_one_deploy_so_long_after_its_last_trigger() {
    let mut rig = Rig::new(policy(2, 30, Leading::No), Saved::default());
    for millis in [1_000, 2_000, 3_999] {
        rig.event(millis, HOOK);
    }
    rig.event(60_000, Event::DeadlineReached);
    assert_eq!(rig.deploys(), [5_999]);
}

#[test]
fn triggers_without_end_are_deployed_when_the_cap_is_reached() {
    let mut rig = Rig::new(policy(2, 5, Leading::No), Saved::default());
    for second in 1..=12 {
        rig.event(second * 1_000, HOOK);
    }
    rig.event(60_000, Event::DeadlineReached);
    assert_eq!(rig.deploys(), [6_000, 12_000]);
}

#[test]
fn leading_deploys_the_first_at_once_and_what_came_meanwhile_after_the_burst() {
    let mut rig = Rig::new(policy(2, 30, Leading::Yes), Saved::default());
    rig.event(1_000, HOOK);
    rig.event(2_000, HOOK);
    rig.event(3_000, HOOK);
    rig.event(60_000, HOOK);
    rig.event(90_000, Event::DeadlineReached);
    assert_eq!(rig.deploys(), [1_000, 5_000, 60_000], "and nothing after the last, which came alone");
}

#[test]
fn without_a_wait_each_is_deployed_at_once() {
    let mut rig = Rig::new(policy(0, 30, Leading::No), Saved::default());
    rig.event(1_000, HOOK);
    rig.event(1_001, HOOK);
    assert_eq!(rig.deploys(), [1_000, 1_001]);
}

#[test]
fn what_waited_when_the_agent_ended_is_given_on_by_the_next_and_remembered_until_it_is_safe() {
    let mut rig = Rig::new(policy(2, 30, Leading::No), Saved::default());
    rig.event(1_000, HOOK);
    let saved = rig.triggers.saved();
    assert_eq!(saved.waiting, Some(Origin::Webhook));
    let mut next = Rig::new(policy(2, 30, Leading::No), saved.clone());
    assert_eq!(next.deploys(), [0]);
    assert_eq!(next.triggers.saved(), saved);
    next.event(1, Event::Safe);
    assert_eq!(next.triggers.saved().waiting, None);
    assert_eq!(next.told.last(), Some(&(1, Effect::Save(Saved::default()))));
}

#[test]
fn a_trigger_before_the_machine_of_deploys_is_ready_waits_for_it() {
    let (triggers, effects) = step(Triggers::default(), HOOK, at(0), Jitter::default(), &policy(0, 30, Leading::Yes));
    assert_eq!(effects, [Effect::Save(Saved { waiting: Some(Origin::Webhook), seen: None, seen_with: None })]);
    let (_, effects) = step(triggers, Event::Booted, at(5), Jitter::default(), &policy(0, 30, Leading::Yes));
    assert_eq!(effects, [Effect::Deploy(Origin::Webhook)]);
}

fn polling(every: u64) -> Policy {
    Policy { poll: Some(secs(every)), ..policy(2, 30, Leading::No) }
}

fn seen(n: u32, fetched: u32) -> Event {
    Event::Seen { revision: rev(n), fetched: Some(rev(fetched)), configured: Some(rev(fetched)) }
}

#[test]
fn the_source_is_asked_once_at_a_time_and_only_a_changed_head_is_a_trigger() {
    let mut rig = Rig::new(polling(60), Saved::default());
    rig.event(200_000, Event::DeadlineReached);
    assert_eq!(rig.looks(), [60_000], "the next only when that is answered");
    rig.event(200_000, seen(1, 1));
    rig.event(261_000, seen(2, 1));
    rig.event(322_000, seen(2, 2));
    // As it was: also after a deploy of something else, of which an operator wanted that it stays.
    rig.event(383_000, Event::Seen { revision: rev(2), fetched: Some(rev(9)), configured: Some(rev(2)) });
    assert_eq!(rig.deploys(), [263_000]);
    assert_eq!(rig.looks(), [60_000, 260_000, 321_000, 382_000]);
}

#[test]
fn a_branch_that_is_set_back_to_what_was_seen_before_is_a_trigger() {
    let mut rig = Rig::new(polling(60), Saved::default());
    rig.event(61_000, seen(1, 1));
    // Pushed and told by a webhook, then set back, all between two looks.
    rig.event(122_000, seen(1, 2));
    rig.event(183_000, seen(1, 1));
    assert_eq!(rig.deploys(), [124_000]);
}

#[test]
fn a_head_that_was_seen_is_no_news_to_the_next_agent() {
    let mut rig = Rig::new(polling(60), Saved { waiting: None, seen: Some(rev(2)), seen_with: None });
    rig.event(61_000, seen(2, 1));
    assert_eq!(rig.deploys(), [0_u64; 0]);
}

#[test]
fn a_source_that_cannot_be_asked_is_told_of_once_and_asked_ever_less_often() {
    let mut rig = Rig::new(polling(1), Saved::default());
    let failed = || Event::LookFailed { text: "no route".into() };
    let mut waits = Vec::new();
    for _ in 0..9 {
        let due = rig.triggers.next_deadline(&rig.policy).expect("another look");
        let millis = u64::try_from(due.since(MonoTime::ZERO).as_millis()).expect("small");
        rig.step(millis, Event::DeadlineReached);
        rig.step(millis, failed());
        waits.push(rig.triggers.next_deadline(&rig.policy).expect("another look").since(due).as_secs());
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    let told = |rig: &Rig| rig.told.iter().filter(|(_, effect)| matches!(effect, Effect::TellUnreached { .. } | Effect::TellBack)).count();
    assert_eq!(told(&rig), 1);
    rig.event(1_000_000, seen(1, 1));
    assert_eq!(rig.told.last().map(|(_, effect)| effect), Some(&Effect::TellBack));
}

#[test]
fn nothing_is_asked_while_polling_is_off() {
    let mut rig = Rig::new(polling(60), Saved::default());
    rig.policy.poll = None;
    rig.event(500_000, Event::DeadlineReached);
    assert_eq!(rig.looks(), [0_u64; 0]);
    rig.policy.poll = Some(secs(60));
    rig.step(500_001, Event::DeadlineReached);
    assert_eq!(rig.looks(), [500_001]);
}

// ---- histories ----

#[derive(Clone, Copy, Debug)]
enum Op {
    /// A push, and the webhook that tells of it.
    Push,
    /// A push that nobody tells of.
    QuietPush,
    /// The branch is set back by one push, and nobody tells of it.
    Back,
    /// So many milliseconds pass.
    Pass(u64),
    /// The write that goes on is over.
    Write,
    /// The journal of deploys is written.
    Journal,
    /// The agent is killed, and the next begins.
    Crash,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    None,
    NothingIsSaved,
    ForgottenBeforeItIsSafe,
    DeafInABurst,
    NoCap,
    FirstTriggerCounts,
    FirstOneOnly,
    DeafPoll,
    DeafToResets,
}

impl Mistake {
    /// The policy that is wrongly gone by.
    fn policy(self, policy: &Policy) -> Policy {
        let mut other = *policy;
        match self {
            Self::NoCap => other.debounce.cap = secs(1_000_000),
            Self::FirstTriggerCounts => other.debounce.cap = other.debounce.wait,
            Self::FirstOneOnly => other.debounce.leading = Leading::Yes,
            _ => {}
        }
        other
    }

    fn step(self, triggers: Triggers, event: Event, now: MonoTime, policy: &Policy) -> (Triggers, Vec<Effect>) {
        let other = self.policy(policy);
        let deaf = self == Self::DeafInABurst && triggers.window.is_some() && event == HOOK;
        let event = if deaf { Event::DeadlineReached } else { event };
        let mut triggers = triggers;
        if self == Self::DeafToResets {
            triggers.seen_with = None;
        }
        let (mut triggers, mut effects) = step(triggers, event.clone(), now, Jitter::default(), &other);
        match self {
            Self::NothingIsSaved => effects.retain(|effect| !matches!(effect, Effect::Save(_))),
            Self::ForgottenBeforeItIsSafe if triggers.given.take().is_some() => {
                effects.push(Effect::Save(triggers.saved()));
            }
            Self::FirstOneOnly => {
                if let Some(window) = &mut triggers.window {
                    window.waiting = None;
                }
            }
            Self::DeafPoll if matches!(event, Event::Seen { .. }) => effects.retain(|effect| matches!(effect, Effect::Save(_))),
            _ => {}
        }
        if self == Self::DeafPoll && matches!(event, Event::Seen { .. }) {
            triggers.window = None;
        }
        (triggers, effects)
    }
}

/// The world around the machine: a source, a disk, and deploys that are over at once when their journal is written.
struct World {
    mistake: Mistake,
    policy: Policy,
    triggers: Triggers,
    now: u64,
    head: u32,
    /// On disk; what is being written, and who is answered then.
    disk: Saved,
    queue: Vec<Effect>,
    writing: Option<Saved>,
    unanswered: Vec<u32>,
    answered: u32,
    /// Given to the machine of deploys: in memory; on its disk.
    given: bool,
    pending: bool,
    deployed: u32,
    fetched: u32,
    deploys: u32,
    /// The triggers that wait, of this life of the agent: the first and the last.
    burst: Option<(u64, u64)>,
}

impl World {
    fn new(mistake: Mistake, policy: Policy) -> Self {
        let mut world = Self {
            mistake,
            policy,
            triggers: Triggers::default(),
            now: 0,
            head: 0,
            disk: Saved::default(),
            queue: Vec::new(),
            writing: None,
            unanswered: Vec::new(),
            answered: 0,
            given: false,
            pending: false,
            deployed: 0,
            fetched: 0,
            deploys: 0,
            burst: None,
        };
        world.event(Event::Booted).expect("nothing can be wrong yet");
        world
    }

    fn event(&mut self, event: Event) -> Result<(), TestCaseError> {
        let (triggers, effects) = self.mistake.step(std::mem::take(&mut self.triggers), event, at(self.now), &self.policy);
        self.triggers = triggers;
        if effects.iter().any(|effect| matches!(effect, Effect::Deploy(_))) {
            self.deploys += 1;
            self.burst = None;
        }
        self.queue.extend(effects);
        self.carry_out()
    }

    fn carry_out(&mut self) -> Result<(), TestCaseError> {
        while self.writing.is_none() && !self.queue.is_empty() {
            match self.queue.remove(0) {
                Effect::Save(saved) => self.writing = Some(saved),
                Effect::Deploy(_) => self.given = true,
                Effect::Look => {
                    let fetched = Some(rev(self.fetched));
                    return self.event(Event::Seen { revision: rev(self.head), configured: fetched.clone(), fetched });
                }
                Effect::TellBack | Effect::TellUnreached { .. } => {}
            }
        }
        // Whoever is answered must find it on disk.
        if self.writing.is_none() && self.queue.is_empty() {
            for push in std::mem::take(&mut self.unanswered) {
                self.answered = self.answered.max(push);
            }
        }
        Ok(())
    }

    fn apply(&mut self, op: Op) -> Result<(), TestCaseError> {
        match op {
            Op::Push => {
                self.head += 1;
                self.unanswered.push(self.head);
                self.burst = Some((self.burst.map_or(self.now, |burst| burst.0), self.now));
                self.event(HOOK)
            }
            Op::QuietPush => {
                self.head += 1;
                Ok(())
            }
            Op::Back => {
                self.head = self.head.saturating_sub(1);
                // Who was told of a push that is no more is told nothing else.
                self.answered = self.answered.min(self.head);
                self.unanswered.iter_mut().for_each(|push| *push = (*push).min(self.head));
                Ok(())
            }
            Op::Pass(millis) => self.pass(millis),
            Op::Write => {
                if let Some(saved) = self.writing.take() {
                    self.disk = saved;
                }
                self.carry_out()
            }
            Op::Journal => self.journal(),
            Op::Crash => {
                self.triggers = Triggers::new(self.disk.clone());
                (self.queue, self.writing, self.given, self.burst) = (Vec::new(), None, false, None);
                self.unanswered.clear();
                self.event(Event::Booted)
            }
        }
    }

    fn pass(&mut self, millis: u64) -> Result<(), TestCaseError> {
        let end = self.now + millis;
        while let Some(due) = self.triggers.next_deadline(&self.mistake.policy(&self.policy)).filter(|due| *due <= at(end)) {
            self.now = self.now.max(u64::try_from(due.since(MonoTime::ZERO).as_millis()).expect("small"));
            let burst = self.burst;
            let deploys = self.deploys;
            self.event(Event::DeadlineReached)?;
            // Of a leading deploy the cap counts from there, which is checked by example.
            let trailing = self.policy.debounce.leading == Leading::No;
            if let Some((first, last)) = burst.filter(|_| self.deploys > deploys && trailing) {
                let (wait, cap) = (self.policy.debounce.wait.as_millis(), self.policy.debounce.cap.as_millis());
                let waited = |since: u64| u128::from(self.now - since);
                prop_assert!(waited(last) >= wait || waited(first) >= cap, "deployed before the burst was over");
            }
        }
        self.now = end;
        if let Some((first, _)) = self.burst.filter(|_| self.writing.is_none()) {
            prop_assert!(u128::from(self.now - first) <= self.policy.debounce.cap.as_millis(), "waits longer than its cap");
        }
        Ok(())
    }

    /// The machine of deploys has written what it was given, and fetches the newest: all in one, as each part has its own histories.
    fn journal(&mut self) -> Result<(), TestCaseError> {
        self.pending |= std::mem::take(&mut self.given);
        if std::mem::take(&mut self.pending) {
            (self.deployed, self.fetched) = (self.head, self.head);
        }
        // Not while something for the machine of deploys still waits for the disk.
        if self.writing.is_none() && self.queue.is_empty() && self.triggers.is_given() {
            return self.event(Event::Safe);
        }
        Ok(())
    }

    /// Everything that can end ends.
    fn rest(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..4 {
            for op in [Op::Write, Op::Write, Op::Pass(200_000), Op::Write, Op::Write, Op::Journal, Op::Write] {
                self.apply(op)?;
            }
        }
        Ok(())
    }
}

fn live(mistake: Mistake, policy: Policy, ops: &[Op]) -> Result<(), TestCaseError> {
    let mut world = World::new(mistake, policy);
    for op in ops {
        world.apply(*op)?;
    }
    world.rest()?;
    prop_assert!(world.deployed >= world.answered, "push {} was answered, and {} is live", world.answered, world.deployed);
    if policy.poll.is_some() {
        prop_assert_eq!(world.deployed, world.head, "a push was never found");
    }
    prop_assert_eq!(world.disk.waiting, None, "remembered for ever");
    let deploys = world.deploys;
    world.rest()?;
    prop_assert_eq!(world.deploys, deploys, "deployed without a trigger");
    Ok(())
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        4 => Just(Op::Push),
        1 => Just(Op::QuietPush),
        1 => Just(Op::Back),
        1 => Just(Op::Pass(70_000)),
        3 => prop_oneof![Just(0_u64), Just(1), Just(1_999), Just(2_000), Just(2_001), 0..6_000_u64].prop_map(Op::Pass),
        3 => Just(Op::Write),
        2 => Just(Op::Journal),
        1 => Just(Op::Crash),
    ];
    proptest::collection::vec(op, 0..40)
}

fn policies() -> impl Strategy<Value = Policy> {
    (prop_oneof![Just(0), Just(2)], prop_oneof![Just(2), Just(5)], any::<bool>(), any::<bool>()).prop_map(|(wait, cap, leading, poll)| {
        let leading = if leading { Leading::Yes } else { Leading::No };
        Policy { poll: poll.then_some(secs(60)), ..policy(wait, cap, leading) }
    })
}

proptest! {
    #![proptest_config(Config { cases: 500, ..Config::default() })]

    #[test]
    fn no_trigger_is_lost_or_overtaken_whatever_arrives_and_whoever_is_killed(policy in policies(), ops in ops()) {
        live(Mistake::None, policy, &ops)?;
    }
}

#[test]
fn mistakes_of_triggers_are_found() {
    let missed = |mistake: Mistake, reason: &str| {
        let config = Config { cases: 2_000, failure_persistence: None, max_shrink_iters: 0, ..Config::default() };
        let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
        match runner.run(&(policies(), ops()), |(policy, ops)| live(mistake, policy, &ops)) {
            Err(TestError::Fail(why, _)) if why.to_string().contains(reason) => None,
            other => {
                Some(format!("{mistake:?}, `{reason}`: {:?}", other.err().map(|why| why.to_string().chars().take(200).collect::<String>())))
            }
        }
    };
    let all = [
        (Mistake::NothingIsSaved, "is live"),
        (Mistake::ForgottenBeforeItIsSafe, "is live"),
        (Mistake::DeafInABurst, "waits longer than its cap"),
        (Mistake::NoCap, "waits longer than its cap"),
        (Mistake::FirstTriggerCounts, "deployed before the burst was over"),
        (Mistake::FirstOneOnly, "waits longer than its cap"),
        (Mistake::DeafPoll, "never found"),
        (Mistake::DeafToResets, "never found"),
    ];
    let missed: Vec<String> = all.into_iter().filter_map(|(mistake, reason)| missed(mistake, reason)).collect();
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}
