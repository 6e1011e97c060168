//! The machine of deploys: what is fetched, built, switched to, rolled out and rolled back on one node, and when.
//!
//! Not for: how any of it is done (the shell carries out the effects), what workers do (it asks for a roll out and hears how
//! it ended), which releases may go ([`crate::retention`]).
//!
//! ```text
//! Asleep ──Booted──▶ Idle (or straight to what a killed agent left: RollingOut, RollingBack)
//!
//! Idle ──trigger──▶ Fetching ──Fetched, new──▶ Staging ─▶ Linking ─▶ Building 1..m ─▶ Sealing ──MarkedBuilt──▶ Switching
//!   ▲                │  ▲  │                      │          │           │              │                        │
//!   │    FetchFailed │  │  └─Fetched, already whole: no copy, no build ──┼──────────────┼──▶ Switching            │
//!   │                ▼  │deadline, trigger        │          │           │              │                        │
//!   │               Waiting ◀── machine's trouble (disk full, helper killed): not a failure of the revision ◀─────┤
//!   │                                             │          │           │                                        │
//!   ├──revision's fault: quarantined, release failed, current and workers left alone                       Switched│
//!   │                                                                                                              ▼
//!   ├──────────────────────────────────────────RolledOut─────────────────────────────────────────────────── RollingOut
//!   │                                                                                                              │
//!   └──RolledOut── RollingBack(rolling out) ◀──Switched── RollingBack(switching) ◀──RolloutFailed, quarantined─────┘
//!
//! rollback:  Idle or Waiting ──▶ Switching ──▶ RollingOut ──▶ Idle, held
//! any ──Shutdown──▶ Ending (nothing more is begun; the journal says what the next agent finishes or undoes)
//! ```
//!
//! - **One at a time, newest wins.** A trigger that comes during a deploy waits in one slot; a newer one takes its place, or
//!   joins it if both want the same. Wanted, fetched, built and live are four facts ([`Deploy::wanted`] and the rest).
//! - **Hold, rollback, drain** take effect at the next boundary: a deploy that has not switched yet gives way there and is
//!   remembered; a build step is ended by a rollback, a roll out by a rollback or a drain.
//! - **Pools** are asked for once with [`Effect::StartPools`] (at a boot at the latest `boot_timeout` after it, if there is
//!   anything to start) and then only with [`Effect::RollOut`].
//!
//! # What the shell must do
//!
//! 1. Carry out effects in order. [`Effect::Save`] comes first when it comes, and is durable (written, synced, renamed, the
//!    directory synced) before the next is begun: record before act. If it fails, the effects behind it for which
//!    [`Effect::unsaved`] returns an event are not carried out but answered with that event; the others are. It is tried again,
//!    with what [`Deploy::saved`] returns then, before the effects of the next step.
//! 2. Answer each effect exactly once with one of the events that it names, at any later time; a helper that is ended by
//!    somebody else than its own program is [`Blame::Machine`]. Answers name the release (or fetch) they are about: late
//!    ones change nothing.
//! 3. End a fetch after `source.timeout`, a step after its own time-out. The time-out of the whole build is kept here
//!    ([`Effect::EndStep`]).
//! 4. At start: `Deploy::new(saved)`, then [`Event::Booted`] before any other event.

mod book;
mod chores;
mod name;
mod news;
mod recover;
mod retry;
mod rollback;
mod saved;
mod step;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{ReleaseId, Revision};
use crate::retention::KeepPolicy;
use crate::time::{MonoTime, WallTime};

pub use book::{Book, Entry, Fingerprint, ReleaseState};
pub use chores::{Chore, HookCounts, Task, Then};
pub use news::News;
pub use retry::{Jitter, RetryPolicy};
pub use rollback::{RollbackError, RollbackTo, resolve_rollback};
pub use saved::{ChangeKind, Journal, Saved};
pub use step::{next_deadline, step};

/// How deploys are done here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeployPolicy {
    /// `source.boot_timeout`: the source unreachable at boot for this long, the last good release starts.
    pub boot_timeout: Duration,
    /// The build settings as they are now.
    pub build: Fingerprint,
    /// How many build steps they have; may be 0.
    pub steps: u32,
    /// Those of them that have `on_rollback`.
    pub undo: BTreeSet<u32>,
    /// `hooks:`.
    pub hooks: HookCounts,
    /// `build.timeout`: all steps together.
    pub build_timeout: Duration,
    /// `release.keep` and `release.keep_failed`.
    pub keep: KeepPolicy,
    /// The waits between tries.
    pub retry: RetryPolicy,
    /// `release.probation`: how long after its rollout a release that crash-loops is rolled back by itself.
    pub probation: Duration,
    /// `source.supersede`: whether a build is stopped when the source is seen to have something newer.
    pub supersede: bool,
}

/// What the shell read from its clocks and its dice when the event came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// For waiting.
    pub mono: MonoTime,
    /// For names and for showing.
    pub wall: WallTime,
    /// For spreading the tries of many nodes; a fresh one each time.
    pub jitter: Jitter,
}

/// A request of an operator, to be answered exactly once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// One try of a fetch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FetchId(pub u64);

/// What is to be deployed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// What `source:` says when it is fetched.
    #[default]
    Configured,
    /// `--ref`: a branch, tag or revision.
    Ref(String),
}

/// Whether `--force` was given: build anew, also a quarantined revision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Force {
    #[default]
    No,
    Yes,
}

/// Where a trigger came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The node booted, or has nothing live.
    Boot,
    /// An operator's `deploy`.
    Operator,
    /// A reload changed `build:` or `source:`.
    Reload,
    /// The head of the source had changed when it was asked.
    Poll,
    /// The server of the source said that there was a push.
    Webhook,
}

/// Who wants a deploy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asker {
    /// How it came about.
    pub origin: Origin,
    /// The operator's name; `None`: nobody is known by name (a boot, HUP, or what an older version remembered).
    pub by: Option<String>,
}

impl Asker {
    /// Returns the name to be told: an operator's, `boot`, or `HUP`.
    #[must_use]
    pub fn name(&self) -> &str {
        match (&self.by, self.origin) {
            (Some(by), _) => by,
            (None, Origin::Boot) => "boot",
            (None, Origin::Operator) => "an operator",
            (None, Origin::Reload) => "HUP",
            (None, Origin::Poll) => "poll",
            (None, Origin::Webhook) => "a webhook",
        }
    }
}

impl From<Origin> for Asker {
    fn from(origin: Origin) -> Self {
        Self { origin, by: None }
    }
}

impl fmt::Display for Asker {
    /// `asked by alice`, `asked by alice (reload)`, `asked by boot`, `asked by HUP`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.origin == Origin::Reload && self.by.is_some() { " (reload)" } else { "" };
        write!(f, "asked by {}{how}", self.name())
    }
}

/// That something is to be deployed: never lost, never out of order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trigger {
    /// What.
    pub wanted: Wanted,
    /// Whether it builds anew.
    pub force: Force,
    /// How it came about.
    pub origin: Origin,
    /// The operator who says so; `None`: nobody is known by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// How often the end of the agent cut it short; spaces the tries.
    #[serde(default)]
    pub cuts: u32,
    /// Whether a trigger for what is configured gave way to this one: if its own ref does not exist, that one goes on.
    #[serde(default)]
    pub displaced: bool,
    /// The release that was made for it already, before something came between: it is switched to, forced or not.
    #[serde(default)]
    pub made: Option<ReleaseId>,
    /// The build steps of that one that were run here: what is undone if it fails after all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ran: Vec<u32>,
}

/// What an operator asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// `deploy`; answered when it is rolled out, or was found to be so already, or will not be.
    Deploy {
        /// `--ref`.
        wanted: Wanted,
        /// `--force`.
        force: Force,
    },
    /// `rollback`, which also holds.
    Rollback(RollbackTo),
    /// `hold`; at once.
    Hold {
        /// In the operator's words; may be empty.
        why: String,
    },
    /// `unhold`; what was remembered is deployed then, and it is answered as that deploy is. At once if nothing was.
    Unhold,
}

/// Why no update happens until `unhold`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Who said so.
    pub by: String,
    /// When.
    pub at: WallTime,
    /// Why; may be empty.
    pub why: String,
}

/// A revision that failed here with these build settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantine {
    /// What failed.
    pub revision: Revision,
    /// Built how: with other build settings it is tried again.
    pub build: Fingerprint,
    /// The verdict.
    pub why: String,
    /// When.
    pub at: WallTime,
}

/// A revision and since when it is so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Which.
    pub revision: Revision,
    /// Since when.
    pub at: WallTime,
}

/// A release that can still be rolled back by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probation {
    /// Which.
    pub release: ReleaseId,
    /// What was live before, and will be again.
    pub previous: ReleaseId,
    /// The end of its probation; of this boot of the machine.
    pub until: MonoTime,
    /// Why it has not stood it: it is rolled back as soon as nothing is in the way.
    pub failed: Option<String>,
}

/// A sentence and when it was said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// When.
    pub at: WallTime,
    /// What.
    pub text: String,
}

/// Whose fault it is that something did not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// What the revision contains: it is quarantined.
    Revision,
    /// Lack of disk, the end of a helper from outside, the agent: it is tried again.
    Machine,
}

/// Why a fetch did not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FetchTrouble {
    /// Not reached, cut off, too slow, a certificate that is not valid yet: tried again soon.
    Network,
    /// The source does not let us in: tried again, slowly.
    Refused,
    /// The source has no such branch, tag or revision: tried again, slowly; not if an operator gave it by `--ref`.
    NoSuchRef,
    /// It is not signed by who may: what is live stays; tried again, slowly, for who may sign can change; not if an operator gave it by `--ref`.
    Unsigned,
    /// The mirror could not be written: tried again soon.
    Disk,
}

/// How an agent comes to life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The node boots, or `selfstart run` was started: a trigger.
    Boot,
    /// The keeper started the agent again: pools first, and only what was under way is resumed.
    Again,
}

/// Whether the node works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// As usual.
    #[default]
    Minding,
    /// After `drain` or a notice: starts nothing and takes no deploy.
    Drained,
}

/// Whether workers were found running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum PoolsFound {
    Running,
    NotRunning,
}

/// A directory below `releases/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundRelease {
    /// Its name.
    pub id: ReleaseId,
    /// The revision and build settings that its mark of being built names; `None`: it is not whole.
    pub built: Option<(Revision, Fingerprint)>,
}

/// What the shell found when the agent came to life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// How it came to life.
    pub start: Start,
    /// Where `current` leads, whatever that is; `None`: no such link, or it leads nowhere.
    pub current: Option<ReleaseId>,
    /// All directories below `releases/`, in any order.
    pub releases: Vec<FoundRelease>,
    /// Whether workers run.
    pub pools: PoolsFound,
    /// Whether the node was drained before.
    pub mode: Mode,
    /// A name of this run of `selfstart run` that no other has; `None`: none can be had. [`Saved::run`] has it once its boot was a trigger.
    pub run: Option<String>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The first of all events.
    Booted(Found),
    /// An operator asks.
    Requested {
        /// To answer to.
        id: RequestId,
        /// Who.
        by: String,
        /// What.
        what: Request,
    },
    /// Something else wants the configured source deployed: a reload that changed `build:` or `source:`, a poll, a webhook.
    Triggered(Asker),
    /// The source was asked just now (by a poll, or since a push was announced), and has this revision where `source:` says. A trigger comes
    /// beside it; this one only stops, with `source.supersede`, the build of another revision.
    Seen {
        /// What it has. Not what an announcement says: that may be older than what is being built.
        revision: Revision,
    },
    /// Answers [`Effect::Fetch`]: the mirror has the revision.
    Fetched {
        /// Which try.
        fetch: FetchId,
        /// What the wanted ref points to.
        revision: Revision,
    },
    /// Answers [`Effect::Fetch`].
    FetchFailed {
        /// Which try.
        fetch: FetchId,
        /// What kind of trouble.
        trouble: FetchTrouble,
        /// What went wrong, for people.
        text: String,
    },
    /// Answers [`Effect::Stage`].
    Staged {
        /// Which.
        release: ReleaseId,
    },
    /// Answers [`Effect::LinkShared`].
    Linked {
        /// Which.
        release: ReleaseId,
    },
    /// Answers [`Effect::Stage`], [`Effect::LinkShared`] or [`Effect::MarkBuilt`].
    PrepareFailed {
        /// Which.
        release: ReleaseId,
        /// Whose fault.
        blame: Blame,
        /// What went wrong, for people.
        text: String,
    },
    /// Answers [`Effect::RunStep`].
    StepDone {
        /// Which release.
        release: ReleaseId,
        /// Which step, from 1.
        step: u32,
    },
    /// Answers [`Effect::RunStep`]: it need not be run here, as another node did it for all, or what it made was carried over.
    StepSkipped {
        /// Which release.
        release: ReleaseId,
        /// Which step, from 1.
        step: u32,
    },
    /// Answers [`Effect::RunChore`].
    ChoreDone {
        /// In which release.
        release: ReleaseId,
        /// Which.
        chore: Chore,
    },
    /// Answers [`Effect::RunChore`].
    ChoreFailed {
        /// In which release.
        release: ReleaseId,
        /// Which.
        chore: Chore,
        /// Whose fault.
        blame: Blame,
        /// The command and its end, for people.
        what: String,
        /// The last lines of its output, oldest first.
        last_lines: Vec<String>,
    },
    /// Answers [`Effect::RunStep`].
    StepFailed {
        /// Which release.
        release: ReleaseId,
        /// Which step, from 1.
        step: u32,
        /// Whose fault: no space left and a kill from outside are the machine's, an exit and the step's time-out the revision's.
        blame: Blame,
        /// The step and its end: "`bundle install` ended with exit 5".
        what: String,
        /// The last lines of its output, oldest first.
        last_lines: Vec<String>,
    },
    /// Answers [`Effect::MarkBuilt`].
    MarkedBuilt {
        /// Which.
        release: ReleaseId,
    },
    /// Answers [`Effect::Switch`].
    Switched {
        /// Which.
        release: ReleaseId,
    },
    /// Answers [`Effect::Switch`]: the link is as it was.
    SwitchFailed {
        /// Which.
        release: ReleaseId,
        /// What went wrong, for people.
        text: String,
    },
    /// Answers [`Effect::RollOut`] and [`Effect::StartPools`]: every slot wanted is ready on it.
    RolledOut {
        /// Which.
        release: ReleaseId,
    },
    /// Answers [`Effect::RollOut`] and [`Effect::StartPools`]: new slots crashed; the roll out stands still.
    RolloutFailed {
        /// Which.
        release: ReleaseId,
        /// What went wrong, for people.
        text: String,
    },
    /// Workers of the live release that were well before it crash again and again.
    Unwell {
        /// Which.
        release: ReleaseId,
        /// Who and how, for people.
        text: String,
    },
    /// Answers [`Effect::Prune`].
    Pruned {
        /// These are gone.
        gone: Vec<ReleaseId>,
        /// These stay, as they are in use. They are asked for again after some minutes.
        kept: Vec<ReleaseId>,
    },
    /// Answers [`Effect::Prune`] that was not carried out, since what came before it could not be saved, or that failed (a disk that
    /// is full or broken). They are asked for again after some seconds.
    NotPruned {
        /// What stays for now.
        ids: Vec<ReleaseId>,
    },
    /// The shell looked, and these are not on disk; known releases that nobody has asked to remove are forgotten. To be sent before a
    /// request for a rollback, and before [`Event::SwitchFailed`] of a release that is not there.
    Missing {
        /// Which.
        releases: Vec<ReleaseId>,
    },
    /// A drain began: nothing is started or deployed.
    DrainBegun,
    /// The drain was withdrawn, or `start`.
    DrainEnded,
    /// The moment that [`next_deadline`] named has come.
    DeadlineReached,
    /// The agent ends in good order; the shell ends the helpers.
    Shutdown,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Make this durable before the next effect is begun. No answer.
    Save(Box<Saved>),
    /// Fetch; answered by [`Event::Fetched`] or [`Event::FetchFailed`].
    Fetch {
        /// Names this try in the answer.
        fetch: FetchId,
        /// How many tries this makes, from 1.
        try_no: u32,
        /// What.
        wanted: Wanted,
    },
    /// Write the tree of the revision into the new directory; answered by [`Event::Staged`] or [`Event::PrepareFailed`].
    Stage {
        /// The directory; nothing of that name exists.
        release: ReleaseId,
        /// What.
        revision: Revision,
    },
    /// Link what is shared; answered by [`Event::Linked`] or [`Event::PrepareFailed`].
    LinkShared {
        /// Where.
        release: ReleaseId,
    },
    /// Run a build step; answered by [`Event::StepDone`] or [`Event::StepFailed`].
    RunStep {
        /// Where.
        release: ReleaseId,
        /// What is built.
        revision: Revision,
        /// Which step, from 1.
        step: u32,
        /// Of the settings with this fingerprint, which a reload may have replaced meanwhile.
        build: Fingerprint,
    },
    /// Run a hook, or what undoes a step; answered by [`Event::ChoreDone`] or [`Event::ChoreFailed`].
    RunChore {
        /// Where.
        release: ReleaseId,
        /// Of what.
        revision: Revision,
        /// Which.
        chore: Chore,
    },
    /// End the running step with its tree: the whole build took too long, or a rollback waits. The step's own answer follows.
    EndStep {
        /// Where.
        release: ReleaseId,
        /// Which.
        step: u32,
    },
    /// Sync the whole release to disk, then write its mark of being built, then sync that; answered by
    /// [`Event::MarkedBuilt`] or [`Event::PrepareFailed`].
    MarkBuilt {
        /// Which.
        release: ReleaseId,
        /// For the mark.
        revision: Revision,
        /// For the mark.
        build: Fingerprint,
    },
    /// Let `current` point to it, durably; twice is as once. Answered by [`Event::Switched`] or [`Event::SwitchFailed`].
    Switch {
        /// Which.
        release: ReleaseId,
    },
    /// Start pools that are not started; answered as [`Effect::RollOut`] is. On pools that run on it: nothing but the answer.
    StartPools {
        /// On what.
        release: ReleaseId,
        /// Of what.
        revision: Revision,
    },
    /// Change the pools over; answered by [`Event::RolledOut`] or [`Event::RolloutFailed`]. A newer one ends an older one,
    /// whose answer then does not matter.
    RollOut {
        /// To what.
        release: ReleaseId,
        /// Of what.
        revision: Revision,
    },
    /// Remove these, but none in which a live process has anything (renamed away first); answered by [`Event::Pruned`].
    Prune {
        /// Which.
        ids: Vec<ReleaseId>,
    },
    /// Answer a request. No answer.
    Answer {
        /// Which.
        id: RequestId,
        /// How it ended.
        outcome: Outcome,
    },
    /// Tell: log line, event, verdict. No answer.
    Tell(News),
}

impl Effect {
    /// Returns how to answer this effect instead of carrying it out when the [`Effect::Save`] before it failed; `None`: it
    /// is carried out all the same.
    #[must_use]
    pub fn unsaved(&self, text: &str) -> Option<Event> {
        let text = text.to_owned();
        match self {
            Self::Stage { release, .. } | Self::LinkShared { release } | Self::MarkBuilt { release, .. } => {
                Some(Event::PrepareFailed { release: release.clone(), blame: Blame::Machine, text })
            }
            Self::RunStep { release, step, .. } => {
                Some(Event::StepFailed { release: release.clone(), step: *step, blame: Blame::Machine, what: text, last_lines: vec![] })
            }
            Self::Switch { release } => Some(Event::SwitchFailed { release: release.clone(), text }),
            Self::Prune { ids } => Some(Event::NotPruned { ids: ids.clone() }),
            Self::Save(_) | Self::Fetch { .. } | Self::EndStep { .. } | Self::StartPools { .. } => None,
            // A chore may run again after a kill anyway: better than not at all.
            Self::RunChore { .. } | Self::RollOut { .. } | Self::Answer { .. } | Self::Tell(_) => None,
        }
    }
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is as was asked.
    Done {
        /// What is live; `None`: nothing yet (`hold` on a node without a release).
        release: Option<ReleaseId>,
        /// Whether it was otherwise before.
        changed: bool,
    },
    /// It is not; why, for people.
    Failed {
        /// The verdict.
        text: String,
    },
    /// It was not tried.
    Refused(Refusal),
}

/// Why a request was not tried: exit code 4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Held; a `deploy` is remembered for `unhold`.
    Held(Hold),
    /// The revision failed before.
    Quarantined(Quarantine),
    /// The node is drained; a `deploy` is remembered.
    Draining,
    /// A newer request wants something else.
    Superseded,
    /// The agent is not ready for it yet.
    Busy,
    /// The agent ends.
    Ending,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held(hold) if hold.why.is_empty() => write!(f, "held by {}", hold.by),
            Self::Held(hold) => write!(f, "held by {}: {}", hold.by, hold.why),
            Self::Quarantined(it) => write!(f, "revision {} is quarantined: {}", it.revision.short(), it.why),
            Self::Draining => f.write_str("the node is drained"),
            Self::Superseded => f.write_str("a newer request took its place"),
            Self::Busy => f.write_str("the agent is not ready yet"),
            Self::Ending => f.write_str("the agent ends"),
        }
    }
}

/// A trigger on its way, and who waits for its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// What is to be done.
    pub trigger: Trigger,
    /// Who waits; each is answered once.
    pub ids: Vec<RequestId>,
    /// Tries that failed for want of network or disk.
    pub failures: u32,
}

/// What a deploy makes; leaves no choice open, whatever a reload changes meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// For whom.
    pub job: Job,
    /// The new directory.
    pub release: ReleaseId,
    /// From what.
    pub revision: Revision,
    /// With which build settings.
    pub build: Fingerprint,
    /// How many steps they have.
    pub steps: u32,
    /// Those that were run here, and not only skipped.
    pub ran: Vec<u32>,
}

/// A move of `current` and of the pools to a whole release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// To what.
    pub release: ReleaseId,
    /// Of what.
    pub revision: Revision,
    /// What was live before; `None`: nothing.
    pub previous: Option<ReleaseId>,
    /// Why.
    pub why: ChangeWhy,
}

/// Why `current` moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeWhy {
    /// A deploy.
    Deploy(Job),
    /// An operator's rollback.
    Rollback(Vec<RequestId>),
    /// `current` led nowhere at start, or the pools were behind it.
    Repair,
}

/// Why a job waits for its next try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitWhy {
    /// The source was not reached.
    Source(FetchTrouble),
    /// The machine was in the way.
    Machine,
    /// Nothing is live and what there is failed: asks now and then whether the source has something new.
    NothingLive,
}

/// Whether a build may still run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuildTime {
    /// Until then.
    Until(MonoTime),
    /// It took too long, and was told to end.
    Over,
    /// A rollback waits, or the source has something newer; it was told to end, and is made again later if it is still wanted.
    GivingWay,
}

/// How far an automatic rollback is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackStep {
    /// `current` is being moved back.
    Switching {
        /// Tries that failed before this one.
        failures: u32,
    },
    /// Moving it back failed; next try then.
    Waiting {
        /// The next try.
        at: MonoTime,
        /// Tries that failed.
        failures: u32,
    },
    /// The pools go back.
    RollingOut,
}

/// What is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Before [`Event::Booted`].
    Asleep(Option<Journal>),
    /// Nothing.
    Idle,
    /// A try failed; the next one is at that time.
    Waiting {
        /// For what.
        job: Job,
        /// The next try.
        at: MonoTime,
        /// Why.
        why: WaitWhy,
    },
    /// The source is asked.
    Fetching {
        /// For what.
        job: Job,
        /// Which try.
        fetch: FetchId,
    },
    /// The tree is being written.
    Staging(Plan),
    /// Shared directories and files are being linked.
    Linking(Plan),
    /// A step runs.
    Building {
        /// Of what.
        plan: Plan,
        /// Which, from 1.
        step: u32,
        /// How long it may.
        time: BuildTime,
    },
    /// The release is being synced and marked.
    Sealing(Plan),
    /// `current` is being moved.
    Switching(Change),
    /// The pools follow.
    RollingOut(Change),
    /// Back to what was live before, since the pools did not come up.
    RollingBack {
        /// What failed.
        from: ReleaseId,
        /// Where to.
        to: ReleaseId,
        /// The verdict.
        text: String,
        /// Who waits.
        ids: Vec<RequestId>,
        /// How far it is.
        step: BackStep,
        /// What is to be run when it is there.
        after: Vec<Task>,
    },
    /// Hooks or `on_rollback` run.
    Chores {
        /// What is left; the first runs.
        left: VecDeque<Task>,
        /// What follows.
        then: Then,
    },
    /// After [`Event::Shutdown`].
    Ending(Option<Journal>),
}

/// The phases that status shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are the contract's")]
pub enum PhaseName {
    Idle,
    Fetching,
    Staging,
    Building,
    Switching,
    RollingOut,
    RollingBack,
}

impl PhaseName {
    /// Returns the word of `status --json`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Fetching => "fetching",
            Self::Staging => "staging",
            Self::Building => "building",
            Self::Switching => "switching",
            Self::RollingOut => "rolling_out",
            Self::RollingBack => "rolling_back",
        }
    }
}

/// Whether the pools were asked to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pools {
    /// Not yet; the source is waited for until then.
    NotStarted {
        /// The moment after which they no longer wait for the source.
        until: MonoTime,
    },
    /// They were, or were found running.
    Started,
}

/// What is told once and not at every try.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Complaint {
    Source(FetchTrouble, String),
    Machine(String),
    Quarantined(Revision),
}

/// All deploys of one app on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deploy {
    phase: Phase,
    book: Book,
    held: Option<Hold>,
    quarantined: Vec<Quarantine>,
    next: Option<Job>,
    rollback: Option<(ReleaseId, Vec<RequestId>)>,
    /// Who asked for the rollback that waits or has not switched yet; `None`: none is, or the node is held for it already.
    rollback_by: Option<String>,
    pools: Pools,
    mode: Mode,
    fetches: u64,
    wanted: Option<Stamp>,
    fetched: Option<Stamp>,
    /// What was fetched last of what is configured.
    configured: Option<Revision>,
    /// What the source was seen to have since it was fetched last.
    seen: Option<Revision>,
    run: Option<String>,
    probation: Option<Probation>,
    complaint: Option<Complaint>,
    sweep_at: Option<MonoTime>,
    last_error: Option<Said>,
    verdict: Option<Said>,
}

impl Deploy {
    /// Returns the machine as a former agent left it (`Saved::default()`: there was none); it waits for [`Event::Booted`].
    #[must_use]
    pub fn new(saved: Saved) -> Self {
        saved::wake(saved)
    }

    /// Returns what must outlive the agent; what the last [`Effect::Save`] carried.
    #[must_use]
    pub fn saved(&self) -> Saved {
        saved::of(self)
    }

    /// Returns what is under way.
    #[must_use]
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// Returns what is under way, in a word. A try that waits for its time shows as fetching; what a former agent was cut short in, as that.
    #[must_use]
    pub fn phase_name(&self) -> PhaseName {
        match &self.phase {
            Phase::Asleep(Some(Journal::Preparing { .. })) => PhaseName::Staging,
            Phase::Asleep(Some(Journal::Changing { why: ChangeKind::Deploy(_) | ChangeKind::Repair, .. })) => PhaseName::Switching,
            Phase::Asleep(Some(
                Journal::Changing { why: ChangeKind::Rollback, .. } | Journal::Returning { .. } | Journal::Chores { .. },
            )) => PhaseName::RollingBack,
            Phase::Asleep(None) if self.next.is_some() && self.held.is_none() => PhaseName::Fetching,
            Phase::Asleep(None) | Phase::Idle | Phase::Ending(_) => PhaseName::Idle,
            Phase::Waiting { why: WaitWhy::NothingLive, .. } => PhaseName::Idle,
            Phase::Waiting { .. } | Phase::Fetching { .. } => PhaseName::Fetching,
            Phase::Staging(_) | Phase::Linking(_) => PhaseName::Staging,
            Phase::Building { .. } | Phase::Sealing(_) => PhaseName::Building,
            Phase::Switching(change) | Phase::RollingOut(change) if matches!(change.why, ChangeWhy::Rollback(_)) => PhaseName::RollingBack,
            Phase::Switching(_) => PhaseName::Switching,
            Phase::RollingOut(_) => PhaseName::RollingOut,
            Phase::RollingBack { .. } => PhaseName::RollingBack,
            Phase::Chores { then: Then::Switch(_), .. } => PhaseName::Building,
            Phase::Chores { then: Then::Follow(_), .. } => PhaseName::Switching,
            Phase::Chores { then: Then::Done(_), left } if left.iter().all(|task| matches!(task.chore, Chore::AfterRollout(_))) => {
                PhaseName::RollingOut
            }
            Phase::Chores { .. } => PhaseName::RollingBack,
        }
    }

    /// Returns the running build step, from 1, and how many there are.
    #[must_use]
    pub fn build_step(&self) -> Option<(u32, u32)> {
        match &self.phase {
            Phase::Building { plan, step, .. } => Some((*step, plan.steps)),
            _ => None,
        }
    }

    /// Returns the release that is being made, moved to or moved back to.
    #[must_use]
    pub fn working_on(&self) -> Option<&ReleaseId> {
        match &self.phase {
            Phase::Staging(plan) | Phase::Linking(plan) | Phase::Sealing(plan) | Phase::Building { plan, .. } => Some(&plan.release),
            Phase::Switching(change) | Phase::RollingOut(change) => Some(&change.release),
            Phase::RollingBack { to, .. } => Some(to),
            Phase::Chores { left, .. } => left.front().map(|task| &task.release),
            Phase::Asleep(_) | Phase::Idle | Phase::Waiting { .. } | Phase::Fetching { .. } | Phase::Ending(_) => None,
        }
    }

    /// Returns who wants what is under way; `None`: nothing is, or it follows from what went wrong.
    #[must_use]
    pub fn asker(&self) -> Option<Asker> {
        let job = match &self.phase {
            Phase::Waiting { job, .. } | Phase::Fetching { job, .. } => job,
            Phase::Staging(plan) | Phase::Linking(plan) | Phase::Sealing(plan) | Phase::Building { plan, .. } => &plan.job,
            Phase::Switching(change) | Phase::RollingOut(change) => match &change.why {
                ChangeWhy::Deploy(job) => job,
                ChangeWhy::Rollback(_) => {
                    // Who rolls back holds, as soon as it is so.
                    let by = self.rollback_by.clone().or_else(|| self.held.as_ref().map(|hold| hold.by.clone()));
                    return Some(Asker { origin: Origin::Operator, by });
                }
                ChangeWhy::Repair => return None,
            },
            Phase::Chores { then, .. } => then.job()?,
            Phase::Asleep(_) | Phase::Idle | Phase::RollingBack { .. } | Phase::Ending(_) => return None,
        };
        Some(Asker { origin: job.trigger.origin, by: job.trigger.by.clone() })
    }

    /// Whether what is built was asked for with force.
    #[must_use]
    pub fn is_forced(&self) -> bool {
        matches!(&self.phase, Phase::Building { plan, .. } if plan.job.trigger.force == Force::Yes)
    }

    /// Returns when the next try of a fetch or switch is due, and how many have failed.
    #[must_use]
    pub fn next_try(&self) -> Option<(MonoTime, u32)> {
        match &self.phase {
            Phase::Waiting { job, at, .. } => Some((*at, job.failures)),
            Phase::RollingBack { step: BackStep::Waiting { at, failures }, .. } => Some((*at, *failures)),
            _ => None,
        }
    }

    /// Returns all known releases.
    #[must_use]
    pub fn book(&self) -> &Book {
        &self.book
    }

    /// Returns why no update happens.
    #[must_use]
    pub fn held(&self) -> Option<&Hold> {
        self.held.as_ref()
    }

    /// Returns the revisions that failed here, the oldest failure first.
    #[must_use]
    pub fn quarantined(&self) -> &[Quarantine] {
        &self.quarantined
    }

    /// Returns the trigger that waits for its turn or for `unhold`.
    #[must_use]
    pub fn pending(&self) -> Option<&Trigger> {
        self.next.as_ref().map(|job| &job.trigger)
    }

    /// Returns what should be live: what the source last said, or what an operator rolled back to.
    #[must_use]
    pub fn wanted(&self) -> Option<&Stamp> {
        self.wanted.as_ref()
    }

    /// Returns what the source last said, and since when it says so.
    #[must_use]
    pub fn fetched(&self) -> Option<&Stamp> {
        self.fetched.as_ref()
    }

    /// Returns what the source last said of what is configured: not of a `--ref`.
    #[must_use]
    pub fn configured(&self) -> Option<&Revision> {
        self.configured.as_ref()
    }

    /// Returns the release that was made last (its [`Entry::built_at`]).
    #[must_use]
    pub fn built(&self) -> Option<&Entry> {
        self.book.entries().iter().filter(|entry| entry.is_whole()).max_by_key(|entry| entry.built_at)
    }

    /// Returns the live release.
    #[must_use]
    pub fn live(&self) -> Option<&Entry> {
        self.book.live()
    }

    /// Returns what went wrong since the last time that all was well.
    #[must_use]
    pub fn last_error(&self) -> Option<&Said> {
        self.last_error.as_ref()
    }

    /// Returns how the last deploy ended: `why deploy`.
    #[must_use]
    pub fn verdict(&self) -> Option<&Said> {
        self.verdict.as_ref()
    }

    /// Returns the release that can still be rolled back by itself.
    #[must_use]
    pub fn probation(&self) -> Option<&Probation> {
        self.probation.as_ref()
    }

    /// Returns whether the node is drained.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }
}
