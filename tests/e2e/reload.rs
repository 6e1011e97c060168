//! Reloads that meet what an earlier one has not finished.

use std::collections::BTreeMap;

use crate::node::{Node, QUICK, alive};

#[test]
fn a_pool_that_is_taken_out_and_put_back_while_its_workers_stop_comes_back_once_they_have() {
    let pools = |w: bool| {
        let w = if w {
            format!("  w: {{command: '@FIXTURE@ --ignore TERM', count: 2, stop: [TERM 3s, KILL], {QUICK}}}\n")
        } else {
            String::new()
        };
        format!("{w}  v: {{command: '@FIXTURE@', {QUICK}}}")
    };
    let node = Node::with_pools(&pools(true));
    let old = node.pids("w");
    let mark = node.mark();
    node.configure(&pools(false), "");
    node.cli(&["reload", "--no-wait"]).exits(0);
    node.until("TERM to be sent", || (node.since(mark, &["worker_stopping"]).len() >= 2).then_some(()));
    assert!(old.iter().all(|pid| alive(*pid)));
    // What is deployed meanwhile is what it comes back with.
    let newest = node.commit(&[]);
    node.cli(&["deploy"]).exits(0);
    node.configure(&pools(true), "");
    node.cli(&["reload", "--no-wait"]).exits(0);
    assert!(old.iter().all(|pid| alive(*pid)), "the second reload came too late to show anything");
    node.cli(&["wait", "--ready", "--timeout", "20s"]).exits(0);
    node.until("two new workers", || {
        let now = node.pids("w");
        (now.len() == 2 && node.slots("w").iter().all(|slot| slot["state"] == "ready") && now.iter().all(|pid| !old.contains(pid)))
            .then_some(())
    });
    assert!(!old.into_iter().any(alive));
    assert!(node.slots("w").iter().all(|slot| slot["revision"] == newest.as_str()), "{:#?}", node.slots("w"));
    // No slot ever had two.
    let mut running: BTreeMap<String, i32> = BTreeMap::new();
    for event in node.since(0, &["worker_started", "worker_ended"]) {
        let count = running.entry(format!("{}/{}", event["pool"], event["slot"])).or_default();
        *count += if event["kind"] == "worker_started" { 1 } else { -1 };
        assert!((0..=1).contains(count), "{event}");
    }
}
