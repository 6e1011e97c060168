//! Nodes that are for something: `roles`, `attributes`, `only`, and `run --role`.

use rustix::process::Signal;
use serde_json::Value;

use crate::node::{Node, QUICK, children_of, signal_to};

/// One configuration for all nodes, as an image has it.
fn configure(node: &Node, more: &str, count: u32) {
    let pools = format!(
        "  w: {{command: '@FIXTURE@', count: {count}, only: {{roles: [worker]}}, after: [web], {QUICK}}}\n  \
         web: {{command: '@FIXTURE@', only: {{roles: [app]}}, {QUICK}}}\n  \
         copies: {{command: '@FIXTURE@', only: {{slave: true}}, {QUICK}}}"
    );
    let build =
        "build: {steps: ['echo all >> ran', {run: 'echo db >> ran', only: {roles: [db]}}, {run: 'echo app >> ran', only: {roles: [app]}}]}";
    node.configure(&pools, &format!("{more}\n{build}"));
}

fn pools(node: &Node) -> Vec<String> {
    node.look("/pools").as_array().into_iter().flatten().filter_map(|pool| Some(pool["name"].as_str()?.to_owned())).collect()
}

fn agent(node: &Node) -> i32 {
    node.look("/agent/pid").as_i64().and_then(|pid| i32::try_from(pid).ok()).unwrap_or(0)
}

#[test]
fn a_role_of_the_command_line_outlives_reloads_agents_upgrades_and_keepers() {
    let node = Node::new();
    configure(&node, "roles: [db]", 1);
    let start = || {
        node.start_as(&[], &["--role", "app", "--role", "front"]);
        node.until("the control socket", || node.root("run/control.sock").exists().then_some(()));
        node.until("ready", || (node.cli(&["wait", "--ready", "--timeout", "20s"]).code == Some(0)).then_some(()));
    };
    start();
    node.idle();
    node.same(node.text("root/current/ran"), "all\ndb\napp\n".to_owned());
    let holds = |when: &str| {
        node.until(when, || (pools(&node) == ["web"]).then_some(()));
        node.same(node.look("/node/roles"), serde_json::json!(["app", "db", "front"]));
        node.same(node.look("/node/pools_elsewhere"), serde_json::json!(["w", "copies"]));
    };
    holds("the pool of the role");
    node.cli(&["status"]).exits(0).says(&["(app, db, front)", "w, copies"]);
    // A pool that is not here is none to be commanded.
    assert_ne!(node.cli(&["restart", "w"]).code, Some(0));
    let release = node.live().1;

    configure(&node, "roles: [db]", 2);
    node.cli(&["reload"]).exits(0);
    holds("after a reload");

    let (first, keeper) = (agent(&node), node.keeper());
    let web = node.pid("web");
    signal_to(first, Signal::KILL);
    node.until("another agent", || (agent(&node) != first && agent(&node) != 0).then_some(()));
    holds("after a kill of the agent");

    let second = agent(&node);
    node.signal_keeper(Signal::USR2);
    node.until("an upgraded agent", || (![0, first, second].contains(&agent(&node))).then_some(()));
    holds("after an upgrade");
    node.same((node.keeper(), node.pid("web")), (keeper, web));

    let agents = children_of(node.keeper());
    node.signal_keeper(Signal::KILL);
    agents.into_iter().filter(|pid| *pid != web).for_each(|pid| signal_to(pid, Signal::KILL));
    let _killed = node.ended();
    start();
    holds("after another keeper");
    node.same((node.live().1, node.pid("web")), (release, web));
}

#[test]
fn pools_and_steps_come_and_go_with_what_the_node_is_for() {
    let node = Node::new();
    // `copies` is for none that does not say what it is; `w` comes after a pool that is not here.
    configure(&node, "roles: [worker]", 1);
    node.boot();
    node.same(pools(&node), vec!["w".to_owned()]);
    node.same(node.text("root/current/ran"), "all\n".to_owned());
    let checked = node.cli(&["check", "--offline", "--json"]).exits(0);
    let findings: Value = serde_json::from_str(&checked.out).expect("JSON");
    let of = |key: &str| {
        let found = findings["findings"].as_array().into_iter().flatten();
        found.filter(|it| it["text"].as_str().is_some_and(|text| text.starts_with(key))).cloned().collect::<Vec<_>>()
    };
    node.same(of("pools.web.only")[0]["weight"].clone(), "good".into());
    node.same(of("pools.copies.only")[0]["weight"].clone(), "warning".into());
    assert!(of("pools.copies.only")[0]["text"].as_str().is_some_and(|text| text.ends_with("no attribute `slave`")));
    let as_app = node.cli(&["check", "--offline", "--json", "--role", "app"]).exits(0);
    assert!(!as_app.out.contains("pools.web.only"), "{as_app:?}");

    let (release, w) = (node.live().1, node.pid("w"));
    configure(&node, "roles: [worker]\nattributes: {slave: true}", 1);
    node.cli(&["reload", "--plan"]).exits(0).says(&["copies"]);
    node.same(pools(&node), vec!["w".to_owned()]);
    node.cli(&["reload"]).exits(0);
    node.same(pools(&node), vec!["w".to_owned(), "copies".to_owned()]);
    node.same((node.live().1, node.pid("w")), (release.clone(), w));

    // A step that comes makes a new release; one that was never here would not.
    configure(&node, "roles: [app]", 1);
    node.cli(&["reload", "--plan"]).exits(0).says(&["web", "copies"]);
    node.cli(&["reload"]).exits(0);
    node.until("the pools of the other role", || (pools(&node) == ["web"]).then_some(()));
    assert_ne!(node.live().1, release);
    node.same(node.text("root/current/ran"), "all\napp\n".to_owned());
}

#[test]
fn a_node_for_which_no_pool_is_deploys_and_is_ready_then() {
    let node = Node::new();
    configure(&node, "roles: [db]", 1);
    node.boot();
    assert!(node.root("current/REVISION").exists(), "ready is what has a live release");
    node.same((pools(&node).len(), node.text("root/current/ran")), (0, "all\ndb\n".to_owned()));
    node.cli(&["check", "--offline"]).exits(0).says(&["pools: none is for this node"]);
    let newest = node.commit(&[("README", "second\n")]);
    node.cli(&["deploy"]).exits(0);
    node.same(node.live().0, newest);
}
