//! Examples, named as sentences.

use std::sync::Arc;
use std::time::Duration;

use super::state::{Ladder, State};
use super::*;
use crate::backoff::Jitter;
use crate::id::{Generation, ProcessId, StartNo};
use crate::memory::MemoryPassed;
use crate::policy::{MemoryAction, MemoryPolicy, MemoryRung, ReadyHow, ReadyPolicy, RestartPolicy, StopLadder, StopRung, WorkerPolicy};
use crate::signal::Signal;
use crate::time::MonoTime;
use crate::units::Bytes;

pub(super) fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

pub(super) fn at(seconds: u64) -> MonoTime {
    MonoTime::from_boot(secs(seconds))
}

pub(super) fn target(generation: u64) -> Arc<Target> {
    Arc::new(Target {
        generation: Generation(generation),
        release: "20261122T101530Z-1a2b3c4".parse().expect("a release"),
        revision: "1a2b3c4d5e6f1a2b3c4d5e6f1a2b3c4d5e6f1a2b".parse().expect("a revision"),
    })
}

/// `stop: [QUIT 60s, TERM 10s, KILL]`, all else as by default.
pub(super) fn policy() -> WorkerPolicy {
    let rung = |signal, wait| StopRung { signal, wait: secs(wait) };
    WorkerPolicy {
        stop: StopLadder { rungs: vec![rung(Signal::Quit, 60), rung(Signal::Term, 10)] },
        restart: RestartPolicy::default(),
        ready: ReadyPolicy::default(),
        memory: None,
        stale: None,
    }
}

/// As [`policy`], but ready when seen.
pub(super) fn proof() -> WorkerPolicy {
    WorkerPolicy { ready: ReadyPolicy { how: ReadyHow::Tcp("h:1".into()), within: secs(30) }, ..policy() }
}

/// Events, each with how many seconds pass before it.
pub(super) mod event {
    use super::*;

    pub(crate) fn start(generation: u64) -> (Event, u64) {
        (Event::Start { target: target(generation) }, 0)
    }

    pub(crate) fn spawned(start: u64) -> (Event, u64) {
        let process = ProcessId { pid: 100 + i32::try_from(start).expect("small"), start_ticks: start };
        (Event::Spawned { start: StartNo(start), process }, 0)
    }

    pub(crate) fn exited(start: u64) -> (Event, u64) {
        (Event::Exited { start: StartNo(start), how: ExitHow::Code(1), jitter: Jitter(0) }, 0)
    }

    pub(crate) fn gone(start: u64) -> (Event, u64) {
        (Event::TreeGone { start: StartNo(start), killed: 0 }, 0)
    }

    pub(crate) fn stop(then: Then) -> (Event, u64) {
        (Event::StopRequested { why: StopWhy::Operator, then }, 0)
    }

    pub(crate) fn wait(seconds: u64) -> (Event, u64) {
        (Event::DeadlineReached, seconds)
    }

    pub(crate) fn sample(start: u64, mb: u64) -> (Event, u64) {
        (Event::MemorySample { start: StartNo(start), sample: Some(Bytes(mb * 1_000_000)) }, 120)
    }
}

/// A slot with its clock, and what it did last.
struct Life {
    slot: Slot,
    now: MonoTime,
    policy: WorkerPolicy,
    effects: Vec<Effect>,
}

impl Life {
    fn new(policy: WorkerPolicy) -> Self {
        Self { slot: Slot::default(), now: MonoTime::ZERO, policy, effects: Vec::new() }
    }

    /// Lets the events happen; effects are those of the last.
    fn then(mut self, events: &[(Event, u64)]) -> Self {
        for (event, late) in events {
            self.now = self.now + secs(*late);
            (self.slot, self.effects) = step(self.slot, event.clone(), self.now, &self.policy);
        }
        self
    }

    /// Lets the next deadline come.
    fn due(mut self) -> Self {
        self.now = next_deadline(&self.slot).expect("a deadline").max(self.now);
        self.then(&[(Event::DeadlineReached, 0)])
    }

    /// Returns what was asked of the world, without what was told.
    fn deeds(&self) -> Vec<Effect> {
        self.effects.iter().filter(|effect| !matches!(effect, Effect::Tell(_))).cloned().collect()
    }

    fn verdict(&self) -> String {
        self.slot.last_verdict().expect("a verdict").to_string()
    }
}

pub(super) fn run(policy: &WorkerPolicy, events: &[(Event, u64)]) -> Slot {
    Life::new(policy.clone()).then(events).slot
}

fn spawn(start: u64, generation: u64) -> Effect {
    Effect::Spawn { start: StartNo(start), target: target(generation) }
}

fn signal(start: u64, signal: Signal) -> Effect {
    Effect::Signal { start: StartNo(start), signal }
}

const ONE: StartNo = StartNo(1);

fn ready(policy: WorkerPolicy) -> Life {
    Life::new(policy).then(&[event::start(1), event::spawned(1), event::wait(1)])
}

/// `memory: {ladder: [350MB x2/2 drain], every: 2m}`.
fn articles_rule() -> WorkerPolicy {
    let rung = MemoryRung { limit: Bytes(350_000_000), hits: 2, of: 2, action: MemoryAction::Drain };
    WorkerPolicy { memory: Some(MemoryPolicy { ladder: vec![rung], every: secs(120) }), ..policy() }
}

#[test]
fn by_the_articles_rule_a_worker_is_drained_after_two_samples_above_350_mb_and_replaced() {
    let life = ready(articles_rule()).then(&[event::sample(1, 340), event::sample(1, 361)]);
    assert_eq!(life.deeds(), [], "one sample above is not enough");
    let life = life.then(&[event::sample(1, 374)]);
    assert_eq!(life.deeds(), [signal(1, Signal::Quit)]);
    let life = life.due();
    assert_eq!(life.deeds(), [signal(1, Signal::Term)]);
    let life = life.then(&[event::exited(1)]);
    assert_eq!(life.deeds(), [Effect::ClearTree { start: ONE }], "nothing starts before the tree is gone");
    let life = life.then(&[event::gone(1)]);
    assert_eq!(life.deeds(), [spawn(2, 1)]);
    assert_eq!(life.verdict(), "ended by TERM after 350 MB was passed in 2 of 2 samples (361, 374 MB); restarted");
    assert_eq!(life.slot.last_verdict().map(|verdict| verdict.kind()), Some(VerdictKind::Memory));
    assert_eq!(life.slot.crashes_in_a_row(), 0, "no crash");
}

#[test]
fn a_sample_that_could_not_be_read_neither_ends_nor_excuses_a_worker() {
    let unknown = (Event::MemorySample { start: ONE, sample: None }, 120);
    let life = ready(articles_rule()).then(&[event::sample(1, 361), unknown.clone(), unknown]);
    assert_eq!(life.effects, []);
    assert_eq!(life.then(&[event::sample(1, 374)]).deeds(), [signal(1, Signal::Quit)]);
}

#[test]
fn the_memory_of_a_former_worker_is_not_held_against_its_successor() {
    let life = ready(articles_rule()).then(&[event::sample(1, 361), event::exited(1), event::gone(1), event::spawned(2)]);
    assert_eq!(life.then(&[event::sample(2, 361)]).deeds(), []);
}

#[test]
fn a_hard_limit_kills_the_tree_at_once() {
    let mut policy = articles_rule();
    let rung = MemoryRung { limit: Bytes(500_000_000), hits: 1, of: 1, action: MemoryAction::Kill };
    policy.memory.as_mut().expect("a rule").ladder.push(rung);
    let life = ready(policy).then(&[event::sample(1, 501)]);
    assert_eq!(life.deeds(), [Effect::KillTree { start: ONE }]);
    let life = life.then(&[event::exited(1), (Event::TreeGone { start: ONE, killed: 2 }, 0)]);
    assert_eq!(
        life.verdict(),
        "ended by KILL after 500 MB was passed in 1 of 1 sample (501 MB); 2 processes that it left were killed; restarted"
    );
}

#[test]
fn a_stop_that_arrives_while_a_process_is_being_spawned_is_not_lost() {
    let life = Life::new(policy()).then(&[event::start(1), event::stop(Then::Stay)]);
    assert_eq!(life.deeds(), [], "there is nothing to signal yet");
    let life = life.then(&[event::spawned(1)]);
    assert_eq!(life.deeds(), [signal(1, Signal::Quit)]);
    let life = life.then(&[event::exited(1), event::gone(1)]);
    assert!(life.slot.is_stopped());
}

#[test]
fn a_kill_that_arrives_while_a_process_is_being_spawned_is_not_lost() {
    let life = Life::new(policy()).then(&[event::start(1), event::stop(Then::Stay), (Event::KillNow, 0), event::spawned(1)]);
    assert_eq!(life.deeds(), [Effect::KillTree { start: ONE }]);
}

#[test]
fn the_ladder_goes_from_polite_to_the_whole_tree() {
    let life = ready(policy()).then(&[event::stop(Then::Stay)]);
    assert_eq!((life.deeds(), next_deadline(&life.slot)), (vec![signal(1, Signal::Quit)], Some(at(61))));
    let life = life.due();
    assert_eq!((life.deeds(), next_deadline(&life.slot)), (vec![signal(1, Signal::Term)], Some(at(71))));
    let life = life.due();
    assert_eq!(life.deeds(), [Effect::KillTree { start: ONE }]);
    let life = life.due();
    assert_eq!(life.deeds(), [Effect::KillTree { start: ONE }], "a tree that outruns a kill is killed again");
}

#[test]
fn an_empty_ladder_kills_at_once() {
    let policy = WorkerPolicy { stop: StopLadder { rungs: Vec::new() }, ..policy() };
    assert_eq!(ready(policy).then(&[event::stop(Then::Stay)]).deeds(), [Effect::KillTree { start: ONE }]);
}

#[test]
fn a_second_stop_changes_what_follows_and_neither_restarts_nor_lengthens_the_ladder() {
    let life = ready(policy()).then(&[event::stop(Then::Stay)]);
    let (due, life) = (next_deadline(&life.slot), life.then(&[(Event::DeadlineReached, 30), event::stop(Then::Start(target(2)))]));
    assert_eq!((life.deeds(), next_deadline(&life.slot)), (vec![], due));
    let life = life.then(&[event::exited(1), event::gone(1)]);
    assert_eq!(life.deeds(), [spawn(2, 2)]);
}

#[test]
fn an_early_deadline_does_nothing() {
    let life = ready(policy()).then(&[event::stop(Then::Stay), event::wait(59)]);
    assert_eq!(life.effects, []);
}

#[test]
fn the_first_restart_is_at_once_and_the_next_wait_longer_and_longer() {
    let mut life = Life::new(WorkerPolicy {
        restart: RestartPolicy {
            flapping: crate::policy::FlappingPolicy { crashes: 100, within: secs(60), retry_after: secs(300) },
            ..RestartPolicy::default()
        },
        ..policy()
    })
    .then(&[event::start(1)]);
    let mut waits = Vec::new();
    for start in 1..=9 {
        life = life.then(&[event::spawned(start), event::exited(start), event::gone(start)]);
        waits.push(next_deadline(&life.slot).map_or(0, |due| life.now.until(due).as_secs()));
        if life.slot.waits_until().is_some() {
            life = life.due();
        }
        assert_eq!(life.slot.start(), Some(StartNo(start + 1)));
    }
    assert_eq!(waits, [0, 1, 2, 4, 8, 16, 32, 60, 60]);
    assert_eq!(life.slot.restarts(), 9);
}

#[test]
fn a_worker_that_was_ready_for_long_starts_the_count_anew() {
    let crash_after = |uptime| {
        let life = Life::new(policy()).then(&[event::start(1), event::spawned(1), event::exited(1), event::gone(1)]);
        life.then(&[event::spawned(2), event::wait(1), (event::exited(2).0, uptime), event::gone(2)]).slot.shown()
    };
    assert_eq!((crash_after(59), crash_after(60)), (SlotState::Backoff, SlotState::Starting));
}

#[test]
fn a_slot_that_flaps_rests_and_gets_one_probe_at_a_time() {
    let mut life = Life::new(policy()).then(&[event::start(1)]);
    for start in 1..=5 {
        if life.slot.waits_until().is_some() {
            life = life.due();
        }
        life = life.then(&[event::spawned(start), event::exited(start), event::gone(start)]);
    }
    assert_eq!(life.slot.shown(), SlotState::Quarantined);
    assert!(life.verdict().ends_with("quarantined, one probe in 5m"), "{}", life.verdict());
    // The probe crashes: it rests again. The next one stays: all is forgiven.
    let life = life.due().then(&[event::spawned(6), event::wait(1), (event::exited(6).0, 59), event::gone(6)]);
    assert_eq!(life.slot.shown(), SlotState::Quarantined);
    let life = life.due().then(&[event::spawned(7), event::wait(1), (event::exited(7).0, 60), event::gone(7)]);
    assert_eq!(life.deeds(), [spawn(8, 1)]);
}

#[test]
fn another_generation_ends_a_quarantine_and_does_not_inherit_its_crashes() {
    let mut life = Life::new(policy()).then(&[event::start(1)]);
    for start in 1..=5 {
        if life.slot.waits_until().is_some() {
            life = life.due();
        }
        life = life.then(&[event::spawned(start), event::exited(start), event::gone(start)]);
    }
    assert_eq!(life.slot.shown(), SlotState::Quarantined);
    let life = life.then(&[event::start(1)]);
    assert_eq!(life.effects, [], "asking again for the same is no cure");
    let life = life.then(&[event::start(2)]);
    assert_eq!(life.deeds(), [spawn(6, 2)]);
    let life = life.then(&[event::spawned(6), event::exited(6), event::gone(6)]);
    assert_eq!(life.deeds(), [spawn(7, 2)], "its first crash is a first crash");
}

#[test]
fn an_exit_with_code_0_that_nobody_asked_for_counts_like_a_crash() {
    let clean = |start| (Event::Exited { start: StartNo(start), how: ExitHow::Code(0), jitter: Jitter(0) }, 0);
    let life = ready(policy()).then(&[clean(1), event::gone(1)]);
    assert_eq!(life.verdict(), "exited with code 0 after 1s; restarted");
    let life = life.then(&[event::spawned(2), clean(2), event::gone(2)]);
    assert_eq!(life.slot.shown(), SlotState::Backoff);
    assert_eq!(life.verdict(), "exited with code 0 after 0s; next start in 1s (crash 2 in a row)");
}

#[test]
fn ends_that_somebody_asked_for_are_no_crashes_and_leave_no_slot_empty() {
    let again = || event::stop(Then::Start(target(1)));
    let life = ready(policy()).then(&[again(), event::exited(1), event::gone(1)]);
    assert_eq!(life.deeds(), [spawn(2, 1)]);
    let life = life.then(&[event::spawned(2), (again().0, 4), event::exited(2), event::gone(2)]);
    assert_eq!(life.deeds(), [spawn(3, 1)]);
    assert_eq!(life.slot.crashes_in_a_row(), 0);
}

#[test]
fn ends_by_a_memory_limit_are_no_crashes_and_at_most_one_in_ten_seconds_restarts() {
    let mut policy = articles_rule();
    policy.memory.as_mut().expect("a rule").ladder =
        vec![MemoryRung { limit: Bytes(500_000_000), hits: 1, of: 1, action: MemoryAction::Kill }];
    let gone = |start| (Event::TreeGone { start: StartNo(start), killed: 0 }, 0);
    let life = ready(policy).then(&[event::sample(1, 501), event::exited(1), gone(1)]);
    assert_eq!(life.deeds().last(), Some(&spawn(2, 1)));
    let life = life.then(&[event::spawned(2), (event::sample(2, 501).0, 4), event::exited(2), gone(2)]);
    assert_eq!((life.slot.shown(), life.slot.crashes_in_a_row()), (SlotState::Backoff, 0));
    assert_eq!(life.due().deeds(), [spawn(3, 1)]);
}

#[test]
fn an_end_by_the_kernels_limit_is_an_end_by_memory_and_no_crash() {
    let starved = |start, peak: Option<u64>| {
        (Event::Exited { start: StartNo(start), how: ExitHow::OutOfMemory { peak: peak.map(Bytes) }, jitter: Jitter(0) }, 0)
    };
    let life = ready(policy()).then(&[starved(1, Some(67_200_000)), event::gone(1)]);
    assert_eq!(life.verdict(), "killed by the kernel for want of memory (at most it had 67 MB) after 1s; restarted");
    assert_eq!((life.deeds(), life.slot.crashes_in_a_row()), (vec![spawn(2, 1)], 0));
    assert_eq!(life.slot.last_verdict().map(|verdict| verdict.kind()), Some(VerdictKind::Oom));
    // A limit that is too low must not become a hot loop.
    let life = life.then(&[event::spawned(2), starved(2, None), event::gone(2)]);
    assert_eq!(life.verdict(), "killed by the kernel for want of memory after 0s; next start in 10s");
    assert_eq!((life.deeds(), life.slot.crashes_in_a_row()), (vec![], 0));
    assert_eq!(life.due().deeds(), [spawn(3, 1)]);
    // What we were ending anyway was ended by us.
    let life = ready(policy()).then(&[event::stop(Then::Stay), starved(1, None), event::gone(1)]);
    assert_eq!(life.slot.last_verdict().map(|verdict| verdict.kind()), Some(VerdictKind::Operator));
}

#[test]
fn a_worker_that_is_not_ready_in_time_is_stopped_and_counts_as_a_crash() {
    let life = Life::new(proof()).then(&[event::start(1), event::spawned(1)]);
    assert_eq!(life.deeds(), [Effect::WatchReady { start: ONE }]);
    let life = life.due();
    assert_eq!((life.now, life.deeds()), (at(30), vec![signal(1, Signal::Quit)]));
    let life = life.then(&[event::exited(1), event::gone(1)]);
    assert_eq!(life.verdict(), "ended by QUIT because it was not ready within 30s; restarted");
    assert_eq!(life.slot.crashes_in_a_row(), 1);
}

#[test]
fn a_process_that_cannot_be_made_counts_as_a_crash() {
    let failed = |start| (Event::SpawnFailed { start: StartNo(start), error: "no such file".into(), jitter: Jitter(0) }, 0);
    let life = Life::new(policy()).then(&[event::start(1), failed(1)]);
    assert_eq!(life.deeds(), [spawn(2, 1)]);
    let life = life.then(&[failed(2)]);
    assert_eq!(life.verdict(), "could not be started: no such file; next start in 1s (crash 2 in a row)");
}

#[test]
fn news_of_a_former_worker_changes_nothing() {
    let life = ready(policy()).then(&[event::exited(1), event::gone(1), event::spawned(2)]);
    let before = life.slot.clone();
    let (exit, gone, again) = (event::exited(1), event::gone(1), event::spawned(1));
    for late in [exit, gone, again, event::sample(1, 9_000), (Event::ReadySeen { start: ONE }, 0)] {
        assert_eq!(step(before.clone(), late.0, life.now, &life.policy), (before.clone(), vec![]));
    }
}

#[test]
fn the_process_of_a_stale_job_is_killed_and_the_worker_stays() {
    let job = |pid| StaleJobSeen {
        child: ProcessId { pid, start_ticks: 1 },
        title: b"resque-3: Processing imports since 5 [ImportAll]"[..].into(),
        class: Some("ImportAll".into()),
        queue: "imports".into(),
        age: secs(603),
        timeout: secs(600),
    };
    let seen = |pid, late| (Event::StaleJob { start: ONE, job: job(pid) }, late);
    let life = ready(policy()).then(&[seen(9, 0)]);
    let kill = |pid| Effect::KillJob { start: ONE, child: job(pid).child, title: job(pid).title };
    assert_eq!((life.deeds(), life.slot.shown()), (vec![kill(9)], SlotState::Ready));
    assert_eq!(life.verdict(), "job ImportAll from imports (process 9) killed after 10m3s: longer than 10m; the worker stays");
    let life = life.then(&[seen(9, 1)]);
    assert_eq!(life.effects, [], "not twice in two seconds");
    let life = life.then(&[seen(9, 1)]);
    assert_eq!(life.effects, [kill(9)], "again, but told once");
    assert_eq!(life.then(&[seen(10, 0)]).deeds(), [kill(10)], "the next one at once");
}

#[test]
fn a_paused_slot_is_left_alone_and_its_exit_is_noted() {
    let mut policy = articles_rule();
    policy.memory.as_mut().expect("a rule").ladder[0].hits = 1;
    let life = ready(policy).then(&[(Event::Pause, 0)]);
    assert_eq!(life.slot.shown(), SlotState::Paused);
    let life = life.then(&[event::sample(1, 900)]);
    assert_eq!(life.effects, []);
    let life = life.then(&[event::exited(1)]);
    assert_eq!(life.deeds(), [], "neither cleared nor restarted");
    assert!(life.verdict().ends_with("; paused, so not restarted"));
    let ends = |life: &Life| life.effects.iter().filter(|effect| matches!(effect, Effect::Tell(Happening::Judged(_)))).count();
    assert_eq!(ends(&life), 1, "told when it happens: {:?}", life.effects);
    let life = life.then(&[(Event::Resume, 0)]);
    assert_eq!(life.deeds(), [Effect::ClearTree { start: ONE }]);
    let life = life.then(&[event::gone(1)]);
    assert_eq!((life.deeds(), ends(&life)), (vec![spawn(2, 1)], 0), "an end is told once");
    assert!(life.verdict().ends_with("; restarted"));
}

#[test]
fn a_stop_that_was_begun_before_a_pause_ends() {
    let life = ready(policy()).then(&[event::stop(Then::Start(target(1))), (Event::Pause, 0)]).due().due();
    assert_eq!(life.deeds(), [Effect::KillTree { start: ONE }]);
    let life = life.then(&[event::exited(1), event::gone(1)]);
    assert_eq!((life.deeds(), life.slot.shown()), (vec![], SlotState::Paused));
    assert_eq!(life.then(&[(Event::Resume, 0)]).due().deeds(), [spawn(2, 1)]);
}

/// Returns the slot as the next agent reads it from disk.
fn agent_killed(mut life: Life) -> Life {
    let json = serde_json::to_string(&life.slot.saved()).expect("JSON");
    life.slot = Slot::recall(serde_json::from_str(&json).expect("our own"));
    life
}

fn adopted() -> (Event, u64) {
    let process = ProcessId { pid: 101, start_ticks: 1 };
    (Event::Adopted { start: ONE, process, target: target(1), since: at(0), ready_since: None }, 0)
}

#[test]
fn after_the_agent_came_back_nothing_is_started_beside_a_worker_that_may_live() {
    let life = agent_killed(ready(policy())).then(&[event::start(1)]);
    assert_eq!(life.effects, []);
    let life = life.then(&[adopted()]);
    assert_eq!((life.slot.shown(), life.slot.ready_since()), (SlotState::Ready, Some(at(1))), "it is as ready as it was");
}

#[test]
fn what_a_paused_slots_worker_left_is_not_touched_by_the_next_agent_either() {
    let paused = || agent_killed(ready(policy()).then(&[(Event::Pause, 0), event::exited(1)]));
    // What is told of it again: the child, and its exit.
    let life = paused().then(&[adopted(), event::exited(1)]);
    assert_eq!((life.deeds(), life.slot.shown()), (vec![], SlotState::Paused));
    let life = agent_killed(life).then(&[adopted(), event::exited(1)]);
    assert_eq!((life.effects.len(), life.slot.shown()), (0, SlotState::Paused), "{:?}", life.effects);
    let life = life.then(&[(Event::Resume, 0)]);
    assert_eq!(life.deeds(), [Effect::ClearTree { start: ONE }]);
    assert_eq!(life.then(&[event::gone(1)]).deeds(), [spawn(2, 1)]);

    let life = paused().then(&[event::stop(Then::Stay), adopted()]);
    assert_eq!(life.deeds(), [Effect::ClearTree { start: ONE }], "a stop is no pause");
    let life = paused().then(&[(Event::Vanished { start: ONE, jitter: Jitter(0) }, 0)]);
    assert_eq!((life.effects.len(), life.slot.shown()), (0, SlotState::Paused), "told before: {:?}", life.effects);
    assert_eq!(life.then(&[(Event::Resume, 0)]).due().deeds(), [spawn(2, 1)]);
}

#[test]
fn a_later_start_than_the_saved_one_shows_that_what_was_saved_is_over() {
    let process = ProcessId { pid: 102, start_ticks: 2 };
    let later = Event::Adopted { start: StartNo(2), process, target: target(2), since: at(0), ready_since: None };
    for killed in [agent_killed(ready(policy())), agent_killed(ready(policy()).then(&[event::stop(Then::Stay)]))] {
        let life = killed.then(&[(later.clone(), 0)]);
        assert_eq!((life.slot.start(), life.slot.shown()), (Some(StartNo(2)), SlotState::Starting));
        assert!(!life.deeds().contains(&signal(2, Signal::Term)), "the stop was the former worker's");
    }
}

#[test]
fn a_worker_that_nobody_knows_any_more_has_a_verdict_and_a_successor() {
    let life = agent_killed(ready(policy())).then(&[(Event::Vanished { start: ONE, jitter: Jitter(0) }, 0)]);
    assert_eq!(life.deeds(), [spawn(2, 1)]);
    assert_eq!(life.verdict(), "ended, how is not known; restarted");
}

#[test]
fn a_stop_goes_on_where_it_was_when_the_agent_comes_back_and_its_signal_is_sent_again_as_it_may_not_have_been() {
    let life = agent_killed(ready(policy()).then(&[event::stop(Then::Stay)])).then(&[(adopted().0, 10)]);
    assert_eq!((life.deeds(), next_deadline(&life.slot)), (vec![signal(1, Signal::Quit)], Some(at(61))));
    let life = agent_killed(life.due()).then(&[(adopted().0, 5)]);
    assert_eq!((life.deeds(), next_deadline(&life.slot)), (vec![signal(1, Signal::Term)], Some(at(71))));
    assert_eq!(life.due().deeds(), [Effect::KillTree { start: ONE }]);
}

#[test]
fn start_numbers_and_crashes_are_remembered_by_the_next_agent() {
    let crashed = ready(policy()).then(&[event::exited(1), event::gone(1), event::spawned(2), event::exited(2), event::gone(2)]);
    let (due, life) = (next_deadline(&crashed.slot), agent_killed(crashed));
    assert_eq!((life.slot.shown(), next_deadline(&life.slot)), (SlotState::Backoff, due));
    assert_eq!(life.due().deeds(), [spawn(3, 1)]);
}

#[test]
fn verdicts_read_well() {
    let ended = |why, how, sequel| {
        let what = What::Ended { why, how, ran: Duration::from_millis(75_400), leftovers: 1, sequel };
        Verdict { start: ONE, generation: Generation(1), at: at(0), what }.to_string()
    };
    let memory = MemoryPassed { limit: Bytes(1_500_000_000), of: 3, samples: vec![Bytes(1_612_345_678), Bytes(2_000_000_000)] };
    let asked = |why, rung| EndWhy::Asked { why, rung: Some(rung), ignored: None };
    let ignored = Some(Ignored { signal: Signal::Term, span: Duration::from_millis(10_004) });
    insta::assert_snapshot!(
        [
            ended(EndWhy::ItsOwn, ExitHow::Signal { number: 11, core: true }, Sequel::Backoff { wait: secs(4), crashes: 4 }),
            ended(EndWhy::ItsOwn, ExitHow::Signal { number: 40, core: false }, Sequel::Quarantined { wait: secs(300) }),
            ended(asked(StopWhy::Memory(Box::new(memory)), Rung::Kill), ExitHow::Signal { number: 9, core: false }, Sequel::Restarted),
            ended(asked(StopWhy::Deploy(Generation(4)), Rung::Polite(Signal::Quit)), ExitHow::Code(0), Sequel::Restarted),
            ended(asked(StopWhy::Scale, Rung::Polite(Signal::Quit)), ExitHow::Code(0), Sequel::Stopped),
            ended(asked(StopWhy::Operator, Rung::Polite(Signal::Quit)), ExitHow::Code(0), Sequel::Stopped),
            ended(asked(StopWhy::Drain, Rung::Polite(Signal::Quit)), ExitHow::Code(0), Sequel::Stopped),
            ended(
                EndWhy::Asked { why: StopWhy::Reload, rung: None, ignored: None },
                ExitHow::Code(3),
                Sequel::Backoff { wait: secs(7), crashes: 0 }
            ),
            ended(
                EndWhy::Asked { why: StopWhy::Drain, rung: Some(Rung::Kill), ignored },
                ExitHow::Signal { number: 9, core: false },
                Sequel::Stopped
            ),
        ]
        .join("\n")
    );
}

#[test]
fn measured_spans_have_no_digits_that_nobody_reads_and_configured_ones_have_all() {
    let ms = Duration::from_millis;
    let of = |why, sequel| {
        let what = What::Ended { why, how: ExitHow::Code(1), ran: ms(11_529_999), leftovers: 0, sequel };
        Verdict { start: ONE, generation: Generation(1), at: at(0), what }.to_string()
    };
    let late = EndWhy::Asked { why: StopWhy::NotReady(ms(90_500)), rung: Some(Rung::Kill), ignored: None };
    let job = StaleJobFacts { pid: 7, class: None, queue: "q".into(), age: ms(601_949), timeout: ms(600_500) };
    let told = [
        of(EndWhy::ItsOwn, Sequel::Quarantined { wait: ms(299_999) }),
        of(late, Sequel::Backoff { wait: ms(4_750), crashes: 2 }),
        job.to_string(),
        Happening::Ready { start: ONE, took: ms(1_004) }.to_string(),
        Happening::BackedOff { wait: ms(9_999), crashes: 3 }.to_string(),
        Happening::Quarantined { wait: ms(299_999) }.to_string(),
    ];
    assert_eq!(
        told,
        [
            "exited with code 1 after 3h12m; quarantined, one probe in 5m",
            "ended by KILL because it was not ready within 1m30s500ms; next start in 5s (crash 2 in a row)",
            "job of unknown class from q (process 7) killed after 10m2s: longer than 10m500ms; the worker stays",
            "start 1 is ready after 1s",
            "next start in 10s, after 3 crashes",
            "quarantined: too many crashes; one probe in 5m",
        ]
    );
}

#[test]
fn a_signal_that_an_operator_lets_us_send_ends_a_worker_without_a_crash_and_one_that_it_survives_explains_nothing_else() {
    let send = |signal| (Event::SignalRequested { signal }, 0);
    let killed =
        |start, number| (Event::Exited { start: StartNo(start), how: ExitHow::Signal { number, core: false }, jitter: Jitter(0) }, 0);
    let life = ready(policy()).then(&[send(Signal::Kill), killed(1, 9), event::gone(1)]);
    assert_eq!(life.verdict(), "ended by KILL because selfstart sent it by an operator's order; restarted");
    assert_eq!((life.deeds(), life.slot.crashes_in_a_row()), (vec![spawn(2, 1)], 0));
    // It does not know HUP, or another one does it.
    let life = ready(policy()).then(&[send(Signal::Hup), killed(1, 11), event::gone(1)]);
    assert_eq!((life.verdict().as_str(), life.slot.crashes_in_a_row()), ("killed by SEGV after 1s; restarted", 1));
    // Nor does the next worker end by it.
    let life = ready(policy()).then(&[send(Signal::Kill), killed(1, 9), event::gone(1), event::spawned(2), killed(2, 9), event::gone(2)]);
    assert_eq!(life.slot.crashes_in_a_row(), 1);
}

#[test]
fn an_end_by_an_operators_signal_is_no_crash_if_the_agent_was_killed_in_between() {
    let killed = |number| (Event::Exited { start: ONE, how: ExitHow::Signal { number, core: false }, jitter: Jitter(0) }, 0);
    let send = (Event::SignalRequested { signal: Signal::Term }, 0);
    let starting = || Life::new(policy()).then(&[event::start(1), event::spawned(1)]);
    for (was, up) in [("starting", &starting as &dyn Fn() -> Life), ("ready", &|| ready(policy()))] {
        // Two agents are killed, one after the other, the second before it has heard of the worker.
        let life = || agent_killed(agent_killed(up().then(std::slice::from_ref(&send))));
        for (heard, told) in [("adopted", &[adopted(), killed(15)][..]), ("told of its end only", &[killed(15)])] {
            let life = life().then(told).then(&[event::gone(1)]);
            let said = "ended by TERM because selfstart sent it by an operator's order; restarted";
            assert_eq!((life.verdict().as_str(), life.slot.crashes_in_a_row()), (said, 0), "{was}, {heard}");
        }
        let life = life().then(&[adopted(), killed(11), event::gone(1)]);
        assert_eq!(life.slot.crashes_in_a_row(), 1, "{was}: another signal is its own");
        // What is saved of a later start says nothing of this one.
        let process = ProcessId { pid: 102, start_ticks: 2 };
        let later = Event::Adopted { start: StartNo(2), process, target: target(1), since: at(0), ready_since: None };
        let by_term = Event::Exited { start: StartNo(2), how: ExitHow::Signal { number: 15, core: false }, jitter: Jitter(0) };
        let life = agent_killed(up().then(std::slice::from_ref(&send))).then(&[(later, 0), (by_term, 0), event::gone(2)]);
        assert_eq!(life.slot.crashes_in_a_row(), 1, "{was}");
    }
}

#[test]
fn what_a_version_without_signalled_wrote_is_read() {
    let life = ready(policy()).then(&[(Event::SignalRequested { signal: Signal::Term }, 0)]);
    let mut json = serde_json::to_value(life.slot.saved()).expect("JSON");
    let up = json["state"]["Up"].as_object_mut().expect("it is up");
    assert!(up.remove("signalled").is_some_and(|signal| signal == "TERM"), "{up:?}");
    let read: Saved = serde_json::from_value(json).expect("read");
    assert_eq!(Slot::recall(read), Slot::recall(ready(policy()).slot.saved()));
}

#[test]
fn who_did_not_end_by_the_last_polite_signal_is_told_so_and_who_was_given_no_time_for_it_is_not() {
    let killed = |start| (Event::Exited { start: StartNo(start), how: ExitHow::Signal { number: 9, core: false }, jitter: Jitter(0) }, 0);
    let stopping = || ready(policy()).then(&[event::stop(Then::Stay)]);
    let said = |life: Life| life.then(&[killed(1), event::gone(1)]).verdict();
    let whole = |mut life: Life| {
        while !matches!(life.slot.state, State::Stopping { ladder: Ladder::Killed { .. }, .. }) {
            life = life.due();
        }
        life
    };
    let of_ladder = said(whole(stopping()));
    assert!(of_ladder.starts_with("ignored ") && of_ladder.contains("; ended by KILL because an operator asked for it"), "{of_ladder}");
    // The agent is killed in between, before or after the kill: the next one knows it still.
    assert_eq!(said(agent_killed(whole(stopping())).then(&[adopted()])), of_ladder);
    assert_eq!(said(whole(agent_killed(stopping()).then(&[adopted()]))), of_ladder);
    // A second TERM does not wait for the first.
    assert_eq!(said(stopping().then(&[(Event::KillNow, 0)])), "ended by KILL because an operator asked for it; stopped");
}

#[test]
fn what_was_met_when_a_worker_was_not_ready_in_time_is_in_its_verdict() {
    let met = |met: &str| (Event::ReadyNotSeen { start: ONE, met: met.into() }, 0);
    let starting = || Life::new(proof()).then(&[event::start(1), event::spawned(1)]);
    let said = |life: Life| life.due().then(&[event::exited(1), event::gone(1)]).verdict();
    assert!(!said(starting()).contains(": "), "nothing was met");
    let told = said(starting().then(&[met("nobody listens"), met("`db` does not resolve")]));
    assert!(told.contains(": `db` does not resolve; "), "{told}");
    assert!(!told.contains("nobody"), "{told}");
}
