//! Machines that are not as they should be: memory for a disk, layers, a `/proc` that hides, a wrong clock, logs on a full disk, a
//! configuration that broke under a running node. What mounts something does so in a mount namespace that ends with its test.

use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::disk::{fill, inside, with_own_mounts};
use crate::node::{Node, QUICK, alive, run, signal_to};
use crate::site::{Authority, Manner, Site};

fn mount(words: &[&str], at: &Path) {
    run(Command::new("mount").args(words).arg(at));
}

fn kill_agent(node: &Node) {
    let agent = i32::try_from(node.look("/agent/pid").as_i64().expect("a pid")).expect("a pid");
    signal_to(agent, Signal::KILL);
    node.until("the next agent", || node.look("/agent/pid").as_i64().filter(|pid| *pid != i64::from(agent)));
}

/// Kills the keeper, and starts the next one.
fn kill_keeper(node: &Node) {
    node.signal_keeper(Signal::KILL);
    let _killed = node.ended();
    node.start_pools();
}

/// Releases come, go live, go back and go away; the agent and the keeper are killed. No worker ends but for a release.
fn whole_life(node: &Node) {
    let first = node.live();
    let second = node.commit(&[("README", "second\n")]);
    node.cli(&["deploy"]).exits(0);
    node.same(node.live().0, second.clone());
    node.cli(&["rollback"]).exits(0);
    node.same(node.live(), first.clone());
    node.cli(&["unhold"]).exits(0);
    for text in ["third\n", "fourth\n"] {
        let next = node.commit(&[("README", text)]);
        node.cli(&["deploy"]).exits(0);
        node.same(node.live().0, next);
    }
    node.until("old releases to go", || (!node.root("releases").join(&first.1).exists()).then_some(()));
    node.same(node.look("/deploy/last_error"), serde_json::Value::Null);
    let (pids, live) = (node.pids("w"), node.live());
    kill_agent(node);
    node.state("w", "ready");
    node.same((node.pids("w"), node.live()), (pids.clone(), live.clone()));
    kill_keeper(node);
    node.same((node.pids("w"), node.live()), (pids.clone(), live));
    assert!(pids.into_iter().all(alive));
    node.same(node.since(0, &["trouble"]).iter().map(|event| event["text"].to_string()).collect::<Vec<_>>(), Vec::new());
}

const KEEPS_TWO: &str = "app: e2e\nroot: @DIR@/root\nsource: {repository: @DIR@/src, branch: main}\nrelease: {min_free: 0, confirm: 0s, probation: 0s, keep: 2}\n\
                         build: {steps: ['echo built >built']}\npools:\n";

#[test]
fn a_root_in_memory_has_a_whole_life_and_check_says_that_it_ends_with_a_reboot() {
    with_own_mounts("machines::inside_memory");
}

#[test]
#[ignore = "run by a_root_in_memory_has_a_whole_life_and_check_says_that_it_ends_with_a_reboot"]
fn inside_memory() {
    if !inside() {
        return;
    }
    let node = Node::new();
    fs_err::create_dir_all(node.path("root")).expect("made");
    node.configure_raw(&format!("{KEEPS_TWO}  w: {{command: '@FIXTURE@', count: 2, {QUICK}}}\n"));
    let on_disk = node.cli(&["check", "--offline"]).exits(0);
    assert!(!on_disk.out.contains("in memory"), "{on_disk:?}");
    mount(&["-t", "tmpfs", "-o", "size=64m,mode=755", "none"], &node.path("root"));
    node.cli(&["check", "--offline"]).exits(0).says(&["root: ", "is in memory: a reboot loses releases"]);
    node.boot();
    whole_life(&node);
}

#[test]
fn a_root_of_layers_has_a_whole_life_and_releases_of_the_lower_one_go_too() {
    with_own_mounts("machines::inside_layers");
}

#[test]
#[ignore = "run by a_root_of_layers_has_a_whole_life_and_releases_of_the_lower_one_go_too"]
fn inside_layers() {
    if !inside() {
        return;
    }
    let node = Node::new();
    node.configure_raw(&format!("{KEEPS_TWO}  w: {{command: '@FIXTURE@', count: 2, {QUICK}}}\n"));
    // As an image has it: a release was made before, below what is written now. A folder from there cannot be renamed (EXDEV).
    let (root, memory) = (node.path("root"), node.path("memory"));
    for folder in [&root, &memory] {
        fs_err::create_dir_all(folder).expect("made");
    }
    mount(&["-t", "tmpfs", "-o", "size=64m,mode=755", "none"], &memory);
    for folder in ["lower", "upper", "work"] {
        fs_err::create_dir_all(memory.join(folder)).expect("made");
    }
    mount(&["--bind", &memory.join("lower").display().to_string()], &root);
    node.boot();
    node.signal_keeper(Signal::TERM);
    node.same(node.ended(), Some(0));
    // The agent ends with its keeper, not before it: its files are open for a moment more.
    node.until("a folder that nobody uses", || Command::new("umount").arg(&root).output().ok().filter(|said| said.status.success()));
    let of = |name: &str| memory.join(name).display().to_string();
    let layers = format!("lowerdir={},upperdir={},workdir={},redirect_dir=off", of("lower"), of("upper"), of("work"));
    mount(&["-t", "overlay", "-o", &layers, "overlay"], &root);
    let release = fs_err::read_link(root.join("current")).expect("a release of the image");
    let moved = std::fs::rename(root.join(&release), root.join("releases/moved"));
    assert_eq!(moved.map_err(|error| error.kind()), Err(std::io::ErrorKind::CrossesDevices), "this shows nothing");
    node.boot();
    whole_life(&node);
}

#[test]
fn a_full_disk_for_logs_alone_stops_neither_workers_nor_deploys_and_rotated_logs_keep_their_bound() {
    with_own_mounts("machines::inside_full_logs");
}

#[test]
#[ignore = "run by a_full_disk_for_logs_alone_stops_neither_workers_nor_deploys_and_rotated_logs_keep_their_bound"]
fn inside_full_logs() {
    if !inside() {
        return;
    }
    let node = Node::new();
    fs_err::create_dir_all(node.root("log")).expect("made");
    mount(&["-t", "tmpfs", "-o", "size=1m,mode=755", "none"], &node.root("log"));
    node.configure(
        &format!(
            "  w: {{command: '@FIXTURE@', {QUICK}}}\n  talker: {{command: '@FIXTURE@ --flood 0 20', {QUICK}}}\n  \
             flood: {{command: '@FIXTURE@ --flood 60000', log: {{max_size: 100KB, keep: 2}}, {QUICK}}}"
        ),
        "build: {steps: ['echo a word of the build']}",
    );
    node.boot();
    // Far more than the disk has room for was written.
    node.until("the end of the flood", || node.text("root/log/flood.0.log").contains(" n=060000 ").then_some(()));
    let sizes = ["flood.0.log", "flood.0.log.1", "flood.0.log.2", "flood.0.log.3"]
        .map(|name| fs_err::metadata(node.root("log").join(name)).map_or(0, |file| file.len()));
    assert!(sizes[..3].iter().all(|size| *size <= 100_000) && sizes[1] > 50_000 && sizes[3] == 0, "{sizes:?}");

    let before = [node.pid("w"), node.pid("talker")];
    let ballast = node.root("log/ballast");
    let mark = node.mark();
    fill(&ballast);
    node.told(mark, "output_waits", "talker.0.log");
    node.cli(&["status"]).exits(0).says(&["the output for"]);
    // The disk of the state and of events has room.
    node.cli(&["pause", "w"]).exits(0);
    node.cli(&["resume", "w"]).exits(0);
    node.same([node.pid("w"), node.pid("talker")], before);
    signal_to(before[0], Signal::KILL);
    node.until("another worker", || node.pids("w").first().filter(|now| **now != before[0] && alive(**now)).map(drop));
    node.state("w", "ready");
    assert!(alive(before[1]));
    let next = node.commit(&[]);
    let said = node.cli(&["deploy", "--no-wait"]).exits(0);
    eprintln!("a deploy says: {said:?}");
    node.until("the new release to be live", || (node.live().0 == next).then_some(()));
    fs_err::remove_file(&ballast).expect("removed");
    node.told(mark, "output_goes_on", "talker.0.log");
    node.idle();
    node.until("nothing to be noted", || (node.look("/notes") == serde_json::json!([])).then_some(()));
    // Without a gap, of the talker that wrote all the time.
    let of_first = format!(" pid={}", before[1]);
    let text = node.text("root/log/talker.0.log");
    let lines = text.lines().filter(|line| line.ends_with(&of_first));
    let numbers: Vec<u64> = lines
        .map(|line| line.split("n=").nth(1).and_then(|rest| rest.split(' ').next()).and_then(|n| n.parse().ok()).expect("a number"))
        .collect();
    assert!(numbers.len() > 40 && numbers.iter().zip(1..).all(|(seen, n)| *seen == n), "{} lines", numbers.len());
}

#[test]
fn a_configuration_that_broke_stops_no_worker_whoever_starts_again() {
    let node = Node::with_pools(&format!("  w: {{command: '@FIXTURE@', count: 2, {QUICK}}}"));
    let good = node.text("config.yaml");
    let pids = node.pids("w");
    let broken = good.replace("count: 2", "count: two");
    node.write("config.yaml", &broken);
    let goes_on = |what: &str| {
        node.state("w", "ready");
        assert_eq!(node.pids("w"), pids, "{what}");
        let notes = node.look("/notes").to_string();
        assert!(notes.contains("pools.w.count"), "{what}: {notes}");
        node.cli(&["status"]).exits(0).says(&["pools.w.count"]);
    };
    let mark = node.mark();
    node.cli(&["reload"]).exits(78).says(&["pools.w.count", "the running configuration is kept"]);
    goes_on("a reload");
    kill_agent(&node);
    goes_on("a killed agent");
    assert!(node.since(mark, &["config_refused"]).len() >= 2, "{:?}", node.since(mark, &["config_refused"]));
    kill_keeper(&node);
    goes_on("a killed keeper");
    let next = node.commit(&[]);
    node.cli(&["deploy"]).exits(0);
    node.same(node.live().0, next);
    assert!(node.look("/notes").to_string().contains("pools.w.count"));
    node.same(node.pids("w").len(), 2);
    node.write("config.yaml", &good);
    node.cli(&["reload"]).exits(0);
    node.same(node.look("/notes"), serde_json::json!([]));
}

#[test]
fn a_proc_that_hides_makes_unknown_what_cannot_be_seen_and_keeps_releases() {
    with_own_mounts("machines::inside_a_proc_that_hides");
}

#[test]
#[ignore = "run by a_proc_that_hides_makes_unknown_what_cannot_be_seen_and_keeps_releases"]
fn inside_a_proc_that_hides() {
    if !inside() {
        return;
    }
    let blind = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"];
    for option in ["hidepid=1", "hidepid=2"] {
        mount(&["-t", "proc", "-o", option, "proc"], Path::new("/proc"));
        let node = Node::new();
        let configuration =
            format!("user: nobody\n{KEEPS_TWO}  w: {{command: '@FIXTURE@', count: 2, memory: {{ladder: [1GB], every: 1s}}, {QUICK}}}\n");
        node.configure_raw(&configuration.replace("keep: 2", "keep: 1"));
        let said = crate::node::said(
            Command::new(blind[0])
                .args(&blind[1..])
                .arg(env!("CARGO_BIN_EXE_selfstart"))
                .arg("--config")
                .arg(node.path("config.yaml"))
                .args(["check", "--offline"]),
        );
        assert!(said.out.contains("/proc is mounted with `hidepid="), "{said:?}");
        // Root who may look sees all of it.
        assert!(!node.cli(&["check", "--offline"]).out.contains("hidepid"));
        node.start_with(&blind);
        node.until("the control socket", || node.root("run/control.sock").exists().then_some(()));
        node.cli(&["wait", "--ready", "--timeout", "40s"]).exits(0);
        node.idle();
        node.cli(&["status"]).exits(0).says(&["/proc is mounted with `hidepid="]);
        // Never zero; and no limit is passed by what is not known.
        for slot in node.slots("w") {
            assert!(slot["memory_bytes"].is_null() && slot["memory"].is_null(), "{slot}");
        }
        let first = node.live();
        for _ in 0..3 {
            node.commit(&[]);
            node.cli(&["deploy"]).exits(0);
        }
        assert!(node.root("releases").join(&first.1).exists(), "a release that somebody unseen may use is gone");
        let told = node.told(0, "trouble", "cannot be removed: whether a process lives there is not known");
        eprintln!("{option}: {told}");
        kill_agent(&node);
        node.state("w", "ready");
        node.signal_keeper(Signal::TERM);
        node.same(node.ended(), Some(0));
        drop(node);

        // An unprivileged one sees its own, and nobody else's workers are its own: it goes on as ever.
        let node = Node::new();
        fs_err::create_dir_all(node.path("root")).expect("made");
        run(Command::new("chown").arg("nobody").arg(node.path("root")));
        node.configure_raw(&configuration.replace("user: nobody\n", ""));
        node.start_with(&["setpriv", "--reuid=nobody", "--clear-groups"]);
        node.until("the control socket", || node.root("run/control.sock").exists().then_some(()));
        node.cli(&["wait", "--ready", "--timeout", "40s"]).exits(0);
        node.cli(&["status"]).exits(0).says(&["/proc is mounted with `hidepid="]);
        node.until("the memory of its workers", || {
            node.slots("w").iter().all(|slot| slot["memory_bytes"].as_u64() > Some(0)).then_some(())
        });
        node.commit(&[]);
        node.cli(&["deploy"]).exits(0);
        drop(node);
        run(Command::new("umount").arg("/proc"));
    }
}

#[test]
fn a_wrong_clock_at_boot_is_network_trouble_and_no_jump_of_it_hangs_or_ends_anything() {
    with_own_mounts("machines::inside_a_wrong_time");
}

#[test]
#[ignore = "run by a_wrong_clock_at_boot_is_network_trouble_and_no_jump_of_it_hangs_or_ends_anything"]
fn inside_a_wrong_time() {
    if !inside() {
        return;
    }
    let library = ["x86_64", "aarch64"].map(|machine| format!("/usr/lib/{machine}-linux-gnu/faketime/libfaketimeMT.so.1"));
    let Some(library) = library.iter().find(|library| Path::new(library).exists()) else {
        panic!("libfaketime is missing: `apt-get install faketime`");
    };
    let node = Node::new();
    // Whatever is started from here on has the clock of /etc/faketimerc: helpers get no environment of ours.
    let etc = node.path("etc");
    fs_err::create_dir_all(&etc).expect("made");
    mount(&["-t", "tmpfs", "none"], &etc);
    for folder in ["upper", "work"] {
        fs_err::create_dir_all(etc.join(folder)).expect("made");
    }
    let layers = format!("lowerdir=/etc,upperdir={0}/upper,workdir={0}/work", etc.display());
    mount(&["-t", "overlay", "-o", &layers, "overlay"], Path::new("/etc"));
    let clock = |offset: &str| fs_err::write("/etc/faketimerc", format!("{offset}\n")).expect("written");

    let authority = Authority::new();
    node.write("ca.pem", &authority.pem());
    let site = Site::start(node.path("served"), authority.localhost(), Manner::Good);
    let push = || {
        let bare = node.path("served/app.git");
        if !bare.exists() {
            run(Command::new("git").args(["init", "-q", "--bare", "-b", "main"]).arg(&bare));
        }
        node.git(&["push", "-q", "--force", &bare.display().to_string(), "main"]);
    };
    push();
    let source =
        format!("source: {{repository: 'https://localhost:{}/app.git', branch: main, ca: '@DIR@/ca.pem', boot_timeout: 1s}}\n", site.port);
    let configuration = KEEPS_TWO.replace("source: {repository: @DIR@/src, branch: main}\n", &source);
    node.configure_raw(&format!(
        "{configuration}  w: {{command: '@FIXTURE@ --flood 0 50', count: 2, log: {{max_age: 1h, keep: 3}}, {QUICK}}}\n"
    ));
    clock("-40y");
    fs_err::write("/etc/ld.so.preload", format!("{library}\n")).expect("written");
    node.start_with(&["env", "FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1", "NO_FAKE_STAT=1", "FAKETIME_DISABLE_SHM=1"]);
    node.until("the certificate not to be valid yet", || {
        let error = node.look("/deploy/last_error").to_string();
        error.contains("valid").then_some(())
    });
    assert!(node.events()[0]["at"].to_string().starts_with("\"19"), "{}", node.events()[0]);
    // The clock is set, as by NTP: by itself it goes on.
    clock("+0");
    node.cli(&["wait", "--ready", "--timeout", "50s"]).exits(0);
    node.idle();
    let (first, pids) = (node.live(), node.pids("w"));

    // Backwards, and into the future: nothing ends, nothing hangs.
    for offset in ["-20y", "+3y", "+0"] {
        clock(offset);
        node.cli(&["status"]).exits(0);
        node.same(node.pids("w"), pids.clone());
    }
    // A release that was made "before" the live one is the newer one all the same: it stays, and what it replaced is the way back.
    clock("-1d");
    let second = node.commit(&[]);
    push();
    node.cli(&["deploy"]).exits(0);
    let newer = node.live();
    node.same(newer.0.clone(), second);
    assert!(newer.1 < first.1, "{newer:?} {first:?}");
    node.cli(&["rollback"]).exits(0);
    node.same(node.live(), first.clone());
    node.cli(&["unhold"]).exits(0);
    let third = node.commit(&[]);
    push();
    node.cli(&["deploy"]).exits(0);
    let live = node.live();
    node.same(live.0, third);
    assert!(node.root("releases").join(&newer.1).exists());
    node.until("the oldest, by deploys, to go", || (!node.root("releases").join(&first.1).exists()).then_some(()));
    // A crash waits as long as ever: by a clock that does not jump.
    clock("-30y");
    signal_to(node.pids("w")[0], Signal::KILL);
    node.until("another worker", || (node.pids("w").len() == 2 && node.pids("w").into_iter().all(alive)).then_some(()));
    node.state("w", "ready");
    kill_agent(&node);
    node.state("w", "ready");
    node.signal_keeper(Signal::TERM);
    node.same(node.ended(), Some(0));
    fs_err::remove_file("/etc/ld.so.preload").expect("removed");
}

#[test]
fn a_reload_after_root_was_changed_says_where_the_node_is_and_that_it_needs_a_restart() {
    let node = Node::with_pools(&format!("  w: {{command: '@FIXTURE@', {QUICK}}}"));
    let changed = node.text("config.yaml").replace("/root\n", "/other\n");
    node.write("config.yaml", &changed);
    let root = node.path("root").display().to_string();
    node.cli(&["reload"]).exits(3).says(&["no agent answers", "another `root`", &root, "restart selfstart"]);
}

#[test]
fn a_name_that_does_not_resolve_is_in_the_verdict_of_who_was_not_ready() {
    let node = Node::new();
    node.configure(
        "  w: {command: '@FIXTURE@ --ignore TERM', stop: [TERM 300ms, KILL], ready: {tcp: 'no-such-host.invalid:80', within: 2s}}",
        "",
    );
    node.start();
    let told = node.told(0, "worker_ended", "does not resolve");
    let text = told["text"].as_str().unwrap_or_default();
    assert!(
        text.contains("ignored TERM for 300ms; ended by KILL because it was not ready within 2s: `no-such-host.invalid:80` does not"),
        "{text}"
    );
}

#[test]
fn who_waits_for_a_node_whose_first_deploy_fails_hears_why() {
    let node = Node::new();
    node.configure(&format!("  w: {{command: '@FIXTURE@', {QUICK}}}"), "build: {steps: ['echo no such luck >&2; exit 3']}");
    node.start();
    node.until("the control socket", || node.root("run/control.sock").exists().then_some(()));
    let said = node.cli(&["wait", "--ready", "--timeout", "30s"]).exits(1).says(&["the last deploy failed", "no such luck"]);
    assert!(said.took < std::time::Duration::from_secs(25), "{said:?}");
}
