//! Which releases live processes use, and how releases go.
//!
//! Which of them should go is decided elsewhere (`selfstart_core::deploy`); what a live process uses stays, whatever the plan says.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use selfstart_core::id::ReleaseId;
use selfstart_core::units::Bytes;
use serde::{Deserialize, Serialize};

use super::layout::{Layout, STAGING_SUFFIX, TRASH_PREFIX};
use crate::sys::links;
use crate::sys::sync;

/// What the kernel puts behind the name of what is removed but still used (`proc_pid_exe(5)`).
const DELETED: &[u8] = b" (deleted)";

/// Why releases could not be removed or looked at.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
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
pub struct Uses {
    /// The processes that have their directory, root, executable, an open file or a mapping in a release.
    pub by_release: BTreeMap<ReleaseId, BTreeSet<i32>>,
    /// The processes that we may not look into, with their user: they may use any release.
    pub unknown: BTreeMap<i32, u32>,
    /// The processes that were looked into.
    pub known: BTreeSet<i32>,
}

impl Uses {
    /// Joins what two users saw (the agent and the configured user): used is what either saw used, unknown what neither could see.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        for (release, pids) in other.by_release {
            self.by_release.entry(release).or_default().extend(pids);
        }
        self.unknown.extend(other.unknown);
        self.known.extend(other.known);
        // A process that only one of the two met stays what that one says.
        self.unknown.retain(|pid, _| !self.known.contains(pid));
        self
    }
}

/// What a release is to the processes on this machine; the order is how much it keeps the release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Use {
    /// By these.
    Used(BTreeSet<i32>),
    /// Perhaps by these, into which we may not look.
    Unknown(BTreeSet<i32>),
    /// By none.
    Free,
}

/// Which processes that we may not look into keep releases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// All: right for an agent that is root.
    KeepAll,
    /// Only those of these users (by number): right for an agent that is not root, whose workers cannot be anyone else, and
    /// to whom most of a machine is unreadable.
    KeepOf(BTreeSet<u32>),
}

impl Uses {
    /// Returns whether a release may go.
    #[must_use]
    pub fn of(&self, release: &ReleaseId, unreadable: &Unreadable) -> Use {
        if let Some(pids) = self.by_release.get(release) {
            return Use::Used(pids.clone());
        }
        let counts = |uid: &u32| match unreadable {
            Unreadable::KeepAll => true,
            Unreadable::KeepOf(uids) => uids.contains(uid),
        };
        let unknown: BTreeSet<i32> = self.unknown.iter().filter(|(_, uid)| counts(uid)).map(|(pid, _)| *pid).collect();
        if unknown.is_empty() { Use::Free } else { Use::Unknown(unknown) }
    }
}

/// Looks which live processes use which release in `releases`, whatever its state.
///
/// One pass over `/proc`; a process that ends meanwhile uses nothing. Kernel threads use nothing.
///
/// # Errors
/// If `/proc` or `releases` cannot be read: then nothing is known.
pub fn uses(releases: &Path) -> Result<Uses, PruneError> {
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
    let mut found = Uses::default();
    let proc_dir = Path::new("/proc");
    for entry in fs_err::read_dir(proc_dir).map_err(unreadable(proc_dir))? {
        let entry = entry.map_err(unreadable(proc_dir))?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let mut seen = BTreeSet::new();
        match look_into(&entry.path(), &prefix, &mut seen) {
            Look::Gone => {}
            Look::Whole => {
                found.known.insert(pid);
            }
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

enum Look {
    Whole,
    Denied,
    Gone,
}

/// Collects the releases that one process uses.
fn look_into(process: &Path, prefix: &[u8], seen: &mut BTreeSet<ReleaseId>) -> Look {
    let mut note = |path: &[u8]| seen.extend(release_in(path, prefix));
    let looked = (|| {
        // A kernel thread has no executable; a process that ended but is not reaped yet has none either.
        match std::fs::read_link(process.join("exe")) {
            Ok(target) => note(target.as_os_str().as_bytes()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        }
        for link in ["cwd", "root"] {
            note(std::fs::read_link(process.join(link))?.as_os_str().as_bytes());
        }
        for open in std::fs::read_dir(process.join("fd"))? {
            match std::fs::read_link(open?.path()) {
                Ok(target) => note(target.as_os_str().as_bytes()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {} // closed meanwhile
                Err(error) => return Err(error),
            }
        }
        for line in std::fs::read(process.join("maps"))?.split(|byte| *byte == b'\n') {
            // proc_pid_maps(5): the path is the rest of the line, the first `/` in it.
            if let Some(at) = line.iter().position(|byte| *byte == b'/') {
                note(&line[at..]);
            }
        }
        Ok(())
    })();
    match looked {
        Ok(()) => Look::Whole,
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) => Look::Gone,
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
    name.strip_prefix(TRASH_PREFIX).unwrap_or(name).trim_end_matches(STAGING_SUFFIX).parse().ok()
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
pub struct Pruned {
    /// They are gone.
    pub removed: Vec<ReleaseId>,
    /// They stay, and why.
    pub kept: Vec<(ReleaseId, Use)>,
    /// They are out of the way under another name, but could not be removed whole; tried again at the next start.
    pub leftovers: Vec<String>,
}

/// Removes releases: those in no use are first renamed away, looked at again (a process may have started meanwhile), then removed.
///
/// `seen` adds what another user's eyes saw (the helper's answer to `uses`); `None`: only our own count. The live release must
/// not be among `victims`; it is kept all the same.
///
/// # Errors
/// If it cannot be known who uses what, or a rename fails. What went before stays gone.
pub fn prune(layout: &Layout, victims: &[ReleaseId], unreadable: &Unreadable, seen: Option<&Uses>) -> Result<Pruned, PruneError> {
    let look = || -> Result<Uses, PruneError> {
        let own = uses(&layout.releases())?;
        Ok(match seen {
            Some(other) => own.merge(other.clone()),
            None => own,
        })
    };
    let live = super::switch::current(layout);
    let mut pruned = Pruned::default();
    let mut away = Vec::new();
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
        match fs_err::rename(&from, &to) {
            Ok(()) => away.push((id, from, to)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => pruned.removed.push(id.clone()),
            Err(source) => return Err(PruneError::Remove { path: from, source }),
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
            fs_err::rename(&to, &from).map_err(|source| PruneError::Remove { path: to, source })?;
            pruned.kept.push((id.clone(), used));
            continue;
        }
        if let Err(error) = links::remove_tree(&to) {
            pruned.leftovers.push(format!("`{}` could not be removed whole: {error}", to.display()));
        }
        pruned.removed.push(id.clone());
    }
    after.map(|_| pruned)
}

/// Removes what a kill left: half-staged releases, half-removed ones, a half-made link; returns what was removed, for people.
///
/// Only for the start, when no helper runs: a staging directory of a running helper would go too.
///
/// # Errors
/// If the directory of releases cannot be read. What cannot be removed is among the texts.
pub fn clean_leftovers(layout: &Layout) -> Result<Vec<String>, PruneError> {
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
    let link = layout.root().join(".current.new");
    if fs_err::symlink_metadata(&link).is_ok() {
        remove(link, "a half-made link");
    }
    Ok(said)
}

/// Gives a staged release its name: renames `releases/NAME.tmp` to `releases/NAME` and syncs the directory.
///
/// # Errors
/// If the rename or the sync fails.
pub fn name_staged(layout: &Layout, id: &ReleaseId) -> io::Result<()> {
    fs_err::rename(layout.staging(id), layout.release(id))?;
    sync::sync_directory(&layout.releases()).map_err(io::Error::other)
}

fn trash(layout: &Layout, id: &ReleaseId) -> PathBuf {
    layout.releases().join(format!("{TRASH_PREFIX}{id}"))
}
