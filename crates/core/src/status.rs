//! The snapshot of a node that the CLI, the socket and later the metrics and the dashboard show: PRODUCT.md section 4, `schema` 1.
//!
//! An interface: fields may be added, never renamed or removed. What an older or newer agent does not say reads as `None`, zero
//! or empty; fields not known here are ignored.

use serde::{Deserialize, Serialize};

use crate::date::Timestamp;
use crate::id::{Generation, PoolName, ReleaseId, Revision};
use crate::units::Bytes;

/// The number of this shape.
pub const SCHEMA: u32 = 1;

/// One app on one node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// [`SCHEMA`].
    pub schema: u32,
    /// `app:`.
    pub app: String,
    /// The machine.
    pub node: NodeStatus,
    /// selfstart itself.
    pub agent: AgentStatus,
    /// What is deployed, and what is being done about it.
    #[serde(default)]
    pub deploy: DeployStatus,
    /// In the order of the configuration.
    #[serde(default)]
    pub pools: Vec<PoolStatus>,
    /// What an operator must see: sentences, most urgent first; empty when all is well.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// The machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The instance id on EC2, else the machine-id.
    pub id: String,
    /// `roles:`, and what `--role` adds.
    #[serde(default)]
    pub roles: Vec<String>,
    /// Pools that `only:` keeps for other nodes, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pools_elsewhere: Vec<String>,
}

/// selfstart itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Of the agent.
    pub pid: i32,
    /// Of the keeper.
    pub keeper_pid: i32,
    /// The binary's version.
    pub version: String,
    /// When this agent started; it changes when the agent was killed and came back.
    pub started_at: Timestamp,
    /// What it is about.
    pub state: AgentState,
    /// The file that selfstart was started from; an upgrade takes its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// What became of the last upgrade; `None`: there was none since selfstart was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<UpgradeStatus>,
}

/// What became of an upgrade.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpgradeStatus {
    /// Which, counted since selfstart was started.
    pub number: u32,
    /// The version that there was.
    pub from: String,
    /// The version that there was to be; `None`: it is not known.
    #[serde(default)]
    pub to: Option<String>,
    /// Whether it has taken over.
    pub done: bool,
    /// The same for people, with the reason.
    pub text: String,
}

/// What the agent is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentState {
    /// It minds the pools.
    #[default]
    Running,
    /// It is stopping everything, by `drain` or a signal.
    Draining,
    /// Everything is stopped; nothing starts until `start` or a reboot.
    Drained,
    /// A state that this version does not know.
    #[serde(other)]
    Unknown,
}

/// What is deployed, and what is being done about it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DeployStatus {
    /// Where the transaction is.
    #[serde(default)]
    pub phase: DeployPhase,
    /// No updates until `unhold`.
    #[serde(default)]
    pub held: bool,
    /// By whom and why; `None` unless held.
    #[serde(default)]
    pub hold: Option<HoldStatus>,
    /// What the source's branch, an operator or a trigger asks for.
    #[serde(default, with = "empty_object")]
    pub wanted: Option<Reached>,
    /// The newest that is in the mirror.
    #[serde(default, with = "empty_object")]
    pub fetched: Option<Reached>,
    /// The newest whole, built release.
    #[serde(default, with = "empty_object")]
    pub built: Option<Reached>,
    /// What `current` points to.
    #[serde(default, with = "empty_object")]
    pub live: Option<Reached>,
    /// Revisions that failed here and are not tried again by themselves.
    #[serde(default)]
    pub quarantined: Vec<QuarantinedRevision>,
    /// Why the last deploy did not happen; `None` once one did.
    #[serde(default)]
    pub last_error: Option<String>,
    /// When that was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error_at: Option<Timestamp>,
    /// How far the phase is; `None` when idle.
    #[serde(default)]
    pub progress: Option<Progress>,
    /// What is remembered and deployed next: at `unhold`, `start`, or behind what goes on; `None`: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<PendingStatus>,
}

/// A trigger that waits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingStatus {
    /// The branch, tag or revision that an operator named; `None`: what is configured.
    #[serde(default, rename = "ref", skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Whether it is built anew.
    #[serde(default)]
    pub force: bool,
}

/// Where the transaction is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are PRODUCT.md's")]
pub enum DeployPhase {
    #[default]
    Idle,
    Fetching,
    Staging,
    Building,
    Switching,
    RollingOut,
    Confirming,
    RollingBack,
    /// A phase that this version does not know.
    #[serde(other)]
    Unknown,
}

impl DeployPhase {
    /// Returns the name as JSON has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Fetching => "fetching",
            Self::Staging => "staging",
            Self::Building => "building",
            Self::Switching => "switching",
            Self::RollingOut => "rolling_out",
            Self::Confirming => "confirming",
            Self::RollingBack => "rolling_back",
            Self::Unknown => "unknown",
        }
    }
}

/// Who held the updates, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldStatus {
    /// `operator`, `rollback`, ...
    pub by: String,
    /// A sentence.
    pub why: String,
    /// Since when.
    pub at: Timestamp,
}

/// A revision that got somewhere at some time. In JSON `{}` where there is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reached {
    /// Which commit.
    pub revision: Revision,
    /// The release made of it; `None` where there is none yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseId>,
    /// When.
    pub at: Timestamp,
}

/// A revision that failed its build or its canary here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantinedRevision {
    /// Which commit.
    pub revision: Revision,
    /// A sentence.
    pub why: String,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
}

/// How far a phase of a deploy is; what a phase does not count is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What is done just now, for people: `receiving objects`, `trying again in 4s: connection refused`.
    #[serde(default)]
    pub detail: Option<String>,
    /// Objects received (fetching) or files written (staging).
    #[serde(default)]
    pub objects: Option<u64>,
    /// How many there will be.
    #[serde(default)]
    pub total_objects: Option<u64>,
    /// Received or written so far.
    #[serde(default)]
    pub bytes: Option<Bytes>,
    /// The build step that runs, or the rollout's place.
    #[serde(default)]
    pub step: Option<Step>,
}

/// One of several things that are done in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Which one, from 1.
    pub number: u32,
    /// How many in all.
    pub of: u32,
    /// What it is: the command of a build step, the slot of a rollout.
    pub text: String,
}

/// N like workers of one command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// Its name.
    pub name: PoolName,
    /// `group:`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<PoolName>,
    /// How many workers there should be.
    pub wanted: u32,
    /// How many are ready.
    pub ready: u32,
    /// `scale` keeps this count; `None`: the configuration's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaled: Option<u32>,
    /// By number; a slot beyond the count leaves the list when stopped.
    #[serde(default)]
    pub slots: Vec<SlotStatus>,
}

/// A numbered place in a pool, and the worker in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SlotStatus {
    /// From 0.
    pub slot: u32,
    /// What it is about.
    pub state: SlotState,
    /// Of the main process; `None`: there is none.
    #[serde(default)]
    pub pid: Option<i32>,
    /// Of the process that runs; `None`: there is none.
    #[serde(default)]
    pub generation: Option<Generation>,
    /// What its process was started from; `None`: there is none.
    #[serde(default)]
    pub release: Option<ReleaseId>,
    /// What its process runs; `None`: there is none.
    #[serde(default)]
    pub revision: Option<Revision>,
    /// When it came into this state.
    pub since: Timestamp,
    /// When the process started; `None`: there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// In backoff and quarantine: when the next start is due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_start_at: Option<Timestamp>,
    /// Of the whole tree, as far as `memory` of the pool asks for samples; `None`: not measured (a pool without a limit never is), or the
    /// reading failed. Never zero for unknown.
    #[serde(default)]
    pub memory_bytes: Option<Bytes>,
    /// The job in flight, where that is known.
    #[serde(default)]
    pub job: Option<JobStatus>,
    /// How often a worker of this slot was started again.
    #[serde(default)]
    pub restarts: u64,
    /// Why the last worker of this slot ended; `None`: none did.
    #[serde(default)]
    pub last_verdict: Option<VerdictStatus>,
}

/// What a slot is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are PRODUCT.md's")]
pub enum SlotState {
    Stopped,
    Starting,
    Ready,
    Quiet,
    Stopping,
    Backoff,
    Quarantined,
    Paused,
    /// A state that this version does not know.
    #[serde(other)]
    Unknown,
}

impl SlotState {
    /// Returns the name as JSON has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Quiet => "quiet",
            Self::Stopping => "stopping",
            Self::Backoff => "backoff",
            Self::Quarantined => "quarantined",
            Self::Paused => "paused",
            Self::Unknown => "unknown",
        }
    }
}

/// A job that a worker has taken and not finished.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct JobStatus {
    /// The library's id; `None` where only a title shows the job.
    #[serde(default)]
    pub id: Option<String>,
    /// Of what class.
    #[serde(default)]
    pub class: Option<String>,
    /// From what queue.
    #[serde(default)]
    pub queue: Option<String>,
    /// When it was taken.
    #[serde(default)]
    pub started_at: Option<Timestamp>,
    /// How long ago.
    #[serde(default)]
    pub age_seconds: Option<f64>,
    /// The process that works on it, where it is not the main one.
    #[serde(default)]
    pub child_pid: Option<i32>,
}

/// Why a worker ended or an update did not happen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerdictStatus {
    /// `exit`, `signal`, `memory`, `oom`, `stale`, `deploy`, `scale`, `notice`, `operator`, ...
    pub kind: String,
    /// When.
    pub at: Timestamp,
    /// A sentence.
    pub text: String,
}

/// One release of `selfstart releases`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseStatus {
    /// Its name.
    pub release: ReleaseId,
    /// What it was made of.
    pub revision: Revision,
    /// How far it came.
    pub state: ReleaseState,
    /// When it was staged.
    pub at: Timestamp,
    /// On disk; `None`: not measured.
    #[serde(default)]
    pub size_bytes: Option<Bytes>,
    /// Which slots (`POOL/SLOT`) or processes (`pid 4711`) run from it.
    #[serde(default)]
    pub used_by: Vec<String>,
    /// Why it failed; `None` unless it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// How far a release came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are PRODUCT.md's")]
pub enum ReleaseState {
    Staged,
    Built,
    Live,
    Retired,
    Failed,
    /// A state that this version does not know.
    #[serde(other)]
    Unknown,
}

impl ReleaseState {
    /// Returns the name as JSON has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Staged => "staged",
            Self::Built => "built",
            Self::Live => "live",
            Self::Retired => "retired",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }
}

/// `None` is `{}` in JSON, as PRODUCT.md shows it; `null` reads as `None` too.
mod empty_object {
    use serde::de::Error;
    use serde::ser::SerializeMap;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{Reached, ReleaseId, Revision, Timestamp};

    pub(super) fn serialize<S: Serializer>(reached: &Option<Reached>, serializer: S) -> Result<S::Ok, S::Error> {
        match reached {
            Some(reached) => reached.serialize(serializer),
            None => serializer.serialize_map(Some(0))?.end(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Reached>, D::Error> {
        #[derive(Deserialize)]
        struct Loose {
            revision: Option<Revision>,
            release: Option<ReleaseId>,
            at: Option<Timestamp>,
        }
        match Option::<Loose>::deserialize(deserializer)? {
            None | Some(Loose { revision: None, release: None, at: None }) => Ok(None),
            Some(Loose { revision: Some(revision), release, at: Some(at) }) => Ok(Some(Reached { revision, release, at })),
            Some(Loose { revision: None, .. }) => Err(D::Error::missing_field("revision")),
            Some(Loose { at: None, .. }) => Err(D::Error::missing_field("at")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Released shapes: each must be read for ever.
    const FULL: &str = include_str!("../tests/fixtures/status-1.json");
    const SPARSE: &str = include_str!("../tests/fixtures/status-1-sparse.json");

    #[test]
    fn the_contract_s_snapshot_reads_and_writes_back_unchanged() {
        let status: Status = serde_json::from_str(FULL).expect("the fixture");
        let again = serde_json::to_value(&status).expect("to JSON");
        assert_eq!(again, serde_json::from_str::<serde_json::Value>(FULL).expect("JSON"));
        assert_eq!(serde_json::from_value::<Status>(again).expect("the round trip"), status);
        assert_eq!(status.pools[0].slots[0].memory_bytes, Some(Bytes(61_341_696)));
        assert_eq!(status.deploy.fetched, None);
    }

    #[test]
    fn what_is_absent_or_null_or_new_does_not_break_a_reader() {
        let status: Status = serde_json::from_str(SPARSE).expect("the fixture");
        assert_eq!(status.deploy, DeployStatus { phase: DeployPhase::Unknown, ..DeployStatus::default() });
        assert_eq!(status.pools[0].slots[0].state, SlotState::Unknown);
        assert_eq!(status.pools[0].slots[0].memory_bytes, None);
        assert_eq!(status.agent.state, AgentState::Unknown);
    }

    #[test]
    fn half_a_milestone_is_an_error_and_not_none() {
        let deploy = serde_json::from_str::<DeployStatus>(r#"{"live": {"release": "20261122T101530Z-1a2b3c4"}}"#);
        assert!(deploy.expect_err("no revision").to_string().contains("revision"));
    }

    #[test]
    fn names_are_those_of_the_json() {
        for phase in [
            DeployPhase::Idle,
            DeployPhase::Fetching,
            DeployPhase::Staging,
            DeployPhase::Building,
            DeployPhase::Switching,
            DeployPhase::RollingOut,
            DeployPhase::Confirming,
            DeployPhase::RollingBack,
        ] {
            assert_eq!(serde_json::to_value(phase).expect("JSON"), phase.name());
        }
        for state in [
            SlotState::Stopped,
            SlotState::Starting,
            SlotState::Ready,
            SlotState::Quiet,
            SlotState::Stopping,
            SlotState::Backoff,
            SlotState::Quarantined,
            SlotState::Paused,
        ] {
            assert_eq!(serde_json::to_value(state).expect("JSON"), state.name());
        }
        for state in [ReleaseState::Staged, ReleaseState::Built, ReleaseState::Live, ReleaseState::Retired, ReleaseState::Failed] {
            assert_eq!(serde_json::to_value(state).expect("JSON"), state.name());
        }
    }
}
