//! A copy of this machine: its whole file system, changed in memory only, in a mount namespace that ends with the test.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// What a command said.
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }
}

impl Said {
    pub(crate) fn of(command: &mut Command) -> Self {
        Self::from(command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    pub(crate) fn all(&self) -> String {
        format!("it ended with {}\n{}{}", self.code, self.out, self.err)
    }
}

/// The copy. Its first process waits for the end of its input, which comes with the end of the test, whatever becomes of it.
pub(crate) struct Machine {
    keeper: Child,
    root: PathBuf,
    before: BTreeSet<String>,
    _dir: tempfile::TempDir,
}

/// The folder is a mount of its own, so that nothing of the copy is on this machine's disk. `/run` is the copy's own, as after a boot.
const MOUNTS: &str = "set -e
mount -t tmpfs -o mode=755 selfstart-package \"$1\"
mkdir \"$1/upper\" \"$1/work\" \"$1/root\"
mount -t overlay overlay -o \"lowerdir=/,upperdir=$1/upper,workdir=$1/work\" \"$1/root\"
mount --rbind /proc \"$1/root/proc\"
mount --rbind /dev \"$1/root/dev\"
mount -t tmpfs run \"$1/root/run\"
mount -t tmpfs tmp \"$1/root/tmp\"
echo mounted
exec cat";

impl Machine {
    pub(crate) fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test needs root: it mounts a copy of this machine to install the package in");
        let dir = tempfile::Builder::new().prefix("selfstart-package").tempdir().expect("a directory");
        let mut keeper = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", MOUNTS, "sh"])
            .arg(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare");
        let mut line = String::new();
        BufReader::new(keeper.stdout.take().expect("its output")).read_line(&mut line).expect("its word");
        assert_eq!(line, "mounted\n", "a copy of this machine (an overlay over /, in memory) cannot be mounted");
        let root = dir.path().join("root");
        let mut machine = Self { keeper, root, before: BTreeSet::new(), _dir: dir };
        // What the machine itself may have: a package that was installed by hand, say.
        machine.run("dpkg --purge selfstart 2>/dev/null || true; rm -rf /etc/selfstart /var/lib/selfstart /usr/bin/selfstart");
        machine.run("getent passwd selfstart >/dev/null && deluser --quiet --system selfstart || true; rm -f /usr/sbin/policy-rc.d");
        machine.before = machine.ours().into_iter().collect();
        machine
    }

    /// What bears our name where programs and their files are, but for dpkg's own notes and what readers of man pages keep.
    pub(crate) fn ours(&self) -> Vec<String> {
        let all = self
            .try_run(r"find /etc /usr /var /opt -xdev \( -path /var/tmp -o -path /var/cache/man \) -prune -o -name '*selfstart*' -print");
        all.out.lines().map(str::to_owned).collect()
    }

    /// True if that was not there at first.
    pub(crate) fn made(&self, path: &str) -> bool {
        !self.before.contains(path)
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--mount", "--target", &self.keeper.id().to_string(), "chroot"])
            .arg(&self.root)
            .args(["/bin/sh", "-c", line])
            .env_clear()
            .envs([
                ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
                ("HOME", "/root"),
                ("LC_ALL", "C.UTF-8"),
                ("DEBIAN_FRONTEND", "noninteractive"),
            ]);
        command
    }

    /// Runs a line of shell there.
    pub(crate) fn try_run(&self, line: &str) -> Said {
        Said::of(&mut self.command(line))
    }

    /// As [`Self::try_run`], and it must end with 0.
    pub(crate) fn run(&self, line: &str) -> Said {
        let said = self.try_run(line);
        assert_eq!(said.code, 0, "{line}: {}", said.all());
        said
    }

    /// Runs dpkg with a package of this machine.
    pub(crate) fn dpkg(&self, words: &[&str], package: &Path) -> Said {
        self.write_bytes("/root/selfstart.deb", &fs_err::read(package).expect("the package"));
        // All of the package, also where the machine's dpkg leaves documentation out. Indexes of others (man-db's) are not what is looked at.
        self.run(&format!("dpkg --no-triggers --path-include='/usr/share/*' {} /root/selfstart.deb", words.join(" ")))
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        self.write_bytes(path, text.as_bytes());
        self.run(&format!("chmod 755 {path}"));
    }

    fn write_bytes(&self, path: &str, bytes: &[u8]) {
        let mut writing = self.command(&format!("rm -f {path}; cat >{path}")).stdin(Stdio::piped()).spawn().expect("a shell");
        writing.stdin.take().expect("its input").write_all(bytes).expect("written");
        assert!(writing.wait().expect("its end").success(), "{path}");
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        // The mounts go with the last process of the namespace.
        let _ = self.keeper.wait();
    }
}
