//! The files of a machine or of an image, by paths as they are there: links, absolute ones too, are followed below its root and never out of
//! it (`openat2(2)`, RESOLVE_IN_ROOT). Files are replaced by rename, whole or not at all, with the owner, mode and labels of the old one.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, ResolveFlags, Stat, Uid, XattrFlags};
use rustix::io::Errno;

use crate::sys::gate;
use crate::sys::links;

/// As many links in a row as the kernel follows (path_resolution(7)).
const LINKS_MAX: usize = 40;

const OPEN_ROOT: &str = "open the root";

/// What could not be done with a file.
#[derive(Debug, thiserror::Error)]
#[error("failed to {doing} `{}`", .path.display())]
pub(crate) struct TreeError {
    doing: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl TreeError {
    /// Whether it is the root itself that cannot be opened.
    pub(crate) fn is_root(&self) -> bool {
        self.doing == OPEN_ROOT
    }

    /// The system's word for it.
    pub(crate) fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}

/// A regular file, read.
pub(crate) struct Found {
    /// All of it.
    pub(crate) bytes: Vec<u8>,
    /// Its permissions.
    pub(crate) mode: u32,
    /// Where it is, without links at the end.
    pub(crate) path: PathBuf,
}

/// A machine's files, or an image's.
pub(crate) struct Tree {
    root: OwnedFd,
    shown: PathBuf,
}

/// A name in a directory that is open.
struct Place {
    dir: OwnedFd,
    name: OsString,
    path: PathBuf,
}

impl Tree {
    /// Opens the root.
    ///
    /// # Errors
    /// It is no directory that may be read.
    pub(crate) fn open(root: &Path) -> Result<Self, TreeError> {
        let opened = links::open_directory(root);
        Ok(Self { root: opened.map_err(|source| TreeError { doing: OPEN_ROOT, path: root.to_owned(), source })?, shown: root.to_owned() })
    }

    /// Whether it is the machine that runs.
    pub(crate) fn is_live(&self) -> bool {
        let same = |a: &Stat, b: &Stat| (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino);
        match (rustix::fs::fstat(&self.root), rustix::fs::stat("/")) {
            (Ok(ours), Ok(live)) => same(&ours, &live),
            _ => true,
        }
    }

    /// How a path of it is called from outside.
    pub(crate) fn shown(&self, path: &Path) -> PathBuf {
        self.shown.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn failed(&self, doing: &'static str, path: &Path) -> impl Fn(Errno) -> TreeError + use<> {
        let path = self.shown(path);
        move |errno| TreeError { doing, path: path.clone(), source: errno.into() }
    }

    fn open_at(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new("/") } else { path };
        let mut tries = 0;
        loop {
            match rustix::fs::openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT) {
                // A `..` while something was renamed: the kernel says try again (openat2(2)).
                Err(Errno::AGAIN) if tries < LINKS_MAX => tries += 1,
                other => return other,
            }
        }
    }

    /// The directory and name that a path comes to, links followed, also one at the end; there need be nothing.
    fn place(&self, path: &Path) -> Result<Place, Errno> {
        let mut path = path.to_owned();
        for _ in 0..LINKS_MAX {
            let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::ISDIR) };
            let opened = self.open_at(dir, OFlags::DIRECTORY | OFlags::PATH)?;
            match rustix::fs::readlinkat(&opened, name, Vec::new()) {
                // Not tidied: `a/..` is not always here, when `a` is a link. An absolute one takes the place of all.
                Ok(target) => path = dir.join(OsStr::from_bytes(target.as_bytes())),
                Err(Errno::INVAL | Errno::NOENT) => return Ok(Place { dir: opened, name: name.to_owned(), path }),
                Err(error) => return Err(error),
            }
        }
        Err(Errno::LOOP)
    }

    /// The directory and name of a path, the last link not followed.
    fn spot(&self, path: &Path) -> Result<Place, Errno> {
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::ISDIR) };
        Ok(Place { dir: self.open_at(dir, OFlags::DIRECTORY | OFlags::PATH)?, name: name.to_owned(), path: path.to_owned() })
    }

    /// Whether something is there, links followed.
    ///
    /// # Errors
    /// What the system says, but for "not there".
    pub(crate) fn is_there(&self, path: &Path) -> Result<bool, TreeError> {
        match self.open_at(path, OFlags::PATH) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
            Err(errno) => Err(self.failed("look at", path)(errno)),
        }
    }

    /// Where a link points to; `None`: nothing there, or no link.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn link(&self, path: &Path) -> Result<Option<PathBuf>, TreeError> {
        let read = match self.spot(path) {
            Ok(at) => rustix::fs::readlinkat(at.dir, at.name, Vec::new()),
            Err(errno) => Err(errno),
        };
        match read {
            Ok(target) => Ok(Some(OsStr::from_bytes(target.as_bytes()).into())),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::INVAL) => Ok(None),
            Err(errno) => Err(self.failed("read the link", path)(errno)),
        }
    }

    /// Opens a regular file; `None`: not there.
    ///
    /// # Errors
    /// What the system says; something else than a file is there.
    pub(crate) fn file(&self, path: &Path) -> Result<Option<(File, Stat)>, TreeError> {
        // Not to wait for who writes to a FIFO.
        let opened = match self.open_at(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY) {
            Ok(opened) => opened,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(errno) => return Err(self.failed("open", path)(errno)),
        };
        let stat = rustix::fs::fstat(&opened).map_err(self.failed("look at", path))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file");
            return Err(TreeError { doing: "read", path: self.shown(path), source });
        }
        Ok(Some((opened.into(), stat)))
    }

    /// Reads a regular file; `None`: not there.
    ///
    /// # Errors
    /// As [`Tree::file`].
    pub(crate) fn read(&self, path: &Path) -> Result<Option<Found>, TreeError> {
        let Some((mut file, stat)) = self.file(path)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|source| TreeError { doing: "read", path: self.shown(path), source })?;
        let path = self.place(path).map_err(self.failed("follow the link", path))?.path;
        Ok(Some(Found { bytes, mode: stat.st_mode & 0o7777, path }))
    }

    /// Gives what is root's group's to another group, with these rights of a group; returns whether that changed anything. What has another
    /// group already was given to it by somebody.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn give_to_group(&self, path: &Path, flags: OFlags, group: Gid, more: Mode) -> Result<bool, TreeError> {
        let opened = self.open_at(path, flags | OFlags::NONBLOCK | OFlags::NOCTTY).map_err(self.failed("open", path))?;
        let found = rustix::fs::fstat(&opened).map_err(self.failed("look at", path))?;
        if found.st_gid != 0 || found.st_uid != 0 {
            return Ok(false);
        }
        rustix::fs::fchown(&opened, None, Some(group)).map_err(self.failed("give", path))?;
        let mode = Mode::from_raw_mode(found.st_mode) | more;
        rustix::fs::fchmod(&opened, mode).map_err(self.failed("open", path))?;
        Ok(true)
    }

    /// Replaces a file by what `content` has, in one step and on the disk; links at the end are followed. Owner and labels are as before.
    ///
    /// # Errors
    /// What the system says; then the old file is there, unchanged.
    pub(crate) fn write(&self, path: &Path, content: &mut dyn Read, mode: u32) -> Result<(), TreeError> {
        let at = self.place(path).map_err(self.failed("find", path))?;
        let failed = |source| TreeError { doing: "write", path: self.shown(&at.path), source };
        let mut temporary = OsString::from(".");
        temporary.push(&at.name);
        temporary.push(".selfstart-new");
        // What a power cut left.
        let _ = gate::unlinkat(&at.dir, &temporary, AtFlags::empty());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut write = || -> io::Result<()> {
            let mut file: gate::File = gate::openat(&at.dir, &temporary, flags, Mode::RUSR | Mode::WUSR)?.into();
            io::copy(content, &mut file)?;
            file.flush()?;
            match rustix::fs::openat(
                &at.dir,
                &at.name,
                OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC,
                Mode::empty(),
            ) {
                Ok(old) => keep_owner_and_labels(&old, &file)?,
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
            rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
            file.sync_all()?;
            gate::renameat(&at.dir, &temporary, &at.dir, &at.name)?;
            Ok(())
        };
        write().map_err(|error| {
            // The error that matters is the other one.
            let _ = gate::unlinkat(&at.dir, &temporary, AtFlags::empty());
            failed(error)
        })?;
        self.sync(&at)
    }

    /// Makes a link, not replacing anything.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn make_link(&self, path: &Path, target: &Path) -> Result<(), TreeError> {
        let failed = self.failed("make the link", path);
        let at = self.spot(path).map_err(&failed)?;
        gate::symlinkat(target, &at.dir, &at.name).map_err(&failed)?;
        self.sync(&at)
    }

    /// Renames within a directory, not replacing anything.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn rename(&self, from: &Path, to: &OsStr) -> Result<(), TreeError> {
        let failed = self.failed("rename", from);
        let at = self.spot(from).map_err(&failed)?;
        gate::renameat_with(&at.dir, &at.name, &at.dir, to, RenameFlags::NOREPLACE).map_err(&failed)?;
        self.sync(&at)
    }

    /// Makes a directory; `false`: it is there.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn make_directory(&self, path: &Path, mode: u32) -> Result<bool, TreeError> {
        let failed = self.failed("make the directory", path);
        let at = self.spot(path).map_err(&failed)?;
        match gate::mkdirat(&at.dir, &at.name, Mode::from_raw_mode(mode)) {
            Ok(()) => {
                // Whatever the umask.
                rustix::fs::chmodat(&at.dir, &at.name, Mode::from_raw_mode(mode), AtFlags::empty()).map_err(&failed)?;
                self.sync(&at)?;
                Ok(true)
            }
            Err(Errno::EXIST) if self.open_at(path, OFlags::DIRECTORY | OFlags::PATH).is_ok() => Ok(false),
            Err(errno) => Err(failed(errno)),
        }
    }

    /// Removes a file or link; gone already is fine. Links at the end are not followed.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn remove(&self, path: &Path) -> Result<(), TreeError> {
        self.unlink(path, AtFlags::empty()).map(drop)
    }

    /// Removes a directory; `false`: something is in it.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn remove_directory(&self, path: &Path) -> Result<bool, TreeError> {
        self.unlink(path, AtFlags::REMOVEDIR)
    }

    fn unlink(&self, path: &Path, how: AtFlags) -> Result<bool, TreeError> {
        let failed = self.failed("remove", path);
        let at = match self.spot(path) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(true),
            other => other.map_err(&failed)?,
        };
        match gate::unlinkat(&at.dir, &at.name, how) {
            Err(Errno::NOENT) => return Ok(true),
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::BUSY) => return Ok(false),
            other => other.map_err(&failed)?,
        }
        self.sync(&at)?;
        Ok(true)
    }

    fn sync(&self, at: &Place) -> Result<(), TreeError> {
        let dir = rustix::fs::openat(&at.dir, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        dir.and_then(gate::fsync).map_err(self.failed("sync the directory of", &at.path))
    }
}

/// A new file gets the labels of its directory (SELinux: rc.local would not be executed), and our user.
fn keep_owner_and_labels(old: &OwnedFd, new: &gate::File) -> io::Result<()> {
    let (was, is) = (rustix::fs::fstat(old)?, rustix::fs::fstat(new)?);
    if (was.st_uid, was.st_gid) != (is.st_uid, is.st_gid) {
        rustix::fs::fchown(new, Some(Uid::from_raw(was.st_uid)), Some(Gid::from_raw(was.st_gid)))?;
    }
    let mut names = vec![0_u8; 64 << 10];
    // A file system without them.
    let Ok(length) = rustix::fs::flistxattr(old.as_fd(), &mut names[..]) else { return Ok(()) };
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let Ok(name) = CString::new(name) else { continue };
        let mut value = vec![0_u8; 64 << 10];
        let Ok(length) = rustix::fs::fgetxattr(old.as_fd(), &name, &mut value[..]) else { continue };
        // Some the kernel sets itself, some file systems refuse; without them the file is as any new one.
        let _ = rustix::fs::fsetxattr(new.as_fd(), &name, &value[..length], XattrFlags::empty());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    fn scene() -> (tempfile::TempDir, Tree) {
        let dir = tempfile::tempdir().expect("a directory");
        fs_err::create_dir_all(dir.path().join("image/etc")).expect("made");
        let tree = Tree::open(&dir.path().join("image")).expect("opened");
        (dir, tree)
    }

    #[test]
    fn no_link_leads_out_of_an_image() {
        let (dir, tree) = scene();
        let outside = dir.path().join("outside");
        fs_err::create_dir(&outside).expect("made");
        symlink(&outside, dir.path().join("image/etc/absolute")).expect("linked");
        symlink("../../../../outside", dir.path().join("image/etc/relative")).expect("linked");
        symlink(outside.join("file"), dir.path().join("image/etc/file")).expect("linked");
        for path in ["/etc/absolute/x", "/etc/relative/x", "/etc/file", "/etc/../../outside/x"] {
            assert!(tree.write(Path::new(path), &mut &b"x"[..], 0o644).is_err(), "{path}");
            assert!(tree.make_directory(Path::new(path), 0o755).is_err(), "{path}");
        }
        assert_eq!(fs_err::read_dir(&outside).expect("read").count(), 0);
        // Below the root the same paths are fine.
        fs_err::create_dir_all(dir.path().join("image").join(outside.strip_prefix("/").expect("absolute"))).expect("made");
        tree.write(Path::new("/etc/absolute/x"), &mut &b"x"[..], 0o644).expect("written");
        tree.write(Path::new("/etc/file"), &mut &b"x"[..], 0o644).expect("written");
        assert!(dir.path().join("image").join(outside.strip_prefix("/").expect("absolute")).join("file").exists());
        assert_eq!(fs_err::read_dir(&outside).expect("read").count(), 0);
    }

    #[test]
    fn a_replaced_file_keeps_its_owner_and_labels_and_a_link_to_it_stays() {
        let (dir, tree) = scene();
        let file = dir.path().join("image/etc/real");
        fs_err::write(&file, "old").expect("written");
        symlink("real", dir.path().join("image/etc/link")).expect("linked");
        let labelled = File::open(&file).expect("opened");
        let labels = rustix::fs::fsetxattr(&labelled, c"user.label", b"mine", XattrFlags::empty()).is_ok();
        let owned = std::os::unix::fs::chown(&file, Some(12), Some(34)).is_ok();
        tree.write(Path::new("/etc/link"), &mut &b"new"[..], 0o751).expect("written");
        let now = fs_err::metadata(&file).expect("there");
        assert_eq!(now.permissions().mode() & 0o7777, 0o751);
        assert!(!owned || (now.uid(), now.gid()) == (12, 34));
        let mut label = [0; 10];
        assert!(!labels || rustix::fs::getxattr(&file, c"user.label", &mut label[..]) == Ok(4));
        assert_eq!(fs_err::read_link(dir.path().join("image/etc/link")).expect("a link"), Path::new("real"));
        assert_eq!(fs_err::read_dir(dir.path().join("image/etc")).expect("read").count(), 2);
    }

    #[test]
    fn what_is_no_file_is_not_read() {
        let (dir, tree) = scene();
        rustix::fs::mknodat(rustix::fs::CWD, dir.path().join("image/etc/fifo"), FileType::Fifo, Mode::RWXU, 0).expect("made");
        symlink("loop", dir.path().join("image/etc/loop")).expect("linked");
        assert!(
            tree.read(Path::new("/etc/fifo")).is_err()
                && tree.read(Path::new("/etc/loop")).is_err()
                && tree.read(Path::new("/etc")).is_err()
        );
        assert!(tree.read(Path::new("/etc/none")).expect("read").is_none());
    }
}
