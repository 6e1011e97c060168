//! What deploys have to tell: one value per happening; the shell makes log lines and events of it.

use std::fmt;
use std::time::Duration;

use crate::deploy::FetchTrouble;
use crate::id::{ReleaseId, Revision};
use crate::time::Human;

/// A happening, told once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// The source could not be asked; told at the first failure, when the reason changes and to who waits for it, not at each try.
    SourceFailed {
        /// What kind.
        trouble: FetchTrouble,
        /// What went wrong.
        text: String,
        /// Until the next try.
        again_in: Duration,
        /// Whether there is nothing to start meanwhile.
        nothing_live: bool,
    },
    /// What an operator asked for was not done, and is not tried again.
    RequestFailed {
        /// Why.
        text: String,
    },
    /// The source answers again.
    SourceBack {
        /// With this.
        revision: Revision,
    },
    /// Nothing to do: it is live already.
    UpToDate {
        /// What.
        revision: Revision,
        /// As what.
        release: ReleaseId,
    },
    /// A quarantined revision was passed over.
    PassedOver {
        /// Which.
        revision: Revision,
        /// Why it is quarantined.
        why: String,
    },
    /// A new release is being made.
    Begun {
        /// As what.
        release: ReleaseId,
        /// Of what.
        revision: Revision,
    },
    /// A deploy waits, through no fault of its revision.
    Interrupted {
        /// What went wrong.
        text: String,
        /// Until the next try.
        again_in: Duration,
    },
    /// A revision failed here, and is not tried again before it is asked for with force.
    Failed {
        /// As what.
        release: ReleaseId,
        /// What.
        revision: Revision,
        /// The verdict.
        why: String,
    },
    /// A deploy stopped short of the switch, since it is held, drained, or a rollback waits.
    GaveWay {
        /// What it would have been.
        revision: Option<Revision>,
    },
    /// `current` moved.
    Switched {
        /// To what.
        release: ReleaseId,
        /// Of what.
        revision: Revision,
        /// From what.
        previous: Option<ReleaseId>,
    },
    /// All pools run it.
    Live {
        /// What.
        release: ReleaseId,
        /// Of what.
        revision: Revision,
    },
    /// The pools do not come up on it and there is nothing to go back to: they keep trying.
    StaysFailing {
        /// What.
        release: ReleaseId,
        /// The verdict.
        why: String,
    },
    /// A roll out failed and the node goes back by itself.
    GoingBack {
        /// From what.
        from: ReleaseId,
        /// To what.
        to: ReleaseId,
        /// The verdict.
        why: String,
    },
    /// A hook or `on_rollback` that others do not depend on failed.
    ChoreFailed {
        /// Which, and how.
        text: String,
    },
    /// It is back.
    WentBack {
        /// To what.
        to: ReleaseId,
    },
    /// The pools start on what was live.
    PoolsStart {
        /// On what.
        release: ReleaseId,
        /// Why not on something newer.
        why: String,
    },
    /// What a former agent left was found.
    Recovered {
        /// What is done about it.
        text: String,
    },
    /// No more updates.
    Held {
        /// Who said so.
        by: String,
        /// Why.
        why: String,
    },
    /// Updates again.
    Unheld {
        /// Who said so.
        by: String,
    },
}

impl News {
    /// Returns the event's kind, as `events --json` shows it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::SourceFailed { .. } => "source_failed",
            Self::RequestFailed { .. } => "request_failed",
            Self::SourceBack { .. } => "source_back",
            Self::UpToDate { .. } => "up_to_date",
            Self::PassedOver { .. } => "deploy_passed_over",
            Self::Begun { .. } => "deploy_begun",
            Self::Interrupted { .. } => "deploy_interrupted",
            Self::Failed { .. } => "deploy_failed",
            Self::GaveWay { .. } => "deploy_gave_way",
            Self::Switched { .. } => "switched",
            Self::Live { .. } => "live",
            Self::StaysFailing { .. } => "rollout_failed",
            Self::GoingBack { .. } => "rolling_back",
            Self::ChoreFailed { .. } => "hook_failed",
            Self::WentBack { .. } => "rolled_back",
            Self::PoolsStart { .. } => "pools_start",
            Self::Recovered { .. } => "deploy_recovered",
            Self::Held { .. } => "held",
            Self::Unheld { .. } => "unheld",
        }
    }
}

impl News {
    /// Tells whether it is about a deploy that somebody wanted, and not about one who says who it was, nor about the node itself.
    #[must_use]
    pub fn is_of_a_deploy(&self) -> bool {
        match self {
            Self::SourceFailed { .. }
            | Self::RequestFailed { .. }
            | Self::UpToDate { .. }
            | Self::PassedOver { .. }
            | Self::Begun { .. }
            | Self::Interrupted { .. }
            | Self::Failed { .. }
            | Self::GaveWay { .. }
            | Self::Switched { .. }
            | Self::Live { .. }
            | Self::StaysFailing { .. }
            | Self::GoingBack { .. } => true,
            Self::SourceBack { .. }
            | Self::ChoreFailed { .. }
            | Self::WentBack { .. }
            | Self::PoolsStart { .. }
            | Self::Recovered { .. }
            | Self::Held { .. }
            | Self::Unheld { .. } => false,
        }
    }
}

impl fmt::Display for News {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SourceFailed { trouble: FetchTrouble::Unsigned, text, again_in, nothing_live } => {
                let stays = if *nothing_live { "there is nothing to start" } else { "what is live stays" };
                write!(f, "not deployed, {stays}: {text}; looked at again in {}, and with each trigger", Human::rough(*again_in))
            }
            Self::SourceFailed { text, again_in, nothing_live, .. } => {
                write!(f, "the source could not be fetched: {text}; tried again in {}, and so on", Human::rough(*again_in))?;
                if *nothing_live { f.write_str("; nothing to start meanwhile") } else { Ok(()) }
            }
            Self::RequestFailed { text } => f.write_str(text),
            Self::SourceBack { revision } => write!(f, "the source answers again, with {}", revision.short()),
            Self::UpToDate { revision, release } => write!(f, "{} is live already, as {release}", revision.short()),
            Self::PassedOver { revision, why } => write!(f, "{} is quarantined and passed over: {why}", revision.short()),
            Self::Begun { release, revision } => write!(f, "making {release} of {}", revision.short()),
            Self::Interrupted { text, again_in } => write!(f, "the deploy waits: {text}; tried again in {}", Human::rough(*again_in)),
            Self::Failed { release, revision, why } => write!(f, "{release} failed, {} is quarantined: {why}", revision.short()),
            Self::GaveWay { revision: Some(revision) } => write!(f, "the deploy of {} gave way and is remembered", revision.short()),
            Self::GaveWay { revision: None } => f.write_str("the deploy gave way and is remembered"),
            Self::Switched { release, previous: Some(previous), .. } => write!(f, "`current` moved from {previous} to {release}"),
            Self::Switched { release, previous: None, .. } => write!(f, "`current` points to {release}"),
            Self::Live { release, revision } => write!(f, "{} is live on all pools, as {release}", revision.short()),
            Self::StaysFailing { release, why } => {
                write!(f, "the pools do not come up on {release}, and there is nothing to go back to: they keep trying: {why}")
            }
            Self::GoingBack { from, to, why } => write!(f, "going back from {from} to {to}: {why}"),
            Self::ChoreFailed { text } => f.write_str(text),
            Self::WentBack { to } => write!(f, "all pools are back on {to}"),
            Self::PoolsStart { release, why } => write!(f, "the pools start on {release}: {why}"),
            Self::Recovered { text } => write!(f, "after the end of the former agent: {text}"),
            Self::Held { by, why } if why.is_empty() => write!(f, "held by {by}"),
            Self::Held { by, why } => write!(f, "held by {by}: {why}"),
            Self::Unheld { by } => write!(f, "unheld by {by}"),
        }
    }
}
