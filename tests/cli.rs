//! The command line as a process, against an agent that the test plays: exit codes, streams, pipes, files that rotate.

#[path = "kit/told.rs"]
mod told;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, Timespec};
use serde_json::{Value, json};

use told::Told;

/// An app's configuration and root in a temporary folder.
struct Node {
    dir: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let node = Self { dir: tempfile::tempdir().expect("a directory") };
        fs_err::create_dir_all(node.root().join("run")).expect("a directory");
        fs_err::create_dir_all(node.root().join("log")).expect("a directory");
        let root = node.root();
        let config = format!(
            "app: flipper\nroot: {}\nsource: {{repository: {}/repo, branch: main}}\npools: {{checkins: {{command: sleep 9, count: 2}}}}\n",
            root.display(),
            root.display()
        );
        fs_err::write(node.config(), config).expect("a file");
        node
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("config.yaml")
    }

    fn events(&self) -> PathBuf {
        self.root().join("run/events.jsonl")
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_selfstart"));
        command.args(line.split_whitespace()).env("SELFSTART_CONFIG", self.config()).env("TZ", "UTC").stdin(Stdio::null());
        command
    }

    fn run(&self, line: &str) -> Told {
        Told::from(self.command(line).output().expect("the binary"))
    }

    /// Plays the agent: answers one connection after the other with what `answers` has for it, and hands back the requests.
    fn agent(&self, answers: Vec<Vec<Value>>) -> JoinHandle<Vec<Value>> {
        let listener = UnixListener::bind(self.root().join("run/control.sock")).expect("a socket");
        std::thread::spawn(move || {
            let mut requests = Vec::new();
            for lines in answers {
                let mut ready = [PollFd::new(&listener, PollFlags::IN)];
                let patience = Timespec { tv_sec: 20, tv_nsec: 0 };
                assert_eq!(rustix::event::poll(&mut ready, Some(&patience)), Ok(1), "a client within 20 s; so far: {requests:?}");
                let (mut stream, _) = listener.accept().expect("a client");
                let mut request = String::new();
                BufReader::new(&stream).read_line(&mut request).expect("a request");
                requests.push(serde_json::from_str(&request).expect("JSON"));
                for line in lines {
                    writeln!(stream, "{line}").expect("a client that listens");
                }
            }
            requests
        })
    }
}

fn status() -> Value {
    serde_json::from_str(include_str!("../crates/core/tests/fixtures/status-1.json")).expect("the fixture")
}

fn done(facts: Value) -> Value {
    json!({"done": {"text": "", "already": false, "facts": facts}})
}

#[test]
fn status_is_a_table_for_people_and_the_snapshot_for_programs() {
    let node = Node::new();
    let agent = node.agent(vec![vec![json!({"progress": {}}), done(json!({"status": status()}))]; 2]);
    let told = node.run("status");
    assert_eq!((told.code, told.err.as_str()), (0, ""));
    assert!(told.out.contains("checkins 10/10 ready") && !told.out.contains('\x1b'), "{}", told.out);
    let told = node.run("status --json");
    assert_eq!(serde_json::from_str::<Value>(&told.out).expect("JSON"), status());
    assert_eq!(agent.join().expect("the agent")[0], json!({"version": 1, "command": {"verb": "status"}, "wait": true}));
}

#[test]
fn an_agent_that_dies_while_it_is_asked_for_facts_is_asked_again() {
    let node = Node::new();
    let agent = node.agent(vec![vec![], vec![json!({"progress": {}})], vec![done(json!({"status": status()}))]]);
    assert_eq!(node.run("status").code, 0);
    agent.join().expect("asked three times");
}

#[test]
fn no_agent_is_3_and_says_what_to_do() {
    let node = Node::new();
    for line in ["status", "status --json", "deploy", "drain", "stop checkins", "exec -- true", "wait --ready", "wait --timeout 10ms"] {
        let told = node.run(line);
        assert_eq!((told.code, told.out.as_str()), (3, ""), "{line}: {told:?}");
        assert!(told.err.starts_with("error: no agent answers at `") && told.err.contains("\nhint: "), "{line}: {}", told.err);
    }
}

#[test]
fn refused_failed_and_done_have_their_codes_and_streams() {
    let node = Node::new();
    let refused = |code: &str| json!({"refused": {"code": code, "reason": "because", "hint": "try this"}});
    let failed = json!({"failed": {"reason": "build step 2 `make` ended with 2", "causes": ["oops"]}});
    let cases = [
        (refused("quarantined"), 4, "", "error: because\nhint: try this\n"),
        (refused("unknown_target"), 2, "", "error: because\nhint: try this\n"),
        (refused("configuration"), 78, "", "error: because\nhint: try this\n"),
        (failed, 1, "", "error: build step 2 `make` ended with 2\n  caused by: oops\n"),
        (json!({"done": {"text": "checkins is stopped already", "already": true}}), 0, "checkins is stopped already\n", ""),
    ];
    let agent = node.agent(cases.iter().map(|(answer, ..)| vec![answer.clone()]).chain([vec![refused("held")]]).collect());
    for (answer, code, out, err) in &cases {
        let told = node.run("stop checkins");
        assert_eq!((told.code, told.out.as_str(), told.err.as_str()), (*code, *out, *err), "{answer}");
    }
    let told = node.run("deploy --json");
    assert_eq!(told.code, 4);
    assert_eq!(
        serde_json::from_str::<Value>(&told.out).expect("JSON"),
        json!({"schema": 1, "refused": {"code": "held", "reason": "because", "hint": "try this"}})
    );
    agent.join().expect("the agent");
}

#[test]
fn what_is_asked_arrives_as_it_was_meant() {
    let node = Node::new();
    let lines = [
        ("deploy --ref hotfix --force --no-wait", json!({"verb": "deploy", "ref": "hotfix", "force": true})),
        ("stop checkins imports/1", json!({"verb": "stop", "targets": ["checkins", "imports/1"]})),
        ("scale checkins=3", json!({"verb": "scale", "pool": "checkins", "to": {"count": 3}})),
        ("scale checkins=config", json!({"verb": "scale", "pool": "checkins", "to": "config"})),
        ("signal checkins/3 sigusr1", json!({"verb": "signal", "target": "checkins/3", "signal": "USR1"})),
        ("rollback --to 1a2b3c4", json!({"verb": "rollback", "to": "1a2b3c4"})),
        ("hold --why busy", json!({"verb": "hold", "why": "busy"})),
        ("reload", json!({"verb": "reload"})),
        ("wait --ready --timeout 1m", json!({"verb": "wait"})),
    ];
    let agent = node.agent(lines.iter().map(|_| vec![json!({"done": {}})]).collect());
    for (line, _) in &lines {
        let told = node.run(line);
        assert_eq!((told.code, told.out.as_str(), told.err.as_str()), (0, "", ""), "{line}");
    }
    let requests = agent.join().expect("the agent");
    for ((line, wanted), request) in lines.iter().zip(requests) {
        assert_eq!(&request["command"], wanted, "{line}");
        assert_eq!(request["wait"], json!(!line.contains("--no-wait")), "{line}");
    }
}

#[test]
fn a_deploy_tells_its_phases_on_a_terminal_only_and_answers_in_one_line_elsewhere() {
    let node = Node::new();
    let at = |phase: &str, objects: Option<u64>, step: Value| json!({"progress": {"deploy": {"phase": phase, "progress": {"objects": objects, "total_objects": 9, "step": step}}}});
    let step = |number| json!({"number": number, "of": 2, "text": "make"});
    let live =
        json!({"live": {"release": "20261122T101530Z-1a2b3c4", "revision": "1a2b3c4d5e6f1a2b3c4d5e6f1a2b3c4d5e6f1a2b", "seconds": 72}});
    let answers = vec![
        at("fetching", Some(1), Value::Null),
        at("fetching", Some(9), Value::Null),
        at("building", None, step(1)),
        json!({"progress": {}}),
        at("building", None, step(2)),
        json!({"progress": {"text": "checkins/0 is ready (1 of 2)"}}),
        at("idle", None, Value::Null),
        done(live),
    ];
    let agent = node.agent(vec![answers; 2]);
    let answer = "20261122T101530Z-1a2b3c4 is live after 1m12s: revision 1a2b3c4";
    let told = node.run("deploy");
    assert_eq!((told.code, told.out, told.err), (0, format!("{answer}\n"), String::new()));

    let mut terminal = Command::new("script");
    terminal.args(["-qefc", &format!("{} deploy", env!("CARGO_BIN_EXE_selfstart")), "/dev/null"]).env("SELFSTART_CONFIG", node.config());
    let told = Told::from(terminal.env("TERM", "xterm").stdin(Stdio::null()).output().expect("script"));
    assert_eq!(told.code, 0, "{told:?}");
    for shown in ["fetching", "checkins/0 is ready (1 of 2)", answer] {
        assert!(told.out.contains(shown), "no {shown}: {told:?}");
    }
    agent.join().expect("the agent");
}

#[test]
fn wait_waits_for_an_agent_that_is_not_there_yet_and_asks_again_when_it_dies() {
    let node = Node::new();
    let waiting = node.command("wait --ready --timeout 1m").spawn().expect("the binary");
    let agent = node.agent(vec![vec![json!({"progress": {}})], vec![json!({"done": {}})]]);
    assert!(waiting.wait_with_output().expect("an end").status.success());
    agent.join().expect("asked twice");
}

#[test]
fn wait_without_any_patience_still_hears_that_it_is_so() {
    let node = Node::new();
    let agent = node.agent(vec![vec![json!({"done": {"text": "every pool is ready"}})]]);
    let told = node.run("wait --timeout 0s");
    assert_eq!((told.code, told.out.as_str(), told.err.as_str()), (0, "every pool is ready\n", ""));
    agent.join().expect("asked");
}

#[test]
fn wrong_usage_is_2_and_a_missing_configuration_78() {
    let node = Node::new();
    for line in ["", "fly", "stop A", "scale checkins", "exec", "status --pretty", "status --app ../config"] {
        assert_eq!(node.run(line).code, 2, "{line}");
    }
    for verb in ["run", "check", "status"] {
        let told = node.run(&format!("{verb} --config {} --app mail", node.config().display()));
        assert_eq!(told.code, 2, "{verb}: {told:?}");
        assert!(told.err.contains("is the configuration of app `flipper`, not of `mail`"), "{verb}: {told:?}");
    }
    assert_eq!((node.run("--help").code, node.run("help stop").code, node.run("--version").code), (0, 0, 0));
    for line in ["status --config /nowhere.yaml", "--config /nowhere.yaml status"] {
        let told = node.run(line);
        assert_eq!(told.code, 78, "{told:?}");
        assert_eq!(told.err, "error: there is no configuration at `/nowhere.yaml`\nhint: name it with --config or SELFSTART_CONFIG\n");
    }
    // There is something, but it cannot be read: nothing is said of what is in it.
    let below_a_file = node.config().join("c.yaml");
    for verb in ["status", "run"] {
        let told = node.run(&format!("{verb} --config {}", below_a_file.display()));
        assert_eq!(told.code, 78, "{told:?}");
        let what = format!("error: the configuration `{}` cannot be read\n  caused by: ", below_a_file.display());
        assert!(told.err.starts_with(&what) && told.err.contains("\nhint: run this as who may read it"), "{}", told.err);
    }
}

#[test]
fn check_looks_at_what_the_configuration_names() {
    let node = Node::new();
    let dir = node.dir.path();
    let git = |args: &[&str]| {
        let run = Command::new("git").current_dir(node.root().join("repo")).args(args).output().expect("git");
        assert!(run.status.success(), "{run:?}");
    };
    fs_err::create_dir_all(node.root().join("repo")).expect("a directory");
    git(&["init", "-q", "-b", "main", "."]);
    git(&["-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-q", "--allow-empty", "-m", "first"]);
    let check = |root: &str, source: &str, more: &str, pool: &str, flags: &str| {
        let source = source.replace("REPO", &node.root().join("repo").display().to_string());
        let root = root.replace("DIR", &dir.display().to_string());
        let text = format!("app: flipper\nroot: {root}\nsource: {{{source}}}\n{more}\npools: {{w: {{command: sleep 9{pool}}}}}\n");
        fs_err::write(node.config(), text).expect("a file");
        node.run(&format!("check {flags}"))
    };
    let (here, main, small) = ("DIR/root", "repository: REPO, branch: main", "release: {min_free: 1MB}");
    fs_err::write(dir.join("file"), "secret").expect("a file");
    fs_err::write(dir.join("empty"), "\n").expect("a file");
    fs_err::set_permissions(dir.join("empty"), std::fs::Permissions::from_mode(0o600)).expect("its mode");
    for (root, source, more, pool, flags, code, words) in [
        (here, main, small, "", "", 0, ""),
        ("DIR/file/root", main, small, "", "", 78, "root: `DIR/file` cannot be written: not a directory"),
        (here, main, "release: {min_free: 1000000GB}", "", "", 0, "release.min_free: "),
        (here, "repository: REPO, branch: mian", small, "", "", 0, "has no branch `mian`\nhint: is it `main`?"),
        (here, "repository: REPO, branch: mian", small, "", "--offline", 0, ""),
        (here, "repository: DIR/nowhere, branch: main", small, "", "", 0, "there is no repository at `DIR/nowhere`"),
        (here, main, "http: {listen: '127.0.0.1:1', token: '${file:DIR/empty}'}\nrelease: {min_free: 1MB}", "", "", 78, "http.token"),
        (
            here,
            main,
            "http: {listen: '127.0.0.1:1', token: '${env:SELFSTART_NO_SUCH}'}\nrelease: {min_free: 1MB}",
            "",
            "",
            78,
            "http.token",
        ),
        (
            here,
            "repository: REPO, branch: main, webhook: {secret: '${file:DIR/empty}'}",
            "http: {listen: '127.0.0.1:1'}\nrelease: {min_free: 1MB}",
            "",
            "",
            78,
            "source.webhook.secret: is empty",
        ),
        (here, "repository: REPO, branch: main, ca: DIR/no.pem", small, "", "", 78, "source.ca: `DIR/no.pem` cannot be read"),
        (
            here,
            "repository: 'https://localhost/x', branch: main, credentials: {token: '${file:DIR/no-token}'}",
            small,
            "",
            "--offline",
            78,
            "`source.credentials.token`",
        ),
        (
            here,
            "repository: 'git@localhost:x', branch: main, credentials: {ssh_key: DIR/file, known_hosts: DIR/no-hosts}",
            small,
            "",
            "--offline",
            78,
            "source.credentials.known_hosts: `DIR/no-hosts` cannot be read",
        ),
        (here, main, small, ", env_files: [DIR/no.env]", "", 78, "pools.w.env_files: `DIR/no.env` cannot be read"),
    ] {
        let full = |text: &str| text.replace("DIR", &dir.display().to_string());
        let told = check(root, &full(source), &full(more), &full(pool), flags);
        assert_eq!(told.code, code, "{source} {pool}: {told:?}");
        assert!(told.out.contains(&full(words)), "{words}: {told:?}");
        // Root is warned of on every machine where that is who we are.
        let others = told.out.lines().filter(|line| line.starts_with("warning: ") && !line.contains("run as root")).count();
        assert_eq!(others, usize::from(code == 0 && !words.is_empty()), "{told:?}");
    }
}

#[test]
fn check_warns_of_a_pool_whose_user_cannot_enter_the_home_of_the_runtime() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: only root may say whose workers are");
    }
    let node = Node::new();
    let dir = node.dir.path();
    let mode = |path: &Path, mode| fs_err::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("its mode");
    let home = dir.join("home");
    let bin = home.join(".rbenv/versions/3.3.1/bin");
    fs_err::create_dir_all(&bin).expect("a folder");
    fs_err::write(bin.join("ruby"), "#!/bin/sh\necho 'ruby 3.3.1 (2024)'\n").expect("a program");
    mode(&bin.join("ruby"), 0o755);
    mode(dir, 0o755);
    // 1 is `daemon`, whose pool may run what is in the home of its own; 65534 is `nobody`.
    std::os::unix::fs::chown(&home, Some(1), Some(1)).expect("given");
    let text = format!(
        "app: flipper\nroot: {0}/root\nuser: '1'\nsource: {{repository: {0}/repo, branch: main}}\nrelease: {{min_free: 1MB}}\n\
         build: {{runtime: {{rbenv: 3.3.1}}, env: {{RBENV_ROOT: {1}/.rbenv}}}}\n\
         pools:\n  own: {{command: sleep 9}}\n  same: {{command: sleep 9, user: '1'}}\n  other: {{command: sleep 9, user: '65534'}}\n",
        dir.display(),
        home.display()
    );
    fs_err::write(node.config(), text).expect("a file");
    let warned = || {
        let told = node.run("check --offline");
        assert!(told.code == 0 && told.out.contains("build.runtime: ruby 3.3.1: "), "{told:?}");
        told.out.lines().filter(|line| line.contains("of build.runtime")).map(str::to_owned).collect::<Vec<_>>()
    };
    let (home, ruby) = (home.display(), bin.join("ruby"));
    let wanted = |closed: &dyn std::fmt::Display| {
        let text = format!("`nobody` cannot run ruby of build.runtime, `{}`: `{closed}` is closed to it", ruby.display());
        vec![format!("warning: pools.other.user: {text}")]
    };
    mode(&dir.join("home"), 0o700);
    assert_eq!(warned(), wanted(&home));
    mode(&dir.join("home"), 0o755);
    assert_eq!(warned(), [""; 0]);
    // The program itself, and a way that only its links lead through.
    mode(&ruby, 0o750);
    std::os::unix::fs::chown(&ruby, Some(1), Some(1)).expect("given");
    assert_eq!(warned(), wanted(&ruby.display()));
    let closed = dir.join("closed");
    fs_err::create_dir(&closed).expect("a folder");
    std::os::unix::fs::chown(&closed, Some(1), Some(1)).expect("given");
    fs_err::rename(&ruby, closed.join("ruby")).expect("moved");
    mode(&closed.join("ruby"), 0o755);
    mode(&closed, 0o700);
    std::os::unix::fs::symlink(closed.join("ruby"), &ruby).expect("a link");
    assert_eq!(warned(), wanted(&closed.display()));
}

#[test]
fn a_reader_who_goes_away_is_no_error() {
    let node = Node::new();
    let line = json!({"schema": 1, "at": "2026-11-22T10:15:00.000Z", "kind": "x", "text": "y".repeat(1000)}).to_string() + "\n";
    fs_err::write(node.events(), line.repeat(1000)).expect("a file");
    let mut child = node.command("events -n 1000").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary");
    let mut first = [0; 10];
    child.stdout.take().expect("a pipe").read_exact(&mut first).expect("some output");
    let told = Told::from(child.wait_with_output().expect("an end"));
    assert_eq!((told.code, told.err.as_str()), (0, ""));
}

/// Ends a child that follows for ever.
struct Following(Child, mpsc::Receiver<String>);

impl Following {
    fn start(node: &Node, line: &str) -> Self {
        let mut child = node.command(line).stdout(Stdio::piped()).spawn().expect("the binary");
        let out: ChildStdout = child.stdout.take().expect("a pipe");
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || BufReader::new(out).lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        Self(child, lines)
    }

    fn next(&self) -> String {
        self.1.recv_timeout(std::time::Duration::from_secs(20)).expect("a line within 20 s")
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn append(path: &Path, text: &str) {
    let mut file = fs_err::OpenOptions::new().append(true).create(true).open(path).expect("a file");
    file.write_all(text.as_bytes()).expect("room");
}

#[test]
fn logs_follow_several_slots_through_rotation_and_see_new_ones() {
    let node = Node::new();
    let log = |slot: u32| node.root().join(format!("log/checkins.{slot}.log"));
    let line = |n: u32, text: &str| format!("2026-11-22T10:15:{n:02}.000Z out {text}\n");
    append(&log(0), &line(1, "one"));
    append(&log(1), &line(2, "two"));
    append(&node.root().join("log/other.0.log"), &line(2, "not asked for"));
    let following = Following::start(&node, "logs checkins -f");
    assert_eq!(following.next(), "2026-11-22T10:15:01.000Z out checkins/0 one");
    assert_eq!(following.next(), "2026-11-22T10:15:02.000Z out checkins/1 two");
    append(&log(0), &line(3, "three"));
    assert_eq!(following.next(), "2026-11-22T10:15:03.000Z out checkins/0 three");
    append(&log(0), &line(4, "four"));
    fs_err::rename(log(0), node.root().join("log/checkins.0.log.1")).expect("moved");
    append(&log(0), &line(5, "five"));
    assert_eq!(following.next(), "2026-11-22T10:15:04.000Z out checkins/0 four");
    assert_eq!(following.next(), "2026-11-22T10:15:05.000Z out checkins/0 five");
    append(&log(2), &line(6, "a new slot"));
    assert_eq!(following.next(), "2026-11-22T10:15:06.000Z out checkins/2 a new slot");
}

#[test]
fn following_ends_when_the_reader_goes_away_though_nothing_is_written() {
    let node = Node::new();
    append(&node.events(), "{\"schema\":1,\"at\":\"2026-11-22T10:15:00.000Z\",\"kind\":\"agent_started\",\"text\":\"x\"}\n");
    for line in ["events -f", "logs -f"] {
        let mut child = node.command(line).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the binary");
        drop(child.stdout.take());
        assert_eq!(child.wait().expect("an end").code(), Some(0), "{line}");
    }
}

#[test]
fn logs_need_no_agent_and_name_what_there_is() {
    let node = Node::new();
    let told = node.run("logs checkins");
    assert_eq!((told.code, told.out.as_str()), (1, ""));
    append(&node.root().join("log/checkins.0.log"), "2026-11-22T10:15:01.000Z err  hello \n");
    assert_eq!(node.run("logs checkins/0").out, "2026-11-22T10:15:01.000Z err  hello \n");
    for (line, hint) in [
        ("logs chekins", "hint: did you mean `checkins`?\n"),
        ("logs checkins/7", "hint: pool `checkins` has the slots 0 to 1\n"),
        ("why chekins/0", "hint: did you mean `checkins`?\n"),
        ("why checkins/7", "hint: pool `checkins` has the slots 0 to 1\n"),
    ] {
        let told = node.run(line);
        assert!(told.code == 2 && told.err.ends_with(hint), "{line}: {told:?}");
    }
    let config = fs_err::read_to_string(node.config()).expect("a file").replace("count: 2", "count: 2, group: both");
    fs_err::write(node.config(), config).expect("a file");
    assert_eq!(node.run("logs both").out, "2026-11-22T10:15:01.000Z err checkins/0  hello \n");
}

#[test]
fn events_follow_and_why_answers_without_an_agent() {
    let node = Node::new();
    let event = |second: u32, slot: u32, verdict: &str| {
        let at = format!("2026-11-22T10:15:{second:02}.000Z");
        json!({"schema": 1, "at": at, "kind": "worker_ended", "pool": "checkins", "slot": slot, "verdict": verdict, "text": "ended"})
            .to_string()
            + "\n"
    };
    append(&node.events(), &event(1, 3, "memory"));
    let following = Following::start(&node, "events -f --json");
    assert_eq!(serde_json::from_str::<Value>(&following.next()).expect("JSON")["verdict"], "memory");
    append(&node.events(), &event(2, 3, "exit"));
    assert_eq!(serde_json::from_str::<Value>(&following.next()).expect("JSON")["verdict"], "exit");
    append(&node.events(), &event(3, 4, "stale"));
    let told = node.run("why checkins/3 --json");
    let verdicts = serde_json::from_str::<Value>(&told.out).expect("JSON");
    let kinds: Vec<_> = verdicts["verdicts"].as_array().expect("a list").iter().map(|event| event["verdict"].clone()).collect();
    assert_eq!(kinds, ["exit", "memory"], "newest first");
    assert_eq!(node.run("why checkins/3 -n 1").out.lines().count(), 1);
    assert_eq!(node.run("why deploy").out, "there was no deploy, as far back as the events go\n");
    for kind in ["deploy_failed", "fetch_failed", "worker_started", "fetch_failed", "fetch_failed"] {
        let event = json!({"schema": 1, "at": "2026-11-22T10:16:00.000Z", "kind": kind, "text": "x"});
        append(&node.events(), &format!("{event}\n"));
    }
    let told = node.run("why deploy --json");
    let kinds: Vec<_> = serde_json::from_str::<Value>(&told.out).expect("JSON")["verdicts"].as_array().expect("a list").clone();
    assert_eq!(kinds.iter().map(|event| event["kind"].clone()).collect::<Vec<_>>(), ["fetch_failed", "deploy_failed"]);
}

#[test]
fn exec_becomes_the_command_in_a_worker_s_place() {
    let node = Node::new();
    let ids = |what: &str| -> u32 {
        let out = Command::new("id").arg(what).output().expect("id(1)").stdout;
        String::from_utf8(out).expect("text").trim().parse().expect("a number")
    };
    // Root becomes somebody else, anybody else stays who they are.
    let (uid, gid) = if ids("-u") == 0 { (65534, 65534) } else { (ids("-u"), ids("-g")) };
    let launch = json!({"launch": {
        "pool": "checkins", "argv": ["sleep", "9"], "cwd": "/", "uid": uid, "gid": gid, "groups": if uid == 65534 { vec![65534] } else { vec![] },
        "env": {"PATH": "/usr/bin:/bin", "QUEUE": "checkins", "SELFSTART_WORKER": "checkins/0#1@/x"}, "nofile": 64, "umask": 0o77,
    }});
    let agent = node.agent(vec![vec![done(launch.clone())], vec![done(launch.clone())], vec![done(launch)]]);
    let mut command = node.command("exec --pool checkins -- sh -c");
    let told = Told::from(command.arg("env | sort; pwd; ulimit -n; umask; id -u; exit 7").output().expect("the binary"));
    // sh itself adds PWD and the like: only what we gave and did not give is looked at.
    let lines: Vec<_> = told.out.lines().collect();
    assert_eq!(told.code, 7, "{told:?}");
    assert!(lines.contains(&"QUEUE=checkins") && lines.contains(&"PATH=/usr/bin:/bin"), "{lines:?}");
    assert!(!told.out.contains("SELFSTART_") && !told.out.contains("TZ="), "{lines:?}");
    assert_eq!(lines[lines.len() - 4..], ["/", "64", "0077", uid.to_string().as_str()], "{lines:?}");
    let told = node.run("exec -- no-such-command");
    assert_eq!(told.code, 127);
    assert_eq!(told.err, "error: there is no command `no-such-command` in the release or in the worker's PATH\n");
    assert_eq!(node.run("exec true --config is-the-command-s").code, 0);
    let requests = agent.join().expect("the agent");
    assert_eq!(requests[0]["command"], json!({"verb": "launch", "pool": "checkins"}));
}

#[test]
fn times_are_those_of_the_readers_time_zone_and_of_utc_for_programs() {
    let node = Node::new();
    let event = r#"{"schema":1,"seq":1,"at":"2026-11-22T12:00:00.000Z","kind":"held","text":"held"}"#;
    fs_err::write(node.events(), format!("{event}\n")).expect("a file");
    let told = |tz: &str, line: &str| Told::from(node.command(line).env("TZ", tz).output().expect("the binary"));
    let mut zones = vec![("JST-9", "21:00:00+09:00"), ("UTC", "12:00:00+00:00"), ("No/Such_City", "12:00:00+00:00")];
    if Path::new("/usr/share/zoneinfo/Asia/Tokyo").is_file() {
        zones.push(("Asia/Tokyo", "21:00:00+09:00"));
    } else {
        eprintln!("skipped: this machine has no time zones by name");
    }
    for (tz, time) in zones {
        for line in ["events", "why deploy"] {
            let told = told(tz, line);
            assert!(told.code == 0 && told.out.contains(time), "TZ={tz} {line}: {told:?}");
        }
        assert_eq!(told(tz, "events --json").out, format!("{event}\n"), "TZ={tz}");
    }
}
