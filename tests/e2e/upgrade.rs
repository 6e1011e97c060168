//! selfstart renews itself under workers that go on: up, down, and back when the new one is none.
//!
//! The programs are this one, copied, with other bytes where its version or its agent's verb stands, and small ones made by `cc`.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::node::{Node, QUICK, Said, alive, children_of, run, signal_to, title};

/// The version that is built.
const OURS: &str = env!("CARGO_PKG_VERSION");

/// Another one, as long.
const OTHER: &str = "9.9.9";

/// What a release's log of numbered lines is kept in.
const LOG: &str = "log: {max_size: 100MB}";

impl Node {
    /// Our program, in a folder of its own, as an installed one.
    fn program(&self) -> PathBuf {
        self.path("bin/selfstart")
    }

    /// Installs our program, and boots it.
    fn boot_installed(&self) {
        fs_err::create_dir_all(self.path("bin")).expect("made");
        fs_err::set_permissions(self.path("bin"), PermissionsExt::from_mode(0o755)).expect("its mode");
        self.copied(&self.program(), &[]);
        let start = format!("ulimit -Sn 4000; shift; exec {} \"$@\"", self.program().display());
        self.start_with(&["sh", "-c", &start, "sh"]);
        self.until("the control socket", || self.root("run/control.sock").exists().then_some(()));
        self.cli(&["wait", "--ready", "--timeout", "40s"]).exits(0);
        self.idle();
    }

    /// Our program at `to`, whole when it is there, with these bytes in place of those.
    fn copied(&self, to: &std::path::Path, changes: &[(&[u8], &[u8])]) -> PathBuf {
        let mut bytes = fs_err::read(env!("CARGO_BIN_EXE_selfstart")).expect("our program");
        for (old, new) in changes {
            let places: Vec<usize> = memchr::memmem::find_iter(&bytes, old).collect();
            assert!(!places.is_empty() && old.len() == new.len(), "{old:?}");
            places.into_iter().for_each(|at| bytes[at..at + new.len()].copy_from_slice(new));
        }
        // By `cp`: a test beside us that forks while we write would have it open, and executing it would fail (ETXTBSY).
        let written = self.path("written");
        fs_err::write(&written, bytes).expect("written");
        let beside = to.with_extension("copy");
        run(Command::new("cp").arg(&written).arg(&beside));
        fs_err::set_permissions(&beside, PermissionsExt::from_mode(0o755)).expect("its mode");
        fs_err::rename(&beside, to).expect("renamed");
        to.to_owned()
    }

    /// One that says it is of another version.
    fn newer(&self) -> PathBuf {
        self.copied(&self.path("newer"), &[(OURS.as_bytes(), OTHER.as_bytes())])
    }

    /// One whose keeper starts its agent by a verb that there is not.
    fn without_agent(&self) -> PathBuf {
        self.copied(&self.path("without-agent"), &[(OURS.as_bytes(), OTHER.as_bytes()), (b"internal-agent\0", b"internal-agemt\0")])
    }

    /// A program made of this text.
    fn made(&self, name: &str, text: &str) -> PathBuf {
        self.write("made.c", text);
        run(Command::new("cc").args(["-static", "-o"]).arg(self.path(name)).arg(self.path("made.c")));
        self.path(name)
    }

    fn upgrade(&self, binary: &std::path::Path) -> Said {
        self.cli(&["upgrade", "--binary", &binary.display().to_string()])
    }

    fn version(&self) -> String {
        self.until("an agent", || self.look("/agent/version").as_str().map(str::to_owned))
    }

    fn agent(&self) -> i32 {
        self.until("an agent", || i32::try_from(self.look("/agent/pid").as_i64()?).ok())
    }

    /// Ends the node, and holds that all lines of these pools are there once, in order, by each process that wrote some.
    fn ends_with_all_lines(&self, pools: &[(&str, u32)]) {
        self.signal_keeper(Signal::TERM);
        assert_eq!(self.ended(), Some(0));
        for (pool, slots) in pools {
            for slot in 0..*slots {
                assert!(lines(&self.text(&format!("root/log/{pool}.{slot}.log"))) > 0, "{pool}/{slot} has said nothing");
            }
        }
    }

    /// Holds that each start has one end at most, that those which do not run have one, and that no event is missing.
    fn told_once(&self) {
        let events = self.events();
        let mut ends: BTreeMap<(String, u64, u64), (Option<i64>, u32)> = BTreeMap::new();
        for event in &events {
            let name = || Some((event["pool"].as_str()?.to_owned(), event["slot"].as_u64()?, event["start"].as_u64()?));
            let Some(name) = name() else { continue };
            match event["kind"].as_str() {
                Some("worker_started") => {
                    let before = ends.insert(name, (event["pid"].as_i64(), 0));
                    assert!(before.is_none(), "started twice: {event}");
                }
                // By an agent that ended before it could tell; or told by another, once more, that it is minded.
                Some("worker_adopted") => {
                    let known = ends.entry(name).or_insert((event["pid"].as_i64(), 0));
                    assert_eq!(*known, (event["pid"].as_i64(), 0), "{event}");
                }
                Some("worker_ended") => ends.get_mut(&name).unwrap_or_else(|| panic!("never started: {event}")).1 += 1,
                _ => {}
            }
        }
        for (name, (pid, ends)) in ends {
            let runs = pid.and_then(|pid| i32::try_from(pid).ok()).is_some_and(alive);
            assert_eq!(ends, u32::from(!runs), "{name:?}, process {pid:?}");
        }
    }
}

/// How many lines there are, of all processes; each has its own from 1 on, without a gap.
#[track_caller]
fn lines(text: &str) -> u64 {
    let mut last: BTreeMap<&str, u64> = BTreeMap::new();
    let mut sum = 0;
    for line in text.lines() {
        let (_, rest) = line.split_once(" out n=").unwrap_or_else(|| panic!("a line that nobody wrote: {line}"));
        let (number, pid) = rest.split_once(" pid=").expect("a number and a process");
        let number: u64 = number.parse().expect("a number");
        let before = last.entry(pid).or_default();
        assert_eq!(number, *before + 1, "process {pid}");
        *before = number;
        sum += 1;
    }
    sum
}

/// A worker that floods, and a pool whose workers end all the time.
fn busy() -> String {
    format!(
        "  steady: {{command: '@FIXTURE@ --flood 0 3000', count: 2, {LOG}, {QUICK}}}\n  \
         brief: {{shell: 'exec @FIXTURE@ --flood 40 400 --then-exit 3', count: 2, {LOG}, ready: {{after: 20ms}}, \
         restart: {{backoff: [100ms, 100ms], flapping: {{crashes: 1000, within: 1m, retry_after: 1s}}}}}}"
    )
}

#[test]
fn a_newer_program_takes_over_and_an_older_one_again_and_no_line_or_end_is_lost() {
    let node = Node::new();
    node.configure(&busy(), "");
    node.boot_installed();
    let (pids, keeper, newer) = (node.pids("steady"), node.keeper(), node.newer());
    let older = node.copied(&node.path("older"), &[]);
    for (to, from, binary) in [(OTHER, OURS, &newer), (OURS, OTHER, &older), (OTHER, OURS, &newer)] {
        let mark = node.mark();
        let text = format!("selfstart {to} has taken over from {from}");
        node.upgrade(binary).exits(0).says(&[&text, "on trial"]);
        node.same((node.version().as_str(), node.keeper(), node.pids("steady")), (to, keeper, pids.clone()));
        // What is started next time is what runs, and nothing else is left there.
        assert!(fs_err::read(node.program()).expect("read") == fs_err::read(binary).expect("read"), "not in place");
        assert_eq!(fs_err::read_dir(node.path("bin")).expect("read").count(), 1);
        assert_eq!(fs_err::read_to_string(format!("/proc/{keeper}/comm")).expect("its name"), "selfstart\n");
        let told = node.told(mark, "upgraded", &text);
        assert_eq!((&told["from"], &told["to"], told["asked_by"].is_string()), (&from.into(), &to.into(), true), "{told}");
        assert!(node.since(mark, &["agent_restarted", "upgrade_failed"]).is_empty());
        // Lines still come: a worker whose pipe is full would wait, without a gap.
        let (log, soon) = (node.root("log/steady.0.log"), 200_000);
        let len = || fs_err::metadata(&log).map_or(0, |it| it.len());
        let before = len();
        node.until("more lines than a pipe holds", || (len() > before + soon).then_some(()));
    }
    // What became of it is told once, however many agents come after it.
    let agent = node.agent();
    signal_to(agent, Signal::KILL);
    node.until("another agent", || (node.agent() != agent).then_some(()));
    assert_eq!(node.since(0, &["upgraded"]).len(), 3);
    // A worker that is started by the new one has no more descriptors than one of the old one: three, and its limits.
    let limit = |pid: i32| {
        let text = fs_err::read_to_string(format!("/proc/{pid}/limits")).expect("limits");
        text.lines().find(|line| line.starts_with("Max open files")).expect("one").to_owned()
    };
    node.cli(&["restart", "steady/0"]).exits(0);
    let new = node.pids("steady")[0];
    assert_eq!((fs_err::read_dir(format!("/proc/{new}/fd")).expect("read").count(), limit(new)), (3, limit(pids[1])));
    let environ = fs_err::read_to_string(format!("/proc/{new}/environ")).expect("read");
    assert!(!environ.contains("SELFSTART_HANDOVER"), "{environ}");
    node.until("ends", || (node.since(0, &["worker_ended"]).len() > 20).then_some(()));
    node.ends_with_all_lines(&[("steady", 2), ("brief", 2)]);
    node.told_once();
    // Each of those that end by themselves has written all.
    let brief = node.text("root/log/brief.0.log");
    assert!(brief.lines().filter(|line| line.contains(" n=000040 ")).count() > 3);
}

#[test]
fn what_is_no_selfstart_for_this_node_changes_nothing() {
    let node = Node::new();
    node.configure(&format!("  w: {{command: '@FIXTURE@', {QUICK}}}"), "");
    node.boot_installed();
    let (pid, agent, keeper) = (node.pid("w"), node.agent(), node.keeper());
    let before = fs_err::read(node.program()).expect("read");
    node.write("script", &format!("#!/bin/sh\n#{}\n", "x".repeat(200_000)));
    let mut foreign = before.clone();
    foreign[18] = if foreign[18] == 183 { 62 } else { 183 };
    fs_err::write(node.path("foreign"), foreign).expect("written");
    fs_err::write(node.path("cut"), &before[..200_000]).expect("written");
    let quick = [
        ("nothing", "No such file"),
        ("script", "is no program"),
        ("bin", "is no"),
        ("foreign", "for another machine"),
        ("cut", "cannot be executed|no selfstart that can take over"),
    ];
    for (name, why) in quick {
        let said = node.upgrade(&node.path(name)).exits(1);
        assert!(why.split('|').any(|why| said.err.contains(why)), "{name}: {said:?}");
    }
    // A program, but none of ours; and one that never ends.
    let mark = node.mark();
    node.upgrade("/bin/bash".as_ref()).exits(1).says(&["no selfstart that can take over (exit 127"]);
    let said = node.upgrade(&node.made("hangs", "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n"));
    let took = said.took;
    said.exits(1).says(&["did not answer within 10 s"]);
    assert!((10..14).contains(&took.as_secs()), "{took:?}");
    let told = node.since(mark, &["upgrade_failed"]);
    assert!(told.len() == 2 && told.iter().all(|event| event["verdict"] == "refused"), "{told:?}");
    // Also when who asked has gone meanwhile.
    let binary = liar_that_rehearses(&node, "sleep(1); return 4;", "").display().to_string();
    let mut asked = node.command(&["upgrade", "--binary", &binary]);
    let mut asked = asked.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("asked");
    node.until("the rehearsal", || children_of(keeper).into_iter().find(|pid| title(*pid).contains("internal-keeper")));
    let asking = children_of(i32::try_from(asked.id()).expect("a pid"));
    asking.into_iter().for_each(|pid| signal_to(pid, Signal::KILL));
    let _its_end = asked.wait();
    node.told(mark, "upgrade_failed", "no selfstart that can take over (exit 4");
    // It is said until the next one: to whom looks at the node, not only to who asked.
    node.cli(&["status"]).exits(0).says(&["upgrade", "no upgrade, selfstart", "goes on:", "no selfstart that can take over (exit 4"]);
    node.same((node.pid("w"), node.agent(), node.keeper()), (pid, agent, keeper));
    assert!(fs_err::read(node.program()).expect("read") == before, "another program");
    assert_eq!(fs_err::read_dir(node.path("bin")).expect("read").count(), 1);
    // It has no child but its agent and its worker, a rehearsal least of all.
    let mut children = children_of(keeper);
    children.sort_unstable();
    let mut ours = [pid, agent];
    ours.sort_unstable();
    assert_eq!(children, ours);
}

#[test]
fn the_former_one_is_back_when_the_agent_of_the_new_one_does_not_come_up() {
    let node = Node::new();
    node.configure(&busy(), "");
    node.boot_installed();
    let (pids, keeper) = (node.pids("steady"), node.keeper());
    let before = fs_err::read(node.program()).expect("read");
    let mark = node.mark();
    let text = format!("selfstart {OURS} is back: its agent ended 3 times before it was up");
    node.upgrade(&node.without_agent()).exits(1).says(&[&text, "workers were not touched"]);
    let told = node.told(mark, "upgrade_failed", &text);
    assert_eq!((&told["verdict"], &told["to"]), (&"went_back".into(), &OTHER.into()), "{told}");

    // One that hangs: whoever opens the configuration waits until somebody writes to it.
    let mark = node.mark();
    let config = node.text("config.yaml");
    let fifo = node.path("fifo");
    run(Command::new("mkfifo").arg(&fifo));
    fs_err::copy(node.path("config.yaml"), node.path("good.yaml")).expect("copied");
    let former = node.agent();
    fs_err::rename(&fifo, node.path("config.yaml")).expect("renamed");
    let newer = node.newer();
    // The command reads the configuration too.
    let mut command = Command::new("timeout");
    command.args(["60", env!("CARGO_BIN_EXE_selfstart"), "--config"]).arg(node.path("good.yaml")).args(["upgrade", "--binary"]).arg(newer);
    let asked = command.env_clear().env("PATH", "/usr/bin:/bin").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let is_agent = |pid: &i32| *pid != former && title(*pid).contains("internal-agent");
    node.until("the agent on trial", || children_of(keeper).into_iter().find(is_agent));
    // The former one finds a good configuration again; the one on trial waits at the pipe for ever.
    node.write("config.next", &config);
    let hangs = node.until("one that waits", || {
        let pid = children_of(keeper).into_iter().find(is_agent)?;
        // It has said hello by then, and holds nothing of ours open.
        fs_err::read_to_string(format!("/proc/{pid}/wchan"))
            .is_ok_and(|at| at.contains("fifo") || at.contains("wait_for_partner"))
            .then_some(pid)
    });
    fs_err::rename(node.path("config.next"), node.path("config.yaml")).expect("renamed");
    let said = asked.expect("started").wait_with_output().expect("its end");
    let err = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.status.code() == Some(1) && err.contains("did not come up within 10 s"), "{err}");
    assert!(!alive(hangs));
    node.told(mark, "upgrade_failed", "did not come up within 10 s");

    node.same((node.version().as_str(), node.keeper(), node.pids("steady")), (OURS, keeper, pids));
    assert!(fs_err::read(node.program()).expect("read") == before, "another program");
    assert_eq!(fs_err::read_dir(node.path("bin")).expect("read").count(), 1);
    node.upgrade(&node.newer()).exits(0);
    node.ends_with_all_lines(&[("steady", 2), ("brief", 2)]);
    node.told_once();
}

/// A program that rehearses well, and does this when it is executed in the place of the keeper; with nothing more, it ends with 3.
fn liar(node: &Node, does: &str) -> PathBuf {
    liar_that_rehearses(node, "", does)
}

/// As [`liar`], doing this before it rehearses.
fn liar_that_rehearses(node: &Node, first: &str, does: &str) -> PathBuf {
    let includes = "#include <signal.h>\n#include <stdio.h>\n#include <unistd.h>\n";
    // Where `nobody`, as whom it rehearses, gets to.
    let us = node.copied(&node.path("ours"), &[]).display().to_string();
    let text =
        format!("{includes}int main(int n, char **a) {{\n  if (n == 2) {{ {first} execv(\"{us}\", a); }}\n  {does}\n  return 3;\n}}\n");
    node.made("liar", &text)
}

#[test]
fn a_program_that_ends_as_a_keeper_leaves_the_workers_to_the_next_run_whose_upgrade_keeps_them() {
    let node = Node::new();
    node.configure(&format!("  w: {{command: '@FIXTURE@ --flood 0 500', {LOG}, {QUICK}}}"), "");
    node.boot_installed();
    let pid = node.pid("w");
    let mut asked = node.command(&["upgrade", "--binary", &liar(&node, "").display().to_string()]);
    let mut asked = asked.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("asked");
    assert_eq!(node.ended(), Some(3));
    let _gone = asked.kill();
    let _gone = asked.wait();
    assert!(alive(pid));
    let mark = node.mark();
    node.boot_installed();
    assert_eq!(node.pid("w"), pid);
    node.told(mark, "worker_adopted", &pid.to_string());
    // It is nobody's child now: the program that takes over must be told of its end all the same.
    node.upgrade(&node.newer()).exits(0);
    assert_eq!(node.pid("w"), pid);
    let mark = node.mark();
    signal_to(pid, Signal::KILL);
    node.told(mark, "worker_ended", "");
    assert!(lines(&node.text("root/log/w.0.log")) > 0);
}

#[test]
fn who_ends_and_what_is_signalled_while_nobody_is_there_is_seen() {
    let node = Node::new();
    node.configure(&format!("  w: {{command: '@FIXTURE@', {QUICK}}}"), "");
    node.boot_installed();
    let pid = node.pid("w");
    let us = node.path("ours").display().to_string();
    // Nothing else ends meanwhile, whose end would be told together with it.
    let binary = liar(&node, &format!("kill({pid}, SIGKILL); usleep(200000); execv(\"{us}\", a);"));
    let mark = node.mark();
    node.upgrade(&binary).exits(0);
    let told = node.told(mark, "worker_ended", "KILL");
    assert_eq!(told["verdict"], "signal", "{told}");
    assert_ne!(node.pid("w"), pid);
    let binary = liar(&node, &format!("kill(getpid(), SIGTERM); kill(getpid(), SIGUSR1); execv(\"{us}\", a);"));
    let mut asked = node.command(&["upgrade", "--binary", &binary.display().to_string()]);
    let mut asked = asked.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("asked");
    assert_eq!(node.ended(), Some(0));
    let _gone = asked.kill();
    let _gone = asked.wait();
    node.told_once();
    assert!(node.text("agent.log").contains("a signal: everything is stopped"));
}

#[test]
fn a_program_that_cannot_be_executed_after_all_changes_nothing() {
    let node = Node::new();
    node.configure(&busy(), "");
    node.boot_installed();
    let (pids, keeper) = (node.pids("steady"), node.keeper());
    let binary = liar_that_rehearses(&node, "sleep(1);", "").display().to_string();
    let mut asked = node.command(&["upgrade", "--binary", &binary]);
    let asked = asked.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("asked");
    node.until("the rehearsal", || children_of(keeper).into_iter().find(|pid| title(*pid).contains("internal-keeper")));
    // Not even root executes that.
    fs_err::set_permissions(node.path("bin/selfstart.new"), PermissionsExt::from_mode(0o644)).expect("its mode");
    let said = asked.wait_with_output().expect("its end");
    let err = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.status.code() == Some(1) && err.contains("could not be executed: Permission denied"), "{err}");
    node.same((node.keeper(), node.pids("steady"), node.version().as_str()), (keeper, pids, OURS));
    // Again, and none of the descriptors of the first time is left.
    let open = || fs_err::read_dir(format!("/proc/{keeper}/fd")).expect("read").count();
    let before = open();
    node.upgrade(&node.newer()).exits(0);
    node.until("as many descriptors as before", || (open() <= before).then_some(()));
    node.ends_with_all_lines(&[("steady", 2), ("brief", 2)]);
    node.told_once();
}

#[test]
fn usr2_takes_what_lies_where_the_program_was_started_from() {
    let node = Node::new();
    node.configure(&format!("  w: {{command: '@FIXTURE@', {QUICK}}}"), "");
    node.boot_installed();
    let (pid, keeper) = (node.pid("w"), node.keeper());
    // As dpkg does it. The agent need not be of help: this one is stopped.
    node.copied(&node.program(), &[(OURS.as_bytes(), OTHER.as_bytes())]);
    signal_to(node.agent(), Signal::STOP);
    node.signal_keeper(Signal::USR2);
    node.told(0, "upgraded", &format!("selfstart {OTHER} has taken over from {OURS}"));
    node.same((node.version().as_str(), node.pid("w"), node.keeper()), (OTHER, pid, keeper));
    // By a command, and down.
    node.copied(&node.program(), &[]);
    node.cli(&["upgrade"]).exits(0).says(&[&format!("selfstart {OURS} has taken over from {OTHER}")]);
    let said = node.cli(&["upgrade", "--json"]).exits(0);
    let answer: Value = serde_json::from_str(&said.out).expect("JSON");
    assert_eq!(answer["done"]["text"], format!("selfstart {OURS} has taken over from {OURS}"), "{answer}");
    // There is none.
    let mark = node.mark();
    fs_err::remove_file(node.program()).expect("removed");
    node.signal_keeper(Signal::USR2);
    node.told(mark, "upgrade_failed", "cannot be used: entity not found");
    node.same((node.pid("w"), node.keeper()), (pid, keeper));
}

#[test]
fn root_executes_only_what_nobody_else_can_replace() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: needs root");
    }
    let node = Node::new();
    node.configure(&format!("  w: {{command: '@FIXTURE@', {QUICK}}}"), "");
    node.boot_installed();
    let (program, folder) = (node.program(), node.path("bin"));
    let mode = |path: &PathBuf, mode| fs_err::set_permissions(path, PermissionsExt::from_mode(mode)).expect("its mode");
    let refused = |why: &str| node.cli(&["upgrade"]).exits(1).says(&[why]);
    mode(&program, 0o775);
    refused("may be written by others");
    mode(&program, 0o744);
    refused("may not be executed and read by everybody");
    mode(&program, 0o755);
    mode(&folder, 0o777);
    refused("may be written by others");
    mode(&folder, 0o755);
    for path in [&program, &folder] {
        std::os::unix::fs::chown(path, Some(65_534), None).expect("given");
        refused("belongs to user 65534");
        std::os::unix::fs::chown(path, Some(0), None).expect("given");
    }
    node.cli(&["upgrade"]).exits(0);
}

#[test]
fn term_during_the_trial_ends_the_node_in_order() {
    for binary in [Node::newer, Node::without_agent] {
        let node = Node::new();
        node.configure(&busy(), "");
        node.boot_installed();
        let agent = node.agent();
        let path = binary(&node).display().to_string();
        let mut asked = node.command(&["upgrade", "--binary", &path]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("asked");
        node.until("the end of the agent", || (!alive(agent)).then_some(()));
        node.ends_with_all_lines(&[("steady", 2), ("brief", 2)]);
        let _gone = asked.kill();
        let _gone = asked.wait();
        node.told_once();
        assert!(node.processes().is_empty());
    }
}

#[test]
fn a_deploy_that_is_under_way_comes_to_its_end() {
    let node = Node::new();
    node.configure(
        &format!("  w: {{command: '@FIXTURE@', {QUICK}}}"),
        "build: {steps: ['cp README product', 'if [ -e later ]; then touch @DIR@/builds; sleep 2; fi']}\n",
    );
    node.boot_installed();
    let revision = node.commit(&[("later", "x\n")]);
    node.cli(&["deploy", "--no-wait"]).exits(0);
    node.until("the build", || node.path("builds").exists().then_some(()));
    node.upgrade(&node.newer()).exits(0);
    node.until("the deploy", || (node.live().0 == revision).then_some(()));
    node.idle();
    assert!(node.since(0, &["deploy_failed"]).is_empty());
    assert!(node.root("current/product").exists());
}

#[test]
fn twenty_in_a_row_with_agents_that_are_killed_lose_nothing() {
    let node = Node::new();
    node.configure(&busy(), "");
    node.boot_installed();
    let (pids, keeper) = (node.pids("steady"), node.keeper());
    let binaries = [node.newer(), node.copied(&node.path("older"), &[])];
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    println!("seed {seed}");
    for round in 0..20_u32 {
        let path = binaries[round as usize % 2].display().to_string();
        let before = node.look("/agent/upgrade/number").as_u64().unwrap_or(0);
        let mut asked = node.command(&["upgrade", "--binary", &path]).stderr(Stdio::null()).stdout(Stdio::null()).spawn().expect("asked");
        if round % 2 == 1 {
            crate::waiting::pause(Duration::from_millis(random.u64(0..700)));
            let agents = children_of(keeper).into_iter().filter(|pid| title(*pid).contains("internal-agent"));
            agents.for_each(|pid| signal_to(pid, Signal::KILL));
            // It may have been killed before it could ask: nobody knows of it then.
            node.agent();
            let _waits = asked.kill();
            let _its_end = asked.wait();
            node.until("an end of what was begun", || {
                // What is told to be done is done, and what was not begun is not.
                let quiet = children_of(keeper).into_iter().all(|pid| !title(pid).contains("internal-keeper"));
                (quiet && node.look("/pools/0/ready") == 2).then_some(())
            });
        } else {
            let code = asked.wait().expect("its end").code();
            assert_eq!(code, Some(0), "round {round}: {}", node.status()["agent"]);
            // `status` shows what was so when the agent's loop last went round: the answer may be a turn ahead of it.
            node.until("it in `status`", || (node.look("/agent/upgrade/number").as_u64().unwrap_or(0) > before).then_some(()));
        }
        node.same((node.keeper(), node.pids("steady")), (keeper, pids.clone()));
    }
    assert!(node.since(0, &["upgraded"]).len() >= 10);
    // One more, so that nothing is under way.
    node.until("a last one", || (node.upgrade(&binaries[0]).code == Some(0)).then_some(()));
    node.ends_with_all_lines(&[("steady", 2), ("brief", 2)]);
    node.told_once();
}
