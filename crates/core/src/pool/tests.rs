//! Examples, named as sentences. The keeper here answers at once; random histories with slow, deaf and crashing workers are in crates/sim.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::state::Entry;
use super::*;
use crate::backoff::Jitter;
use crate::id::{Generation, ProcessId, ReleaseId, StartNo};
use crate::policy::{PoolPolicy, ReadyPolicy, RestartPolicy, StopLadder, UpdateHow, UpdatePolicy, WorkerPolicy};
use crate::time::MonoTime;
use crate::worker::{self, ExitHow, SlotState, VerdictKind};

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// `ready: {after: 1s}`, `stop: [TERM 10s, KILL]`, one at a time.
fn policy(count: u32) -> PoolPolicy {
    PoolPolicy {
        name: "p".into(),
        count,
        update: UpdatePolicy::default(),
        start_stagger: Duration::ZERO,
        after: Vec::new(),
        worker: WorkerPolicy {
            stop: StopLadder::default(),
            restart: RestartPolicy::default(),
            ready: ReadyPolicy::default(),
            memory: None,
            stale: None,
        },
    }
}

fn release(number: u8) -> ReleaseId {
    format!("20261122T1015{number:02}Z-1a2b3c4").parse().expect("a release")
}

fn roll_out(number: u8) -> Event {
    Event::RollOut { release: release(number), revision: format!("{number:040x}").parse().expect("a revision") }
}

/// A pool and a keeper that answers at once.
struct Town {
    pool: Pool,
    policy: PoolPolicy,
    now: MonoTime,
    /// Workers of these end as soon as they are started.
    broken: BTreeSet<ReleaseId>,
    /// What the pool told of itself, oldest first.
    told: Vec<Effect>,
    /// Starts, in order.
    starts: Vec<(MonoTime, u32, StartNo, u64)>,
}

impl Town {
    fn new(policy: PoolPolicy) -> Self {
        let (pool, now) = (Pool::new(&policy), MonoTime::from_boot(ms(1_000_000)));
        Self { pool, policy, now, broken: BTreeSet::new(), told: Vec::new(), starts: Vec::new() }
    }

    /// A pool of so many ready workers of release 1.
    fn ready(count: u32) -> Self {
        let mut town = Self::new(policy(count));
        town.tell(roll_out(1)).pass(2_000);
        assert!(town.pool.is_ready());
        town
    }

    fn tell(&mut self, event: Event) -> &mut Self {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let pool = std::mem::take(&mut self.pool);
            let (pool, effects) = step(pool, event, self.now, &self.policy);
            self.pool = pool;
            for effect in effects {
                match effect {
                    Effect::Slot { slot, effect } => events.extend(self.answer(slot, &effect).map(|event| Event::Slot { slot, event })),
                    told => self.told.push(told),
                }
            }
        }
        self
    }

    fn answer(&mut self, slot: u32, effect: &worker::Effect) -> impl Iterator<Item = worker::Event> + use<> {
        let exited = |start| worker::Event::Exited { start, how: ExitHow::Code(0), jitter: Jitter(0) };
        let answers = match effect {
            worker::Effect::Spawn { start, target } => {
                self.starts.push((self.now, slot, *start, target.generation.0));
                let process = ProcessId { pid: 7, start_ticks: start.0 };
                let spawned = worker::Event::Spawned { start: *start, process };
                if self.broken.contains(&target.release) { vec![spawned, exited(*start)] } else { vec![spawned] }
            }
            worker::Effect::Signal { start, .. } | worker::Effect::KillTree { start } => vec![exited(*start)],
            worker::Effect::ClearTree { start } => vec![worker::Event::TreeGone { start: *start, killed: 0 }],
            worker::Effect::WatchReady { .. } | worker::Effect::KillJob { .. } | worker::Effect::Tell(_) => Vec::new(),
        };
        answers.into_iter()
    }

    fn pass(&mut self, millis: u64) -> &mut Self {
        let end = self.now + ms(millis);
        while let Some(due) = next_deadline(&self.pool).filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.tell(Event::DeadlineReached);
        }
        self.now = end;
        self
    }

    fn crash(&mut self, slot: u32) -> &mut Self {
        let start = self.pool.slot(slot).and_then(worker::Slot::start).expect("a worker");
        self.tell(Event::Slot { slot, event: worker::Event::Exited { start, how: ExitHow::Code(1), jitter: Jitter(0) } })
    }

    /// The agent dies, and the next one finds every worker alive.
    fn agent_killed(&mut self) -> &mut Self {
        let saved = self.pool.saved();
        self.pool = Pool::recall(saved, &self.policy);
        let there: Vec<_> = self.pool.slots().filter_map(|(number, slot)| Some((number, slot.start()?, slot.target().cloned()?))).collect();
        for (slot, start, target) in there {
            let (process, since) = (ProcessId { pid: 7, start_ticks: start.0 }, self.now);
            self.tell(Event::Slot { slot, event: worker::Event::Adopted { start, process, target, since, ready_since: None } });
        }
        self.tell(Event::Reloaded)
    }

    /// What each slot shows, and the number of the release that it runs or will run.
    fn shown(&self) -> Vec<(u32, SlotState, Option<u8>)> {
        let number = |release: &ReleaseId| (1..9_u8).find(|number| self::release(*number) == *release);
        let of = |slot: &worker::Slot| slot.target().and_then(|target| number(&target.release));
        self.pool.slots().map(|(number, slot)| (number, slot.shown(), of(slot))).collect()
    }

    /// What the pool told since the last time, in short.
    fn news(&mut self) -> Vec<String> {
        let short = |effect: Effect| match effect {
            Effect::RolloutBegun { target } => format!("begun {}", target.generation),
            Effect::RolledOut { target, ready, failing } => format!("done {}: {ready} ready, {failing} failing", target.generation),
            Effect::RolloutFailed { target, slot, verdict } => {
                format!("failed {} in {slot}: {}", target.generation, verdict.map_or("?", |verdict| verdict.kind().name()))
            }
            Effect::RolloutDropped { target, why } => format!("dropped {}: {why:?}", target.generation),
            Effect::Slot { .. } => String::new(),
        };
        std::mem::take(&mut self.told).into_iter().map(short).collect()
    }
}

use SlotState::{Backoff, Paused, Ready, Starting, Stopped};

#[test]
fn a_rollout_replaces_one_slot_after_the_other_each_ready_before_the_next() {
    let mut town = Town::ready(3);
    town.news();
    town.tell(roll_out(2));
    assert_eq!(town.shown(), [(0, Starting, Some(2)), (1, Ready, Some(1)), (2, Ready, Some(1))]);
    town.pass(999);
    assert_eq!(town.pool.ready(), 2);
    town.pass(1);
    assert_eq!(town.shown(), [(0, Ready, Some(2)), (1, Starting, Some(2)), (2, Ready, Some(1))]);
    town.pass(2_000);
    assert_eq!(town.news(), ["begun 2", "done 2: 3 ready, 0 failing"]);
    assert!(town.pool.is_ready());
}

#[test]
fn a_replaced_slot_settles_before_the_next_is_taken() {
    let mut town = Town::ready(2);
    town.policy.update.settle = ms(5_000);
    town.tell(roll_out(2)).pass(5_999);
    assert_eq!(town.shown(), [(0, Ready, Some(2)), (1, Ready, Some(1))]);
    town.pass(1);
    assert_eq!(town.shown(), [(0, Ready, Some(2)), (1, Starting, Some(2))]);
}

#[test]
fn all_at_once_means_all() {
    let mut town = Town::ready(3);
    town.policy.update.how = UpdateHow::AllAtOnce;
    town.tell(roll_out(2));
    assert_eq!(town.pool.ready(), 0);
    town.pass(1_000);
    assert!(town.pool.is_ready());
}

#[test]
fn a_slot_that_was_well_fails_the_rollout_and_a_rollback_touches_only_what_was_replaced() {
    let mut town = Town::ready(3);
    town.broken.insert(release(2));
    town.tell(roll_out(2));
    assert_eq!(town.shown(), [(0, Backoff, Some(2)), (1, Ready, Some(1)), (2, Ready, Some(1))]);
    assert_eq!(town.news()[2..], ["begun 2", "failed 2 in 0: exit"]);
    town.crash(1).pass(500);
    assert_eq!(town.shown()[1], (1, Starting, Some(1)), "what had not had its turn keeps what it ran, also when it crashes");
    let starts = town.starts.len();
    town.tell(roll_out(1)).pass(2_000);
    assert_eq!(town.shown(), [(0, Ready, Some(1)), (1, Ready, Some(1)), (2, Ready, Some(1))]);
    let after: Vec<_> = town.starts[starts..].iter().map(|(_, slot, _, generation)| (*slot, *generation)).collect();
    assert_eq!(after, [(0, 3)], "a rollback has a generation of its own");
}

#[test]
fn a_slot_that_was_failing_before_has_no_vote_and_tries_the_new_release_first() {
    let mut town = Town::ready(2);
    town.broken.insert(release(1));
    town.crash(1).pass(3_000);
    assert_eq!(town.shown(), [(0, Ready, Some(1)), (1, Backoff, Some(1))]);
    town.news();
    town.broken = BTreeSet::from([release(2)]);
    town.tell(roll_out(2));
    // Slot 1 crashes into a wait at the new release and fails nothing; slot 0, which was well, does.
    assert_eq!(town.news(), ["begun 2", "failed 2 in 0: exit"]);
    town.broken.clear();
    town.tell(roll_out(3)).pass(10_000);
    assert_eq!(town.shown(), [(0, Ready, Some(3)), (1, Ready, Some(3))]);
    assert_eq!(town.news(), ["begun 3", "done 3: 2 ready, 0 failing"]);
}

#[test]
fn a_first_rollout_has_no_votes_and_says_how_many_failed() {
    let mut town = Town::new(policy(2));
    town.broken.insert(release(1));
    town.tell(roll_out(1));
    assert_eq!(town.news(), ["begun 1", "done 1: 0 ready, 2 failing"]);
}

#[test]
fn a_slot_without_a_vote_has_none_either_when_the_agent_ended_during_the_rollout() {
    let mut town = Town::new(policy(1));
    town.broken.extend([release(1), release(3)]);
    town.tell(roll_out(1)).tell(roll_out(2));
    assert_eq!(town.shown(), [(0, Starting, Some(2))]);
    town.agent_killed();
    town.news();
    // Its worker has not crashed yet, which is no sign that it is well.
    town.tell(roll_out(3)).pass(5_000);
    assert_eq!(town.news(), ["begun 3", "done 3: 0 ready, 1 failing"]);
}

#[test]
fn a_slot_that_is_still_starting_when_the_agent_comes_back_is_waited_for() {
    let mut town = Town::ready(2);
    town.tell(roll_out(2)).pass(500);
    assert_eq!(town.shown(), [(0, Starting, Some(2)), (1, Ready, Some(1))]);
    town.agent_killed().news();
    town.tell(roll_out(2));
    assert_eq!((town.shown()[1], town.news()), ((1, Ready, Some(1)), vec!["begun 2".to_owned()]), "one at a time");
    town.pass(999);
    assert_eq!(town.news(), Vec::<String>::new());
    town.pass(5_000);
    assert_eq!(town.news(), ["done 2: 2 ready, 0 failing"]);
}

#[test]
fn a_slot_keeps_its_vote_when_the_agent_ends_during_the_rollout() {
    for crashes in [0, 1] {
        let mut town = Town::ready(2);
        town.tell(roll_out(2));
        // The first restart is at once.
        for _ in 0..crashes {
            town.crash(0);
        }
        assert_eq!(town.shown()[0], (0, Starting, Some(2)));
        // Killed again before it went on with the rollout.
        town.agent_killed().agent_killed().news();
        town.tell(roll_out(2));
        for _ in crashes..2 {
            town.crash(0);
        }
        assert_eq!(town.news(), ["begun 2", "failed 2 in 0: exit"], "after {crashes} crashes");
        assert_eq!(town.shown()[1], (1, Ready, Some(1)), "the other one keeps what it runs");
    }
}

#[test]
fn a_worker_that_crashes_while_no_agent_is_there_still_votes() {
    let mut town = Town::ready(2);
    town.tell(roll_out(2)).crash(0);
    town.agent_killed().crash(0).news();
    town.tell(roll_out(2));
    assert_eq!(town.news(), ["begun 2", "failed 2 in 0: exit"]);
}

#[test]
fn a_slot_that_starts_again_long_after_its_rollout_has_no_vote_on_it() {
    let mut town = Town::ready(2);
    town.crash(1);
    assert_eq!(town.shown()[1], (1, Starting, Some(1)));
    town.agent_killed().news();
    town.tell(roll_out(1)).crash(1);
    assert_eq!(town.news(), ["begun 1", "done 1: 0 ready, 1 failing"]);
}

#[test]
fn a_slot_that_starts_at_the_release_from_before_does_not_hold_up_a_rollout_for_ever() {
    let mut town = Town::ready(2);
    town.broken.insert(release(2));
    town.tell(roll_out(2)).crash(1);
    assert_eq!(town.shown(), [(0, Backoff, Some(2)), (1, Starting, Some(1))]);
    town.news();
    town.tell(roll_out(1)).crash(1).pass(1_000);
    assert_eq!(town.news(), ["begun 3", "done 3: 1 ready, 1 failing"]);
}

#[test]
fn the_same_release_again_is_already_so_and_a_failed_one_is_tried_again() {
    let mut town = Town::ready(2);
    town.news();
    let starts = town.starts.len();
    town.tell(roll_out(1));
    assert_eq!((town.news(), town.starts.len()), (vec![], starts));
    town.broken.insert(release(2));
    town.tell(roll_out(2));
    town.broken.clear();
    town.news();
    town.tell(roll_out(2)).pass(12_000);
    assert_eq!(town.news(), ["begun 3", "done 3: 2 ready, 0 failing"]);
}

#[test]
fn a_newer_rollout_takes_the_place_of_an_older_one() {
    let mut town = Town::ready(3);
    town.news();
    town.tell(roll_out(2)).pass(500).tell(roll_out(3));
    assert_eq!(town.news(), ["begun 2", "dropped 2: Superseded(Generation(3))", "begun 3"]);
    town.pass(30_000);
    assert_eq!(town.shown(), [(0, Ready, Some(3)), (1, Ready, Some(3)), (2, Ready, Some(3))]);
    assert!(town.starts.iter().all(|(_, slot, _, generation)| *slot == 0 || *generation != 2), "only slot 0 ever ran it");
}

#[test]
fn slots_that_an_operator_stopped_stay_stopped_and_start_at_the_new_target() {
    let mut town = Town::ready(2);
    town.tell(Event::Stop(Which::Slot(0))).tell(roll_out(2)).pass(10_000);
    assert_eq!(town.shown(), [(0, Stopped, None), (1, Ready, Some(2))]);
    assert!(town.pool.is_ready(), "what is not wanted is not missed");
    town.tell(Event::Start(Which::Slot(0))).pass(1_000);
    assert_eq!(town.shown(), [(0, Ready, Some(2)), (1, Ready, Some(2))]);
}

#[test]
fn an_operators_words_can_be_said_twice() {
    for words in [Event::Stop(Which::All), Event::Pause(Which::All), Event::Drain, Event::Scale(Scale::To(1)), Event::Start(Which::All)] {
        let mut town = Town::ready(2);
        town.tell(words.clone()).pass(100);
        let (before, starts) = (town.pool.clone(), town.starts.len());
        town.tell(words.clone());
        assert_eq!((&town.pool, town.starts.len()), (&before, starts), "{words:?}");
    }
}

#[test]
fn fewer_slots_let_the_highest_go_and_more_never_use_a_start_number_again() {
    let mut town = Town::ready(3);
    town.tell(Event::Scale(Scale::To(1)));
    assert_eq!(town.shown(), [(0, Ready, Some(1))]);
    town.tell(Event::Scale(Scale::To(3))).pass(1_000);
    assert!(town.pool.is_ready());
    let starts: BTreeSet<_> = town.starts.iter().map(|(_, slot, start, _)| (*slot, *start)).collect();
    assert_eq!(starts.len(), 5, "{:?}", town.starts);
}

#[test]
fn an_operators_number_holds_until_the_configured_count_changes() {
    let mut town = Town::ready(3);
    town.tell(Event::Scale(Scale::To(2))).tell(Event::Reloaded).tell(roll_out(2)).pass(10_000);
    assert_eq!((town.pool.count(), town.pool.scaled_to()), (2, Some(2)));
    town.policy.count = 4;
    town.tell(Event::Reloaded).pass(1_000);
    assert_eq!((town.pool.count(), town.pool.scaled_to(), town.pool.ready()), (4, None, 4));
    town.tell(Event::Scale(Scale::To(9))).tell(Event::Scale(Scale::Config));
    assert_eq!(town.pool.count(), 4);
}

#[test]
fn first_starts_keep_their_distance_and_restarts_do_not() {
    let mut town = Town::new(PoolPolicy { start_stagger: ms(2_000), ..policy(3) });
    let begin = town.now;
    town.tell(roll_out(1)).pass(10_000);
    let times: Vec<_> = town.starts.iter().map(|(at, slot, ..)| (at.since(begin).as_secs(), *slot)).collect();
    assert_eq!(times, [(0, 0), (2, 1), (4, 2)]);
    let starts = town.starts.len();
    town.crash(0).crash(1).crash(2);
    assert_eq!(town.starts.len(), starts + 3);
}

#[test]
fn a_restart_of_the_pool_rolls_and_that_of_a_slot_does_not_wait() {
    let mut town = Town::ready(2);
    town.news();
    town.tell(Event::Restart { which: Which::All, why: RestartWhy::Operator });
    assert_eq!(town.pool.ready(), 1);
    town.pass(2_000);
    assert_eq!(town.news(), ["begun 2", "done 2: 2 ready, 0 failing"]);
    town.pass(60_000).tell(Event::Restart { which: Which::Slot(1), why: RestartWhy::Operator });
    let slot = town.pool.slot(1).expect("slot 1");
    assert_eq!((slot.shown(), slot.last_verdict().map(|verdict| verdict.kind())), (Starting, Some(VerdictKind::Operator)));
}

#[test]
fn a_paused_slot_is_left_out_of_a_rollout_and_comes_to_it_when_it_is_resumed() {
    let mut town = Town::ready(2);
    town.tell(Event::Pause(Which::Slot(0))).tell(roll_out(2)).pass(10_000);
    assert_eq!(town.shown(), [(0, Paused, Some(1)), (1, Ready, Some(2))]);
    town.news();
    town.tell(Event::Resume(Which::Slot(0))).pass(2_000);
    assert_eq!(town.shown(), [(0, Ready, Some(2)), (1, Ready, Some(2))]);
    assert_eq!(town.news(), ["begun 2", "done 2: 1 ready, 0 failing"]);
}

#[test]
fn a_drain_stops_everything_starts_nothing_and_forgets_nothing() {
    let mut town = Town::ready(3);
    town.tell(Event::Stop(Which::Slot(1))).tell(roll_out(2)).tell(Event::Drain);
    assert!(town.pool.is_empty());
    assert_eq!(town.news().last().map(String::as_str), Some("dropped 2: Drained"));
    let starts = town.starts.len();
    town.tell(Event::Scale(Scale::To(4))).tell(roll_out(3)).pass(100_000);
    assert_eq!(town.starts.len(), starts);
    town.tell(Event::Undrain).pass(2_000);
    assert_eq!(town.shown(), [(0, Ready, Some(3)), (1, Stopped, None), (2, Ready, Some(3)), (3, Ready, Some(3))]);
}

#[test]
fn a_worker_that_is_found_beyond_the_count_is_minded_until_it_has_stopped() {
    let town = Town::ready(1);
    let (process, target) = (ProcessId { pid: 9, start_ticks: 9 }, town.pool.target().cloned().expect("a target"));
    let event = worker::Event::Adopted { start: StartNo(4), process, target, since: town.now, ready_since: None };
    let (pool, effects) = step(town.pool.clone(), Event::Slot { slot: 5, event }, town.now, &town.policy);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Slot { slot: 5, effect: worker::Effect::Signal { .. } })));
    assert_eq!(pool.slots().map(|(number, slot)| (number, slot.shown())).collect::<Vec<_>>(), [(0, Ready), (5, SlotState::Stopping)]);
}

#[test]
fn after_a_reboot_only_numbers_verdicts_and_the_operators_count_are_left() {
    let mut town = Town::ready(2);
    town.tell(Event::Scale(Scale::To(3))).tell(Event::Stop(Which::Slot(0))).pass(2_000);
    town.pool = Pool::recall(town.pool.saved().after_reboot(), &town.policy);
    town.tell(Event::Reloaded).tell(roll_out(1)).pass(2_000);
    assert_eq!(town.shown(), [(0, Ready, Some(1)), (1, Ready, Some(1)), (2, Ready, Some(1))]);
    assert_eq!(town.pool.slot(0).map(worker::Slot::last_start), Some(StartNo(2)));
    assert_eq!(town.pool.target().map(|target| target.generation), Some(Generation(1)));
}

#[test]
fn a_thousand_exits_at_once_are_a_thousand_small_steps() {
    let mut town = Town::ready(1_000);
    let starts: BTreeMap<u32, StartNo> = town.pool.slots().filter_map(|(number, slot)| Some((number, slot.start()?))).collect();
    for (slot, start) in starts {
        let exited = worker::Event::Exited { start, how: ExitHow::Signal { number: 9, core: false }, jitter: Jitter(0) };
        for (event, most) in [(exited, 2), (worker::Event::TreeGone { start, killed: 0 }, 2)] {
            let pool = std::mem::take(&mut town.pool);
            let (pool, effects) = step(pool, Event::Slot { slot, event }, town.now, &town.policy);
            assert!(effects.len() <= most, "{effects:?}");
            assert!(effects.iter().all(|effect| matches!(effect, Effect::Slot { slot: its, .. } if *its == slot)));
            town.pool = pool;
        }
    }
    assert_eq!((town.pool.occupied(), town.pool.ready()), (1_000, 0));
    assert!(size_of::<Entry>() <= 320, "{} bytes", size_of::<Entry>());
}

#[test]
fn where_all_run_it_already_nothing_is_rolled_out_and_nothing_told() {
    let mut town = Town::ready(3);
    town.news();
    town.agent_killed().pass(2_000);
    town.news();
    town.tell(roll_out(1)).pass(2_000);
    assert_eq!((town.news(), town.pool.rolling_out().is_none(), town.pool.is_ready()), (vec![], true, true));
    // Of a pool without a slot too.
    let mut town = Town::new(policy(0));
    town.tell(roll_out(1)).pass(2_000);
    assert_eq!((town.news(), town.pool.rolling_out().is_none()), (vec![], true));
}

#[test]
fn how_a_rollout_went_reads_well() {
    let target = |generation| worker::Target {
        generation: Generation(generation),
        release: release(1),
        revision: format!("{:040x}", 1).parse().expect("a revision"),
    };
    let name = target(1).release;
    assert_eq!(rolled_out_text(&target(1), 0, 1), format!("{name} is rolled out: 0 ready, 1 not ready"));
    assert_eq!(rolled_out_text(&target(2), 2, 1), format!("{name} is rolled out: 2 ready, 1 not ready, as before"));
    assert_eq!(rolled_out_text(&target(2), 2, 0), format!("{name} is rolled out: 2 ready"));
    let dropped = [Dropped::Superseded(Generation(2)), Dropped::Drained].map(|why| why.to_string());
    assert_eq!(dropped, ["generation 2 takes its place", "the pool is drained"]);
}

/// A pool of three ready workers of release 1, whose first slot must stay up for 10 s in a deploy.
fn with_canary(how: UpdateHow) -> Town {
    let mut town = Town::ready(3);
    town.policy.update = UpdatePolicy { how, max_unavailable: 2, confirm: ms(10_000), ..UpdatePolicy::default() };
    town.starts.clear();
    town
}

#[test]
fn the_first_slot_of_a_deploy_must_stay_up_before_the_others_have_their_turn() {
    let mut town = with_canary(UpdateHow::OneAtATime);
    town.tell(roll_out(2)).pass(10_900);
    assert_eq!(town.starts.len(), 1, "{:?}", town.starts);
    assert_eq!(town.pool.canary(), Some(town.starts[0].1));
    town.pass(200);
    assert_eq!(town.pool.canary(), None);
    assert_eq!(town.starts.len(), 3, "then as many at once as may: {:?}", town.starts);
    town.pass(2_000);
    assert!(matches!(town.told.last(), Some(Effect::RolledOut { ready: 3, .. })), "{:?}", town.told);
}

#[test]
fn a_canary_that_crashes_again_after_it_was_ready_fails_the_rollout_and_no_other_slot_was_touched() {
    let mut town = with_canary(UpdateHow::OneAtATime);
    town.tell(roll_out(2));
    // The first restart is at once, and its time begins anew; the second one has to wait, and that is the end.
    for _ in 0..2 {
        town.pass(5_000);
        let (_, slot, start, _) = *town.starts.last().expect("a start");
        town.tell(Event::Slot { slot, event: worker::Event::Exited { start, how: ExitHow::Code(1), jitter: Jitter(0) } });
    }
    let slot = town.starts[0].1;
    assert!(town.told.iter().any(|told| matches!(told, Effect::RolloutFailed { .. })), "{:?}", town.told);
    assert!(town.starts.iter().all(|(_, other, ..)| *other == slot), "{:?}", town.starts);
}

#[test]
fn all_at_once_is_over_when_its_canary_has_stayed_up() {
    let mut town = with_canary(UpdateHow::AllAtOnce);
    town.tell(roll_out(2)).pass(9_000);
    assert_eq!(town.starts.len(), 3);
    assert!(town.pool.canary().is_some());
    town.pass(3_000);
    assert!(matches!(town.told.last(), Some(Effect::RolledOut { ready: 3, .. })), "{:?}", town.told);
}

#[test]
fn neither_a_first_deploy_nor_a_restart_nor_a_pool_that_was_failing_has_a_canary() {
    let confirm = UpdatePolicy { confirm: ms(10_000), ..UpdatePolicy::default() };
    let mut first = Town::new(PoolPolicy { update: confirm, ..policy(2) });
    first.tell(roll_out(1)).pass(2_000);
    assert!(first.pool.is_ready() && first.pool.canary().is_none());
    assert!(matches!(first.told.last(), Some(Effect::RolledOut { .. })), "{:?}", first.told);

    let mut failing = Town::new(PoolPolicy { update: confirm, ..policy(1) });
    failing.broken.insert(release(1));
    failing.tell(roll_out(1)).pass(2_000);
    failing.tell(roll_out(2));
    assert_eq!(failing.pool.canary(), None);
    assert!(!failing.pool.has_vote(0), "nor does it say anything about the release");
    failing.pass(60_000);
    assert!(failing.pool.has_vote(0), "until it has been ready on it");
}
