//! Which releases may be removed.
//!
//! Not for: finding out who uses one, and removing it (the shell does both, and asks again at the last moment).

use std::collections::BTreeSet;

use crate::deploy::{Book, ReleaseState};
use crate::id::ReleaseId;

/// How many releases stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepPolicy {
    /// `release.keep`: whole ones, the live one counted; 0 counts as 1.
    pub keep: u32,
    /// `release.keep_failed`: failed ones, for inspection.
    pub keep_failed: u32,
}

impl Default for KeepPolicy {
    fn default() -> Self {
        Self { keep: 5, keep_failed: 2 }
    }
}

/// Returns the releases that may go, the oldest choice first.
///
/// Kept are: the live one; the previous good one (what `rollback` goes to); of the other whole ones the newest, until `keep` is
/// full; the newest `keep_failed` failed ones; on top of that whatever is `used` (a live process has something in it) and
/// whatever is `busy` (being made, or moved to or from). Order is the book's, never that of the names. A directory that is
/// neither whole nor failed nor busy is a leftover and goes. What is being removed already is not named again.
#[must_use]
pub fn prunable(book: &Book, policy: &KeepPolicy, used: &BTreeSet<ReleaseId>, busy: &BTreeSet<ReleaseId>) -> Vec<ReleaseId> {
    let mut kept: BTreeSet<&ReleaseId> = used.iter().chain(busy).collect();
    let pinned = [book.live(), book.previous_good()];
    kept.extend(pinned.iter().flatten().map(|entry| &entry.id));
    let mut room = (policy.keep.max(1) as usize).saturating_sub(pinned.iter().flatten().count());
    let mut failed_room = policy.keep_failed as usize;
    for entry in book.entries().iter().rev().filter(|entry| !entry.leaving) {
        if pinned.iter().flatten().any(|pinned| pinned.id == entry.id) {
            continue;
        }
        let room = match entry.state {
            ReleaseState::Built | ReleaseState::Live | ReleaseState::Retired => &mut room,
            ReleaseState::Failed { .. } => &mut failed_room,
            ReleaseState::Staged => continue,
        };
        if *room > 0 {
            *room -= 1;
            kept.insert(&entry.id);
        }
    }
    book.entries().iter().filter(|entry| !entry.leaving).map(|entry| &entry.id).filter(|id| !kept.contains(id)).cloned().collect()
}
