//! From a repository to minded pools, and back after a reboot.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::process::Signal;

use crate::node::{Node, PATIENCE, QUICK, all_pids, text_of};

#[test]
fn a_repository_becomes_a_built_release_with_ready_pools() {
    let node = Node::new();
    let revision = node.commit(&[("bin/go", "#!/bin/sh\nexec \"$@\"\n"), ("plain", "text\n"), ("log/kept", "of the tree\n")]);
    std::os::unix::fs::symlink("bin/go", node.path("src/link")).expect("a link");
    let revision = if revision.is_empty() { revision } else { node.commit(&[]) };
    node.configure_raw(
        "app: e2e\nroot: @DIR@/root\nsource: {repository: @DIR@/src, branch: main}\nrelease: {min_free: 1MB, confirm: 0s, linked_dirs: [log, tmp/pids]}\n\
         build: {env: {MARK: of the build}, steps: ['echo \"$MARK\" >built.txt', {run: 'pwd -P >>built.txt; echo said by the build', timeout: 5s}]}\n\
         pools:\n  a: {command: ./bin/go @FIXTURE@, count: 2, ready: {after: 50ms}}\n  b: {shell: 'exec \"@FIXTURE@\"', after: [a], ready: {after: 50ms}}\n",
    );
    node.boot();

    let (live, release) = node.live();
    node.same(live, revision.clone());
    let (_, link) =
        node.current().to_str().and_then(|it| it.split_once('/')).map(|(a, b)| (a.to_owned(), b.to_owned())).expect("a relative link");
    assert_eq!(link, release);
    let path = node.root("releases").join(&release);
    let text = |below: &str| fs_err::read_to_string(path.join(below)).expect(below);
    assert_eq!(text("REVISION").trim(), revision);
    assert_eq!(text("plain"), "text\n");
    assert_eq!(text("built.txt"), format!("of the build\n{}\n", path.display()));
    let mode = |below: &str| fs_err::metadata(path.join(below)).expect(below).permissions().mode() & 0o111;
    assert_ne!(mode("bin/go"), 0);
    assert_eq!(mode("plain"), 0);
    assert_eq!(fs_err::read_link(path.join("link")).expect("a link"), Path::new("bin/go"));
    assert!(fs_err::symlink_metadata(path.join("log")).expect("log").is_symlink());
    assert_eq!(text("log/kept"), "of the tree\n");
    assert_eq!(fs_err::read_to_string(node.root("shared/log/kept")).expect("copied"), "of the tree\n");
    assert!(fs_err::metadata(path.join("tmp/pids")).expect("linked").is_dir());
    assert!(fs_err::read_to_string(node.root("log").join(format!("build.{release}.log"))).expect("a log").contains("said by the build"));

    // `b` waits for `a`.
    let events = node.events();
    let at = |kind: &str, pool: &str| events.iter().position(|event| event["kind"] == kind && event["pool"] == pool).expect("told");
    assert!(at("worker_started", "b") > at("worker_ready", "a"));
    node.same(node.look("/pools/0/ready"), 2.into());
    node.same(node.look("/pools/1/ready"), 1.into());
    node.same(node.look("/deploy/last_error"), serde_json::Value::Null);
}

#[test]
fn a_worker_has_exactly_the_environment_that_is_promised_and_secrets_stay_secret() {
    let node = Node::new();
    let revision = node.git(&["rev-parse", "HEAD"]);
    node.write("secret", "s3cret-of-e2e\n");
    node.write("more.env", "# a comment\nOF_FILE=from the file\n");
    node.configure(
        "  w:\n    command: '@FIXTURE@ --env-dump @DIR@/env'\n    ready: {after: 50ms}\n    port: 7000\n    env_files: ['@DIR@/more.env']\n    env: {TOKEN: '${file:@DIR@/secret}', WHERE: '{pool}/{slot} of {app} {port} {start}'}",
        "",
    );
    node.boot();
    node.cli(&["status"]).exits(0);
    node.cli(&["reload", "--plan"]).exits(0);

    let (_, release) = node.live();
    let path = node.root("releases").join(&release).display().to_string();
    let root = node.path("root").display().to_string();
    let dump = node.text("env");
    let (variables, cwd): (Vec<&str>, Vec<&str>) = dump.lines().partition(|line| !line.starts_with('#'));
    assert_eq!(cwd, [format!("#cwd={path}")]);
    let has: BTreeSet<String> = variables.iter().map(|it| (*it).to_owned()).collect();
    let names: BTreeSet<&str> = variables.iter().filter_map(|it| Some(it.split_once('=')?.0)).collect();
    let promised = [
        "PATH",
        "LANG",
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "PWD",
        "PORT",
        "OF_FILE",
        "TOKEN",
        "WHERE",
        "SELFSTART_APP",
        "SELFSTART_ROOT",
        "SELFSTART_POOL",
        "SELFSTART_SLOT",
        "SELFSTART_GENERATION",
        "SELFSTART_RELEASE",
        "SELFSTART_REVISION",
        "SELFSTART_WORKER",
    ];
    assert_eq!(names, BTreeSet::from(promised));
    for wanted in [
        "LANG=C.UTF-8".to_owned(),
        format!("PWD={path}"),
        "PORT=7000".to_owned(),
        "OF_FILE=from the file".to_owned(),
        "TOKEN=s3cret-of-e2e".to_owned(),
        "WHERE=w/0 of e2e 7000 1".to_owned(),
        "SELFSTART_APP=e2e".to_owned(),
        format!("SELFSTART_ROOT={root}"),
        "SELFSTART_POOL=w".to_owned(),
        "SELFSTART_SLOT=0".to_owned(),
        "SELFSTART_GENERATION=1".to_owned(),
        format!("SELFSTART_RELEASE={release}"),
        format!("SELFSTART_REVISION={revision}"),
    ] {
        assert!(has.contains(&wanted), "{wanted} is not in {has:#?}");
    }

    assert!(has.iter().any(|it| it.starts_with("SELFSTART_WORKER=w/0#1:") && it.ends_with(&format!("@{root}"))), "{has:#?}");

    // Nowhere else.
    let told = [node.cli(&["status", "--json"]), node.cli(&["events", "--json"]), node.cli(&["check", "--json"]), node.cli(&["logs"])];
    assert!(told.iter().all(|said| !said.out.contains("s3cret") && !said.err.contains("s3cret")), "{told:?}");
    assert!(!node.text("agent.log").contains("s3cret"));
    let mut folders = vec![node.path("root")];
    while let Some(folder) = folders.pop() {
        for entry in fs_err::read_dir(folder).expect("read").filter_map(Result::ok) {
            let kind = entry.file_type().expect("known");
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                let bytes = fs_err::read(entry.path()).unwrap_or_default();
                assert!(!bytes.windows(6).any(|it| it == b"s3cret"), "the secret is in {}", entry.path().display());
            }
        }
    }
    let shown = |pid: &i32| fs_err::read(format!("/proc/{pid}/cmdline")).unwrap_or_default().windows(6).any(|it| it == b"s3cret");
    assert!(!all_pids().iter().any(shown));

    // Read again at each start.
    node.write("more.env", "OF_FILE=changed\n");
    node.cli(&["restart"]).exits(0);
    let dump = node.text("env");
    assert!(dump.contains("OF_FILE=changed\n") && dump.contains("WHERE=w/0 of e2e 7000 2\n"), "{dump}");
}

#[test]
fn what_is_built_already_is_neither_built_nor_copied_again() {
    let node = Node::new();
    node.configure(&format!("  w: {{command: '@FIXTURE@', {QUICK}}}"), "build: {steps: ['echo once >>@DIR@/builds']}");
    node.boot();
    let before = node.live();
    let said = node.cli(&["deploy"]).exits(0).says(&["is live already"]);
    assert!(said.took.as_secs() < 10, "{said:?}");
    node.signal_keeper(Signal::TERM);
    node.same(node.ended(), Some(0));

    let mark = node.mark();
    node.boot();
    node.same(node.live(), before);
    node.same(node.text("builds"), "once\n".to_owned());
    node.same(fs_err::read_dir(node.root("releases")).expect("read").count(), 1);
    assert!(node.since(mark, &["deploy_started", "build_step", "switched"]).is_empty());
}

#[test]
fn a_remote_out_of_reach_at_boot_does_not_keep_the_last_good_release_from_starting() {
    let node = Node::new();
    let source = "source: {repository: @DIR@/src, branch: main, boot_timeout: 1s}";
    node.configure(&format!("  w: {{command: '@FIXTURE@', {QUICK}}}"), source);
    node.boot();
    let before = node.live();
    node.signal_keeper(Signal::TERM);
    node.ended();

    let next = node.commit(&[("README", "second\n")]);
    fs_err::rename(node.path("src"), node.path("away")).expect("moved");
    let mark = node.mark();
    node.start_pools();
    node.same(node.live(), before);
    let failed = node.told(mark, "fetch_failed", "could not be fetched");
    assert!(text_of(&failed).contains("src"), "{failed}");
    let started = node.told(mark, "deploy_finished", "the pools start on");
    assert!(text_of(&started).len() > 40, "{started}");
    assert!(node.look("/deploy/last_error").is_string());

    // It comes back by itself.
    fs_err::rename(node.path("away"), node.path("src")).expect("moved");
    node.until("the next revision", || (node.live().0 == next).then_some(()));
    node.told(mark, "fetch_failed", "answers again");
    node.idle();
    node.same(node.look("/deploy/last_error"), serde_json::Value::Null);
}

#[test]
fn with_nothing_to_start_and_no_remote_it_keeps_trying_and_says_so() {
    let node = Node::new();
    node.configure(
        &format!("  w: {{command: '@FIXTURE@', {QUICK}}}"),
        "source: {repository: @DIR@/src, branch: main, boot_timeout: 500ms}",
    );
    fs_err::rename(node.path("src"), node.path("away")).expect("moved");
    node.start();
    let said = node.told(0, "fetch_failed", "nothing to start meanwhile");
    assert!(text_of(&said).contains("tried again in"), "{said}");
    node.until("a failure in status", || node.look("/deploy/last_error").is_string().then_some(()));
    node.cli(&["wait", "--ready", "--timeout", "1s"]).exits(1);
    fs_err::rename(node.path("away"), node.path("src")).expect("moved");
    node.cli(&["wait", "--ready", "--timeout", "40s"]).exits(0);
    node.state("w", "ready");
}

#[test]
fn the_service_manager_is_told_when_the_node_is_minded_and_when_it_ends() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    let node = Node::new();
    let hold = "build: {steps: ['while test -e @DIR@/hold; do sleep 0.05; done']}";
    let pools = format!("  w: {{command: '@FIXTURE@ --env-dump @DIR@/env', {QUICK}}}");
    node.configure(&pools, hold);
    node.write("hold", "");
    let path = node.path("notify").display().to_string();
    let by_name = format!("selfstart-e2e-{}", std::process::id());
    let sockets = [
        (path.clone(), SocketAddr::from_pathname(&path).expect("an address")),
        (format!("@{by_name}"), SocketAddr::from_abstract_name(&by_name).expect("an address")),
    ];
    for (name, address) in sockets {
        let socket = UnixDatagram::bind_addr(&address).expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        let statuses = std::cell::RefCell::new(Vec::new());
        let heard = || {
            let mut text = [0; 512];
            loop {
                let length = socket.recv(&mut text).expect("a message in time");
                let said = std::str::from_utf8(&text[..length]).expect("text");
                // What it does, step by step.
                match said.strip_prefix("STATUS=") {
                    Some(status) => statuses.borrow_mut().push(status.to_owned()),
                    None => return said.to_owned(),
                }
            }
        };
        node.start_with(&["env", &format!("NOTIFY_SOCKET={name}")]);
        // Not after the first build, which may take for ever: a unit's TimeoutStartSec would end that again and again.
        assert_eq!(heard(), "READY=1\nSTATUS=minding `e2e`");
        node.cli(&["status"]).exits(0);
        if node.path("hold").exists() {
            node.same(node.live().1, String::new());
            fs_err::remove_file(node.path("hold")).expect("removed");
        }
        node.cli(&["wait", "--ready", "--timeout", "40s"]).exits(0);
        assert!(!node.text("env").contains("NOTIFY_SOCKET"), "workers are not the unit's main process");
        node.signal_keeper(Signal::TERM);
        assert_eq!(heard(), "STOPPING=1\nSTATUS=draining");
        node.same(node.ended(), Some(0));
        socket.set_nonblocking(true).expect("non-blocking");
        let mut text = [0; 512];
        while let Ok(length) = socket.recv(&mut text) {
            let said = std::str::from_utf8(&text[..length]).expect("text");
            statuses.borrow_mut().push(said.strip_prefix("STATUS=").expect("nothing else is said").to_owned());
        }
        let statuses = statuses.into_inner();
        let step = if name.starts_with('@') { "fetching" } else { "building" };
        assert!(statuses.contains(&format!("minding, {step} `e2e`: 0 of 1 workers ready")), "{statuses:?}");
        assert!(statuses.last().is_some_and(|last| last.starts_with("ending `e2e`: ")), "{statuses:?}");
    }
    // What does not start is not ready.
    let socket = UnixDatagram::bind(node.path("notify-2")).expect("a socket");
    node.configure_raw("app: e2e\nroot: @DIR@/elsewhere\nsorce: {}\n");
    node.start_with(&["env", &format!("NOTIFY_SOCKET={}", node.path("notify-2").display())]);
    node.same(node.ended(), Some(78));
    socket.set_nonblocking(true).expect("non-blocking");
    assert!(socket.recv(&mut [0; 512]).is_err());
}
