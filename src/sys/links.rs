//! Directories, links and trees, reached by descriptor so that no symbolic link on the way leads elsewhere.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::gate;

/// Directories made here are 0755, whatever the umask.
const DIRECTORY_MODE: Mode = Mode::from_bits_retain(0o755);

/// Opens a directory by path; links on the way are followed.
///
/// # Errors
/// What `open(2)` says.
pub(crate) fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Opens the directory `name` in `parent`; a symbolic link is an error (`ENOTDIR` or `ELOOP`).
///
/// # Errors
/// What `openat(2)` says.
pub(crate) fn open_directory_at(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(parent, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}

/// Makes the directory `name` in `parent` with mode 0755 and opens it; one that is there is opened as it is, a link is an error.
///
/// # Errors
/// What `mkdirat(2)` and `openat(2)` say.
pub(crate) fn make_directory_at(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    match gate::mkdirat(parent, name, Mode::RWXU) {
        Ok(()) => {
            let made = open_directory_at(parent, name)?;
            rustix::fs::fchmod(&made, DIRECTORY_MODE)?;
            Ok(made)
        }
        Err(Errno::EXIST) => open_directory_at(parent, name),
        Err(error) => Err(error.into()),
    }
}

/// Whether missing directories on the way are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// They are an error.
    Refuse,
    /// They are made, mode 0755.
    Make,
}

/// Walks `relative` down from `top`, component by component, never through a symbolic link.
///
/// # Errors
/// `InvalidInput` for `..` and absolute paths, with the name of the component that is not a directory for a link.
pub(crate) fn walk(top: BorrowedFd<'_>, relative: &Path, missing: Missing) -> io::Result<OwnedFd> {
    let mut at = top.try_clone_to_owned()?;
    for component in relative.components() {
        let name = match component {
            Component::Normal(name) => name,
            Component::CurDir => continue,
            _ => return Err(io::Error::from(io::ErrorKind::InvalidInput)),
        };
        at = match missing {
            Missing::Refuse => open_directory_at(at.as_fd(), name)?,
            Missing::Make => make_directory_at(at.as_fd(), name)?,
        };
    }
    Ok(at)
}

/// What a name stands for, not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing there.
    Nothing,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A file, or something rarer.
    File,
}

/// Returns what `name` in `parent` is.
///
/// # Errors
/// What `fstatat(2)` says, but for "not there".
pub(crate) fn kind_at(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<Kind> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Link,
            _ => Kind::File,
        }),
        Err(Errno::NOENT) => Ok(Kind::Nothing),
        Err(error) => Err(error.into()),
    }
}

/// Returns where the link `name` in `parent` points to; `None` if it is no link or not there.
///
/// # Errors
/// What `readlinkat(2)` says.
pub(crate) fn read_link_at(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<PathBuf>> {
    use std::os::unix::ffi::OsStringExt;
    match rustix::fs::readlinkat(parent, name, Vec::new()) {
        Ok(target) => Ok(Some(std::ffi::OsString::from_vec(target.into_bytes()).into())),
        Err(Errno::NOENT | Errno::INVAL) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Makes `name` in `parent` a link to `target`, atomically in place of a file or link that is there (not of a directory).
///
/// # Errors
/// What `symlinkat(2)` and `renameat(2)` say; `EISDIR` when a directory is there.
pub(crate) fn replace_link_at(parent: BorrowedFd<'_>, name: &OsStr, target: &Path) -> io::Result<()> {
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(".new");
    match gate::unlinkat(parent, &temporary, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    gate::symlinkat(target, parent, &temporary)?;
    if let Err(error) = gate::renameat(parent, &temporary, parent, name) {
        // Best effort: the error that matters is the rename's, and the next try removes a leftover first.
        let _ = gate::unlinkat(parent, &temporary, AtFlags::empty());
        return Err(error.into());
    }
    Ok(())
}

/// Removes whatever `path` is, with all below it; links are removed, never followed. Gone already is fine.
///
/// Directories that their owner may not write (Go's module cache is such) are made writable first.
///
/// # Errors
/// What could not be removed, and why.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    match remove_once(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            open_up(path);
            remove_once(path)
        }
        other => other,
    }
}

fn remove_once(path: &Path) -> io::Result<()> {
    let removed = match fs_err::symlink_metadata(path) {
        // std walks by descriptor and does not follow links that are swapped in (CVE-2022-21658).
        Ok(found) if found.is_dir() => gate::remove_dir_all(path),
        Ok(_) => gate::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Gives the owner all rights on each directory below `path`, as far as possible: what remains impossible, the removal reports.
fn open_up(path: &Path) {
    let Ok(found) = fs_err::symlink_metadata(path) else { return };
    if !found.is_dir() {
        return;
    }
    if let Ok(directory) = rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
        // By descriptor: a directory swapped for a link must not have the mode of what it points to changed.
        use std::os::fd::AsRawFd;
        let by_descriptor = format!("/proc/self/fd/{}", directory.as_raw_fd());
        let _ = fs_err::set_permissions(by_descriptor, std::fs::Permissions::from_mode(found.permissions().mode() | 0o700));
    }
    for entry in fs_err::read_dir(path).into_iter().flatten().flatten() {
        open_up(&entry.path());
    }
}

/// Returns the bytes that an unprivileged user may still write where `path` is (`statvfs(3)`: `f_bavail`).
///
/// # Errors
/// What `statvfs(3)` says.
pub(crate) fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn scene() -> tempfile::TempDir {
        tempfile::tempdir().expect("a directory")
    }

    #[test]
    fn a_walk_does_not_go_through_a_link() {
        let dir = scene();
        fs_err::create_dir_all(dir.path().join("outside/deep")).expect("made");
        fs_err::create_dir(dir.path().join("top")).expect("made");
        symlink("../outside", dir.path().join("top/a")).expect("linked");
        let top = open_directory(&dir.path().join("top")).expect("opened");
        assert!(walk(top.as_fd(), Path::new("a/deep"), Missing::Refuse).is_err());
        assert!(walk(top.as_fd(), Path::new("a/new"), Missing::Make).is_err());
        assert!(walk(top.as_fd(), Path::new("../outside"), Missing::Make).is_err());
        assert!(!dir.path().join("outside/new").exists());
        walk(top.as_fd(), Path::new("b/c"), Missing::Make).expect("made");
        assert_eq!(fs_err::metadata(dir.path().join("top/b/c")).expect("there").permissions().mode() & 0o777, 0o755);
    }

    #[test]
    fn a_removed_tree_leaves_what_its_links_point_to() {
        let dir = scene();
        fs_err::create_dir_all(dir.path().join("tree/sub")).expect("made");
        fs_err::create_dir(dir.path().join("kept")).expect("made");
        fs_err::write(dir.path().join("kept/file"), "x").expect("written");
        symlink("../../kept", dir.path().join("tree/sub/link")).expect("linked");
        fs_err::set_permissions(dir.path().join("tree/sub"), std::fs::Permissions::from_mode(0o500)).expect("closed");
        remove_tree(&dir.path().join("tree")).expect("removed");
        assert!(!dir.path().join("tree").exists());
        assert!(dir.path().join("kept/file").exists());
        remove_tree(&dir.path().join("tree")).expect("gone already is fine");
    }

    #[test]
    fn a_link_is_replaced_in_one_step_and_a_directory_is_not() {
        let dir = scene();
        let top = open_directory(dir.path()).expect("opened");
        symlink("leftover", dir.path().join(".l.new")).expect("linked");
        replace_link_at(top.as_fd(), OsStr::new("l"), Path::new("one")).expect("linked");
        replace_link_at(top.as_fd(), OsStr::new("l"), Path::new("two")).expect("linked");
        assert_eq!(read_link_at(top.as_fd(), OsStr::new("l")).expect("read"), Some("two".into()));
        fs_err::create_dir(dir.path().join("d")).expect("made");
        assert!(replace_link_at(top.as_fd(), OsStr::new("d"), Path::new("x")).is_err());
        assert_eq!(kind_at(top.as_fd(), OsStr::new("d")).expect("known"), Kind::Directory);
        assert_eq!(kind_at(top.as_fd(), OsStr::new(".d.new")).expect("known"), Kind::Nothing);
    }

    #[test]
    fn free_space_is_known() {
        assert!(free_bytes(Path::new("/")).expect("known") > 0);
    }
}
