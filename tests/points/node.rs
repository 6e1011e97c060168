//! A node that lives for half a second.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::git::alone;
use crate::waiting::{self, Changes, ended};

const PATIENCE: Duration = Duration::from_secs(30);

/// So many points fail together when the disk is full (`FULL_FOR` of the gate).
const FAIL_TOGETHER: usize = 6;

/// A repository and a configuration, which many roots are made from, one after the other.
pub(crate) struct Site {
    dir: tempfile::TempDir,
}

impl Site {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("points-").tempdir_in("/tmp").expect("a folder");
        let site = Self { dir };
        run(Command::new("cp").arg(fixture()).arg(site.path("fixture")));
        fs_err::create_dir(site.path("src")).expect("made");
        site.git(&["init", "-q", "-b", "main", "."]);
        fs_err::create_dir(site.path("src/d")).expect("made");
        fs_err::write(site.path("src/d/f"), "x\n").expect("written");
        fs_err::os::unix::fs::symlink("what", site.path("src/link")).expect("linked");
        site.push("zero");
        let here = site.dir.path().display();
        let text = format!(
            "app: points\nroot: {here}/root\nsource: {{repository: {here}/src, branch: main}}\nrelease: {{min_free: 1B, keep: 1, keep_failed: 0, confirm: 0s, linked_dirs: [tmp]}}\nbuild: {{steps: [cp what product]}}\n\
             pools:\n  w: {{command: '{here}/fixture', count: 1, stop: [TERM 5s, KILL], ready: {{after: 20ms}}}}\n"
        );
        fs_err::write(site.path("config.yaml"), text).expect("written");
        site
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.path("root")
    }

    fn git(&self, args: &[&str]) -> String {
        let mut command = Command::new("git");
        run(alone(command.current_dir(self.path("src")).args(args)))
    }

    /// Commits this text, and returns the revision.
    pub(crate) fn push(&self, text: &str) -> String {
        fs_err::write(self.path("src/what"), text).expect("written");
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "-m", text]);
        self.git(&["rev-parse", "HEAD"])
    }

    /// Lets the branch be at this revision.
    pub(crate) fn point_to(&self, revision: &str) {
        self.git(&["update-ref", "refs/heads/main", revision]);
    }

    /// Puts a copy of a root in the place of the one that is there.
    pub(crate) fn put(&self, from: &Path) {
        let _was_none = fs_err::remove_dir_all(self.root());
        run(Command::new("cp").arg("-a").arg(from).arg(self.root()));
    }

    /// Copies the root, whatever goes on in it.
    pub(crate) fn copy(&self, name: &str) -> PathBuf {
        let to = self.path(name);
        let _was_none = fs_err::remove_dir_all(&to);
        run(Command::new("cp").arg("-a").arg(self.root()).arg(&to));
        to
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("POINTS_KEEP").is_some() {
            let kept = PathBuf::from(format!("/tmp/points-kept-{}", std::process::id()));
            let _for_people = Command::new("cp").arg("-a").arg(self.dir.path()).arg(&kept).status();
            eprintln!("--- kept in {}", kept.display());
        }
    }
}

/// What runs at a site.
pub(crate) struct Node<'a> {
    pub(crate) site: &'a Site,
    keeper: Option<Child>,
    changes: Changes,
}

impl<'a> Node<'a> {
    /// Starts `selfstart run` with a gate that only counts.
    pub(crate) fn start(site: &'a Site) -> Self {
        Self::start_under(site, &[])
    }

    /// As [`Self::start`], with something to happen at a point.
    pub(crate) fn start_ordered(site: &'a Site, at: u64, what: &str) -> Self {
        let node = Self::made(site);
        node.order(at, what);
        node.begun(&[])
    }

    /// As [`Self::start`], by these words in front.
    pub(crate) fn start_under(site: &'a Site, prefix: &[&str]) -> Self {
        Self::made(site).begun(prefix)
    }

    fn begun(mut self, prefix: &[&str]) -> Self {
        self.start_again(prefix);
        self
    }

    fn made(site: &'a Site) -> Self {
        let gate = site.path("gate");
        let _was_none = fs_err::remove_dir_all(&gate);
        fs_err::create_dir(&gate).expect("made");
        let changes = Changes::of([site.root(), site.root().join("run")]);
        Self { site, keeper: None, changes }
    }

    pub(crate) fn start_again(&mut self, prefix: &[&str]) {
        let log = fs_err::OpenOptions::new().create(true).append(true).open(self.site.path("agent.log")).expect("a log").into_parts().0;
        let mut command = Command::new("setsid");
        command.args(prefix).arg(env!("CARGO_BIN_EXE_selfstart")).arg("--config").arg(self.site.path("config.yaml")).arg("run");
        command.env("SELFSTART_GATE", self.site.path("gate")).stdin(Stdio::null()).stdout(log.try_clone().expect("cloned")).stderr(log);
        self.keeper = Some(command.spawn().expect("setsid"));
    }

    /// Starts again if the keeper has ended, as systemd would.
    pub(crate) fn mind(&mut self) {
        if self.keeper.as_mut().is_some_and(|keeper| keeper.try_wait().expect("waited").is_some()) {
            self.start_again(&[]);
        }
    }

    /// How many points were passed.
    pub(crate) fn count(&self) -> u64 {
        let text = fs_err::read_to_string(self.site.path("gate/count")).unwrap_or_default();
        text.lines().last().and_then(|line| line.parse().ok()).unwrap_or(0)
    }

    /// Waits until nothing passes the gate any more.
    pub(crate) fn quiet(&self) -> u64 {
        let mut last = self.count();
        loop {
            waiting::pause(Duration::from_millis(60));
            let now = self.count();
            if now == last {
                return now;
            }
            last = now;
        }
    }

    pub(crate) fn order(&self, at: u64, what: &str) {
        // By rename, so that no reader sees half of it.
        let (new, order) = (self.site.path("gate/order.new"), self.site.path("gate/order"));
        fs_err::write(&new, format!("{at} {what}")).expect("written");
        fs_err::rename(new, order).expect("renamed");
    }

    pub(crate) fn cli(&self, args: &[&str]) -> (Option<i32>, String) {
        let mut command = Command::new("timeout");
        command.args(["-k", "1", "60", env!("CARGO_BIN_EXE_selfstart"), "--config"]).arg(self.site.path("config.yaml")).args(args);
        let out = command.stdin(Stdio::null()).output().expect("selfstart");
        (out.status.code(), String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr))
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.cli(&["status", "--json"]).1).unwrap_or(Value::Null)
    }

    /// Waits until the deploy is idle and every worker ready; returns the live revision. A keeper that has ended is started again.
    #[track_caller]
    pub(crate) fn settled(&mut self) -> String {
        let mut seen = Value::Null;
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            self.mind();
            let looked = waiting::until(Some(&self.changes), Duration::from_millis(30), Duration::from_millis(500), || {
                seen = self.status();
                let deploy = &seen["deploy"];
                let pools = seen["pools"].as_array().cloned().unwrap_or_default();
                let ready = !pools.is_empty() && pools.iter().all(|pool| pool["ready"] == pool["wanted"]);
                let live = deploy["live"]["revision"].as_str();
                match live {
                    Some(live) if deploy["phase"] == "idle" && ready => Ok(live.to_owned()),
                    _ => Err(String::new()),
                }
            });
            if let Ok(live) = looked {
                return live;
            }
            assert!(std::time::Instant::now() < end, "waited in vain for a settled node: {}\n{}", seen["deploy"], self.said());
        }
    }

    pub(crate) fn said(&self) -> String {
        let text = fs_err::read_to_string(self.site.path("agent.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Ends all of it, at once.
    pub(crate) fn end(&mut self) {
        if let Some(mut keeper) = self.keeper.take() {
            let _gone = keeper.kill();
            let _gone = keeper.wait();
        }
        for _ in 0..100 {
            let left = of(&self.site.dir.path().display().to_string());
            if left.is_empty() {
                return;
            }
            left.iter().for_each(|(pid, _)| kill(*pid));
            for (pid, _) in left {
                let _else_again = ended(pid, Duration::from_secs(1));
            }
        }
        panic!("something does not end: {:?}", of(&self.site.dir.path().display().to_string()));
    }

    /// Holds that the live release is whole and `current`, each worker there once and in it, and nothing else.
    #[track_caller]
    pub(crate) fn is_tidy(&mut self, live: &str, text: &str, removals: Removals) {
        whole(&self.site.root(), &BTreeMap::from([(live.to_owned(), text.to_owned())]));
        let root = self.site.root();
        let here = fs_err::canonicalize(root.join("current")).expect("current");
        let look = || {
            let workers: Vec<_> = of(&root.display().to_string()).into_iter().filter(|(_, name)| name.contains('#')).collect();
            let [(pid, name)] = &workers[..] else { return Err(format!("workers: {workers:?}")) };
            let cwd = fs_err::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
            if !name.starts_with("w/0#") || cwd != here {
                return Err(format!("{name} in {}", cwd.display()));
            }
            let left = leftovers(&root, removals);
            if left.is_empty() { Ok(()) } else { Err(format!("left over: {left:?}")) }
        };
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            // It may be killed in the tidying that comes after the deploy.
            self.mind();
            match waiting::until(Some(&self.changes), Duration::from_millis(30), Duration::from_millis(500), look) {
                Ok(()) => return,
                Err(last) => assert!(std::time::Instant::now() < end, "{last}\n{}", self.said()),
            }
        }
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the last that the node said\n{}", self.said());
        }
        self.end();
    }
}

/// Holds that `current` is one of these releases, by revision and text, whole.
#[track_caller]
pub(crate) fn whole(root: &Path, allowed: &BTreeMap<String, String>) -> String {
    let read = |name: &str| fs_err::read_to_string(root.join("current").join(name)).unwrap_or_else(|error| format!("{error}"));
    let revision = read("REVISION").trim().to_owned();
    let text = allowed.get(&revision).unwrap_or_else(|| panic!("current is of `{revision}`, not one of {allowed:?}"));
    let got = [read("what"), read("link"), read("product"), read("d/f")];
    assert_eq!(got, [text.clone(), text.clone(), text.clone(), "x\n".to_owned()], "of {revision}");
    let tmp = fs_err::read_link(root.join("current/tmp")).unwrap_or_default();
    assert!(tmp.ends_with("shared/tmp") && root.join("current/tmp").is_dir(), "current/tmp is {}", tmp.display());
    revision
}

/// Whether what is no longer needed must be gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removals {
    Done,
    MayHaveFailed,
}

/// What has no place in a root where nothing is under way.
fn leftovers(root: &Path, removals: Removals) -> Vec<String> {
    let mut left = Vec::new();
    let names = |below: &str| -> Vec<String> {
        let entries = fs_err::read_dir(root.join(below)).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    };
    // What is live, what was live before (`rollback` goes to it), and their marks.
    let (mut releases, mut marks) = (names("releases"), names("run/built"));
    // What went last may wait there as the base of the next one.
    if let Some(at) = releases.iter().position(|name| name.starts_with(".spare-")) {
        releases.remove(at);
    }
    releases.sort();
    marks.sort();
    let wanted: Vec<String> = releases.iter().map(|name| format!("{name}.json")).collect();
    if removals == Removals::MayHaveFailed {
        // Told, and tried again: with the next deploy, or after some seconds, or at the next start. So many points fail together, so in a
        // chain as many prunes may fail one after the other.
        releases.retain(|name| !name.starts_with(".trash-"));
        let too_many = releases.len() > 2 + FAIL_TOGETHER || releases.iter().any(|name| name.starts_with('.') || name.ends_with(".tmp"));
        if too_many || !wanted.iter().filter(|name| !name.starts_with('.')).all(|name| marks.contains(name)) {
            left.extend(releases.into_iter().chain(marks));
        }
    } else if releases.len() != 2 || marks != wanted {
        left.extend(releases.into_iter().chain(marks));
    }
    for below in ["", "run", "run/journal", "shared", "log"] {
        let odd = |name: &String| name.contains(".tmp-") || name.ends_with(".new") || name.contains(".bad-");
        left.extend(names(below).into_iter().filter(odd));
    }
    left
}

/// Processes that carry this folder in the name that selfstart gave them, or were started on a configuration there.
fn of(folder: &str) -> Vec<(i32, String)> {
    let entries = fs_err::read_dir("/proc").expect("/proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        let stat = fs_err::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let state = stat.rsplit_once(") ")?.1.chars().next()?;
        let environ = fs_err::read(format!("/proc/{pid}/environ")).ok()?;
        let mut found = None;
        for one in environ.split(|byte| *byte == 0) {
            let one = String::from_utf8_lossy(one);
            if let Some(name) = one.strip_prefix("SELFSTART_WORKER=").filter(|name| name.contains(folder)) {
                found = Some(name.to_owned());
            } else if one.starts_with("SELFSTART_GATE=") && one.contains(folder) && found.is_none() {
                found = Some(String::from("selfstart"));
            }
        }
        found.filter(|_| state != 'Z' && state != 'X').map(|name| (pid, name))
    })
    .collect()
}

fn kill(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _gone_already = kill_process(pid, Signal::KILL);
    }
}

fn fixture() -> PathBuf {
    let us = std::env::current_exe().expect("us");
    let path = us.parent().and_then(Path::parent).expect("a target folder").join("examples/fixture-worker");
    assert!(path.exists(), "{} is missing: `cargo build --example fixture-worker`", path.display());
    path
}

#[track_caller]
pub(crate) fn run(command: &mut Command) -> String {
    let out = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}
