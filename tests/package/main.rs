//! The Debian package: made of the program under test, installed by the real dpkg into a copy of this machine that is thrown away.
//!
//! The copy is an overlay in a mount namespace of its own: real users, real maintainer scripts, and nothing of it reaches this machine. It needs
//! root and a Debian. What systemd itself makes of the package is seen in tests/boot; here stands what the scripts ask of it.

mod machine;

use std::path::{Path, PathBuf};
use std::process::Command;

use machine::{Machine, Said};

/// What is made of the program under test.
struct Package {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Package {
    fn of_version(version: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("selfstart-package").tempdir().expect("a directory");
        let said = Self::try_build(&["--version", version, "--out", dir.path().to_str().expect("text")]);
        assert_eq!(said.code, 0, "{}", said.all());
        Self { path: PathBuf::from(said.out.trim()), _dir: dir }
    }

    /// Uncompressed: what matters here is what is in it.
    fn try_build(words: &[&str]) -> Said {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/deb");
        let binary = env!("CARGO_BIN_EXE_selfstart");
        let mut command = Command::new(script);
        command.args(["--compression", "none", "--binary", binary]).args(words).env_remove("SOURCE_DATE_EPOCH");
        Said::of(&mut command)
    }

    fn bytes(&self) -> Vec<u8> {
        fs_err::read(&self.path).expect("the package")
    }

    fn field(&self, name: &str) -> String {
        let said = Said::of(Command::new("dpkg-deb").arg("--field").arg(&self.path).arg(name));
        said.out.trim().to_owned()
    }
}

fn dpkg(words: &[&str], package: &Package) -> String {
    let said = Said::of(Command::new("dpkg-deb").args(words).arg(&package.path));
    assert_eq!(said.code, 0, "{}", said.all());
    said.out
}

#[test]
fn the_same_program_is_the_same_package_to_the_byte() {
    let (one, two) = (Package::of_version("1.2.3-1"), Package::of_version("1.2.3-1"));
    assert!(one.bytes() == two.bytes(), "two packages of one program differ: {} and {}", one.path.display(), two.path.display());
    let other = Package::of_version("1.2.3-2");
    assert!(one.bytes() != other.bytes());
}

#[test]
fn the_package_holds_what_it_must_with_its_owners_and_modes() {
    let package = Package::of_version("1.2.3-1");
    // `-rwxr-xr-x root/root  123 2026-11-22 12:00 ./usr/bin/selfstart`; all pages of verbs alike.
    let line = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        format!("{} {} {}", words[0], words[1], words[5..].join(" "))
    };
    let listed: Vec<_> = dpkg(&["--contents"], &package).lines().map(line).collect();
    let (pages, rest): (Vec<_>, Vec<_>) = listed.iter().partition(|line| line.contains("/man1/selfstart-"));
    assert!(pages.len() > 20 && pages.iter().all(|page| page.starts_with("-rw-r--r-- root/root") && page.ends_with(".1.gz")), "{pages:?}");
    // Once the project has such a file the package has it.
    let (sysusers, rest): (Vec<_>, Vec<_>) = rest.into_iter().partition(|line| line.contains("/sysusers.d/"));
    let has = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/selfstart.sysusers").exists();
    assert_eq!(sysusers.iter().any(|line| *line == "-rw-r--r-- root/root ./usr/lib/sysusers.d/selfstart.conf"), has, "{sysusers:?}");
    let expected = include_str!("contents.txt");
    let rest = rest.into_iter().map(|line| format!("{line}\n")).collect::<String>();
    assert!(rest == expected, "tests/package/contents.txt is not what the package holds; it holds:\n{rest}");
    let dates = dpkg(&["--contents"], &package);
    assert!(dates.lines().all(|line| line.contains(" 2026-11-22 12:00 ")), "{dates}");
    // Debian's own names of the two machines that there are.
    assert!(["amd64", "arm64"].contains(&package.field("Architecture").as_str()));
    let depends = package.field("Depends");
    assert!(depends.starts_with("libc6 (>= 2.") && depends.ends_with(", adduser"), "{depends}");
}

#[test]
fn the_changelog_is_of_the_version_that_is_built() {
    let changelog = include_str!("../../packaging/debian/changelog");
    let version = concat!("selfstart (", env!("CARGO_PKG_VERSION"), "-");
    assert!(changelog.starts_with(version), "packaging/debian/changelog begins with another version than Cargo.toml's");
}

#[test]
fn what_is_no_program_for_these_machines_and_what_is_no_version_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().to_str().expect("text");
    let said = Package::try_build(&["--version", "not a version", "--out", out]);
    assert!(said.code != 0 && said.err.contains("no version for a package"), "{}", said.all());
    let said = Package::try_build(&["--binary", "/etc/passwd", "--out", out]);
    assert!(said.code != 0, "{}", said.all());
    let said = Package::try_build(&["--binary", "/not/there", "--out", out]);
    assert!(said.code != 0 && said.err.contains("/not/there is not there"), "{}", said.all());
    assert_eq!(fs_err::read_dir(dir.path()).expect("there").count(), 0);
}

#[test]
fn the_machine_is_the_programs_and_not_the_one_it_is_packed_on() {
    let dir = tempfile::tempdir().expect("a directory");
    let (source, program) = (dir.path().join("empty.c"), dir.path().join("selfstart"));
    fs_err::write(&source, "#include <stdio.h>\nint main(void) { return puts(\"\") < 0; }\n").expect("written");
    let built = Command::new("aarch64-linux-gnu-gcc").arg("-o").args([&program, &source]).status();
    assert!(built.expect("a compiler for AArch64 (Debian: gcc-aarch64-linux-gnu, libc6-dev-arm64-cross)").success());
    let text = |path: &Path| path.to_str().expect("text").to_owned();
    let said = Package::try_build(&["--binary", &text(&program), "--out", &text(dir.path())]);
    assert_eq!(said.code, 0, "{}", said.all());
    let package = Package { path: PathBuf::from(said.out.trim()), _dir: dir };
    assert_eq!(package.field("Architecture"), "arm64");
    assert!(package.path.to_str().is_some_and(|path| path.ends_with("_arm64.deb")));
    assert!(package.field("Depends").starts_with("libc6 (>= 2."), "{}", package.field("Depends"));
}

#[test]
fn a_machine_gets_it_keeps_what_was_edited_through_upgrade_and_downgrade_and_is_rid_of_it() {
    let machine = Machine::new();
    let (old, new) = (Package::of_version("1.2.3-1"), Package::of_version("1.3.0-1"));
    let said = machine.dpkg(&["--install"], &old.path);
    assert!(said.out.contains("write /etc/selfstart/config.yaml"), "{}", said.all());

    // What came with it works there.
    let version = machine.run("selfstart --version");
    assert_eq!(version.out, concat!("selfstart ", env!("CARGO_PKG_VERSION"), "\n"));
    let user = machine.run("getent passwd selfstart").out;
    let fields: Vec<_> = user.trim().split(':').collect();
    assert!(fields[2].parse::<u32>().is_ok_and(|uid| (100..1000).contains(&uid)), "a system user: {user}");
    assert_eq!(fields[5..], ["/nonexistent", "/usr/sbin/nologin"], "{user}");
    assert_eq!(machine.run("stat -c '%U:%G %a' /etc/selfstart").out, "root:selfstart 2750\n");
    assert_eq!(machine.run("touch /etc/selfstart/later; stat -c %G /etc/selfstart/later; rm /etc/selfstart/later").out, "selfstart\n");
    assert_eq!(
        machine.run("readlink /etc/systemd/system/multi-user.target.wants/selfstart.service").out.trim().rsplit('/').next(),
        Some("selfstart.service")
    );
    assert_eq!(machine.run("dpkg --verify selfstart").out, "");
    for page in ["1 selfstart", "1 selfstart-deploy", "5 selfstart.yaml"] {
        let (section, name) = page.split_once(' ').expect("two words");
        assert_eq!(machine.run(&format!("man -w {page}")).out, format!("/usr/share/man/man{section}/{name}.{section}.gz\n"));
    }
    let completed = machine.run(
        "bash --norc -c 'source /usr/share/bash-completion/completions/selfstart; COMP_WORDS=(selfstart upg rel); COMP_WORDS=(selfstart rel); \
         COMP_CWORD=1; _selfstart selfstart rel selfstart; echo \"${COMPREPLY[*]}\"'",
    );
    assert_eq!(completed.out, "releases reload\n");
    assert!(machine.run("systemd-analyze verify selfstart.service selfstart@flipper.service").err.is_empty());

    // The example is not a configuration, and becomes one by being copied and edited.
    let said = machine.try_run("selfstart check --offline");
    assert_eq!(said.code, 78, "{}", said.all());
    machine.run(
        "cd /etc/selfstart; mkdir -p /srv/flipper.git; sed -e '/^user:/d' -e '/credentials:/,/known_hosts:/d' \
         -e 's,git@github.com:acme/flipper.git,/srv/flipper.git,' config.yaml.example >config.yaml",
    );
    let said = machine.try_run("selfstart check --offline --explain");
    // The machine lacks what it names; the file itself is right.
    assert!(said.out.contains("/srv/flipper.git") && !said.err.contains("config.yaml:"), "{}", said.all());

    // Upgraded and downgraded: the edited example stays as it is, so does what the package never had; the user is made once.
    machine.run("echo '# mine' >>/etc/selfstart/config.yaml.example; cp /etc/selfstart/config.yaml /root/before; chmod 700 /etc/selfstart");
    for package in [&new, &old, &old] {
        machine.dpkg(&["--install", "--force-confold"], &package.path);
        assert_eq!(
            machine.run("dpkg-query -W -f '${Status} ${Version}' selfstart").out,
            format!("install ok installed {}", package.field("Version"))
        );
        assert_eq!(
            machine.run("tail -n 1 /etc/selfstart/config.yaml.example; cmp /etc/selfstart/config.yaml /root/before").out,
            "# mine\n"
        );
        assert_eq!(machine.run("getent passwd selfstart").out, user);
        assert_eq!(machine.run("stat -c %a /etc/selfstart").out, "2700\n", "what an operator has set stays");
    }

    // Disabled stays disabled.
    machine.run("systemctl disable selfstart.service");
    machine.dpkg(&["--install", "--force-confold"], &new.path);
    assert!(machine.try_run("test -L /etc/systemd/system/multi-user.target.wants/selfstart.service").code != 0);

    // Removed: the configuration stays, the conffile too. Purged: what the package made goes, and no more.
    machine.run("mkdir -p /var/lib/selfstart/flipper/releases && chown -R selfstart:selfstart /var/lib/selfstart");
    machine.run("dpkg --remove selfstart");
    assert!(machine.try_run("test -e /usr/bin/selfstart").code != 0);
    assert_eq!(machine.run("ls /etc/selfstart").out, "config.yaml\nconfig.yaml.example\n");
    let said = machine.run("dpkg --purge selfstart");
    assert!(said.err.contains("/etc/selfstart stays") && said.err.contains("/var/lib/selfstart stays"), "{}", said.all());
    assert_eq!(machine.run("ls /etc/selfstart; ls /var/lib/selfstart").out, "config.yaml\nflipper\n");
    assert_eq!(machine.run("getent passwd selfstart").out, user, "whose files are still there");
    let found: Vec<_> = machine.ours().into_iter().filter(|path| machine.made(path)).collect();
    assert_eq!(found, ["/etc/selfstart", "/var/lib/selfstart"]);
    machine.run("test -z \"$(dpkg-query -W -f '${Status}' selfstart 2>/dev/null | grep -v not-installed)\"");
}

/// An earlier package left it 0750; `dpkg-statoverride` is how an operator says otherwise, before the package is there, too.
#[test]
fn the_folder_of_secrets_is_put_right_by_an_upgrade_and_an_override_is_respected_by_all() {
    let machine = Machine::new();
    let (old, new) = (Package::of_version("1.2.3-1"), Package::of_version("1.3.0-1"));
    let stands = || machine.run("stat -c '%U:%G %a' /etc/selfstart").out;
    machine.dpkg(&["--install"], &old.path);
    for left in ["root:selfstart", "root:root"] {
        machine.run(&format!("chown {left} /etc/selfstart; chmod 0750 /etc/selfstart; chmod g-s /etc/selfstart"));
        machine.dpkg(&["--install"], &new.path);
        assert_eq!(stands(), "root:selfstart 2750\n", "was {left} 750");
    }
    machine.run("dpkg-statoverride --update --add root root 0750 /etc/selfstart");
    machine.dpkg(&["--install"], &old.path);
    assert_eq!(stands(), "root:root 750\n", "an upgrade leaves what dpkg-statoverride says");
    machine.run("dpkg --purge selfstart");
    machine.dpkg(&["--install"], &new.path);
    assert_eq!(stands(), "root:root 750\n", "so does a first installation");
}

#[test]
fn nothing_is_left_of_a_package_that_nobody_used_but_its_user() {
    let machine = Machine::new();
    let package = Package::of_version("1.2.3-1");
    machine.dpkg(&["--install"], &package.path);
    let said = machine.run("dpkg --purge selfstart");
    assert!(!said.err.contains("/etc/selfstart"), "{}", said.all());
    assert!(machine.try_run("test -e /etc/selfstart").code != 0);
}

/// A `systemctl` that writes down what it is asked, and knows two units that run. What the real one makes of such words: tests/boot.
const SYSTEMCTL: &str = r#"#!/bin/sh
echo "systemctl $*" >>/root/asked
case "$*" in
    *list-units*) [ ! -e /root/runs ] || printf 'selfstart.service loaded active running x\nselfstart@flipper.service loaded active running x\n' ;;
    *is-enabled*) echo enabled ;;
    *is-active*) [ -e /root/runs ] ;;
esac
"#;

/// Stands in for the program of the new package, for the words that reach it.
const PROGRAM: &str = "#!/bin/sh\necho \"selfstart $*\" >>/root/asked\n[ ! -e /root/refuses ] || { echo 'error: no'; exit 4; }\n";

#[test]
fn an_upgrade_renews_what_runs_and_stops_nothing_and_a_removal_stops_it() {
    let machine = Machine::new();
    let (old, new) = (Package::of_version("1.2.3-1"), Package::of_version("1.3.0-1"));
    machine.run("mkdir -p /run/systemd/system; rm -f /usr/sbin/policy-rc.d /root/asked");
    machine.write("/usr/bin/systemctl", SYSTEMCTL);
    let asked = |what: &str| {
        machine
            .try_run("cat /root/asked; rm -f /root/asked")
            .out
            .lines()
            .filter(|line| !line.contains("is-") || what == "all")
            .collect::<Vec<_>>()
            .join("\n")
    };

    // Without a configuration nothing is started, with one it is.
    machine.dpkg(&["--install"], &old.path);
    let told = asked("");
    assert!(told.contains("daemon-reload") && !told.contains(" start "), "{told}");
    machine.run("dpkg --purge selfstart; mkdir -p /etc/selfstart; echo 'app: x' >/etc/selfstart/config.yaml; rm -f /root/asked");
    machine.dpkg(&["--install"], &old.path);
    let told = asked("");
    assert!(told.contains(" start ") && told.contains("selfstart.service"), "{told}");

    // An upgrade: each unit that runs is renewed by the program that is new, by the name of its app; none is stopped, started or restarted. The
    // program is a stand-in: a diversion keeps dpkg from replacing it.
    machine.run("touch /root/runs; dpkg-divert --quiet --local --rename --divert /usr/bin/selfstart.real --add /usr/bin/selfstart");
    machine.write("/usr/bin/selfstart", PROGRAM);
    let said = machine.dpkg(&["--install"], &new.path);
    let told = asked("");
    let renewed: Vec<_> = told.lines().filter(|line| line.starts_with("selfstart ")).collect();
    let expected = ["selfstart upgrade", "selfstart --app flipper upgrade"];
    assert_eq!(renewed, expected, "{told}");
    for word in [" stop", " start", " restart", " try-restart", " kill"] {
        assert!(!told.contains(word), "an upgrade must not {word}: {told}");
    }
    assert!(!said.err.contains("still runs"), "{}", said.all());

    // Back again, and the agent refuses: told, with what to do, and the package is installed all the same.
    machine.run("touch /root/refuses");
    let said = machine.dpkg(&["--install"], &old.path);
    for words in ["selfstart.service still runs the program from before", "error: no", "systemctl restart selfstart@flipper.service"] {
        assert!(said.err.contains(words), "{words}: {}", said.all());
    }
    assert_eq!(machine.run("dpkg-query -W -f '${Status} ${Version}' selfstart").out, "install ok installed 1.2.3-1");
    let told = asked("");
    assert!(!told.contains(" restart ") && !told.contains(" stop "), "{told}");

    machine.run("dpkg --remove selfstart");
    let told = asked("");
    assert!(told.lines().any(|line| line.contains(" stop ") && line.contains("selfstart.service")), "{told}");
}

/// The units of the package say where the program of the package is.
#[test]
fn the_units_start_the_program_where_the_package_puts_it() {
    for entry in fs_err::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/systemd")).expect("units") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "service") {
            continue;
        }
        let text = fs_err::read_to_string(&path).expect("text");
        let starts = text.lines().filter(|line| line.starts_with("ExecStart="));
        assert!(
            starts.clone().count() == 1 && starts.clone().all(|line| line.starts_with("ExecStart=/usr/bin/selfstart ")),
            "{}",
            path.display()
        );
        let minds = path.file_name().is_some_and(|name| Path::new(name) == "selfstart.service");
        assert!(
            !minds || text.contains("\nConditionPathExists=/etc/selfstart/config.yaml\n"),
            "nothing runs before there is a configuration"
        );
    }
}
