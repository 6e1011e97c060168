//! Which releases live processes use, and how releases go.
//!
//! Which of them should go is decided elsewhere (`selfstart_core::deploy`); what a live process uses stays, whatever the plan says.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use selfstart_core::id::ReleaseId;
use selfstart_core::units::Bytes;
use serde::{Deserialize, Serialize};

use super::base;
use super::layout::{Layout, SPARE_PREFIX, STAGING_SUFFIX, TRASH_PREFIX};
use crate::sys::gate;
use crate::sys::spawn::Credentials;
use crate::sys::sync;
use crate::sys::{identity, links};

/// What the kernel puts behind the name of what is removed but still used (`proc_pid_exe(5)`).
const DELETED: &[u8] = b" (deleted)";

/// Why releases could not be removed or looked at.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PruneError {
    /// A directory could not be read, renamed or removed.
    #[error("failed to remove `{path}`")]
    Remove {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// `/proc` could not be read: nothing is removed then.
    #[error("failed to see which processes use releases in `{path}`")]
    Processes {
        /// The directory of releases, or `/proc`.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Who uses what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Uses {
    /// The processes that have their directory, root, executable, an open file or a mapping in a release.
    pub by_release: BTreeMap<ReleaseId, BTreeSet<i32>>,
    /// The processes that we may not look into, with their user: they may use any release.
    pub unknown: BTreeMap<i32, u32>,
    /// The processes that were looked into.
    pub known: BTreeSet<i32>,
    /// `/proc` does not show all of them: somebody unseen may use any release.
    #[serde(default)]
    pub hidden: bool,
}

impl Uses {
    /// Joins what two users saw (the agent and the configured user): used is what either saw used, unknown what neither could see.
    #[must_use]
    pub(crate) fn merge(mut self, other: Self) -> Self {
        for (release, pids) in other.by_release {
            self.by_release.entry(release).or_default().extend(pids);
        }
        self.unknown.extend(other.unknown);
        self.known.extend(other.known);
        // Two who each see their own do not see a third.
        self.hidden &= other.hidden;
        // A process that only one of the two met stays what that one says.
        self.unknown.retain(|pid, _| !self.known.contains(pid));
        self
    }
}

/// What a release is to the processes on this machine; the order is how much it keeps the release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// By these.
    Used(BTreeSet<i32>),
    /// Perhaps by these, into which we may not look.
    Unknown(BTreeSet<i32>),
    /// By none.
    Free,
}

/// Which processes that we may not look into keep releases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// All: right for an agent that is root.
    KeepAll,
    /// Only those of these users (by number): right for an agent that is not root, whose workers cannot be anyone else, and
    /// to whom most of a machine is unreadable.
    KeepOf(BTreeSet<u32>),
}

impl Uses {
    /// Returns whether a release may go.
    #[must_use]
    pub(crate) fn of(&self, release: &ReleaseId, unreadable: &Unreadable) -> Use {
        if let Some(pids) = self.by_release.get(release) {
            return Use::Used(pids.clone());
        }
        let counts = |uid: &u32| match unreadable {
            Unreadable::KeepAll => true,
            Unreadable::KeepOf(uids) => uids.contains(uid),
        };
        let unknown: BTreeSet<i32> = self.unknown.iter().filter(|(_, uid)| counts(uid)).map(|(pid, _)| *pid).collect();
        // Who is not root has workers of its own user only, whom it sees.
        let unseen = self.hidden && *unreadable == Unreadable::KeepAll;
        if unknown.is_empty() && !unseen { Use::Free } else { Use::Unknown(unknown) }
    }
}

/// Looks which live processes use which release in `releases`, whatever its state.
///
/// One pass over `/proc`; a process that ends meanwhile uses nothing. Kernel threads use nothing.
///
/// # Errors
/// If `/proc` or `releases` cannot be read: then nothing is known.
pub(crate) fn uses(releases: &Path) -> Result<Uses, PruneError> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source| PruneError::Processes { path, source }
    };
    // The kernel shows real paths.
    let real = fs_err::canonicalize(releases).map_err(unreadable(releases))?;
    let mut prefix = real.into_os_string().into_vec();
    if prefix.last() != Some(&b'/') {
        prefix.push(b'/');
    }
    let mut found = Uses { hidden: crate::sys::hidden::processes().is_some(), ..Uses::default() };
    let proc_dir = Path::new("/proc");
    for entry in fs_err::read_dir(proc_dir).map_err(unreadable(proc_dir))? {
        let entry = entry.map_err(unreadable(proc_dir))?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let mut seen = BTreeSet::new();
        match look_into(pid, &prefix, &mut seen) {
            Look::Gone => {}
            Look::Whole => {
                found.known.insert(pid);
            }
            // Init lives in no release. One with rights that we lack (a container, a unit with fewer capabilities) denies every look,
            // and would keep all releases for ever.
            Look::Denied if pid == 1 => {}
            Look::Denied => {
                if let Ok(owner) = fs_err::metadata(entry.path()) {
                    found.unknown.insert(pid, owner.uid());
                }
            }
        }
        for release in seen {
            found.by_release.entry(release).or_default().insert(pid);
        }
    }
    Ok(found)
}

#[derive(Debug, PartialEq, Eq)]
enum Look {
    Whole,
    Denied,
    Gone,
}

/// Collects the releases that one process uses.
fn look_into(pid: i32, prefix: &[u8], seen: &mut BTreeSet<ReleaseId>) -> Look {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let look = look_through(&process, prefix, seen);
    if look != Look::Gone {
        return look;
    }
    // A kernel thread has no executable, and a process that ended none any more. Nor has one whose first thread alone has ended: what that
    // one uses is seen through the others.
    match crate::sys::process::other_threads(pid) {
        Ok(threads) => {
            let through = |thread| look_through(&process.join(format!("task/{thread}")), prefix, seen);
            threads.into_iter().map(through).find(|look| *look != Look::Gone).unwrap_or(Look::Gone)
        }
        Err(error) if crate::sys::process::is_gone(&error) => Look::Gone,
        Err(_) => Look::Denied,
    }
}

/// Collects the releases that a process uses, as one of its threads (a directory in `/proc`) shows them.
fn look_through(process: &Path, prefix: &[u8], seen: &mut BTreeSet<ReleaseId>) -> Look {
    let mut note = |path: &[u8]| seen.extend(release_in(path, prefix));
    // Bare system calls, since it matters which error it is.
    let link = |path: &Path| rustix::fs::readlink(path, Vec::new()).map(CString::into_bytes);
    let looked = (|| -> Result<(), Errno> {
        note(&link(&process.join("exe"))?);
        for name in ["cwd", "root"] {
            note(&link(&process.join(name))?);
        }
        let descriptors = rustix::fs::open(process.join("fd"), OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        for open in rustix::fs::Dir::read_from(&descriptors)? {
            match rustix::fs::readlinkat(&descriptors, open?.file_name(), Vec::new()) {
                Ok(target) => note(target.as_bytes()),
                // Closed meanwhile; `.` and `..` are no links.
                Err(Errno::NOENT | Errno::INVAL) => {}
                Err(error) => return Err(error),
            }
        }
        let maps = rustix::fs::open(process.join("maps"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut text = Vec::new();
        File::from(maps).read_to_end(&mut text).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        for line in text.split(|byte| *byte == b'\n') {
            // proc_pid_maps(5): the path is the rest of the line, the first `/` in it.
            if let Some(at) = line.iter().position(|byte| *byte == b'/') {
                note(&line[at..]);
            }
        }
        Ok(())
    })();
    match looked {
        Ok(()) => Look::Whole,
        Err(Errno::NOENT | Errno::SRCH) => Look::Gone,
        // Also what cannot be: a failed read is never taken for "not used".
        Err(_) => Look::Denied,
    }
}

/// The release that `path` is in, or is.
fn release_in(path: &[u8], prefix: &[u8]) -> Option<ReleaseId> {
    let below = path.strip_prefix(prefix)?;
    let name = below.split(|byte| *byte == b'/').next()?;
    let name = name.strip_suffix(DELETED).unwrap_or(name);
    let name = std::str::from_utf8(name).ok()?;
    let name = [TRASH_PREFIX, SPARE_PREFIX].iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
    name.trim_end_matches(STAGING_SUFFIX).parse().ok()
}

/// Returns what a release takes on disk; `None` when it is not there or cannot be read.
#[must_use]
pub fn size(release: &Path) -> Option<Bytes> {
    use std::os::unix::fs::MetadataExt;
    let mut total = 0_u64;
    let mut folders = vec![release.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs_err::read_dir(&folder).ok()? {
            // Of the link itself, not of what it leads to: shared things are not the release's.
            let (path, metadata) = entry.and_then(|entry| Ok((entry.path(), fs_err::symlink_metadata(entry.path())?))).ok()?;
            // st_blocks counts 512 bytes each (stat(3type)).
            total = total.saturating_add(metadata.blocks().saturating_mul(512));
            if metadata.is_dir() {
                folders.push(path);
            }
        }
    }
    Some(Bytes(total))
}

/// What became of the releases that should go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pruned {
    /// They are gone.
    pub removed: Vec<ReleaseId>,
    /// They stay, and why.
    pub kept: Vec<(ReleaseId, Use)>,
    /// What could not be removed, and why: out of the way under another name (tried again at the next start), or still there (soon).
    pub leftovers: Vec<String>,
}

/// Releases that stay although nobody is known to use them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unsure {
    /// Which.
    pub releases: Vec<ReleaseId>,
    /// What is told of it: why, and what to do.
    pub text: String,
}

/// So many processes are named; a machine can have thousands, all for the same reason.
const NAMED: usize = 3;

impl Pruned {
    /// Says what stays for want of knowledge; `None`: nothing does.
    #[must_use]
    pub(crate) fn unsure(&self) -> Option<Unsure> {
        let mut releases = Vec::new();
        let mut pids = BTreeSet::new();
        for (id, used) in &self.kept {
            if let Use::Unknown(unknown) = used {
                releases.push(id.clone());
                pids.extend(unknown);
            }
        }
        if releases.is_empty() {
            return None;
        }
        let named: Vec<String> = pids.iter().take(NAMED).map(|pid| named(*pid)).collect();
        let more = if pids.len() > NAMED { format!(" and {} more", pids.len() - NAMED) } else { String::new() };
        let who =
            if named.is_empty() { "/proc, which does not show all processes,".to_owned() } else { format!("{}{more}", named.join(", ")) };
        let ids: Vec<&str> = releases.iter().map(ReleaseId::as_str).collect();
        let text = format!(
            "{} cannot be removed: whether a process lives there is not known, since {who} cannot be looked into; give selfstart the \
             capability CAP_SYS_PTRACE, or end those processes",
            ids.join(", ")
        );
        Some(Unsure { releases, text })
    }
}

/// A process by its number and name, which everybody may read.
fn named(pid: i32) -> String {
    match fs_err::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("process {pid} (`{}`)", name.trim_end()),
        Err(_) => format!("process {pid}"),
    }
}

/// Whose hands rename and remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Hands {
    /// Ours.
    Own,
    /// Those of the user who owns the releases: who looks is root, and root's hands do not go where others write.
    Of(Credentials),
}

impl Hands {
    fn carry_out(&self, work: impl FnOnce() -> io::Result<()> + Send) -> io::Result<()> {
        match self {
            Self::Own => work(),
            Self::Of(user) => identity::within(user, work)?,
        }
    }
}

/// Removes releases: those in no use are first renamed away, looked at again (a process may have started meanwhile), then removed.
///
/// `seen` adds what another user's eyes saw (the helper's answer to `uses`); `None`: only our own count. The live release must
/// not be among `victims`; it is kept all the same.
///
/// # Errors
/// If it cannot be known who uses what, or what is in use could not be moved back. What went before stays gone.
pub(crate) fn prune(
    layout: &Layout,
    victims: &[ReleaseId],
    unreadable: &Unreadable,
    seen: Option<&Uses>,
    hands: &Hands,
) -> Result<Pruned, PruneError> {
    let look = || -> Result<Uses, PruneError> {
        let own = uses(&layout.releases())?;
        Ok(match seen {
            Some(other) => own.merge(other.clone()),
            None => own,
        })
    };
    let live = super::switch::current(layout);
    let mut pruned = Pruned::default();
    let (mut away, mut free) = (Vec::new(), Vec::new());
    let before = look()?;
    for id in victims {
        if matches!(&live, Ok(super::switch::Current::Release(release)) if release == id) {
            pruned.kept.push((id.clone(), Use::Used(BTreeSet::new())));
            continue;
        }
        match before.of(id, unreadable) {
            Use::Free => {}
            used => {
                pruned.kept.push((id.clone(), used));
                continue;
            }
        }
        let (from, to) = (layout.release(id), trash(layout, id));
        match hands.carry_out(|| gate::rename(&from, &to)) {
            Ok(()) => away.push((id, from, to)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // It never had its name: the helper that wrote its tree was killed, or the disk was full.
                let half = layout.staging(id);
                if let Err(error) = hands.carry_out(|| links::remove_tree(&half)) {
                    pruned.leftovers.push(format!("`{}` could not be removed whole: {error}", half.display()));
                }
                pruned.removed.push(id.clone());
            }
            // Of a lower layer of an overlay (it came with an image), which no folder can be moved out of.
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => away.push((id, from.clone(), from)),
            // Not the end of it: removing the others may be what makes room.
            Err(error) => pruned.leftovers.push(format!("`{}` could not be moved away: {error}", from.display())),
        }
    }
    if away.is_empty() {
        return Ok(pruned);
    }
    let after = look();
    for (id, from, to) in away {
        // Nobody can come in by the release's name any more: what is free now stays free.
        let used = match &after {
            Ok(after) => after.of(id, unreadable),
            Err(_) => Use::Unknown(BTreeSet::new()),
        };
        if used != Use::Free {
            if to != from {
                hands.carry_out(|| gate::rename(&to, &from)).map_err(|source| PruneError::Remove { path: to, source })?;
            }
            pruned.kept.push((id.clone(), used));
            continue;
        }
        if to == from {
            // What is cut short under its own name must not be taken for whole.
            match hands.carry_out(|| gate::remove_file(layout.built_mark(id))) {
                // The mark is not the app's to remove: then the release stays whole.
                Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                    pruned.leftovers.push(format!("`{}` came with an image and stays: {source}", from.display()));
                    continue;
                }
                Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(PruneError::Remove { path: from, source }),
                _ => {}
            }
        }
        if to != from {
            free.push((id, to));
        } else if let Err(error) = hands.carry_out(|| links::remove_tree(&to)) {
            pruned.leftovers.push(format!("`{}` could not be removed whole: {error}", to.display()));
        }
        pruned.removed.push(id.clone());
    }
    remove_all_but_a_base(layout, free, hands, &mut pruned);
    after.map(|_| pruned)
}

/// Removes what is out of the way and used by nobody, but for the last one that was whole: that is the base of the next release.
fn remove_all_but_a_base(layout: &Layout, mut free: Vec<(&ReleaseId, PathBuf)>, hands: &Hands, pruned: &mut Pruned) {
    // The mark goes later; without it, not all of the release was ever known to be on the disk.
    let whole = |(id, path): &(&ReleaseId, PathBuf)| fs_err::symlink_metadata(layout.built_mark(id)).is_ok() && has_room_beside(path);
    let base = free.iter().rposition(whole).map(|at| free.remove(at));
    if let Some((id, path)) = base {
        // Out of the way first, since a helper may be about to take it.
        for (name, old) in base::spares(&layout.releases()) {
            if let Err(error) = hands.carry_out(|| base::discard(&old, &name)) {
                pruned.leftovers.push(format!("`{}` could not be removed whole: {error}", old.display()));
            }
        }
        let spare = layout.releases().join(format!("{SPARE_PREFIX}{id}"));
        if hands.carry_out(|| gate::rename(&path, &spare)).is_err() {
            free.push((id, path));
        }
    }
    for (_, path) in free {
        if let Err(error) = hands.carry_out(|| links::remove_tree(&path)) {
            pruned.leftovers.push(format!("`{}` could not be removed whole: {error}", path.display()));
        }
    }
}

/// Whether there is room for another two of its size: what nobody asked to be kept must not be what fills a disk.
fn has_room_beside(path: &Path) -> bool {
    let free = links::free_bytes(path).unwrap_or(0);
    size(path).is_some_and(|size| free / 2 >= size.0)
}

/// Removes what a kill left: half-staged releases, half-removed ones, a half-made link; returns what was removed, for people.
///
/// Only for the start, when no helper runs: a staging directory of a running helper would go too.
///
/// # Errors
/// If the directory of releases cannot be read. What cannot be removed is among the texts.
pub(crate) fn clean_leftovers(layout: &Layout) -> Result<Vec<String>, PruneError> {
    let releases = layout.releases();
    let failed = |source| PruneError::Remove { path: releases.clone(), source };
    let mut said = Vec::new();
    let mut remove = |path: PathBuf, what: &str| match links::remove_tree(&path) {
        Ok(()) => said.push(format!("removed {what} `{}`", path.display())),
        Err(error) => said.push(format!("could not remove {what} `{}`: {error}", path.display())),
    };
    for entry in fs_err::read_dir(&releases).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(TRASH_PREFIX) {
            remove(entry.path(), "a half-removed release");
        } else if name.ends_with(STAGING_SUFFIX) {
            remove(entry.path(), "a half-staged release");
        }
    }
    said.extend(clean_link(layout)?);
    Ok(said)
}

/// As [`clean_leftovers`], but for the half-made link alone, which is in the agent's folder. One that somebody else may not remove stays.
///
/// # Errors
/// None: what cannot be removed is among the texts.
pub(crate) fn clean_link(layout: &Layout) -> Result<Vec<String>, PruneError> {
    let link = layout.root().join(".current.new");
    Ok(match fs_err::symlink_metadata(&link).map(|_| links::remove_tree(&link)) {
        Err(_) => Vec::new(),
        Ok(Ok(())) => vec![format!("removed a half-made link `{}`", link.display())],
        Ok(Err(error)) => vec![format!("could not remove a half-made link `{}`: {error}", link.display())],
    })
}

/// Removes the marks and the build logs of releases that are gone: a kill fell between the removal of the one and of the other.
///
/// # Errors
/// None: what cannot be removed means nothing without its release, and is tried again at the next start.
pub(crate) fn clean_marks(layout: &Layout) {
    let gone =
        |id: &ReleaseId| matches!(fs_err::symlink_metadata(layout.release(id)), Err(error) if error.kind() == io::ErrorKind::NotFound);
    let names = |path: PathBuf| fs_err::read_dir(path).into_iter().flatten().flatten().map(|entry| (entry.file_name(), entry.path()));
    let marks = names(layout.run().join("built")).map(|found| (found, "", ".json"));
    let logs = names(layout.log()).map(|found| (found, "build.", ".log"));
    for ((name, path), before, after) in marks.chain(logs) {
        let id = name.to_str().and_then(|name| name.strip_prefix(before)?.strip_suffix(after)?.parse::<ReleaseId>().ok());
        if id.is_some_and(|id| gone(&id)) {
            let _stays = gate::remove_file(path);
        }
    }
}

/// Gives a staged release its name: renames `releases/NAME.tmp` to `releases/NAME` and syncs the directory.
///
/// # Errors
/// If the rename or the sync fails.
pub(crate) fn name_staged(layout: &Layout, id: &ReleaseId) -> io::Result<()> {
    gate::rename(layout.staging(id), layout.release(id))?;
    sync::sync_directory(&layout.releases()).map_err(io::Error::other)
}

fn trash(layout: &Layout, id: &ReleaseId) -> PathBuf {
    layout.releases().join(format!("{TRASH_PREFIX}{id}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    use crate::release::switch;
    use crate::sys::headless;

    /// Ends its process with the test.
    struct Running(Child);

    impl Drop for Running {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    impl Running {
        fn pid(&self) -> i32 {
            i32::try_from(self.0.id()).expect("a pid")
        }
    }

    fn spawn(command: &mut Command) -> Running {
        Running(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("started"))
    }

    fn sleep() -> Command {
        let mut command = Command::new("sleep");
        command.arg("600");
        command
    }

    fn scene(count: usize) -> (tempfile::TempDir, Layout, Vec<ReleaseId>) {
        let dir = tempfile::tempdir().expect("a directory");
        let layout = Layout::new(dir.path());
        layout.create(None).expect("made");
        let ids: Vec<ReleaseId> = (0..count).map(|n| format!("20261122T10153{n}Z-1a2b3c4").parse().expect("an id")).collect();
        for id in &ids {
            fs_err::create_dir_all(layout.release(id).join("sub")).expect("made");
            fs_err::write(layout.release(id).join("sub/file"), "x").expect("written");
        }
        (dir, layout, ids)
    }

    /// Waits until the processes use just these releases: a child needs a moment to become what it will be.
    fn until_used(layout: &Layout, expected: &[(&ReleaseId, i32)]) {
        let began = Instant::now();
        loop {
            let seen = uses(&layout.releases()).expect("seen");
            let all = expected.iter().all(|(id, pid)| seen.by_release.get(id).is_some_and(|pids| pids.contains(pid)));
            if all && seen.by_release.len() == expected.iter().map(|(id, _)| id).collect::<BTreeSet<_>>().len() {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(10), "expected {expected:?}, last seen {seen:?}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_stays_for_want_of_knowledge_is_named_with_the_processes_and_what_to_do() {
        let ids: Vec<ReleaseId> = (0..3).map(|n| format!("20261122T10153{n}Z-1a2b3c4").parse().expect("an id")).collect();
        let own = std::process::id().cast_signed();
        let mut pruned = Pruned { kept: vec![(ids[0].clone(), Use::Used([1].into()))], ..Pruned::default() };
        assert_eq!(pruned.unsure(), None, "a release in use is no riddle");
        // Larger than any pid (proc_sys_kernel(5): pid_max).
        let gone = [1 << 23, (1 << 23) + 1, (1 << 23) + 2];
        pruned.kept.push((ids[1].clone(), Use::Unknown([own].into_iter().chain(gone).collect())));
        pruned.kept.push((ids[2].clone(), Use::Unknown([own].into())));
        let unsure = pruned.unsure().expect("two are");
        assert_eq!(unsure.releases, ids[1..]);
        let comm = fs_err::read_to_string("/proc/self/comm").expect("ours");
        for part in [
            ids[1].as_str(),
            ids[2].as_str(),
            &format!("process {own} (`{}`)", comm.trim()),
            "process 8388608, process 8388609 and 1 more",
            "CAP_SYS_PTRACE",
        ] {
            assert!(unsure.text.contains(part), "`{part}` is not in {}", unsure.text);
        }
        assert!(!unsure.text.contains(ids[0].as_str()), "{}", unsure.text);
    }

    fn library() -> PathBuf {
        // Any shared library will do; libc itself is there twice then, which harms nobody.
        let maps = fs_err::read_to_string("/proc/self/maps").expect("read");
        let line = maps
            .lines()
            .find(|line| line.contains("/libgcc_s") || line.contains("/libm"))
            .or_else(|| maps.lines().find(|line| line.contains("/libc")));
        let line = line.expect("a library");
        line[line.find('/').expect("a path")..].into()
    }

    #[test]
    fn a_directory_an_executable_an_open_file_and_a_mapping_are_uses() {
        let (_dir, layout, ids) = scene(6);
        let path = |n: usize| layout.release(&ids[n]);
        let cwd = spawn(sleep().current_dir(path(0).join("sub")));
        // By another process: a descriptor of ours that writes to it could be inherited by another test's child (ETXTBSY).
        assert!(Command::new("cp").arg("/bin/sleep").arg(path(1).join("sleep")).status().expect("cp runs").success());
        let exe = spawn(Command::new(path(1).join("sleep")).arg("600"));
        let open = spawn(sleep().stderr(Stdio::from(fs_err::File::open(path(2).join("sub/file")).expect("opened").into_parts().0)));
        fs_err::copy(library(), path(3).join("lib.so")).expect("copied");
        let map = spawn(sleep().env("LD_PRELOAD", path(3).join("lib.so")));
        let top = spawn(sleep().current_dir(path(4)));
        let expected = [(&ids[0], cwd.pid()), (&ids[1], exe.pid()), (&ids[2], open.pid()), (&ids[3], map.pid()), (&ids[4], top.pid())];
        until_used(&layout, &expected);
        assert_eq!(uses(&layout.releases()).expect("seen").of(&ids[5], &Unreadable::KeepOf(BTreeSet::new())), Use::Free);

        // What is removed under a process is still what it uses.
        fs_err::remove_file(path(1).join("sleep")).expect("removed");
        fs_err::remove_dir_all(path(4)).expect("removed");
        until_used(&layout, &expected);
    }

    #[test]
    fn a_process_whose_first_thread_has_ended_uses_what_it_used() {
        let (_dir, layout, ids) = scene(2);
        let process = headless::start(headless::command().current_dir(layout.release(&ids[0])));
        let seen = uses(&layout.releases()).expect("seen");
        assert_eq!(seen.of(&ids[0], &Unreadable::KeepOf(BTreeSet::new())), Use::Used([process.pid()].into()));
        assert_eq!(seen.of(&ids[1], &Unreadable::KeepOf(BTreeSet::new())), Use::Free);
    }

    #[test]
    fn names_that_only_begin_alike_are_other_releases() {
        let prefix = b"/srv/app/releases/";
        let release = |path: &str| release_in(path.as_bytes(), prefix).map(|id| id.as_str().to_owned());
        let id = "20261122T101530Z-1a2b3c4";
        for (path, expected) in [
            (format!("/srv/app/releases/{id}"), Some(id.to_owned())),
            (format!("/srv/app/releases/{id}/a/b"), Some(id.to_owned())),
            (format!("/srv/app/releases/{id} (deleted)"), Some(id.to_owned())),
            (format!("/srv/app/releases/{id}/a (deleted)"), Some(id.to_owned())),
            (format!("/srv/app/releases/.trash-{id}/a"), Some(id.to_owned())),
            (format!("/srv/app/releases/{id}.tmp/a"), Some(id.to_owned())),
            (format!("/srv/app/releases/{id}-2/a"), Some(format!("{id}-2"))),
            (format!("/srv/app/releases-old/{id}"), None),
            (format!("/other/srv/app/releases/{id}"), None),
            ("/srv/app/releases".to_owned(), None),
            ("/srv/app/releases/".to_owned(), None),
            ("socket:[1]".to_owned(), None),
        ] {
            assert_eq!(release(&path), expected, "{path}");
        }
    }

    #[test]
    fn unused_releases_go_and_used_and_live_ones_stay() {
        let (_dir, layout, ids) = scene(4);
        switch::switch(&layout, &ids[3]).expect("switched");
        let user = spawn(sleep().current_dir(layout.release(&ids[1])));
        until_used(&layout, &[(&ids[1], user.pid())]);
        let pruned = prune(&layout, &ids, &Unreadable::KeepOf(BTreeSet::new()), None, &Hands::Own).expect("pruned");
        assert_eq!(pruned.removed, [ids[0].clone(), ids[2].clone()]);
        let kept: Vec<_> = pruned.kept.iter().map(|(id, _)| id.clone()).collect();
        assert_eq!(kept, [ids[1].clone(), ids[3].clone()]);
        let left: BTreeSet<_> =
            fs_err::read_dir(layout.releases()).expect("read").map(|entry| entry.expect("an entry").file_name()).collect();
        assert_eq!(left, [ids[1].as_str().into(), ids[3].as_str().into()].into());
        drop(user);
        assert_eq!(
            prune(&layout, &ids[..2], &Unreadable::KeepOf(BTreeSet::new()), None, &Hands::Own).expect("pruned").removed,
            ids[..2],
            "gone already is gone"
        );
    }

    #[test]
    fn the_last_whole_release_that_goes_stays_as_a_base_and_no_other() {
        let (_dir, layout, ids) = scene(4);
        fs_err::create_dir_all(layout.run().join("built")).expect("made");
        let left = || {
            let names = fs_err::read_dir(layout.releases()).expect("read").map(|entry| entry.expect("an entry").file_name());
            let mut names: Vec<String> = names.map(|name| name.into_string().expect("text")).collect();
            names.sort();
            names
        };
        let gone = |ids: &[ReleaseId]| {
            let pruned = prune(&layout, ids, &Unreadable::KeepOf(BTreeSet::new()), None, &Hands::Own).expect("pruned");
            assert_eq!((pruned.removed.as_slice(), pruned.leftovers.len()), (ids, 0));
        };
        gone(&ids[..1]);
        assert_eq!(left(), ids[1..].iter().map(ToString::to_string).collect::<Vec<_>>(), "without a mark it was never whole");
        for id in &ids[1..3] {
            fs_err::write(layout.built_mark(id), "").expect("written");
        }
        gone(&ids[1..2]);
        assert_eq!(left(), [format!(".spare-{}", ids[1]), ids[2].to_string(), ids[3].to_string()]);
        assert_eq!(clean_leftovers(&layout).expect("cleaned"), Vec::<String>::new(), "a node may deploy with its next start");
        // Whoever lives in it is seen, as in any other.
        let user = spawn(sleep().current_dir(layout.releases().join(format!(".spare-{}/sub", ids[1]))));
        until_used(&layout, &[(&ids[1], user.pid())]);
        drop(user);
        gone(&ids[2..]);
        assert_eq!(left(), [format!(".spare-{}", ids[2])]);
    }

    #[test]
    fn one_that_cannot_be_moved_away_does_not_keep_the_others() {
        let (_dir, layout, ids) = scene(3);
        let away = layout.releases().join(format!("{TRASH_PREFIX}{}", ids[0]));
        fs_err::create_dir_all(away.join("left")).expect("made");
        let pruned = prune(&layout, &ids[..2], &Unreadable::KeepOf(BTreeSet::new()), None, &Hands::Own).expect("pruned");
        assert_eq!(pruned.removed, [ids[1].clone()]);
        assert!(pruned.leftovers[0].contains("could not be moved away"), "{:?}", pruned.leftovers);
        assert!(layout.release(&ids[0]).exists());
    }

    #[test]
    fn what_another_user_saw_keeps_a_release() {
        let (_dir, layout, ids) = scene(1);
        let seen = Uses { by_release: [(ids[0].clone(), [4711].into())].into(), ..Uses::default() };
        let pruned = prune(&layout, &ids, &Unreadable::KeepOf(BTreeSet::new()), Some(&seen), &Hands::Own).expect("pruned");
        assert_eq!(pruned.kept, [(ids[0].clone(), Use::Used([4711].into()))]);
        assert!(layout.release(&ids[0]).exists());
    }

    #[test]
    fn a_process_that_nobody_could_look_into_keeps_every_release() {
        let id: ReleaseId = "20261122T101530Z-1a2b3c4".parse().expect("an id");
        let own = Uses { unknown: [(1, 0), (2, 1000)].into(), known: [3].into(), ..Uses::default() };
        assert_eq!(own.of(&id, &Unreadable::KeepAll), Use::Unknown([1, 2].into()));
        assert_eq!(own.of(&id, &Unreadable::KeepOf([1000].into())), Use::Unknown([2].into()));
        assert_eq!(own.of(&id, &Unreadable::KeepOf([7].into())), Use::Free);
        // The other one could look into 2, and met 4, which started later, without being able to.
        let other = Uses { unknown: [(1, 0), (3, 0), (4, 0)].into(), known: [2].into(), ..Uses::default() };
        assert_eq!(own.merge(other).unknown, [(1, 0), (4, 0)].into());
    }

    #[test]
    fn who_is_hidden_may_use_any_release() {
        let id: ReleaseId = "20261122T101530Z-1a2b3c4".parse().expect("an id");
        let own = Uses { hidden: true, ..Uses::default() };
        assert_eq!(own.of(&id, &Unreadable::KeepAll), Use::Unknown(BTreeSet::new()));
        assert_eq!(own.of(&id, &Unreadable::KeepOf([7].into())), Use::Free);
        assert!(own.clone().merge(own.clone()).hidden && !own.merge(Uses::default()).hidden);
    }

    #[test]
    fn what_a_kill_left_goes_at_the_next_start() {
        let (_dir, layout, ids) = scene(1);
        for name in [".trash-20261122T101530Z-1a2b3c5", "20261122T101530Z-1a2b3c6.tmp"] {
            fs_err::create_dir_all(layout.releases().join(name).join("a/b")).expect("made");
        }
        std::os::unix::fs::symlink("releases/x", layout.root().join(".current.new")).expect("linked");
        assert_eq!(clean_leftovers(&layout).expect("cleaned").len(), 3);
        assert_eq!(fs_err::read_dir(layout.releases()).expect("read").count(), 1);
        assert!(layout.release(&ids[0]).exists());
        assert!(clean_leftovers(&layout).expect("cleaned").is_empty());
    }

    #[test]
    fn a_staged_release_gets_its_name() {
        let (_dir, layout, _) = scene(0);
        let id: ReleaseId = "20261122T101530Z-1a2b3c4".parse().expect("an id");
        fs_err::create_dir(layout.staging(&id)).expect("made");
        name_staged(&layout, &id).expect("named");
        assert!(layout.release(&id).is_dir() && !layout.staging(&id).exists());
        assert!(name_staged(&layout, &id).is_err());
    }

    #[test]
    fn a_process_of_another_user_is_unknown_to_who_may_not_look() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let (_dir, layout, ids) = scene(1);
        let other = spawn(sleep().current_dir(layout.release(&ids[0])).uid(65534));
        until_used(&layout, &[(&ids[0], other.pid())]);
        assert!(uses(&layout.releases()).expect("seen").known.contains(&other.pid()));
    }
}
