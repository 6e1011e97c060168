//! KILL for the keeper, and then `selfstart run` again.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::node::{Main, Node, PATIENCE, Scan, figures, kill, lives, scan, stat, until};
use crate::output::written;
use crate::waiting::{ended, pause};

/// `slow` writes far less than a pipe holds; `demon` has a child in a session of its own; the title of `titled` hides its environment.
const POOLS: &str = r#"
build: {steps: ["exec sleep 0.7"]}
pools:
  slow: {command: "{fixture} --flood 0 50", count: 3, stop: [TERM 5s, KILL], ready: {after: 100ms}, log: {max_size: 200kB, keep: 1000}}
  demon: {command: "{fixture} --daemonise {dir}/demon.{slot} --flood 0 20", count: 2, stop: [TERM 5s, KILL], ready: {after: 100ms}, restart: {backoff: [100ms, 100ms], flapping: {crashes: 1000, within: 1m, retry_after: 1s}}}
  titled: {command: "{fixture} --title resque-3.0.0:_Waiting_for_graph_checkins_import", count: 1, stop: [TERM 5s, KILL], ready: {after: 100ms}}
"#;

/// An adopted worker's end, and that of the child it leaves, must be over within this: in the middle, and at worst on a busy machine.
const SEEN_WITHIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(500));

/// Has a build go on.
fn begin_build(node: &Node) {
    assert!(node.selfstart(&["deploy", "--no-wait"]).status.success());
    until("a build step", PATIENCE, || {
        let helpers: Vec<_> = scan(&node.root).others.into_iter().filter(|it| it.0.starts_with("helper:build")).collect();
        if helpers.is_empty() { Err(format!("{:?}", node.status().map(|it| it["deploy"]["phase"].clone()))) } else { Ok(()) }
    });
}

/// KILLs the keeper; its agent and its helpers end with it.
fn kill_keeper(node: &mut Node, agent: i32, titled: i64) {
    // A worker that hides its environment can only be found again once it is written down, which takes some milliseconds.
    until("its number in the state", Duration::from_secs(5), || {
        let state = fs_err::read_to_string(node.root.join("run/state.json")).unwrap_or_default();
        if state.contains(&format!("\"pid\":{titled},")) { Ok(()) } else { Err(format!("{titled} is not in it")) }
    });
    let ticks = stat(agent).map_or(0, |it| it.2);
    node.kill_keeper();
    assert!(ended(agent, Duration::from_secs(1)) || !lives(agent, ticks), "agent {agent} outlives its keeper");
    until("the end of helpers", Duration::from_secs(1), || {
        let helpers: Vec<_> = scan(&node.root).others.into_iter().filter(|it| it.0.starts_with("helper:") && it.1 == it.2).collect();
        if helpers.is_empty() { Ok(()) } else { Err(format!("{helpers:?}")) }
    });
}

/// Each worker is the one that was there before, but for `lost`, in whose place is another; while a build went on all may be others.
fn are_adopted(before: &Scan, after: &Scan, lost: Option<&Main>, building: bool, round: u64) {
    for was in before.mains.values().flatten() {
        let now = after.main(&was.slot).unwrap_or_else(|| panic!("round {round}: {} has no worker", was.slot));
        if lost == Some(was) {
            assert_ne!(now.pid, was.pid);
            assert_ne!(now.start, was.start, "round {round}: a start number was used twice");
        } else if !building {
            assert_eq!((now.pid, now.ticks), (was.pid, was.ticks), "round {round}: {} was not adopted", was.slot);
        }
    }
}

/// KILLs the worker of a slot, which was adopted; returns how long after that its end was seen, by the event.
fn end_is_seen(node: &Node, slot: &str) -> Duration {
    let was = scan(&node.root).main(slot).cloned().expect("a worker");
    let wall = SystemTime::now();
    kill(was.pid, rustix::process::Signal::KILL);
    let end = until("the event of its end", Duration::from_secs(5), || {
        let ended = node.events().into_iter().rev().find(|it| {
            it["kind"] == "worker_ended"
                && it["start"] == was.start
                && format!("{}/{}", it["pool"].as_str().unwrap_or(""), it["slot"]) == slot
        });
        ended.ok_or_else(|| "none".to_owned())
    });
    let at_millis = millis(end["at"].as_str().expect("a date"));
    let from = wall.duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
    Duration::from_millis(u64::try_from(at_millis.saturating_sub(from)).expect("small"))
}

pub(crate) fn killed(kills: u64) {
    let mut random = crate::random("keeper");
    let mut node = Node::new(POOLS);
    let begun = Instant::now();
    node.run();
    let mut newest = node.push("0");
    until("the first agent", PATIENCE, || node.status());
    node.selfstart(&["deploy", "--no-wait"]);
    node.settled_on(&newest);
    let (mut back, mut seen, mut absent) = (Vec::new(), Vec::new(), 0);
    for round in 0..kills {
        ready(&node);
        let building = round % 3 == 1;
        if building {
            newest = node.push(&format!("{round}"));
            begin_build(&node);
        }
        pause(Duration::from_millis(random.u64(0..300)));
        let before = scan(&node.root);
        let titled = titled(&node);
        let agent = node.agent_pid().expect("an agent");
        kill_keeper(&mut node, agent, titled);
        // In every other round a worker ends while nobody minds it, and what it leaves behind too.
        let lost = (round % 2 == 1).then(|| before.main(if random.bool() { "demon/0" } else { "slow/0" }).cloned().expect("a worker"));
        if let Some(lost) = &lost {
            absent += 1;
            kill(lost.pid, rustix::process::Signal::KILL);
        }
        pause(Duration::from_millis(random.u64(0..500)));
        let at = Instant::now();
        node.run();
        node.answered_by_another_than(agent, Duration::from_secs(10));
        back.push(at.elapsed());
        ready(&node);
        let after = scan(&node.root);
        assert!(after.doubled().is_empty(), "round {round}: {:?}", after.doubled());
        are_adopted(&before, &after, lost.as_ref(), building, round);
        if !building {
            assert_eq!(self::titled(&node), titled, "round {round}: the worker with a title was not adopted");
        }
        assert_eq!(of_title(&node), 1, "round {round}: workers with this title");
        // Nothing is left of what ended, and nothing of the helpers.
        no_leftovers(&node, &format!("round {round}"));
        node.settled_on(&newest);
        ready(&node);

        let slot = format!("demon/{}", random.u8(0..2));
        seen.push(end_is_seen(&node, &slot));
        no_leftovers(&node, &format!("round {round}, {slot}"));
    }
    ready(&node);
    for event in node.events() {
        assert!(event["kind"] != "trouble", "{event}");
    }
    node.stop();
    let left = scan(&node.root);
    assert!(left.mains.is_empty() && left.others.is_empty(), "left over: {left:?}");
    let (mut lines, mut missing, mut again) = (0, 0, 0);
    for (pool, slots) in [("slow", 3), ("demon", 2)] {
        for slot in 0..slots {
            for one in written(&node.root, pool, slot) {
                lines += one.lines;
                missing += one.missing.len();
                again += one.again.len();
            }
        }
    }
    println!(
        "keeper: {kills} kills in {:.0} s ({absent} with a worker that ended meanwhile); answers again after: {}; end of an adopted worker seen: \
         {}; {lines} lines compared, {missing} missing, {again} twice",
        begun.elapsed().as_secs_f64(),
        figures(&back),
        figures(&seen)
    );
    seen.sort_unstable();
    let (median, most) = (seen[seen.len() / 2], seen[seen.len() - 1]);
    assert!(median <= SEEN_WITHIN.0 && most <= SEEN_WITHIN.1, "ends of adopted workers were seen after {seen:?}");
    // What the agent had read and not written goes with it: at most what one turn takes, for which there was hardly time.
    let allowed = usize::try_from(kills * 5).expect("small");
    assert!(missing <= allowed && again == 0, "{missing} lines are missing, {again} came twice");
}

/// The process of the worker with a title, as status has it.
fn titled(node: &Node) -> i64 {
    until("the worker with a title", PATIENCE, || {
        let status = node.status()?;
        let pools = status["pools"].as_array().ok_or("no pools")?;
        let pid = pools.iter().find(|pool| pool["name"] == "titled").and_then(|pool| pool["slots"][0]["pid"].as_i64());
        pid.ok_or_else(|| format!("{pools:?}"))
    })
}

/// How many live processes in the releases of this node have that title.
fn of_title(node: &Node) -> usize {
    let here = |pid: i32| fs_err::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(node.root.join("releases")));
    let has = |pid: i32| fs_err::read(format!("/proc/{pid}/cmdline")).is_ok_and(|text| text.starts_with(b"resque-3.0.0:_Waiting"));
    crate::node::pids().into_iter().filter(|pid| has(*pid) && here(*pid)).count()
}

/// Waits until every slot has its ready worker.
fn ready(node: &Node) {
    until("all workers ready", PATIENCE, || {
        let status = node.status()?;
        let pools = status["pools"].as_array().ok_or("no pools")?;
        if pools.iter().all(|pool| pool["ready"] == pool["wanted"]) && status["deploy"]["phase"] == "idle" {
            Ok(())
        } else {
            Err(format!("{status}"))
        }
    });
}

/// Waits until no process is left of a main process that is gone.
fn no_leftovers(node: &Node, when: &str) {
    until(&format!("the end of leftovers, {when}"), Duration::from_secs(5), || {
        let scan = scan(&node.root);
        let alive: BTreeSet<i32> = scan.mains.values().flatten().map(|it| it.pid).collect();
        let left: Vec<_> = scan
            .others
            .iter()
            .filter(|it| it.0.starts_with("helper:") && it.1 != it.2 || !it.0.starts_with("helper:") && !alive.contains(&it.1))
            .collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
}

/// Milliseconds since 1970 of a date in an event (RFC 3339, UTC, of the last days).
fn millis(at: &str) -> u128 {
    let out = std::process::Command::new("date").args(["-u", "+%s%3N", "-d", at]).output().expect("date");
    String::from_utf8_lossy(&out.stdout).trim().parse().expect("a number")
}
