//! What the unit of the workers' cgroups does when it is stopped, in the machine's own cgroup v2.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::waiting::until;

/// A tree of cgroups, as systemd gives one to a unit with `Delegate=yes`; removed with whoever is in it.
struct Tree(PathBuf);

impl Tree {
    /// `None`: none can be made here.
    fn make() -> Option<Self> {
        let mounts = fs_err::read_to_string("/proc/self/mounts").ok()?;
        let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?.split(' ').nth(1)?.to_owned();
        let path = Path::new(&mount).join(format!("selfstart-e2e-holder-{}", std::process::id()));
        fs_err::create_dir(&path).ok()?;
        Some(Self(path))
    }

    fn group(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        fs_err::create_dir(&path).expect("made");
        path
    }

    fn is_empty(&self, name: &str) -> bool {
        let events = fs_err::read_to_string(self.0.join(name).join("cgroup.events"));
        events.is_ok_and(|text| text.contains("populated 0"))
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _not_there = fs_err::write(self.0.join("cgroup.kill"), "1");
        for entry in fs_err::read_dir(&self.0).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
            let name = entry.file_name().to_string_lossy().into_owned();
            wait("its members end", || self.is_empty(&name));
            fs_err::remove_dir(entry.path()).expect("removed");
        }
        fs_err::remove_dir(&self.0).expect("removed");
    }
}

fn wait(what: &str, is_so: impl Fn() -> bool) {
    let look = || if is_so() { Ok(()) } else { Err("not yet".to_owned()) };
    until(None, Duration::from_millis(10), Duration::from_secs(10), look).unwrap_or_else(|last| panic!("{what}: {last}"));
}

/// Starts it within a cgroup, as systemd starts a unit's commands.
fn within(group: &Path, program: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", r#"echo $$ > "$0/cgroup.procs" && exec "$@""#]).arg(group).arg(program);
    command
}

#[test]
fn a_stop_of_the_workers_unit_ends_all_workers_and_neither_the_holder_nor_itself() {
    let Some(tree) = Tree::make() else { return eprintln!("skipped: no cgroup v2 to write to") };
    let mut sleepers: Vec<_> = ["holder", ".another", "w.0#1", "w.1#7"]
        .map(|name| within(&tree.group(name), "sleep").arg("1000").stdout(Stdio::null()).spawn().expect("sleep"))
        .into();
    let inside = || ["holder", ".another", "w.0#1", "w.1#7"].iter().all(|name| !tree.is_empty(name));
    wait("four that sleep", inside);

    let mut stop = within(&tree.group(".control"), env!("CARGO_BIN_EXE_selfstart"));
    let done = stop.args(["internal-holder", "--stop"]).env("SELFSTART_CGROUP", &tree.0).output().expect("executed");
    assert!(done.status.success(), "{done:?}");
    for gone in [".another", "w.0#1", "w.1#7"] {
        assert!(!tree.0.join(gone).exists(), "`{gone}` is still there");
    }
    assert!(sleepers[0].try_wait().expect("asked").is_none(), "the holder was ended by its stop");
    drop(tree);
    for sleeper in &mut sleepers {
        sleeper.wait().expect("ended");
    }
}
