//! A full disk, for real: the node's root is a file system of a few megabytes, in a mount namespace that ends with the test.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::node::{Node, QUICK, alive};

/// Whether this is the inner run of a test. Where all tests are asked for, also the ignored ones, there is no namespace, and no test.
pub(crate) fn inside() -> bool {
    std::env::var_os("E2E_OWN_MOUNTS").is_some()
}

/// Runs one of the ignored tests in a mount namespace of its own; false when that is not permitted.
pub(crate) fn with_own_mounts(name: &str) -> bool {
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private"]).stdin(Stdio::null());
        command
    };
    let dir = tempfile::tempdir().expect("a directory");
    let permitted = unshare().args(["mount", "-t", "tmpfs", "-o", "size=1m", "none"]).arg(dir.path()).output();
    if let Some(why) = match permitted {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Some(error.to_string()),
    } {
        eprintln!("left out: no file system may be mounted here: {why}");
        return false;
    }
    let us = std::env::current_exe().expect("us");
    let out = unshare().arg(us).args(["--exact", name, "--ignored", "--nocapture"]).env("E2E_OWN_MOUNTS", "1").output().expect("unshare");
    let (said, complained) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && said.contains("1 passed"), "{}\n{said}\n{complained}", out.status);
    true
}

#[test]
fn a_full_disk_stops_deploys_and_logs_but_no_worker_and_all_goes_on_when_there_is_room() {
    with_own_mounts("disk::inside_a_full_disk");
}

/// Takes all the room that is left.
pub(crate) fn fill(path: &Path) {
    // Ends with "no space left", which is what is wanted; by small blocks in the end, so that nothing is left.
    for block in ["64K", "512"] {
        let out = Command::new("sh").args(["-c", &format!("dd if=/dev/zero bs={block} >>'{}' 2>/dev/null", path.display())]).output();
        assert!(out.is_ok_and(|out| !out.status.success()), "the disk has no end");
    }
}

#[test]
#[ignore = "run by a_full_disk_stops_deploys_and_logs_but_no_worker_and_all_goes_on_when_there_is_room"]
fn inside_a_full_disk() {
    if !inside() {
        return;
    }
    let node = Node::new();
    fs_err::create_dir_all(node.path("root")).expect("made");
    let root = node.path("root");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=24m,mode=755", "none"]).arg(&root).status().expect("mount");
    assert!(mounted.success());
    node.configure_raw(&format!(
        "app: e2e\nroot: @DIR@/root\nsource: {{repository: @DIR@/src, branch: main}}\nrelease: {{min_free: 0, confirm: 0s}}\npools:\n  \
         w: {{command: '@FIXTURE@', count: 2, {QUICK}}}\n  talker: {{command: '@FIXTURE@ --flood 0 200', log: {{max_size: 100MB}}, {QUICK}}}\n"
    ));
    node.boot();
    let (live, current) = (node.live(), node.current());
    let pids = || [node.pids("w"), node.pids("talker")].concat();
    let before = pids();
    let log = || node.text("root/log/talker.0.log");
    node.until("some output", || (log().lines().count() > 20).then_some(()));

    let ballast = root.join("ballast");
    fill(&ballast);
    let mark = node.mark();
    let next = node.commit(&[("large", &"not compressible? ".repeat(200_000))]);
    let said = node.cli(&["deploy"]).exits(1);
    eprintln!("a deploy onto a full disk says: {}", said.err);
    assert!(said.err.contains("No space left") || said.err.contains("no space left"), "{said:?}");
    node.same((node.live(), node.current()), (live.clone(), current.clone()));
    node.same(pids(), before.clone());
    node.cli(&["status"]).exits(0);
    // Lack of disk is no fault of the revision.
    node.same(node.look("/deploy/quarantined"), serde_json::json!([]));
    // The log takes nothing any more.
    node.until("the talker to be waited for", || node.text("agent.log").contains("talker.0.log").then_some(()));
    // A crash is followed by a restart all the same.
    let victim = node.pids("w")[0];
    crate::node::signal_to(victim, rustix::process::Signal::KILL);
    node.until("another worker", || node.pids("w").first().filter(|now| **now != victim && alive(**now)).map(drop));
    node.state("w", "ready");
    let untouched = (node.pids("w")[1], node.pid("talker"));
    node.same(untouched, (before[1], before[2]));

    // More happens than the journal's last page has room for.
    for _ in 0..20 {
        node.cli(&["pause", "w"]).exits(1).says(&["paused", "not saved", "No space left", "repeat it"]);
        node.cli(&["resume", "w"]).exits(1).says(&["minded again", "not saved"]);
    }
    let notes = node.look("/notes").to_string();
    for what in ["the state is not saved", "the output for", "for the disk"] {
        assert!(notes.contains(what), "{notes}");
    }
    node.cli(&["status"]).exits(0).says(&["the state is not saved"]);
    let resumed = || node.since(mark, &["resumed"]).len();
    assert!(resumed() < 40, "the journal took all of it, so this shows nothing");

    fs_err::remove_file(&ballast).expect("removed");
    // By itself, without another event that would bring the waiting ones along.
    node.until("the journal to be whole", || (resumed() == 40).then_some(()));
    node.told(mark, "output_goes_on", "talker.0.log");
    node.until("nothing to be noted", || (node.look("/notes") == serde_json::json!([])).then_some(()));
    node.cli(&["deploy"]).exits(0);
    node.same(node.live().0, next);
    // All that the first talker wrote until the deploy ended it, without a gap.
    let text = log();
    let of_first = format!(" pid={}", before[2]);
    let numbers: Vec<u64> = text
        .lines()
        .filter(|line| line.ends_with(&of_first))
        .map(|line| line.split("n=").nth(1).and_then(|rest| rest.split(' ').next()).and_then(|n| n.parse().ok()).expect("a number"))
        .collect();
    assert!(numbers.len() > 40 && numbers.iter().zip(1..).all(|(seen, n)| *seen == n), "{:?}", &numbers[..numbers.len().min(100)]);
    // Nothing that happened meanwhile is missing from the journal.
    let events = node.events();
    for pair in events.windows(2) {
        assert_eq!(pair[0]["seq"].as_u64().map(|n| n + 1), pair[1]["seq"].as_u64(), "{}\n{}", pair[0], pair[1]);
    }
    assert!(events.iter().any(|event| event["kind"] == "worker_ended" && event["verdict"] == "signal"));
    node.told(mark, "output_waits", "talker.0.log");

    // Once more, when nobody writes: what waits is tried again by itself, not with the next thing that happens.
    node.cli(&["stop", "talker"]).exits(0);
    fill(&ballast);
    let mark = node.mark();
    let files = || [node.text("root/run/state.json"), node.text("root/run/journal/deploy.json")];
    let before = files();
    assert!(before.iter().all(|text| !text.is_empty()));
    for words in [["hold"].as_slice(), &["hold"], &["unhold", "--no-wait"], &["hold", "--why", "full"]] {
        node.cli(words).exits(1).says(&["not saved", "No space left"]);
    }
    assert!(node.look("/notes").to_string().contains("the record of deploys is not saved"));
    for _ in 0..20 {
        node.cli(&["pause", "w"]).exits(1);
        node.cli(&["resume", "w"]).exits(1);
    }
    node.cli(&["pause", "w"]).exits(1);
    let paused = || node.since(mark, &["paused"]).len();
    assert!(paused() < 42, "the journal took all of it, so this shows nothing");
    assert_eq!(files(), before);
    fs_err::remove_file(&ballast).expect("removed");
    node.until("the journal to be whole", || (paused() == 42).then_some(()));
    node.until("the state and the record of deploys to be written", || {
        files().iter().zip(&before).all(|(now, then)| now != then).then_some(())
    });
    // What is answered with success while the disk is full or was just now is not forgotten by an agent that is killed at once.
    let kill_agent = || {
        let agent = i32::try_from(node.look("/agent/pid").as_i64().expect("a pid")).expect("a pid");
        crate::node::signal_to(agent, rustix::process::Signal::KILL);
        node.until("the next agent", || node.look("/agent/pid").as_i64().filter(|pid| *pid != i64::from(agent)));
    };
    node.cli(&["resume", "w"]).exits(0);
    node.cli(&["unhold"]).exits(0);
    fill(&ballast);
    let commands = [["hold"].as_slice(), &["stop", "w/1"], &["scale", "talker=0"], &["pause", "w/0"]];
    for words in commands {
        node.cli(words).exits(1).says(&["not saved"]);
    }
    fs_err::remove_file(&ballast).expect("removed");
    for words in commands {
        node.cli(words).exits(0);
    }
    let is_so = || (node.look("/deploy/held"), node.pids("w").len(), node.pids("talker").len(), node.slots("w")[0]["state"].clone());
    let expected = is_so();
    node.same(expected.clone(), (true.into(), 1, 0, "paused".into()));
    kill_agent();
    node.same(is_so(), expected);
    node.cli(&["resume", "w/0"]).exits(0);
    kill_agent();
    node.same(node.slots("w")[0]["state"].clone(), "ready".into());
}
