//! The status snapshot, made of what the machines say when somebody asks.

use selfstart_core::date::Timestamp;
use selfstart_core::deploy::{self, PhaseName};
use selfstart_core::id::SlotId;
use selfstart_core::pool::Pool;
use selfstart_core::status::{
    AgentState, AgentStatus, DeployPhase, DeployStatus, HoldStatus, JobStatus, NodeStatus, PendingStatus, PoolStatus, Progress,
    QuarantinedRevision, Reached, SCHEMA, SlotState, SlotStatus, Status, Step, UpgradeStatus, VerdictStatus,
};
use selfstart_core::time::{Human, MonoTime, WallTime};
use selfstart_core::units::Bytes;
use selfstart_core::worker;

use super::minding::PoolRun;
use super::run::{Agent, Ending};
use crate::config::settings::{Elsewhere, What};
use crate::keeper::protocol::{HowUpgraded, Upgraded};
use crate::sys::clock;

impl Agent {
    /// Returns everything that an operator can see, as it is now.
    pub(crate) fn status(&self) -> Status {
        Status {
            schema: SCHEMA,
            app: self.settings.app.clone(),
            node: self.node_status(),
            agent: AgentStatus {
                pid: rustix::process::getpid().as_raw_nonzero().get(),
                keeper_pid: self.welcome.keeper_pid,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                started_at: Timestamp(self.started_at),
                program: Some(self.welcome.program.clone()).filter(|program| !program.is_empty()),
                upgrade: self.upgraded.as_ref().map(upgrade_status),
                state: match self.ending {
                    Ending::No => AgentState::Running,
                    Ending::Draining | Ending::Leaving => AgentState::Draining,
                    Ending::Drained => AgentState::Drained,
                },
            },
            deploy: self.deploy_status(),
            pools: self
                .settings
                .pools
                .iter()
                .filter_map(|pool| self.pools.get(&pool.policy.name))
                .chain(self.leaving())
                .map(pool_status)
                .collect(),
            notes: self.notes_now(),
        }
    }

    fn node_status(&self) -> NodeStatus {
        let pool = |elsewhere: &Elsewhere| if let What::Pool(name) = &elsewhere.what { Some(name.to_string()) } else { None };
        NodeStatus {
            id: machine_id(),
            roles: self.settings.node.roles.iter().cloned().collect(),
            pools_elsewhere: self.settings.elsewhere.iter().filter_map(pool).collect(),
        }
    }

    /// What a person should know: what the configuration led to, and what waits for the disk as long as it does.
    fn notes_now(&self) -> Vec<String> {
        let mut notes = self.notes.clone();
        if let Some(why) = &self.state_trouble {
            notes.push(format!("the state is not saved, and what was changed since is forgotten if the agent ends: {why}"));
        }
        if let Some(why) = self.deploying.unsaved() {
            notes.push(format!("the record of deploys is not saved, and what was changed since is forgotten if the agent ends: {why}"));
        }
        if let Some(why) = self.triggering.unsaved() {
            notes.push(format!("what triggers a deploy is not saved, and what came since is forgotten if the agent ends: {why}"));
        }
        notes.extend(self.triggering.http_trouble());
        let files = self.outputs.waiting_files();
        if files > 0 {
            notes.push(format!(
                "the output for {files} file{} waits for the disk, and nothing of it is lost",
                if files == 1 { "" } else { "s" }
            ));
        }
        let (waiting, lost) = self.telling.waiting();
        if waiting > 0 {
            notes.push(format!("{waiting} event{} the disk", if waiting == 1 { " waits for" } else { "s wait for" }));
        }
        if lost > 0 {
            notes.push(format!("{lost} event{} lost, as the disk is full", if lost == 1 { " is" } else { "s are" }));
        }
        notes
    }

    fn leaving(&self) -> impl Iterator<Item = &PoolRun> {
        self.pools.values().filter(|run| run.leaving)
    }

    /// Returns where the deploy is.
    pub(crate) fn deploy_status(&self) -> DeployStatus {
        let machine = self.deploying.machine();
        let reached = |stamp: &deploy::Stamp| Reached { revision: stamp.revision.clone(), release: None, at: Timestamp(stamp.at) };
        let entry = |entry: &deploy::Entry, at: Option<WallTime>| Reached {
            revision: entry.revision.clone(),
            release: Some(entry.id.clone()),
            at: Timestamp(at.unwrap_or(entry.staged_at)),
        };
        DeployStatus {
            phase: match machine.phase_name() {
                PhaseName::RollingOut if self.pools.values().any(|run| run.machine().canary().is_some()) => DeployPhase::Confirming,
                name => phase(name),
            },
            held: machine.held().is_some(),
            hold: machine.held().map(|hold| HoldStatus { by: hold.by.clone(), why: hold.why.clone(), at: Timestamp(hold.at) }),
            wanted: machine.wanted().map(reached),
            fetched: machine.fetched().map(reached),
            built: machine.built().map(|it| entry(it, it.built_at)),
            live: machine.live().map(|it| entry(it, it.live_at)),
            quarantined: machine
                .quarantined()
                .iter()
                .map(|it| QuarantinedRevision { revision: it.revision.clone(), why: it.why.clone(), at: Some(Timestamp(it.at)) })
                .collect(),
            last_error: machine.last_error().map(|said| said.text.clone()),
            last_error_at: machine.last_error().map(|said| Timestamp(said.at)),
            progress: self.deploy_progress(),
            pending: machine.pending().map(|trigger| PendingStatus {
                reference: match &trigger.wanted {
                    deploy::Wanted::Configured => None,
                    deploy::Wanted::Ref(text) => Some(text.clone()),
                },
                force: trigger.force == deploy::Force::Yes,
            }),
        }
    }

    fn deploy_progress(&self) -> Option<Progress> {
        let machine = self.deploying.machine();
        let counted = self.deploying.progress;
        let some = |amount: u64| (amount > 0).then_some(amount);
        let mut progress = Progress::default();
        if let Some((at, failures)) = machine.next_try() {
            let wait = Human::rough(std::time::Duration::from_secs(clock::now().until(at).as_secs() + 1));
            progress.detail = Some(format!("trying again in {wait} ({})", failed_times(failures)));
            return Some(progress);
        }
        match machine.phase_name() {
            PhaseName::Idle => return None,
            _ if !self.deploying.booted => progress.detail = Some("first, what a former agent left running is ended".into()),
            PhaseName::Fetching => progress.detail = Some("receiving objects".into()),
            PhaseName::Staging => progress.detail = Some("writing files".into()),
            PhaseName::Building => {
                let step = machine.build_step();
                let text = step.and_then(|(number, _)| self.settings.build.steps.get(usize::try_from(number).ok()?.checked_sub(1)?));
                progress.step = step.map(|(number, of)| Step { number, of, text: text.map_or_else(String::new, |step| step.run.clone()) });
                progress.detail = if step.is_some() { self.deploying.last_line.clone() } else { Some("syncing to disk".into()) };
            }
            PhaseName::Switching => progress.detail = Some("switching `current`".into()),
            PhaseName::RollingOut | PhaseName::RollingBack => progress.step = self.rollout_step(),
        }
        if matches!(machine.phase_name(), PhaseName::Fetching | PhaseName::Staging) {
            (progress.objects, progress.total_objects) = (some(counted.objects), some(counted.total_objects));
            progress.bytes = some(counted.bytes).map(Bytes);
        }
        Some(progress)
    }

    /// How many slots run the release that is rolled out.
    fn rollout_step(&self) -> Option<Step> {
        let release = &self.rolling.as_ref()?.release;
        let (mut done, mut of) = (0, 0);
        let mut at = None;
        for (name, run) in &self.pools {
            for (number, slot) in run.machine().slots() {
                of += 1;
                if slot.target().is_some_and(|target| target.release == *release) && slot.shown() == worker::SlotState::Ready {
                    done += 1;
                } else if at.is_none() && slot.shown() != worker::SlotState::Ready {
                    at = Some(SlotId { pool: name.clone(), slot: number });
                }
            }
        }
        Some(Step { number: done, of, text: at.map_or_else(|| "pools".to_owned(), |slot| slot.to_string()) })
    }
}

fn pool_status(run: &PoolRun) -> PoolStatus {
    let machine: &Pool = run.machine();
    let (now, wall) = (clock::now(), clock::wall());
    PoolStatus {
        name: run.settings.policy.name.clone(),
        group: run.settings.group.clone(),
        wanted: machine.count(),
        ready: machine.ready(),
        scaled: machine.scaled_to(),
        slots: machine.slots().map(|(number, slot)| slot_status(run, number, slot, now, wall)).collect(),
    }
}

fn slot_status(run: &PoolRun, number: u32, slot: &worker::Slot, now: MonoTime, wall: WallTime) -> SlotStatus {
    let seen = run.seen.get(&number);
    let process = slot.process();
    let target = slot.target().filter(|_| process.is_some());
    SlotStatus {
        slot: number,
        state: state(slot.shown()),
        pid: process.map(|process| process.pid),
        generation: target.map(|target| target.generation),
        release: target.map(|target| target.release.clone()),
        revision: target.map(|target| target.revision.clone()),
        since: Timestamp(seen.map_or(wall, |seen| seen.since)),
        started_at: seen.and_then(|seen| seen.started_at).map(Timestamp),
        next_start_at: slot.waits_until().map(|at| Timestamp(shift(wall, now, at))),
        memory_bytes: seen.and_then(|seen| seen.memory),
        job: seen.and_then(|seen| seen.job.as_deref()).map(|job| JobStatus {
            id: None,
            class: job.class.clone(),
            queue: Some(job.queue.clone()),
            started_at: Some(Timestamp(job.started_at)),
            age_seconds: Some(wall.since(job.started_at).as_secs_f64()),
            child_pid: Some(job.child.pid),
        }),
        restarts: u64::from(slot.restarts()),
        last_verdict: slot.last_verdict().map(|verdict| VerdictStatus {
            kind: verdict.kind().name().to_owned(),
            at: Timestamp(seen.and_then(|seen| seen.verdict_at).unwrap_or_else(|| shift(wall, now, verdict.at))),
            text: verdict.to_string(),
        }),
    }
}

fn failed_times(failures: u32) -> String {
    match failures {
        // It waits for another reason than its own failure.
        0 => "not tried yet".to_owned(),
        1 => "failed once".to_owned(),
        n => format!("failed {n} times"),
    }
}

/// The date of a moment, given both clocks now.
fn shift(wall: WallTime, now: MonoTime, at: MonoTime) -> WallTime {
    let millis = |span: std::time::Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
    WallTime::from_unix_millis(wall.unix_millis().saturating_add(millis(now.until(at))).saturating_sub(millis(now.since(at))))
}

fn state(state: worker::SlotState) -> SlotState {
    match state {
        worker::SlotState::Stopped => SlotState::Stopped,
        worker::SlotState::Starting => SlotState::Starting,
        worker::SlotState::Ready => SlotState::Ready,
        worker::SlotState::Quiet => SlotState::Quiet,
        worker::SlotState::Stopping => SlotState::Stopping,
        worker::SlotState::Backoff => SlotState::Backoff,
        worker::SlotState::Quarantined => SlotState::Quarantined,
        worker::SlotState::Paused => SlotState::Paused,
    }
}

fn phase(phase: PhaseName) -> DeployPhase {
    match phase {
        PhaseName::Idle => DeployPhase::Idle,
        PhaseName::Fetching => DeployPhase::Fetching,
        PhaseName::Staging => DeployPhase::Staging,
        PhaseName::Building => DeployPhase::Building,
        PhaseName::Switching => DeployPhase::Switching,
        PhaseName::RollingOut => DeployPhase::RollingOut,
        PhaseName::RollingBack => DeployPhase::RollingBack,
    }
}

/// Names this machine (`machine-id(5)`); the host's name where there is none.
pub(super) fn machine_id() -> String {
    let id = fs_err::read_to_string("/etc/machine-id").map(|id| id.trim().to_owned()).unwrap_or_default();
    if id.is_empty() { rustix::system::uname().nodename().to_string_lossy().into_owned() } else { id }
}

fn upgrade_status(upgraded: &Upgraded) -> UpgradeStatus {
    UpgradeStatus {
        number: upgraded.number,
        from: upgraded.from.clone(),
        to: upgraded.to.clone(),
        done: upgraded.how == HowUpgraded::Done,
        text: upgraded.text.clone(),
    }
}
