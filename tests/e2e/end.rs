//! The end of `run`.

use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::node::{Node, QUICK, alive, children_of, said, signal_to};

#[test]
fn term_drains_and_ends_with_0_and_nothing_is_left() {
    let node = Node::with_pools(&format!(
        "  w: {{command: '@FIXTURE@ --print-on-term bye --fork 3 --daemonise @DIR@/daemon', count: 2, {QUICK}}}"
    ));
    let agents = children_of(node.keeper());
    node.signal_keeper(Signal::TERM);
    node.same(node.ended(), Some(0));
    node.same(node.processes(), vec![]);
    assert!(agents.into_iter().all(|pid| !alive(pid)));
    for slot in 0..2 {
        assert!(node.text(&format!("root/log/w.{slot}.log")).contains("out bye"));
    }
    assert!(node.since(0, &["worker_ended"]).iter().all(|end| end["verdict"] == "drain"));
    node.told(0, "agent_stopped", "");
}

#[test]
fn who_follows_a_node_or_waits_for_it_hears_that_it_was_stopped() {
    let node = Node::new();
    // The second is never ready.
    node.configure(
        &format!(
            "  w: {{command: '@FIXTURE@ --print-on-term bye', {QUICK}}}\n  v: {{command: '@FIXTURE@', ready: {{command: 'false', within: 1h}}}}"
        ),
        "",
    );
    node.start();
    node.pid("w");
    let follow = |args: &[&str]| {
        let mut command = node.command(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started")
    };
    let args: [&[&str]; 4] = [&["events", "-f", "--json", "-n", "1"], &["logs", "w", "-f"], &["status", "-w"], &["wait", "--ready"]];
    let mut followers: Vec<_> = args.iter().map(|args| (args, follow(args))).collect();
    // Each has said something, or is waited for by the agent: then it follows.
    let mut first = [0; 1];
    let _ = followers[2].1.stdout.as_mut().map(|out| std::io::Read::read_exact(out, &mut first));
    let _ = followers[0].1.stdout.as_mut().map(|out| std::io::Read::read_exact(out, &mut first));
    let has_open = |number: usize, what: &str| {
        let pid = children_of(i32::try_from(followers[number].1.id()).ok()?).first().copied()?;
        let opened = fs_err::read_dir(format!("/proc/{pid}/fd")).ok()?;
        let mut names = opened.filter_map(|fd| fs_err::read_link(fd.ok()?.path()).ok());
        names.any(|name| name.to_string_lossy().contains(what)).then_some(())
    };
    node.until("`logs` to follow", || has_open(1, "run/events.jsonl"));
    node.until("`wait` to be connected", || has_open(3, "socket:"));
    // Who asks later is answered later.
    node.status();

    node.signal_keeper(Signal::TERM);
    node.same(node.ended(), Some(0));
    for (args, follower) in followers.drain(..) {
        let output = follower.wait_with_output().expect("ended");
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if args[0] == "wait" {
            assert_eq!((output.status.code(), err.contains("selfstart was stopped before this was so")), (Some(1), true), "{out}{err}");
            continue;
        }
        assert_eq!((output.status.code(), err.ends_with("the node was stopped\n")), (Some(0), true), "{args:?}: {out}{err}");
        match args[0] {
            "events" => assert!(out.lines().last().is_some_and(|line| line.contains("\"agent_stopped\"")), "{out}"),
            "logs" => assert!(out.contains(" bye\n"), "its last words too: {out}"),
            _ => {}
        }
    }
    // Without a node there is nothing to watch, and what is to come can be followed.
    node.cli(&["status", "-w"]).exits(3);
}

#[test]
fn a_second_term_kills_at_once() {
    let node = Node::with_pools(&format!("  w: {{command: '@FIXTURE@ --ignore TERM', count: 3, stop: [TERM 60s, KILL], {QUICK}}}"));
    let mark = node.mark();
    node.signal_keeper(Signal::TERM);
    node.until("TERM to be sent", || (node.since(mark, &["worker_stopping"]).len() >= 3).then_some(()));
    let began = Instant::now();
    node.signal_keeper(Signal::TERM);
    node.same(node.ended(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    node.same(node.processes(), vec![]);
}

#[test]
fn with_no_descriptors_but_those_for_output_workers_are_adopted_and_minded() {
    let node = Node::new();
    node.configure(&format!("  w: {{command: '@FIXTURE@', count: 20, {QUICK}}}"), "");
    let run = || {
        // Two for each of them and some; for a pidfd each there is no room.
        node.start_with(&["prlimit", "--nofile=84"]);
        // The former one's socket is still there.
        node.until("an agent that answers", || (node.cli(&["status"]).code == Some(0)).then_some(()));
        node.cli(&["wait", "--ready", "--timeout", "40s"]).exits(0);
    };
    run();
    let before = node.pids("w");
    node.signal_keeper(Signal::KILL);
    node.same(node.ended(), None);
    run();
    node.same(node.pids("w"), before.clone());
    // One that nothing watches is seen to end all the same.
    before.iter().for_each(|pid| signal_to(*pid, Signal::KILL));
    node.until("others in their places", || {
        let now = node.pids("w");
        (now.len() == 20 && now.iter().all(|pid| *pid > 0 && !before.contains(pid))).then_some(())
    });
    node.signal_keeper(Signal::TERM);
    node.same(node.ended(), Some(0));
    node.same(node.processes(), vec![]);
}

#[test]
fn whoever_starts_it_may_ignore_the_signals_that_it_needs() {
    let node = Node::new();
    node.configure(&format!("  w: {{command: '@FIXTURE@', {QUICK}}}"), "");
    // A shell cannot ignore SIGCHLD, and says so to nobody.
    let ignoring = "$SIG{$_} = 'IGNORE' for qw(CHLD TERM INT HUP USR1 USR2); exec @ARGV or die";
    node.start_with(&["perl", "-e", ignoring]);
    node.until("the control socket", || node.root("run/control.sock").exists().then_some(()));
    node.cli(&["wait", "--ready", "--timeout", "40s"]).exits(0);
    node.signal_keeper(Signal::TERM);
    node.same(node.ended(), Some(0));
    node.same(node.processes(), vec![]);
}

#[test]
fn a_second_run_on_the_same_root_is_refused_and_says_who_is_there() {
    let node = Node::with_pools(&format!("  w: {{command: '@FIXTURE@', {QUICK}}}"));
    let (pid, agent) = (node.pid("w"), node.look("/agent/pid"));
    said(&mut node.command(&["run"])).exits(4).says(&["another selfstart", &node.keeper().to_string(), "hint: "]);
    node.same((node.pid("w"), node.look("/agent/pid")), (pid, agent));
}

#[test]
fn term_is_remembered_for_every_agent_that_comes_after_the_one_that_heard_it() {
    let node = Node::with_pools(&format!("  w: {{command: '@FIXTURE@ --ignore TERM', count: 2, stop: [TERM 4s, KILL], {QUICK}}}"));
    let mark = node.mark();
    let agent = || children_of(node.keeper()).into_iter().find(|pid| crate::node::title(*pid).contains("internal-agent"));
    node.signal_keeper(Signal::TERM);
    node.until("TERM to be sent", || (node.since(mark, &["worker_stopping"]).len() >= 2).then_some(()));
    for _ in 0..2 {
        let former = agent().expect("an agent");
        signal_to(former, Signal::KILL);
        node.until("the next agent", || agent().filter(|pid| *pid != former));
    }
    node.same(node.ended(), Some(0));
    node.same(node.processes(), vec![]);
    node.told(mark, "agent_restarted", "");
    let ends = node.since(mark, &["worker_ended"]);
    assert!(ends.len() == 2 && ends.iter().all(|end| end["verdict"] == "drain"), "{ends:#?}");
}

#[test]
fn without_an_agent_that_comes_up_the_keeper_itself_ends_the_workers() {
    let node = Node::with_pools(&format!(
        "  w: {{command: '@FIXTURE@ --print-on-term bye', count: 2, {QUICK}}}\n  \
         rude: {{command: '@FIXTURE@ --ignore TERM --daemonise @DIR@/daemon', {QUICK}}}"
    ));
    let (polite, rude) = (node.pids("w"), node.pid("rude"));
    node.until("the good configuration", || node.root("run/config.good.yaml").exists().then_some(()));
    node.write("config.yaml", "nonsense\n");
    node.write("root/run/config.good.yaml", "nonsense\n");
    children_of(node.keeper()).into_iter().filter(|pid| crate::node::title(*pid).contains("internal-agent")).for_each(|pid| {
        signal_to(pid, Signal::KILL);
    });
    let tries = || node.text("agent.log").matches("the agent has ended").count();
    node.until("an agent that does not come up", || (tries() >= 2).then_some(()));
    node.signal_keeper(Signal::TERM);
    node.until("the end of those who obey", || (!polite.iter().any(|pid| alive(*pid))).then_some(()));
    assert!(alive(rude));
    node.signal_keeper(Signal::TERM);
    node.same(node.ended(), Some(1));
    node.same(node.processes(), vec![]);
    assert!(node.text("agent.log").contains("no agent comes up, and nothing runs any more: ending"));
}
