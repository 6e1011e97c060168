//! A source to fetch from, and the helper to fetch with.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::git::alone;
use crate::waiting;

/// The longest that anything here may take before the test says what it last saw.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A temporary directory with a work tree, a bare repository to fetch from, and room for a mirror and releases.
pub(crate) struct Scene {
    pub dir: tempfile::TempDir,
}

impl Scene {
    /// One commit with a few files on branch `main`.
    pub(crate) fn new() -> Self {
        let scene = Self { dir: tempfile::Builder::new().prefix("selfstart-git").tempdir().expect("a directory") };
        scene.git(&["init", "-q", "-b", "main", "work"]);
        scene.git(&["init", "-q", "--bare", "-b", "main", "served/app.git"]);
        for dir in ["releases", "shared"] {
            std::fs::create_dir(scene.path(dir)).expect("made");
        }
        scene.write("README", "first\n");
        scene.write("src/app.rb", "puts 1\n");
        scene.commit("first");
        scene.push();
        scene
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    pub(crate) fn source(&self) -> String {
        self.path("served/app.git").display().to_string()
    }

    pub(crate) fn mirror(&self) -> PathBuf {
        self.path("repo.git")
    }

    pub(crate) fn write(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.path("work").join(path);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        std::fs::write(path, text).expect("written");
    }

    /// Runs git in the scene's directory, away from this machine's configuration.
    pub(crate) fn git(&self, args: &[&str]) -> String {
        let output = git(self.dir.path(), args);
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    pub(crate) fn in_work(&self, args: &[&str]) -> String {
        let mut all = vec!["-C", "work"];
        all.extend(args);
        self.git(&all)
    }

    /// Commits all of the work tree and returns the id.
    pub(crate) fn commit(&self, message: &str) -> String {
        self.in_work(&["add", "-A"]);
        self.in_work(&["commit", "-q", "--allow-empty", "-m", message]);
        self.in_work(&["rev-parse", "HEAD"])
    }

    pub(crate) fn push(&self) {
        let source = self.source();
        self.in_work(&["push", "-q", "--force", "--all", &source]);
        self.in_work(&["push", "-q", "--force", "--tags", &source]);
    }

    /// A change, committed and pushed.
    pub(crate) fn advance(&self, text: &str) -> String {
        self.write("README", format!("{text}\n"));
        let id = self.commit(text);
        self.push();
        id
    }

    pub(crate) fn fetch_request(&self, url: &str) -> Value {
        json!({"fetch": {"mirror": self.mirror(), "url": url, "wanted": {"branch": "main"}, "depth": 1, "timeout_millis": 20_000}})
    }

    pub(crate) fn fetch(&self, url: &str) -> Answer {
        helper(&self.fetch_request(url))
    }

    pub(crate) fn stage_request(&self, revision: &str) -> Value {
        json!({"stage": {
            "mirror": self.mirror(), "revision": revision, "destination": self.path("releases/r.tmp"), "shared": self.path("shared"), "timeout_millis": 20_000,
        }})
    }

    pub(crate) fn stage(&self, revision: &str) -> Answer {
        helper(&self.stage_request(revision))
    }

    pub(crate) fn staged(&self, path: &str) -> String {
        std::fs::read_to_string(self.path("releases/r.tmp").join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// The commits that the mirror has, newest first.
    pub(crate) fn mirrored(&self) -> Vec<String> {
        let mirror = self.mirror().display().to_string();
        self.git(&["--git-dir", &mirror, "rev-list", "HEAD"]).lines().map(str::to_owned).collect()
    }

    /// What git itself thinks of the mirror.
    pub(crate) fn mirror_is_sound(&self) {
        let mirror = self.mirror().display().to_string();
        self.git(&["--git-dir", &mirror, "fsck", "--full", "--strict", "--no-dangling"]);
    }
}

fn git(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new("git");
    command.current_dir(dir).args(args).stdin(Stdio::null());
    alone(&mut command);
    command.output().expect("git runs")
}

/// What the helper said.
#[derive(Debug)]
pub(crate) struct Answer {
    pub progress: Vec<Value>,
    pub last: Value,
    pub success: bool,
}

impl Answer {
    pub(crate) fn fetched(&self) -> (&str, Vec<&str>) {
        let done = &self.last["ok"]["fetched"];
        let healed = done["healed"].as_array().unwrap_or_else(|| panic!("not fetched: {self:?}"));
        (done["revision"].as_str().expect("an id"), healed.iter().filter_map(Value::as_str).collect())
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.last["ok"]["fetched"]["bytes"].as_u64().unwrap_or_else(|| panic!("not fetched: {self:?}"))
    }

    pub(crate) fn log(&self) -> Vec<&str> {
        let log = self.last["ok"]["staged"]["log"].as_array().unwrap_or_else(|| panic!("not staged: {self:?}"));
        log.iter().filter_map(Value::as_str).collect()
    }

    /// The kind, text and hint of the failure.
    pub(crate) fn failed(&self) -> (&str, &str, &str) {
        let error = &self.last["error"];
        assert!(!self.success, "the exit code must tell of failure: {self:?}");
        let text = |key: &str| error[key].as_str().unwrap_or_default();
        assert!(error["kind"].is_string(), "not failed: {self:?}");
        (text("kind"), text("text"), text("hint"))
    }
}

pub(crate) fn helper_command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_selfstart"));
    command.arg("internal-git").env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A copy of the helper that any user can reach: the target directory may be in a home.
///
/// Made by another process: a descriptor of ours that writes to it could be inherited by a child that another test starts at
/// this moment, and then it could not be executed (ETXTBSY).
pub(crate) fn copy_of_helper(scene: &Scene) -> PathBuf {
    let copy = scene.path("selfstart");
    assert!(Command::new("cp").arg(env!("CARGO_BIN_EXE_selfstart")).arg(&copy).status().expect("cp runs").success());
    copy
}

pub(crate) fn helper(request: &Value) -> Answer {
    ask(&mut helper_command(), request)
}

pub(crate) fn start(command: &mut Command, request: &Value) -> Child {
    let mut child = command.spawn().expect("the helper starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(request.to_string().as_bytes()).expect("asked");
    child
}

pub(crate) fn ask(command: &mut Command, request: &Value) -> Answer {
    let output = start(command, request).wait_with_output().expect("the helper ends");
    let text = String::from_utf8(output.stdout).expect("JSON");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.is_empty(), "nothing goes to standard error: {stderr}");
    let mut lines: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect();
    let last = lines.pop().expect("a last line");
    assert!(lines.iter().all(|line| line.get("progress").is_some()), "only the last line is not progress: {text}");
    Answer { progress: lines, last, success: output.status.success() }
}

/// A process that ends with its test.
pub(crate) struct Server {
    pub child: Child,
    pub port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a server that is told its port, and waits until it answers.
pub(crate) fn serve(command: impl Fn(u16) -> Command) -> Server {
    let started = Instant::now();
    loop {
        // The port is free now, and hardly ever taken by another before the server has it; if so, the next one.
        let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
        let mut child = command(port).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the server starts");
        let mut ended = None;
        let answers = waiting::until(None, Duration::from_millis(2), PATIENCE, || {
            ended = child.try_wait().expect("known");
            (ended.is_some() || TcpStream::connect(("127.0.0.1", port)).is_ok()).then_some(()).ok_or_else(String::new)
        });
        if ended.is_none() {
            let server = Server { child, port };
            assert!(answers.is_ok(), "the server does not answer at port {port}");
            return server;
        }
        let said: Vec<String> =
            child.stderr.take().map(|said| BufReader::new(said).lines().map_while(Result::ok).collect()).unwrap_or_default();
        assert!(started.elapsed() < PATIENCE, "the server ended: {said:?}");
    }
}

/// `git daemon` over the scene's `served`.
pub(crate) fn git_daemon(scene: &Scene) -> Server {
    // The program itself and not `git daemon`, whose child would outlive it.
    let program = Path::new(&scene.git(&["--exec-path"])).join("git-daemon");
    let base = scene.path("served");
    serve(|port| {
        let mut command = Command::new(&program);
        command.args(["--listen=127.0.0.1", "--reuseaddr", "--export-all"]);
        command.arg(format!("--port={port}")).arg(format!("--base-path={}", base.display()));
        alone(&mut command);
        command
    })
}
