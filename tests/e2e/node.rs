//! A node: an app's repository, a configuration, a keeper in a session of its own, and eyes on all of it.

use std::cell::RefCell;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::git::alone;
use crate::waiting::{self, Changes, ended};

/// The longest that a condition may take to come true. Far more than any takes: the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

/// How often a condition is looked at that no file tells of: a process, an answer.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Pools that are quick: ready after 50 ms.
pub(crate) const QUICK: &str = "ready: {after: 50ms}";

/// One app on one node, in a temporary folder: `src` is its repository, `root` what selfstart makes of it.
pub(crate) struct Node {
    dir: tempfile::TempDir,
    keeper: RefCell<Option<Child>>,
}

/// What a command said.
#[derive(Clone, Debug)]
pub(crate) struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
    pub took: Duration,
}

impl Said {
    /// Holds that the command ended with this code.
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        self
    }

    /// Holds that it said each of these, on either stream.
    #[track_caller]
    pub(crate) fn says(self, texts: &[&str]) -> Self {
        for text in texts {
            assert!(self.out.contains(text) || self.err.contains(text), "`{text}` is not in {self:?}");
        }
        self
    }
}

impl Node {
    /// A repository with `worker` (the fixture) in its first commit, and no configuration yet.
    pub(crate) fn new() -> Self {
        // Not below the target folder: sockets want short paths, and `nobody` must get there.
        let dir = tempfile::Builder::new().prefix("e2e-").permissions(mode(0o755)).tempdir_in("/tmp").expect("a directory");
        let node = Self { dir, keeper: RefCell::new(None) };
        // By `cp`: while we wrote it ourselves, a fork of another test could hold it open, and executing it would fail (ETXTBSY).
        run(Command::new("cp").arg(fixture()).arg(node.path("fixture")));
        node.git(&["init", "-q", "-b", "main", "."]);
        node.commit(&[("README", "first\n")]);
        node
    }

    /// A node with these pools (YAML below `pools:`), booted, all workers ready.
    pub(crate) fn with_pools(pools: &str) -> Self {
        let node = Self::new();
        node.configure(pools, "");
        node.boot();
        node
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    pub(crate) fn root(&self, below: &str) -> PathBuf {
        self.path("root").join(below)
    }

    pub(crate) fn text(&self, below: &str) -> String {
        fs_err::read_to_string(self.path(below)).unwrap_or_default()
    }

    pub(crate) fn write(&self, below: &str, text: &str) {
        let path = self.path(below);
        fs_err::create_dir_all(path.parent().expect("below the node")).expect("made");
        fs_err::write(path, text).expect("written");
    }

    /// Writes config.yaml; `@DIR@` is the node's folder, `@FIXTURE@` the worker that misbehaves.
    pub(crate) fn configure(&self, pools: &str, more: &str) {
        let source = if more.contains("source:") { "" } else { "source: {repository: @DIR@/src, branch: main}\n" };
        self.configure_raw(&format!(
            "app: e2e\nroot: @DIR@/root\n{source}{more}\nrelease: {{min_free: 1MB, confirm: 0s}}\npools:\n{pools}\n"
        ));
    }

    pub(crate) fn configure_raw(&self, text: &str) {
        let dir = self.dir.path().display().to_string();
        self.write("config.yaml", &text.replace("@FIXTURE@", "@DIR@/fixture").replace("@DIR@", &dir));
    }

    pub(crate) fn git(&self, args: &[&str]) -> String {
        fs_err::create_dir_all(self.path("src")).expect("made");
        let mut command = Command::new("git");
        run(alone(command.current_dir(self.path("src")).args(args)))
    }

    /// Writes these files (executable when they begin with `#!`), commits, and returns the revision.
    pub(crate) fn commit(&self, files: &[(&str, &str)]) -> String {
        for (path, text) in files {
            self.write(&format!("src/{path}"), text);
            if text.starts_with("#!") {
                fs_err::set_permissions(self.path("src").join(path), mode(0o755)).expect("its mode");
            }
        }
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "--allow-empty", "-m", "a change"]);
        self.git(&["rev-parse", "HEAD"])
    }

    /// A command line of selfstart, for this node, given up after a minute.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args(["-k", "1", "60", env!("CARGO_BIN_EXE_selfstart"), "--config"]).arg(self.path("config.yaml")).args(args);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).stdin(Stdio::null());
        command
    }

    pub(crate) fn cli(&self, args: &[&str]) -> Said {
        said(&mut self.command(args))
    }

    /// Starts `selfstart run`, which has variables of its own that no worker may see.
    pub(crate) fn start(&self) {
        self.start_with(&[]);
    }

    /// As [`Self::start`], by these words in front.
    pub(crate) fn start_with(&self, prefix: &[&str]) {
        self.start_as(prefix, &[]);
    }

    /// As [`Self::start_with`], with these words behind.
    pub(crate) fn start_as(&self, prefix: &[&str], words: &[&str]) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.path("agent.log")).expect("a log");
        let mut command = Command::new("setsid");
        command.args(prefix).arg(env!("CARGO_BIN_EXE_selfstart")).arg("--config").arg(self.path("config.yaml")).arg("run").args(words);
        command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("OF_THE_AGENT", "must not be seen").current_dir("/");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("cloned")).stderr(log);

        self.keeper.replace(Some(command.spawn().expect("setsid")));
    }

    /// Starts, and waits until all pools are ready and the deploy is done.
    #[track_caller]
    pub(crate) fn boot(&self) {
        self.start_pools();
        self.idle();
    }

    /// Starts, and waits until all pools are ready.
    #[track_caller]
    pub(crate) fn start_pools(&self) {
        self.start();
        self.until("the control socket", || self.root("run/control.sock").exists().then_some(()));
        self.cli(&["wait", "--ready", "--timeout", "40s"]).exits(0);
    }

    pub(crate) fn keeper(&self) -> i32 {
        self.keeper.borrow().as_ref().map_or(0, |child| i32::try_from(child.id()).expect("a pid"))
    }

    /// Sends `run` a signal.
    pub(crate) fn signal_keeper(&self, signal: Signal) {
        signal_to(self.keeper(), signal);
    }

    /// Waits for the end of `run`, and returns its exit code.
    #[track_caller]
    pub(crate) fn ended(&self) -> Option<i32> {
        if !ended(self.keeper(), PATIENCE) {
            panic!("waited in vain for the end of `run`\n{}", self.last_seen());
        }
        let mut keeper = self.keeper.take().expect("it was started");
        keeper.wait().expect("waited").code()
    }

    pub(crate) fn status(&self) -> Value {
        let said = self.cli(&["status", "--json"]);
        serde_json::from_str(&said.out).unwrap_or(Value::Null)
    }

    /// What of status, by a JSON pointer.
    pub(crate) fn look(&self, pointer: &str) -> Value {
        self.status().pointer(pointer).cloned().unwrap_or(Value::Null)
    }

    /// The slots of a pool.
    pub(crate) fn slots(&self, pool: &str) -> Vec<Value> {
        let status = self.status();
        let pools = status["pools"].as_array().cloned().unwrap_or_default();
        pools.iter().find(|it| it["name"] == pool).and_then(|it| it["slots"].as_array().cloned()).unwrap_or_default()
    }

    /// The pids of a pool's workers, by slot.
    pub(crate) fn pids(&self, pool: &str) -> Vec<i32> {
        self.slots(pool).iter().filter_map(|slot| i32::try_from(slot["pid"].as_i64()?).ok()).collect()
    }

    /// The pid of a pool's only worker, once it is ready.
    #[track_caller]
    pub(crate) fn pid(&self, pool: &str) -> i32 {
        self.until("a ready worker", || {
            let slots = self.slots(pool);
            slots.first().filter(|slot| slot["state"] == "ready").and_then(|slot| i32::try_from(slot["pid"].as_i64()?).ok())
        })
    }

    #[track_caller]
    pub(crate) fn state(&self, pool: &str, state: &str) {
        self.until(&format!("{pool}: {state}"), || {
            let slots = self.slots(pool);
            (!slots.is_empty() && slots.iter().all(|slot| slot["state"] == state)).then_some(())
        });
    }

    /// Waits until no deploy is under way.
    #[track_caller]
    pub(crate) fn idle(&self) {
        self.until("an idle deploy", || (self.look("/deploy/phase") == "idle").then_some(()));
    }

    pub(crate) fn live(&self) -> (String, String) {
        let live = self.look("/deploy/live");
        (live["revision"].as_str().unwrap_or_default().to_owned(), live["release"].as_str().unwrap_or_default().to_owned())
    }

    /// Where `current` points to.
    pub(crate) fn current(&self) -> PathBuf {
        fs_err::read_link(self.root("current")).unwrap_or_default()
    }

    /// Everything that was told so far.
    pub(crate) fn events(&self) -> Vec<Value> {
        let text = fs_err::read_to_string(self.root("run/events.jsonl")).unwrap_or_default();
        // The last line may be half-written.
        text.split_inclusive('\n').filter(|line| line.ends_with('\n')).map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// Where the journal is now, for [`Self::since`].
    pub(crate) fn mark(&self) -> usize {
        self.events().len()
    }

    /// The events of these kinds after a mark.
    pub(crate) fn since(&self, mark: usize, kinds: &[&str]) -> Vec<Value> {
        self.events().into_iter().skip(mark).filter(|event| kinds.iter().any(|kind| event["kind"] == *kind)).collect()
    }

    /// Waits for an event after a mark.
    #[track_caller]
    pub(crate) fn told(&self, mark: usize, kind: &str, text: &str) -> Value {
        self.until(&format!("{kind}: {text}"), || {
            self.since(mark, &[kind]).into_iter().find(|event| event["text"].as_str().is_some_and(|it| it.contains(text)))
        })
    }

    /// Waits until `look` finds something.
    #[track_caller]
    pub(crate) fn until<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        // Not the logs of workers, which some of them write to all the time.
        let changes = Changes::of([self.path(""), self.root(""), self.root("run")]);
        let looked = waiting::until(Some(&changes), LOOK_EVERY, PATIENCE, || look().ok_or_else(String::new));
        looked.unwrap_or_else(|_| panic!("waited in vain for {what}\n{}", self.last_seen()))
    }

    /// Holds that two are the same, or says all that is known.
    #[track_caller]
    pub(crate) fn same<T: PartialEq + Debug>(&self, left: T, right: T) {
        assert_eq!(left, right, "{}", self.last_seen());
    }

    fn last_seen(&self) -> String {
        let log = self.text("agent.log");
        let lines: Vec<&str> = log.lines().collect();
        format!("status: {}\nlog:\n{}", self.status(), lines[lines.len().saturating_sub(60)..].join("\n"))
    }

    /// Everything that belongs to this node: named in its environment, or run or working below its folder (a title that was set covers
    /// the environment).
    pub(crate) fn processes(&self) -> Vec<i32> {
        let at_root = format!("@{}", self.path("root").display());
        all_pids()
            .into_iter()
            .filter(|pid| {
                let of = |name: &str| fs_err::read_link(format!("/proc/{pid}/{name}")).unwrap_or_default();
                let environ = fs_err::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                let named = environ.split(|b| *b == 0).any(|it| it.starts_with(b"SELFSTART_WORKER=") && it.ends_with(at_root.as_bytes()));
                alive(*pid) && (named || of("exe").starts_with(self.dir.path()) || of("cwd").starts_with(self.dir.path()))
            })
            .collect()
    }
}

impl Node {
    /// A keeper that is killed leaves the directories that it has made, all empty by now.
    fn remove_cgroups(&self) {
        let root = self.path("root").display().to_string();
        let hash = root.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        for mount in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
            let tree = Path::new(mount).join(format!("selfstart-e2e-{hash:08x}"));
            for entry in fs_err::read_dir(&tree).into_iter().flatten().filter_map(Result::ok) {
                let _a_file = fs_err::remove_dir(entry.path());
            }
            let _there_was_none = fs_err::remove_dir(&tree);
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.last_seen());
        }
        if let Some(mut keeper) = self.keeper.take() {
            let agents = children_of(i32::try_from(keeper.id()).unwrap_or(0));
            let _ = keeper.kill();
            let _ = keeper.wait();
            agents.into_iter().for_each(|pid| signal_to(pid, Signal::KILL));
        }
        // Again, as one that is killed may have begun something.
        let end = Instant::now() + PATIENCE;
        loop {
            let left = self.processes();
            if left.is_empty() || Instant::now() > end {
                break;
            }
            left.iter().for_each(|pid| signal_to(*pid, Signal::KILL));
            for pid in left {
                let _else_again = ended(pid, end.saturating_duration_since(Instant::now()));
            }
        }
        self.remove_cgroups();
    }
}

/// Runs it to its end; it must succeed. Returns its output.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> String {
    let said = said(command.stdin(Stdio::null()));
    assert_eq!(said.code, Some(0), "{command:?}: {said:?}");
    said.out.trim().to_owned()
}

pub(crate) fn said(command: &mut Command) -> Said {
    let began = Instant::now();
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Said { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr), took: began.elapsed() }
}

/// Where cargo put the worker that misbehaves: examples/ beside deps/.
fn fixture() -> PathBuf {
    let us = std::env::current_exe().expect("us");
    let path = us.parent().and_then(Path::parent).expect("a target folder").join("examples/fixture-worker");
    assert!(path.exists(), "{} is missing: `cargo build --example fixture-worker`", path.display());
    path
}

fn mode(bits: u32) -> std::fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(bits)
}

pub(crate) fn signal_to(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, signal);
    }
}

pub(crate) fn all_pids() -> Vec<i32> {
    let entries = fs_err::read_dir("/proc").expect("/proc");
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// The state and the parent of a process.
fn stat(pid: i32) -> Option<(char, i32)> {
    let stat = fs_err::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Whether it runs: zombies do not.
pub(crate) fn alive(pid: i32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != 'Z' && state != 'X')
}

pub(crate) fn children_of(parent: i32) -> Vec<i32> {
    all_pids().into_iter().filter(|pid| stat(*pid).is_some_and(|(_, of)| of == parent)).collect()
}

pub(crate) fn title(pid: i32) -> String {
    String::from_utf8_lossy(&fs_err::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()).trim_end_matches('\0').replace('\0', " ")
}

/// The real uid of a process.
pub(crate) fn uid(pid: i32) -> Option<u32> {
    let status = fs_err::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().next()?.parse().ok()
}

/// A port that is free just now.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port()
}

/// The text of an event.
pub(crate) fn text_of(event: &Value) -> &str {
    event["text"].as_str().unwrap_or_default()
}

/// `POOL/SLOT KIND` of each event.
pub(crate) fn shape(events: &[Value]) -> Vec<String> {
    events
        .iter()
        .map(|event| format!("{} {}", event["slot"], event["kind"].as_str().unwrap_or_default().trim_start_matches("worker_")))
        .collect()
}
