//! A push, and what becomes of it.

use std::time::Duration;

use rustix::process::Signal;

use crate::node::{Node, QUICK, shape, signal_to, text_of};

#[test]
fn a_deploy_replaces_one_worker_after_the_other_each_ready_before_the_next() {
    let node = Node::with_pools("  w: {command: '@FIXTURE@ --print-on-term bye-{slot}', count: 3, ready: {after: 150ms}}");
    let old = node.pids("w");
    let (_, old_release) = node.live();
    let revision = node.commit(&[("README", "second\n")]);
    let mark = node.mark();
    node.cli(&["deploy"]).exits(0).says(&["is live", &revision[..7]]);

    let seen = shape(&node.since(mark, &["worker_stopping", "worker_ended", "worker_started", "worker_ready"]));
    // Begun, and TERM sent.
    let each = |slot: u32| ["stopping", "stopping", "ended", "started", "ready"].map(|kind| format!("{slot} {kind}"));
    node.same(seen, [each(0), each(1), each(2)].concat());
    node.same(node.since(mark, &["switched"]).len(), 1);
    for (slot, event) in node.since(mark, &["worker_ended"]).iter().enumerate() {
        assert_eq!(event["verdict"], "deploy", "{event}");
        assert!(text_of(event).contains("ended by TERM because generation 2 takes its place; restarted"), "{event}");
        let log = fs_err::read_to_string(node.root("log").join(format!("w.{slot}.log"))).expect("a log");
        assert!(log.contains(&format!("out bye-{slot}\n")), "{log}");
    }
    let (live, release) = node.live();
    node.same(live, revision.clone());
    assert_ne!(release, old_release);
    for slot in node.slots("w") {
        assert_eq!(slot["revision"], revision.as_str());
        assert_eq!(slot["generation"], 2);
        let pid = slot["pid"].as_i64().expect("a pid");
        assert!(!old.contains(&i32::try_from(pid).expect("a pid")));
        assert_eq!(fs_err::read_link(format!("/proc/{pid}/cwd")).expect("its folder"), node.root("releases").join(&release));
    }

    // Nothing new: nothing happens.
    let (mark, pids) = (node.mark(), node.pids("w"));
    node.cli(&["deploy"]).exits(0).says(&["is live already"]);
    node.same(node.pids("w"), pids);
    assert!(node.since(mark, &["deploy_started", "worker_started", "switched"]).is_empty());
    node.cli(&["why", "w/1"]).exits(0).says(&["generation 2 takes its place"]);
}

#[test]
fn all_at_once_replaces_them_all_before_any_is_ready() {
    let node = Node::with_pools("  w: {command: '@FIXTURE@', count: 3, update: all_at_once, ready: {after: 300ms}}");
    let mark = node.mark();
    node.commit(&[]);
    node.cli(&["deploy"]).exits(0);
    let seen = node.since(mark, &["worker_started", "worker_ready"]);
    let kinds: Vec<&str> = seen.iter().filter_map(|event| event["kind"].as_str()).collect();
    node.same(kinds, [["worker_started"; 3], ["worker_ready"; 3]].concat());
}

#[test]
fn a_failing_build_step_leaves_everything_alone_and_is_not_tried_again_until_forced_or_fixed() {
    let node = Node::new();
    node.commit(&[("build.sh", "#!/bin/sh\necho fine\n")]);
    node.configure(&format!("  w: {{command: '@FIXTURE@', count: 2, {QUICK}}}"), "build: {steps: ['true', ./build.sh, 'touch after']}");
    node.boot();
    let (live, current, pids) = (node.live(), node.current(), node.pids("w"));

    let bad = node.commit(&[("build.sh", "#!/bin/sh\necho to the log\necho the last words >&2\nexit 3\n")]);
    let mark = node.mark();
    let said = node.cli(&["deploy"]).exits(1).says(&["build.sh", "the last words", "3"]);
    assert!(!said.err.contains("panic"), "{said:?}");
    // Which step it was is said once.
    assert_eq!(said.err.matches("step").count(), 1, "{said:?}");
    assert!(said.err.contains("build step 2 of 3 failed: `./build.sh`: exit 3; its output is in `"), "{said:?}");
    let listed: serde_json::Value = serde_json::from_str(&node.cli(&["releases", "--json"]).exits(0).out).expect("JSON");
    let failed = listed["releases"][0]["release"].as_str().unwrap_or_default();
    let log = node.root("log").join(format!("build.{failed}.log`"));
    for verb in [["status"].as_slice(), &["why", "deploy"]] {
        node.cli(verb).exits(0).says(&[&log.display().to_string()]);
    }
    assert!(said.err.contains(&log.display().to_string()), "{said:?}");
    let unchanged = || {
        node.same(node.live(), live.clone());
        node.same(node.current(), current.clone());
        node.same(node.pids("w"), pids.clone());
    };
    unchanged();
    let error = node.look("/deploy/last_error").to_string();
    assert!(error.contains("build.sh") && error.contains('3') && error.contains("the last words"), "{error}");
    node.same(node.look("/deploy/quarantined/0/revision"), bad.as_str().into());
    node.told(mark, "deploy_failed", "is quarantined");
    node.cli(&["why", "deploy"]).exits(0).says(&["build.sh"]);

    let mark = node.mark();
    node.cli(&["deploy"]).exits(4).says(&["--force", &bad[..7]]);
    assert!(node.since(mark, &["deploy_started"]).is_empty());
    node.cli(&["deploy", "--force"]).exits(1).says(&["the last words"]);
    node.same(node.since(mark, &["deploy_started"]).len(), 1);
    unchanged();

    let good = node.commit(&[("build.sh", "#!/bin/sh\necho fine again\n")]);
    node.cli(&["deploy"]).exits(0);
    node.same(node.live().0, good.clone());
    node.same(node.look("/deploy/last_error"), serde_json::Value::Null);
    assert!(node.slots("w").iter().all(|slot| slot["revision"] == good.as_str()));
    // The failed one is kept to be looked at.
    node.cli(&["releases"]).exits(0).says(&["failed", "live", &bad[..7]]);
}

#[test]
fn a_release_whose_workers_end_at_once_is_rolled_back_by_itself() {
    let node = Node::new();
    let good = node.commit(&[("work.sh", "#!/bin/sh\nexec \"$FIXTURE\"\n")]);
    node.configure("  w: {command: ./work.sh, count: 2, env: {FIXTURE: '@FIXTURE@'}, ready: {after: 200ms}}", "");
    node.boot();
    let (before, untouched) = (node.live(), node.pids("w")[1]);
    let bad = node.commit(&[("work.sh", "#!/bin/sh\nexit 9\n")]);
    let mark = node.mark();
    node.cli(&["deploy"]).exits(1).says(&["9"]);
    node.idle();
    node.state("w", "ready");
    node.same(node.live(), before.clone());
    node.same(node.current(), std::path::Path::new("releases").join(&before.1));
    node.told(mark, "rolled_back", &before.1);
    assert!(node.slots("w").iter().all(|slot| slot["revision"] == good.as_str()));
    // The second slot was never taken.
    node.same(node.pids("w")[1], untouched);
    node.same(node.look("/deploy/quarantined/0/revision"), bad.as_str().into());
    node.cli(&["deploy"]).exits(4);
}

#[test]
fn a_build_that_takes_too_long_ends_with_all_its_children() {
    let node = Node::new();
    node.configure(
        &format!("  w: {{command: '@FIXTURE@', {QUICK}}}"),
        "build: {steps: [{run: 'test ! -e slow || @FIXTURE@ --fork 3', timeout: 1s}]}",
    );
    node.boot();
    let worker = node.pid("w");
    node.commit(&[("slow", "")]);
    let said = node.cli(&["deploy"]).exits(1).says(&["longer than its `timeout`"]);
    assert!(said.took < Duration::from_secs(20), "{said:?}");
    node.until("only the worker", || (node.processes() == [worker]).then_some(()));
    node.same(node.pid("w"), worker);
}

#[test]
fn a_deploy_without_a_ready_worker_says_so_and_an_agent_that_comes_back_rolls_out_nothing() {
    let node = Node::new();
    node.write("crash", "");
    let moody = |name: &str| {
        format!("  {name}: {{shell: 'test ! -e @DIR@/crash || exit 3; exec @FIXTURE@', restart: {{backoff: [1m, 1m]}}, {QUICK}}}\n")
    };
    node.configure(&format!("{}{}", moody("w"), moody("v")), "");
    node.start();
    // The first of all: there is no before.
    let first = node.told(0, "rollout", "is rolled out: 0 ready, 1 not ready");
    assert!(!text_of(&first).contains("before"), "{first}");
    node.idle();
    node.commit(&[]);
    let said = node.cli(&["deploy"]).exits(0).says(&["is live", "0 of 2 ready: v/0, w/0"]);
    assert!(!said.out.contains("hint"), "{said:?}");
    node.commit(&[]);
    let said = node.cli(&["deploy", "--json"]).exits(0);
    let told = said.out.lines().last().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON")).expect("an answer");
    assert!(told.to_string().contains("\"warning\":\"0 of 2 ready: v/0, w/0"), "{told}");
    fs_err::remove_file(node.path("crash")).expect("removed");
    node.commit(&[]);
    let said = node.cli(&["deploy"]).exits(0);
    assert!(!said.out.contains("ready"), "{said:?}");

    // Answered when the state is on disk, which says that they are ready.
    node.cli(&["scale", "w=config"]).exits(0);
    let mark = node.mark();
    let agent = i32::try_from(node.look("/agent/pid").as_i64().expect("a pid")).expect("a pid");
    signal_to(agent, Signal::KILL);
    node.told(mark, "worker_adopted", "");
    node.until("the next agent", || node.look("/agent/pid").as_i64().filter(|pid| *pid != i64::from(agent)));
    node.idle();
    node.cli(&["wait", "--ready", "--timeout", "20s"]).exits(0);
    // A later event, so that all before it is there.
    node.cli(&["pause", "w"]).exits(0);
    node.told(mark, "paused", "");
    node.same(node.since(mark, &["rollout"]), vec![]);
}

#[test]
fn who_asked_for_a_deploy_is_told_with_all_that_becomes_of_it() {
    let steps = |more: &str| format!("build: {{steps: ['test ! -e broken', 'while test -e @DIR@/hold; do sleep 0.05; done'{more}]}}");
    let pools = format!("  w: {{command: '@FIXTURE@', {QUICK}}}");
    let node = Node::new();
    node.configure(&pools, &steps(""));
    node.boot();
    let asked = |mark: usize, kinds: &[&str]| -> Vec<String> {
        let by = |event: &serde_json::Value| format!("{} {}", event["kind"], event["asked_by"]).replace('"', "");
        node.since(mark, kinds).iter().map(by).collect()
    };
    let whole = ["deploy_started", "switched", "deploy_finished", "deploy_failed", "held", "unheld", "config_reloaded"];
    node.same(asked(0, &whole), vec!["deploy_started boot".to_owned(), "switched boot".to_owned(), "deploy_finished boot".to_owned()]);
    node.told(0, "deploy_finished", "asked by boot: ");

    // An operator, also when the agent dies meanwhile.
    let (revision, mark) = (node.commit(&[]), node.mark());
    node.write("hold", "");
    node.cli(&["deploy", "--no-wait"]).exits(0);
    node.told(mark, "deploy_started", "asked by root: making ");
    node.until("a build", || (node.look("/deploy/phase") == "building").then_some(()));
    signal_to(i32::try_from(node.look("/agent/pid").as_i64().expect("a pid")).expect("a pid"), Signal::KILL);
    node.told(mark, "agent_restarted", "");
    fs_err::remove_file(node.path("hold")).expect("removed");
    node.told(mark, "deploy_finished", &format!("asked by root: {} is live on all pools", &revision[..7]));
    node.cli(&["why", "deploy", "-n", "1"]).exits(0).says(&["asked by root: ", "is live on all pools"]);
    node.idle();

    // One that fails, and the way back.
    let mark = node.mark();
    node.commit(&[("broken", "")]);
    node.cli(&["deploy"]).exits(1);
    node.cli(&["rollback"]).exits(0);
    node.cli(&["unhold"]).exits(0);
    let steps_of = ["deploy_started", "deploy_failed", "switched", "held", "deploy_finished", "unheld"];
    node.same(asked(mark, &whole), steps_of.map(|kind| format!("{kind} root")).to_vec());
    node.cli(&["why", "deploy", "-n", "4"]).exits(0).says(&["asked by root: ", "failed, ", "held by root: rolled back"]);

    // A reload, by an operator and by HUP.
    node.git(&["rm", "-q", "broken"]);
    node.commit(&[]);
    for (more, by, said) in [(", 'true'", "root", "asked by root (reload): "), (", 'true', 'true'", "HUP", "asked by HUP: ")] {
        let mark = node.mark();
        node.configure(&pools, &steps(more));
        if by == "HUP" {
            node.signal_keeper(Signal::HUP);
        } else {
            node.cli(&["reload"]).exits(0);
        }
        node.told(mark, "deploy_finished", said);
        node.told(mark, "config_reloaded", &format!("asked by {by}: build (steps): "));
        assert!(asked(mark, &whole).iter().all(|told| told.ends_with(&format!(" {by}"))), "{:?}", asked(mark, &whole));
    }
}

/// Pools whose program is in the release; `release:` is given.
fn app_of_the_release(release: &str) -> Node {
    let node = Node::new();
    node.commit(&[("app", "#!/bin/sh\nexec sleep 1000\n")]);
    node.configure_raw(&format!(
        "app: e2e\nroot: @DIR@/root\nsource: {{repository: @DIR@/src, branch: main}}\nrelease: {{min_free: 1MB, {release}}}\npools:\n  \
         w: {{command: ./app, count: 2, {QUICK}, restart: {{backoff: [100ms, 100ms], flapping: {{crashes: 3, within: 1m, retry_after: 5m}}}}}}\n"
    ));
    node.boot();
    node
}

#[test]
fn a_canary_that_does_not_stay_up_takes_no_other_worker_with_it() {
    let node = app_of_the_release("confirm: 5s");
    let (live, pids) = (node.live(), node.pids("w"));
    let bad = node.commit(&[("app", "#!/bin/sh\nsleep 1\nexit 7\n")]);
    let mark = node.mark();
    let deploy = node.command(&["deploy"]).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn();
    let mut deploy = deploy.expect("selfstart");
    node.until("a canary", || (node.look("/deploy/phase") == "confirming").then_some(()));
    node.same(deploy.wait().expect("waited").code(), Some(1));
    node.same(node.live(), live);
    node.same(node.look("/deploy/quarantined/0/revision"), bad.as_str().into());
    let stopped = node.since(mark, &["worker_stopping"]);
    let untouched = node.pids("w").into_iter().filter(|pid| pids.contains(pid)).count();
    assert_eq!(untouched, 1, "one slot was replaced, and went back: {stopped:#?}");
}

#[test]
fn a_release_that_crash_loops_in_its_probation_is_rolled_back_by_itself() {
    let node = app_of_the_release("confirm: 0s, probation: 1m");
    let live = node.live();
    let bad = node.commit(&[("app", "#!/bin/sh\nsleep 0.7\nexit 7\n")]);
    let mark = node.mark();
    // It comes up well enough.
    node.cli(&["deploy"]).exits(0);
    node.told(mark, "deploy_finished", &bad[..7]);
    node.until("the way back", || (node.live() == live).then_some(()));
    node.idle();
    node.state("w", "ready");
    node.same(node.look("/deploy/quarantined/0/revision"), bad.as_str().into());
    node.cli(&["why", "deploy"]).exits(0).says(&["did not stand its probation", "quarantined"]);
    node.cli(&["deploy"]).exits(4);
    // A newer push comes through.
    let good = node.commit(&[("app", "#!/bin/sh\nexec sleep 1000\n")]);
    node.cli(&["deploy"]).exits(0);
    node.same(node.live().0, good);
}

#[test]
fn what_is_not_signed_is_not_deployed_and_what_is_live_stays() {
    let node = Node::new();
    let keygen = |name: &str| {
        let mut command = std::process::Command::new("ssh-keygen");
        crate::node::run(command.args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"]).arg(node.path(name)));
        fs_err::read_to_string(node.path(&format!("{name}.pub"))).expect("a key")
    };
    let (mine, other) = (keygen("mine"), keygen("other"));
    let sign = |name: &str| {
        let key = format!("user.signingkey={}", node.path(name).display());
        node.git(&["-c", "gpg.format=ssh", "-c", &key, "commit", "-q", "-S", "--allow-empty", "-m", "signed"]);
        node.git(&["rev-parse", "HEAD"])
    };
    node.write("allowed", &format!("me@example.org {mine}"));
    node.configure(
        &format!("  w: {{command: '@FIXTURE@', {QUICK}}}"),
        "source: {repository: @DIR@/src, branch: main, verify: {allowed_signers: @DIR@/allowed}}",
    );
    let first = sign("mine");
    node.boot();
    let (pids, (live, release)) = (node.pids("w"), node.live());
    node.same(live, first.clone());
    assert!(node.text("agent.log").contains("is signed by me@example.org with ED25519 key SHA256:"), "{}", node.text("log"));

    for (by_other, words) in [(false, "is not signed"), (true, "does not allow")] {
        let revision = if by_other { sign("other") } else { node.commit(&[("README", "second\n")]) };
        let mark = node.mark();
        node.cli(&["deploy"]).exits(1).says(&[&revision, words]);
        node.cli(&["deploy", "--ref", &revision, "--force"]).exits(1).says(&[words]);
        node.told(mark, "fetch_failed", "not deployed, what is live stays");
        node.same(node.pids("w"), pids.clone());
        node.same(node.live(), (first.clone(), release.clone()));
        node.cli(&["why", "deploy"]).exits(0).says(&[words]);
    }
    // Who may sign is read anew each time.
    node.write("allowed", &format!("me@example.org {mine}\nyou@example.org namespaces=\"git\" {other}"));
    node.cli(&["deploy"]).exits(0).says(&["is live"]);
    node.cli(&["check"]).exits(0);

    if rustix::process::geteuid().is_root() {
        let theirs = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        fs_err::set_permissions(node.path("allowed"), theirs).expect("changed");
        sign("mine");
        node.cli(&["deploy"]).exits(1).says(&["source.verify.allowed_signers", "can be written by others"]);
        node.cli(&["check"]).exits(78).says(&["source.verify.allowed_signers", "can be written by others"]);
    }
}
