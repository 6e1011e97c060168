//! Getting things onto the disk, in an order that a power cut cannot spoil.
//!
//! A rename is seen by everyone at once, but neither it nor the bytes before it are on the disk until they are synced
//! (`fsync(2)`, `syncfs(2)`); each function says what it syncs.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// A step towards the disk that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SyncError {
    /// The bytes of a new file.
    #[error("failed to write `{path}`")]
    Write {
        /// The temporary file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The rename to its name.
    #[error("failed to rename to `{path}`")]
    Rename {
        /// The final name.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A directory, or all of a file system.
    #[error("failed to sync `{path}`")]
    Sync {
        /// The directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Puts a file in place whole: whoever opens `path`, at whatever moment and after whatever crash, sees the old bytes or the new.
///
/// Writes `.NAME.tmp` beside it, syncs it, renames it, syncs the directory. `mode` does not depend on the umask.
///
/// # Errors
/// The old file is still there, unless only the last step (the directory's sync) failed.
pub(crate) fn write_file(path: &Path, bytes: &[u8], mode: u32) -> Result<(), SyncError> {
    let directory = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".tmp");
    let temporary = directory.join(name);
    let written = (|| {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::open(&temporary, flags, Mode::from_raw_mode(mode))?);
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()
    })();
    written.map_err(|source| SyncError::Write { path: temporary.clone(), source })?;
    fs_err::rename(&temporary, path).map_err(|source| SyncError::Rename { path: path.to_owned(), source })?;
    sync_directory(directory)
}

/// Syncs a directory: the names in it, not what they name.
///
/// # Errors
/// What the disk says.
pub(crate) fn sync_directory(path: &Path) -> Result<(), SyncError> {
    open_directory(path).and_then(|dir| dir.sync_all()).map_err(|source| SyncError::Sync { path: path.to_owned(), source })
}

/// Syncs all of the file system that `path` is on (`syncfs(2)`, which tells of write-back errors since Linux 5.8).
///
/// # Errors
/// What the disk says.
pub(crate) fn sync_file_system(path: &Path) -> Result<(), SyncError> {
    open_directory(path)
        .and_then(|dir| rustix::fs::syncfs(&dir).map_err(io::Error::from))
        .map_err(|source| SyncError::Sync { path: path.to_owned(), source })
}

fn open_directory(path: &Path) -> io::Result<File> {
    Ok(File::from(rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_is_replaced_whole_and_with_its_mode() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state.json");
        write_file(&path, b"one", 0o600).expect("written");
        write_file(&path, b"two", 0o640).expect("written");
        assert_eq!(fs_err::read(&path).expect("there"), b"two");
        assert_eq!(fs_err::metadata(&path).expect("there").permissions().mode() & 0o777, 0o640);
        assert_eq!(fs_err::read_dir(dir.path()).expect("a directory").count(), 1, "nothing is left beside it");
    }

    #[test]
    fn the_old_file_stays_when_the_new_one_cannot_be_written() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state.json");
        write_file(&path, b"one", 0o600).expect("written");
        fs_err::create_dir(dir.path().join(".state.json.tmp")).expect("in the way");
        assert!(matches!(write_file(&path, b"two", 0o600), Err(SyncError::Write { .. })));
        assert_eq!(fs_err::read(&path).expect("there"), b"one");
    }

    #[test]
    fn a_file_system_and_a_directory_can_be_synced() {
        let dir = tempfile::tempdir().expect("a directory");
        sync_directory(dir.path()).expect("synced");
        sync_file_system(dir.path()).expect("synced");
        assert!(sync_directory(&dir.path().join("none")).is_err());
    }
}
