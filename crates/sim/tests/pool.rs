//! Random histories of a pool among simulated processes: what must hold whatever happens. `PROPTEST_CASES` makes them more than 256.

#[path = "pool/mistakes.rs"]
mod mistakes;

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use selfstart_core::id::{ProcessId, ReleaseId, Revision};
use selfstart_core::policy::{
    FlappingPolicy, MemoryAction, MemoryPolicy, MemoryRung, PoolPolicy, ReadyHow, ReadyPolicy, RestartPolicy, StopLadder, StopRung,
    UpdateHow, UpdatePolicy, WorkerPolicy,
};
use selfstart_core::pool::{self, Effect, Event, Pool, RestartWhy, Scale, Which};
use selfstart_core::signal::Signal;
use selfstart_core::time::MonoTime;
use selfstart_core::units::Bytes;
use selfstart_core::worker::{self, Happening, Minding, Sequel, StaleJobSeen, Verdict, VerdictKind, What};
use selfstart_sim::{Temper, World};

use crate::mistakes::Mistake;

/// What somebody does.
#[derive(Clone, Debug)]
enum Op {
    Tell(Event),
    Sample(u32, Option<u64>),
    Stale(u32),
    AgentKilled,
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn release(number: u8) -> (ReleaseId, Revision) {
    let release = format!("20261122T1015{number:02}Z-1a2b3c4").parse().expect("a release");
    (release, format!("{number:040x}").parse().expect("a revision"))
}

fn roll_out(number: u8) -> Event {
    let (release, revision) = release(number);
    Event::RollOut { release, revision }
}

/// A pool in a world, with what is held against it after every step.
struct Node {
    world: World,
    pool: Pool,
    policy: PoolPolicy,
    mistake: Mistake,
    /// By slot: the wait that was announced, and for which generation (`None`: for any), until somebody asks for something else.
    waits: BTreeMap<u32, (MonoTime, Option<u64>)>,
    /// By slot: the generation of its last start.
    started: BTreeMap<u32, u64>,
    /// By slot: when workers ended that nobody had asked to, and of which generation.
    crashes: BTreeMap<u32, (u64, Vec<MonoTime>)>,
    /// The rollout that has begun and not ended.
    rollout: Option<u64>,
}

impl Node {
    fn new(policy: PoolPolicy, tempers: Vec<Temper>, mistake: Mistake) -> Self {
        let (world, pool) = (World::new(tempers), Pool::new(&policy));
        Self { world, pool, policy, mistake, waits: BTreeMap::new(), started: BTreeMap::new(), crashes: BTreeMap::new(), rollout: None }
    }

    fn step(&mut self, event: Event) {
        let pool = std::mem::take(&mut self.pool);
        let (pool, effects) = self.mistake.step(pool, event, self.world.now, &self.policy);
        self.pool = pool;
        for effect in &effects {
            self.check(effect);
            if let Effect::Slot { slot, effect } = effect {
                self.world.carry_out(*slot, effect);
            }
        }
        for number in 0..self.pool.count() {
            let slot = self.pool.slot(number).expect("every slot up to the count is in the list");
            assert!(slot.is_occupied() || !self.world.is_occupied(number), "slot {number} is free before its worker is gone: {slot:?}");
        }
        let occupied = self.pool.slots().filter(|(_, slot)| slot.is_occupied()).count();
        let ready = self.pool.slots().filter(|(_, slot)| slot.ready_since().is_some()).count();
        assert_eq!((self.pool.occupied() as usize, self.pool.ready() as usize), (occupied, ready), "the counts drifted");
    }

    fn check(&mut self, effect: &Effect) {
        match effect {
            Effect::Slot { slot, effect: worker::Effect::Spawn { target, .. } } => {
                // Another generation does not inherit a wait.
                let wait = self.waits.remove(slot).filter(|(_, of)| of.is_none_or(|of| of == target.generation.0));
                self.started.insert(*slot, target.generation.0);
                let until = wait.filter(|(until, _)| self.world.now < *until);
                assert!(until.is_none(), "slot {slot} starts at {:?}, in a wait until {until:?}", self.world.now);
            }
            Effect::Slot { slot, effect: worker::Effect::Tell(Happening::BackedOff { wait, crashes: 0 }) } => {
                self.waits.insert(*slot, (self.world.now + *wait, None));
            }
            Effect::Slot { slot, effect: worker::Effect::Tell(Happening::BackedOff { wait, .. } | Happening::Quarantined { wait }) } => {
                self.waits.insert(*slot, (self.world.now + *wait, self.started.get(slot).copied()));
            }
            Effect::Slot { slot, effect: worker::Effect::Tell(Happening::Judged(verdict)) } => self.judged(*slot, verdict),
            Effect::RolloutBegun { target } => {
                assert_eq!(self.rollout, None, "a rollout begins before the last one ended");
                self.rollout = Some(target.generation.0);
            }
            Effect::RolledOut { target, .. } | Effect::RolloutFailed { target, .. } | Effect::RolloutDropped { target, .. } => {
                assert_eq!(self.rollout.take(), Some(target.generation.0), "another rollout ended than the one that had begun");
            }
            Effect::Slot { .. } => {}
        }
    }

    fn judged(&mut self, slot: u32, verdict: &Verdict) {
        let (What::Ended { sequel, .. } | What::StartFailed { sequel, .. }) = &verdict.what else { return };
        let crash = match verdict.kind() {
            VerdictKind::Exit | VerdictKind::Signal | VerdictKind::Unknown | VerdictKind::NotReady | VerdictKind::StartFailed => true,
            VerdictKind::Memory | VerdictKind::Oom | VerdictKind::Stale | VerdictKind::Deploy | VerdictKind::Scale => false,
            VerdictKind::Operator | VerdictKind::Reload | VerdictKind::Drain => false,
        };
        let punished = matches!(sequel, Sequel::Quarantined { .. } | Sequel::Backoff { crashes: 1.., .. });
        assert!(crash || !punished, "slot {slot} is punished for what was asked of it: {verdict}");
        if !crash {
            return;
        }
        // More crashes than `flapping` allows in its window, with nobody asking for it, are a hot loop.
        let flapping = self.policy.worker.restart.flapping;
        let (of, crashes) = self.crashes.entry(slot).or_default();
        if *of != verdict.generation.0 {
            (*of, *crashes) = (verdict.generation.0, Vec::new());
        }
        crashes.retain(|at| self.world.now.since(*at) < flapping.within);
        crashes.push(self.world.now);
        assert!(crashes.len() <= flapping.crashes as usize, "slot {slot} crashes in a hot loop: {crashes:?}");
    }

    /// Lets time pass until `end`; what the keeper says goes before a deadline of the same moment.
    fn until(&mut self, end: MonoTime) {
        let mut at_once = 0;
        loop {
            let (news, due) = (self.world.next_at(), pool::next_deadline(&self.pool));
            let before = self.world.now;
            match (news, due) {
                (Some(news), due) if news <= end && due.is_none_or(|due| news <= due.max(before)) => {
                    if let Some((slot, event)) = self.world.happen() {
                        self.step(Event::Slot { slot, event });
                    }
                }
                (_, Some(due)) if due <= end => {
                    self.world.now = before.max(due);
                    self.step(Event::DeadlineReached);
                }
                _ => break,
            }
            at_once = if self.world.now == before { at_once + 1 } else { 0 };
            assert!(at_once < 2_000, "it goes on and on at one moment: {:?}", self.pool);
        }
        self.world.now = end;
    }

    fn pass(&mut self, span: Duration) {
        self.until(self.world.now + span);
    }

    /// A wish: it may end a wait, and what is announced after it counts again.
    fn tell(&mut self, event: Event) {
        self.waits.clear();
        self.crashes.clear();
        self.step(event);
    }

    fn act(&mut self, op: Op) {
        match op {
            Op::Tell(event) => self.tell(event),
            Op::Sample(slot, mb) => {
                if let Some(start) = self.pool.slot(slot).and_then(worker::Slot::start) {
                    let sample = mb.map(|mb| Bytes(mb * 1_000_000));
                    self.step(Event::Slot { slot, event: worker::Event::MemorySample { start, sample } });
                }
            }
            Op::Stale(slot) => {
                if let Some(start) = self.pool.slot(slot).and_then(worker::Slot::start) {
                    let child = ProcessId { pid: 9, start_ticks: 9 };
                    let (age, timeout) = (ms(2_000), ms(1_000));
                    let job = StaleJobSeen { child, title: b"t"[..].into(), class: None, queue: "q".into(), age, timeout };
                    self.step(Event::Slot { slot, event: worker::Event::StaleJob { start, job } });
                }
            }
            Op::AgentKilled => self.agent_killed(),
        }
    }

    /// The agent dies, and another one reads what it saved.
    fn agent_killed(&mut self) {
        let saved = serde_json::to_vec(&self.mistake.saved(&self.pool, &self.policy)).expect("a pool can be written");
        self.pool = Pool::recall(serde_json::from_slice(&saved).expect("and read back"), &self.policy);
        self.rollout = None;
        self.waits.clear();
        self.crashes.clear();
        let recalled: Vec<_> = self.pool.slots().map(|(number, slot)| (number, slot.start())).collect();
        for (slot, start) in recalled {
            for event in self.world.tell_again(slot, start) {
                self.step(Event::Slot { slot, event });
            }
        }
        self.step(Event::Reloaded);
        if let Some(target) = self.pool.target().cloned() {
            self.step(Event::RollOut { release: target.release.clone(), revision: target.revision.clone() });
        }
    }

    /// How many slots serve: by the pool's word, and by what the world knows of their workers.
    fn serving(&self) -> u32 {
        let needed = match self.policy.worker.ready.how {
            ReadyHow::After(up) => up,
            ReadyHow::Tcp(_) | ReadyHow::Command(_) => Temper::good().ready.unwrap_or_default(),
        };
        let serves = |number: &u32| {
            let ready = self.pool.slot(*number).is_some_and(|slot| slot.ready_since().is_some());
            ready && self.world.age(*number).is_some_and(|age| age >= needed)
        };
        u32::try_from((0..self.pool.count()).filter(serves).count()).expect("a count")
    }

    /// Nobody does anything any more: what was begun must end.
    fn quiet_end(&mut self) {
        self.pass(Duration::from_secs(1_800));
        assert_eq!(self.pool.rolling_out(), None, "a rollout does not end: {:?}", self.pool);
        assert_eq!(self.rollout, None);
        self.tell(Event::Stop(Which::All));
        let patience = self.policy.worker.stop.patience();
        self.pass(patience + Duration::from_secs(1));
        assert!(self.pool.is_empty() && self.world.is_empty(), "a stop does not end: {:?} {:?}", self.pool, self.world);
        assert!(self.pool.slots().all(|(_, slot)| slot.is_stopped()), "something still wants to start: {:?}", self.pool);
    }
}

fn which() -> impl Strategy<Value = Which> {
    prop_oneof![2 => Just(Which::All), 3 => (0..5_u32).prop_map(Which::Slot)]
}

fn op() -> impl Strategy<Value = Op> {
    let why = prop_oneof![Just(RestartWhy::Operator), Just(RestartWhy::Reload)];
    let tell = prop_oneof![
        4 => (1..4_u8).prop_map(roll_out),
        2 => which().prop_map(Event::Start),
        2 => which().prop_map(Event::Stop),
        2 => (which(), why).prop_map(|(which, why)| Event::Restart { which, why }),
        1 => which().prop_map(Event::KillNow),
        1 => which().prop_map(Event::Pause),
        2 => which().prop_map(Event::Resume),
        1 => which().prop_map(|which| Event::Signal { which, signal: Signal::Term }),
        2 => (0..5_u32).prop_map(|to| Event::Scale(Scale::To(to))),
        1 => Just(Event::Scale(Scale::Config)),
        1 => Just(Event::Drain),
        2 => Just(Event::Undrain),
    ];
    let sample = prop_oneof![Just(None), Just(Some(50)), Just(Some(360)), Just(Some(600))];
    prop_oneof![
        6 => tell.prop_map(Op::Tell),
        2 => (0..4_u32, sample).prop_map(|(slot, mb)| Op::Sample(slot, mb)),
        1 => (0..4_u32).prop_map(Op::Stale),
        1 => Just(Op::AgentKilled),
    ]
}

/// Leans on the edges: at once, within a spawn, within a ladder, beyond it.
fn delay() -> impl Strategy<Value = Duration> {
    prop_oneof![Just(0), Just(1), Just(2), 0..1_500_u64, Just(9_999), Just(10_000), 0..90_000_u64].prop_map(ms)
}

fn temper() -> impl Strategy<Value = Temper> {
    let obeys = prop_oneof![
        3 => Just(vec![(Signal::Quit, ms(50)), (Signal::Term, ms(1))]),
        1 => Just(vec![(Signal::Term, ms(300))]),
        1 => Just(vec![]),
    ];
    let some = |span: u64| Some(ms(span));
    let lives = prop_oneof![3 => Just(None), 1 => Just(some(0)), 2 => (0..3_000_u64).prop_map(some), 1 => Just(some(61_000))];
    let ready = prop_oneof![4 => (0..2_000_u64).prop_map(some), 1 => Just(None)];
    let spawn = prop_oneof![6 => (0..20_u64).prop_map(some), 1 => Just(None)];
    let echo = prop_oneof![2 => Just(None), 1 => (0..5_000_u64).prop_map(some)];
    (spawn, ready, lives, obeys, 0..3_u32, echo).prop_map(|(spawn, ready, lives, obeys, leftovers, echo)| Temper {
        spawn,
        ready,
        lives,
        obeys,
        leftovers,
        echo,
    })
}

fn policy() -> impl Strategy<Value = PoolPolicy> {
    let how = prop_oneof![4 => Just(UpdateHow::OneAtATime), 1 => Just(UpdateHow::AllAtOnce)];
    let ready = prop_oneof![Just(ReadyHow::After(ms(1_000))), Just(ReadyHow::Tcp("127.0.0.1:1".into()))];
    let rungs = prop_oneof![
        4 => Just(vec![(Signal::Quit, 5_000), (Signal::Term, 1_000)]),
        1 => Just(vec![]),
        1 => Just(vec![(Signal::Term, 0)]),
    ];
    let settle = prop_oneof![Just(0), 0..3_000_u64];
    let stagger = prop_oneof![3 => Just(0), 1 => Just(700_u64)];
    (0..5_u32, how, 1..3_u32, settle, stagger, ready, rungs).prop_map(|(count, how, max_unavailable, settle, stagger, ready, rungs)| {
        let rung = |limit, hits, action| MemoryRung { limit: Bytes(limit), hits, of: hits, action };
        let memory = vec![rung(350_000_000, 2, MemoryAction::Drain), rung(500_000_000, 1, MemoryAction::Kill)];
        PoolPolicy {
            name: "p".into(),
            count,
            update: UpdatePolicy { how, max_unavailable, settle: ms(settle), confirm: Duration::ZERO },
            start_stagger: ms(stagger),
            after: Vec::new(),
            worker: WorkerPolicy {
                stop: StopLadder { rungs: rungs.into_iter().map(|(signal, wait)| StopRung { signal, wait: ms(wait) }).collect() },
                restart: RestartPolicy {
                    flapping: FlappingPolicy { crashes: 5, within: ms(60_000), retry_after: ms(300_000) },
                    ..RestartPolicy::default()
                },
                ready: ReadyPolicy { how: ready, within: ms(10_000) },
                memory: Some(MemoryPolicy { ladder: memory, every: ms(10_000) }),
                stale: None,
            },
        }
    })
}

/// In any history: never two workers in a slot, none freed before its exit and the end of its tree, no start number twice, no start
/// inside a wait, no punishment for what was asked, no hot loop, rollouts one after the other, all of which end, as does every stop.
fn live(mistake: Mistake, policy: PoolPolicy, tempers: Vec<Temper>, ops: Vec<(Duration, Op)>) {
    let mut node = Node::new(policy, tempers, mistake);
    node.tell(roll_out(1));
    for (delay, op) in ops {
        node.pass(delay);
        node.act(op);
    }
    node.quiet_end();
}

/// Workers that do what they should are replaced without more than `max_unavailable` of them missing, by whatever train of rollouts,
/// and in the end all run what was asked for last.
fn roll(mistake: Mistake, policy: PoolPolicy, rollouts: Vec<(Duration, Event)>) {
    let update = UpdatePolicy { how: UpdateHow::OneAtATime, ..policy.update };
    let policy = PoolPolicy { update, count: policy.count + 1, start_stagger: ms(0), ..policy };
    let mut node = Node::new(policy, Vec::new(), mistake);
    node.tell(roll_out(1));
    node.pass(ms(5_000));
    assert!(node.pool.is_ready());
    let mut last = release(1).0;
    for (delay, event) in rollouts {
        let end = node.world.now + delay;
        while node.world.now < end {
            node.pass(ms(50).min(node.world.now.until(end)));
            let serving = node.serving();
            assert!(serving + update.max_unavailable >= node.pool.count(), "only {serving} of {} are there", node.pool.count());
        }
        if let Event::RollOut { release, .. } = &event {
            last = release.clone();
        }
        node.tell(event);
    }
    node.pass(Duration::from_secs(600));
    assert!(node.pool.is_ready() && node.pool.rolling_out().is_none(), "not all ready: {:?}", node.pool);
    let runs_last = |slot: &worker::Slot| slot.target().is_some_and(|target| target.release == last);
    assert!(node.pool.slots().all(|(_, slot)| runs_last(slot)), "not all run {last}: {:?}", node.pool);
}

/// Crashes alone, with nobody asking for anything: waits are kept to, no loop is hot, and nothing is given up.
fn crash(mistake: Mistake, policy: PoolPolicy, tempers: Vec<Temper>) {
    let mut node = Node::new(policy, tempers, mistake);
    node.tell(roll_out(1));
    node.pass(Duration::from_secs(4_000));
    assert!(node.pool.slots().all(|(_, slot)| slot.minding() == Minding::Minded && !slot.is_stopped()), "given up: {:?}", node.pool);
    node.quiet_end();
}

fn lives() -> impl Strategy<Value = (PoolPolicy, Vec<Temper>, Vec<(Duration, Op)>)> {
    (policy(), prop::collection::vec(temper(), 0..30), prop::collection::vec((delay(), op()), 0..25))
}

fn rolls() -> impl Strategy<Value = (PoolPolicy, Vec<(Duration, Event)>)> {
    let event = prop_oneof![
        3 => (1..4_u8).prop_map(roll_out),
        1 => Just(Event::Restart { which: Which::All, why: RestartWhy::Operator }),
    ];
    (policy(), prop::collection::vec((delay(), event), 1..6))
}

fn crashes() -> impl Strategy<Value = (PoolPolicy, Vec<Temper>)> {
    (policy(), prop::collection::vec(temper(), 0..60))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("seeds"))), ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_slots_hold_one_worker_and_everything_ends((policy, tempers, ops) in lives()) {
        live(Mistake::None, policy, tempers, ops);
    }

    #[test]
    fn a_rollout_leaves_all_but_max_unavailable_ready((policy, rollouts) in rolls()) {
        roll(Mistake::None, policy, rollouts);
    }

    #[test]
    fn crashing_workers_are_restarted_for_ever_but_never_in_a_hot_loop((policy, tempers) in crashes()) {
        crash(Mistake::None, policy, tempers);
    }
}
