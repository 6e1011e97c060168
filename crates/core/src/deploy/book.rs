//! The list of known releases, in the order in which deploys chose them: the truth about their order, whatever their names say.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::{ReleaseId, Revision};
use crate::time::WallTime;

/// A hash of the build settings that a release was built with: another one makes another release of the same revision.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Fingerprint(pub String);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How far a release has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReleaseState {
    /// Its directory exists and is not whole.
    Staged,
    /// Whole, built, on disk for good; not yet live.
    Built,
    /// What `current` points to.
    Live,
    /// Whole; was live.
    Retired,
    /// Its build or its roll out failed, for this reason.
    Failed {
        /// The verdict.
        why: String,
    },
}

impl ReleaseState {
    /// Returns the word that status, `releases` and the glossary use.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Staged => "staged",
            Self::Built => "built",
            Self::Live => "live",
            Self::Retired => "retired",
            Self::Failed { .. } => "failed",
        }
    }
}

/// One release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its directory's name.
    pub id: ReleaseId,
    /// What it was made from.
    pub revision: Revision,
    /// The build settings it was made with.
    pub build: Fingerprint,
    /// How far it has come.
    pub state: ReleaseState,
    /// When it was begun.
    pub staged_at: WallTime,
    /// When it was whole; `None`: never.
    #[serde(default)]
    pub built_at: Option<WallTime>,
    /// When it last became live; `None`: never.
    #[serde(default)]
    pub live_at: Option<WallTime>,
    /// Whether a roll out of it has come to its end: only such a one is "the previous good release".
    #[serde(default)]
    pub proven: bool,
    /// Whether its removal was asked for and not yet answered: such a one is not used again.
    #[serde(default)]
    pub leaving: bool,
}

impl Entry {
    /// Whether it is whole and stays: `current` may point to it.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        !self.leaving && matches!(self.state, ReleaseState::Built | ReleaseState::Live | ReleaseState::Retired)
    }
}

/// All known releases, the oldest choice first.
///
/// A deploy that chooses an older release again moves it to the end; a rollback moves nothing. So "previous" is what was
/// deployed before, and a second rollback goes one further back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Book(Vec<Entry>);

impl Book {
    /// Returns the releases, the oldest choice first.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.0
    }

    /// Returns the release of that name.
    #[must_use]
    pub fn get(&self, id: &ReleaseId) -> Option<&Entry> {
        self.0.iter().find(|entry| entry.id == *id)
    }

    /// Returns what `current` points to.
    #[must_use]
    pub fn live(&self) -> Option<&Entry> {
        self.0.iter().find(|entry| entry.state == ReleaseState::Live)
    }

    /// Returns the rollback target: the newest release before the live one that was rolled out to its end.
    #[must_use]
    pub fn previous_good(&self) -> Option<&Entry> {
        let live = self.0.iter().position(|entry| entry.state == ReleaseState::Live)?;
        self.0[..live].iter().rev().find(|entry| entry.is_whole() && entry.proven)
    }

    /// Returns what to start when `current` points to nothing usable: the newest good release, else the newest whole one.
    #[must_use]
    pub fn last_good(&self) -> Option<&Entry> {
        self.live().or_else(|| self.0.iter().rfind(|e| e.is_whole() && e.proven)).or_else(|| self.0.iter().rfind(|e| e.is_whole()))
    }

    /// Returns the newest whole release of that revision and those build settings.
    #[must_use]
    pub fn whole(&self, revision: &Revision, build: &Fingerprint) -> Option<&Entry> {
        let fits = |entry: &&Entry| entry.is_whole() && entry.revision == *revision && entry.build == *build;
        self.live().filter(fits).or_else(|| self.0.iter().rev().find(fits))
    }

    /// Adds a release at the end; one of that name is replaced.
    pub fn push(&mut self, entry: Entry) {
        self.0.retain(|known| known.id != entry.id);
        self.0.push(entry);
    }

    /// Adds a release at the beginning, as the oldest; nothing if one of that name is known.
    pub(super) fn push_oldest(&mut self, entry: Entry) {
        if self.get(&entry.id).is_none() {
            self.0.insert(0, entry);
        }
    }

    pub(super) fn get_mut(&mut self, id: &ReleaseId) -> Option<&mut Entry> {
        self.0.iter_mut().find(|entry| entry.id == *id)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.0.iter_mut()
    }

    pub(super) fn retain(&mut self, keep: impl FnMut(&Entry) -> bool) {
        self.0.retain(keep);
    }

    /// Makes that release the live one and retires the former.
    pub(super) fn set_live(&mut self, id: &ReleaseId, at: WallTime) {
        for entry in &mut self.0 {
            if entry.id == *id {
                entry.state = ReleaseState::Live;
                entry.live_at = Some(at);
                entry.leaving = false;
            } else if entry.state == ReleaseState::Live {
                entry.state = ReleaseState::Retired;
            }
        }
    }

    /// Makes that release the newest choice.
    pub(super) fn move_to_end(&mut self, id: &ReleaseId) {
        if let Some(at) = self.0.iter().position(|entry| entry.id == *id) {
            let entry = self.0.remove(at);
            self.0.push(entry);
        }
    }
}
