//! `user: nobody`: nothing of the app's runs as root, and no worker commands its agent.

use crate::node::{Node, children_of, run, uid};

fn nobody() -> u32 {
    run(std::process::Command::new("id").args(["-u", "nobody"])).parse().expect("a number")
}

const ASK: &str = "ready: {after: 50ms}, env: {BIN: '@BIN@', CONFIG: '@DIR@/config.yaml'}";

fn configuration(control: &str) -> String {
    let pools = "  w: {shell: 'echo fine >written && exec @FIXTURE@', ready: {after: 50ms}}\n  \
                 asks: {shell: '\"$BIN\" --config \"$CONFIG\" stop w; echo code=$?; exec @FIXTURE@', ASK}\n";
    let pools = pools.replace("ASK", ASK).replace("@BIN@", "@DIR@/selfstart");
    format!(
        "app: e2e\nroot: @DIR@/root\nuser: nobody\nsource: {{repository: @DIR@/src, branch: main}}\nrelease: {{min_free: 1MB}}\n\
         build: {{steps: ['id -u >built', 'test ! -e hold || sleep 600']}}\n{control}\npools:\n{pools}"
    )
}

fn prepared(control: &str) -> Node {
    let node = Node::new();
    // By `cp`, as the fixture; where it was built, `nobody` may not look.
    run(std::process::Command::new("cp").arg(env!("CARGO_BIN_EXE_selfstart")).arg(node.path("selfstart")));
    node.configure_raw(&configuration(control));
    node
}

#[test]
fn helpers_builds_and_workers_run_as_the_configured_user_who_may_not_command_the_agent() {
    let node = prepared("");
    node.boot();
    let nobody = nobody();
    let release = node.root("current");
    node.same(fs_err::read_to_string(release.join("built")).expect("built").trim().to_owned(), nobody.to_string());
    node.same(fs_err::read_to_string(release.join("written")).expect("written").trim().to_owned(), "fine".into());
    let owner = |path: &std::path::Path| std::os::unix::fs::MetadataExt::uid(&fs_err::metadata(path).expect("there"));
    node.same(owner(&release.join("README")), nobody);
    node.same(owner(&node.root("repo.git")), nobody);
    node.same(owner(&node.root("run")), 0);
    let workers = [node.pid("w"), node.pid("asks")];
    assert!(workers.iter().all(|pid| uid(*pid) == Some(nobody)), "{workers:?}");

    // A build step, seen while it runs.
    node.commit(&[("hold", "")]);
    node.cli(&["deploy", "--no-wait"]).exits(0);
    node.until("a build step as nobody", || {
        children_of(node.keeper()).into_iter().filter(|pid| !workers.contains(pid)).find(|pid| uid(*pid) == Some(nobody))
    });

    node.until("the answer", || node.text("root/log/asks.0.log").contains("code=").then_some(()));
    let log = node.text("root/log/asks.0.log");
    assert!(log.contains("code=4"), "{log}");
    node.same(node.pid("w"), workers[0]);
}

#[test]
fn a_worker_of_the_sockets_own_user_may_not_either_unless_the_configuration_says_so() {
    let node = prepared("control: {owner: nobody}");
    node.boot();
    node.until("the answer", || node.text("root/log/asks.0.log").contains("code=").then_some(()));
    let log = node.text("root/log/asks.0.log");
    assert!(log.contains("code=4") && log.contains("control.workers"), "{log}");
    node.state("w", "ready");

    let node = prepared("control: {owner: nobody, workers: true}");
    node.start();
    node.until("the answer", || node.text("root/log/asks.0.log").contains("code=0").then_some(()));
    node.state("w", "stopped");
}

#[test]
fn a_reload_with_another_user_replaces_the_workers_and_what_they_run() {
    let node = Node::new();
    let pool = "  w: {shell: 'id -u >>ran && exec @FIXTURE@', count: 2, ready: {after: 50ms}}";
    let build = "build: {steps: ['id -u >built']}";
    let configure = |user: &str| {
        node.configure_raw(&format!(
            "app: e2e\nroot: @DIR@/root\n{user}source: {{repository: @DIR@/src, branch: main}}\n{build}\n\
             release: {{min_free: 1MB, linked_dirs: [kept]}}\npools:\n{pool}\n"
        ));
    };
    configure("");
    node.boot();
    let nobody = nobody();
    let (pids, first) = (node.pids("w"), node.live());
    assert!(pids.iter().all(|pid| uid(*pid) == Some(0)));

    let settled = |of: u32| {
        node.until("workers of the new user on a release of its own", || {
            let (pids, live) = (node.pids("w"), node.live());
            let new =
                live.1 != first.1 && node.slots("w").iter().all(|slot| slot["state"] == "ready" && slot["release"] == live.1.as_str());
            (new && pids.iter().all(|pid| uid(*pid) == Some(of))).then_some(())
        });
        node.idle();
    };
    configure("user: nobody\n");
    let mark = node.mark();
    node.cli(&["reload", "--plan"]).exits(0).says(&["pools.w", "replaced by ones of the new user", "build"]);
    node.cli(&["reload"]).exits(0).says(&["pools.w"]);
    settled(nobody);
    // Once, by the release that the new user made: none of them ran in one that belongs to another.
    node.same(
        crate::node::shape(&node.since(mark, &["worker_ended", "worker_started"])),
        ["0 ended", "0 started", "1 ended", "1 started"].map(str::to_owned).to_vec(),
    );
    node.told(mark, "trouble", "chown");
    assert!(node.look("/notes/0").as_str().is_some_and(|note| note.contains("`kept` in")));
    node.same(fs_err::read_to_string(node.root("current/built")).expect("built").trim().to_owned(), nobody.to_string());
    // A push is fetched and built by the new user, in what the old one had made.
    let pushed = node.commit(&[("README", "for nobody\n")]);
    node.cli(&["deploy"]).exits(0);
    node.same(node.live().0, pushed);
    assert!(node.pids("w").iter().all(|pid| uid(*pid) == Some(nobody)));
    assert!(
        node.since(mark, &["worker_start_failed", "deploy_failed"]).is_empty(),
        "{:#?}",
        node.since(mark, &["worker_start_failed", "deploy_failed"])
    );

    // And back.
    configure("");
    node.cli(&["reload"]).exits(0);
    settled(0);
}

#[test]
fn a_reload_puts_control_in_force_at_once() {
    let node = prepared("");
    node.boot();
    let socket = node.root("run/control.sock");
    let owner = || std::os::unix::fs::MetadataExt::uid(&fs_err::metadata(&socket).expect("there"));
    node.same(owner(), 0);
    node.configure_raw(&configuration("control: {owner: nobody, workers: true}"));
    node.cli(&["reload"]).exits(0).says(&["control"]);
    node.same(owner(), nobody());
    // Its question is answered now, and stops the other.
    node.cli(&["restart", "asks", "--no-wait"]).exits(0);
    node.until("the answer", || node.text("root/log/asks.0.log").contains("code=0").then_some(()));
    node.state("w", "stopped");
    node.cli(&["start", "w"]).exits(0);
    // Nobody of this name: nothing is changed.
    node.configure_raw(&configuration("control: {group: nobody-of-this-name}"));
    node.cli(&["reload"]).exits(78).says(&["control", "nobody-of-this-name"]);
    node.same(owner(), nobody());
    node.configure_raw(&configuration(""));
    node.cli(&["reload"]).exits(0);
    node.same(owner(), 0);
    node.cli(&["restart", "asks"]).exits(0);
    node.until("a refusal", || {
        let log = node.text("root/log/asks.0.log");
        (log.lines().rfind(|line| line.contains("code="))?.ends_with("code=4")).then_some(())
    });
    node.state("w", "ready");
}
