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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::deploy::{Entry, Fingerprint};
    use crate::time::WallTime;

    fn id(n: usize) -> ReleaseId {
        // Names that sort against the book's order: the book is what counts.
        format!("{}-x", 900 - n).parse().expect("a release's name")
    }

    /// One letter each: s(taged), b(uilt), L(ive), r(etired), u(nproven and retired), f(ailed), g(oing).
    fn book(states: &str) -> Book {
        let mut book = Book::default();
        for (n, letter) in states.chars().enumerate() {
            let state = match letter {
                's' => ReleaseState::Staged,
                'b' => ReleaseState::Built,
                'L' => ReleaseState::Live,
                'f' => ReleaseState::Failed { why: String::new() },
                _ => ReleaseState::Retired,
            };
            book.push(Entry {
                id: id(n),
                revision: "0".repeat(40).parse().expect("a revision"),
                build: Fingerprint(String::new()),
                state,
                staged_at: WallTime::default(),
                built_at: None,
                live_at: None,
                proven: matches!(letter, 'L' | 'r'),
                leaving: letter == 'g',
            });
        }
        book
    }

    fn pruned(states: &str, keep: u32, keep_failed: u32, used: &[usize], busy: &[usize]) -> String {
        let set = |numbers: &[usize]| numbers.iter().map(|n| id(*n)).collect::<BTreeSet<_>>();
        let gone = prunable(&book(states), &KeepPolicy { keep, keep_failed }, &set(used), &set(busy));
        states.char_indices().map(|(n, letter)| if gone.contains(&id(n)) { '-' } else { letter }).collect()
    }

    #[test]
    fn keeps_the_newest_whole_releases_the_live_one_counted() {
        assert_eq!(pruned("rrrrrrL", 5, 2, &[], &[]), "--rrrrL");
        assert_eq!(pruned("rrL", 5, 2, &[], &[]), "rrL");
        assert_eq!(pruned("rLrrr", 3, 2, &[], &[]), "rL--r", "live and its predecessor first, after a rollback too");
    }

    #[test]
    fn keeps_the_rollback_target_even_where_keep_is_one() {
        assert_eq!(pruned("rruL", 1, 0, &[], &[]), "-r-L");
        assert_eq!(pruned("rruL", 0, 0, &[], &[]), "-r-L");
    }

    #[test]
    fn what_is_used_comes_on_top_of_keep() {
        assert_eq!(pruned("rrrrL", 2, 0, &[0], &[]), "r--rL");
    }

    #[test]
    fn failed_ones_are_counted_apart_and_leftovers_go_unless_they_are_being_made() {
        assert_eq!(pruned("fffsLs", 5, 2, &[], &[5]), "-ff-Ls");
        assert_eq!(pruned("fL", 5, 0, &[0], &[]), "fL");
    }

    #[test]
    fn what_is_going_is_not_asked_for_again_and_keeps_no_place() {
        assert_eq!(pruned("rrgL", 2, 0, &[], &[]), "-rgL");
    }

    proptest! {
        #[test]
        fn never_the_live_the_used_the_busy_or_the_rollback_target_and_enough_whole_ones_stay(
            states in "[sbruf]{0,8}L?[sbruf]{0,4}",
            keep in 0u32..5,
            keep_failed in 0u32..4,
            used in prop::collection::btree_set(0usize..12, 0..3),
            busy in prop::collection::btree_set(0usize..12, 0..3),
        ) {
            let book = book(&states);
            let used: BTreeSet<ReleaseId> = used.into_iter().map(id).collect();
            let busy: BTreeSet<ReleaseId> = busy.into_iter().map(id).collect();
            let gone = prunable(&book, &KeepPolicy { keep, keep_failed }, &used, &busy);
            for pinned in [book.live(), book.previous_good()].into_iter().flatten() {
                prop_assert!(!gone.contains(&pinned.id));
            }
            prop_assert!(gone.iter().all(|id| !used.contains(id) && !busy.contains(id)));
            let whole = book.entries().iter().filter(|entry| entry.is_whole()).count();
            let whole_left = book.entries().iter().filter(|entry| entry.is_whole() && !gone.contains(&entry.id)).count();
            prop_assert!(whole_left >= whole.min(keep.max(1) as usize));
            // No more than was asked for, but for what is pinned.
            let pinned = used.len() + busy.len() + 1;
            prop_assert!(whole_left <= (keep.max(1) as usize).max(2) + pinned);
            let mut again = book.clone();
            for entry in gone.iter().filter_map(|id| book.get(id)) {
                again.push(Entry { leaving: true, ..entry.clone() });
            }
            // Asked a second time, nothing more goes.
            prop_assert_eq!(prunable(&again, &KeepPolicy { keep, keep_failed }, &used, &busy), Vec::<ReleaseId>::new());
        }
    }
}
