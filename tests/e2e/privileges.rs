//! Root keeps, `selfstart` decides, `nobody` works: who runs as whom, and what nobody but root may.
//!
//! The user `selfstart` is one of a private /etc/passwd in a mount namespace of the node's own: nothing of this machine is changed. Root
//! is needed, and said to be.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::node::{Node, QUICK, Said, children_of, said, signal_to, title};

/// Nobody's of this machine.
const AGENT: u32 = 4_242_010;
const READERS: u32 = 4_242_011;

const NOBODY: &str = "65534";

/// Whether the test can be: else it says so.
fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: only root can give an agent a user of its own");
    }
    root
}

/// A node on a machine that has the user `selfstart`.
struct Apart(Node);

impl Apart {
    fn new() -> Self {
        let node = Node::new();
        let accounts = |file: &str, line: &str| {
            node.write(file, &format!("{}{line}\n", fs_err::read_to_string(format!("/etc/{file}")).expect("read")))
        };
        accounts("passwd", &format!("selfstart:x:{AGENT}:{AGENT}::/nonexistent:/usr/sbin/nologin"));
        accounts("group", &format!("selfstart:x:{AGENT}:"));
        node.write("in", "mount --bind \"$0/passwd\" /etc/passwd && mount --bind \"$0/group\" /etc/group && exec \"$@\"\n");
        node.write("secret", "sesame\n");
        chown(node.path("secret"), Some(0), Some(AGENT)).expect("given");
        fs_err::set_permissions(node.path("secret"), std::fs::Permissions::from_mode(0o640)).expect("closed");
        Self(node)
    }

    fn configure(&self, user: &str, pools: &str) {
        self.0.configure_raw(&format!(
            "app: e2e\nroot: @DIR@/root\n{user}source: {{repository: @DIR@/src, branch: main}}\nrelease: {{min_free: 1MB, confirm: 0s, keep: 2}}\n\
             control: {{group: {READERS}}}\nbuild: {{steps: ['id -u >built', 'test ! -e hold || sleep 600']}}\npools:\n{pools}\n"
        ));
    }

    fn start(&self) {
        let (script, dir) = (self.0.path("in"), self.0.path(""));
        let script = fs_err::read_to_string(script).expect("written");
        let dir = dir.display().to_string();
        self.0.start_with(&["unshare", "-m", "sh", "-c", script.trim(), dir.trim_end_matches('/')]);
    }

    #[track_caller]
    fn boot(&self) {
        self.start();
        self.0.until("the control socket", || self.0.root("run/control.sock").exists().then_some(()));
        self.0.cli(&["wait", "--ready", "--timeout", "40s"]).exits(0);
        self.0.idle();
    }

    /// Says something on that machine.
    fn cli(&self, args: &[&str]) -> Said {
        let (script, dir) = (self.0.text("in"), self.0.path("").display().to_string());
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", script.trim(), dir.trim_end_matches('/'), env!("CARGO_BIN_EXE_selfstart"), "--config"]);
        said(command.arg(self.0.path("config.yaml")).args(args))
    }

    fn agent(&self) -> i32 {
        self.0.until("an agent", || self.0.look("/agent/pid").as_i64().and_then(|pid| i32::try_from(pid).ok()))
    }
}

/// Uid, gid, groups, and capabilities in effect and within reach.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ids {
    uid: String,
    gid: String,
    groups: String,
    effective: String,
    permitted: String,
    no_new_privs: String,
    seccomp: String,
    /// Its filters, which are inherited.
    filters: String,
}

fn ids(pid: i32) -> Option<Ids> {
    let status = fs_err::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let lines: BTreeMap<&str, String> = status
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name, value.split_whitespace().collect::<Vec<_>>().join(" ")))
        .collect();
    let line = |name: &str| lines.get(name).cloned().unwrap_or_default();
    Some(Ids {
        uid: line("Uid"),
        gid: line("Gid"),
        groups: line("Groups"),
        effective: line("CapEff"),
        permitted: line("CapPrm"),
        no_new_privs: line("NoNewPrivs"),
        seccomp: line("Seccomp"),
        filters: line("Seccomp_filters"),
    })
}

const NONE: &str = "0000000000000000";

fn four(number: &str) -> String {
    [number; 4].join(" ")
}

/// Reads a file as `nobody`, with the group that its login has.
fn as_nobody(path: &Path) -> Option<i32> {
    said(Command::new("setpriv").args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--", "cat"]).arg(path)).code
}

/// Holds that everybody of this node is who it must be; returns how many were looked at.
#[track_caller]
fn everybody_is_who_it_must_be(node: &Apart) -> usize {
    let (keeper, agent) = (node.0.keeper(), node.agent());
    // What the keeper has of the machine (a container, say), all others have.
    let keepers = ids(keeper).expect("it lives");
    let mut seen = 0;
    for pid in children_of(keeper).into_iter().chain(node.0.processes()).chain([keeper]) {
        let (Some(ids), title) = (ids(pid), title(pid)) else { continue };
        seen += 1;
        if pid == keeper {
            assert_eq!(ids.uid, four("0"), "{title}");
        } else if pid == agent {
            let own = AGENT.to_string();
            assert_eq!((ids.uid.as_str(), ids.gid.as_str(), ids.groups.as_str()), (four(&own).as_str(), four(&own).as_str(), own.as_str()));
            assert_eq!((ids.effective.as_str(), ids.permitted.as_str(), ids.no_new_privs.as_str()), (NONE, NONE, "1"));
            // Since before it was executed, so that no process of its user was ever without.
            assert_eq!((ids.seccomp.as_str(), ids.filters == keepers.filters), ("2", false), "{ids:?}");
        } else if title.contains("internal-rights") {
            // Short-lived, the keeper's own, and root: what it does is in src/rights.
            assert_eq!(ids.uid, four("0"));
        } else if crate::node::alive(pid) {
            assert_eq!((ids.uid.clone(), ids.gid.clone(), ids.groups.clone()), (four(NOBODY), four(NOBODY), NOBODY.to_owned()), "{title}");
            assert_eq!((ids.effective.as_str(), ids.permitted.as_str()), (NONE, NONE), "{title}");
            assert_eq!(
                (ids.no_new_privs, ids.seccomp, ids.filters),
                (keepers.no_new_privs.clone(), keepers.seccomp.clone(), keepers.filters.clone()),
                "{title}"
            );
        }
    }
    seen
}

#[test]
fn a_node_lives_its_whole_life_with_an_agent_that_is_not_root() {
    if !root() {
        return;
    }
    let node = Apart::new();
    let pools = format!(
        "  w: {{shell: 'echo \"S=$S\"; exec @FIXTURE@', count: 2, env: {{S: '${{file:@DIR@/secret}}'}}, limits: {{memory: 500MB}}, {QUICK}}}\n  \
         jobs: {{command: '@FIXTURE@ --resque slow SleepJob 600000', queue: {{kind: resque}}, stale_job_timeout: 1s, {QUICK}}}\n  \
         left: {{shell: 'exec @FIXTURE@ --daemonise @DIR@/left --leak 100 up-to 60', memory: {{ladder: [1GB x2/2 drain], every: 200ms}}, {QUICK}}}"
    );
    // What workers write beside their release.
    fs_err::set_permissions(node.0.path(""), std::fs::Permissions::from_mode(0o1777)).expect("opened");
    node.configure("user: nobody\n", &pools);
    node.boot();
    assert!(everybody_is_who_it_must_be(&node) >= 5);
    let checked = node.cli(&["check", "--offline"]).exits(0);
    assert!(!checked.out.contains("agent: "), "{checked:?}");
    node.0.until("the secret in its environment", || node.0.text("root/log/w.0.log").contains("S=sesame").then_some(()));
    let release = node.0.root("current");
    node.0.same(fs_err::read_to_string(release.join("built")).expect("built").trim().to_owned(), NOBODY.to_owned());

    // What is whose.
    let of = |below: &str| {
        let found = fs_err::symlink_metadata(node.0.root(below)).expect("there");
        (found.uid(), found.gid(), found.mode() & 0o7777)
    };
    node.0.same(of(""), (0, AGENT, 0o1775));
    node.0.same((of("repo.git").0, of("releases").0, of("shared").0), (65534, 65534, 65534));
    node.0.same((of("run").0, of("log").0, of("current").0, of("rights.json").0), (AGENT, AGENT, AGENT, 0));
    node.0.same(of("run/control.sock"), (AGENT, READERS, 0o660));
    node.0.same((of("run/events.jsonl"), of("log/w.0.log")), ((AGENT, READERS, 0o640), (AGENT, READERS, 0o640)));
    node.0.same((of("run/state.json").1, of("run/config.good.yaml").1), (AGENT, AGENT));
    for closed in ["run/state.json", "run/config.good.yaml", "run/events.jsonl", "log/w.0.log", "../secret"] {
        node.0.same(as_nobody(&node.0.root(closed)), Some(1));
    }
    // Nor can it change what is not its own.
    for below in ["x", "run/x", "log/x", "run/journal/x"] {
        let touch = said(
            Command::new("setpriv").args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--", "touch"]).arg(node.0.root(below)),
        );
        node.0.same((touch.code, node.0.root(below).exists()), (Some(1), false));
    }

    // A stale job's child goes by the keeper's hand, and its master stays.
    let master = node.0.pid("jobs");
    node.0.told(0, "stale_job", "SleepJob");
    node.0.until("another job", || children_of(master).first().copied());
    node.0.same(node.0.pid("jobs"), master);

    // A build and a git helper, while they run; then pushes, a rollback, and what goes.
    let first = node.0.live();
    node.0.commit(&[("hold", "")]);
    node.0.cli(&["deploy", "--no-wait"]).exits(0);
    let builds = || node.0.processes().into_iter().filter(|pid| title(*pid) == "sleep 600").collect::<Vec<_>>();
    node.0.until("a build step", || builds().first().copied());
    everybody_is_who_it_must_be(&node);
    fs_err::remove_file(node.0.path("src/hold")).expect("removed");
    for text in ["second\n", "third\n"] {
        let pushed = node.0.commit(&[("README", text)]);
        builds().into_iter().for_each(|pid| signal_to(pid, Signal::KILL));
        node.0.until("the push", || {
            node.0.cli(&["deploy"]);
            (node.0.live().0 == pushed).then_some(())
        });
    }
    node.0.told(0, "release_removed", &first.1);
    assert!(!node.0.root("releases").join(&first.1).exists());
    node.0.cli(&["releases"]).exits(0).says(&["w/0", "w/1"]);
    node.0.cli(&["rollback"]).exits(0);
    node.0.cli(&["unhold"]).exits(0);
    node.0.idle();
    everybody_is_who_it_must_be(&node);

    // The agent is killed, and the next one goes on with the same workers.
    let (agent, workers) = (node.agent(), node.0.pids("w"));
    signal_to(agent, Signal::KILL);
    node.0.until("another agent", || {
        let pid = node.0.look("/agent/pid").as_i64();
        (pid.is_some() && pid != Some(i64::from(agent))).then_some(())
    });
    node.0.same(node.0.pids("w"), workers.clone());
    everybody_is_who_it_must_be(&node);

    // So is the keeper.
    signal_to(node.0.keeper(), Signal::KILL);
    node.0.ended();
    node.boot();
    node.0.same(node.0.pids("w"), workers);
    everybody_is_who_it_must_be(&node);

    // A reload with another group and another pool.
    let more = format!("{pools}\n  more: {{command: '@FIXTURE@', {QUICK}}}");
    node.configure("user: nobody\n", &more);
    let text = node.0.text("config.yaml").replace(&READERS.to_string(), "4242012");
    node.0.configure_raw(&text);
    node.0.cli(&["reload"]).exits(0).says(&["pools.more", "control"]);
    node.0.same((of("run/control.sock").1, of("run/events.jsonl").1, of("log/w.0.log").1), (4_242_012, 4_242_012, 4_242_012));
    node.0.state("more", "ready");
    everybody_is_who_it_must_be(&node);
    // A reload that others could have written changes nothing.
    fs_err::set_permissions(node.0.path("config.yaml"), std::fs::Permissions::from_mode(0o666)).expect("opened");
    node.0.cli(&["reload"]).exits(78).says(&["can be written by others than root", "go-w"]);
    fs_err::set_permissions(node.0.path("config.yaml"), std::fs::Permissions::from_mode(0o644)).expect("closed");
    node.0.cli(&["reload"]).exits(0);
    node.0.signal_keeper(Signal::TERM);
    node.0.same(node.0.ended(), Some(0));
    let left = node.0.processes();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_node_that_was_roots_is_taken_over_and_nothing_behind_a_link_is() {
    if !root() {
        return;
    }
    let node = Apart::new();
    node.configure("user: nobody\n", &format!("  w: {{shell: 'echo hello; exec @FIXTURE@', {QUICK}}}"));
    // As it was: all is root's.
    node.0.boot();
    let before = (node.0.live(), node.0.mark());
    node.0.same(ids(node.agent()).map(|ids| ids.uid), Some(four("0")));
    let workers = node.0.pids("w");
    signal_to(node.0.keeper(), Signal::KILL);
    node.0.ended();
    // What is somebody else's, and what only looks like ours.
    node.0.write("theirs", "");
    fs_err::hard_link(node.0.path("theirs"), node.0.root("log/second.log")).expect("a second name");
    symlink(node.0.path("theirs"), node.0.root("log/link.log")).expect("a link");
    node.0.write("root/log/given.log", "");
    chown(node.0.root("log/given.log"), Some(65534), None).expect("given");
    node.boot();
    node.0.same(ids(node.agent()).map(|ids| ids.uid), Some(four(&AGENT.to_string())));
    node.0.same((node.0.live(), node.0.pids("w")), (before.0.clone(), workers));
    let of = |path: &Path| fs_err::symlink_metadata(path).map(|found| found.uid()).expect("there");
    node.0.same(of(&node.0.path("theirs")), 0);
    node.0.same(of(&node.0.root("log/given.log")), 65534);
    for below in ["run/state.json", "run/events.jsonl", "run/lock", "run/journal/deploy.json", "log/w.0.log", "current"] {
        node.0.same((below, of(&node.0.root(below))), (below, AGENT));
    }
    // It goes on writing what was there.
    node.0.commit(&[("README", "second\n")]);
    node.0.cli(&["deploy"]).exits(0);
    assert!(node.0.since(before.1, &["deploy_failed", "trouble"]).is_empty());
    node.0.signal_keeper(Signal::TERM);
    node.0.same(node.0.ended(), Some(0));

    // Where it has a user of its own already, what it spoils does not make it root: no agent is started, and the reason is said.
    fs_err::remove_dir_all(node.0.root("log")).expect("removed");
    fs_err::create_dir(node.0.path("elsewhere")).expect("made");
    symlink(node.0.path("elsewhere"), node.0.root("log")).expect("planted");
    lchown(node.0.root("log"), Some(AGENT), None).expect("planted");
    node.start();
    node.0.same(node.0.ended(), Some(78));
    assert!(node.0.text("agent.log").contains("is a link that user 4242010 made"), "{}", node.0.text("agent.log"));
    node.0.same(of(&node.0.path("elsewhere")), 0);
}

#[test]
fn the_agent_stays_root_where_it_could_not_do_its_work_and_says_what_to_change() {
    if !root() {
        return;
    }
    let node = Apart::new();
    let pool = format!("  w: {{command: '@FIXTURE@', env: {{S: '${{file:@DIR@/secret}}'}}, {QUICK}}}");
    node.configure("user: nobody\n", &pool);
    fs_err::set_permissions(node.0.path("secret"), std::fs::Permissions::from_mode(0o400)).expect("closed");
    node.boot();
    node.0.same(ids(node.agent()).map(|ids| ids.uid), Some(four("0")));
    let note = node.0.look("/notes/0").as_str().unwrap_or_default().to_owned();
    assert!(note.contains("may not read") && note.contains("chgrp selfstart") && note.contains("0640"), "{note}");
    node.cli(&["check", "--offline"]).exits(0).says(&["agent: runs as root: user `selfstart` may not read", "chgrp selfstart"]);
    node.0.cli(&["check", "--offline"]).exits(0).says(&["there is no system user `selfstart`", "selfstart install"]);
    node.0.signal_keeper(Signal::TERM);
    node.0.same(node.0.ended(), Some(0));
    // Once it may, it is not root any more; and from then on what it may not read is no reason to make it root again.
    fs_err::set_permissions(node.0.path("secret"), std::fs::Permissions::from_mode(0o640)).expect("opened");
    node.boot();
    node.0.same(ids(node.agent()).map(|ids| ids.uid), Some(four(&AGENT.to_string())));
    node.0.signal_keeper(Signal::TERM);
    node.0.same(node.0.ended(), Some(0));
    fs_err::set_permissions(node.0.path("secret"), std::fs::Permissions::from_mode(0o400)).expect("closed");
    node.start();
    node.0.same(node.0.ended(), Some(78));
    fs_err::set_permissions(node.0.path("secret"), std::fs::Permissions::from_mode(0o640)).expect("opened");

    // A configuration that is broken is not a way to be root, nor to start anybody else: the last good one is run, as before.
    node.0.write("config.yaml", &format!("{}\nnonsense: 1\n", node.0.text("config.yaml")));
    node.start();
    node.0.until("the control socket", || node.0.root("run/control.sock").exists().then_some(()));
    node.0.state("w", "ready");
    node.0.same(ids(node.agent()).map(|ids| ids.uid), Some(four(&AGENT.to_string())));
    everybody_is_who_it_must_be(&node);
    node.0.signal_keeper(Signal::TERM);
    node.0.same(node.0.ended(), Some(0));
}

#[test]
fn a_configuration_that_others_can_write_is_not_run_and_what_runs_is_minded() {
    if !root() {
        return;
    }
    let node = Apart::new();
    node.configure("user: nobody\n", &format!("  w: {{command: '@FIXTURE@', count: 2, {QUICK}}}"));
    let mode = |path: &str, mode: u32| fs_err::set_permissions(node.0.path(path), std::fs::Permissions::from_mode(mode)).expect("changed");
    // Where there is nothing to be minded nothing is started.
    for (path, wrong) in [("config.yaml", 0o664), ("config.yaml", 0o646), ("", 0o777)] {
        let right = fs_err::metadata(node.0.path(path)).expect("there").mode() & 0o7777;
        mode(path, wrong);
        node.start();
        node.0.same(node.0.ended(), Some(78));
        node.cli(&["check", "--offline"]).exits(78).says(&["agent: is not started", "can be written by others than root"]);
        let log = node.0.text("agent.log");
        let said = log.lines().rev().find(|line| line.contains("no agent is started")).unwrap_or_default().to_owned();
        assert!(said.contains("can be written by others than root"), "{said}");
        mode(path, right);
    }
    chown(node.0.path("config.yaml"), Some(65534), None).expect("given");
    node.start();
    node.0.same(node.0.ended(), Some(78));
    assert!(node.0.text("agent.log").contains("belongs to user 65534"));
    chown(node.0.path("config.yaml"), Some(0), None).expect("taken back");

    // With workers the last good one is run; nothing that others could have written is.
    node.boot();
    let (good, workers) = (node.0.text("config.yaml"), node.0.pids("w"));
    signal_to(node.0.keeper(), Signal::KILL);
    node.0.ended();
    node.0.write("config.yaml", &good.replace("pools:\n", "pools:\n  evil: {command: 'sleep 4242'}\n").replace("count: 2", "count: 1"));
    mode("config.yaml", 0o646);
    node.boot();
    let as_before = || {
        node.0.same(node.0.pids("w"), workers.clone());
        let note = node.0.look("/notes/0").as_str().unwrap_or_default().to_owned();
        assert!(note.contains("is not believed, so") && note.contains("can be written by others than root"), "{note}");
        assert!(!node.0.processes().into_iter().any(|pid| title(pid) == "sleep 4242"));
        everybody_is_who_it_must_be(&node);
    };
    as_before();
    assert!(node.0.text("agent.log").contains("the configuration is not believed, and the last good one is run: "));
    node.0.told(0, "config_refused", "is not believed");
    node.0.cli(&["reload"]).exits(78).says(&["can be written by others than root", "go-w"]);
    // The next agent does not believe it either.
    let agent = node.agent();
    signal_to(agent, Signal::KILL);
    node.0.until("another agent", || node.0.look("/agent/pid").as_i64().filter(|pid| *pid != i64::from(agent)));
    as_before();
    // Nor does one that comes after the configuration was spoiled while all ran.
    node.0.write("config.yaml", &good);
    mode("config.yaml", 0o644);
    node.0.cli(&["reload"]).exits(0);
    node.0.write("config.yaml", &good.replace("count: 2", "count: 1"));
    mode("config.yaml", 0o664);
    let agent = node.agent();
    signal_to(agent, Signal::KILL);
    node.0.until("another agent", || node.0.look("/agent/pid").as_i64().filter(|pid| *pid != i64::from(agent)));
    as_before();
    // One that leads elsewhere finds no record of root's there that is of this configuration.
    signal_to(node.0.keeper(), Signal::KILL);
    node.0.ended();
    let elsewhere = node.0.path("elsewhere");
    fs_err::create_dir(&elsewhere).expect("made");
    fs_err::copy(node.0.root("rights.json"), elsewhere.join("rights.json")).expect("copied");
    node.0.write(
        "config.yaml",
        &good.replace(&format!("root: {}", node.0.path("root").display()), &format!("root: {}", elsewhere.display())),
    );
    mode("config.yaml", 0o646);
    node.start();
    node.0.same(node.0.ended(), Some(78));
    node.0.write("config.yaml", &good);
    mode("config.yaml", 0o644);
    node.boot();
    node.0.same(node.0.pids("w"), workers.clone());
    node.0.signal_keeper(Signal::TERM);
    node.0.same(node.0.ended(), Some(0));
}

#[test]
fn pools_of_two_users_have_nothing_of_each_other() {
    if !root() {
        return;
    }
    /// Nobody's of this machine, too.
    const OTHER: u32 = 4_242_020;
    let node = Apart::new();
    node.0.write("passwd", &format!("{}other:x:{OTHER}:{OTHER}::/nonexistent:/usr/sbin/nologin\n", node.0.text("passwd")));
    node.0.write("group", &format!("{}other:x:{OTHER}:\n", node.0.text("group")));
    node.0.write("theirs", "open sesame\n");
    chown(node.0.path("theirs"), Some(0), Some(AGENT)).expect("given");
    fs_err::set_permissions(node.0.path("theirs"), std::fs::Permissions::from_mode(0o640)).expect("closed");
    let pool = |name: &str, user: &str, secret: &str| {
        // What it can see of the other's environment, and of its secret's file, which neither may read.
        let look = "for p in /proc/[0-9]*/environ; do tr \\\\0 \\\\n <$p; done 2>/dev/null | grep ^OF_ | sort -u; cat @DIR@/secret @DIR@/theirs 2>&1 | grep -c denied";
        format!(
            "  {name}: {{shell: 'sleep 0.2; echo SEEN $({look}); exec @FIXTURE@', {user}env: {{OF_{name}: '${{file:@DIR@/{secret}}}'}}, {QUICK}}}"
        )
    };
    node.configure("user: nobody\n", &format!("{}\n{}", pool("a", "", "secret"), pool("b", "user: other, ", "theirs")));
    node.boot();
    let (a, b) = (node.0.pid("a"), node.0.pid("b"));
    node.0.same((ids(a).map(|ids| ids.uid), ids(b).map(|ids| ids.uid)), (Some(four(NOBODY)), Some(four(&OTHER.to_string()))));
    let seen = |log: &str, nth: usize| {
        node.0.until("what it sees", || node.0.text(log).lines().filter(|line| line.contains("SEEN")).nth(nth).map(str::to_owned))
    };
    // Both again, each with the other there.
    for log in ["root/log/a.0.log", "root/log/b.0.log"] {
        seen(log, 0);
    }
    node.0.cli(&["restart"]).exits(0);
    for (log, own, others) in [("root/log/a.0.log", "OF_a=sesame", "OF_b"), ("root/log/b.0.log", "OF_b=open sesame", "OF_a")] {
        let said = seen(log, 1);
        assert!(said.contains(own) && !node.0.text(log).contains(others), "{said}");
        assert!(said.trim_end().ends_with(" 2"), "{said}");
    }

    // After the death of the keeper: each is its own pool's, and one that calls itself the other's harms itself only.
    let workers = (node.0.pids("a"), node.0.pids("b"));
    signal_to(node.0.keeper(), Signal::KILL);
    node.0.ended();
    let root = node.0.path("root");
    let calls_itself = |key: &str| {
        let script = format!("exec env SELFSTART_WORKER={key}:$$@{} sleep 4243", root.display());
        let child = Command::new("setpriv")
            .args(["--reuid", &OTHER.to_string(), "--regid", &OTHER.to_string(), "--clear-groups", "--", "sh", "-c", &script])
            .spawn()
            .expect("setpriv");
        let pid = i32::try_from(child.id()).expect("a pid");
        node.0.until("its name", || (title(pid) == "sleep 4243").then_some(()));
        (child, pid)
    };
    let (mut impostor, pid) = calls_itself("a/7#99");
    // Of a pool that is not configured any more: ended, as that has no slots.
    let (mut left, _) = calls_itself("gone/0#1");
    node.boot();
    node.0.same((node.0.pids("a"), node.0.pids("b")), workers);
    let said = format!("process {pid} is ended: it calls itself a/7#99");
    node.0.until("a word of it", || node.0.text("agent.log").contains(&said).then_some(()));
    assert!(!node.0.cli(&["status"]).exits(0).out.contains("a/7"));
    assert_eq!(impostor.wait().expect("its end").signal(), Some(Signal::KILL.as_raw()));
    assert!(node.0.until("the end of a removed pool's", || left.try_wait().expect("looked")).signal().is_some());
    // They go on as who they are, also under a new program.
    let agent = node.agent();
    node.0.signal_keeper(Signal::USR2);
    node.0.told(0, "upgraded", "has taken over");
    node.0.until("another agent", || node.0.look("/agent/pid").as_i64().filter(|pid| *pid != i64::from(agent)));
    let own = AGENT.to_string();
    node.0.same(ids(node.agent()).map(|ids| (ids.uid, ids.no_new_privs, ids.seccomp)), Some((four(&own), "1".into(), "2".into())));
    let (a, b) = (node.0.pid("a"), node.0.pid("b"));
    node.0.same((ids(a).map(|ids| ids.uid), ids(b).map(|ids| ids.uid)), (Some(four(NOBODY)), Some(four(&OTHER.to_string()))));
    // A pool gets another user, and the keeper dies before its workers are all of that one: none is left beside its successor.
    let config = node.0.text("config.yaml");
    node.0.write("config.yaml", &config.replace("user: other, ", ""));
    signal_to(node.0.keeper(), Signal::KILL);
    node.0.ended();
    node.boot();
    node.0.same((node.0.pid("a"), crate::node::alive(b)), (a, false));
    node.0.until("a worker of the new user", || {
        node.0.pids("b").first().filter(|pid| ids(**pid).is_some_and(|ids| ids.uid == four(NOBODY))).copied()
    });
    node.0.signal_keeper(Signal::TERM);
    node.0.same(node.0.ended(), Some(0));
}

#[test]
fn the_memory_of_what_has_left_its_worker_counts_for_an_agent_that_may_not_look_into_it() {
    if !root() {
        return;
    }
    let node = Apart::new();
    node.configure(
        "user: nobody\n",
        &format!(
            "  w: {{shell: '( setsid sh -c \"exec @FIXTURE@ --leak 200 up-to 60\" & ); exec @FIXTURE@', \
             memory: {{ladder: [40MB x2/2 drain], every: 200ms}}, {QUICK}}}"
        ),
    );
    node.boot();
    let end = node.0.told(0, "worker_ended", "40 MB was passed in 2 of 2 samples (");
    node.0.same(end["verdict"].as_str().map(str::to_owned), Some("memory".to_owned()));
}
