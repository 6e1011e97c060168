//! A node of its own for a test: the real binary, a repository, and eyes that look only at /proc and at what is on disk.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::git::alone;
use crate::waiting::{self, Changes, ended};

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A worker's main process, as its environment names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Main {
    pub(crate) slot: String,
    pub(crate) start: u64,
    pub(crate) pid: i32,
    pub(crate) ticks: u64,
}

/// What was found of a root in /proc.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// Live main processes of workers, by slot.
    pub(crate) mains: BTreeMap<String, Vec<Main>>,
    /// Everything else that carries a name of this root: key, main's pid, own pid.
    pub(crate) others: Vec<(String, i32, i32)>,
}

pub(crate) struct Node {
    pub(crate) root: PathBuf,
    pub(crate) source: PathBuf,
    pub(crate) config: PathBuf,
    pub(crate) log: PathBuf,
    keeper: Option<Child>,
    dir: tempfile::TempDir,
}

/// Where `cargo test` puts it: examples/ beside deps/.
pub(crate) fn fixture() -> PathBuf {
    let deps = std::env::current_exe().expect("us");
    let path = deps.parent().and_then(|deps| deps.parent()).expect("a target folder").join("examples/fixture-worker");
    assert!(path.exists(), "{} is missing: `cargo build --example fixture-worker`", path.display());
    path
}

/// By looks in quick succession: times are taken by it, and mostly of processes, which send no word.
pub(crate) fn until<T>(what: &str, patience: Duration, look: impl FnMut() -> Result<T, String>) -> T {
    found(what, patience, waiting::until(None, Duration::from_millis(2), patience, look))
}

fn found<T>(what: &str, patience: Duration, looked: Result<T, String>) -> T {
    looked.unwrap_or_else(|last| panic!("waited {patience:?} in vain for {what}; last seen: {last}"))
}

pub(crate) fn kill(pid: i32, signal: rustix::process::Signal) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        let _gone_already = rustix::process::kill_process(pid, signal);
    }
}

/// State, parent and start of a process; `None` when it is gone.
pub(crate) fn stat(pid: i32) -> Option<(char, i32, u64)> {
    let text = String::from_utf8_lossy(&fs_err::read(format!("/proc/{pid}/stat")).ok()?).into_owned();
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let ppid = fields.next()?.parse().ok()?;
    Some((state, ppid, fields.nth(17)?.parse().ok()?))
}

/// Whether the very process that was seen before lives.
pub(crate) fn lives(pid: i32, ticks: u64) -> bool {
    stat(pid).is_some_and(|(state, _, now)| now == ticks && !matches!(state, 'Z' | 'X'))
}

pub(crate) fn pids() -> Vec<i32> {
    let entries = fs_err::read_dir("/proc").expect("/proc");
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

pub(crate) fn scan(root: &Path) -> Scan {
    let mut scan = Scan::default();
    let ending = format!("@{}", root.display());
    for pid in pids() {
        let Ok(environ) = fs_err::read(format!("/proc/{pid}/environ")) else { continue };
        let name = environ.split(|byte| *byte == 0).find_map(|one| one.strip_prefix(b"SELFSTART_WORKER="));
        let Some(name) = name.and_then(|name| std::str::from_utf8(name).ok()).and_then(|name| name.strip_suffix(&ending)) else { continue };
        let Some((key, main)) = name.rsplit_once(':') else { continue };
        let main: i32 = main.parse().unwrap_or(0);
        let Some((state, _, ticks)) = stat(pid).filter(|(state, ..)| !matches!(state, 'Z' | 'X')) else { continue };
        let _: char = state;
        match key.split_once('#') {
            Some((slot, start)) if main == pid && !key.starts_with("helper:") => {
                let start = start.parse().expect("a start number");
                scan.mains.entry(slot.to_owned()).or_default().push(Main { slot: slot.to_owned(), start, pid, ticks });
            }
            _ => scan.others.push((key.to_owned(), main, pid)),
        }
    }
    scan
}

impl Scan {
    /// Slots with two live main processes at one moment; what ended while we looked is not one.
    pub(crate) fn doubled(&self) -> Vec<Vec<Main>> {
        self.mains.values().filter(|mains| mains.len() > 1 && mains.iter().all(|it| lives(it.pid, it.ticks))).cloned().collect()
    }

    /// The one main process of a slot.
    pub(crate) fn main(&self, slot: &str) -> Option<&Main> {
        self.mains.get(slot).and_then(|mains| mains.first())
    }
}

impl Node {
    /// A repository with a first commit, and a configuration; nothing runs yet.
    pub(crate) fn new(rest: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("chaos").tempdir_in("/tmp").expect("a folder");
        let root = dir.path().join("r");
        let source = dir.path().join("src");
        let config = dir.path().join("config.yaml");
        let log = dir.path().join("log");
        fs_err::create_dir(&source).expect("a folder");
        let node = Self { root, source, config, log, keeper: None, dir };
        node.git(&["init", "-q", "-b", "main"]);
        node.push("first");
        node.configure(rest);
        node
    }

    pub(crate) fn configure(&self, rest: &str) {
        let mut text = String::new();
        let _to_a_string = writeln!(text, "app: chaos\nroot: {}", self.root.display());
        let _to_a_string = writeln!(text, "source: {{repository: {}, branch: main, boot_timeout: 10s}}", self.source.display());
        let _to_a_string = writeln!(text, "release: {{keep: 3, min_free: 0B, confirm: 0s}}");
        text.push_str(
            &rest.replace("{dir}", &self.dir.path().display().to_string()).replace("{fixture}", &fixture().display().to_string()),
        );
        fs_err::write(&self.config, text).expect("config.yaml");
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn git(&self, args: &[&str]) -> String {
        let mut command = Command::new("git");
        let out = alone(command.current_dir(&self.source).args(args)).output().expect("git");
        assert!(out.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    }

    /// Commits one more revision, and returns it.
    pub(crate) fn push(&self, text: &str) -> String {
        fs_err::write(self.source.join("what"), text).expect("a file");
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "-m", text]);
        self.git(&["rev-parse", "HEAD"])
    }

    /// Starts `selfstart run`.
    pub(crate) fn run(&mut self) {
        let log = fs_err::OpenOptions::new().create(true).append(true).open(&self.log).expect("the log").into_parts().0;
        let child = Command::new(env!("CARGO_BIN_EXE_selfstart"))
            .arg("--config")
            .arg(&self.config)
            .arg("run")
            .stdin(Stdio::null())
            .stdout(Stdio::from(log.try_clone().expect("a copy")))
            .stderr(Stdio::from(log))
            .spawn()
            .expect("selfstart");
        self.keeper = Some(child);
    }

    pub(crate) fn keeper_pid(&self) -> i32 {
        i32::try_from(self.keeper.as_ref().expect("it was started").id()).expect("a pid")
    }

    /// The agent, as a child of the keeper.
    pub(crate) fn agent_pid(&self) -> Option<i32> {
        let keeper = self.keeper_pid();
        pids().into_iter().filter(|pid| stat(*pid).is_some_and(|(_, parent, _)| parent == keeper)).find(|pid| {
            let line = fs_err::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|word| word == b"internal-agent") && stat(*pid).is_some_and(|(state, ..)| state != 'Z')
        })
    }

    /// KILLs the keeper and reaps it.
    pub(crate) fn kill_keeper(&mut self) {
        let mut keeper = self.keeper.take().expect("it was started");
        keeper.kill().expect("kill");
        keeper.wait().expect("wait");
    }

    pub(crate) fn selfstart(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_selfstart")).arg("--config").arg(&self.config).args(args).output().expect("selfstart")
    }

    /// What `status --json` says.
    pub(crate) fn status(&self) -> Result<Value, String> {
        let out = self.selfstart(&["status", "--json"]);
        if !out.status.success() {
            return Err(String::from_utf8_lossy(&out.stderr).into_owned());
        }
        serde_json::from_slice(&out.stdout).map_err(|error| error.to_string())
    }

    /// Waits until an agent other than `former` answers.
    pub(crate) fn answered_by_another_than(&self, former: i32, patience: Duration) -> Value {
        until("an agent that answers", patience, || {
            let status = self.status()?;
            if status["agent"]["pid"] == former { Err("the former agent".into()) } else { Ok(status) }
        })
    }

    /// Waits until the deploy is idle, `current` has this revision, and all slots run it with one process each.
    pub(crate) fn settled_on(&self, revision: &str) -> Value {
        // By word of the journal: looks in quick succession would take the processor from what is to settle.
        let changes = Changes::of([self.root.clone(), self.root.join("run")]);
        let looked = waiting::until(Some(&changes), Duration::from_millis(100), PATIENCE, || {
            let status = self.status()?;
            let phase = &status["deploy"]["phase"];
            if phase != "idle" {
                return Err(format!("deploy: {}", status["deploy"]));
            }
            let current = fs_err::read_to_string(self.root.join("current/REVISION")).unwrap_or_default();
            if current.trim() != revision {
                return Err(format!("current has {current}, deploy: {}", status["deploy"]));
            }
            for pool in status["pools"].as_array().ok_or("no pools")? {
                let slots = pool["slots"].as_array().ok_or("no slots")?;
                if pool["wanted"].as_u64() != Some(slots.len() as u64) {
                    return Err(format!("{pool}"));
                }
                if let Some(other) = slots.iter().find(|slot| !slot["revision"].is_null() && slot["revision"] != revision) {
                    return Err(format!("{} {other}", pool["name"]));
                }
            }
            Ok(status)
        });
        found(&format!("everything on {revision}"), PATIENCE, looked)
    }

    /// Every event, oldest first.
    pub(crate) fn events(&self) -> Vec<Value> {
        let text = whole(&self.root.join("run/events.jsonl"));
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// What the node has said, for a failed test.
    pub(crate) fn told(&self) -> String {
        let text = fs_err::read_to_string(&self.log).unwrap_or_default();
        let from = text.char_indices().rev().nth(6000).map_or(0, |(at, _)| at);
        text[from..].to_owned()
    }

    /// Stops politely, and waits until it is over.
    pub(crate) fn stop(&mut self) {
        let mut keeper = self.keeper.take().expect("it was started");
        let pid = keeper.id().cast_signed();
        kill(pid, rustix::process::Signal::TERM);
        assert!(ended(pid, PATIENCE), "waited {PATIENCE:?} in vain for the end of `selfstart run`: {}", self.told());
        keeper.wait().expect("wait");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the last that the node said\n{}", self.told());
            if std::env::var_os("CHAOS_KEEP").is_some() {
                let kept = PathBuf::from(format!("/tmp/chaos-kept-{}", std::process::id()));
                let _for_people = Command::new("cp").arg("-a").arg(self.dir.path()).arg(&kept).status();
                eprintln!("--- kept in {}", kept.display());
            }
        }
        if let Some(mut keeper) = self.keeper.take() {
            let _gone = keeper.kill();
            let _gone = keeper.wait();
        }
        // Until nothing is left: what is killed may have begun something.
        for _ in 0..100 {
            let scan = scan(&self.root);
            // Where a title hides the environment, the working directory says whose it is.
            let releases = self.root.join("releases");
            let here = |pid: &i32| fs_err::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(&releases));
            let mut all: Vec<i32> = pids().into_iter().filter(here).collect();
            all.extend(scan.mains.values().flatten().map(|it| it.pid).chain(scan.others.iter().map(|it| it.2)));
            if all.is_empty() {
                break;
            }
            all.iter().for_each(|pid| kill(*pid, rustix::process::Signal::KILL));
            for pid in all {
                let _else_again = ended(pid, Duration::from_secs(1));
            }
        }
    }
}

/// A rotated file, oldest line first.
pub(crate) fn whole(path: &Path) -> String {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else { return String::new() };
    let mut parts: Vec<(u32, PathBuf)> = fs_err::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let found = entry.file_name().to_str()?.to_owned();
            let number = if found == name { 0 } else { found.strip_prefix(name)?.strip_prefix('.')?.parse().ok()? };
            Some((number, entry.path()))
        })
        .collect();
    parts.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
    parts.iter().filter_map(|(_, path)| fs_err::read(path).ok()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).collect()
}

/// Moments and figures, as they go into the report.
pub(crate) fn figures(times: &[Duration]) -> String {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let median = sorted.get(sorted.len() / 2).copied().unwrap_or_default();
    let most = sorted.last().copied().unwrap_or_default();
    format!("{} measured, median {} ms, max {} ms", sorted.len(), median.as_millis(), most.as_millis())
}
