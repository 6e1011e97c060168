//! Small files that must be whole after any kill and any power cut.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why a file could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// It could not be written.
    #[error("failed to write `{}`", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It could not be read.
    #[error("failed to read `{}`", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What goes before the name of a file that is being written.
const TEMPORARY: &str = ".new-";

/// Replaces a file: written beside it, synced, renamed, and the folder synced, so that there is the old one or the new one, whole.
///
/// # Errors
/// When a step fails; the old file is there then.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let failed = |source| StoreError::Write { path: path.to_owned(), source };
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Err(failed(io::ErrorKind::InvalidInput.into()));
    };
    fs_err::create_dir_all(folder).map_err(failed)?;
    // One name: the agent writes one version of a file at a time, and what a killed one left is written over.
    let temporary = folder.join(format!("{TEMPORARY}{name}"));
    let write = || -> io::Result<()> {
        use std::os::unix::fs::OpenOptionsExt;
        let mut file = fs_err::OpenOptions::new();
        file.write(true).create(true).truncate(true).options_mut().mode(0o640);
        let mut file = file.open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs_err::rename(&temporary, path)?;
        fs_err::File::open(folder)?.sync_all()
    };
    write().map_err(failed)
}

/// Keeps a value as JSON.
///
/// # Errors
/// As [`write_atomic`].
pub(crate) fn save<T: Serialize>(path: &Path, value: &T) -> Result<(), StoreError> {
    let bytes = serde_json::to_vec(value).map_err(|error| StoreError::Write { path: path.to_owned(), source: error.into() })?;
    write_atomic(path, &bytes)
}

/// What was found in the place of a file that should be read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Loaded<T> {
    /// It.
    Found(T),
    /// Nothing yet.
    Nothing,
    /// Something that is not it; moved aside, as this text says.
    Damaged(String),
}

/// Reads a value that [`save`] kept; a damaged file is moved aside, so that the node goes on with what it can see.
///
/// # Errors
/// When the file is there and cannot be read: that is not the same as nothing.
pub(crate) fn load<T: DeserializeOwned>(path: &Path) -> Result<Loaded<T>, StoreError> {
    let bytes = match fs_err::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Loaded::Nothing),
        Err(source) => return Err(StoreError::Read { path: path.to_owned(), source }),
    };
    match serde_json::from_slice(&bytes) {
        Ok(value) => Ok(Loaded::Found(value)),
        Err(error) => {
            let mut aside = path.to_owned().into_os_string();
            aside.push(".bad");
            let moved = match fs_err::rename(path, &aside) {
                Ok(()) => format!("moved to `{}`", Path::new(&aside).display()),
                Err(error) => format!("and could not be moved aside: {error}"),
            };
            Ok(Loaded::Damaged(format!("`{}` was damaged ({error}); {moved}", path.display())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_loaded() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("a/state.json");
        assert_eq!(load::<Vec<u8>>(&path).expect("nothing yet"), Loaded::Nothing);
        save(&path, &vec![1_u8, 2]).expect("saved");
        save(&path, &vec![3_u8]).expect("saved again");
        assert_eq!(load::<Vec<u8>>(&path).expect("read"), Loaded::Found(vec![3]));
    }

    #[test]
    fn a_damaged_file_is_moved_aside_and_told() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("state.json");
        fs_err::write(&path, b"[1, 2").expect("written");
        assert!(matches!(load::<Vec<u8>>(&path).expect("read"), Loaded::Damaged(text) if text.contains("state.json.bad")));
        assert_eq!(load::<Vec<u8>>(&path).expect("moved"), Loaded::Nothing);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_not_taken_for_none() {
        let dir = tempfile::tempdir().expect("a folder");
        assert!(matches!(load::<Vec<u8>>(dir.path()), Err(StoreError::Read { .. })));
    }
}
