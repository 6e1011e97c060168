//! `selfstart demo` as a newcomer runs it: this test takes about 20 seconds.

#[path = "kit/waiting.rs"]
#[expect(dead_code, reason = "a demo ends, and is waited for in no other way")]
mod waiting;

use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A demo that is gone when the test is over, however that ends: TERM makes it put everything away.
struct Demo {
    child: Child,
    base: tempfile::TempDir,
}

impl Demo {
    fn start(words: &[&str]) -> Self {
        let base = tempfile::Builder::new().prefix("sd").tempdir_in("/tmp").expect("a folder");
        let mut command = Command::new(env!("CARGO_BIN_EXE_selfstart"));
        // Its own group: nothing that is done to it reaches the test.
        command.arg("demo").args(words).env("TMPDIR", base.path()).process_group(0).stdin(Stdio::null()).stdout(Stdio::piped());
        // Nothing but the binary: no program is found.
        let child = command.env("PATH", "/nonexistent").stderr(Stdio::inherit()).spawn().expect("the demo");
        Self { child, base }
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        // It may have ended.
        let _gone = rustix::process::kill_process(pid, signal);
    }

    /// Its whole output and its exit code.
    fn end(&mut self) -> (String, Option<i32>) {
        let mut told = String::new();
        self.child.stdout.take().expect("piped").read_to_string(&mut told).expect("text");
        (told, self.child.wait().expect("a child").code())
    }

    /// The folder that it made, if it is there.
    fn folder(&self) -> Option<std::path::PathBuf> {
        fs_err::read_dir(self.base.path()).expect("a folder").next().map(|entry| entry.expect("an entry").path())
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.signal(rustix::process::Signal::TERM);
            waiting::ended(self.child.id().cast_signed(), Duration::from_secs(30));
            let _ended = self.child.kill();
            let _reaped = self.child.wait();
        }
    }
}

/// Command lines of processes that work below `base`, or for a node that does.
fn left(base: &Path) -> Vec<String> {
    let name = base.display().to_string();
    let about = |pid: &str, file: &str| {
        fs_err::read(format!("/proc/{pid}/{file}")).is_ok_and(|text| memchr::memmem::find(&text, name.as_bytes()).is_some())
    };
    let entries = fs_err::read_dir("/proc").expect("/proc").filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    entries
        .filter(|pid| pid.bytes().all(|byte| byte.is_ascii_digit()) && (about(pid, "environ") || about(pid, "cmdline")))
        .map(|pid| {
            format!(
                "{pid} {}",
                String::from_utf8_lossy(&fs_err::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()).replace('\0', " ")
            )
        })
        .collect()
}

#[test]
fn the_demo_keeps_every_promise_and_leaves_nothing() {
    let mut demo = Demo::start(&["--seconds", "20"]);
    let (told, code) = demo.end();
    assert_eq!(code, Some(0), "{told}");
    for promise in [
        "A memory limit is acted on",
        "A stale job is ended",
        "A crashed worker is started again",
        "A push is rolled out one slot at a time",
        "A worker never inherits",
        "The agent, killed, is back within a second",
        "A failed build changes nothing",
        "`rollback` returns to the last good release",
        "Stopping ends everything",
        "`current` always points to",
        "No line of output is lost",
        "Every end of a worker has a verdict",
    ] {
        let row = told.lines().find(|line| line.starts_with(promise)).unwrap_or_else(|| panic!("no row {promise}: {told}"));
        assert!(row.ends_with("  kept"), "{row}\n{told}");
    }
    assert!(told.contains("12 promises kept, none broken") && !told.contains('\x1b'), "{told}");
    assert_eq!(demo.folder(), None, "its folder is left");
    assert_eq!(left(demo.base.path()), [""; 0], "processes are left");
}

#[test]
fn a_signal_in_the_middle_puts_everything_away() {
    let mut demo = Demo::start(&["--seconds", "60"]);
    // Once the node is up there is the most to put away.
    let began = Instant::now();
    let mut told = Vec::new();
    let mut stdout = demo.child.stdout.take().expect("piped");
    while memchr::memmem::find(&told, b" work: ").is_none() {
        assert!(began.elapsed() < Duration::from_secs(60), "no workers: {}", String::from_utf8_lossy(&told));
        let mut piece = [0; 512];
        let read = stdout.read(&mut piece).expect("readable");
        assert!(read > 0, "it ended: {}", String::from_utf8_lossy(&told));
        told.extend_from_slice(&piece[..read]);
    }
    assert!(!left(demo.base.path()).is_empty(), "a node is there");
    demo.signal(rustix::process::Signal::INT);
    demo.child.stdout = Some(stdout);
    let (rest, code) = demo.end();
    assert_eq!(code, Some(130), "{rest}");
    assert_eq!(demo.folder(), None, "its folder is left");
    assert_eq!(left(demo.base.path()), [""; 0], "processes are left");
}
