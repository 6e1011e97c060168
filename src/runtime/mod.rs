//! The helper that finds out which ruby, node and python a release runs, as the app's user: `selfstart internal-runtime`.
//!
//! One request on standard input, one reply on standard output. What is decided is decided in `selfstart_core::runtime`; here files are
//! read ([`look`]), managers asked in a clean shell and programs tried ([`capture`]).
//!
//! Not for: where the answer is kept (the agent, with the release's mark), and who uses it (`agent::launch`).

mod capture;
mod look;

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use selfstart_core::runtime::files::{FileError, GEMSET_FILE, MISE_FILES, OWN_FILES, TOOL_VERSIONS};
use selfstart_core::runtime::{Captured, Setting};
use serde::{Deserialize, Serialize};

/// The word on the helper's command line.
pub(crate) const VERB: &str = "internal-runtime";

/// The longest request.
const MAX_REQUEST: u64 = 1 << 20;

/// Variables that say where managers are; taken over from `build.env`.
pub(crate) const ROOTS: [&str; 6] = ["RBENV_ROOT", "PYENV_ROOT", "NVM_DIR", "ASDF_DATA_DIR", "MISE_DATA_DIR", "rvm_path"];

/// What the helper is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    /// The release, by its real path.
    pub release: PathBuf,
    /// `build.runtime`.
    pub setting: Setting,
    /// Whose managers are looked for, for messages.
    pub user: String,
    /// Those of [`ROOTS`] that `build.env` sets.
    #[serde(default)]
    pub roots: BTreeMap<String, String>,
}

/// What it answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    /// This is what the release runs.
    Ok(Captured),
    /// The files of the release cannot be understood: another revision may be better.
    Wrong(String),
    /// Something is not installed, or does not work: it is for who cares for the machine.
    Missing(String),
}

/// Why there is no runtime.
#[derive(Debug, thiserror::Error)]
enum RuntimeError {
    /// A file of the release.
    #[error(transparent)]
    File(#[from] FileError),
    /// `mise.toml` is no TOML.
    #[error("`{file}` cannot be read: {why}")]
    Toml {
        /// Which.
        file: String,
        /// Why.
        why: String,
    },
    /// What is asked for is not there.
    #[error(transparent)]
    Missing(#[from] selfstart_core::runtime::choose::Missing),
    /// Something could not be read.
    #[error("failed to read `{}`", .path.display())]
    Read {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program of a manager did not do what it is for.
    #[error("{what}: {why}")]
    Program {
        /// What was tried.
        what: String,
        /// What came of it.
        why: String,
    },
}

/// Whether the release has a file at its top that may ask for a runtime; what cannot be looked at may be one.
pub(crate) fn asks(release: &Path) -> bool {
    let own = OWN_FILES.iter().map(|(file, _)| *file);
    own.chain([TOOL_VERSIONS, GEMSET_FILE]).chain(MISE_FILES).any(|file| {
        let looked = fs_err::symlink_metadata(release.join(file));
        !looked.is_err_and(|error| matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory))
    })
}

/// Runs the helper. Exit code 0 when the answer is [`Reply::Ok`].
#[must_use]
pub(crate) fn main() -> ExitCode {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let reply = match read_request() {
        Err(why) => Reply::Missing(format!("not a request: {why}")),
        Ok(request) => match capture::capture(&request) {
            Ok(captured) => Reply::Ok(captured),
            Err(error @ (RuntimeError::File(_) | RuntimeError::Toml { .. })) => Reply::Wrong(error.to_string()),
            Err(error) => Reply::Missing(crate::agent::chain(&error)),
        },
    };
    let mut line = serde_json::to_vec(&reply).unwrap_or_default();
    line.push(b'\n');
    let said = io::stdout().lock().write_all(&line).is_ok();
    if said && matches!(reply, Reply::Ok(_)) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn read_request() -> Result<Request, String> {
    let mut text = Vec::new();
    io::stdin().lock().take(MAX_REQUEST).read_to_end(&mut text).map_err(|error| error.to_string())?;
    serde_json::from_slice(&text).map_err(|error| error.to_string())
}
