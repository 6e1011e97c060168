//! The one way to the disk, and to a new process: each write, sync, rename, link, unlink, mkdir and spawn of this program goes through here
//! and is a point, at which a test may let it fail, end the process or the whole node, or write down what a power cut would take.
//!
//! Not a point: what changes no content (modes, owners, locks), and what is not on a disk (pipes, sockets, memory files). What libgit2 writes
//! into the mirror is C code that cannot come this way; the mirror heals, and has its own test of kills (`tests/git/heal.rs`).
//!
//! A debug build asks the folder named by `SELFSTART_GATE` (see [`on`]) if there is one; a release build has no such question in it: there
//! [`point`] is nothing, and each function here is the call that it is named for. `clippy.toml` bans those calls elsewhere, a test looks for
//! what clippy cannot see, and `tests/points` compares the points with what strace saw.

#![expect(clippy::disallowed_methods, reason = "here they are what they are named for")]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Output};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use rustix::path::Arg;

/// What is about to be done.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(debug_assertions), expect(dead_code, reason = "only a debug build looks at it"))]
pub(crate) enum Op<'a> {
    /// A file is opened that may be made or emptied by that.
    Create(BorrowedFd<'a>, &'a CStr, OFlags, Mode),
    /// Bytes go into a file.
    Write(BorrowedFd<'a>, &'a [u8]),
    /// A file gets another length.
    Truncate(BorrowedFd<'a>, u64),
    /// A file or directory goes to the disk.
    Sync(BorrowedFd<'a>),
    /// All of a file system goes to the disk.
    SyncAll(BorrowedFd<'a>),
    /// A name moves.
    Rename(BorrowedFd<'a>, &'a CStr, BorrowedFd<'a>, &'a CStr),
    /// A symbolic link is made, to the first.
    Link(&'a CStr, BorrowedFd<'a>, &'a CStr),
    /// A name goes.
    Unlink(BorrowedFd<'a>, &'a CStr),
    /// A directory is made.
    Mkdir(BorrowedFd<'a>, &'a CStr, Mode),
    /// A process is started.
    Spawn(&'a CStr),
}

#[cfg(not(debug_assertions))]
#[expect(clippy::unnecessary_wraps, reason = "the other one fails")]
const fn point(_op: &Op<'_>) -> Result<(), Errno> {
    Ok(())
}

#[cfg(not(debug_assertions))]
pub(crate) const fn handed_on() -> Option<(String, String)> {
    None
}

#[cfg(debug_assertions)]
pub(crate) use on::handed_on;
#[cfg(debug_assertions)]
use on::point;

// ---- by descriptor and name ----

/// `openat(2)`.
pub(crate) fn openat(dir: impl AsFd, path: impl Arg, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    let dir = dir.as_fd();
    path.into_with_c_str(|path| {
        if flags.intersects(OFlags::CREATE | OFlags::TRUNC) {
            point(&Op::Create(dir, path, flags, mode))?;
        }
        rustix::fs::openat(dir, path, flags, mode)
    })
}

/// `open(2)`.
pub(crate) fn open(path: impl Arg, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    openat(CWD, path, flags, mode)
}

/// `mkdirat(2)`.
pub(crate) fn mkdirat(dir: impl AsFd, path: impl Arg, mode: Mode) -> Result<(), Errno> {
    let dir = dir.as_fd();
    path.into_with_c_str(|path| {
        point(&Op::Mkdir(dir, path, mode))?;
        rustix::fs::mkdirat(dir, path, mode)
    })
}

/// `unlinkat(2)`.
pub(crate) fn unlinkat(dir: impl AsFd, path: impl Arg, flags: AtFlags) -> Result<(), Errno> {
    let dir = dir.as_fd();
    path.into_with_c_str(|path| {
        point(&Op::Unlink(dir, path))?;
        rustix::fs::unlinkat(dir, path, flags)
    })
}

/// `symlinkat(2)`.
pub(crate) fn symlinkat(target: impl Arg, dir: impl AsFd, path: impl Arg) -> Result<(), Errno> {
    let dir = dir.as_fd();
    target.into_with_c_str(|target| {
        path.into_with_c_str(|path| {
            point(&Op::Link(target, dir, path))?;
            rustix::fs::symlinkat(target, dir, path)
        })
    })
}

/// `renameat2(2)`.
pub(crate) fn renameat_with(from_dir: impl AsFd, from: impl Arg, to_dir: impl AsFd, to: impl Arg, flags: RenameFlags) -> Result<(), Errno> {
    let (from_dir, to_dir) = (from_dir.as_fd(), to_dir.as_fd());
    from.into_with_c_str(|from| {
        to.into_with_c_str(|to| {
            point(&Op::Rename(from_dir, from, to_dir, to))?;
            if flags.is_empty() {
                return rustix::fs::renameat(from_dir, from, to_dir, to);
            }
            rustix::fs::renameat_with(from_dir, from, to_dir, to, flags)
        })
    })
}

/// `renameat(2)`.
pub(crate) fn renameat(from_dir: impl AsFd, from: impl Arg, to_dir: impl AsFd, to: impl Arg) -> Result<(), Errno> {
    renameat_with(from_dir, from, to_dir, to, RenameFlags::empty())
}

/// `write(2)`, to a file.
pub(crate) fn write(file: impl AsFd, bytes: &[u8]) -> Result<usize, Errno> {
    let file = file.as_fd();
    point(&Op::Write(file, bytes))?;
    rustix::io::write(file, bytes)
}

/// `ftruncate(2)`.
pub(crate) fn ftruncate(file: impl AsFd, len: u64) -> Result<(), Errno> {
    let file = file.as_fd();
    point(&Op::Truncate(file, len))?;
    rustix::fs::ftruncate(file, len)
}

/// `fsync(2)`.
pub(crate) fn fsync(file: impl AsFd) -> Result<(), Errno> {
    let file = file.as_fd();
    point(&Op::Sync(file))?;
    rustix::fs::fsync(file)
}

/// `syncfs(2)`.
pub(crate) fn syncfs(file: impl AsFd) -> Result<(), Errno> {
    let file = file.as_fd();
    point(&Op::SyncAll(file))?;
    rustix::fs::syncfs(file)
}

/// `bind(2)` of a socket that gets a name on the disk.
pub(crate) fn bind(socket: impl AsFd, address: &rustix::net::SocketAddrUnix) -> Result<(), Errno> {
    if let Some(path) = address.path() {
        point(&Op::Create(CWD, &path, OFlags::empty(), Mode::empty()))?;
    }
    rustix::net::bind(socket, address)
}

// ---- by path; errors name it ----

fn named<T>(doing: &str, path: &Path, result: Result<T, Errno>) -> io::Result<T> {
    result.map_err(|error| {
        let source = io::Error::from(error);
        // As `fs_err` says it; the kind is what callers look at.
        io::Error::new(source.kind(), Named { text: format!("failed to {doing} `{}`", path.display()), cause: source })
    })
}

/// An error that says what failed, with its cause behind it.
#[derive(Debug, thiserror::Error)]
#[error("{text}: {cause}")]
struct Named {
    text: String,
    cause: io::Error,
}

/// Makes a directory, with the mode that the umask leaves.
///
/// # Errors
/// As `mkdir(2)`.
pub(crate) fn create_dir(path: impl AsRef<Path>) -> io::Result<()> {
    create_dir_with(path, Mode::from_raw_mode(0o777))
}

/// Makes a directory, with the mode that the umask leaves of this one.
///
/// # Errors
/// As `mkdir(2)`.
pub(crate) fn create_dir_with(path: impl AsRef<Path>, mode: Mode) -> io::Result<()> {
    let path = path.as_ref();
    named("create directory", path, mkdirat(CWD, path, mode))
}

/// Makes a directory, and those above it that are missing; one that is there is fine.
///
/// # Errors
/// As `mkdir(2)`.
pub(crate) fn create_dir_all(path: impl AsRef<Path>) -> io::Result<()> {
    let path = path.as_ref();
    match create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let above = path.parent().ok_or(error)?;
            create_dir_all(above)?;
            create_dir(path)
        }
        Err(error) if !path.is_dir() => Err(error),
        _ => Ok(()),
    }
}

/// Renames.
///
/// # Errors
/// As `rename(2)`.
pub(crate) fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
    let (from, to) = (from.as_ref(), to.as_ref());
    named(&format!("rename `{}` to", from.display()), to, renameat(CWD, from, CWD, to))
}

/// Makes a symbolic link to `target`.
///
/// # Errors
/// As `symlink(2)`.
pub(crate) fn symlink(target: impl AsRef<Path>, path: impl AsRef<Path>) -> io::Result<()> {
    named("make the link", path.as_ref(), symlinkat(target.as_ref(), CWD, path.as_ref()))
}

/// Removes a file or link.
///
/// # Errors
/// As `unlink(2)`.
pub(crate) fn remove_file(path: impl AsRef<Path>) -> io::Result<()> {
    named("remove file", path.as_ref(), unlinkat(CWD, path.as_ref(), AtFlags::empty()))
}

/// Removes an empty directory.
///
/// # Errors
/// As `rmdir(2)`.
pub(crate) fn remove_dir(path: impl AsRef<Path>) -> io::Result<()> {
    named("remove directory", path.as_ref(), unlinkat(CWD, path.as_ref(), AtFlags::REMOVEDIR))
}

/// Removes a directory with all below it, by descriptor: a link that is swapped in is removed, not followed (CVE-2022-21658).
///
/// # Errors
/// What could not be removed first.
pub(crate) fn remove_dir_all(path: impl AsRef<Path>) -> io::Result<()> {
    let path = path.as_ref();
    named("remove directory", path, empty(CWD, path).and_then(|()| unlinkat(CWD, path, AtFlags::REMOVEDIR)))
}

/// As [`remove_dir_all`], of `name` in `at`.
///
/// # Errors
/// What could not be removed first.
pub(crate) fn remove_dir_all_at(at: BorrowedFd<'_>, name: &std::ffi::OsStr) -> Result<(), Errno> {
    empty(at, name).and_then(|()| unlinkat(at, name, AtFlags::REMOVEDIR))
}

fn empty(at: BorrowedFd<'_>, name: impl Arg) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(at, name, flags, Mode::empty())?;
    for entry in Dir::read_from(&dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let removed = match entry.file_type() {
            FileType::Directory => Err(Errno::ISDIR),
            // Not every file system says what it is.
            _ => unlinkat(&dir, name, AtFlags::empty()),
        };
        match removed {
            // EPERM is what POSIX wants for a directory (`unlink(2)`).
            Err(Errno::ISDIR | Errno::PERM) => match empty(dir.as_fd(), name).and_then(|()| unlinkat(&dir, name, AtFlags::REMOVEDIR)) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            },
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Makes or replaces a file.
///
/// # Errors
/// As `open(2)` and `write(2)`.
pub(crate) fn write_file(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> io::Result<()> {
    use io::Write;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
    File::open(path.as_ref(), flags, 0o666)?.write_all(bytes.as_ref())
}

/// Copies a file with its mode, by `copy_file_range(2)`, which shares the blocks where the file system can.
///
/// # Errors
/// As `open(2)`, `read(2)` and `write(2)`.
pub(crate) fn copy(from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
    let mut from = fs_err::File::open(from.as_ref())?;
    let mode = from.metadata()?.permissions();
    let mut to = File::open(to.as_ref(), OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC, 0o666)?;
    loop {
        // What is copied is in no log: only the mirror's neighbours (what a build is given, `shared/` on another disk) come this way.
        point(&Op::Write(to.as_fd(), &[]))?;
        match rustix::fs::copy_file_range(&from, None, &to, None, 1 << 30) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            // Not between these file systems, or not by this kernel; nothing is copied yet, or the offsets say how much.
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM | Errno::BADF) => {
                io::copy(&mut from, &mut to)?;
                break;
            }
            Err(error) => return Err(error.into()),
        }
    }
    rustix::fs::fchmod(&to, Mode::from_raw_mode(std::os::unix::fs::PermissionsExt::mode(&mode)))?;
    Ok(())
}

/// A file that is written.
#[derive(Debug)]
pub(crate) struct File(OwnedFd);

impl File {
    /// Opens it by path (close-on-exec).
    ///
    /// # Errors
    /// As `open(2)`.
    pub(crate) fn open(path: &Path, flags: OFlags, mode: u32) -> io::Result<Self> {
        named("open file", path, open(path, flags | OFlags::CLOEXEC, Mode::from_raw_mode(mode))).map(Self)
    }

    /// `fsync(2)`.
    ///
    /// # Errors
    /// What the disk says.
    pub(crate) fn sync_all(&self) -> io::Result<()> {
        Ok(fsync(&self.0)?)
    }

    /// `ftruncate(2)`.
    ///
    /// # Errors
    /// What the disk says.
    pub(crate) fn set_len(&self, len: u64) -> io::Result<()> {
        Ok(ftruncate(&self.0, len)?)
    }
}

impl From<OwnedFd> for File {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl From<File> for OwnedFd {
    fn from(file: File) -> Self {
        file.0
    }
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl io::Write for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(write(&self.0, bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

// ---- processes ----

/// A process is about to be started by other means than [`spawn`].
///
/// # Errors
/// When a test wants it to fail.
pub(crate) fn spawning(program: &CStr) -> Result<(), Errno> {
    point(&Op::Spawn(program))
}

fn named_spawn(command: &Command) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let program = std::ffi::CString::new(command.get_program().as_bytes()).unwrap_or_default();
    Ok(spawning(&program)?)
}

/// Starts a process.
///
/// # Errors
/// As `Command::spawn` has them.
pub(crate) fn spawn(command: &mut Command) -> io::Result<Child> {
    named_spawn(command)?;
    command.spawn()
}

/// Runs a process to its end.
///
/// # Errors
/// As `Command::output` has them.
pub(crate) fn output(command: &mut Command) -> io::Result<Output> {
    named_spawn(command)?;
    command.output()
}

#[cfg(debug_assertions)]
#[path = "gate_on.rs"]
mod on;
