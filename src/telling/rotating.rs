//! A file that is appended to for ever: opened when it is needed, noticed when it was removed, rotated by size and age.
//!
//! It does not know what a line is: who writes gives it whole lines, and it never rotates in the middle of what it is given.
//! The output of workers and the event journal are such files.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat};
use rustix::io::Errno;
use selfstart_core::time::WallTime;

use super::stamp;
use crate::sys::{fault, gate};

/// Owner reads and writes, group reads: output may hold what is nobody else's business.
const MODE: Mode = Mode::from_raw_mode(0o640);

/// Lets a group read a file that is ours; of somebody else's, of one that has a second name, and of what is no file, nothing is changed.
///
/// # Errors
/// As fchown(2) and fchmod(2) do: a group that we are not in, a file system without groups.
pub(crate) fn let_read(fd: BorrowedFd<'_>, group: u32) -> io::Result<()> {
    let stat = rustix::fs::fstat(fd)?;
    let file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_nlink == 1;
    if !file || stat.st_uid != rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    if stat.st_gid != group {
        rustix::fs::fchown(fd, None, Some(Gid::from_raw(group)))?;
    }
    let mode = Mode::from_raw_mode(stat.st_mode);
    // The umask may have taken it away.
    if !mode.contains(Mode::RGRP) { Ok(rustix::fs::fchmod(fd, mode | Mode::RGRP)?) } else { Ok(()) }
}

/// Lets a group list and enter a folder that is ours.
///
/// # Errors
/// As [`let_read`].
pub(crate) fn let_enter(fd: BorrowedFd<'_>, group: u32) -> io::Result<()> {
    let stat = rustix::fs::fstat(fd)?;
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    if stat.st_gid != group {
        rustix::fs::fchown(fd, None, Some(Gid::from_raw(group)))?;
    }
    let mode = Mode::from_raw_mode(stat.st_mode);
    let wanted = mode | Mode::RGRP | Mode::XGRP;
    if wanted != mode { Ok(rustix::fs::fchmod(fd, wanted)?) } else { Ok(()) }
}

/// Makes a folder and those above it that are missing, which `readers` may enter.
fn make_folder(path: &Path, readers: Option<u32>) -> io::Result<()> {
    let missing: Vec<&Path> = path.ancestors().take_while(|folder| !folder.exists()).collect();
    gate::create_dir_all(path)?;
    let Some(group) = readers else { return Ok(()) };
    for folder in missing {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // What cannot be given is written to all the same.
        let _is_told_elsewhere = rustix::fs::open(folder, flags, Mode::empty()).map(|fd| let_enter(fd.as_fd(), group));
    }
    Ok(())
}

/// When a file is rotated, and what stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rotation {
    /// Before it would grow beyond this, in bytes.
    pub max_size: u64,
    /// Before a line is written when the first one is older than this.
    pub max_age: Option<Duration>,
    /// How many rotated files stay: `file.1` (the newest) to `file.N`; none: a full file is removed.
    pub keep: u32,
}

/// Why a file cannot be written now; tried again later.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// It cannot be opened or made.
    #[error("failed to open `{path}`", path = path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something else has its name.
    #[error("failed to open `{path}`: not a regular file", path = path.display())]
    NotAFile {
        /// The name.
        path: PathBuf,
    },
    /// It is full and cannot be moved out of the way.
    #[error("failed to rotate `{path}`", path = path.display())]
    Rotate {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is open and takes nothing; disk full, mostly.
    #[error("failed to write to `{path}`", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl FileError {
    /// Whether it is lack of space, which other files on that disk will meet as well.
    pub(crate) fn is_disk_full(&self) -> bool {
        let (Self::Open { source, .. } | Self::Rotate { source, .. } | Self::Write { source, .. }) = self else { return false };
        matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

/// How a file is found before a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prepared {
    /// Open.
    Good,
    /// Open; it was removed or replaced under us and made anew.
    Recreated,
    /// Open, and its first line is too old: rotate it.
    TooOld,
}

/// One file.
#[derive(Debug)]
pub(crate) struct RotatingFile {
    path: PathBuf,
    rotation: Rotation,
    open: Option<Open>,
    dev: Option<u64>,
    /// How large it may become although it should have been rotated.
    allowed: u64,
    /// The group that may read it; `None`: that of who makes it.
    readers: Option<u32>,
}

#[derive(Debug)]
struct Open {
    fd: OwnedFd,
    dev: u64,
    ino: u64,
    len: u64,
    /// When its first line was written; `None` while it is empty.
    first_at: Option<WallTime>,
}

impl RotatingFile {
    pub(crate) const fn new(path: PathBuf, rotation: Rotation) -> Self {
        Self { path, rotation, open: None, dev: None, allowed: 0, readers: None }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn set_rotation(&mut self, rotation: Rotation) {
        self.rotation = rotation;
    }

    /// Lets this group read it from the next time on that it is opened; `None`: that of who makes it.
    pub(crate) const fn set_readers(&mut self, group: Option<u32>) {
        self.readers = group;
    }

    /// The disk that it was on when it was last open.
    pub(crate) const fn dev(&self) -> Option<u64> {
        self.dev
    }

    /// Closes it; the next write opens what then has its name.
    pub(crate) fn close(&mut self) {
        self.open = None;
    }

    /// Identity and length, once [`RotatingFile::prepare`] was good: device, inode, bytes.
    pub(crate) fn state(&self) -> Option<(u64, u64, u64)> {
        self.open.as_ref().map(|open| (open.dev, open.ino, open.len))
    }

    /// How much fits before it must be rotated.
    pub(crate) fn room(&self) -> u64 {
        self.rotation.max_size.max(self.allowed).saturating_sub(self.open.as_ref().map_or(0, |open| open.len))
    }

    /// Makes sure that the file which has the name now is the open one.
    pub(crate) fn prepare(&mut self, now: WallTime) -> Result<Prepared, FileError> {
        let Some(open) = &mut self.open else {
            self.open()?;
            return Ok(if self.is_too_old(now) { Prepared::TooOld } else { Prepared::Good });
        };
        match rustix::fs::statat(CWD, &self.path, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if (stat.st_dev, stat.st_ino) == (open.dev, open.ino) => {
                open.len = length(&stat);
                if open.len == 0 {
                    open.first_at = None;
                }
                Ok(if self.is_too_old(now) { Prepared::TooOld } else { Prepared::Good })
            }
            // Removed, renamed by somebody's logrotate, or not to be seen: open what is there now.
            _ => {
                self.open = None;
                self.open()?;
                Ok(Prepared::Recreated)
            }
        }
    }

    fn is_too_old(&mut self, now: WallTime) -> bool {
        if let Some(open) = &mut self.open {
            // From before the clock was set back: its age counts from now, or it would not be rotated for years.
            open.first_at = open.first_at.map(|first_at| first_at.min(now));
        }
        let first_at = self.open.as_ref().and_then(|open| open.first_at);
        first_at.zip(self.rotation.max_age).is_some_and(|(first_at, max_age)| now.since(first_at) > max_age)
    }

    /// Lets it grow by `max_size` once more, at least by `at_least` bytes (what did not fit must fit now), or become as old again, before it is to be rotated.
    pub(crate) fn postpone_rotation(&mut self, now: WallTime, at_least: u64) {
        if let Some(open) = &mut self.open {
            self.allowed = open.len.saturating_add(self.rotation.max_size.max(at_least));
            open.first_at = Some(now);
        }
    }

    fn open(&mut self) -> Result<(), FileError> {
        let failed = |source: Errno| FileError::Open { path: self.path.clone(), source: source.into() };
        // NOFOLLOW: the directory may belong to the worker's user, who must not choose what file the agent writes to.
        // NONBLOCK: nor make it wait by a FIFO.
        let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = match gate::open(&self.path, flags, MODE) {
            Err(Errno::NOENT) => {
                if let Some(dir) = self.path.parent() {
                    make_folder(dir, self.readers).map_err(|source| FileError::Open { path: self.path.clone(), source })?;
                }
                gate::open(&self.path, flags, MODE).map_err(failed)?
            }
            other => other.map_err(failed)?,
        };
        let stat = rustix::fs::fstat(&fd).map_err(failed)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(FileError::NotAFile { path: self.path.clone() });
        }
        let mut len = length(&stat);
        let mut first_at = None;
        if len > 0 {
            let mut first = [0; stamp::STAMP_LEN];
            let read = rustix::io::pread(&fd, &mut first[..], 0).unwrap_or(0);
            first_at = stamp::parse_stamp(&first[..read]).or_else(|| Some(modified(&stat)));
            let mut last = [0];
            if rustix::io::pread(&fd, &mut last[..], len - 1) == Ok(1) && last != *b"\n" {
                // A line that a power cut left half written must not run into the next one.
                match gate::write(&fd, b"\n") {
                    Ok(_) => len += 1,
                    Err(source) => return Err(FileError::Write { path: self.path.clone(), source: source.into() }),
                }
            }
        }
        // What cannot be given is written all the same; who looks at all files (`agent::readers`) says why.
        let _is_told_elsewhere = self.readers.map(|group| let_read(fd.as_fd(), group));
        self.dev = Some(stat.st_dev);
        self.open = Some(Open { fd, dev: stat.st_dev, ino: stat.st_ino, len, first_at });
        Ok(())
    }

    /// Appends all of `bytes` or nothing.
    pub(crate) fn append(&mut self, bytes: &[u8], now: WallTime) -> Result<(), FileError> {
        let path = &self.path;
        let Some(open) = &mut self.open else { return Err(FileError::NotAFile { path: path.clone() }) };
        match write_all(&open.fd, bytes) {
            Ok(()) => {
                open.len += bytes.len() as u64;
                open.first_at.get_or_insert(now);
                Ok(())
            }
            Err((written, source)) => {
                fault::point();
                if written > 0 && gate::ftruncate(&open.fd, open.len).is_err() {
                    // The torn line stays and is closed with a newline when the file is opened again.
                    self.open = None;
                }
                Err(FileError::Write { path: path.clone(), source })
            }
        }
    }

    /// Makes `file` into `file.1`, `file.1` into `file.2` and so on, and opens a new one.
    ///
    /// A kill in the middle leaves a gap in the numbers, and the next rotation shifts only up to that gap: nothing goes before its time.
    pub(crate) fn rotate(&mut self) -> Result<(), FileError> {
        let failed = |source: Errno| FileError::Rotate { path: self.path.clone(), source: source.into() };
        let last = self.rotation.keep;
        // `keep` may have been larger before.
        for number in last + 1.. {
            if gate::unlinkat(CWD, numbered(&self.path, number), AtFlags::empty()).is_err() {
                break;
            }
        }
        if last == 0 {
            gone_is_fine(gate::unlinkat(CWD, &self.path, AtFlags::empty())).map_err(failed)?;
        } else {
            let gap = (1..=last).find(|n| !is_there(&numbered(&self.path, *n)));
            let to = gap.unwrap_or(last);
            for number in (1..to).rev() {
                gone_is_fine(gate::renameat(CWD, numbered(&self.path, number), CWD, numbered(&self.path, number + 1))).map_err(failed)?;
                fault::point();
            }
            gone_is_fine(gate::renameat(CWD, &self.path, CWD, numbered(&self.path, 1))).map_err(failed)?;
            fault::point();
        }
        self.open = None;
        self.allowed = 0;
        self.open()
    }
}

/// The name of a rotated file; the newest is number 1.
pub(crate) fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// Writes all of `bytes`; if not, says how much of it was written.
pub(crate) fn write_all(fd: &OwnedFd, bytes: &[u8]) -> Result<(), (usize, io::Error)> {
    let mut written = 0;
    while written < bytes.len() {
        let part = fault::shorten(bytes.len() - written);
        match fault::disk(part).and_then(|part| gate::write(fd, &bytes[written..written + part])) {
            Ok(0) => return Err((written, io::ErrorKind::WriteZero.into())),
            Ok(n) => written += n,
            Err(Errno::INTR) => {}
            Err(error) => return Err((written, error.into())),
        }
        fault::point();
    }
    Ok(())
}

fn is_there(path: &Path) -> bool {
    rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

fn gone_is_fine(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// The length of a file.
pub(crate) fn length(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

fn modified(stat: &Stat) -> WallTime {
    let nanos = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
    WallTime::from_unix_millis(stat.st_mtime.saturating_mul(1000).saturating_add(nanos / 1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_line_from_the_future_does_not_keep_a_file_from_being_rotated() {
        let dir = tempfile::tempdir().expect("a folder");
        let hour = Duration::from_secs(3600);
        let mut file = RotatingFile::new(dir.path().join("a.log"), Rotation { max_size: 1000, max_age: Some(hour), keep: 1 });
        let at = |hours: i64| WallTime::from_unix_millis(hours * 3_600_000);
        file.prepare(at(500_000)).expect("opened");
        file.append(b"from a wrong clock\n", at(500_000)).expect("written");
        // The clock is set right: from then on the hour counts.
        assert_eq!(file.prepare(at(400_000)).expect("open"), Prepared::Good);
        assert_eq!(file.prepare(at(400_001)).expect("open"), Prepared::Good);
        assert_eq!(file.prepare(at(400_002)).expect("open"), Prepared::TooOld);
    }
}
