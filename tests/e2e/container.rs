//! As process 1 of a container: in namespaces of its own for processes and mounts, without systemd.

use rustix::process::Signal;

use crate::node::{Node, QUICK, alive, children_of, signal_to};

/// Starts the node as process 1; returns its number out here.
fn start(node: &Node) -> i32 {
    node.start_with(&["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]);
    node.until("process 1", || children_of(node.keeper()).first().copied())
}

/// Whether a process has ended and nobody has asked how.
fn is_zombie(pid: i32) -> bool {
    let stat = fs_err::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
}

#[test]
fn process_1_of_a_container_reaps_what_workers_leave_and_ends_when_it_is_told() {
    let node = Node::new();
    // Its child is left to process 1 at once, and ends a moment later; so do the hundred of each crash.
    let orphans = "for i in 1 2 3 4 5 6 7 8 9 10; do (sleep 0.2 & echo $! >> @DIR@/orphans); done; exec @FIXTURE@ --daemonise @DIR@/daemon";
    node.configure(&format!("  w:\n    shell: '{orphans}'\n    count: 2\n    {}", QUICK.replace(", ", "\n    ")), "");
    let first = start(&node);
    for slot in [0, 1] {
        node.until("both workers ready", || node.since(0, &["worker_ready"]).iter().any(|event| event["slot"] == slot).then_some(()));
    }
    node.until("all orphans to be made", || (node.text("orphans").lines().count() == 20).then_some(()));
    // What is left: the agent, two workers and their daemons.
    node.until("the last orphan to be reaped", || {
        let left = children_of(first);
        (left.len() <= 5 && !left.into_iter().any(is_zombie)).then_some(())
    });
    let inside = children_of(first);
    signal_to(first, Signal::TERM);
    node.same(node.ended(), Some(0));
    assert!(inside.into_iter().all(|pid| !alive(pid)));
    node.same(node.processes(), vec![]);
    node.told(0, "agent_stopped", "");
}

#[test]
fn process_1_says_when_its_ladders_are_longer_than_who_stops_a_container_waits() {
    let node = Node::new();
    node.configure("  w: {command: '@FIXTURE@', stop: [TERM 25s, KILL]}", "");
    let first = start(&node);
    let told = node.told(0, "trouble", "`docker stop` kills after 10s");
    assert!(told["text"].as_str().is_some_and(|text| text.contains("may take 25s")), "{told}");
    signal_to(first, Signal::TERM);
    node.same(node.ended(), Some(0));
}
