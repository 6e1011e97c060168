//! A release that went, as the base of the next one: only what differs is written. Runs in the helper.
//!
//! `prune` keeps the last one that it would remove, under a name that is no release's ([`SPARE_PREFIX`]). Staging takes it by a rename, looks
//! at all that is in it, removes what the new tree does not have or what was touched, and writes the rest. Nothing is shared: the base is gone
//! as soon as it is taken.
//!
//! What was touched is told by what was noted when the file was written (inode, size, time of change, which no program can set, and more);
//! what the note cannot answer for is read and compared. See docs/decisions/0016.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use git2::{ObjectType, Oid};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use selfstart_core::id::ReleaseId;

use super::layout::{SPARE_PREFIX, STAGING_SUFFIX, TRASH_PREFIX};
use super::prune;
use crate::sys::{gate, links};

/// Where the notes are, inside the mirror, by the release's name: they are only a cache, as it is.
pub(super) const FOLDER: &str = "selfstart-written";
/// What a note begins with; another version's is not read.
const MAGIC: &[u8; 8] = b"written1";
/// A larger one is not ours: 5,000,000 files with long paths.
const MAX_NOTE: u64 = 2 << 30;
/// The coarsest step in which a kernel counts the time of change (a tick of 100 Hz), twice: what was written within it of the end of
/// staging may have been changed later without another time.
const TICKS_NANOS: i128 = 20_000_000;
/// How many files are read and compared at once by one thread.
const BATCH: usize = 32;

/// What a file was when it was written: any change of it, and of its mode, owner, links or attributes, changes this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    size: u64,
    modified_nanos: i128,
    changed_nanos: i128,
}

impl Stamp {
    pub(super) fn of(stat: &Stat) -> Self {
        let nanos = |secs: i64, nanos: u64| i128::from(secs) * 1_000_000_000 + i128::from(nanos);
        Self {
            inode: stat.st_ino,
            size: stat.st_size.cast_unsigned(),
            modified_nanos: nanos(stat.st_mtime, stat.st_mtime_nsec),
            changed_nanos: nanos(stat.st_ctime, stat.st_ctime_nsec),
        }
    }
}

/// A file as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) oid: Oid,
    pub(super) stamp: Stamp,
    /// Whether it is a pointer of Git LFS.
    pub(super) pointer: bool,
}

/// What is noted of a release that was staged.
#[derive(Debug, Default)]
pub(super) struct Note {
    /// The boot in which it was written: a power cut may keep new bytes of a file and lose the time at which they came.
    boot: String,
    files: HashMap<Vec<u8>, Written>,
    /// When the last file was written.
    newest_nanos: i128,
}

impl Note {
    fn answers_for(&self, stamp: &Stamp) -> bool {
        !self.boot.is_empty() && self.boot == boot() && stamp.changed_nanos + TICKS_NANOS < self.newest_nanos
    }
}

fn boot() -> String {
    // Unreadable: then no note answers for anything, and all is read.
    fs_err::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// Writes the note on a release that is being staged at `destination`; `files` are paths below it. Best effort: without it there is no base.
pub(super) fn note<'a>(mirror: &Path, destination: &Path, files: impl Iterator<Item = (Vec<u8>, &'a Written)>) {
    let Some(name) = name_of(destination) else { return };
    let mut text = MAGIC.to_vec();
    let put = |text: &mut Vec<u8>, bytes: &[u8]| {
        text.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
        text.extend_from_slice(bytes);
    };
    put(&mut text, boot().as_bytes());
    for (path, written) in files {
        put(&mut text, &path);
        text.extend_from_slice(written.oid.as_bytes());
        text.extend_from_slice(&written.stamp.inode.to_le_bytes());
        text.extend_from_slice(&written.stamp.size.to_le_bytes());
        text.extend_from_slice(&written.stamp.modified_nanos.to_le_bytes());
        text.extend_from_slice(&written.stamp.changed_nanos.to_le_bytes());
        text.push(u8::from(written.pointer));
    }
    let folder = mirror.join(FOLDER);
    // What a kill leaves of it goes with the mirror's other locks.
    let half = folder.join(format!("{name}.lock"));
    let _without_one =
        gate::create_dir_all(&folder).and_then(|()| gate::write_file(&half, text)).and_then(|()| gate::rename(&half, folder.join(name)));
}

/// Reads a note; `None`: there is none, or not a whole one.
fn read(path: &Path) -> Option<Note> {
    let file = fs_err::File::open(path).ok()?;
    let mut bytes = Vec::new();
    file.take(MAX_NOTE).read_to_end(&mut bytes).ok()?;
    let mut rest = bytes.strip_prefix(MAGIC.as_slice())?;
    fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
        let (taken, left) = rest.split_at_checked(count)?;
        *rest = left;
        Some(taken)
    }
    fn text<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
        let count = u32::from_le_bytes(take(rest, 4)?.try_into().ok()?);
        take(rest, count as usize)
    }
    let mut note = Note { boot: String::from_utf8(text(&mut rest)?.to_vec()).ok()?, ..Note::default() };
    while !rest.is_empty() {
        let path = text(&mut rest)?.to_vec();
        let oid = Oid::from_bytes(take(&mut rest, 20)?).ok()?;
        let inode = u64::from_le_bytes(take(&mut rest, 8)?.try_into().ok()?);
        let size = u64::from_le_bytes(take(&mut rest, 8)?.try_into().ok()?);
        let modified_nanos = i128::from_le_bytes(take(&mut rest, 16)?.try_into().ok()?);
        let changed_nanos = i128::from_le_bytes(take(&mut rest, 16)?.try_into().ok()?);
        let pointer = take(&mut rest, 1)? != [0];
        note.newest_nanos = note.newest_nanos.max(changed_nanos);
        note.files.insert(path, Written { oid, stamp: Stamp { inode, size, modified_nanos, changed_nanos }, pointer });
    }
    Some(note)
}

/// The release that is staged at `destination`.
fn name_of(destination: &Path) -> Option<&str> {
    let name = destination.file_name()?.to_str()?;
    Some(name.strip_suffix(STAGING_SUFFIX).unwrap_or(name))
}

/// Gives the base the name under which the new release is staged, so that nobody else has it any more; `None`: there is none of use.
///
/// Notes on releases that are gone are removed.
pub(super) fn take(mirror: &Path, destination: &Path) -> Option<Note> {
    let releases = destination.parent()?;
    let mut spares = spares(releases);
    forget_others(mirror, releases);
    let (name, path) = spares.pop()?;
    let note = mirror.join(FOLDER).join(&name);
    let found = read(&note);
    // It cannot be of use twice.
    let _stays = gate::remove_file(&note);
    if found.is_some() && gate::rename(&path, destination).is_err() {
        // Of a lower layer of an overlay, or somebody else was faster.
        return None;
    }
    let Some(found) = found else {
        let _tried_again = discard(&path, &name);
        return None;
    };
    // `prune` has looked, and nobody came in by a release's name since; but by this one somebody may have. They keep what they have until
    // the next start.
    let used = prune::uses(releases).map_or(true, |uses| uses.by_release.keys().any(|id| Some(id.as_str()) == name_of(destination)));
    if used {
        let _or_it_goes_now = gate::rename(destination, destination.with_file_name(format!("{TRASH_PREFIX}{name}")));
        return None;
    }
    Some(found)
}

/// The bases that are there; there should be one at most.
pub(super) fn spares(releases: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs_err::read_dir(releases).into_iter().flatten().flatten();
    let spare = |name: &OsStr| name.to_str()?.strip_prefix(SPARE_PREFIX)?.parse::<ReleaseId>().ok();
    let mut found: Vec<(String, PathBuf)> =
        entries.filter_map(|entry| Some((spare(&entry.file_name())?.to_string(), entry.path()))).collect();
    found.sort();
    found
}

/// Removes what cannot be a base, out of the way first: what cannot be removed whole is tried again at the next start.
///
/// # Errors
/// When it could not be removed whole.
pub(super) fn discard(path: &Path, name: &str) -> io::Result<()> {
    let away = path.with_file_name(format!("{TRASH_PREFIX}{name}"));
    match gate::rename(path, &away) {
        Ok(()) => links::remove_tree(&away),
        // A helper has taken it meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes notes on what is neither a release nor a base.
fn forget_others(mirror: &Path, releases: &Path) {
    for entry in fs_err::read_dir(mirror.join(FOLDER)).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let there = |name: String| fs_err::symlink_metadata(releases.join(name)).is_ok();
        if ![name.to_string(), format!("{name}{STAGING_SUFFIX}"), format!("{SPARE_PREFIX}{name}")].into_iter().any(there) {
            let _stays = gate::remove_file(entry.path());
        }
    }
}

/// What the new tree has of a name.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wanted<'a> {
    /// The directory of this number.
    Directory(usize),
    /// The file of this number, with this id and these rights.
    File(usize, Oid, Mode),
    /// The link of this number, to there.
    Link(usize, &'a [u8]),
}

/// What of the base is as the new tree wants it. By number.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) directories: Vec<bool>,
    pub(super) files: Vec<Option<Written>>,
    pub(super) links: Vec<bool>,
}

impl Kept {
    /// Nothing is there.
    pub(super) fn nothing(directories: usize, files: usize, links: usize) -> Self {
        Self { directories: vec![false; directories], files: vec![None; files], links: vec![false; links] }
    }
}

/// A file that the note does not answer for.
struct Unsure {
    number: usize,
    directory: usize,
    name: Vec<u8>,
    written: Written,
}

/// What brings the base towards the new tree.
pub(super) struct Adjust<'a> {
    /// The base, under its new name.
    pub(super) top: &'a OwnedFd,
    pub(super) note: &'a Note,
    /// The new tree, by directory and name.
    pub(super) wanted: &'a HashMap<(usize, &'a [u8]), Wanted<'a>>,
    /// The path of each directory.
    pub(super) paths: &'a [PathBuf],
    pub(super) threads: usize,
}

impl Adjust<'_> {
    /// Removes whatever is not as the new tree wants it. What is kept was looked at name by name, no link followed.
    ///
    /// # Errors
    /// The base is of no use: somebody else's directory, another file system in it, what cannot be removed.
    pub(super) fn run(&self, mut kept: Kept) -> io::Result<Kept> {
        let device = self.check_directory(self.top.as_fd(), None)?;
        let mut unsure = Vec::new();
        let mut waiting = vec![0];
        while let Some(number) = waiting.pop() {
            let directory = links::walk(self.top.as_fd(), &self.paths[number], links::Missing::Refuse)?;
            self.check_directory(directory.as_fd(), Some(device))?;
            if number != 0 {
                kept.directories[number] = true;
            }
            // All names before anything is removed: what readdir(3) says of a directory that changes is not defined.
            let mut names = Vec::new();
            for entry in Dir::read_from(&directory)? {
                let entry = entry?;
                if entry.file_name() != c"." && entry.file_name() != c".." {
                    names.push(entry.file_name().to_owned());
                }
            }
            for name in names {
                let name = name.as_bytes();
                let stays = match self.wanted.get(&(number, name)) {
                    None => false,
                    Some(Wanted::Directory(below)) => {
                        let is = links::kind_at(directory.as_fd(), OsStr::from_bytes(name))? == links::Kind::Directory;
                        if is {
                            waiting.push(*below);
                        }
                        is
                    }
                    Some(Wanted::Link(link, target)) => {
                        let found = links::read_link_at(directory.as_fd(), OsStr::from_bytes(name))?;
                        kept.links[*link] =
                            found.is_some_and(|found| found.as_os_str().as_bytes() == *target) && self.is_ours(directory.as_fd(), name)?;
                        kept.links[*link]
                    }
                    Some(Wanted::File(file, oid, mode)) => {
                        let written = self.untouched(directory.as_fd(), number, name, *oid, *mode)?;
                        match written {
                            Some(written) if !self.note.answers_for(&written.stamp) => {
                                unsure.push(Unsure { number: *file, directory: number, name: name.to_vec(), written });
                            }
                            written => kept.files[*file] = written,
                        }
                        written.is_some()
                    }
                };
                if !stays {
                    remove(directory.as_fd(), name)?;
                }
            }
        }
        self.compare(&unsure, &mut kept)?;
        Ok(kept)
    }

    /// Holds that a directory is one of ours as staging makes it, and returns its file system. Who may write in it beyond that, by an access
    /// list, would get that in all that is written below.
    fn check_directory(&self, directory: BorrowedFd<'_>, device: Option<u64>) -> io::Result<u64> {
        let stat = rustix::fs::fstat(directory)?;
        if device.is_some_and(|device| device != stat.st_dev) {
            return Err(io::Error::other("another file system is mounted in it"));
        }
        if stat.st_uid != rustix::process::geteuid().as_raw() {
            return Err(io::Error::other("a directory in it is somebody else's"));
        }
        let mut names = [0_u8; 4096];
        let count = match rustix::fs::flistxattr(directory, &mut names) {
            Ok(count) => count,
            Err(Errno::OPNOTSUPP) => 0,
            Err(error) => return Err(error.into()),
        };
        // Those of security modules are not what a build leaves.
        if names[..count].split(|byte| *byte == 0).any(|name| !name.is_empty() && !name.starts_with(b"security.")) {
            return Err(io::Error::other("a directory in it has extended attributes"));
        }
        if stat.st_mode & 0o7777 != 0o755 {
            rustix::fs::fchmod(directory, Mode::from_raw_mode(0o755))?;
        }
        Ok(stat.st_dev)
    }

    fn is_ours(&self, directory: BorrowedFd<'_>, name: &[u8]) -> io::Result<bool> {
        let stat = rustix::fs::statat(directory, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(stat.st_uid == rustix::process::geteuid().as_raw() && stat.st_nlink == 1)
    }

    /// Returns what was noted of a file that looks as when it was written, and is what the new tree wants.
    fn untouched(&self, directory: BorrowedFd<'_>, number: usize, name: &[u8], oid: Oid, mode: Mode) -> io::Result<Option<Written>> {
        let mut path = self.paths[number].as_os_str().as_bytes().to_vec();
        if number != 0 {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        let Some(written) = self.note.files.get(&path).filter(|written| written.oid == oid) else { return Ok(None) };
        let stat = rustix::fs::statat(directory, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW)?;
        let same = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            && stat.st_mode & 0o7777 == mode.as_raw_mode()
            && stat.st_nlink == 1
            && stat.st_uid == rustix::process::geteuid().as_raw()
            && Stamp::of(&stat) == written.stamp;
        Ok(same.then_some(*written))
    }

    /// Reads what the note does not answer for, and removes what is not as it should be.
    fn compare(&self, unsure: &[Unsure], kept: &mut Kept) -> io::Result<()> {
        let next = AtomicUsize::new(0);
        let compare_some = || -> io::Result<Vec<usize>> {
            let mut same = Vec::new();
            loop {
                let start = next.fetch_add(BATCH, Ordering::Relaxed);
                if start >= unsure.len() {
                    return Ok(same);
                }
                for (at, it) in unsure.iter().enumerate().skip(start).take(BATCH) {
                    let directory = links::walk(self.top.as_fd(), &self.paths[it.directory], links::Missing::Refuse)?;
                    let name = OsStr::from_bytes(&it.name);
                    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let mut bytes = Vec::with_capacity(usize::try_from(it.written.stamp.size).unwrap_or_default() + 1);
                    std::fs::File::from(rustix::fs::openat(&directory, name, flags, Mode::empty())?).read_to_end(&mut bytes)?;
                    let id = Oid::hash_object(ObjectType::Blob, &bytes).map_err(io::Error::other)?;
                    if id == it.written.oid {
                        same.push(at);
                    } else {
                        remove(directory.as_fd(), &it.name)?;
                    }
                }
            }
        };
        let found: Vec<io::Result<Vec<usize>>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.threads).map(|_| scope.spawn(compare_some)).collect();
            let lost = |_| Err(io::Error::other("a reader of files panicked"));
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(lost)).collect()
        });
        for same in found {
            for at in same? {
                kept.files[unsure[at].number] = Some(unsure[at].written);
            }
        }
        Ok(())
    }
}

fn remove(directory: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    match gate::unlinkat(directory, OsStr::from_bytes(name), AtFlags::empty()) {
        // EPERM is what POSIX wants for a directory (`unlink(2)`).
        Err(Errno::ISDIR | Errno::PERM) => Ok(gate::remove_dir_all_at(directory, OsStr::from_bytes(name))?),
        Err(Errno::NOENT) => Ok(()),
        other => Ok(other?),
    }
}
