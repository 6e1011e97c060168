//! What is wrong with a configuration, for a person who will put it right: where, what, found, allowed, and a hint.

use std::fmt;
use std::path::{Path, PathBuf};

/// A place in the configuration file; both count from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark {
    pub line: u32,
    pub column: u32,
}

impl Mark {
    /// The beginning of the file.
    pub const START: Self = Self { line: 1, column: 1 };
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// One thing that is wrong: `PATH:LINE:COLUMN: KEY.PATH: what, found X; allowed: ...`, and `hint: ...` on its own line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub path: PathBuf,
    /// Where in it.
    pub at: Mark,
    /// The key; empty: the file as a whole.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What stands there; never of a key that may hold a secret.
    pub found: Option<String>,
    /// What might stand there.
    pub allowed: Option<String>,
    /// The next step.
    pub hint: Option<String>,
}

impl Problem {
    /// Returns a problem that says only what and where; the other parts are added by the methods below.
    pub(super) fn new(path: &Path, at: Mark, key: &str, what: impl Into<String>) -> Self {
        Self { path: path.to_owned(), at, key: key.to_owned(), what: what.into(), found: None, allowed: None, hint: None }
    }

    pub(super) fn found(mut self, found: &str) -> Self {
        self.found = Some(quoted(found));
        self
    }

    pub(super) fn allowed(mut self, allowed: impl Into<String>) -> Self {
        self.allowed = Some(allowed.into());
        self
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.path.display(), self.at)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.what)?;
        if let Some(found) = &self.found {
            write!(f, ", found {found}")?;
        }
        if let Some(allowed) = &self.allowed {
            write!(f, "; allowed: {allowed}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

/// The most of a value that a message shows.
const SHOWN_CHARS: usize = 60;

/// Returns a value between backticks, on one line and not longer than a message can bear.
pub(super) fn quoted(value: &str) -> String {
    let mut shown: String =
        value.chars().take(SHOWN_CHARS).flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect();
    if value.chars().nth(SHOWN_CHARS).is_some() {
        shown.push_str("...");
    }
    format!("`{shown}`")
}

/// Returns the name nearest to `name`, if one is near enough to be what was meant.
pub(super) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // One mistake in three letters: `comand`, `keep_faild`, `linkeddirs`; further away the guess is worse than none.
    let limit = (name.chars().count() / 3).max(1);
    let name = name.to_lowercase().replace('-', "_");
    let far = |other: &str| strsim::osa_distance(&name, other);
    known.into_iter().map(|other| (far(other), other)).filter(|(far, _)| *far <= limit).min().map(|(_, other)| other)
}
