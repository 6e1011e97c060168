//! The worker that misbehaves does so as the tests that use it believe, and they wait as they believe.

#[path = "kit/waiting.rs"]
mod waiting;

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Where `cargo test` puts it: examples/ beside deps/.
fn fixture() -> PathBuf {
    let deps = std::env::current_exe().expect("us");
    let path = deps.parent().and_then(|deps| deps.parent()).expect("a target folder").join("examples/fixture-worker");
    assert!(path.exists(), "{} is missing: `cargo build --example fixture-worker`", path.display());
    path
}

struct Worker(Child);

impl Worker {
    fn start(args: &[&str]) -> Self {
        Self(Command::new(fixture()).args(args).stdout(Stdio::piped()).spawn().expect("the fixture"))
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).expect("a pid")
    }

    fn lines(&mut self) -> impl Iterator<Item = String> + use<> {
        BufReader::new(self.0.stdout.take().expect("piped")).lines().map_while(Result::ok)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let last = |found: Option<T>| found.ok_or_else(String::new);
    waiting::until(None, Duration::from_millis(2), Duration::from_secs(20), || last(look()))
        .unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

fn title(pid: i32) -> String {
    String::from_utf8_lossy(&fs_err::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()).trim_end_matches('\0').to_owned()
}

/// From /proc, where a session of another pid namespace is 0: `getsid` of rustix cannot say that.
fn session(pid: i32) -> i32 {
    let stat = fs_err::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    let (_, rest) = stat.rsplit_once(") ").expect("a name in brackets");
    rest.split(' ').nth(3).expect("a session").parse().expect("a number")
}

fn signal(pid: i32, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).expect("a pid"), signal).expect("it lives");
}

#[test]
fn numbers_its_lines_and_exits_as_asked() {
    let mut worker = Worker::start(&["--flood", "3", "--partial", "half", "--then-exit", "7"]);
    let mut text = String::new();
    worker.0.stdout.take().expect("piped").read_to_string(&mut text).expect("text");
    let pid = worker.pid();
    assert_eq!(text, format!("n=000001 pid={pid}\nn=000002 pid={pid}\nn=000003 pid={pid}\nhalf"));
    assert_eq!(worker.0.wait().expect("wait").code(), Some(7));
}

#[test]
fn its_daemonised_grandchild_is_in_a_session_of_its_own_and_lives_on() {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("pid");
    let worker = Worker::start(&["--daemonise", file.to_str().expect("text"), "--title", "hello  there"]);
    let pid: i32 = until("the pid", || fs_err::read_to_string(&file).ok()).trim().parse().expect("a pid");
    until("the title", || (title(worker.pid()) == "hello  there").then_some(()));
    drop(worker);
    assert_ne!(session(pid), session(i32::try_from(std::process::id()).expect("a pid")));
    signal(pid, rustix::process::Signal::KILL);
}

#[test]
fn a_resque_master_survives_the_kill_of_its_child_and_finishes_its_job_on_quit() {
    let mut worker = Worker::start(&["--resque", "slow", "SleepJob", "600000"]);
    let master = worker.pid();
    let mut lines = worker.lines();
    let child = |not: i32| {
        until("a child at work", || {
            let forked = title(master);
            let child = forked.strip_prefix("resque-3.0.0: Forked ")?.split(' ').next()?.parse().ok()?;
            (child != not && title(child).starts_with("resque-3.0.0: Processing slow since ") && title(child).ends_with(" [SleepJob]"))
                .then_some(child)
        })
    };
    let first = child(0);
    for ignored in [rustix::process::Signal::TERM, rustix::process::Signal::QUIT, rustix::process::Signal::INT] {
        signal(first, ignored);
    }
    signal(first, rustix::process::Signal::KILL);
    assert_eq!(lines.next(), Some(format!("job 1 died child={first}")));
    let second = child(first);
    signal(master, rustix::process::Signal::QUIT);
    assert!(worker.0.try_wait().expect("wait").is_none());
    signal(second, rustix::process::Signal::KILL);
    assert_eq!(lines.next(), Some(format!("job 2 died child={second}")));
    assert_eq!(lines.next(), Some("quit".to_owned()));
    assert_eq!(worker.0.wait().expect("wait").code(), Some(0));
}

#[test]
fn ignores_term_or_says_good_bye() {
    let mut polite = Worker::start(&["--print-on-term", "bye", "--flood", "1"]);
    let pid = polite.pid();
    let mut lines = polite.lines();
    assert!(lines.next().is_some());
    signal(pid, rustix::process::Signal::TERM);
    assert_eq!(lines.next().as_deref(), Some("bye"));
    assert_eq!(polite.0.wait().expect("wait").code(), Some(0));

    let mut rude = Worker::start(&["--ignore", "TERM", "--flood", "1"]);
    assert!(rude.lines().next().is_some());
    signal(rude.pid(), rustix::process::Signal::TERM);
    signal(rude.pid(), rustix::process::Signal::QUIT);
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&rude.0.wait().expect("wait")), Some(3));
}

#[test]
fn a_test_waits_by_word_of_files_and_by_ends_of_processes_and_never_for_ever() {
    let (second, long) = (Duration::from_secs(1), Duration::from_secs(20));
    assert_eq!(
        waiting::until(None, Duration::from_millis(1), Duration::from_millis(30), || Err::<(), _>("no".to_owned())),
        Err("no".into())
    );

    // The folder is made after the first look, the file after the second: neither is waited for by looking again.
    let dir = tempfile::tempdir().expect("a folder");
    let below = dir.path().join("below");
    let changes = waiting::Changes::of([dir.path().to_owned(), below.clone()]);
    let (looks, looked) = std::sync::mpsc::channel();
    let writer = std::thread::spawn({
        let below = below.clone();
        move || {
            looked.recv().expect("a look");
            fs_err::create_dir(&below).expect("made");
            looked.recv().expect("another");
            fs_err::write(below.join("file"), "x").expect("written");
        }
    });
    let began = Instant::now();
    let found = waiting::until(Some(&changes), long, long, || {
        let found = below.join("file").exists();
        let _nobody_counts_any_more = looks.send(());
        if found { Ok(()) } else { Err(String::new()) }
    });
    assert!(found.is_ok() && began.elapsed() < long / 2, "{:?}", began.elapsed());
    writer.join().expect("both were made");

    let mut worker = Worker::start(&[]);
    assert!(!waiting::ended(worker.pid(), Duration::from_millis(10)), "it lives");
    signal(worker.pid(), rustix::process::Signal::KILL);
    assert!(waiting::ended(worker.pid(), long), "not yet reaped, it has ended");
    worker.0.wait().expect("wait");
    assert!(waiting::ended(worker.pid(), second), "nor is it there when it was reaped");
}
