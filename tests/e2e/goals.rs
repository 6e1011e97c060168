//! Commands whose goal is far, or cannot be reached: each is answered, and says why.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;

use crate::node::{Node, QUICK, alive, signal_to};

/// A worker that fails as long as there is a file `crash`.
const MOODY: &str = "shell: 'test ! -e @DIR@/crash || exit 3; exec @FIXTURE@'";

#[test]
fn a_drain_ends_with_a_quarantined_slot_and_a_pool_of_none_too_and_none_of_them_is_probed() {
    let node = Node::new();
    node.configure(
        &format!(
            "  bad: {{{MOODY}, {QUICK}, restart: {{backoff: [100ms, 100ms], flapping: {{crashes: 2, within: 1m, retry_after: 2s}}}}}}\n  \
             good: {{command: '@FIXTURE@', after: [none], {QUICK}}}\n  none: {{command: '@FIXTURE@', count: 0, {QUICK}}}"
        ),
        "",
    );
    node.boot();
    node.write("crash", "");
    signal_to(node.pid("bad"), Signal::KILL);
    node.state("bad", "quarantined");
    let said = node.cli(&["drain"]).exits(0).says(&["drained"]);
    assert!(said.took < Duration::from_secs(10), "{said:?}");
    node.same(node.look("/agent/state"), "drained".into());
    node.same(node.processes(), vec![]);
    // A slot that still counted down to its probe would be shown as quarantined.
    node.same(node.slots("bad")[0]["state"].clone(), "stopped".into());

    fs_err::remove_file(node.path("crash")).expect("removed");
    node.cli(&["start"]).exits(0);
    node.state("bad", "ready");
    node.state("good", "ready");
}

#[test]
fn a_deploy_gives_way_to_a_drain_after_its_step_and_start_takes_it_up_again() {
    let node = Node::new();
    node.configure(
        &format!("  w: {{command: '@FIXTURE@', {QUICK}}}"),
        "build: {steps: ['while test -e @DIR@/hold; do touch @DIR@/at-it; sleep 0.05; done']}",
    );
    node.boot();
    let before = node.live();
    node.write("hold", "");
    let next = node.commit(&[]);
    let mark = node.mark();
    let mut asker = node.command(&["deploy"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
    node.until("the build", || node.path("at-it").exists().then_some(()));
    let said = node.cli(&["drain"]).exits(0);
    assert!(said.took < Duration::from_secs(15), "{said:?}");
    node.same(node.pids("w"), vec![]);
    node.same(node.look("/agent/state"), "drained".into());
    // It gives way at the end of its step.
    fs_err::remove_file(node.path("hold")).expect("removed");
    let status = node.until("an answer to `deploy`", || asker.try_wait().expect("waited"));
    assert!(matches!(status.code(), Some(1 | 4)), "{status}");
    node.idle();
    node.same((node.live(), node.processes()), (before, vec![]));
    node.same(node.look("/deploy/quarantined"), serde_json::json!([]));
    assert!(node.since(mark, &["deploy_failed", "switched", "worker_started"]).is_empty());
    node.told(mark, "deploy_postponed", &next[..7]);

    node.cli(&["start"]).exits(0);
    node.until("the revision that was asked for", || (node.live().0 == next).then_some(()));
    node.idle();
    node.state("w", "ready");
}

#[test]
fn a_pool_waits_for_one_that_does_not_become_ready_and_the_deploy_that_mends_it_does_not() {
    let node = Node::new();
    node.commit(&[("first.sh", "#!/bin/sh\nexit 9\n")]);
    node.configure(
        &format!(
            "  first: {{command: ./first.sh, env: {{FIXTURE: '@FIXTURE@'}}, restart: {{backoff: [100ms, 200ms]}}, {QUICK}}}\n  \
             second: {{command: '@FIXTURE@', after: [first], {QUICK}}}\n  third: {{command: '@FIXTURE@', after: [second], {QUICK}}}\n  \
             alone: {{command: '@FIXTURE@', {QUICK}}}"
        ),
        "",
    );
    node.start();
    node.until("a failed start", || (node.since(0, &["worker_ended"]).len() >= 2).then_some(()));
    node.state("alone", "ready");
    node.idle();
    let of = |pool: &str| node.since(0, &["worker_started"]).into_iter().filter(|event| event["pool"] == pool).count();
    node.same((of("second"), of("third")), (0, 0));
    node.cli(&["wait", "--ready", "--timeout", "300ms"]).exits(1);

    node.commit(&[("first.sh", "#!/bin/sh\nexec \"$FIXTURE\"\n")]);
    node.cli(&["deploy"]).exits(0);
    node.cli(&["wait", "--ready", "--timeout", "20s"]).exits(0);
    let events = node.events();
    let at = |kind: &str, pool: &str| events.iter().position(|event| event["kind"] == kind && event["pool"] == pool).expect("told");
    assert!(at("worker_ready", "first") < at("worker_started", "second") && at("worker_ready", "second") < at("worker_started", "third"));
}

#[test]
fn what_can_never_be_ready_is_answered_with_why() {
    let node = Node::new();
    node.configure(
        &format!(
            "  w: {{{MOODY}, count: 2, {QUICK}, restart: {{backoff: [10s, 1m], flapping: {{crashes: 3, within: 1m, retry_after: 10m}}}}}}\n  \
             v: {{command: '@FIXTURE@', {QUICK}}}"
        ),
        "",
    );
    node.boot();
    node.cli(&["stop", "w"]).exits(0);
    node.write("crash", "");
    let answered = |words: &[&str], texts: &[&str]| {
        let said = node.cli(words).exits(1).says(texts);
        assert!(said.took < Duration::from_secs(15) && said.err.contains("hint:"), "{said:?}");
    };
    answered(&["start", "w"], &["does not become ready", "code 3", "w/0"]);
    answered(&["restart", "w"], &["does not become ready", "code 3"]);
    answered(&["restart", "w/1"], &["w/1 does not become ready", "code 3", "`selfstart why w/1` tells more"]);
    answered(&["scale", "w=3"], &["does not become ready", "code 3"]);
    node.until("a quarantined slot", || node.slots("w").iter().any(|slot| slot["state"] == "quarantined").then_some(()));
    answered(&["wait", "--ready"], &["does not become ready", "code 3"]);
    // Of a pool that people stopped or paused.
    node.cli(&["stop", "w"]).exits(0);
    fs_err::remove_file(node.path("crash")).expect("removed");
    answered(&["wait", "--ready"], &["w was stopped by an operator", "selfstart start w"]);
    node.cli(&["start", "w/1"]).exits(0);
    answered(&["wait", "--ready"], &["w/0, w/2 were stopped by an operator", "selfstart start w/0 w/2"]);
    node.cli(&["stop", "v"]).exits(0);
    answered(&["wait", "--ready"], &["v, w/0, w/2 were stopped by an operator", "selfstart start v w/0 w/2"]);
    node.cli(&["start", "v"]).exits(0);
    node.cli(&["start", "w"]).exits(0);
    node.cli(&["pause", "v"]).exits(0);
    signal_to(node.pids("v")[0], Signal::KILL);
    node.until("its end", || node.pids("v").is_empty().then_some(()));
    answered(&["start", "v"], &["v/0 is paused", "hint: `selfstart resume v/0`"]);
    answered(&["wait", "--ready"], &["v/0 is paused", "resume"]);
    node.cli(&["resume", "v"]).exits(0);
    // Of a node that is drained.
    node.cli(&["drain"]).exits(0);
    answered(&["wait", "--ready"], &["drained"]);
    node.cli(&["restart", "v"]).exits(4).says(&["the node is drained", "hint: `selfstart start` ends the drain"]);
    // Remembered for the time after.
    node.cli(&["scale", "v=2"]).exits(0);
    assert!(!node.processes().into_iter().any(alive));
}

#[test]
fn commands_of_one_pool_take_effect_in_order_and_those_of_another_do_not_wait_for_them() {
    let node = Node::new();
    // It takes its time to end, as long as there is a file.
    let slow = "shell: 'trap \"while test -e @DIR@/hold; do sleep 0.05; done; exit 0\" TERM; touch @DIR@/up; while :; do sleep 0.05; done', stop: [TERM 1h, KILL]";
    node.configure(&format!("  slow: {{{slow}, {QUICK}}}\n  quick: {{command: '@FIXTURE@', {QUICK}}}"), "");
    node.write("hold", "");
    node.boot();
    node.until("it has its trap", || node.path("up").exists().then_some(()));
    let (first, other) = (node.pid("slow"), node.pid("quick"));
    let mut stop = node.command(&["stop", "slow"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("spawned");
    node.state("slow", "stopping");
    // Another pool, meanwhile, whole.
    node.cli(&["restart", "quick"]).exits(0);
    assert_ne!(node.pid("quick"), other);
    assert!(alive(first) && stop.try_wait().expect("looked").is_none(), "the first is still at it");
    // The same pool: the later one counts in the end, whoever is answered first.
    let mut start = node.command(&["start", "slow"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("spawned");
    node.cli(&["restart", "quick"]).exits(0);
    assert!(alive(first));
    fs_err::remove_file(node.path("hold")).expect("removed");
    node.until("each is answered", || (stop.try_wait().ok()?.is_some() && start.try_wait().ok()?.is_some()).then_some(()));
    node.state("slow", "ready");
    assert_ne!(node.pid("slow"), first);
}
