//! The whole machine as a table, one line for each state and event, for people to review.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use super::state::{After, Ladder, Manner, ReadyWait, Recall, State, Wait};
use super::tests::{at, event, policy, proof, run, target};
use super::*;
use crate::backoff::Jitter;
use crate::id::{ProcessId, StartNo};
use crate::policy::{MemoryAction, MemoryPolicy, MemoryRung, WorkerPolicy};
use crate::signal::Signal;
use crate::time::MonoTime;
use crate::units::Bytes;

/// A memory ladder with one rung of each kind, each passed by one sample.
fn judged(policy: WorkerPolicy) -> WorkerPolicy {
    let rung = |mb: u64, action| MemoryRung { limit: Bytes(mb * 1_000_000), hits: 1, of: 1, action };
    let ladder = vec![rung(100, MemoryAction::Signal(Signal::Usr1)), rung(350, MemoryAction::Drain), rung(500, MemoryAction::Kill)];
    WorkerPolicy { memory: Some(MemoryPolicy { ladder, every: Duration::from_secs(10) }), ..policy }
}

/// Every state, by the events that lead to it.
fn states() -> Vec<(&'static str, Slot, WorkerPolicy)> {
    let (after, proof) = (judged(policy()), judged(proof()));
    let up = [event::start(1), event::spawned(1)];
    let after_a_stop = |policy: &WorkerPolicy| run(policy, &[&up[..], &[event::stop(Then::Stay), event::exited(1)]].concat());
    let old = |slot: &Slot| Slot::recall(slot.saved());
    let ready = run(&after, &[&up[..], &[event::wait(1)]].concat());
    let paused = |slot: &Slot| step(slot.clone(), Event::Pause, at(2), &after).0;
    let restart = Then::Start(target(2));
    let mut quarantined = run(&after, &[event::start(1)]);
    for start in 1..=5 {
        let then = [event::spawned(start), event::exited(start), event::gone(start), event::wait(9)];
        for (event, late) in if start == 5 { &then[..3] } else { &then[..] } {
            quarantined = step(quarantined, event.clone(), at(*late + 1), &after).0;
        }
    }
    // Only ends by a memory limit keep their distance: two of them.
    let rung = MemoryRung { limit: Bytes(500_000_000), hits: 1, of: 1, action: MemoryAction::Drain };
    let limited = WorkerPolicy { memory: Some(MemoryPolicy { ladder: vec![rung], every: Duration::from_secs(1) }), ..after.clone() };
    let past_limit = |start| [event::spawned(start), (event::sample(start, 900).0, 0), event::exited(start), event::gone(start)];
    let pace = [&[event::start(1)], &past_limit(1)[..], &past_limit(2)[..]].concat();
    let stopping = run(&after, &[&up[..], &[event::wait(1), event::stop(Then::Stay)]].concat());
    let crashes = [event::exited(1), event::gone(1), event::spawned(2), event::exited(2), event::gone(2), event::wait(1)];
    let crashed = |events| run(&after, &[&up[..], &crashes[..events]].concat());
    let backoff = step(
        step(step(crashed(6), event::spawned(3).0, at(2), &after).0, event::exited(3).0, at(2), &after).0,
        event::gone(3).0,
        at(2),
        &after,
    )
    .0;
    let crash = crashed(4);
    let started_paused = run(&after, &[(Event::Pause, 0), event::start(1)]);
    let exited = step(paused(&ready), event::exited(1).0, at(2), &after).0;
    vec![
        ("stopped", Slot::default(), after.clone()),
        ("stopped, paused", paused(&Slot::default()), after.clone()),
        ("recalled, was ready", old(&ready), after.clone()),
        ("recalled, was stopping", old(&stopping), after.clone()),
        ("recalled, was clearing", old(&crash), after.clone()),
        ("recalled, had exited while paused", old(&exited), after.clone()),
        ("spawning", run(&after, &up[..1]), after.clone()),
        ("spawning, paused", paused(&run(&after, &up[..1])), after.clone()),
        ("cancelling", run(&after, &[up[0].clone(), event::stop(Then::Stay)]), after.clone()),
        ("cancelling by KILL", run(&after, &[up[0].clone(), event::stop(Then::Stay), (Event::KillNow, 0)]), after.clone()),
        ("starting, ready after 1s", run(&after, &up), after.clone()),
        ("starting, ready when seen", run(&proof, &up), proof.clone()),
        ("starting when seen, paused", paused(&run(&proof, &up)), proof.clone()),
        ("ready", ready.clone(), after.clone()),
        ("ready, paused", paused(&ready), after.clone()),
        ("stopping, then stay", stopping.clone(), after.clone()),
        ("stopping, then stay, paused", paused(&stopping), after.clone()),
        ("stopping, then start", run(&after, &[&up[..], &[event::stop(restart)]].concat()), after.clone()),
        ("stopping, was not ready", step(run(&proof, &up), Event::DeadlineReached, at(60), &proof).0, proof),
        ("stopping by KILL", step(stopping, Event::KillNow, at(2), &after).0, after.clone()),
        ("exited while paused", exited, after.clone()),
        ("clearing, then stay", after_a_stop(&after), after.clone()),
        ("clearing after a crash", crash, after.clone()),
        ("backoff", backoff.clone(), after.clone()),
        ("backoff, paused", paused(&backoff), after.clone()),
        ("backoff for the pace", run(&limited, &pace), after.clone()),
        ("backoff until resumed", started_paused, after.clone()),
        ("quarantined", quarantined, after),
    ]
}

/// Every event, about the start that is in the slot.
fn events(start: StartNo) -> Vec<(&'static str, Event)> {
    let start = if start.0 == 0 { StartNo(7) } else { start };
    let sample = |mb: u64| Event::MemorySample { start, sample: Some(Bytes(mb * 1_000_000)) };
    let process = ProcessId { pid: 9, start_ticks: 9 };
    let adopted = |ready_since| Event::Adopted { start, process, target: target(1), since: at(0), ready_since };
    let job = StaleJobSeen {
        child: process,
        title: b"t"[..].into(),
        class: Some("A".into()),
        queue: "q".into(),
        age: Duration::from_secs(61),
        timeout: Duration::from_secs(60),
    };
    vec![
        ("Start same generation", Event::Start { target: target(1) }),
        ("Start next generation", Event::Start { target: target(2) }),
        ("StartNow same generation", Event::StartNow { target: target(1) }),
        ("Spawned", Event::Spawned { start, process }),
        ("SpawnFailed", Event::SpawnFailed { start, error: "no such file".into(), jitter: Jitter(0) }),
        ("ReadySeen", Event::ReadySeen { start }),
        ("ReadyNotSeen", Event::ReadyNotSeen { start, met: "nobody listens".into() }),
        ("Exited", Event::Exited { start, how: ExitHow::Code(1), jitter: Jitter(0) }),
        ("TreeGone", Event::TreeGone { start, killed: 2 }),
        ("Stop, then stay", Event::StopRequested { why: StopWhy::Operator, then: Then::Stay }),
        ("Stop, then start next", Event::StopRequested { why: StopWhy::Deploy(target(2).generation), then: Then::Start(target(2)) }),
        ("Stop, as after a crash", Event::StopRequested { why: StopWhy::Operator, then: Then::AsAfterCrash }),
        ("KillNow", Event::KillNow),
        ("Deadline", Event::DeadlineReached),
        ("Memory unknown", Event::MemorySample { start, sample: None }),
        ("Memory low", sample(50)),
        ("Memory, signal", sample(150)),
        ("Memory, drain", sample(360)),
        ("Memory, kill", sample(510)),
        ("StaleJob", Event::StaleJob { start, job }),
        ("SignalRequested", Event::SignalRequested { signal: Signal::Hup }),
        ("Adopted", adopted(None)),
        ("Adopted ready", adopted(Some(at(1)))),
        ("Vanished", Event::Vanished { start, jitter: Jitter(0) }),
        ("Pause", Event::Pause),
        ("Resume", Event::Resume),
    ]
}

fn moment(moment: MonoTime) -> String {
    crate::time::Human(moment.since_boot()).to_string()
}

fn then(then: &Then) -> String {
    match then {
        Then::Stay => "stay".into(),
        Then::Start(target) => format!("start g{}", target.generation),
        Then::AsAfterCrash => "as after a crash".into(),
    }
}

fn after(after: &After) -> String {
    match after {
        After::Stay => "stay".into(),
        After::Start(target) => format!("start g{}", target.generation),
        After::Backoff { until, target, crashes } => format!("g{} after crash {crashes} at {}", target.generation, moment(*until)),
        After::Quarantined { until, target } => format!("probe g{} at {}", target.generation, moment(*until)),
    }
}

fn ladder(ladder: Ladder) -> String {
    format!("{} sent, next at {}", ladder.rung(), moment(ladder.due()))
}

fn shown(slot: &Slot) -> String {
    let state = match &slot.state {
        State::Stopped => "stopped".into(),
        State::Recalled { start, target, plan } => {
            let plan = match plan {
                Recall::Mind { ready, .. } => format!("ready since {:?}", ready.map(moment)),
                Recall::Stop { order, ladder: rung } => format!("stop {:?}, then {}", rung.map(ladder), then(&order.then)),
                Recall::Clear { after: next, .. } => format!("clear, then {}", after(next)),
                Recall::Leave { .. } => "leave".to_owned(),
            };
            format!("recalled #{} g{} ({plan})", start.0, target.generation)
        }
        State::Spawning { start, target, .. } => format!("spawning #{} g{}", start.0, target.generation),
        State::Cancelling { start, order, manner, .. } => {
            let manner = if *manner == Manner::KillAtOnce { " by KILL" } else { "" };
            format!("cancelling #{}{manner}, then {}", start.0, then(&order.then))
        }
        State::Starting { worker, wait: ReadyWait::Up { until }, .. } => format!("starting #{} until {}", worker.start.0, moment(*until)),
        State::Starting { worker, wait: ReadyWait::Proof { by, .. }, .. } => {
            format!("starting #{}, to be seen by {}", worker.start.0, moment(*by))
        }
        State::Ready { worker, since, .. } => format!("ready #{} since {}", worker.start.0, moment(*since)),
        State::Stopping { worker, order, ladder: rung, .. } => {
            format!("stopping #{} ({}), then {}", worker.start.0, ladder(*rung), then(&order.then))
        }
        State::Exited { start, .. } => format!("exited #{}", start.0),
        State::Clearing { start, after: next, .. } => format!("clearing #{}, then {}", start.0, after(next)),
        State::Backoff { until, target, why } => {
            let why = match why {
                Wait::Crashes(count) => format!("crash {count}"),
                Wait::Pace => "pace".into(),
                Wait::Resume => "resume".into(),
            };
            format!("backoff ({why}) g{} until {}", target.generation, moment(*until))
        }
        State::Quarantined { until, target } => format!("quarantined g{} until {}", target.generation, moment(*until)),
    };
    format!("{state}{}", if slot.minding == Minding::Paused { ", paused" } else { "" })
}

fn effect(effect: &Effect) -> String {
    match effect {
        Effect::Spawn { start, target } => format!("Spawn #{} g{}", start.0, target.generation),
        Effect::Signal { start, signal } => format!("Signal #{} {signal}", start.0),
        Effect::KillTree { start } => format!("KillTree #{}", start.0),
        Effect::ClearTree { start } => format!("ClearTree #{}", start.0),
        Effect::WatchReady { start } => format!("WatchReady #{}", start.0),
        Effect::KillJob { start, child, .. } => format!("KillJob #{} {}", start.0, child.pid),
        Effect::Tell(happening) => format!("\"{happening}\""),
    }
}

#[test]
fn the_whole_machine_is_this_table() {
    let mut table = String::new();
    for (name, slot, policy) in states() {
        writeln!(table, "== {name}: {} ==", shown(&slot)).expect("a String takes everything");
        let start = slot.start().unwrap_or_default();
        for (event, value) in events(start) {
            // A deadline comes when it is due; all else 3 s after the boot, when nothing else is due.
            let now = if value == Event::DeadlineReached { next_deadline(&slot).unwrap_or(at(3)) } else { at(3) };
            let (next, effects) = step(slot.clone(), value, now, &policy);
            let line = match (next == slot, effects.is_empty()) {
                (true, true) => "ignored".to_owned(),
                (true, false) => "same".to_owned(),
                (false, _) if shown(&next) == shown(&slot) => "noted".to_owned(),
                (false, _) => shown(&next),
            };
            let effects: Vec<String> = effects.iter().map(effect).collect();
            writeln!(table, "{event:26} {line}{}{}", if effects.is_empty() { "" } else { " | " }, effects.join("; "))
                .expect("a String takes everything");
        }
        table.push('\n');
    }
    insta::assert_snapshot!(table);
}

// Arc is named so that a state's target is seen to be shared, not copied.
/// From every state, after every event: what an agent reads back is what the former one wrote, and it writes the same again.
#[test]
fn what_is_saved_of_any_slot_is_what_is_recalled() {
    for (name, slot, policy) in states() {
        let start = slot.start().unwrap_or_default();
        for (event, value) in events(start) {
            let saved = step(slot.clone(), value, at(3), &policy).0.saved();
            let json = serde_json::to_string(&saved).expect("JSON");
            let read: Saved = serde_json::from_str(&json).expect("our own");
            assert_eq!(read, saved, "{name}, {event}");
            assert_eq!(Slot::recall(read).saved(), saved, "{name}, {event}");
        }
    }
}

#[test]
fn a_slot_is_small() {
    assert!(size_of::<Slot>() <= 300, "{} bytes", size_of::<Slot>());
    let (slot, one) = (Slot::default(), target(1));
    let (slot, _) = step(slot, Event::Start { target: Arc::clone(&one) }, at(0), &policy());
    assert!(slot.target().is_some_and(|its| Arc::ptr_eq(its, &one)));
}
