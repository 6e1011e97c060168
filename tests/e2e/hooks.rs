//! Hooks around a deploy, and what undoes its steps when it fails.

use rustix::process::Signal;

use crate::node::{Node, signal_to, text_of};
use crate::waiting;

/// What each writes into a file outside of all releases: its word, and the release it ran in.
fn configured(node: &Node, more: &str) {
    let log = node.path("order");
    let say = |word: &str| format!("'echo {word} $(basename $PWD) >> {}'", log.display());
    let text = format!(
        "build:\n  steps:\n    - {{run: {}, on_rollback: {}}}\n    - {{run: {}, on_rollback: {}}}\n    - test ! -e breaks\n\
         hooks:\n  before_switch: [{}]\n  after_switch: [{}, test ! -e after-breaks]\n  after_rollout: [{}]\n  after_rollback: [{}]\n  on_failed: [{}]\n{more}",
        say("one"),
        say("undo-one"),
        say("two"),
        say("undo-two"),
        say("before-switch"),
        say("after-switch"),
        say("after-rollout"),
        say("after-rollback"),
        say("on-failed"),
    );
    node.configure("  w: {command: sleep 1000}", &text);
}

/// What was said since the last time, in words alone; all of it in one release, unless it is named.
fn order(node: &Node, releases: &[&str]) -> Vec<String> {
    let text = node.text("order");
    fs_err::write(node.path("order"), "").expect("emptied");
    text.lines()
        .map(|line| {
            let (word, release) = line.split_once(' ').expect("two words");
            assert!(releases.contains(&release), "{line}, of {releases:?}");
            word.to_owned()
        })
        .collect()
}

#[test]
fn hooks_are_run_in_their_places_and_a_failed_deploy_is_undone_in_reverse() {
    let node = Node::new();
    configured(&node, "");
    node.boot();
    let first = node.live().1;
    assert_eq!(order(&node, &[&first]), ["one", "two", "before-switch", "after-switch", "after-rollout"]);

    // A step fails: those before it are undone, the last first; what is live is left alone.
    let worker = node.pid("w");
    node.commit(&[("breaks", "")]);
    let mark = node.mark();
    let told = node.cli(&["deploy"]).exits(1).says(&["build step 3 of 3 failed"]);
    assert!(told.err.contains("its output is in"), "{told:?}");
    let failed = node.look("/deploy/last_error");
    let releases: Vec<String> = node.since(mark, &["deploy_started"]).iter().map(|event| release_of(text_of(event))).collect();
    let [second] = &releases[..] else { panic!("{releases:?} {failed}") };
    assert_eq!(order(&node, &[second]), ["one", "two", "undo-two", "undo-one", "on-failed"]);
    node.same((node.live().1, node.pid("w")), (first.clone(), worker));
    assert!(node.root(&format!("releases/{second}")).exists(), "kept for inspection");
    // Their output stands in the build's log.
    assert!(node.root(&format!("log/build/{second}.log")).exists() || told.err.contains(second.as_str()), "{told:?}");

    // A hook after the switch fails: back, and undone then.
    node.git(&["rm", "-q", "breaks"]);
    node.commit(&[("after-breaks", "")]);
    let mark = node.mark();
    node.cli(&["deploy"]).exits(1).says(&["hooks.after_switch 2 failed", "back on"]);
    let third = release_of(text_of(&node.since(mark, &["deploy_started"])[0]));
    assert_eq!(
        order(&node, &[&first, &third]),
        ["one", "two", "before-switch", "after-switch", "after-rollback", "undo-two", "undo-one", "on-failed"]
    );
    node.same(node.live().1, first.clone());

    // An operator's rollback undoes no step.
    node.git(&["rm", "-q", "after-breaks"]);
    node.commit(&[("well", "")]);
    node.cli(&["deploy"]).exits(0);
    let fourth = node.live().1;
    order(&node, &[&fourth]);
    node.cli(&["rollback"]).exits(0);
    assert_eq!(order(&node, &[&first]), ["after-rollback"]);
}

/// The name of a release in a text.
fn release_of(text: &str) -> String {
    text.split_whitespace().find(|word| word.len() > 17 && word.as_bytes()[8] == b'T').expect("a release").to_owned()
}

#[test]
fn an_agent_that_is_killed_while_it_undoes_goes_on_undoing() {
    let node = Node::new();
    let (began, go) = (node.path("began"), node.path("go"));
    let log = node.path("order");
    let slow =
        format!("echo undo-two >> {0}; echo > {1}; until test -e {2}; do sleep 0.05; done", log.display(), began.display(), go.display());
    let text = format!(
        "build:\n  steps:\n    - {{run: 'true', on_rollback: 'echo undo-one >> {0}'}}\n    - {{run: 'true', on_rollback: '{slow}'}}\n    - test ! -e breaks\n\
         hooks: {{on_failed: ['echo on-failed >> {0}']}}\n",
        log.display()
    );
    node.configure("  w: {command: sleep 1000}", &text);
    node.boot();
    let live = node.live().1;
    node.commit(&[("breaks", "")]);
    node.cli(&["deploy", "--no-wait"]).exits(0);
    node.until("the slow one", || began.exists().then_some(()));
    let agent = node.look("/agent/pid").as_i64().and_then(|pid| i32::try_from(pid).ok()).expect("a pid");
    signal_to(agent, Signal::KILL);
    node.until("another agent", || (node.look("/agent/pid").as_i64() != Some(i64::from(agent))).then_some(()));
    fs_err::write(&go, "").expect("written");
    waiting::until(None, std::time::Duration::from_millis(20), std::time::Duration::from_secs(30), || {
        let text = node.text("order");
        if text.ends_with("undo-one\non-failed\n") { Ok(()) } else { Err(text) }
    })
    .expect("all of it");
    // The one that was cut short ran again.
    assert_eq!(node.text("order"), "undo-two\nundo-two\nundo-one\non-failed\n");
    node.idle();
    node.same(node.live().1, live);
    node.same(node.look("/deploy/quarantined").as_array().map(Vec::len), Some(1));
}
