//! The README's quick start, word for word: in a clean clone, at a terminal of its own, as one who tries it would type it.
//!
//! In namespaces of its own (mounts, process numbers), so that `/tmp/selfstart-try` is nobody else's and nothing outlives the test.
//! `cargo` is played by a script that puts the binary under test where a release build would be; with README_BUILD=1 it is really built.

#[path = "kit/waiting.rs"]
#[expect(dead_code, reason = "what ends here ends at a terminal, which says so")]
mod waiting;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Far more than any command takes; a build, if one is asked for, takes minutes.
const PATIENCE: Duration = Duration::from_secs(30);

/// The folder that the README names.
const TRY: &str = "/tmp/selfstart-try";

/// Whether this is the inner run. Where all tests are asked for, also the ignored ones, there are no namespaces, and no test.
fn inside() -> bool {
    std::env::var_os("README_INSIDE").is_some()
}

fn built_for_real() -> bool {
    std::env::var_os("README_BUILD").is_some()
}

fn apart() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]).stdin(Stdio::null());
    command
}

#[test]
fn the_quick_start_works_word_for_word_in_a_clean_clone() {
    let may = apart().arg("true").output();
    if let Some(why) = match may {
        Ok(Output { status, .. }) if status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Some(error.to_string()),
    } {
        return eprintln!("left out: no namespaces may be made here: {why}");
    }
    let us = std::env::current_exe().expect("us");
    // A shell is its first process, and reaps.
    let line = format!("'{}' --exact inside_the_quick_start --ignored --nocapture; exit $?", us.display());
    let out = apart().args(["sh", "-c", &line]).env("README_INSIDE", "1").output().expect("unshare");
    // Made by the inner run where there was none; what it put there is gone with its mounts.
    let _somebody_elses = fs_err::remove_dir(TRY);
    let (said, complained) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && said.contains("1 passed"), "{}\n{said}\n{complained}", out.status);
}

/// The commands of the quick start, each with its here-document.
fn commands() -> Vec<String> {
    let readme = fs_err::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).expect("the README");
    let (_, section) = readme.split_once("\n## Quick start\n").expect("a quick start");
    let section = section.split("\n## ").next().expect("its text");
    let blocks = section.split("```sh\n").skip(1).map(|rest| rest.split("```").next().expect("its end"));
    let mut commands: Vec<String> = Vec::new();
    let mut here: Option<String> = None;
    for line in blocks.flat_map(str::lines) {
        if let Some(end) = &here {
            let command = commands.last_mut().expect("its first line");
            command.push('\n');
            command.push_str(line);
            if line == end {
                here = None;
            }
            continue;
        }
        here = line.split_once("<<'").and_then(|(_, rest)| rest.split_once('\'')).map(|(end, _)| end.to_owned());
        commands.push(line.to_owned());
    }
    commands
}

/// A shell at a terminal.
struct Terminal {
    child: Child,
    keys: Option<ChildStdin>,
    screen: Receiver<Vec<u8>>,
    seen: String,
}

impl Terminal {
    fn open(folder: &Path, path: &str) -> Self {
        let mut command = Command::new("script");
        command.args(["-qfc", "bash --noprofile --norc --noediting -i", "/dev/null"]).current_dir(folder);
        // A prompt that says how the last command ended.
        command.env_clear().env("PATH", path).env("HOME", folder).env("TERM", "dumb").env("LANG", "C.UTF-8");
        command.env("PS1", "@@$?@@").env("PS2", "").env("CARGO_TARGET_DIR", folder.join("target"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().expect("script");
        let (send, screen) = channel();
        let mut out = child.stdout.take().expect("piped");
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = out.read(&mut buffer) {
                if send.send(buffer[..read].to_vec()).is_err() {
                    break;
                }
            }
        });
        let keys = child.stdin.take();
        let mut terminal = Self { child, keys, screen, seen: String::new() };
        terminal.prompt(PATIENCE, "the first prompt");
        terminal.types("stty -echo", PATIENCE);
        terminal
    }

    /// What is on the screen up to the next prompt, and what that says.
    fn prompt(&mut self, patience: Duration, command: &str) -> (String, i32) {
        let end = Instant::now() + patience;
        loop {
            let prompt = self.seen.match_indices("@@").map(|(at, _)| at).collect::<Vec<_>>();
            if let [from, to, ..] = prompt[..] {
                let said = self.seen[..from].replace('\r', "");
                let code = self.seen[from + 2..to].parse().unwrap_or(-1);
                self.seen.drain(..to + 2);
                return (said, code);
            }
            match self.screen.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(RecvTimeoutError::Timeout) => panic!("`{command}` does not end; on the screen: {}", self.seen),
                Err(RecvTimeoutError::Disconnected) => panic!("`{command}` closed the terminal: {}", self.seen),
            }
        }
    }

    /// Types a command; it must end with 0. Returns what it said.
    fn types(&mut self, command: &str, patience: Duration) -> String {
        let keys = self.keys.as_mut().expect("open");
        keys.write_all(format!("{command}\n").as_bytes()).expect("typed");
        let (said, code) = self.prompt(patience, command);
        assert_eq!(code, 0, "`{command}` ended with {code}: {said}{}", log());
        said
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.keys = None;
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn log() -> String {
    let log = fs_err::read_to_string(format!("{TRY}/run.log")).unwrap_or_default();
    format!("\nrun.log:\n{log}")
}

/// What `status --json` says, from outside of the terminal.
fn status() -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_selfstart"));
    let output = command.args(["--config", &format!("{TRY}/config.yaml"), "status", "--json"]).output().expect("selfstart");
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

fn pids(status: &Value) -> Vec<i64> {
    status["pools"][0]["slots"].as_array().into_iter().flatten().filter_map(|slot| slot["pid"].as_i64()).collect()
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let changes = waiting::Changes::of([PathBuf::from(TRY).join("root/run")]);
    // An agent that has come back tells of itself before it answers.
    let every = Duration::from_millis(100);
    waiting::until(Some(&changes), every, PATIENCE, || look().ok_or_else(|| status().to_string()))
        .unwrap_or_else(|last| panic!("waited in vain for {what}: {last}{}", log()))
}

fn run(command: &mut Command) {
    let output = command.output().expect("started");
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// A clone of this repository, with a `cargo` of our own unless it is to be built.
fn clean_clone(dir: &Path) -> (PathBuf, String) {
    let clone = dir.join("clone");
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut git = Command::new("git");
    git.args(["-c", "safe.directory=*", "clone", "-q", "--no-hardlinks"]).arg(here).arg(&clone);
    // The clone asks the other side in a process of its own, which `-c` does not reach.
    git.env("GIT_CONFIG_COUNT", "1").env("GIT_CONFIG_KEY_0", "safe.directory").env("GIT_CONFIG_VALUE_0", "*");
    run(&mut git);
    let path = std::env::var("PATH").expect("a PATH");
    if built_for_real() {
        return (clone, path);
    }
    let bin = dir.join("bin");
    fs_err::create_dir(&bin).expect("made");
    let script = format!(
        "#!/bin/sh\ntest \"$*\" = 'build --release' || exit 9\nmkdir -p target/release && ln -s '{}' target/release/selfstart\n",
        env!("CARGO_BIN_EXE_selfstart")
    );
    fs_err::write(bin.join("cargo"), script).expect("written");
    run(Command::new("chmod").arg("755").arg(bin.join("cargo")));
    (clone, format!("{}:{path}", bin.display()))
}

#[test]
#[ignore = "run by the_quick_start_works_word_for_word_in_a_clean_clone"]
fn inside_the_quick_start() {
    if !inside() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    fs_err::create_dir_all(TRY).expect("made");
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=2g", "none", TRY]));
    let (clone, path) = clean_clone(dir.path());
    let mut terminal = Terminal::open(&clone, &path);
    let mut done = Vec::new();
    for command in commands() {
        let patience = if built_for_real() && command.starts_with("cargo") { Duration::from_secs(1800) } else { PATIENCE };
        let said = terminal.types(&command, patience);
        eprintln!("$ {command}\n{said}");
        let says = |texts: &[&str]| texts.iter().for_each(|text| assert!(said.contains(text), "`{command}` does not say `{text}`: {said}"));
        match command.as_str() {
            "selfstart check --explain" => says(&["hello", "./work.sh", "200MB", "count"]),
            "selfstart status" => {
                says(&["hello", "w 3/3 ready", "deploy   idle"]);
                // Its pid is in `status`.
                says(&[&status()["agent"]["pid"].to_string()]);
            }
            "selfstart logs w" => says(&["slot 0 works", "slot 1 works", "slot 2 works"]),
            "selfstart deploy" => says(&["is live"]),
            "selfstart logs w/0" => says(&["slot 0 works better"]),
            "selfstart why w/1" => says(&["generation 2"]),
            "selfstart rollback" => {
                says(&["is live"]);
                assert_eq!(status()["deploy"]["held"], true);
            }
            "selfstart releases" => {
                says(&["live", "retired"]);
                assert_eq!(status()["deploy"]["held"], true);
            }
            "selfstart unhold" => {
                until("the newest release", || {
                    (status()["deploy"]["phase"] == "idle" && status()["deploy"]["held"] == false).then_some(())
                });
                until("ready workers", || (status()["pools"][0]["ready"] == 3).then_some(()));
                // "Kill any of it and look again": the agent's death changes nothing for the workers.
                let before = status();
                let agent = before["agent"]["pid"].as_i64().expect("a pid");
                run(Command::new("kill").args(["-9", &agent.to_string()]));
                let after =
                    until("another agent", || Some(status()).filter(|now| now["agent"]["pid"].as_i64().is_some_and(|pid| pid != agent)));
                assert_eq!((pids(&after), pids(&before).len()), (pids(&before), 3));
            }
            _ => {}
        }
        done.push(command);
    }
    assert!(done.len() > 20 && done.ends_with(&["kill %1".to_owned(), "wait".to_owned()]), "{done:#?}");
    // All of it has ended.
    assert_eq!(status(), Value::Null);
    let workers = fs_err::read_dir("/proc").expect("/proc").flatten().filter(|entry| {
        let of = |name: &str| fs_err::read_link(entry.path().join(name)).unwrap_or_default();
        of("cwd").starts_with(format!("{TRY}/root"))
    });
    assert_eq!(workers.count(), 0);
}
