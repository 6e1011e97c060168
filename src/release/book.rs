//! The list of releases in their order, `run/releases.json`: the names of releases are dates, and dates can jump.
//!
//! The file is replaced whole ([`sync::write_file`]); it says what was made of each directory, the directories themselves are
//! the truth about what exists, `current` about what is live.

use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use selfstart_core::id::{ReleaseId, Revision};
use selfstart_core::time::WallTime;
use serde::{Deserialize, Serialize};

use super::layout::{Layout, STAGING_SUFFIX};
use super::switch::{self, Current};
use crate::sys::sync::{self, SyncError};

/// The format that is written; a file of a later one is refused, never guessed at.
const SCHEMA: u32 = 1;

/// What can be wrong with the list.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BookError {
    /// It cannot be read.
    #[error("failed to read the list of releases `{path}`")]
    Read {
        /// Which file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It is no list of releases.
    #[error("the list of releases `{path}` is damaged")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// A later selfstart wrote it.
    #[error(
        "the list of releases `{path}` has schema {schema}, this selfstart knows {SCHEMA}\nhint: run the selfstart that wrote it, or remove the file: it is made again from the directories"
    )]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its schema.
        schema: u32,
    },
    /// It cannot be written.
    #[error("failed to save the list of releases")]
    Write(#[source] SyncError),
}

/// What was made of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ReleaseState {
    /// The tree is there; not built, or the build did not end.
    Staged,
    /// Built and synced.
    Built,
    /// `current` points to it.
    Live,
    /// Was live.
    Retired,
    /// Its build or its rollout failed.
    Failed,
}

/// One release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReleaseEntry {
    /// Its directory's name.
    pub id: ReleaseId,
    /// What it was made from.
    pub revision: Revision,
    /// What was made of it.
    pub state: ReleaseState,
    /// When it was staged; RFC 3339 in the file.
    #[serde(with = "rfc3339")]
    pub created_at: WallTime,
    /// What else than the revision it was built from (commands, environment): another one makes a new release of the same revision.
    pub fingerprint: String,
    /// Bytes on the disk when it was built; `None`: not measured.
    #[serde(default)]
    pub size_bytes: Option<u64>,
    /// Why it failed; `None` unless it did.
    #[serde(default)]
    pub why: Option<String>,
}

/// The releases, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ReleaseBook {
    entries: Vec<ReleaseEntry>,
}

#[derive(Serialize, Deserialize)]
struct File {
    schema: u32,
    releases: Vec<ReleaseEntry>,
}

impl ReleaseBook {
    /// Reads the list; no file is an empty list.
    ///
    /// # Errors
    /// [`BookError::Damaged`] should be answered with [`ReleaseBook::rebuilt`] and told.
    pub(crate) fn load(path: &Path) -> Result<Self, BookError> {
        let bytes = match fs_err::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(BookError::Read { path: path.to_owned(), source }),
        };
        let damaged = |source| BookError::Damaged { path: path.to_owned(), source };
        // The schema alone first: what a later one has changed must not be told as damage.
        #[derive(Deserialize)]
        struct Schema {
            schema: u32,
        }
        let Schema { schema } = serde_json::from_slice(&bytes).map_err(damaged)?;
        if schema > SCHEMA {
            return Err(BookError::Newer { path: path.to_owned(), schema });
        }
        let file: File = serde_json::from_slice(&bytes).map_err(damaged)?;
        Ok(Self { entries: file.releases })
    }

    /// Replaces the file, whole and synced.
    ///
    /// # Errors
    /// The old file is still there.
    pub(crate) fn save(&self, path: &Path) -> Result<(), BookError> {
        let file = File { schema: SCHEMA, releases: self.entries.clone() };
        let mut bytes = serde_json::to_vec_pretty(&file).map_err(|source| BookError::Damaged { path: path.to_owned(), source })?;
        bytes.push(b'\n');
        sync::write_file(path, &bytes, 0o644).map_err(BookError::Write)
    }

    /// Makes the list again from the directories when the file is lost: ordered by name, the one that `current` names is live,
    /// of the others it is not known whether they were built, so they count as failed and go by `keep_failed`.
    ///
    /// # Errors
    /// If the directories cannot be read.
    pub(crate) fn rebuilt(layout: &Layout) -> Result<Self, BookError> {
        let releases = layout.releases();
        let read = |source| BookError::Read { path: releases.clone(), source };
        let live = match switch::current(layout) {
            Ok(Current::Release(id)) => Some(id),
            _ => None,
        };
        let mut entries = Vec::new();
        for entry in fs_err::read_dir(&releases).map_err(read)? {
            let entry = entry.map_err(read)?;
            let name = entry.file_name();
            let Some(id) = name.to_str().filter(|name| !name.ends_with(STAGING_SUFFIX)).and_then(|name| name.parse::<ReleaseId>().ok())
            else {
                continue;
            };
            let Ok(text) = fs_err::read_to_string(entry.path().join("REVISION")) else { continue };
            let Ok(revision) = text.trim().parse() else { continue };
            let is_live = live.as_ref() == Some(&id);
            entries.push(ReleaseEntry {
                created_at: date_of(&id),
                id,
                revision,
                state: if is_live { ReleaseState::Live } else { ReleaseState::Failed },
                fingerprint: String::new(),
                size_bytes: None,
                why: (!is_live).then(|| "the list of releases was lost: not known whether it was built".to_owned()),
            });
        }
        entries.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(Self { entries })
    }

    /// Returns the releases, oldest first.
    #[must_use]
    pub(crate) fn entries(&self) -> &[ReleaseEntry] {
        &self.entries
    }

    /// Returns one release.
    #[must_use]
    pub(crate) fn get(&self, id: &ReleaseId) -> Option<&ReleaseEntry> {
        self.entries.iter().find(|entry| entry.id == *id)
    }

    /// Returns one release to change it.
    pub(crate) fn get_mut(&mut self, id: &ReleaseId) -> Option<&mut ReleaseEntry> {
        self.entries.iter_mut().find(|entry| entry.id == *id)
    }

    /// Appends a release; one of the same name is replaced and becomes the newest.
    pub(crate) fn add(&mut self, entry: ReleaseEntry) {
        self.remove(&entry.id);
        self.entries.push(entry);
    }

    /// Forgets a release.
    pub(crate) fn remove(&mut self, id: &ReleaseId) {
        self.entries.retain(|entry| entry.id != *id);
    }

    /// Makes `id` the live release; the one that was live is retired. Nothing happens if it is not in the list.
    pub(crate) fn set_live(&mut self, id: &ReleaseId) {
        if self.get(id).is_none() {
            return;
        }
        for entry in &mut self.entries {
            if entry.id == *id {
                entry.state = ReleaseState::Live;
            } else if entry.state == ReleaseState::Live {
                entry.state = ReleaseState::Retired;
            }
        }
    }
}

/// The date that a release's name begins with; 1970 if it begins with none.
fn date_of(id: &ReleaseId) -> WallTime {
    let date = id.as_str().split('-').next().unwrap_or_default();
    jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", date)
        .ok()
        .and_then(|date| date.to_zoned(jiff::tz::TimeZone::UTC).ok())
        .map_or(WallTime::default(), |date| WallTime::from_unix_millis(date.timestamp().as_millisecond()))
}

/// Dates as every interface shows them: RFC 3339, UTC, milliseconds.
mod rfc3339 {
    use super::{Timestamp, WallTime};
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _, ser::Error as _};

    pub(super) fn serialize<S: Serializer>(time: &WallTime, to: S) -> Result<S::Ok, S::Error> {
        let date = Timestamp::from_millisecond(time.unix_millis()).map_err(S::Error::custom)?;
        to.collect_str(&format_args!("{date:.3}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<WallTime, D::Error> {
        let text = String::deserialize(from)?;
        let date: Timestamp = text.parse().map_err(D::Error::custom)?;
        Ok(WallTime::from_unix_millis(date.as_millisecond()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The format as first released: must be read for ever.
    const SCHEMA_1: &str = r#"{
  "schema": 1,
  "releases": [
    {
      "id": "20261122T101530Z-1a2b3c4",
      "revision": "1a2b3c4d5e6f1a2b3c4d5e6f1a2b3c4d5e6f1a2b",
      "state": "retired",
      "created_at": "2026-11-22T10:15:30.250Z",
      "fingerprint": "f1",
      "size_bytes": 1234,
      "why": null
    },
    {
      "id": "20261122T101530Z-1a2b3c4-2",
      "revision": "1a2b3c4d5e6f1a2b3c4d5e6f1a2b3c4d5e6f1a2b",
      "state": "live",
      "created_at": "2026-11-22T10:15:30.999Z",
      "fingerprint": "f2",
      "size_bytes": null,
      "why": null
    }
  ]
}
"#;

    #[test]
    fn the_first_format_is_read_and_written_alike() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("releases.json");
        fs_err::write(&path, SCHEMA_1).expect("written");
        let book = ReleaseBook::load(&path).expect("read");
        assert_eq!(book.entries().len(), 2);
        assert_eq!(book.entries()[0].created_at, WallTime::from_unix_millis(1_795_342_530_250));
        book.save(&path).expect("saved");
        assert_eq!(fs_err::read_to_string(&path).expect("there"), SCHEMA_1);
    }

    #[test]
    fn fields_of_later_releases_and_missing_optional_ones_are_no_damage() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("releases.json");
        let text = SCHEMA_1.replace("\"size_bytes\": 1234,", "\"new\": [1],").replace(",\n      \"why\": null", "");
        fs_err::write(&path, text).expect("written");
        assert_eq!(ReleaseBook::load(&path).expect("read").entries()[0].size_bytes, None);
    }

    #[test]
    fn no_file_is_an_empty_list_and_damage_is_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("releases.json");
        assert_eq!(ReleaseBook::load(&path).expect("empty"), ReleaseBook::default());
        for damaged in ["", "{", "[]", "{\"schema\": 1}", &SCHEMA_1[..200], &SCHEMA_1.replace("retired", "resting")] {
            fs_err::write(&path, damaged).expect("written");
            assert!(matches!(ReleaseBook::load(&path), Err(BookError::Damaged { .. })), "{damaged}");
        }
        fs_err::write(&path, "{\"schema\": 2, \"list\": []}").expect("written");
        assert!(matches!(ReleaseBook::load(&path), Err(BookError::Newer { schema: 2, .. })));
    }

    #[test]
    fn one_release_is_live() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("releases.json");
        fs_err::write(&path, SCHEMA_1).expect("written");
        let mut book = ReleaseBook::load(&path).expect("read");
        let (first, second) = (book.entries()[0].id.clone(), book.entries()[1].id.clone());
        book.set_live(&first);
        assert_eq!((book.entries()[0].state, book.entries()[1].state), (ReleaseState::Live, ReleaseState::Retired));
        book.remove(&second);
        book.set_live(&second);
        assert_eq!(book.get(&first).expect("there").state, ReleaseState::Live, "an unknown name changes nothing");
    }

    #[test]
    fn a_lost_list_is_made_again_from_the_directories() {
        let dir = tempfile::tempdir().expect("a directory");
        let layout = Layout::new(dir.path());
        layout.create(None).expect("made");
        let ids: Vec<ReleaseId> =
            ["20261122T101530Z-1a2b3c4", "20261122T101531Z-1a2b3c4"].iter().map(|id| id.parse().expect("an id")).collect();
        for id in &ids {
            fs_err::create_dir(layout.release(id)).expect("made");
            fs_err::write(layout.release(id).join("REVISION"), "1a2b3c4d5e6f1a2b3c4d5e6f1a2b3c4d5e6f1a2b\n").expect("written");
        }
        fs_err::create_dir(layout.releases().join("20261122T101532Z-1a2b3c4.tmp")).expect("made");
        fs_err::create_dir(layout.releases().join("20261122T101533Z-1a2b3c4")).expect("no REVISION: not whole");
        switch::switch(&layout, &ids[0]).expect("switched");
        let book = ReleaseBook::rebuilt(&layout).expect("rebuilt");
        let states: Vec<_> = book.entries().iter().map(|entry| (entry.id.clone(), entry.state)).collect();
        assert_eq!(states, vec![(ids[0].clone(), ReleaseState::Live), (ids[1].clone(), ReleaseState::Failed)]);
        assert_eq!(book.entries()[0].created_at, WallTime::from_unix_millis(1_795_342_530_000));
    }
}
