//! The end of `run`.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::node::{Node, QUICK, children_of, said};

#[test]
fn term_drains_and_ends_with_0_and_nothing_is_left() {
    let node = Node::with_pools(&format!(
        "  w: {{command: '@FIXTURE@ --print-on-term bye --fork 3 --daemonise @DIR@/daemon', count: 2, {QUICK}}}"
    ));
    let agents = children_of(node.keeper());
    node.signal_keeper(Signal::TERM);
    node.same(node.ended(), Some(0));
    node.same(node.processes(), vec![]);
    assert!(agents.into_iter().all(|pid| !crate::node::alive(pid)));
    for slot in 0..2 {
        assert!(node.text(&format!("root/log/w.{slot}.log")).contains("out bye"));
    }
    assert!(node.since(0, &["worker_ended"]).iter().all(|end| end["verdict"] == "drain"));
    node.told(0, "agent_stopped", "");
}

#[test]
fn a_second_term_kills_at_once() {
    let node = Node::with_pools(&format!("  w: {{command: '@FIXTURE@ --ignore TERM', count: 3, stop: [TERM 60s, KILL], {QUICK}}}"));
    let mark = node.mark();
    node.signal_keeper(Signal::TERM);
    node.until("TERM to be sent", || (node.since(mark, &["worker_stopping"]).len() >= 3).then_some(()));
    let began = Instant::now();
    node.signal_keeper(Signal::TERM);
    node.same(node.ended(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    node.same(node.processes(), vec![]);
}

#[test]
fn a_second_run_on_the_same_root_is_refused_and_says_who_is_there() {
    let node = Node::with_pools(&format!("  w: {{command: '@FIXTURE@', {QUICK}}}"));
    let (pid, agent) = (node.pid("w"), node.look("/agent/pid"));
    said(&mut node.command(&["run"])).exits(1).says(&["another selfstart", &node.keeper().to_string()]);
    node.same((node.pid("w"), node.look("/agent/pid")), (pid, agent));
}
