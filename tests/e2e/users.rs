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
