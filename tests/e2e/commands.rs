//! Hands and eyes: every verb, on a node that runs.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;

use crate::node::{Node, QUICK, alive, signal_to, text_of};

#[test]
fn stop_start_restart_and_scale_answer_when_it_is_so() {
    let node = Node::with_pools(&format!(
        "  a: {{command: '@FIXTURE@', count: 2, group: both, {QUICK}}}\n  b: {{command: '@FIXTURE@', group: both, {QUICK}}}"
    ));
    let (a, b) = (node.pids("a"), node.pids("b"));
    node.cli(&["stop", "a/1"]).exits(0);
    assert!(!alive(a[1]) && alive(a[0]));
    node.same(node.slots("a")[1]["state"].clone(), "stopped".into());
    node.cli(&["start", "a"]).exits(0);
    node.same(node.slots("a")[1]["state"].clone(), "ready".into());
    node.same(node.pids("a")[0], a[0]);
    node.cli(&["start", "a"]).exits(0);

    let before = node.pids("a");
    node.cli(&["restart", "a"]).exits(0);
    let after = node.pids("a");
    assert!(after.len() == 2 && after.iter().all(|pid| !before.contains(pid)), "{before:?} {after:?}");
    node.same(node.pids("b"), b.clone());

    node.cli(&["scale", "a=4"]).exits(0);
    node.same(node.pids("a").len(), 4);
    node.same(node.look("/pools/0/ready"), 4.into());
    node.cli(&["scale", "a=1"]).exits(0);
    node.same(node.pids("a"), vec![after[0]]);
    let scaled = node.since(0, &["worker_ended"]).into_iter().filter(|end| end["verdict"] == "scale").count();
    node.same(scaled, 3);
    // Kept over a deploy, until told otherwise.
    node.commit(&[]);
    node.cli(&["deploy"]).exits(0);
    node.same(node.look("/pools/0/wanted"), 1.into());
    node.cli(&["scale", "a=config"]).exits(0);
    node.same(node.pids("a").len(), 2);

    node.cli(&["stop", "both"]).exits(0);
    node.same(node.processes(), vec![]);
    node.cli(&["start", "both"]).exits(0);
    node.same(node.pids("a").len() + node.pids("b").len(), 3);
    node.cli(&["stop"]).exits(0);
    node.cli(&["stop"]).exits(0);
    node.cli(&["start"]).exits(0);
    node.cli(&["wait", "--ready", "--timeout", "20s"]).exits(0);
}

#[test]
fn wrong_names_are_refused_with_the_nearest_one_and_no_agent_is_told_as_such() {
    let node = Node::with_pools(&format!("  checkins: {{command: '@FIXTURE@', {QUICK}}}"));
    for words in [["restart", "chekins"].as_slice(), &["stop", "chekins/0"], &["signal", "chekins", "HUP"], &["scale", "chekins=2"]] {
        node.cli(words).exits(2).says(&["chekins", "checkins"]);
    }
    node.cli(&["stop", "checkins/7"]).exits(2);
    node.cli(&["signal", "checkins", "NOSUCH"]).exits(2);
    node.cli(&["scale", "checkins=many"]).exits(2);
    node.cli(&["dploy"]).exits(2);
    node.cli(&["deploy", "--ref", "no-such-branch"]).exits(1).says(&["no branch or tag `no-such-branch`"]);
    node.cli(&["why", "deploy"]).exits(0).says(&["the deploy failed: ", "no-such-branch"]);
    node.same(node.slots("checkins")[0]["state"].clone(), "ready".into());
    node.signal_keeper(Signal::TERM);
    node.ended();
    for words in [["status"].as_slice(), &["deploy"], &["stop"], &["wait", "--ready", "--timeout", "200ms"]] {
        node.cli(words).exits(3);
    }
}

#[test]
fn a_paused_pool_is_left_alone_and_a_signal_reaches_the_main_process() {
    let node =
        Node::with_pools(&format!("  w: {{command: '@FIXTURE@ --print-on-term bye', {QUICK}}}\n  v: {{command: '@FIXTURE@', {QUICK}}}"));
    let pid = node.pid("w");
    node.cli(&["pause", "w"]).exits(0);
    node.state("w", "paused");
    assert!(alive(pid));
    let mark = node.mark();
    node.cli(&["signal", "w/0", "TERM"]).exits(0).says(&["TERM"]);
    node.until("its end", || (!alive(pid)).then_some(()));
    let end = node.until("its verdict", || node.slots("w").first().filter(|slot| slot["last_verdict"].is_object()).cloned());
    assert_eq!(
        end["last_verdict"]["text"].as_str().and_then(|text| text.split_once("; ")).map(|it| it.1),
        Some("paused, so not restarted")
    );
    node.state("w", "paused");
    assert!(node.since(mark, &["worker_started"]).is_empty());
    // Told when it happens, not when somebody resumes it.
    let end = node.told(mark, "worker_ended", "paused, so not restarted");
    assert_eq!(end["verdict"], "exit", "{}", text_of(&end));
    node.cli(&["why", "w/0"]).exits(0).says(&["paused, so not restarted"]);
    node.cli(&["resume", "w"]).exits(0);
    assert_ne!(node.pid("w"), pid);
    node.same(node.since(mark, &["worker_ended"]).len(), 1);
    node.state("v", "ready");
}

#[test]
fn what_a_paused_slots_worker_left_survives_a_restart_of_the_agent() {
    let node = Node::with_pools(&format!("  w: {{command: '@FIXTURE@ --daemonise @DIR@/daemon', {QUICK}}}"));
    let worker = node.pid("w");
    let left: i32 = node.until("its daemon", || node.text("daemon").trim().parse().ok());
    node.cli(&["pause", "w"]).exits(0);
    let mark = node.mark();
    signal_to(worker, Signal::KILL);
    node.told(mark, "worker_ended", "paused, so not restarted");
    let agent = node.look("/agent/pid");
    // Its end is on disk before the next agent reads it.
    node.until("the state to be written", || node.text("root/run/state.json").contains("\"sequel\":\"Paused\"").then_some(()));
    signal_to(i32::try_from(agent.as_i64().expect("a pid")).expect("a pid"), Signal::KILL);
    node.until("the next agent", || node.look("/agent/pid").as_i64().filter(|pid| Some(*pid) != agent.as_i64()));
    node.state("w", "paused");
    assert!(alive(left));
    node.cli(&["resume", "w"]).exits(0);
    assert_ne!(node.pid("w"), worker);
    assert!(!alive(left));
    node.same(node.since(mark, &["worker_ended"]).len(), 1);
}

#[test]
fn an_end_by_an_operators_signal_is_no_crash_if_the_agent_is_killed_before_it() {
    let node = Node::with_pools(&format!("  w: {{command: '@FIXTURE@', {QUICK}}}"));
    let worker = node.pid("w");
    let mark = node.mark();
    // It gets the signal, and ends by it when it goes on.
    signal_to(worker, Signal::STOP);
    node.cli(&["signal", "w/0", "ABRT"]).exits(0);
    node.until("the state to be written", || node.text("root/run/state.json").contains("\"signalled\":\"ABRT\"").then_some(()));
    let pending = || fs_err::read_to_string(format!("/proc/{worker}/status")).expect("it lives").contains("ShdPnd:\t0000000000000020");
    node.until("the signal to be sent", || pending().then_some(()));
    let agent = node.look("/agent/pid").as_i64().expect("a pid");
    signal_to(i32::try_from(agent).expect("a pid"), Signal::KILL);
    signal_to(worker, Signal::CONT);
    let end = node.told(mark, "worker_ended", "by an operator's order");
    assert_eq!(end["verdict"], "operator", "{}", text_of(&end));
    assert_ne!(node.pid("w"), worker);
}

#[test]
fn a_drained_node_answers_and_starts_nothing_until_told_to() {
    let node = Node::with_pools(&format!("  a: {{command: '@FIXTURE@', {QUICK}}}\n  b: {{command: '@FIXTURE@', after: [a], {QUICK}}}"));
    let mark = node.mark();
    node.cli(&["drain"]).exits(0);
    node.same(node.look("/agent/state"), "drained".into());
    node.same(node.processes(), vec![]);
    let ends = node.since(mark, &["worker_ended"]);
    let order: Vec<&str> = ends.iter().filter_map(|end| end["pool"].as_str()).collect();
    node.same(order, vec!["b", "a"]);
    let next = node.commit(&[]);
    node.cli(&["deploy", "--no-wait"]).exits(4).says(&["drain", "hint: remembered: `selfstart start` deploys it"]);
    node.cli(&["status"]).exits(0).says(&["a deploy is remembered: `selfstart start` lets it go on"]);
    node.same(node.look("/deploy/pending"), serde_json::json!({"force": false}));
    node.cli(&["drain"]).exits(0);
    node.cli(&["start", "a/0"]).exits(4).says(&["the node is drained", "hint: `selfstart start` ends the drain"]);
    node.cli(&["start", "a"]).exits(4);
    node.same(node.look("/agent/state"), "drained".into());
    node.same(node.processes(), vec![]);
    node.cli(&["start"]).exits(0);
    node.same(node.look("/agent/state"), "running".into());
    node.until("what was remembered", || (node.live().0 == next).then_some(()));
    node.cli(&["wait", "--ready", "--timeout", "20s"]).exits(0);
    node.same(node.processes().len(), 2);
}

#[test]
fn without_a_release_no_worker_is_said_to_be_started_or_stopped() {
    let node = Node::new();
    node.configure(&format!("  w: {{command: '@FIXTURE@', count: 2, {QUICK}}}"), "source: {repository: @DIR@/nowhere, branch: main}");
    node.start();
    node.until("the control socket", || node.status().is_object().then_some(()));
    node.cli(&["restart", "w"]).exits(4).says(&["there is no release to start yet"]);
    node.cli(&["scale", "w=3"]).exits(0).says(&["w will have 3 workers: there is no release to start yet"]);
    node.cli(&["stop", "w"]).exits(0).says(&["stopped already"]);
}

#[test]
fn a_reload_restarts_only_what_changed() {
    let pools = |count: u32, word: &str| {
        format!("  a: {{command: '@FIXTURE@', count: {count}, {QUICK}}}\n  b: {{command: '@FIXTURE@', env: {{WORD: {word}}}, {QUICK}}}")
    };
    let node = Node::with_pools(&pools(1, "one"));
    let (a, b) = (node.pid("a"), node.pid("b"));
    node.cli(&["reload"]).exits(0);
    node.same((node.pid("a"), node.pid("b")), (a, b));

    node.configure(&pools(3, "one"), "");
    node.cli(&["reload", "--plan"]).exits(0).says(&["pools.a"]);
    node.same(node.pids("a").len(), 1);
    node.cli(&["reload"]).exits(0);
    node.until("three workers", || (node.pids("a").len() == 3).then_some(()));
    node.same((node.pids("a")[0], node.pid("b")), (a, b));

    // By a signal.
    node.configure(&pools(3, "two"), "");
    let mark = node.mark();
    node.signal_keeper(Signal::HUP);
    node.told(mark, "config_reloaded", "");
    let end = node.told(mark, "worker_ended", "the configuration changed");
    assert_eq!(end["pool"], "b");
    node.until("the new environment", || {
        let environ = fs_err::read_to_string(format!("/proc/{}/environ", node.pid("b"))).unwrap_or_default();
        environ.contains("WORD=two").then_some(())
    });
    node.same(node.pids("a")[0], a);

    // A broken one changes nothing.
    let b = node.pid("b");
    node.configure("  a: {comand: x}", "");
    node.cli(&["reload"]).exits(78).says(&["comand", "command"]);
    node.same((node.pids("a")[0], node.pid("b")), (a, b));
    assert!(node.look("/notes/0").as_str().is_some_and(|note| note.contains("the running configuration is kept")));
    node.told(mark, "config_refused", "comand");
    node.configure(&pools(3, "two"), "");
    node.cli(&["reload"]).exits(0);
    node.same(node.look("/notes/0"), serde_json::Value::Null);

    // A pool less, a pool more.
    node.configure(&format!("  a: {{command: '@FIXTURE@', count: 3, {QUICK}}}\n  c: {{command: '@FIXTURE@', {QUICK}}}"), "");
    node.cli(&["reload"]).exits(0);
    node.until("b gone, c there", || (node.slots("b").is_empty() && node.slots("c").first()?["state"] == "ready").then_some(()));
    assert!(!alive(b));
    node.same(node.pids("a")[0], a);
}

#[test]
fn after_a_reload_running_workers_write_to_the_new_log_file() {
    let pool = |log: &str| format!("  w: {{shell: 'i=0; while :; do i=$((i+1)); echo $i; sleep 0.005; done', {QUICK}, log: {{{log}}}}}");
    let node = Node::new();
    node.configure(&pool("file: old.log"), "");
    node.boot();
    let pid = node.pid("w");
    let last = |text: &str| text.lines().last().and_then(|line| line.rsplit(' ').next()?.parse::<u32>().ok());
    node.until("some lines", || last(&node.text("root/old.log")).filter(|n| *n > 50));
    node.configure(&pool("file: new.log, max_size: 50KB"), "");
    node.cli(&["reload"]).exits(0).says(&["pools.w"]);
    let old = node.text("root/old.log");
    node.until("more lines", || last(&node.text("root/new.log")).filter(|n| *n > last(&old).unwrap_or(0) + 50));
    node.same((node.pid("w"), node.text("root/old.log")), (pid, old.clone()));
    let numbers: Vec<u32> = [old, node.text("root/new.log")]
        .iter()
        .flat_map(|text| text.lines().filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect::<Vec<u32>>())
        .collect();
    assert!(numbers.iter().copied().eq(1..=u32::try_from(numbers.len()).expect("few")), "{numbers:?}");
}

#[test]
fn logs_events_why_and_exec_show_what_is_and_was() {
    let node = Node::with_pools("  w: {command: '@FIXTURE@ --flood 30', count: 2, env: {COLOUR: blue}, ready: {after: 50ms}}");
    node.until("all lines", || node.text("root/log/w.1.log").contains("n=000030").then_some(()));
    let said = node.cli(&["logs", "w/1", "-n", "3"]).exits(0);
    let lines: Vec<&str> = said.out.lines().collect();
    assert!(lines.len() == 3 && lines[2].contains("n=000030") && !said.out.contains("n=000027"), "{said:?}");
    node.cli(&["logs", "-n", "100"]).exits(0).says(&["w/0", "w/1", "n=000001"]);
    node.cli(&["events"]).exits(0).says(&["is live on all pools"]);
    for line in node.cli(&["events", "--json"]).exits(0).out.lines() {
        let event: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert!(event["schema"] == 1 && event["kind"].is_string() && event["text"].is_string() && event["at"].is_string(), "{line}");
    }
    node.cli(&["why", "deploy"]).exits(0).says(&["live"]);
    let (_, release) = node.live();
    let path = node.root("releases").join(release).display().to_string();
    node.cli(&["exec", "--", "sh", "-c", "echo $COLOUR in $PWD as $SELFSTART_POOL; exit 7"])
        .exits(7)
        .says(&[&format!("blue in {path} as w\n")]);
    assert!(!node.cli(&["exec", "env"]).exits(0).out.contains("SELFSTART_WORKER"));

    // Following: a line that comes later is shown.
    let mut follower = node.command(&["events", "-f"]).stdout(Stdio::piped()).spawn().expect("started");
    let mut lines = BufReader::new(follower.stdout.take().expect("piped")).lines();
    let first = lines.next();
    node.cli(&["stop", "w/0"]).exits(0);
    let seen = lines.map_while(Result::ok).find(|line| line.contains("an operator asked for it"));
    let _ = follower.kill();
    let _ = follower.wait();
    assert!(first.is_some() && seen.is_some());
    node.cli(&["why", "w/0"]).exits(0).says(&["an operator asked for it"]);
}

#[test]
fn no_wait_answers_at_once() {
    let node = Node::with_pools(&format!("  w: {{command: '@FIXTURE@ --ignore TERM', stop: [TERM 4s, KILL], {QUICK}}}"));
    let pid = node.pid("w");
    let said = node.cli(&["stop", "w", "--no-wait"]).exits(0);
    assert!(said.took < Duration::from_secs(3), "{said:?}");
    assert!(alive(pid));
    node.state("w", "stopping");
}

#[test]
fn a_hold_and_its_end_say_nothing_of_workers_that_only_start() {
    let node = Node::new();
    node.write("up", "");
    node.configure("  w: {command: '@FIXTURE@', ready: {command: 'test -e @DIR@/up', within: 1m}}", "");
    node.boot();
    fs_err::remove_file(node.path("up")).expect("removed");
    node.cli(&["restart", "w", "--no-wait"]).exits(0);
    node.state("w", "starting");
    let held = node.cli(&["hold", "--json"]).exits(0);
    let unheld = node.cli(&["unhold", "--json"]).exits(0).says(&["is live"]);
    node.state("w", "starting");
    for told in [held, unheld] {
        assert!(!told.out.contains("failed") && !told.out.contains("warning"), "{told:?}");
    }
}
