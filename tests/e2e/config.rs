//! Configurations that cannot be used.

use crate::node::{Node, QUICK};
use rustix::process::Signal;

#[test]
fn a_broken_configuration_at_the_first_start_ends_with_78_and_all_that_is_wrong() {
    let node = Node::new();
    node.configure_raw(
        "app: E2E\nroot: @DIR@/root\nsource: {repository: @DIR@/src, branch: main, dept: 1}\npools:\n  w: {command: x, count: many}\n",
    );
    node.start();
    node.same(node.ended(), Some(78));
    let log = node.text("agent.log");
    let file = node.path("config.yaml").display().to_string();
    for wanted in ["1:6: app", "dept", "hint: ", "depth", "pools.w.count"] {
        assert!(log.contains(wanted), "`{wanted}` is not in {log}");
    }
    // Each once; this one hears the last word of the agent, too.
    let told = node.cli(&["run"]).exits(78).err;
    assert_eq!(told.lines().filter(|line| line.contains(&file)).count(), 3, "{told}");
    assert!(!node.path("root").exists());
    node.cli(&["check"]).exits(78).says(&["dept"]);
}

#[test]
fn a_user_who_is_not_there_is_a_wrong_configuration_with_its_place() {
    let node = Node::new();
    node.configure_raw(
        "app: e2e\nroot: @DIR@/root\nuser: no-such-user\nsource: {repository: @DIR@/src, branch: main}\npools:\n  w: {command: x}\n",
    );
    let told = format!("{}:3:7: user: there is no user `no-such-user` on this machine", node.path("config.yaml").display());
    node.cli(&["check"]).exits(78).says(&[&told, "hint: `useradd"]);
    node.start();
    node.same(node.ended(), Some(78));
    let log = node.text("agent.log");
    assert!(log.contains(&told) && log.contains("hint: `useradd"), "{log}");
    assert!(!node.path("root").exists());
    // One that runs keeps what it has.
    node.configure(&format!("  w: {{command: '@FIXTURE@', {QUICK}}}"), "");
    node.boot();
    node.configure(&format!("  w: {{command: '@FIXTURE@', {QUICK}, user: no-such-user}}"), "");
    node.cli(&["reload"]).exits(78).says(&["pools.w.user: there is no user `no-such-user`"]);
    node.state("w", "ready");
}

#[test]
fn run_without_a_configuration_says_so_as_every_verb_does() {
    let node = Node::new();
    for verb in ["run", "status"] {
        node.cli(&[verb]).exits(78).says(&["error: there is no configuration at `", "config.yaml`", "hint: name it with --config"]);
    }
}

#[test]
fn with_a_live_release_the_last_good_configuration_is_run_loudly() {
    let node = Node::with_pools(&format!("  w: {{command: '@FIXTURE@', count: 2, {QUICK}}}"));
    let live = node.live();
    node.signal_keeper(Signal::TERM);
    node.same(node.ended(), Some(0));
    node.configure_raw("app: e2e\nroot: @DIR@/root\nsource: {repository: @DIR@/src, branch: main}\npools:\n  w: {comand: x}\n");
    let mark = node.mark();
    node.boot();
    node.same(node.live(), live);
    node.same(node.pids("w").len(), 2);
    let note = node.look("/notes/0");
    assert!(note.as_str().is_some_and(|note| note.contains("comand") || note.contains("config")), "{note}");
    node.told(mark, "config_refused", "");
    node.cli(&["status"]).exits(0).says(&["config"]);
}
