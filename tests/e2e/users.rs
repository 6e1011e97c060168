//! `user: nobody`: nothing of the app's runs as root, and no worker commands its agent.

use std::path::Path;

use crate::node::{Node, QUICK, Said, children_of, run, said, uid};

fn nobody() -> u32 {
    run(std::process::Command::new("id").args(["-u", "nobody"])).parse().expect("a number")
}

const ASK: &str = "ready: {after: 50ms}, env: {BIN: '@BIN@', CONFIG: '@DIR@/config.yaml'}";

fn configuration(control: &str) -> String {
    let pools = "  w: {shell: 'echo fine >written && exec @FIXTURE@', ready: {after: 50ms}}\n  \
                 asks: {shell: '\"$BIN\" --config \"$CONFIG\" stop w; echo code=$?; exec @FIXTURE@', ASK}\n";
    let pools = pools.replace("ASK", ASK).replace("@BIN@", "@DIR@/selfstart");
    format!(
        "app: e2e\nroot: @DIR@/root\nuser: nobody\nsource: {{repository: @DIR@/src, branch: main}}\nrelease: {{min_free: 1MB, confirm: 0s}}\n\
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
    let owner = |path: &Path| std::os::unix::fs::MetadataExt::uid(&fs_err::metadata(path).expect("there"));
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
             release: {{min_free: 1MB, confirm: 0s, linked_dirs: [kept]}}\npools:\n{pool}\n"
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

/// A group that no user of this machine is in.
const GROUP: u32 = 4_242_001;
const ANOTHER: u32 = 4_242_002;

/// Says something as `nobody` in this supplementary group.
fn as_member(node: &Node, group: u32, program: &Path, args: &[&str]) -> Said {
    let nobody = nobody().to_string();
    let mut command = std::process::Command::new("setpriv");
    command.args(["--reuid", &nobody, "--regid", &nobody, "--groups", &group.to_string(), "--"]).arg(program).args(args);
    command.env_clear().env("PATH", "/usr/bin:/bin").env("SELFSTART_CONFIG", node.path("config.yaml")).stdin(std::process::Stdio::null());
    said(&mut command)
}

#[test]
fn members_of_the_sockets_group_read_events_and_logs_too_and_nothing_else() {
    use std::os::unix::fs::{MetadataExt, chown, symlink};

    let node = Node::new();
    run(std::process::Command::new("cp").arg(env!("CARGO_BIN_EXE_selfstart")).arg(node.path("selfstart")));
    let binary = node.path("selfstart");
    let configure = |control: &str| {
        let pools = format!(
            "  w: {{shell: 'echo hello; exec @FIXTURE@', env: {{A: it}}, {QUICK}}}\n  \
             v: {{shell: 'echo shared; exec @FIXTURE@', log: {{file: logs/v.log}}, {QUICK}}}"
        );
        node.configure(&pools, &format!("build: {{steps: ['echo built']}}\n{control}"));
    };
    configure(&format!("control: {{group: {GROUP}}}"));
    let start = || {
        // The umask of whoever starts it takes nothing away.
        node.start_with(&["sh", "-c", "umask 077; exec \"$@\"", "sh"]);
        node.until("the control socket", || node.root("run/control.sock").exists().then_some(()));
        node.cli(&["wait", "--ready", "--timeout", "40s"]).exits(0);
    };
    start();
    node.idle();
    let reads = |group: u32| {
        as_member(&node, group, &binary, &["status"]).exits(0).says(&["w", "ready"]);
        as_member(&node, group, &binary, &["events", "-n", "100"]).exits(0).says(&["worker_ready"]);
        as_member(&node, group, &binary, &["why", "deploy"]).exits(0).says(&["is live"]);
        as_member(&node, group, &binary, &["logs"]).exits(0).says(&["hello", "shared"]);
    };
    let does_not = |group: u32| {
        assert_ne!(as_member(&node, group, &binary, &["status"]).code, Some(0));
        for verb in ["events", "logs"] {
            as_member(&node, group, &binary, &[verb]).exits(1).says(&["control.group"]);
        }
    };
    let owner = |path: &Path| fs_err::symlink_metadata(path).map(|meta| (meta.gid(), meta.mode() & 0o777)).expect("there");
    reads(GROUP);
    does_not(ANOTHER);
    node.same(owner(&node.root("log").join(format!("build.{}.log", node.live().1))), (GROUP, 0o640));
    // What the agent remembers is its own.
    for closed in ["run/state.json", "run/config.good.yaml", "run/journal/deploy.json"] {
        node.until("what is kept", || node.root(closed).exists().then_some(()));
        let path = node.root(closed).display().to_string();
        assert_eq!(as_member(&node, GROUP, Path::new("/bin/cat"), &[&path]).code, Some(1), "{closed}");
    }
    // Nor does who may ask learn what an environment holds.
    configure(&format!("control: {{group: {GROUP}}}"));
    let text = node.text("config.yaml").replace("A: it", "A: other");
    node.configure_raw(&text);
    as_member(&node, GROUP, &binary, &["reload", "--plan"]).exits(0).says(&["env.A: another value, ***"]);
    node.cli(&["reload", "--plan"]).exits(0).says(&["env.A: it → other"]);
    configure(&format!("control: {{group: {GROUP}}}"));

    // Files of an agent that did not do so, rotated ones too, are put right at the next start; what is not its own is left alone.
    node.signal_keeper(rustix::process::Signal::TERM);
    node.same(node.ended(), Some(0));
    let file = |below: &str| {
        node.write(&format!("root/{below}"), "");
        node.root(below)
    };
    let old = [file("run/events.jsonl.1"), file("log/w.0.log.1"), file("logs/v.log.2")];
    let theirs = file("log/theirs.log");
    chown(&theirs, Some(nobody()), None).expect("given");
    node.write("secret", "");
    symlink(node.path("secret"), node.root("log/link.log")).expect("a link");
    fs_err::hard_link(node.path("secret"), node.root("log/second.log")).expect("a second name");
    let closed = || std::os::unix::fs::PermissionsExt::from_mode(0o600);
    for path in old.iter().chain([&node.root("run/events.jsonl"), &node.root("log/w.0.log"), &node.root("logs/v.log"), &theirs]) {
        chown(path, None, Some(0)).expect("given");
        fs_err::set_permissions(path, closed()).expect("closed");
    }
    fs_err::set_permissions(node.path("secret"), closed()).expect("closed");
    does_not(GROUP);
    start();
    reads(GROUP);
    for path in &old {
        node.same(owner(path), (GROUP, 0o640));
    }
    node.same((owner(&theirs), owner(&node.path("secret"))), ((0, 0o600), (0, 0o600)));

    // A reload gives them to others, and takes them back; what was given to another group by hand stays.
    configure(&format!("control: {{group: {ANOTHER}}}"));
    node.cli(&["reload"]).exits(0);
    reads(ANOTHER);
    does_not(GROUP);
    chown(&old[1], None, Some(4)).expect("given");
    configure("");
    node.cli(&["reload"]).exits(0);
    does_not(ANOTHER);
    node.same((owner(&old[0]).0, owner(&old[1]).0, owner(&old[2]).0), (0, 4, 0));
    // Files made from now on, too.
    node.commit(&[]);
    node.cli(&["deploy"]).exits(0);
    node.same(owner(&node.root("log").join(format!("build.{}.log", node.live().1))).0, 0);
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
