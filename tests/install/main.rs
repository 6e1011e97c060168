//! `install` and `uninstall`, into real trees: what is there afterwards, what is there after both, and what a real shell makes of rc.local.

#[path = "../kit/told.rs"]
mod told;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use told::Told;

const UNITS: [&str; 4] = ["selfstart.service", "selfstart-workers.service", "selfstart@.service", "selfstart-workers@.service"];

/// An image in a temporary folder.
struct Image(tempfile::TempDir);

impl Image {
    /// With folders and, so that the tests need not copy it each time, a program.
    fn new() -> Self {
        let image = Self(tempfile::Builder::new().prefix("selfstart-install").tempdir().expect("a directory"));
        image.write("/usr/bin/selfstart", "#!/bin/sh\necho \"ran $*\"\n", 0o755);
        image.write("/usr/bin/setsid", "", 0o755);
        fs_err::create_dir_all(image.at("/etc")).expect("made");
        image
    }

    fn with_systemd() -> Self {
        let image = Self::new();
        image.write("/usr/lib/systemd/systemd", "", 0o755);
        image.write("/usr/lib/systemd/system/rc-local.service", "", 0o644);
        image
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path.trim_start_matches('/'))
    }

    fn write(&self, path: &str, text: &str, mode: u32) {
        let path = self.at(path);
        fs_err::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs_err::write(&path, text).expect("written");
        fs_err::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("set");
    }

    fn read(&self, path: &str) -> String {
        fs_err::read_to_string(self.at(path)).expect("there")
    }

    fn mode(&self, path: &str) -> u32 {
        fs_err::metadata(self.at(path)).expect("there").mode() & 0o7777
    }

    fn run(&self, line: &str) -> Told {
        let mut command = Command::new(env!("CARGO_BIN_EXE_selfstart"));
        command.args(line.split_whitespace()).arg("--root").arg(self.0.path()).stdin(Stdio::null());
        Told::from(command.output().expect("the binary"))
    }

    fn done(&self, line: &str) -> Told {
        let told = self.run(line);
        assert_eq!(told.code, 0, "{line}: {}{}", told.out, told.err);
        told
    }

    /// All that is there: modes, links, bytes.
    fn snapshot(&self) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
        fn walk(path: &Path, all: &mut BTreeMap<PathBuf, (u32, Vec<u8>)>) {
            let found = fs_err::symlink_metadata(path).expect("there");
            let content = if found.is_symlink() {
                fs_err::read_link(path).expect("a link").into_os_string().into_encoded_bytes()
            } else if found.is_file() {
                fs_err::read(path).expect("a file")
            } else {
                Vec::new()
            };
            all.insert(path.to_owned(), (found.mode(), content));
            if found.is_dir() {
                for entry in fs_err::read_dir(path).expect("a directory") {
                    walk(&entry.expect("an entry").path(), all);
                }
            }
        }
        let mut all = BTreeMap::new();
        walk(self.0.path(), &mut all);
        all
    }
}

/// The real shell, as systemd or init start rc.local: no terminal, an environment from nothing, a session of its own. The program's path
/// becomes `program`, the log's `log`.
fn boot(script: &str, dir: &Path, program: &str, log: &Path) -> Told {
    let file = dir.join("rc.local");
    let text =
        script.replace("/usr/bin/selfstart </", &format!("{program} </")).replace("/usr/bin/selfstart /var", &format!("{program} /var"));
    fs_err::write(&file, text.replace("/var/log/selfstart.log", log.to_str().expect("text"))).expect("written");
    fs_err::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).expect("set");
    let mut command = Command::new("timeout");
    command.args(["30", "setsid", "--wait"]).arg(&file).arg("start").env_clear().env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin");
    Told::from(command.current_dir(dir).stdin(Stdio::null()).output().expect("started"))
}

fn until(what: &str, mut seen: impl FnMut() -> Option<String>) -> String {
    let began = Instant::now();
    loop {
        if let Some(seen) = seen() {
            return seen;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "not within 30 s: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn units_are_written_and_enabled_and_uninstall_leaves_no_trace() {
    let image = Image::with_systemd();
    let before = image.snapshot();
    let told = image.done("install");
    for unit in UNITS {
        let wanted = fs_err::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(unit)).expect("a unit");
        assert_eq!(image.read(&format!("/etc/systemd/system/{unit}")), wanted);
    }
    let link = image.at("/etc/systemd/system/multi-user.target.wants/selfstart.service");
    assert_eq!(fs_err::read_link(link).expect("a link"), Path::new("/etc/systemd/system/selfstart.service"));
    assert_eq!(image.mode("/etc/selfstart"), 0o750);
    assert_eq!(image.mode("/etc/selfstart/config.yaml.example"), 0o640);
    assert!(told.out.contains("next: write ") && told.err.contains("another build than this one, and stays"), "{}{}", told.out, told.err);
    let installed = image.snapshot();
    let told = image.done("install");
    assert!(told.out.starts_with("installed already: nothing was changed\n"), "{}", told.out);
    assert_eq!(image.snapshot(), installed);
    image.done("uninstall");
    assert_eq!(image.snapshot(), before);
    let told = image.done("uninstall");
    assert!(told.out.contains("nothing was changed"), "{}", told.out);
    assert_eq!(image.snapshot(), before);
}

#[test]
fn the_units_are_right_for_systemd_itself_and_follow_the_program() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        println!("left out: there is no systemd-analyze");
        return;
    }
    let image = Image::with_systemd();
    // One that is there on this machine: systemd-analyze looks.
    image.write("/usr/bin/env", "", 0o755);
    image.done("install --systemd --binary /usr/bin/env");
    let mut command = Command::new("systemd-analyze");
    command.args(["verify", "--man=no"]).args(UNITS.map(|unit| image.at(&format!("/etc/systemd/system/{}", unit.replace("@.", "@x.")))));
    for unit in ["selfstart@.service", "selfstart-workers@.service"] {
        let at = |unit: &str| image.at(&format!("/etc/systemd/system/{unit}"));
        symlink(at(unit), at(&unit.replace("@.", "@x."))).expect("linked");
    }
    let told = Told::from(command.output().expect("started"));
    let ours: Vec<&str> = told.err.lines().filter(|line| line.contains("selfstart")).collect();
    assert!(told.code == 0 && ours.is_empty(), "{}: {}", told.code, told.err);
    assert!(image.read("/etc/systemd/system/selfstart.service").contains("\nExecStart=/usr/bin/env run\n"));
}

#[test]
fn a_unit_that_somebody_changed_is_not_touched_unless_forced_and_comes_back() {
    let image = Image::with_systemd();
    let unit = "/etc/systemd/system/selfstart.service";
    image.write(unit, "[Service]\nExecStart=/bin/true\n", 0o600);
    let before = image.snapshot();
    let told = image.run("install --systemd");
    assert_eq!(told.code, 1);
    assert!(told.err.contains("somebody changed it") && told.err.contains("systemctl edit selfstart.service"), "{}", told.err);
    assert_eq!(image.snapshot(), before, "refused, and yet something was done");
    image.done("install --systemd --force");
    assert_eq!(image.read(&format!("{unit}.before-selfstart")), "[Service]\nExecStart=/bin/true\n");
    // Changed after `install`: `uninstall` leaves it, and says so; the rest goes.
    let ours = image.read(unit);
    image.write(unit, &(ours.clone() + "# mine\n"), 0o644);
    let told = image.run("uninstall");
    assert!(told.code == 1 && told.err.contains("was changed by somebody, and stays"), "{}", told.err);
    assert!(image.at(unit).exists() && !image.at("/etc/systemd/system/selfstart@.service").exists());
    image.write(unit, &ours, 0o644);
    image.done("uninstall");
    // The forced `install` replaced the program too.
    assert_eq!(image.snapshot(), before);
}

#[test]
fn units_of_another_version_of_ours_are_renewed() {
    let image = Image::with_systemd();
    let before = image.snapshot();
    image.write("/opt/x", "", 0o755);
    image.done("install --binary /opt/x");
    image.done("install");
    assert!(image.read("/etc/systemd/system/selfstart.service").contains("ExecStart=/usr/bin/selfstart run"));
    image.done("uninstall");
    fs_err::remove_dir_all(image.at("/opt")).expect("removed");
    assert_eq!(image.snapshot(), before);
}

#[test]
fn units_of_a_package_are_not_hidden_and_a_masked_one_is_refused() {
    let image = Image::with_systemd();
    for unit in UNITS {
        image.write(&format!("/usr/lib/systemd/system/{unit}"), "[Service]\n", 0o644);
    }
    let before = image.snapshot();
    image.done("install");
    assert!(!image.at("/etc/systemd/system/selfstart.service").exists());
    let link = image.at("/etc/systemd/system/multi-user.target.wants/selfstart.service");
    assert_eq!(fs_err::read_link(link).expect("a link"), Path::new("/usr/lib/systemd/system/selfstart.service"));
    image.done("uninstall");
    assert_eq!(image.snapshot(), before);

    let image = Image::with_systemd();
    fs_err::create_dir_all(image.at("/etc/systemd/system")).expect("made");
    symlink("/dev/null", image.at("/etc/systemd/system/selfstart.service")).expect("linked");
    let told = image.run("install");
    assert!(told.code == 1 && told.err.contains("is masked") && told.err.contains("systemctl unmask"), "{}", told.err);
}

#[test]
fn rc_local_gets_its_bytes_and_mode_back() {
    for (text, mode) in [
        ("#!/bin/sh -e\n# notes\nexit 0\n", 0o755),
        ("#!/bin/sh\ntouch /x\n", 0o644),
        ("#!/bin/bash\nexit 0", 0o700),
        ("", 0o600),
        ("touch /x\nexit 0\nnotes (\n", 0o444),
    ] {
        let image = Image::new();
        image.write("/etc/logrotate.d/others", "", 0o644);
        image.write("/etc/rc.local", text, mode);
        let before = image.snapshot();
        let told = image.done("install");
        assert_eq!(image.mode("/etc/rc.local"), mode | if mode & 0o100 == 0 { 0o100 | ((mode & 0o444) >> 2) } else { 0 });
        assert_eq!(told.err.contains("was not executable and is now"), mode & 0o100 == 0, "{}", told.err);
        assert!(image.at("/etc/logrotate.d/selfstart").exists());
        let installed = image.snapshot();
        assert!(image.done("install").out.contains("nothing was changed"));
        assert_eq!(image.snapshot(), installed);
        image.done("uninstall");
        assert_eq!(image.snapshot(), before, "{text:?}");
    }
    // None before, none after.
    let image = Image::new();
    let before = image.snapshot();
    image.done("install --rc-local");
    assert_eq!(image.mode("/etc/rc.local"), 0o755);
    image.done("uninstall");
    assert_eq!(image.snapshot(), before);
}

#[test]
fn what_was_edited_after_install_stays_and_so_does_the_configuration() {
    let image = Image::new();
    image.write("/etc/rc.local", "#!/bin/sh\nold\nexit 0\n", 0o644);
    image.done("install --rc-local");
    image.write("/etc/selfstart/config.yaml", "app: x\n", 0o600);
    image.write("/etc/rc.local", &image.read("/etc/rc.local").replace("old", "new\nmore"), 0o700);
    let told = image.done("uninstall");
    assert_eq!((image.read("/etc/rc.local").as_str(), image.mode("/etc/rc.local")), ("#!/bin/sh\nnew\nmore\nexit 0\n", 0o700));
    assert!(image.at("/etc/selfstart/config.yaml").exists() && !image.at("/etc/selfstart/installed.json").exists());
    assert!(told.err.contains("/etc/selfstart stays"), "{}", told.err);
}

#[test]
fn links_are_followed_below_the_root_and_never_out_of_it() {
    let image = Image::new();
    let outside = tempfile::tempdir().expect("a directory");
    fs_err::write(outside.path().join("rc.local"), "#!/bin/sh\n").expect("written");
    // As on Red Hat's systems.
    image.write("/etc/rc.d/rc.local", "#!/bin/sh\nexit 0\n", 0o755);
    symlink("rc.d/rc.local", image.at("/etc/rc.local")).expect("linked");
    let before = image.snapshot();
    image.done("install --rc-local");
    assert!(image.read("/etc/rc.d/rc.local").contains("setsid") && image.at("/etc/rc.local").is_symlink());
    image.done("uninstall");
    assert_eq!(image.snapshot(), before);
    // An absolute link in an image means below it.
    fs_err::remove_file(image.at("/etc/rc.local")).expect("removed");
    symlink(outside.path().join("rc.local"), image.at("/etc/rc.local")).expect("linked");
    let told = image.run("install --rc-local");
    assert_eq!(told.code, 1, "{}{}", told.out, told.err);
    image.write(outside.path().join("rc.local").to_str().expect("text"), "#!/bin/sh\n", 0o755);
    image.done("install --rc-local");
    assert!(image.read(outside.path().join("rc.local").to_str().expect("text")).contains("setsid"));
    assert_eq!(fs_err::read_to_string(outside.path().join("rc.local")).expect("there"), "#!/bin/sh\n");
}

#[test]
fn what_cannot_be_followed_is_refused_before_anything_is_touched() {
    for (text, why) in
        [("#!/usr/bin/perl\nexit 0;\n", "is no shell"), ("#!/bin/sh\r\nexit 0\r\n", "CR LF"), ("#!/bin/sh\nif a; then\n", "line 2")]
    {
        let image = Image::new();
        image.write("/etc/rc.local", text, 0o755);
        let before = image.snapshot();
        let told = image.run("install --rc-local");
        assert!(told.code == 1 && told.err.contains(why) && told.err.contains("hint:"), "{}", told.err);
        assert_eq!(image.snapshot(), before);
    }
    let image = Image::new();
    assert_eq!(image.run("install --rc-local --systemd").code, 2);
    assert_eq!(image.run("install --binary relative").code, 2);
    assert_eq!(image.run("install --binary /a/%n").code, 2);
    fs_err::create_dir(image.at("/etc/rc.local")).expect("made");
    let told = image.run("install --rc-local");
    assert!(told.code == 1 && told.err.contains("no regular file"), "{}", told.err);
}

#[test]
fn one_way_at_a_time_and_a_warning_where_nothing_runs_rc_local() {
    let image = Image::with_systemd();
    let told = image.done("install --rc-local");
    assert!(told.err.contains("TERM to all of them at once"), "{}", told.err);
    let told = image.run("install --systemd");
    assert!(
        told.code == 1 && told.err.contains("starts selfstart already") && told.err.contains("`selfstart uninstall` first"),
        "{}",
        told.err
    );
    image.done("uninstall");
    image.done("install --systemd");
    let told = image.run("install --rc-local");
    assert!(told.code == 1 && told.err.contains("is enabled"), "{}", told.err);
    image.done("uninstall");
    fs_err::remove_file(image.at("/usr/lib/systemd/system/rc-local.service")).expect("removed");
    let told = image.done("install --rc-local");
    assert!(told.err.contains("rc-local.service is not there"), "{}", told.err);
}

#[test]
fn the_program_is_copied_where_there_is_none_and_stays_while_it_runs() {
    let image = Image::with_systemd();
    fs_err::remove_file(image.at("/usr/bin/selfstart")).expect("removed");
    let before = image.snapshot();
    image.done("install");
    assert_eq!(image.mode("/usr/bin/selfstart"), 0o755);
    let said = Command::new(image.at("/usr/bin/selfstart")).arg("--version").output().expect("it runs");
    assert!(said.status.success());
    let told = image.done("install");
    assert!(told.out.contains("nothing was changed") && told.err.is_empty(), "{}{}", told.out, told.err);
    // The holder waits until its input, or a signal, ends it: any process of ours that stays will do.
    let config = image.at("/config.yaml");
    let text = format!(
        "app: x\nroot: {}\nsource: {{repository: /nowhere, branch: main}}\npools: {{a: {{command: sleep 9}}}}\n",
        image.at("/r").display()
    );
    fs_err::write(&config, text).expect("written");
    let mut node = Command::new(image.at("/usr/bin/selfstart"));
    node.arg("--config").arg(&config).arg("run").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut node = node.spawn().expect("started");
    until("the node is up", || image.at("/r/run/control.sock").exists().then(String::new));
    let told = image.run("uninstall");
    let alive = node.try_wait().expect("asked").is_none();
    let forced = image.run("uninstall --force");
    let stays = image.at("/usr/bin/selfstart").exists();
    rustix::process::kill_process(rustix::process::Pid::from_child(&node), rustix::process::Signal::TERM).expect("signalled");
    node.wait().expect("ended");
    assert!(alive && told.code == 4 && told.err.contains(&node.id().to_string()) && told.err.contains("systemctl stop"), "{}", told.err);
    assert!(forced.code == 0 && stays && forced.err.contains("stays: it runs"), "{}{}", forced.out, forced.err);
    fs_err::remove_dir_all(image.at("/r")).expect("removed");
    for path in ["/usr/bin/selfstart", "/config.yaml"] {
        fs_err::remove_file(image.at(path)).expect("removed");
    }
    assert_eq!(image.snapshot(), before);
}

#[test]
fn a_real_shell_starts_selfstart_and_boot_goes_on() {
    // Each ends with what is written to `after`, or does not come so far.
    let scripts = [
        "#!/bin/sh -e\necho before\necho after\nexit 0\n",
        "#!/bin/sh\necho before\necho after",
        "#!/bin/bash\nf() {\n exit 3\n}\nif false; then\n exit 4\nfi\ncat <<E\nbefore\nexit 5\nE\necho after\nexit 0\nif (\n",
        "#!/bin/dash -e\ncase x in\n a) exit 1;;\n x) echo before;;\nesac\n(exit 0)\nfalse && exit 7\necho \"after $(exit 0)\"\n",
        "#!/bin/sh\necho before \\\n  after; exit 0\nexit 0\n",
    ];
    for script in scripts {
        let image = Image::new();
        image.write("/etc/rc.local", script, 0o755);
        image.done("install --rc-local");
        let dir = image.at("/run");
        fs_err::create_dir(&dir).expect("made");
        let (log, ran, go) = (dir.join("log"), dir.join("ran"), dir.join("go"));
        // A keeper that stays until it is told to go, fails once as if it was killed, and ends well the second time.
        let program = dir.join("selfstart");
        let text = format!(
            "#!/bin/sh\necho said by $0 $1\nps -o sid= -p $$ | tr -d ' ' >>{ran}\nread line <{go}\n[ $(wc -l <{ran}) = 2 ]\n",
            ran = ran.display(),
            go = go.display()
        );
        fs_err::write(&program, text).expect("written");
        fs_err::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("set");
        rustix::fs::mknodat(rustix::fs::CWD, &go, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).expect("made");
        // Its output is a pipe that `output` reads to the end: that it returns while the keeper lives shows that nothing holds it.
        let told = boot(&image.read("/etc/rc.local"), &dir, program.to_str().expect("text"), &log);
        assert!(
            told.code == 0 && told.out.contains("before") && told.out.contains("after"),
            "{script}: {} {}{}",
            told.code,
            told.out,
            told.err
        );
        let lines = |count: usize| move || fs_err::read_to_string(&ran).ok().filter(|text| text.lines().count() == count);
        for count in [1, 2] {
            let sids = until("it runs", lines.clone()(count));
            // By hand: it is 0 when its leader is in no namespace of ours, which `getsid` takes for impossible.
            let stat = fs_err::read_to_string("/proc/self/stat").expect("ours");
            let own = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(3)).expect("a session").to_owned();
            assert!(sids.lines().all(|sid| sid != own && !sid.is_empty()), "{sids}");
            let mut go = fs_err::OpenOptions::new().write(true).open(&go).expect("it waits");
            writeln!(go, "go").expect("heard");
        }
        // It ended well: the loop ends with it, and is not left behind.
        let loop_of = fs_err::read_to_string(dir.join("ran")).expect("ran").lines().last().expect("a session").to_owned();
        // Where process 1 reaps nobody it stays a zombie.
        let stat = Path::new("/proc").join(&loop_of).join("stat");
        let lives = || fs_err::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z "));
        until("the loop ends", || (!lives()).then(String::new));
        let said = until("it logs", || fs_err::read_to_string(&log).ok().filter(|text| text.lines().count() == 2));
        assert!(said.contains(" run\n"), "{said}");
    }
}

#[test]
fn a_wrong_configuration_is_not_tried_again_and_a_log_that_cannot_be_written_stops_nothing() {
    let image = Image::new();
    image.done("install --rc-local");
    let dir = image.at("/run");
    fs_err::create_dir(&dir).expect("made");
    let program = dir.join("selfstart");
    fs_err::write(&program, format!("#!/bin/sh\necho x >>{}\necho to the console\nexit 78\n", dir.join("ran").display())).expect("written");
    fs_err::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("set");
    // `output` returns when the last one that has the pipe ended: the loop did not go on.
    let told = boot(&image.read("/etc/rc.local"), &dir, program.to_str().expect("text"), Path::new("/nowhere/log"));
    assert!(told.code == 0 && told.out == "to the console\n", "{} {}{}", told.code, told.out, told.err);
    assert_eq!(fs_err::read_to_string(dir.join("ran")).expect("ran"), "x\n");
}

#[test]
fn an_image_gets_the_agents_user_once_and_keeps_it() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: only root can make users");
    }
    let image = Image::new();
    image.write("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n", 0o644);
    image.write("/etc/group", "root:x:0:\n", 0o644);
    let ours = fs_err::read_to_string("/etc/passwd").expect("read");
    let told = image.done("install");
    assert!(told.out.contains("made the system user selfstart (") && !told.err.contains("will run as root"), "{}{}", told.out, told.err);
    let passwd = image.read("/etc/passwd");
    let line: Vec<&str> = passwd.lines().find(|line| line.starts_with("selfstart:")).expect("made").split(':').collect();
    let (uid, gid): (u32, u32) = (line[2].parse().expect("a number"), line[3].parse().expect("a number"));
    assert!(uid > 0 && uid < 1000 && line[6] == "/usr/sbin/nologin", "{line:?}");
    let group = |path: &str| fs_err::metadata(image.at(path)).expect("there").gid();
    assert_eq!((group("/etc/selfstart"), image.mode("/etc/selfstart"), group("/etc/selfstart/config.yaml.example")), (gid, 0o2750, gid));
    assert!(image.done("install").out.contains("nothing was changed"));
    assert_eq!(image.read("/etc/passwd"), passwd);
    let told = image.done("uninstall");
    assert!(told.err.contains("the system user selfstart stays"), "{}", told.err);
    assert_eq!(image.read("/etc/passwd"), passwd);
    // Nothing of this machine's.
    assert_eq!(fs_err::read_to_string("/etc/passwd").expect("read"), ours);
}

#[test]
fn a_root_that_is_not_there_is_told_with_what_root_means() {
    let image = Image::with_systemd();
    let mut command = Command::new(env!("CARGO_BIN_EXE_selfstart"));
    command.args(["install", "--systemd", "--root"]).arg(image.at("not/there")).stdin(Stdio::null());
    let told = Told::from(command.output().expect("the binary"));
    assert_eq!(told.code, 1, "{}", told.err);
    assert!(told.err.contains("where the image's file system is mounted"), "{}", told.err);
}
