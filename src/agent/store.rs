//! Small files that must survive a power cut: written beside, synced, renamed, and the rename synced.
//!
//! For: the agent's state and other files of a few kilobytes. Not for: what grows (`telling::journal`, `output`), nor for deciding
//! when to write: each write is two fsyncs, so the caller waits until there is a reason.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::OFlags;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::sys::{fault, gate};

/// Owner reads and writes, group reads.
pub(crate) const MODE: u32 = 0o640;

/// What a file's `schema` field is called.
const SCHEMA: &str = "schema";

/// The schema of every file that this version writes.
pub const SCHEMA_NOW: u32 = 1;

/// Why a file was not written or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The path has no directory or no name.
    #[error("failed to write `{0}`: not a file's path")]
    NotAFile(PathBuf),
    /// The file beside it could not be written; the old one is untouched.
    #[error("failed to write `{path}`", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The new one is in place and may not survive a power cut.
    #[error("failed to sync directory of `{path}`", path = path.display())]
    Sync {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is there and cannot be read: nothing is known about its content.
    #[error("failed to read `{path}`", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The value is not one that JSON can hold as an object.
    #[error("failed to write `{path}` as JSON", path = path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// Replaces a file's content: after this it is the old or the new one, whole, also after a power cut. Mode 0640.
///
/// Disk order: write beside, sync that, rename, sync the directory.
///
/// # Errors
/// [`StoreError::Sync`] if the new content is there but not yet safe; else the old content is still there.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    write_atomic_with(path, bytes, MODE)
}

/// [`write_atomic`] with a mode.
///
/// # Errors
/// As [`write_atomic`].
pub(crate) fn write_atomic_with(path: &Path, bytes: &[u8], mode: u32) -> Result<(), StoreError> {
    replace(path, mode, |file| file.write_all(bytes).map_err(|source| StoreError::Write { path: path.to_owned(), source }))
}

/// Replaces a file's content with what `fill` writes, in blocks: the whole of it is nowhere in memory.
fn replace(path: &Path, mode: u32, fill: impl FnOnce(&mut BufWriter<Disk>) -> Result<(), StoreError>) -> Result<(), StoreError> {
    const BLOCK_BYTES: usize = 32 << 10;
    let dir = path.parent().ok_or_else(|| StoreError::NotAFile(path.to_owned()))?;
    let temporary = temporary_name(path).ok_or_else(|| StoreError::NotAFile(path.to_owned()))?;
    let failed = |source| StoreError::Write { path: path.to_owned(), source };
    let write = || -> Result<(), StoreError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let file = gate::File::open(&temporary, flags, mode).map_err(failed)?;
        // In a folder that others may list, what is made belongs to their group.
        let own = rustix::process::getegid();
        rustix::fs::fchown(&file, None, Some(own)).map_err(|error| failed(error.into()))?;
        fault::point();
        let mut blocks = BufWriter::with_capacity(BLOCK_BYTES, Disk(file));
        fill(&mut blocks)?;
        let Disk(file) = blocks.into_inner().map_err(|error| failed(error.into_error()))?;
        fault::point();
        file.sync_all().map_err(failed)?;
        fault::point();
        gate::rename(&temporary, path).map_err(failed)
    };
    if let Err(error) = write() {
        // Else it is removed by the next `clean_leftovers`.
        let _ = gate::remove_file(&temporary);
        return Err(error);
    }
    fault::point();
    sync_dir(dir).map_err(|source| StoreError::Sync { path: path.to_owned(), source })
}

/// A file on a disk that a test may fill.
struct Disk(gate::File);

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let taken = fault::disk(bytes.len())?;
        self.0.write(&bytes[..taken])
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

/// Syncs a directory: a rename in it survives a power cut after this (`fsync(2)`).
///
/// # Errors
/// As open(2) and fsync(2) do.
pub(crate) fn sync_dir(dir: &Path) -> std::io::Result<()> {
    Ok(gate::fsync(fs_err::File::open(dir)?)?)
}

/// `.NAME.tmp-PID-N`: never used twice in one boot of the machine by processes that live at the same time.
fn temporary_name(path: &Path) -> Option<PathBuf> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name()?);
    name.push(format!(".tmp-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
    Some(path.with_file_name(name))
}

/// Removes what writers of this file that were killed left beside it; returns how many there were. Not while another one writes.
pub(crate) fn clean_leftovers(path: &Path) -> usize {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return 0 };
    let mut prefix = std::ffi::OsString::from(".");
    prefix.push(name);
    prefix.push(".tmp-");
    // They are only in the way of tidiness; a directory that cannot be read is told by what is read or written there next.
    let Ok(entries) = fs_err::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(prefix.as_encoded_bytes()))
        .filter(|entry| gate::remove_file(entry.path()).is_ok())
        .count()
}

/// What was found on disk.
#[derive(Debug, PartialEq)]
pub(crate) enum Loaded<T> {
    /// No file: a first start.
    Nothing,
    /// The state.
    State(T),
    /// It made no sense and is now called `moved_to`, for people; go on with what the keeper and /proc know, and tell.
    Bad {
        /// Its new name; `None`: it could not be renamed, and will be overwritten.
        moved_to: Option<PathBuf>,
        /// What is wrong with it.
        why: String,
    },
}

#[derive(Serialize)]
struct Envelope<'a, T> {
    schema: u32,
    #[serde(flatten)]
    state: &'a T,
}

/// Writes a struct as one JSON object with its `schema`; see [`write_atomic`].
///
/// # Errors
/// As [`write_atomic`]; [`StoreError::Json`] if `state` is not an object.
pub(crate) fn save<T: Serialize>(path: &Path, schema: u32, state: &T) -> Result<(), StoreError> {
    replace(path, MODE, |file| {
        serde_json::to_writer(&mut *file, &Envelope { schema, state }).map_err(|source| {
            let path = path.to_owned();
            if source.is_io() { StoreError::Write { path, source: source.into() } } else { StoreError::Json { path, source } }
        })?;
        file.write_all(b"\n").map_err(|source| StoreError::Write { path: path.to_owned(), source })
    })
}

/// Reads what [`save`] wrote, and removes leftovers beside it.
///
/// Unknown fields are ignored, so that a file of a newer version is read as far as it goes. `upgrade` brings the fields of an older
/// schema (its number is given) up to what `T` reads; it is not called for the schema of today or newer ones.
///
/// # Errors
/// [`StoreError::Read`] if the file is there and cannot be read: that is not "nothing".
pub(crate) fn load<T: DeserializeOwned>(
    path: &Path,
    schema: u32,
    upgrade: impl FnOnce(u32, Map<String, Value>) -> Map<String, Value>,
) -> Result<Loaded<T>, StoreError> {
    clean_leftovers(path);
    let bytes = match fs_err::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Loaded::Nothing),
        Err(source) => return Err(StoreError::Read { path: path.to_owned(), source }),
    };
    let read = || -> Result<T, String> {
        let mut object: Map<String, Value> = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
        let found = object.remove(SCHEMA).and_then(|schema| schema.as_u64()).and_then(|schema| u32::try_from(schema).ok());
        let found = found.ok_or("its schema is missing")?;
        if found < schema {
            object = upgrade(found, object);
        }
        serde_json::from_value(Value::Object(object)).map_err(|error| error.to_string())
    };
    Ok(match read() {
        Ok(state) => Loaded::State(state),
        Err(why) => Loaded::Bad { moved_to: move_aside(path), why },
    })
}

/// Renames a file to the first free `NAME.bad-N`.
fn move_aside(path: &Path) -> Option<PathBuf> {
    // A bound, so that a directory in which nothing can be renamed ends the search: so many bad files have a reason to be looked at.
    for number in 1..1000 {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".bad-{number}"));
        let to = PathBuf::from(name);
        if fs_err::symlink_metadata(&to).is_err() {
            return gate::rename(path, &to).is_ok().then_some(to);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Example {
        held: bool,
        starts: u64,
    }

    /// As the first release wrote it, with a field that this version does not know.
    const SCHEMA_1: &str = "{\n  \"schema\": 1,\n  \"held\": true,\n  \"later\": [1],\n  \"starts\": 7\n}\n";

    fn same(_: u32, fields: Map<String, Value>) -> Map<String, Value> {
        fields
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs_err::read_dir(dir).expect("dir").map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_was_saved_is_loaded_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("state.json");
        assert_eq!(load::<Example>(&path, 1, same).expect("load"), Loaded::Nothing);
        save(&path, 1, &Example { held: false, starts: 1 }).expect("save");
        save(&path, 1, &Example { held: true, starts: 2 }).expect("save");
        assert_eq!(load(&path, 1, same).expect("load"), Loaded::State(Example { held: true, starts: 2 }));
        assert_eq!(names(dir.path()), ["state.json"]);
        assert_eq!(rustix::fs::stat(&path).expect("stat").st_mode & 0o777, MODE);
    }

    #[test]
    fn the_first_format_ever_is_still_read_and_unknown_fields_are_ignored() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("state.json");
        fs_err::write(&path, SCHEMA_1).expect("write");
        assert_eq!(load(&path, 1, same).expect("load"), Loaded::State(Example { held: true, starts: 7 }));
        // And written the same way, apart from what is not known.
        save(&path, 1, &Example { held: true, starts: 7 }).expect("save");
        let read = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
        let written = fs_err::read_to_string(&path).expect("read");
        assert_eq!(read(&written), read(&SCHEMA_1.replace("  \"later\": [1],\n", "")));
        assert!(written.ends_with('\n'), "{written}");
    }

    #[test]
    fn an_older_schema_is_upgraded_and_a_newer_one_is_read_as_it_is() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("state.json");
        for (schema, starts) in [(1, 100), (2, 7), (3, 7)] {
            fs_err::write(&path, SCHEMA_1.replace("\"schema\": 1", &format!("\"schema\": {schema}"))).expect("write");
            let loaded = load(&path, 2, |from, mut fields| {
                assert_eq!(from, 1);
                fields.insert("starts".into(), 100.into());
                fields
            });
            assert_eq!(loaded.expect("load"), Loaded::State(Example { held: true, starts }), "schema {schema}");
        }
    }

    #[test]
    fn a_corrupt_file_is_moved_aside_and_kept_for_people() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("state.json");
        for (n, wrong) in
            ["", "{", "[]", "{\"schema\": 1}", "{\"held\": true, \"starts\": 1}", "{\"schema\": -1}", "\0\0\0"].iter().enumerate()
        {
            fs_err::write(&path, wrong).expect("write");
            let loaded = load::<Example>(&path, 1, same).expect("load");
            let moved_to = path.with_file_name(format!("state.json.bad-{}", n + 1));
            assert!(
                matches!(&loaded, Loaded::Bad { moved_to: Some(to), why } if *to == moved_to && !why.is_empty()),
                "{wrong}: {loaded:?}"
            );
            assert_eq!(fs_err::read_to_string(moved_to).expect("read"), *wrong);
            assert_eq!(load::<Example>(&path, 1, same).expect("load"), Loaded::Nothing);
        }
    }

    #[test]
    fn what_cannot_be_read_is_not_nothing() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("state.json");
        fs_err::create_dir(&path).expect("dir");
        assert!(matches!(load::<Example>(&path, 1, same), Err(StoreError::Read { .. })));
    }

    #[test]
    fn killed_at_any_step_leaves_the_old_or_the_new_content_whole() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("state.json");
        let mut seen = Vec::new();
        for step in 0.. {
            fs_err::write(&path, "old").expect("write");
            fault::at(step);
            let result = std::panic::catch_unwind(|| write_atomic(&path, b"new"));
            let killed = !fault::off();
            let content = fs_err::read_to_string(&path).expect("read");
            assert!(content == "old" || content == "new", "step {step}: {content}");
            clean_leftovers(&path);
            assert_eq!(names(dir.path()), ["state.json"], "step {step}");
            seen.push(content);
            if !killed {
                assert!(result.is_ok());
                break;
            }
        }
        assert_eq!(seen, ["old", "old", "old", "new", "new"]);
    }

    #[test]
    fn a_full_disk_leaves_the_old_content_and_nothing_beside_it() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("state.json");
        fs_err::write(&path, "old").expect("write");
        fault::set_disk(Some(0));
        let result = write_atomic(&path, b"new");
        fault::set_disk(None);
        assert!(matches!(result, Err(StoreError::Write { .. })));
        assert_eq!(fs_err::read_to_string(&path).expect("read"), "old");
        assert_eq!(names(dir.path()), ["state.json"]);
    }
}
