//! The configuration: from the file to policies, in three stages.
//!
//! `raw` (as it is written, with places) → `merged` (typed, over the defaults, all problems at once) → [`settings`] (what the
//! rest of the program sees). [`load`] is the way in. Not here: looking up users, reading secrets, looking at the machine.

pub mod command;
mod doors;
pub mod explain;
mod merged;
pub mod placeholders;
pub mod problem;
mod raw;
mod reader;
mod runtime;
pub mod schema;
pub mod secret;
pub mod settings;

use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use selfstart_core::units::Bytes;

pub(crate) use doors::QUARANTINED;
use explain::Explained;
use problem::Problem;
use secret::Env;
use settings::Settings;

/// What a configuration is read against: nothing else of the machine changes what it means.
pub struct Surroundings<'a> {
    /// The agent's environment, for `${env:NAME}`; [`process_env`] for this process's own.
    pub env: Env<'a>,
    /// For `count: {per_cpu: N}`.
    pub cpus: u32,
    /// For `count: {per_memory: SIZE}`: all of the machine's memory (or of the container's).
    pub memory: Bytes,
    /// For which node it is read.
    pub node: For<'a>,
}

/// For which node a configuration is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum For<'a> {
    /// For none in particular: all that it says.
    Any,
    /// For this one: what its `only:` keeps for others is left out. These roles come on top of the configured ones.
    This(&'a [String]),
}

/// Returns a variable of this process's environment; `None` if it is not set or not UTF-8.
#[must_use]
pub fn process_env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// A configuration that is in order.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What it means.
    pub settings: Settings,
    /// The file's bytes, for `run/config.good.yaml`.
    pub bytes: Vec<u8>,
    /// What works but may not be meant; shown as `warning: ...`.
    pub warnings: Vec<Problem>,
    /// Each value and where it comes from.
    pub explained: Explained,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigErrors {
    /// The file is not there, or may not be read.
    #[error("failed to read the configuration `{}`", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It says something that cannot be; in the order of the file, never empty. `Display` is one problem after the other.
    #[error("{}", Lines(.0))]
    Invalid(Vec<Problem>),
}

impl ConfigErrors {
    /// The problems of the file's content; empty if it could not be read.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        match self {
            Self::Unreadable { .. } => &[],
            Self::Invalid(problems) => problems,
        }
    }
}

struct Lines<'a>(&'a [Problem]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            write!(f, "{}{problem}", if i == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

/// Reads a configuration file.
///
/// # Errors
/// If it cannot be read, or is not in order: then with all problems at once.
pub fn load(path: &Path, around: &Surroundings<'_>) -> Result<Loaded, ConfigErrors> {
    let unreadable = |source| ConfigErrors::Unreadable { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = fs_err::File::open(path).map_err(unreadable)?;
    // One byte more than is allowed shows that there is more.
    file.take(raw::MAX_FILE_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    parse(path, bytes, around)
}

/// Reads a configuration from the bytes of its file; `path` is only named in problems.
///
/// # Errors
/// If it is not in order: all problems at once.
pub fn parse(path: &Path, bytes: Vec<u8>, around: &Surroundings<'_>) -> Result<Loaded, ConfigErrors> {
    let mut form = Vec::new();
    let tree = raw::parse(&bytes, &mut form);
    let mut reader = reader::Reader { path, around, problems: Vec::new(), warnings: Vec::new() };
    for raw::FormProblem { at, key, what, hint } in form {
        let problem = reader.problem(at, &key, what);
        reader.problems.push(Problem { hint: hint.map(str::to_owned), ..problem });
    }
    let mut settings = tree.as_ref().and_then(|tree| reader.settings(tree));
    if let (Some(settings), For::This(roles)) = (&mut settings, around.node) {
        settings.keep_for_node(roles);
    }
    let (mut problems, warnings) = (reader.problems, reader.warnings);
    match (settings, tree) {
        (Some(settings), Some(tree)) if problems.is_empty() => {
            let explained = Explained::new(&settings, &tree);
            Ok(Loaded { settings, bytes, warnings, explained })
        }
        _ => {
            problems.sort_by(|a, b| (a.at, &a.key).cmp(&(b.at, &b.key)));
            // Values that aliases repeat are read, and told, more than once.
            problems.dedup();
            Err(ConfigErrors::Invalid(problems))
        }
    }
}

#[cfg(test)]
mod tests;
