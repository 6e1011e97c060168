//! Workers that write without end, and workers whose memory is in what left them.

use std::time::Duration;

use rustix::process::Signal;

use crate::node::{Node, QUICK, alive, signal_to, text_of};

#[test]
fn a_worker_that_writes_without_end_holds_up_neither_commands_nor_the_restart_of_others() {
    let node = Node::with_pools(&format!(
        "  flood: {{command: '@FIXTURE@ --flood 0', count: 12, log: {{max_size: 1MB, keep: 1}}, {QUICK}}}\n  \
         w: {{command: '@FIXTURE@', restart: {{backoff: [100ms, 100ms], flapping: {{crashes: 1000, within: 1s}}}}, {QUICK}}}"
    ));
    let rotated = || fs_err::metadata(node.root("log/flood.1.log.1")).is_ok();
    node.until("a flood", || rotated().then_some(()));
    for _ in 0..5 {
        let pid = node.pid("w");
        signal_to(pid, Signal::KILL);
        node.until("another worker", || node.pids("w").first().filter(|now| **now != pid).map(drop));
        let said = node.cli(&["status"]).exits(0);
        assert!(said.took < Duration::from_secs(3), "{said:?}");
    }
    let said = node.cli(&["stop"]).exits(0);
    assert!(said.took < Duration::from_secs(5), "{said:?}");
    node.same(node.processes(), vec![]);
}

#[test]
fn the_memory_of_what_daemonised_itself_is_its_workers_and_goes_with_it() {
    // In a session of its own, its parent gone: nothing but its environment says whose it is.
    let node = Node::with_pools(&format!(
        "  w: {{shell: 'test -e @DIR@/once || (touch @DIR@/once; setsid @FIXTURE@ --touch @DIR@/daemon --leak 400 up-to 80 &); exec @FIXTURE@', \
         memory: {{ladder: [40MB x2/2 drain], every: 200ms}}, {QUICK}}}"
    ));
    let daemon: i32 = node.until("the daemon", || node.text("daemon").trim().parse().ok());
    let end = node.told(0, "worker_ended", "40 MB was passed in 2 of 2 samples (");
    assert_eq!((end["pool"].as_str(), end["verdict"].as_str()), (Some("w"), Some("memory")));
    assert!(text_of(&end).contains("1 process that it left was killed"), "{end}");
    assert!(!alive(daemon));
    node.state("w", "ready");
    node.until("a small successor", || node.slots("w").first()?["memory_bytes"].as_u64().filter(|bytes| *bytes < 20_000_000).map(drop));
}

#[test]
fn the_memory_of_workers_without_a_limit_is_shown_too_and_nothing_is_done_about_it() {
    let node = Node::with_pools(&format!(
        "  plain: {{command: '@FIXTURE@ --leak 60 up-to 60', count: 2, {QUICK}}}\n  \
         ruled: {{command: '@FIXTURE@', memory: {{ladder: [1GB x2/2 drain], every: 200ms}}, {QUICK}}}"
    ));
    let (pids, mark) = (node.pids("plain"), node.mark());
    let large = |slot: &serde_json::Value| slot["memory_bytes"].as_u64() > Some(50_000_000);
    node.until("both of them measured", || (node.slots("plain").iter().filter(|slot| large(slot)).count() == 2).then_some(()));
    node.same(node.pids("plain"), pids);
    node.same(node.since(mark, &["worker_memory", "worker_stopping", "worker_ended"]).len(), 0);
    // Of a worker that has just begun nothing is known yet: not what its predecessor had, and not zero.
    node.cli(&["restart", "plain/0"]).exits(0);
    let new = &node.slots("plain")[0];
    assert!(new["memory_bytes"].is_null() || new["memory_bytes"].as_u64() > Some(100_000), "{new}");
}
