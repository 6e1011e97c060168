//! Which release an operator means by `rollback`.

use crate::deploy::{Book, Entry};
use crate::id::{ReleaseId, Revision};

/// Where to roll back to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RollbackTo {
    /// The previous good release.
    Previous,
    /// `--to`: a release's name, a revision, or the first 4 or more digits of one.
    To(String),
}

/// Why there is nothing to roll back to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RollbackError {
    /// Nothing is live.
    #[error("nothing is live yet, so there is nothing to roll back from\nhint: `selfstart deploy` makes the first release")]
    NothingLive,
    /// No earlier release was ever rolled out to its end, or none is left.
    #[error("no good release before `{live}` is left\nhint: `selfstart releases` lists them; `release.keep` says how many are kept")]
    NoPrevious {
        /// What is live.
        live: ReleaseId,
    },
    /// Neither a release nor a revision of one.
    #[error("no release here is or comes from `{text}`\nhint: `selfstart releases` lists them{}", or_made(text))]
    Unknown {
        /// What was asked for.
        text: String,
    },
    /// The first digits of more than one revision.
    #[error("`{text}` can be any of several revisions: {}\nhint: give more digits", matches.join(", "))]
    Ambiguous {
        /// What was asked for.
        text: String,
        /// The revisions, in the book's order.
        matches: Vec<String>,
    },
    /// It is not whole.
    #[error("release `{release}` is {state} and cannot go live\nhint: `selfstart deploy --ref REVISION --force` builds it anew")]
    NotWhole {
        /// Which.
        release: ReleaseId,
        /// Its state's word, or `being removed`.
        state: &'static str,
    },
}

/// Returns the release that is meant.
///
/// A revision means its newest whole release.
///
/// # Errors
/// If there is none, or not one only, or it is not whole.
pub fn resolve_rollback(book: &Book, to: &RollbackTo) -> Result<ReleaseId, RollbackError> {
    let live = book.live().ok_or(RollbackError::NothingLive);
    let text = match to {
        RollbackTo::Previous => {
            let live = live?;
            let none = || RollbackError::NoPrevious { live: live.id.clone() };
            return book.previous_good().map(|entry| entry.id.clone()).ok_or_else(none);
        }
        RollbackTo::To(text) => text,
    };
    if let Some(entry) = book.entries().iter().find(|entry| entry.id.as_str() == text) {
        return whole(entry);
    }
    let unknown = || RollbackError::Unknown { text: text.clone() };
    // Fewer than 4 digits are rather a slip of the hand; git's own least is 4 (git-config(1), core.abbrev).
    if text.len() < 4 {
        return Err(unknown());
    }
    let digits = text.to_ascii_lowercase();
    let fitting: Vec<&Entry> = book.entries().iter().filter(|entry| entry.revision.as_str().starts_with(&digits)).collect();
    let mut matches: Vec<String> = vec![];
    for entry in &fitting {
        if !matches.iter().any(|known| known == entry.revision.as_str()) {
            matches.push(entry.revision.to_string());
        }
    }
    if matches.len() > 1 {
        return Err(RollbackError::Ambiguous { text: text.clone(), matches });
    }
    match fitting.iter().rev().find(|entry| entry.is_whole()).or(fitting.last()) {
        Some(entry) => whole(entry),
        None => Err(unknown()),
    }
}

/// A source gives out what is not known here by its full id only.
fn or_made(text: &str) -> String {
    if text.parse::<Revision>().is_ok() { format!("; `selfstart deploy --ref {text}` makes one") } else { String::new() }
}

fn whole(entry: &Entry) -> Result<ReleaseId, RollbackError> {
    if entry.is_whole() {
        Ok(entry.id.clone())
    } else {
        let state = if entry.leaving { "being removed" } else { entry.state.word() };
        Err(RollbackError::NotWhole { release: entry.id.clone(), state })
    }
}
