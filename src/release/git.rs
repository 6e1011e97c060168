//! The git helper, `selfstart internal-git`: one JSON [`Request`] on its standard input, one JSON [`Reply`] a line on its standard
//! output, the last of them [`Reply::Ok`] or [`Reply::Error`].
//!
//! It is a process of its own because it runs as the configured user, because libgit2 is C code fed by the network whose heap
//! never shrinks, and because a thread in it cannot be cancelled: the helper can be killed at any moment, and the next one
//! heals what it left. It never retries and decides nothing about the deploy.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use selfstart_core::id::{ReleaseId, Revision};
use selfstart_core::time::Human;
use serde::{Deserialize, Serialize};

use super::layout::Layout;
use super::{mirror, prune, stage};
use crate::sys::{clock, process};

/// What the helper is asked to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// Bring the mirror up to date; answered by [`Done::Fetched`].
    Fetch(Fetch),
    /// Ask the source whether it has what is wanted, and fetch nothing; answered by [`Done::Seen`].
    Look(Fetch),
    /// Write the tree of a commit into a new directory and link the shared paths; answered by [`Done::Staged`].
    Stage(Stage),
    /// Look which processes use which release, with the eyes of the configured user; answered by [`Done::Uses`].
    Uses(UsesRequest),
    /// Give a staged release its name; answered by [`Done::Tidied`].
    Name {
        /// `<root>`.
        root: PathBuf,
        /// Which.
        release: ReleaseId,
    },
    /// Remove what a kill has left among the releases; answered by [`Done::Tidied`].
    Tidy {
        /// `<root>`.
        root: PathBuf,
    },
}

impl Request {
    /// Whether it may hold a key, a token or a password.
    fn holds_secrets(&self) -> bool {
        match self {
            Self::Fetch(fetch) | Self::Look(fetch) => {
                let in_urls = fetch.url.0.contains('@') || fetch.proxies.values().any(|proxy| proxy.0.contains('@'));
                in_urls || !matches!(fetch.credentials, Credentials::None | Credentials::Ssh { key: None, .. })
            }
            Self::Stage(_) | Self::Uses(_) | Self::Name { .. } | Self::Tidy { .. } => false,
        }
    }
}

/// Bring the mirror up to date.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fetch {
    /// The bare repository; healed or made anew as needed. Its directory, or the one above it, must be writable.
    pub mirror: PathBuf,
    /// `source.repository`; may hold a user and password.
    pub url: Secret,
    /// What of it.
    pub wanted: Wanted,
    /// Commits that [`Wanted::Any`] may mean by their first digits, besides those in the mirror.
    #[serde(default)]
    pub known: Vec<Revision>,
    /// How many commits; 0: the whole history. Not obeyed for a path or `file://` (libgit2 cannot): the whole history then.
    pub depth: u32,
    /// A PEM file of more certificate authorities to trust.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// How the source knows us.
    #[serde(default)]
    pub credentials: Credentials,
    /// The text of `source.verify.allowed_signers`: what is not signed by one of them ends with [`ErrorKind::Unsigned`].
    #[serde(default)]
    pub allowed_signers: Option<String>,
    /// `source.submodules`.
    #[serde(default)]
    pub submodules: bool,
    /// The proxies, by the names that curl has for them: a proxy's password is as secret as another, and an environment is read by all of
    /// the same user.
    #[serde(default)]
    pub proxies: BTreeMap<String, Secret>,
    /// Of how many repositories it is a submodule.
    #[serde(default)]
    pub level: u32,
    /// The longest that it may take, in milliseconds; then it ends with [`ErrorKind::Timeout`].
    pub timeout_millis: u64,
}

/// What is deployed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Wanted {
    /// The head of a branch.
    Branch(String),
    /// A tag, peeled to its commit.
    Tag(String),
    /// A full commit id.
    Revision(Revision),
    /// What an operator says: a branch, else a tag, else the first digits of a commit that is known here.
    Any(String),
}

/// How the source knows us.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Credentials {
    /// What the URL says, if anything.
    #[default]
    None,
    /// Basic authentication as `x-access-token`.
    Token(Secret),
    /// Basic authentication.
    Password {
        /// Who.
        username: Secret,
        /// The password.
        password: Secret,
    },
    /// For `ssh://` and `user@host:path`. Neither key nor agent: the keys in the user's `~/.ssh`.
    Ssh {
        /// The private key.
        #[serde(default)]
        key: Option<SshKey>,
        /// The socket of an agent that has the key.
        #[serde(default)]
        agent: Option<PathBuf>,
        /// The pinned host keys; `None`: the user's and the system's.
        #[serde(default)]
        known_hosts: Option<PathBuf>,
    },
}

/// A private key, as the agent read it: the helper's user may not read its file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SshKey {
    /// Where it came from, for messages.
    pub path: PathBuf,
    /// What the file holds.
    pub text: Secret,
}

/// Text that is never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// Write the tree of a commit into a new directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stage {
    /// The bare repository that a fetch made.
    pub mirror: PathBuf,
    /// Which commit of it.
    pub revision: Revision,
    /// The new directory, `releases/NAME.tmp`; what is there already is removed first. The caller renames it when all is done.
    pub destination: PathBuf,
    /// `<root>/shared`; links to it are relative to where [`Self::destination`] stands.
    pub shared: PathBuf,
    /// `release.linked_dirs`.
    #[serde(default)]
    pub linked_dirs: Vec<PathBuf>,
    /// `release.linked_files`.
    #[serde(default)]
    pub linked_files: Vec<PathBuf>,
    /// As in [`Fetch::allowed_signers`]: looked at once more, for what is written is what must be signed.
    #[serde(default)]
    pub allowed_signers: Option<String>,
    /// `source.submodules`.
    #[serde(default)]
    pub submodules: bool,
    /// The longest that it may take, in milliseconds.
    pub timeout_millis: u64,
}

/// Look which processes use which release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UsesRequest {
    /// `<root>/releases`.
    pub releases: PathBuf,
}

/// One line of the helper's output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    /// It goes on; at most about five a second.
    Progress(Progress),
    /// The last line: it is done.
    Ok(Done),
    /// The last line: it failed.
    Error(Failure),
}

/// How the helper ended.
pub(crate) type Outcome = Result<Done, Failure>;

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Objects received, or files written.
    pub objects: u64,
    /// Of so many; 0: not known yet.
    pub total_objects: u64,
    /// Bytes received or written.
    pub bytes: u64,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Done {
    /// Of [`Request::Fetch`].
    Fetched(Fetched),
    /// Of [`Request::Look`]: it has, and this is its head; of a revision that is the head of nothing there: it may have.
    Seen(Option<Revision>),
    /// Of [`Request::Stage`].
    Staged(Staged),
    /// Of [`Request::Uses`].
    Uses(prune::Uses),
    /// What was done, for people.
    Tidied(Vec<String>),
}

/// The mirror has the wanted commit and all of its tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fetched {
    /// The wanted commit.
    pub revision: Revision,
    /// What was wrong with the mirror and was put right: one verdict each, for people.
    pub healed: Vec<String>,
    /// Bytes received; 0 when there was nothing new.
    pub bytes: u64,
    /// Objects received.
    pub objects: u64,
}

/// The directory is complete, but not synced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Staged {
    /// Files and links written.
    pub files: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Lines for the build log: what was linked, copied to shared, replaced, or looks wrong.
    pub log: Vec<String>,
}

/// Why it failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Failure {
    /// What kind of trouble it is.
    pub kind: ErrorKind,
    /// What failed and why, for people; never holds a secret.
    pub text: String,
    /// What to do next.
    #[serde(default)]
    pub hint: Option<String>,
}

/// What kind of trouble it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ErrorKind {
    /// The network or the server's side of it: retry.
    Unreachable,
    /// The source does not let us in.
    Refused,
    /// The source's ssh host key is not known or has changed.
    HostKey,
    /// No such repository, branch, tag or revision.
    NotFound,
    /// No trust in the source's certificate, which a wrong clock can cause too: retry as network trouble.
    Tls,
    /// The mirror or what was received is damaged; the next fetch makes the mirror anew.
    Corrupt,
    /// No room, or no right to write.
    DiskFull,
    /// Not done in time: retry.
    Timeout,
    /// The configuration asks for what cannot be done.
    Unsupported,
    /// The tree cannot be made into a release: hostile paths, links out of it, submodules. The only kind that is the revision's own fault.
    BadTree,
    /// Not signed by who may: what is live stays. Not the revision's fault for ever, for who may sign can change.
    Unsigned,
    /// Anything else: a defect.
    Internal,
}

impl ErrorKind {
    /// Whether the revision itself is to blame, so that trying it again is of no use.
    #[must_use]
    pub(crate) const fn is_fault_of_revision(self) -> bool {
        matches!(self, Self::BadTree)
    }
}

impl Failure {
    /// Makes a failure without a hint.
    #[must_use]
    pub(crate) fn new(kind: ErrorKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into(), hint: None }
    }

    /// Adds what to do next.
    #[must_use]
    pub(crate) fn hint(mut self, hint: &str) -> Self {
        self.hint = Some(hint.to_owned());
        self
    }

    /// Makes a failure of an input or output that went wrong here, in this machine's files.
    pub(super) fn io(what: impl fmt::Display, error: &io::Error) -> Self {
        use io::ErrorKind as Io;
        let kind = match error.kind() {
            Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge | Io::ReadOnlyFilesystem | Io::PermissionDenied => ErrorKind::DiskFull,
            _ => ErrorKind::Internal,
        };
        let failure = Self::new(kind, format!("{what}: {error}"));
        match error.kind() {
            Io::PermissionDenied => failure.hint("the directory must belong to the app's user"),
            _ => failure,
        }
    }
}

/// The time between two lines of progress: about five a second.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);
/// The longest request: a URL, some paths, secrets and who may sign; more is a mistake of the caller.
const MAX_REQUEST: u64 = 2 * 1024 * 1024;

/// The helper's output. The last line is written once, by whoever comes first: the work or the watchdog.
pub(super) struct Out {
    inner: Mutex<OutInner>,
}

struct OutInner {
    to: Box<dyn Write + Send>,
    last_progress: Option<Instant>,
    ended: bool,
    safe: Option<Done>,
}

impl Out {
    /// Makes an output that writes to `to`.
    pub(super) fn new(to: Box<dyn Write + Send>) -> Self {
        Self { inner: Mutex::new(OutInner { to, last_progress: None, ended: false, safe: None }) }
    }

    /// Tells how far it is, unless it was told a moment ago.
    pub(super) fn progress(&self, progress: Progress) {
        let mut inner = self.lock();
        if inner.ended || inner.last_progress.is_some_and(|last| last.elapsed() < PROGRESS_EVERY) {
            return;
        }
        inner.last_progress = Some(clock::instant());
        if inner.say(&Reply::Progress(progress)).is_err() {
            // Nobody listens: the agent and the keeper are gone, and what is half done heals.
            std::process::exit(1);
        }
    }

    /// Says that the request is fulfilled and what follows is only tidying: if time runs out now, this is the answer.
    pub(super) fn is_safe(&self, done: Done) {
        self.lock().safe = Some(done);
    }

    /// Writes the last line, if none is written yet; returns whether it tells of success.
    fn end(&self, outcome: Outcome) -> bool {
        let mut inner = self.lock();
        if inner.ended {
            return false;
        }
        inner.ended = true;
        let outcome = match (outcome, inner.safe.take()) {
            (Err(failure), Some(safe)) if failure.kind == ErrorKind::Timeout => Ok(safe),
            (outcome, _) => outcome,
        };
        let good = outcome.is_ok();
        let said = inner.say(&outcome.map_or_else(Reply::Error, Reply::Ok));
        good && said.is_ok()
    }

    fn lock(&self) -> MutexGuard<'_, OutInner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OutInner {
    fn say(&mut self, reply: &Reply) -> io::Result<()> {
        let mut line = serde_json::to_vec(reply)?;
        line.push(b'\n');
        self.to.write_all(&line)?;
        self.to.flush()
    }
}

/// Runs the helper: one request in, replies out. Exit code 0 when the last reply is [`Reply::Ok`].
#[must_use]
pub(crate) fn main() -> ExitCode {
    // Modes of what is written are as in the tree, whoever starts us.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let out = Arc::new(Out::new(Box::new(io::stdout())));
    let outcome = read_request().and_then(|request| {
        let (millis, hint) = match &request {
            Request::Look(look) => (look.timeout_millis, "is the network there?"),
            Request::Fetch(fetch) => (fetch.timeout_millis, "a first fetch of a large repository may need a longer `source.timeout`"),
            Request::Stage(stage) => (stage.timeout_millis, "is the disk very slow?"),
            // One pass over /proc: only a hung kernel takes longer.
            Request::Uses(_) => (60_000, "is this machine stuck?"),
            Request::Name { .. } | Request::Tidy { .. } => (300_000, "is the disk very slow?"),
        };
        watch(Arc::clone(&out), Duration::from_millis(millis), hint);
        let tidied = |result: Result<Vec<String>, String>| result.map(Done::Tidied).map_err(|text| Failure::new(ErrorKind::Internal, text));
        match request {
            Request::Name { root, release } => {
                let named = prune::name_staged(&Layout::new(root), &release);
                tidied(named.map(|()| Vec::new()).map_err(|error| error.to_string()))
            }
            Request::Tidy { root } => tidied(prune::clean_leftovers(&Layout::new(root)).map_err(|error| crate::agent::chain(&error))),
            Request::Fetch(fetch) => mirror::fetch(&fetch, &out).map(Done::Fetched),
            Request::Look(look) => mirror::look(&look, &out).map(Done::Seen),
            Request::Stage(stage) => stage::stage(&stage, &out).map(Done::Staged),
            Request::Uses(uses) => {
                prune::uses(&uses.releases).map(Done::Uses).map_err(|error| Failure::new(ErrorKind::Internal, error.to_string()))
            }
        }
    });
    if out.end(outcome) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn read_request() -> Result<Request, Failure> {
    let wrong = |why: String| Failure::new(ErrorKind::Internal, format!("not a request: {why}"));
    // Before anything secret is read: workers and builds of this user are somebody else's code.
    process::keep_secrets().map_err(|error| Failure::new(ErrorKind::Internal, format!("failed to hide the helper's memory: {error}")))?;
    let mut text = Vec::new();
    io::stdin().lock().take(MAX_REQUEST).read_to_end(&mut text).map_err(|error| wrong(error.to_string()))?;
    // Only where it is wrong: what is wrong may be a secret.
    let request: Request =
        serde_json::from_slice(&text).map_err(|error| wrong(format!("line {}, column {}", error.line(), error.column())))?;
    if !request.holds_secrets() {
        // Else an agent that is not root could not see whether this one is in a release's way. Refused, it is only that.
        let _ = process::keep_no_secrets();
    }
    Ok(request)
}

/// Ends the helper when its time is over, in whatever C code or system call it is.
fn watch(out: Arc<Out>, timeout: Duration, hint: &'static str) {
    std::thread::spawn(move || {
        std::thread::sleep(timeout);
        let text = format!("not done within {}", Human(timeout));
        let good = out.end(Err(Failure::new(ErrorKind::Timeout, text).hint(hint)));
        super::transport::abandon();
        std::process::exit(i32::from(!good));
    });
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_may_hold_a_secret_is_known() {
        let fetch = |url: &str, credentials: serde_json::Value| {
            let request = json!({"fetch": {
                "mirror": "/m", "url": url, "wanted": {"branch": "main"}, "depth": 1, "timeout_millis": 1, "credentials": credentials,
            }});
            serde_json::from_value::<Request>(request).expect("a request").holds_secrets()
        };
        assert!(!fetch("/srv/r", json!("none")));
        assert!(!fetch("ssh://h/r", json!({"ssh": {"agent": "/s"}})));
        assert!(fetch("ssh://h/r", json!({"ssh": {"key": {"path": "/k", "text": "x"}}})));
        assert!(fetch("https://h/r", json!({"token": "x"})));
        assert!(fetch("https://h/r", json!({"password": {"username": "u", "password": "p"}})));
        assert!(fetch("https://u:p@h/r", json!("none")));
        let mut proxied = json!({"fetch": {
            "mirror": "/m", "url": "https://h/r", "wanted": {"branch": "main"}, "depth": 1, "timeout_millis": 1,
            "proxies": {"HTTPS_PROXY": "http://u:p@proxy:3128"},
        }});
        let holds = |request: &serde_json::Value| serde_json::from_value::<Request>(request.clone()).expect("a request").holds_secrets();
        assert!(holds(&proxied));
        proxied["fetch"]["proxies"]["HTTPS_PROXY"] = json!("http://proxy:3128");
        assert!(!holds(&proxied));
        let debug = format!("{:?}", SshKey { path: "/k".into(), text: Secret("hunter2".into()) });
        assert!(!debug.contains("hunter2"), "{debug}");
    }
}
