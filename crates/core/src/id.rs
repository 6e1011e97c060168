//! What things are called: processes, slots, releases, revisions, generations.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::date::Timestamp;
use crate::time::WallTime;

/// A process, told apart from a later one with the same number by when it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    /// The number the kernel gave it.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat` (`proc_pid_stat(5)`): clock ticks after boot at which it started.
    pub start_ticks: u64,
}

/// The name of a pool: `[a-z][a-z0-9_-]*`; cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct PoolName(Arc<str>);

impl PoolName {
    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for PoolName {
    fn from(name: String) -> Self {
        Self(name.into())
    }
}

impl From<&str> for PoolName {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

impl From<PoolName> for String {
    fn from(name: PoolName) -> Self {
        name.0.as_ref().to_owned()
    }
}

impl Borrow<str> for PoolName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A numbered place in a pool, from zero.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SlotId {
    /// The pool.
    pub pool: PoolName,
    /// The place in it.
    pub slot: u32,
}

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.pool, self.slot)
    }
}

/// Which rollout of a pool a worker belongs to; grows with every rollout, never reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which start of a slot a worker is: `{start}`, never used twice in a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StartNo(pub u64);

/// Names one worker for good: what the keeper, the journal and the environment know it by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WorkerKey {
    /// Where it works.
    pub slot: SlotId,
    /// Which start of that slot it is.
    pub start: StartNo,
}

impl fmt::Display for WorkerKey {
    /// `pool/slot#start`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.slot, self.start.0)
    }
}

/// Why a text is not an id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not {what}: `{text}`")]
pub struct IdError {
    what: &'static str,
    text: String,
}

impl FromStr for SlotId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        text.split_once('/')
            .and_then(|(pool, slot)| Some(Self { pool: pool.into(), slot: slot.parse().ok()? }))
            .filter(|id| !id.pool.as_str().is_empty())
            .ok_or_else(|| IdError { what: "a slot (POOL/NUMBER)", text: text.to_owned() })
    }
}

impl FromStr for WorkerKey {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        text.rsplit_once('#')
            .and_then(|(slot, start)| Some(Self { slot: slot.parse().ok()?, start: StartNo(start.parse().ok()?) }))
            .ok_or_else(|| IdError { what: "a worker (POOL/SLOT#START)", text: text.to_owned() })
    }
}

/// A full commit id: 40 (SHA-1) or 64 (SHA-256) lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Revision(Arc<str>);

impl Revision {
    /// Returns what git writes where there is no commit: forty zeros.
    pub(crate) fn none() -> Self {
        Self("0000000000000000000000000000000000000000".into())
    }

    /// Returns the id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the first seven digits, as people write it.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.0[..7]
    }
}

impl FromStr for Revision {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let hex = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if hex && matches!(text.len(), 40 | 64) {
            Ok(Self(text.into()))
        } else {
            Err(IdError { what: "a full commit id", text: text.to_owned() })
        }
    }
}

impl TryFrom<String> for Revision {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<Revision> for String {
    fn from(id: Revision) -> Self {
        id.0.as_ref().to_owned()
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a release's directory: `20261122T101530Z-1a2b3c4`, with `-2`, `-3` ... behind it for the next of the same second.
///
/// The journal orders releases, not their names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ReleaseId(Arc<str>);

impl ReleaseId {
    /// Returns the name of the `nth` release (from 1) that is begun in that second: a year first, 45 characters at most.
    pub(crate) fn begun(at: WallTime, revision: &Revision, nth: u64) -> Self {
        let date = Timestamp(at).to_string();
        let second = date.split('.').next().unwrap_or_default().replace(['-', ':'], "");
        let suffix = if nth > 1 { format!("-{nth}") } else { String::new() };
        Self(format!("{second}Z-{}{suffix}", revision.short()).into())
    }

    /// Returns the name as text; it is one plain path component.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ReleaseId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if plain && text.as_bytes().first().is_some_and(u8::is_ascii_digit) && text.len() <= 64 {
            Ok(Self(text.into()))
        } else {
            Err(IdError { what: "a release", text: text.to_owned() })
        }
    }
}

impl TryFrom<String> for ReleaseId {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<ReleaseId> for String {
    fn from(id: ReleaseId) -> Self {
        id.0.as_ref().to_owned()
    }
}

impl fmt::Display for ReleaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_back_as_they_were_written() {
        let key: WorkerKey = "check-ins_2/3#17".parse().expect("a key");
        assert_eq!(key.to_string(), "check-ins_2/3#17");
        assert_eq!((key.slot.slot, key.start), (3, StartNo(17)));
        for wrong in ["", "a", "a/b#1", "a/1", "/1#1", "a/1#x"] {
            assert!(wrong.parse::<WorkerKey>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_made_without_being_read_can_be_read() {
        assert_eq!(Revision::none().as_str().parse(), Ok(Revision::none()));
        let revision = Revision::none();
        for (millis, nth, text) in [
            (0, 1, "19700101T000000Z-0000000"),
            (1_795_342_530_999, 1, "20261122T101530Z-0000000"),
            (951_782_400_000, 2, "20000229T000000Z-0000000-2"),
            (-1, 1, "19691231T235959Z-0000000"),
            (i64::MAX, u64::MAX, "99991231T235959Z-0000000-18446744073709551615"),
            (i64::MIN, 1, "00000101T000000Z-0000000"),
        ] {
            let id = ReleaseId::begun(WallTime::from_unix_millis(millis), &revision, nth);
            assert_eq!((id.as_str(), text.parse()), (text, Ok(id.clone())));
        }
    }

    #[test]
    fn a_release_name_is_one_plain_path_component() {
        assert!("20261122T101530Z-1a2b3c4-2".parse::<ReleaseId>().is_ok());
        for wrong in ["", "..", "../x", "a/b", "x", "2026 "] {
            assert!(wrong.parse::<ReleaseId>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_revision_is_a_full_lower_case_commit_id() {
        assert!("1a2b3c4d5e6f1a2b3c4d5e6f1a2b3c4d5e6f1a2b".parse::<Revision>().is_ok());
        assert!("1a2b3c4".parse::<Revision>().is_err());
        assert!("1A2B3c4d5e6f1a2b3c4d5e6f1a2b3c4d5e6f1a2b".parse::<Revision>().is_err());
    }
}
