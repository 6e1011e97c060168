//! What the agent has to tell, as happenings: one value each becomes a line of its log and an event of the journal.

use std::collections::BTreeSet;
use std::io::IsTerminal;

use selfstart_core::deploy::{Asker, News};
use selfstart_core::id::{PoolName, ReleaseId, SlotId, StartNo};
use selfstart_core::lease;
use selfstart_core::time::Human;
use selfstart_core::worker;

use super::deploying::chain;
use super::notifying::Outbox;
use super::output::OutputNews;
use crate::config::settings::Settings;
use crate::control::wire::Change;
use crate::http::Counts;
use crate::keeper::protocol::{HowUpgraded, Upgraded, Welcome};
use crate::release::layout::Layout;
use crate::sys::clock;
use crate::telling::journal::{self, Filter, Journal};
use crate::telling::{Happening, Kind, Level};

/// The way to the log and the journal.
#[derive(Debug)]
pub(crate) struct Telling {
    journal: Journal,
    /// Whether somebody may be watching: then the output of builds is shown too, which otherwise is only in its log.
    terminal: bool,
    /// For metrics.
    counts: Counts,
    /// For `notify`.
    outbox: Outbox,
    /// Ends that a former agent told; it may have been killed before its state said so, and then we hear of them once more.
    told_ends: BTreeSet<(String, u32, u64)>,
}

/// The field that names who asked for it: an operator, `boot` or `HUP`.
const ASKED_BY: &str = "asked_by";

/// The most that the values of a reload take in its event, in bytes.
const VALUES_MAX: usize = 8192;

/// How many of the last events are searched for ends that were told before the state was written, which takes milliseconds.
const ENDS_AMONG: usize = 1024;

impl Telling {
    /// `readers`: the group that may read events.
    pub(crate) fn open(layout: &Layout, settings: &Settings, welcome: &Welcome, readers: Option<u32>) -> Self {
        let mut journal = Journal::open(layout.events());
        journal.set_readers(readers);
        let ends = journal::tail(&layout.events(), ENDS_AMONG, &Filter::default())
            .into_iter()
            .filter(|record| record.kind == Kind::WorkerEnded.as_str());
        let told_ends = ends.filter_map(|end| Some((end.pool?, end.slot?, end.more.get("start")?.as_u64()?))).collect();
        let mut telling = Self {
            journal,
            told_ends,
            terminal: std::io::stderr().is_terminal(),
            counts: Counts::default(),
            outbox: Outbox::new(!settings.notify.is_empty()),
        };
        if welcome.for_upgrade {
            let text = format!("selfstart {} minds `{}`", env!("CARGO_PKG_VERSION"), settings.app);
            telling.tell(Happening::new(Kind::AgentStarted, text));
        } else if welcome.agent_starts > 1 {
            let how = welcome.last_agent.map_or_else(String::new, |how| format!("; the last one ended: {}", crate::keeper::describe(how)));
            telling.tell(Happening::new(Kind::AgentRestarted, format!("the agent is back{how}")));
        } else {
            telling.tell(Happening::new(Kind::AgentStarted, format!("minding `{}` in `{}`", settings.app, layout.root().display())));
        }
        telling
    }

    /// Whether events wait for a disk that takes nothing now.
    pub(crate) fn waits(&self) -> bool {
        self.journal.waits()
    }

    /// How many events wait for the disk, and how many found no room to wait.
    pub(crate) fn waiting(&self) -> (usize, u64) {
        self.journal.waiting()
    }

    /// Writes what waits, as far as the disk takes it.
    pub(crate) fn write_waiting(&mut self) {
        self.journal.write_waiting(clock::wall());
    }

    /// What is worth a message, perhaps.
    pub(super) fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    /// What happened since the agent began.
    pub(crate) fn counts(&self) -> Counts {
        self.counts.clone()
    }

    /// The source cannot be asked for its head.
    pub(crate) fn poll_failed(&mut self, text: &str, again_in: &str) {
        self.say(Kind::FetchFailed, format!("the source cannot be asked for its head, and is asked again in {again_in}: {text}"));
    }

    /// It can be asked again.
    pub(crate) fn poll_back(&mut self) {
        self.tell(Happening::new(Kind::FetchFailed, "the source can be asked for its head again").level(Level::Info));
    }

    fn tell(&mut self, happening: Happening) {
        *self.counts.events.entry(happening.kind.as_str()).or_default() += 1;
        if let (Kind::WorkerEnded, Some(pool), Some(verdict)) = (happening.kind, &happening.pool, &happening.verdict) {
            *self.counts.ends.entry((pool.clone(), verdict.clone())).or_default() += 1;
        }
        let now = clock::wall();
        self.outbox.put(now, &happening);
        self.journal.tell(now, &happening);
    }

    fn say(&mut self, kind: Kind, text: impl Into<String>) {
        self.tell(Happening::new(kind, text));
    }

    /// Something was worked around.
    pub(crate) fn warn(&mut self, text: &str) {
        self.say(Kind::Trouble, text);
    }

    /// `asker`: who wanted what was under way when it happened.
    pub(crate) fn deploy(&mut self, news: &News, asker: Option<&Asker>) {
        let asker = asker.filter(|_| news.is_of_a_deploy());
        let text = asker.map_or_else(|| news.to_string(), |asker| format!("{asker}: {news}"));
        let happening = match news {
            News::SourceFailed { .. } => Happening::new(Kind::FetchFailed, text),
            News::SourceBack { .. } => Happening::new(Kind::FetchFailed, text).level(Level::Info),
            News::UpToDate { .. } | News::PoolsStart { .. } => Happening::new(Kind::DeployFinished, text).level(Level::Info),
            News::PassedOver { .. } => Happening::new(Kind::DeployPostponed, text).verdict("quarantined"),
            News::Begun { .. } => Happening::new(Kind::DeployStarted, text),
            News::Interrupted { .. } | News::GaveWay { .. } | News::Recovered { .. } => Happening::new(Kind::DeployPostponed, text),
            News::RequestFailed { .. } => Happening::new(Kind::DeployFailed, text).verdict("operator"),
            News::Failed { .. } | News::StaysFailing { .. } => Happening::new(Kind::DeployFailed, text).verdict("deploy"),
            News::Switched { .. } => Happening::new(Kind::Switched, text),
            News::Live { .. } => Happening::new(Kind::DeployFinished, text),
            News::GoingBack { .. } => Happening::new(Kind::DeployFailed, text).verdict("deploy"),
            News::WentBack { .. } => Happening::new(Kind::RolledBack, text),
            News::Held { .. } => Happening::new(Kind::Held, text),
            News::Unheld { .. } => Happening::new(Kind::Unheld, text),
        };
        let named = match news {
            News::Held { by, .. } | News::Unheld { by } => Some(by.as_str()),
            _ => asker.map(Asker::name),
        };
        self.tell(happening.with("news", news.kind()).with(ASKED_BY, named));
    }

    pub(crate) fn worker(&mut self, slot: &SlotId, what: &worker::Happening) {
        use worker::Happening as Of;
        let text = what.to_string();
        if let Some(start) = start_of(what) {
            let name = (slot.pool.to_string(), slot.slot, start.0);
            if matches!(what, Of::Started { .. }) {
                // Start numbers begin anew when the state was lost.
                self.told_ends.remove(&name);
            } else if self.told_ends.contains(&name) {
                return tracing::debug!("{slot}: {text} (told before)");
            }
        }
        let (kind, verdict) = match what {
            Of::Started { .. } => (Kind::WorkerStarted, None),
            Of::Adopted { .. } => (Kind::WorkerAdopted, None),
            Of::Ready { .. } => (Kind::WorkerReady, None),
            // The verdict that follows says it all.
            Of::Exited { .. } => return tracing::debug!("{slot}: {text}"),
            Of::Judged(verdict) => {
                let kind = match verdict.what {
                    worker::What::Ended { .. } => Kind::WorkerEnded,
                    worker::What::StartFailed { .. } => Kind::WorkerStartFailed,
                    worker::What::StaleJob(_) => Kind::StaleJob,
                };
                (kind, Some(verdict.kind().name()))
            }
            Of::StopBegun { .. } | Of::RungSent { .. } => (Kind::WorkerStopping, None),
            Of::MemorySignal { .. } => (Kind::WorkerMemory, Some("memory")),
            Of::BackedOff { .. } => return tracing::debug!("{slot}: {text}"),
            Of::Quarantined { .. } => (Kind::WorkerQuarantined, None),
            Of::StaleJobFound { .. } => (Kind::StaleJob, Some("stale")),
            Of::Paused => (Kind::Paused, None),
            Of::Resumed => (Kind::Resumed, None),
        };
        let mut happening = Happening::new(kind, text).slot(slot);
        if let Some(verdict) = verdict {
            happening = happening.verdict(verdict);
        }
        if let Some(start) = start_of(what) {
            happening = happening.with("start", start.0);
        }
        if let Of::Started { process, .. } | Of::Adopted { process, .. } = what {
            happening = happening.with("pid", process.pid);
        }
        self.tell(happening);
    }

    pub(crate) fn rollout(&mut self, pool: &PoolName, text: &str) {
        self.tell(Happening::new(Kind::Rollout, text).pool(pool));
    }

    pub(crate) fn build_step(&mut self, release: &ReleaseId, step: u32, of: u32, run: &str) {
        self.tell(
            Happening::new(Kind::BuildStep, format!("building {release}, step {step} of {of}: {run}")).with("release", release.as_str()),
        );
    }

    /// Of a step that one node of the fleet does for all.
    pub(crate) fn once(&mut self, release: &ReleaseId, step: u32, news: &lease::News) {
        self.tell(Happening::new(Kind::BuildStep, format!("building {release}, step {step}: {news}")).with("release", release.as_str()));
    }

    pub(crate) fn step_skipped(&mut self, release: &ReleaseId, step: u32, why: &str) {
        self.tell(
            Happening::new(Kind::BuildStep, format!("building {release}, step {step} is skipped: {why}")).with("release", release.as_str()),
        );
    }

    /// A step with `unless_unchanged` runs, although a release that is here ran it on the same inputs.
    pub(crate) fn step_runs(&mut self, release: &ReleaseId, step: u32, why: &str) {
        self.tell(
            Happening::new(Kind::BuildStep, format!("building {release}, step {step} runs: {why}")).with("release", release.as_str()),
        );
    }

    /// A step with `unless_unchanged` will run at the next deploy, too.
    pub(crate) fn step_not_skipped(&mut self, release: &ReleaseId, step: u32, why: &str) {
        self.warn(&format!("step {step} of {release} will not be skipped next time: {why}"));
    }

    pub(crate) fn build_line(&mut self, line: &str) {
        if self.terminal {
            tracing::info!("build: {line}");
        }
    }

    pub(crate) fn staged(&mut self, release: &ReleaseId, log: &[String]) {
        for line in log {
            tracing::info!("{release}: {line}");
        }
    }

    pub(crate) fn runtime(&mut self, release: &ReleaseId, captured: &selfstart_core::runtime::Captured) {
        for tool in &captured.tools {
            self.tell(Happening::new(Kind::Runtime, format!("{release} runs {tool}")).with("release", release.as_str()));
        }
        for note in &captured.notes {
            self.warn(&format!("the runtime of {release}: {note}"));
        }
    }

    pub(crate) fn release_removed(&mut self, id: &ReleaseId, why: &str) {
        self.tell(Happening::new(Kind::ReleaseRemoved, format!("{id} was removed: {why}")).with("release", id.as_str()));
    }

    pub(crate) fn mirror_healed(&mut self, text: &str) {
        self.say(Kind::MirrorHealed, text);
    }

    pub(crate) fn output(&mut self, news: &OutputNews) {
        let (kind, text) = match news {
            OutputNews::Waits { error } => (Kind::OutputWaits, format!("output waits, and nothing of it is lost: {}", chain(error))),
            OutputNews::GoesOn { file, after } => {
                (Kind::OutputGoesOn, format!("`{}` is written again after {}", file.display(), Human::rough(*after)))
            }
            OutputNews::Recreated { file } => (Kind::OutputFile, format!("`{}` had been removed, and was made anew", file.display())),
            OutputNews::Rotated { file } => return tracing::debug!("`{}` was rotated", file.display()),
            OutputNews::NotRotated { error } => (Kind::OutputFile, format!("a log file cannot be rotated and grows on: {}", chain(error))),
            OutputNews::Unreadable { key, stream, error } => {
                (Kind::OutputFile, format!("stream {stream:?} of {key} cannot be read: {error}"))
            }
        };
        self.say(kind, text);
    }

    pub(crate) fn scaled(&mut self, pool: &PoolName, count: u32) {
        self.tell(
            Happening::new(Kind::Scaled, format!("{count} {} wanted", if count == 1 { "worker is" } else { "workers are" })).pool(pool),
        );
    }

    /// `by`: the operator who asked for it; `None`: HUP.
    pub(crate) fn config_reloaded(&mut self, changes: &[Change], by: Option<&str>) {
        let by = by.unwrap_or("HUP");
        let parts: Vec<String> = changes.iter().map(|change| format!("{}: {}", change.named(), change.effect)).collect();
        let values: Vec<_> = changes.iter().flat_map(|change| &change.values).collect();
        let happening = Happening::new(Kind::ConfigReloaded, format!("asked by {by}: {}", parts.join("; "))).with(ASKED_BY, by);
        // The keys are in the text; a configuration that is new from top to bottom needs no second copy here.
        let short = |values: &serde_json::Value| values.to_string().len() <= VALUES_MAX;
        let values = serde_json::to_value(values).ok().filter(short);
        self.tell(happening.with("values", values));
    }

    pub(crate) fn config_refused(&mut self, text: &str) {
        self.say(Kind::ConfigRefused, text);
    }

    /// Lets another group read events.
    pub(crate) fn set_readers(&mut self, group: Option<u32>) {
        self.journal.set_readers(group);
    }

    /// The keeper and the agent were renewed, or were not.
    pub(crate) fn upgraded(&mut self, upgraded: &Upgraded) {
        let happening = match upgraded.how {
            HowUpgraded::Done => Happening::new(Kind::Upgraded, upgraded.text.clone()),
            HowUpgraded::Refused => Happening::new(Kind::UpgradeFailed, upgraded.text.clone()).verdict("refused"),
            HowUpgraded::WentBack => Happening::new(Kind::UpgradeFailed, upgraded.text.clone()).verdict("went_back"),
        };
        let happening = happening.with("number", upgraded.number).with("from", upgraded.from.clone());
        self.tell(happening.with("to", upgraded.to.clone()).with(ASKED_BY, upgraded.by.clone()));
    }

    pub(crate) fn reopened(&mut self) {
        self.journal.reopen();
        tracing::info!("logs are opened anew");
    }

    pub(crate) fn leaving(&mut self) {
        self.say(Kind::DrainStarted, "a signal: everything is stopped, then selfstart ends");
    }

    pub(crate) fn draining(&mut self, by: &str) {
        self.tell(Happening::new(Kind::DrainStarted, format!("asked by {by}: everything is stopped, the agent stays")).with(ASKED_BY, by));
    }

    pub(crate) fn drained(&mut self) {
        self.say(Kind::Drained, "everything is stopped; `selfstart start` starts it again");
    }

    pub(crate) fn left(&mut self) {
        self.say(Kind::AgentStopped, "everything is stopped; selfstart ends");
    }
}

/// Which start of its slot a happening is about.
fn start_of(what: &worker::Happening) -> Option<StartNo> {
    use worker::Happening as Of;
    match what {
        Of::Started { start, .. }
        | Of::Adopted { start, .. }
        | Of::Ready { start, .. }
        | Of::Exited { start, .. }
        | Of::StopBegun { start, .. }
        | Of::RungSent { start, .. }
        | Of::MemorySignal { start, .. }
        | Of::StaleJobFound { start, .. } => Some(*start),
        Of::Judged(verdict) => Some(verdict.start),
        Of::BackedOff { .. } | Of::Quarantined { .. } | Of::Paused | Of::Resumed => None,
    }
}
