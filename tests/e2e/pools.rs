//! Workers that misbehave, and what is done about it.

use std::time::Duration;

use rustix::process::Signal;
use selfstart_core::date::Timestamp;
use serde_json::Value;

use crate::node::{Node, QUICK, alive, children_of, free_port, shape, signal_to, text_of, title};

fn at(event: &Value) -> i64 {
    serde_json::from_value::<Timestamp>(event["at"].clone()).expect("a time").0.unix_millis()
}

#[test]
fn a_crash_is_followed_by_a_restart_at_once_then_backoff_then_quarantine_and_one_probe() {
    let node = Node::with_pools(
        "  w: {command: '@FIXTURE@', ready: {after: 50ms}, restart: {backoff: [400ms, 2s], flapping: {crashes: 4, within: 1m, retry_after: 1s}}}",
    );
    let mark = node.mark();
    for crash in 1..=4 {
        let pid = node.pid("w");
        signal_to(pid, Signal::KILL);
        node.until("the end to be told", || (node.since(mark, &["worker_ended"]).len() == crash).then_some(()));
    }
    node.told(mark, "worker_quarantined", "");
    let waiting = node.slots("w");
    node.until("the probe", || (node.since(mark, &["worker_started"]).len() == 4).then_some(()));
    node.state("w", "ready");

    let ends = node.since(mark, &["worker_ended"]);
    let starts = node.since(mark, &["worker_started"]);
    assert!(ends.iter().all(|end| end["verdict"] == "signal" && text_of(end).contains("killed by KILL")), "{ends:#?}");
    assert!(text_of(&ends[0]).ends_with("; restarted"), "{}", ends[0]);
    assert!(text_of(&ends[1]).contains("(crash 2 in a row)"), "{}", ends[1]);
    assert!(text_of(&ends[3]).contains("quarantined, one probe in "), "{}", ends[3]);
    let waits: Vec<i64> = (0..4).map(|n| at(&starts[n]) - at(&ends[n])).collect();
    // Jitter: the contract's waits may be a little shorter or longer.
    assert!(waits[0] < 400 && waits[1] > 250 && waits[2] > waits[1] && waits[3] > 700, "{waits:?}");
    assert!(waiting.first().is_some_and(|slot| slot["state"] == "quarantined" || slot["state"] == "starting"), "{waiting:?}");
    node.same(node.look("/pools/0/slots/0/restarts"), 4.into());
}

#[test]
fn a_worker_that_ignores_term_is_killed_and_stopping_many_takes_as_long_as_one() {
    let node = Node::with_pools(&format!("  w: {{command: '@FIXTURE@ --ignore TERM', count: 5, stop: [TERM 1s, KILL], {QUICK}}}"));
    let mark = node.mark();
    let said = node.cli(&["stop", "w"]).exits(0);
    assert!(said.took > Duration::from_secs(1) && said.took < Duration::from_millis(3500), "{said:?}");
    node.state("w", "stopped");
    let ends = node.since(mark, &["worker_ended"]);
    assert_eq!(ends.len(), 5);
    assert!(ends.iter().all(|end| text_of(end).contains("ended by KILL because an operator asked for it") && end["verdict"] == "operator"));
    let rungs = node.since(mark, &["worker_stopping"]);
    assert!(["TERM", "KILL"].iter().all(|rung| rungs.iter().filter(|event| text_of(event).contains(rung)).count() == 5), "{rungs:#?}");
    assert_eq!(node.processes(), [0; 0]);
}

#[test]
fn what_a_worker_forked_or_daemonised_ends_with_it() {
    let node = Node::with_pools(&format!("  w: {{command: '@FIXTURE@ --daemonise @DIR@/daemon --fork 50', {QUICK}}}"));
    let daemon: i32 = node.until("the daemon", || node.text("daemon").trim().parse().ok());
    node.until("50 children, the daemon and the worker", || (node.processes().len() == 52).then_some(()));
    let pid = node.pid("w");
    // The main process alone crashes: what it leaves goes before the next one comes.
    let mark = node.mark();
    signal_to(pid, Signal::KILL);
    let end = node.told(mark, "worker_ended", "");
    assert!(text_of(&end).contains("51 processes that it left were killed"), "{end}");
    assert!(!alive(daemon));
    node.until("the next one with its own", || (node.processes().len() == 52).then_some(()));
    node.cli(&["stop", "w"]).exits(0);
    node.same(node.processes(), vec![]);
}

#[test]
fn ready_is_what_the_pool_says_it_is() {
    let port = free_port();
    let node = Node::new();
    node.configure(
        &format!(
            "  tcp: {{command: '@FIXTURE@ --listen {port} after 700', port: {port}, ready: {{tcp: '127.0.0.1:{{port}}', within: 20s}}}}\n  \
             file: {{command: '@FIXTURE@', ready: {{command: 'test -e @DIR@/ok.{{slot}}', within: 30s}}}}\n  \
             late: {{command: '@FIXTURE@', ready: {{tcp: '127.0.0.1:1', within: 300ms}}, restart: {{backoff: [10s, 1m]}}}}"
        ),
        "",
    );
    node.start();
    node.until("tcp is ready", || (node.slots("tcp").first()?["state"] == "ready").then_some(()));
    let events = node.events();
    let of = |kind: &str, pool: &str| events.iter().find(|event| event["kind"] == kind && event["pool"] == pool);
    let (started, ready) = (of("worker_started", "tcp").expect("started"), of("worker_ready", "tcp").expect("ready"));
    assert!(at(ready) - at(started) >= 650, "{started} {ready}");
    node.same(node.slots("file")[0]["state"].clone(), "starting".into());
    node.write("ok.0", "");
    node.until("file is ready", || (node.slots("file").first()?["state"] == "ready").then_some(()));
    let end = node.told(0, "worker_ended", "it was not ready within 300ms");
    assert_eq!((end["pool"].as_str(), end["verdict"].as_str()), (Some("late"), Some("not_ready")));
}

#[test]
fn a_worker_that_grows_too_large_is_drained_and_the_verdict_has_the_figures() {
    let node = Node::with_pools(
        "  w: {command: '@FIXTURE@ --print-on-term drained --leak 60 up-to 80', memory: {ladder: [40MB x2/2 drain], every: 200ms}, ready: {after: 50ms}}",
    );
    let pid = node.pid("w");
    let end = node.told(0, "worker_ended", "40 MB was passed in 2 of 2 samples (");
    assert_eq!(end["verdict"], "memory");
    assert!(text_of(&end).starts_with("ended by TERM after 40 MB") && text_of(&end).ends_with("; restarted"), "{end}");
    assert!(!alive(pid));
    node.until("its last words", || node.text("root/log/w.0.log").contains("out drained").then_some(()));
    node.cli(&["why", "w/0"]).exits(0).says(&["40 MB was passed in 2 of 2 samples"]);
    // Not a crash.
    node.until("a measured successor", || node.slots("w").first().filter(|slot| slot["memory_bytes"].as_u64() > Some(1_000_000)).map(drop));
}

#[test]
fn the_child_that_works_a_stale_job_is_killed_and_its_master_stays() {
    let node = Node::with_pools(
        "  w: {command: '@FIXTURE@ --resque slow SleepJob 600000', queue: {kind: resque}, stale_job_timeout: 1s, ready: {after: 50ms}}",
    );
    let master = node.pid("w");
    let child = node.until("a job", || {
        children_of(master)
            .into_iter()
            .find(|pid| title(*pid).starts_with("resque-3.0.0: Processing slow since "))
            .filter(|pid| alive(*pid))
    });
    let stale = node.told(0, "stale_job", "SleepJob");
    assert_eq!(stale["verdict"], "stale");
    node.until("its end", || (!alive(child)).then_some(()));
    node.until("the next job", || {
        children_of(master)
            .into_iter()
            .find(|pid| *pid != child && title(*pid).starts_with("resque-3.0.0: Processing slow since "))
            .map(drop)
    });
    node.same(node.pid("w"), master);
    node.until("the master's word", || node.text("root/log/w.0.log").contains(&format!("died child={child}")).then_some(()));
    assert!(node.since(0, &["worker_ended"]).iter().all(|event| event["verdict"] == "stale"));
    // A stop in the middle of a job: QUIT is not enough, TERM ends it.
    let slot = &node.slots("w")[0];
    node.same(slot["restarts"].clone(), 0.into());
}

#[test]
fn not_a_line_of_workers_that_flood_and_exit_is_lost() {
    let node = Node::new();
    node.configure(
        "  w: {command: '@FIXTURE@ --flood 3000 --partial half --then-exit 0', count: 2, ready: {after: 10s, within: 20s}, restart: {backoff: [100ms, 100ms], flapping: {crashes: 1000, within: 1s}}}",
        "",
    );
    node.start();
    node.until("ten ends", || (node.since(0, &["worker_ended"]).len() >= 10).then_some(()));
    node.cli(&["stop"]).exits(0);
    let whole: Vec<(u64, i64)> = {
        let starts = node.since(0, &["worker_started"]);
        let ends = node.since(0, &["worker_ended"]);
        let exited = |slot: u64, n: usize| ends.iter().filter(|end| end["slot"] == slot).nth(n).is_some_and(|end| end["verdict"] == "exit");
        (0..2_u64)
            .flat_map(|slot| {
                let mine: Vec<&Value> = starts.iter().filter(|start| start["slot"] == slot).collect();
                mine.into_iter()
                    .enumerate()
                    .filter(|(n, _)| exited(slot, *n))
                    .map(|(_, start)| (slot, start["pid"].as_i64().expect("a pid")))
                    .collect::<Vec<_>>()
            })
            .collect()
    };
    assert!(whole.len() >= 9, "{whole:?}");
    for (slot, pid) in whole {
        let log = node.text(&format!("root/log/w.{slot}.log"));
        let seen: Vec<&str> = log.lines().filter(|line| line.ends_with(&format!(" pid={pid}"))).collect();
        assert_eq!(seen.len(), 3000, "{pid}");
        assert!(seen.iter().zip(1..).all(|(line, n)| line.contains(&format!(" out n={n:06} "))), "{pid}");
        assert!(log.lines().filter(|line| line.ends_with(" out half")).count() >= 4);
    }
}

#[test]
fn a_command_that_is_not_there_is_told_with_its_name() {
    let node = Node::new();
    node.configure("  w: {command: ./missing --now}\n  v: {command: no-such-program-anywhere}", "");
    node.start();
    for (pool, name) in [("w", "missing"), ("v", "no-such-program-anywhere")] {
        let slot =
            node.until("a verdict", || node.slots(pool).into_iter().next().filter(|slot| slot["last_verdict"]["kind"] == "start_failed"));
        let text = slot["last_verdict"]["text"].as_str().unwrap_or_default().to_owned();
        assert!(text.contains(name), "{text}");
        node.cli(&["why", &format!("{pool}/0")]).exits(0).says(&[name]);
    }
    assert!(shape(&node.since(0, &["worker_start_failed", "worker_ended"])).len() >= 2);
}
