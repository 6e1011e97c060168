//! Getting things onto the disk, in an order that a power cut cannot spoil.
//!
//! A rename is seen by everyone at once, but neither it nor the bytes before it are on the disk until they are synced
//! (`fsync(2)`, `syncfs(2)`); each function says what it syncs.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::gate;

/// A step towards the disk that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SyncError {
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

/// Syncs a directory: the names in it, not what they name.
///
/// # Errors
/// What the disk says.
pub(crate) fn sync_directory(path: &Path) -> Result<(), SyncError> {
    open_directory(path)
        .and_then(|dir| gate::fsync(&dir).map_err(io::Error::from))
        .map_err(|source| SyncError::Sync { path: path.to_owned(), source })
}

/// Syncs all of the file system that `path` is on (`syncfs(2)`, which tells of write-back errors since Linux 5.8).
///
/// # Errors
/// What the disk says.
pub(crate) fn sync_file_system(path: &Path) -> Result<(), SyncError> {
    open_directory(path)
        .and_then(|dir| gate::syncfs(&dir).map_err(io::Error::from))
        .map_err(|source| SyncError::Sync { path: path.to_owned(), source })
}

fn open_directory(path: &Path) -> io::Result<File> {
    Ok(File::from(rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_and_a_directory_can_be_synced() {
        let dir = tempfile::tempdir().expect("a directory");
        sync_directory(dir.path()).expect("synced");
        sync_file_system(dir.path()).expect("synced");
        assert!(sync_directory(&dir.path().join("none")).is_err());
    }
}
