//! cgroup v2 (`Documentation/admin-guide/cgroup-v2.rst` in Linux): one directory a process tree, with its limits.
//!
//! A [`Tree`] is a directory that was given to us whole (systemd's `Delegate=yes`, or one that we made). Below it each worker, helper and
//! build step gets a directory of its own name, made for its start and removed after its end, so that counters in it are about this
//! start alone, and nothing grows.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, fstatfs, openat};

use super::gate;

/// What our limits need.
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];

/// The longest file that is read here: a list of controllers, a few counters. `cgroup.procs` is read in pieces.
const SMALL_FILE_BYTES: usize = 4096;

/// A directory of cgroups that is ours.
#[derive(Debug)]
pub(crate) struct Tree {
    dir: OwnedFd,
    path: PathBuf,
}

/// One directory in it.
#[derive(Debug)]
pub(crate) struct Group {
    dir: OwnedFd,
}

/// What the kernel counted for one start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    /// How often the kernel ended it for want of memory: kills of the whole group, or of one process where it counts no groups.
    pub(crate) oom: u64,
    /// The most memory it ever had; `None`: the kernel (before 5.19) does not say.
    pub(crate) peak_bytes: Option<u64>,
}

fn directory(at: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    Ok(openat(at, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}

fn read_small(dir: BorrowedFd<'_>, name: &str) -> io::Result<String> {
    let file = openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut bytes = [0; SMALL_FILE_BYTES];
    let read = rustix::io::read(&file, &mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes[..read]).into_owned())
}

fn write_small(dir: BorrowedFd<'_>, name: &str, value: &str) -> io::Result<()> {
    let file = openat(dir, name, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    // One write is one setting: the kernel takes it whole or not at all.
    gate::write(&file, value.as_bytes())?;
    Ok(())
}

/// Returns the value of a line `NAME VALUE`.
fn counter(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

impl Tree {
    /// Opens one that is there.
    ///
    /// # Errors
    /// When there is none, or it is no cgroup v2.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let dir = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        if fstatfs(&dir)?.f_type != libc::CGROUP2_SUPER_MAGIC {
            return Err(io::Error::other(format!("`{}` is no cgroup v2", path.display())));
        }
        Ok(Self { dir, path: path.to_owned() })
    }

    /// Turns on what limits need, for the directories in it. One that the machine has not, or that was not given to us, is no reason to
    /// be without the others: [`Self::controllers`] says which there are.
    fn turn_on(&self) {
        for controller in CONTROLLERS {
            let _what_there_is_is_read_later = write_small(self.dir.as_fd(), "cgroup.subtree_control", &format!("+{controller}"));
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the controllers that directories in it have (`memory`, `pids`, `cpu` ...).
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn controllers(&self) -> io::Result<Vec<String>> {
        Ok(read_small(self.dir.as_fd(), "cgroup.subtree_control")?.split_whitespace().map(str::to_owned).collect())
    }

    /// Makes a directory, with these settings (file, value). One that is there from before must be empty, and is made anew.
    ///
    /// # Errors
    /// When it cannot be made, or does not take a setting: it is gone again then.
    pub(crate) fn make(&self, name: &str, settings: &[(String, String)]) -> io::Result<Group> {
        match gate::mkdirat(&self.dir, name, Mode::from_bits_retain(0o755)) {
            Err(rustix::io::Errno::EXIST) => {
                self.remove(name)?;
                gate::mkdirat(&self.dir, name, Mode::from_bits_retain(0o755))?;
            }
            made => made?,
        }
        let group = self.group(name)?;
        for (file, value) in settings {
            if let Err(error) = write_small(group.dir.as_fd(), file, value) {
                if file == "memory.swap.max" && error.kind() == io::ErrorKind::NotFound {
                    // A kernel that does not count swap, or has none.
                    continue;
                }
                let _nobody_is_in_it = self.remove(name);
                return Err(io::Error::new(error.kind(), format!("`{file}` does not take `{value}`: {error}")));
            }
        }
        Ok(group)
    }

    /// Opens a directory that is there.
    ///
    /// # Errors
    /// When it is not.
    pub(crate) fn group(&self, name: &str) -> io::Result<Group> {
        Ok(Group { dir: directory(self.dir.as_fd(), name)? })
    }

    /// Removes a directory and those that its processes have made in it; one that is not there is none.
    ///
    /// # Errors
    /// With `EBUSY` when somebody is in it.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        remove(self.dir.as_fd(), name, 0)
    }

    /// Returns the names of the directories in it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn names(&self) -> io::Result<Vec<String>> {
        subdirectories(self.dir.as_fd())
    }
}

fn subdirectories(dir: BorrowedFd<'_>) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if entry.file_type() == FileType::Directory && !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

/// How deep a worker may nest directories of its own (as root, or with a delegation) for us to remove them.
const DEPTH_MAX: usize = 32;

fn remove(at: BorrowedFd<'_>, name: &str, depth: usize) -> io::Result<()> {
    match gate::unlinkat(at, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => return Ok(()),
        // Somebody is in it, or directories are.
        Err(rustix::io::Errno::BUSY) if depth < DEPTH_MAX => {}
        Err(error) => return Err(error.into()),
    }
    let dir = directory(at, name)?;
    for inner in subdirectories(dir.as_fd())? {
        remove(dir.as_fd(), &inner, depth + 1)?;
    }
    Ok(gate::unlinkat(at, name, AtFlags::REMOVEDIR)?)
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

impl Group {
    /// Its directory, for who starts something in it.
    pub(crate) fn into_dir(self) -> OwnedFd {
        self.dir
    }

    /// Whether any process, also one that has ended and is not reaped yet by its own parent, is in it or below it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn is_populated(&self) -> io::Result<bool> {
        let events = read_small(self.dir.as_fd(), "cgroup.events")?;
        counter(&events, "populated").map(|populated| populated != 0).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Opens what tells by POLLPRI that [`Self::is_populated`] may have changed.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(crate) fn watch(&self) -> io::Result<OwnedFd> {
        let file = openat(&self.dir, "cgroup.events", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        // What was not read yet counts as news.
        let mut bytes = [0; 64];
        rustix::io::read(&file, &mut bytes)?;
        Ok(file)
    }

    /// Takes note of a change, so that the next one is news.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn reread(&self, events: &OwnedFd) -> io::Result<()> {
        let mut bytes = [0; 64];
        rustix::io::pread(events, &mut bytes, 0)?;
        Ok(())
    }

    /// Kills everybody in it at once, also those that are just being made (`cgroup.kill`, Linux 5.14).
    ///
    /// # Errors
    /// With `NotFound` where the kernel cannot.
    pub(crate) fn kill(&self) -> io::Result<()> {
        write_small(self.dir.as_fd(), "cgroup.kill", "1")
    }

    /// Returns who is in it and below it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn processes(&self) -> io::Result<Vec<i32>> {
        let mut all = Vec::new();
        processes(self.dir.as_fd(), &mut all, 0)?;
        Ok(all)
    }

    /// Returns what the kernel counted since it was made.
    ///
    /// # Errors
    /// When its memory is not counted.
    pub(crate) fn counted(&self) -> io::Result<Counted> {
        let events = read_small(self.dir.as_fd(), "memory.events")?;
        // `oom_kill` counts more than there were (processes, and with `memory.oom.group` some twice), `oom_group_kill` each end once
        // (Linux 5.17).
        let oom = counter(&events, "oom_group_kill").or_else(|| counter(&events, "oom_kill")).unwrap_or(0);
        let peak_bytes = read_small(self.dir.as_fd(), "memory.peak").ok().and_then(|peak| peak.trim().parse().ok());
        Ok(Counted { oom, peak_bytes })
    }
}

fn processes(dir: BorrowedFd<'_>, all: &mut Vec<i32>, depth: usize) -> io::Result<()> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::from(openat(dir, "cgroup.procs", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?).read_to_string(&mut text)?;
    all.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    if depth < DEPTH_MAX {
        for inner in subdirectories(dir)? {
            match directory(dir, &inner) {
                Ok(inner) => processes(inner.as_fd(), all, depth + 1)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Makes this process's own cgroup a tree: goes into a directory `holder` of it, so that it is empty itself, and turns on what limits
/// need. Returns its path and the controllers that it has now.
///
/// # Errors
/// When this process is in no cgroup v2, or may not change it.
pub(crate) fn hold() -> io::Result<(PathBuf, Vec<String>)> {
    let own = own_path()?;
    let tree = match own.file_name() {
        // Started again by somebody who does not move it back.
        Some(name) if name == OsStr::new(HOLDER) => own.parent().unwrap_or(&own).to_owned(),
        _ => own,
    };
    let tree = Tree::open(&tree)?;
    match gate::mkdirat(&tree.dir, HOLDER, Mode::from_bits_retain(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    write_small(directory(tree.dir.as_fd(), HOLDER)?.as_fd(), "cgroup.procs", "0")?;
    tree.turn_on();
    let controllers = tree.controllers()?;
    Ok((tree.path, controllers))
}

/// Makes a tree of this name below another, where nobody manages them; returns its path.
///
/// # Errors
/// When we may not.
pub(crate) fn make_tree(below: &Path, name: &str) -> io::Result<PathBuf> {
    let parent = Tree::open(below)?;
    parent.turn_on();
    match gate::mkdirat(&parent.dir, name, Mode::from_bits_retain(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let path = below.join(name);
    Tree::open(&path)?.turn_on();
    Ok(path)
}

/// The directory of the process that holds the tree.
pub(crate) const HOLDER: &str = "holder";

/// Where this process is, by `cgroups(7)`, `/proc/[pid]/cgroup`.
///
/// # Errors
/// When it is in no cgroup v2, or that cannot be read.
pub(crate) fn own_path() -> io::Result<PathBuf> {
    let text = fs_err::read_to_string("/proc/self/cgroup")?;
    let own = text.lines().find_map(|line| line.strip_prefix("0::")).ok_or_else(|| io::Error::other("this machine has no cgroup v2"))?;
    let mount = mount_point()?;
    Ok(mount.join(own.trim_start_matches('/')))
}

/// Where a process is, as the kernel says it: below the mount.
///
/// # Errors
/// When it is gone, or in no cgroup v2.
pub(crate) fn of(pid: i32) -> io::Result<String> {
    let text = fs_err::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let own = text.lines().find_map(|line| line.strip_prefix("0::"));
    own.map(str::to_owned).ok_or_else(|| io::Error::other("it is in no cgroup v2"))
}

/// Returns a path as [`of`] would say it; `None`: it is not below the mount.
pub(crate) fn below_mount(path: &Path) -> Option<String> {
    let below = path.strip_prefix(mount_point().ok()?).ok()?;
    Some(format!("/{}", below.display()))
}

/// Where cgroup v2 is mounted.
///
/// # Errors
/// When it is not.
pub(crate) fn mount_point() -> io::Result<PathBuf> {
    let mounts = fs_err::read_to_string("/proc/self/mounts")?;
    let found = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, at, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(at))
    });
    found.ok_or_else(|| io::Error::other("no cgroup v2 is mounted"))
}

/// Whether anything that we limit can be limited below this mount.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn can_limit(mount: &Path) -> io::Result<bool> {
    let text = fs_err::read_to_string(mount.join("cgroup.controllers"))?;
    Ok(text.split_whitespace().any(|controller| CONTROLLERS.contains(&controller)))
}

/// The controllers that cgroup v2 has on this machine (or was given of it).
///
/// # Errors
/// When it is not mounted.
pub(crate) fn controllers_here() -> io::Result<Vec<String>> {
    let text = fs_err::read_to_string(mount_point()?.join("cgroup.controllers"))?;
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::process::{Child, Command, Stdio};

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    /// A tree of this test in the machine's real cgroup v2, removed when the test is over; `None` where we may not make one.
    pub(crate) struct Own(pub(crate) Tree);

    impl Own {
        pub(crate) fn make(name: &str) -> Option<Self> {
            let path = mount_point().ok()?.join(format!("selfstart-test-{name}-{}", std::process::id()));
            gate::create_dir(&path).ok()?;
            Some(Self(Tree::open(&path).expect("made")))
        }
    }

    impl Drop for Own {
        fn drop(&mut self) {
            for name in self.0.names().unwrap_or_default() {
                let _gone = self.0.group(&name).and_then(|group| group.kill());
            }
            let (parent, name) = (self.0.path.parent().expect("below the mount"), self.0.path.file_name().expect("a name"));
            let parent = Tree::open(parent).expect("the mount");
            let _left_for_the_next_boot = parent.remove(&name.to_string_lossy());
        }
    }

    impl Group {
        /// Moves a process into it.
        pub(crate) fn take(&self, pid: i32) -> io::Result<()> {
            write_small(self.as_fd(), "cgroup.procs", &pid.to_string())
        }
    }

    fn sleep_in(group: &Group) -> Child {
        let child = Command::new("sleep").arg("1000").stdout(Stdio::null()).spawn().expect("sleep");
        group.take(i32::try_from(child.id()).expect("a pid")).expect("moved");
        child
    }

    #[test]
    fn who_is_in_a_group_is_killed_as_a_whole_and_its_emptiness_is_told() {
        let Some(own) = Own::make("kill") else { return eprintln!("skipped: no cgroup v2 to write to") };
        let group = own.0.make("w.0", &[]).expect("made");
        assert!(!group.is_populated().expect("read"));
        let mut children = [sleep_in(&group), sleep_in(&group)];
        let pids: Vec<i32> = children.iter().map(|child| i32::try_from(child.id()).expect("a pid")).collect();
        let mut seen = group.processes().expect("read");
        seen.sort_unstable();
        assert_eq!(seen, pids);
        assert!(group.is_populated().expect("read"));
        assert_eq!(own.0.remove("w.0").expect_err("somebody is in it").raw_os_error(), Some(libc::EBUSY));
        let news = group.watch().expect("opened");
        group.kill().expect("killed");
        for child in &mut children {
            child.wait().expect("its end");
        }
        let patience = Timespec { tv_sec: 20, tv_nsec: 0 };
        assert!(poll(&mut [PollFd::new(&news, PollFlags::PRI)], Some(&patience)).expect("poll") > 0, "nobody tells");
        assert!(!group.is_populated().expect("read"));
        // As a worker that runs as root may.
        gate::mkdirat(&group, "inner", Mode::from_bits_retain(0o755)).expect("made");
        own.0.remove("w.0").expect("removed");
        own.0.remove("w.0").expect("not there is removed");
        assert_eq!(own.0.names().expect("read"), Vec::<String>::new());
    }

    #[test]
    fn a_setting_that_is_not_taken_leaves_no_group_behind() {
        let Some(own) = Own::make("setting") else { return eprintln!("skipped: no cgroup v2 to write to") };
        let error = own.0.make("w.0", &[("cgroup.max.depth".into(), "many".into())]).expect_err("refused");
        assert!(error.to_string().starts_with("`cgroup.max.depth` does not take `many`: "), "{error}");
        assert_eq!(own.0.names().expect("read"), Vec::<String>::new());
        own.0.make("w.0", &[("cgroup.max.depth".into(), "3".into())]).expect("made");
        // What a former keeper left is made anew, with nothing of its settings.
        let group = own.0.make("w.0", &[]).expect("made");
        assert_eq!(read_small(group.as_fd(), "cgroup.max.depth").expect("read"), "max\n");
    }

    #[test]
    fn what_is_no_cgroup_is_refused() {
        let error = Tree::open(Path::new("/tmp")).expect_err("refused");
        assert_eq!(error.to_string(), "`/tmp` is no cgroup v2");
    }

    #[test]
    fn counters_are_read_by_their_whole_name() {
        let events = "low 0\nhigh 3\nmax 17\noom 2\noom_kill 3\noom_group_kill 1\n";
        assert_eq!([counter(events, "oom"), counter(events, "oom_group_kill"), counter(events, "oom_")], [Some(2), Some(1), None]);
    }
}
