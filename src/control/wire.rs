//! The messages of the control socket, version 1.
//!
//! A connection carries one request, one line of JSON, and its answers, one line each: any number of `progress`, then exactly one of
//! `done`, `refused` and `failed`. Fields may be added, never renamed; a request with a field that the agent does not know is refused,
//! an answer with a field that the client does not know is read without it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use selfstart_core::command::Command;
use selfstart_core::id::{PoolName, ReleaseId, Revision};
use selfstart_core::status::{DeployStatus, ReleaseStatus, Status};
use serde::{Deserialize, Serialize};

/// The version of this language.
pub(crate) const VERSION: u32 = 1;

/// The longest line that the agent reads. The longest sensible command names every slot of a node: far less.
pub(crate) const REQUEST_MAX: usize = 1 << 20;

/// The longest line that a client reads. A status needs about 700 bytes per slot: room for 90,000 slots.
pub(crate) const ANSWER_MAX: usize = 64 << 20;

/// What a client sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Request {
    /// [`VERSION`].
    pub(crate) version: u32,
    /// What is asked.
    pub(crate) command: Command,
    /// Answer when it took effect; `false`: as soon as it is accepted.
    #[serde(default = "yes")]
    pub(crate) wait: bool,
}

fn yes() -> bool {
    true
}

impl Request {
    /// Asks for `command`, to be answered when it took effect.
    pub(crate) fn new(command: Command) -> Self {
        Self { version: VERSION, command, wait: true }
    }

    /// Reads one line, with or without its end.
    ///
    /// # Errors
    /// If it is not a request of this version.
    pub(crate) fn parse(line: &[u8]) -> Result<Self, RequestError> {
        /// What every version of a request has.
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let Versioned { version } = serde_json::from_slice(line).map_err(RequestError::Malformed)?;
        if version != VERSION {
            return Err(RequestError::Version(version));
        }
        serde_json::from_slice(line).map_err(RequestError::Malformed)
    }

    /// Returns the line, with its end.
    pub(crate) fn to_line(&self) -> Vec<u8> {
        to_line(self)
    }
}

/// Why a line is not a request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// Not JSON, or not a request.
    #[error("this is not a request")]
    Malformed(#[source] serde_json::Error),
    /// Another version.
    #[error("the client speaks version {0} of the control protocol, the agent version {VERSION}")]
    Version(u32),
    /// More than [`REQUEST_MAX`] bytes without an end.
    #[error("the request is longer than {REQUEST_MAX} bytes")]
    TooLong,
    /// The client closed its side before the end of the line.
    #[error("the request ends in the middle of its line")]
    CutShort,
}

impl From<RequestError> for Refused {
    fn from(error: RequestError) -> Self {
        let (code, hint) = match &error {
            RequestError::Version(_) => {
                (RefusalCode::Version, Some("use the `selfstart` that the agent runs: `/proc/PID/exe` of its keeper".to_owned()))
            }
            _ => (RefusalCode::BadRequest, None),
        };
        let reason = match std::error::Error::source(&error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        };
        Self { code, reason, hint }
    }
}

/// What the agent sends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// It goes on; more answers follow.
    Progress(Progress),
    /// It took effect (or, with `wait: false`, is accepted). The last answer.
    Done(Box<Done>),
    /// It was not begun. The last answer.
    Refused(Refused),
    /// It was begun, and did not succeed. The last answer.
    Failed(Failed),
}

impl Answer {
    /// Reads one line, with or without its end.
    ///
    /// # Errors
    /// If it is not an answer.
    pub(crate) fn parse(line: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(line)
    }

    /// Returns the line, with its end.
    pub(crate) fn to_line(&self) -> Vec<u8> {
        to_line(self)
    }
}

/// How a request ended: the last answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// It took effect.
    Done(Box<Done>),
    /// It was not begun.
    Refused(Refused),
    /// It was begun, and did not succeed.
    Failed(Failed),
}

impl From<Outcome> for Answer {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Done(done) => Self::Done(done),
            Outcome::Refused(refused) => Self::Refused(refused),
            Outcome::Failed(failed) => Self::Failed(failed),
        }
    }
}

/// How far it is. With nothing in it: only "still at it".
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Something that a person waits to hear: `checkins/3 is ready (4 of 10)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) text: Option<String>,
    /// The deploy as it is now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) deploy: Option<Box<DeployStatus>>,
}

impl Progress {
    /// Says something.
    #[cfg(test)]
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self { text: Some(text.into()), deploy: None }
    }

    /// Shows the deploy.
    pub(crate) fn deploy(deploy: DeployStatus) -> Self {
        Self { text: None, deploy: Some(Box::new(deploy)) }
    }
}

/// It took effect.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Done {
    /// A sentence for people; empty where the facts are the answer.
    #[serde(default)]
    pub(crate) text: String,
    /// It was so already: nothing was done.
    #[serde(default)]
    pub(crate) already: bool,
    /// What was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) facts: Option<Facts>,
}

impl Done {
    /// It took effect, in one sentence.
    pub(crate) fn text(text: impl Into<String>) -> Outcome {
        Outcome::Done(Box::new(Self { text: text.into(), ..Self::default() }))
    }

    /// It was so already.
    pub(crate) fn already(text: impl Into<String>) -> Outcome {
        Outcome::Done(Box::new(Self { text: text.into(), already: true, facts: None }))
    }

    /// The facts are the answer.
    pub(crate) fn facts(facts: Facts) -> Outcome {
        Outcome::Done(Box::new(Self { facts: Some(facts), ..Self::default() }))
    }
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Facts {
    /// To `status`.
    Status(Box<Status>),
    /// To `releases`: newest first.
    Releases(Vec<ReleaseStatus>),
    /// To `reload`: what changed, or with `plan` would.
    Changes(Vec<Change>),
    /// To `deploy` and `rollback`: what is live now.
    Live(Live),
    /// To `launch`.
    Launch(Launch),
}

/// What a reload changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Change {
    /// What of the configuration: `pools.checkins`.
    pub(crate) key: String,
    /// What that leads to: `its workers are replaced, in the order of `update``.
    pub(crate) effect: String,
    /// The pools whose workers are replaced for it.
    #[serde(default)]
    pub(crate) restarts: Vec<PoolName>,
    /// The values that differ; none of a pool that is gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) values: Vec<ValueChange>,
}

impl Change {
    /// Names it and what of it differs, in a few words: `pools.checkins (count, stop)`.
    pub(crate) fn named(&self) -> String {
        let part = format!("{}.", self.key);
        let keys: Vec<&str> = self.values.iter().map(|value| value.key.strip_prefix(&part).unwrap_or(&value.key)).collect();
        if keys.is_empty() { self.key.clone() } else { format!("{} ({})", self.key, keys.join(", ")) }
    }
}

/// A value that differs. No secret is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ValueChange {
    /// The whole key: `pools.checkins.count`.
    pub(crate) key: String,
    /// What it was; durations in seconds, sizes in bytes, null where it is left out.
    #[serde(default)]
    pub(crate) old: serde_json::Value,
    /// What it is then.
    #[serde(default)]
    pub(crate) new: serde_json::Value,
    /// For people: `10 → 12`.
    pub(crate) text: String,
}

/// What is live.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Live {
    /// What `current` points to.
    pub(crate) release: ReleaseId,
    /// What it was made of.
    pub(crate) revision: Revision,
    /// How long the deploy took.
    #[serde(default)]
    pub(crate) seconds: Option<u64>,
    /// Which workers are not ready on it, though that was no reason to go back; `None`: all that are wanted are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) warning: Option<String>,
}

/// With what a worker would be started now. Holds its secrets: given to who may become its user anyway, never logged or stored.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Launch {
    /// Of what pool.
    pub(crate) pool: PoolName,
    /// What the worker executes.
    pub(crate) argv: Vec<String>,
    /// Its whole environment.
    pub(crate) env: BTreeMap<String, String>,
    /// Its directory.
    pub(crate) cwd: PathBuf,
    /// Its user.
    pub(crate) uid: u32,
    /// Its group.
    pub(crate) gid: u32,
    /// Its supplementary groups.
    #[serde(default)]
    pub(crate) groups: Vec<u32>,
    /// RLIMIT_NOFILE.
    #[serde(default)]
    pub(crate) nofile: Option<u64>,
    /// -20 to 19.
    #[serde(default)]
    pub(crate) nice: Option<i8>,
    /// The file mode creation mask.
    #[serde(default)]
    pub(crate) umask: Option<u32>,
}

impl std::fmt::Debug for Launch {
    /// Names the variables, without their values.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Launch").field("pool", &self.pool).field("argv", &self.argv).field("env", &self.env.keys()).finish_non_exhaustive()
    }
}

/// It was not begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refused {
    /// Why, for programs.
    pub(crate) code: RefusalCode,
    /// Why, for people.
    pub(crate) reason: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) hint: Option<String>,
}

/// Why a command was not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RefusalCode {
    /// Updates are held.
    Held,
    /// The revision failed here and was not forced.
    Quarantined,
    /// Something else is going on; or too many clients.
    Busy,
    /// The node is draining or drained.
    Draining,
    /// There is nothing that it could be done to: no former release, no worker in the slot.
    Nothing,
    /// No pool, group, slot or release of this name.
    UnknownTarget,
    /// The configuration is broken; the running one stays.
    Configuration,
    /// This peer may not speak here.
    Forbidden,
    /// The line is not a request.
    BadRequest,
    /// The line is of another version.
    Version,
    /// A reason that this version does not know.
    #[serde(other)]
    Other,
}

/// It was begun, and did not succeed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failed {
    /// What failed.
    pub(crate) reason: String,
    /// Why, from the outermost cause to the innermost.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) causes: Vec<String>,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) hint: Option<String>,
}

impl Failed {
    /// Something failed, and that is all there is to say.
    pub(crate) fn because(reason: impl Into<String>) -> Outcome {
        Outcome::Failed(Self { reason: reason.into(), ..Self::default() })
    }
}

fn to_line<T: Serialize>(message: &T) -> Vec<u8> {
    // Fails only for maps whose keys are no strings and for hand-written serializers that fail: the messages have neither.
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every message ever released, one a line: each must be read for ever, and written as it is now.
    const REQUESTS: &str = include_str!("../../tests/fixtures/control/requests-1.jsonl");
    const ANSWERS: &str = include_str!("../../tests/fixtures/control/answers-1.jsonl");

    fn same(line: &str, written: &[u8]) {
        let value = |text: &[u8]| serde_json::from_slice::<serde_json::Value>(text).expect("JSON");
        assert_eq!(value(line.as_bytes()), value(written), "{line}");
    }

    #[test]
    fn every_released_request_reads_and_writes_back() {
        let mut verbs = std::collections::BTreeSet::new();
        for line in REQUESTS.lines() {
            let request = Request::parse(line.as_bytes()).unwrap_or_else(|error| panic!("{line}: {error:?}"));
            same(line, &request.to_line());
            verbs.insert(request.command.verb());
        }
        assert_eq!(verbs.len(), 18, "a request for each verb: {verbs:?}");
    }

    #[test]
    fn every_released_answer_reads_and_writes_back() {
        for line in ANSWERS.lines() {
            let answer = Answer::parse(line.as_bytes()).unwrap_or_else(|error| panic!("{line}: {error}"));
            same(line, &answer.to_line());
        }
    }

    #[test]
    fn waits_unless_told_otherwise() {
        assert!(Request::parse(br#"{"version":1,"command":{"verb":"drain"}}"#).expect("a request").wait);
        assert!(!Request::parse(br#"{"version":1,"command":{"verb":"drain"},"wait":false}"#).expect("a request").wait);
    }

    #[test]
    fn another_version_is_told_so_whatever_else_it_says() {
        let error = Request::parse(br#"{"version":2,"ask":{"verb":"fly"}}"#).expect_err("version 2");
        assert!(matches!(error, RequestError::Version(2)));
        let refused = Refused::from(error);
        assert_eq!(refused.code, RefusalCode::Version);
        assert_eq!(refused.reason, "the client speaks version 2 of the control protocol, the agent version 1");
    }

    #[test]
    fn what_is_not_known_in_a_request_is_refused_and_in_an_answer_ignored() {
        for line in [
            r#"{"version":1,"command":{"verb":"deploy","colour":"red"}}"#,
            r#"{"version":1,"command":{"verb":"deploy"},"colour":"red"}"#,
            r#"{"version":1,"command":{"verb":"fly"}}"#,
            r#"{"version":1}"#,
            r#"{"version":-1,"command":{"verb":"status"}}"#,
            r#"{"version":1,"command":{"verb":"status"}} x"#,
            "[]",
            "",
        ] {
            let refused = Refused::from(Request::parse(line.as_bytes()).expect_err(line));
            assert_eq!(refused.code, RefusalCode::BadRequest, "{line}");
        }
        let answer = Answer::parse(br#"{"refused":{"code":"tired","reason":"r","mood":1}}"#);
        assert_eq!(answer.expect("an answer"), Answer::Refused(Refused { code: RefusalCode::Other, reason: "r".into(), hint: None }));
    }

    #[test]
    fn debug_output_of_a_launch_has_no_values() {
        let line = ANSWERS.lines().find(|line| line.contains("\"launch\"")).expect("the fixture");
        let shown = format!("{:?}", Answer::parse(line.as_bytes()).expect("an answer"));
        assert!(shown.contains("DATABASE_URL") && !shown.contains("s3cret"), "{shown}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Request::parse(&bytes).map_err(Refused::from);
            let _ = Answer::parse(&bytes);
        }

        #[test]
        fn no_change_of_a_released_line_makes_it_panic(line in 0_usize..17, at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()) {
            for text in [REQUESTS, ANSWERS] {
                let lines: Vec<_> = text.lines().collect();
                let mut bytes = lines[line % lines.len()].as_bytes().to_vec();
                let at = at.index(bytes.len());
                if cut { bytes.truncate(at); } else { bytes[at] = byte; }
                let _ = Request::parse(&bytes).map_err(Refused::from);
                let _ = Answer::parse(&bytes);
            }
        }

        #[test]
        fn depth_does_not_overflow_the_stack(depth in 1_usize..100_000) {
            let _ = Request::parse("[".repeat(depth).as_bytes());
        }
    }
}
