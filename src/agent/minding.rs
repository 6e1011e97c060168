//! Carries out what the machines of the pools decide, and brings them what the world shows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use selfstart_core::backoff::Jitter;
use selfstart_core::deploy::Event as DeployEvent;
use selfstart_core::id::{Generation, PoolName, ProcessId, ReleaseId, Revision, SlotId, StartNo, WorkerKey};
use selfstart_core::policy::{PoolPolicy, ReadyHow, StopLadder};
use selfstart_core::pool::{self, Effect, Event, Pool, SavedPool};
use selfstart_core::time::{Human, MonoTime, WallTime};
use selfstart_core::units::Bytes;
use selfstart_core::worker::{self, ExitHow, SlotState, Target};
use serde::{Deserialize, Serialize};
use tokio::task::{AbortHandle, JoinSet};

use super::boot::Child;
use super::deploying::chain;
use super::errands::What;
use super::launch::{self, LaunchError, Which};
use super::output::{Finish, Now, Sink, Stream, Tap};
use super::run::{Agent, Ending, Worked};
use super::store;
use crate::config::placeholders::expand;
use crate::config::settings::{Command, Limits, PoolLog, PoolSettings, QueueKind, QueueSettings};
use crate::keeper::protocol::{Ask, Key, Start};
use crate::sys::process::Ended;
use crate::sys::{clock, process, signals};

pub(crate) use super::sampling::Sampled;

/// Between two tries of a readiness check that fails. What answers cannot notify, so it is asked.
const PROBE_EVERY: Duration = Duration::from_millis(100);

/// The longest that one try may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// More starts than one slot can see between two writes of the state, each of which takes milliseconds.
const STARTS_UNSAVED: u64 = 100;

/// How long a signal waits for the state that says why it is sent: many times what a disk needs, and no ladder is late for it.
const HELD_FOR: Duration = Duration::from_millis(100);

/// How long a change waits for those that come with it: a worker's end and its next start are one write, and the start goes first.
const SAVE_AFTER: Duration = Duration::from_millis(5);

/// The rest between two writes of the state: at least this, nine times as long as the last one took (a tenth of one core and of the
/// disk, however many workers end at once), at most that.
const SAVE_REST: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(250));

/// One pool, and what the shell knows of its slots beside the machine.
#[derive(Debug)]
pub(crate) struct PoolRun {
    machine: Option<Pool>,
    pub(crate) settings: Arc<PoolSettings>,
    /// Whether the configuration has it no more: it goes when its last worker has.
    pub(crate) leaving: bool,
    /// Whether it was told to drain.
    pub(crate) draining: bool,
    /// What it waits to roll out, until the pools that it comes after are ready.
    pub(crate) waiting: Option<(ReleaseId, Revision)>,
    pub(crate) seen: BTreeMap<u32, Seen>,
    pub(crate) next_sample: Option<MonoTime>,
    pub(crate) next_jobs: Option<MonoTime>,
    probes: BTreeMap<u32, (StartNo, AbortHandle)>,
}

/// What the shell knows of a slot.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// The state that was last shown, and since when.
    pub(crate) state: SlotState,
    pub(crate) since: WallTime,
    /// When its process was started.
    pub(crate) started_at: Option<WallTime>,
    /// Of its whole tree; `None`: not measured, or not readable.
    pub(crate) memory: Option<Bytes>,
    /// When its last verdict came.
    pub(crate) verdict_at: Option<WallTime>,
    /// The job in flight.
    pub(crate) job: Option<Box<super::sampling::JobShown>>,
}

/// What of the pools outlives the agent.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct PoolsSaved {
    /// Of which boot: processes and times of another one mean nothing.
    pub(crate) boot: String,
    /// Of which keeper.
    pub(crate) keeper: Option<ProcessId>,
    /// Whether `drain` was asked for.
    pub(crate) drained: bool,
    pub(crate) pools: BTreeMap<PoolName, SavedPool>,
    /// When the last verdict of each slot came.
    pub(crate) verdicts: BTreeMap<String, WallTime>,
    /// The main process of each worker, by its key.
    pub(crate) processes: BTreeMap<Key, ProcessId>,
}

impl PoolsSaved {
    /// Returns the workers that ran when this was saved; none when that was before the last boot.
    pub(crate) fn processes(&self) -> Vec<(Key, i32, u64)> {
        if !is_same_boot(&self.boot, &boot_id()) {
            return Vec::new();
        }
        self.processes.iter().map(|(key, process)| (key.clone(), process.pid, process.start_ticks)).collect()
    }
}

/// A release on its way into the pools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rolling {
    pub(crate) release: ReleaseId,
    pub(crate) waiting: BTreeSet<PoolName>,
}

/// Whether a key is a worker's.
pub(crate) fn is_worker(key: &str) -> bool {
    !key.starts_with("helper:")
}

impl PoolRun {
    pub(crate) fn new(settings: PoolSettings, machine: Pool) -> Self {
        Self {
            machine: Some(machine),
            settings: Arc::new(settings),
            leaving: false,
            draining: false,
            waiting: None,
            seen: BTreeMap::new(),
            next_sample: None,
            next_jobs: None,
            probes: BTreeMap::new(),
        }
    }

    /// The machine as it is now.
    pub(crate) fn machine(&self) -> &Pool {
        self.machine.as_ref().expect("the machine is only away inside `step`")
    }

    /// The next moment at which this pool needs something.
    pub(crate) fn next_deadline(&self) -> Option<MonoTime> {
        [pool::next_deadline(self.machine()), self.next_sample, self.next_jobs].into_iter().flatten().min()
    }
}

impl Agent {
    /// Gives a pool one event, and carries out what it wants. `gone`: whether nothing is left of the tree of the worker that has exited.
    fn pool_event_with(&mut self, name: &PoolName, event: Event, tree_gone: Option<StartNo>) {
        let Some(run) = self.pools.get_mut(name) else { return };
        let Some(machine) = run.machine.take() else { return };
        let touched = match &event {
            Event::Slot { slot, .. } => Some(*slot),
            _ => None,
        };
        let (machine, effects) = pool::step(machine, event, clock::now(), &run.settings.policy);
        run.machine = Some(machine);
        self.dirty = self.dirty || !effects.is_empty() || touched.is_none();
        let mut slots: BTreeSet<u32> = touched.into_iter().collect();
        // In their order: an end is told before the next start is asked for. An agent that finds a later start takes the end of the one
        // before for told.
        for effect in effects {
            if let Effect::Slot { slot, .. } = &effect {
                slots.insert(*slot);
            }
            self.pool_effect(name, effect, tree_gone);
        }
        self.see(name, touched.is_some().then_some(slots));
    }

    /// Gives a pool one event.
    pub(crate) fn pool_event(&mut self, name: &PoolName, event: Event) {
        self.pool_event_with(name, event, None);
    }

    fn slot_event(&mut self, id: &SlotId, event: worker::Event) {
        self.pool_event(&id.pool, Event::Slot { slot: id.slot, event });
    }

    /// Notes which slots show another state than before; `None`: looks at all.
    fn see(&mut self, name: &PoolName, slots: Option<BTreeSet<u32>>) {
        let Some(run) = self.pools.get_mut(name) else { return };
        let Some(machine) = &run.machine else { return };
        let now = clock::wall();
        let numbers: Vec<u32> = match slots {
            Some(slots) => slots.into_iter().collect(),
            None => {
                let there: BTreeSet<u32> = machine.slots().map(|(number, _)| number).collect();
                run.seen.retain(|number, _| there.contains(number));
                there.into_iter().collect()
            }
        };
        for number in numbers {
            let Some(slot) = machine.slot(number) else {
                run.seen.remove(&number);
                continue;
            };
            let state = slot.shown();
            let seen = run.seen.entry(number).or_insert_with(|| Seen::new(state, now));
            if seen.state != state {
                seen.state = state;
                seen.since = now;
            }
            if slot.process().is_none() {
                (seen.started_at, seen.memory, seen.job) = (None, None, None);
            }
        }
        let jobs = run.settings.policy.worker.stale.as_ref();
        let wanted = !machine.is_empty();
        let mono = clock::now();
        run.next_sample = wanted.then(|| super::sampling::next_sample(run.next_sample, &run.settings.policy.worker, mono));
        run.next_jobs = jobs.filter(|_| wanted).map(|policy| run.next_jobs.unwrap_or(mono + super::sampling::first_look(policy)));
    }

    fn pool_effect(&mut self, name: &PoolName, effect: Effect, tree_gone: Option<StartNo>) {
        match effect {
            Effect::Slot { slot, effect } => {
                let id = SlotId { pool: name.clone(), slot };
                match effect {
                    worker::Effect::ClearTree { start } if tree_gone == Some(start) => self.cleared(&id, start, 0),
                    effect => self.worker_effect(&id, effect),
                }
            }
            Effect::RolloutBegun { target } => {
                self.telling.rollout(name, &format!("rolling out {} as generation {}", target.release, target.generation))
            }
            Effect::RolledOut { target, ready, failing } => {
                self.telling.rollout(name, &pool::rolled_out_text(&target, ready, failing));
                self.pool_rolled_out(name, &target.release);
            }
            Effect::RolloutFailed { target, slot, verdict } => {
                let why = verdict.map_or_else(|| "its worker does not become ready".to_owned(), |verdict| verdict.to_string());
                let text = format!("{name}/{slot}: {why}");
                self.telling.rollout(name, &format!("the rollout of {} failed: {text}", target.release));
                if self.rolling.as_ref().is_some_and(|rolling| rolling.release == target.release) {
                    self.rolling = None;
                    // Those that waited for their turn must not get it now.
                    for run in self.pools.values_mut() {
                        run.waiting = None;
                    }
                    self.deploy_event(DeployEvent::RolloutFailed { release: target.release.clone(), text });
                }
            }
            Effect::RolloutDropped { target, why } => {
                self.telling.rollout(name, &format!("the rollout of {} is dropped: {why}", target.release));
                // Of a drained pool nobody knows whether the release is good: the deploy machine is told when the drain ends.
            }
        }
    }

    fn worker_effect(&mut self, id: &SlotId, effect: worker::Effect) {
        let key = |start: StartNo| WorkerKey { slot: id.clone(), start }.to_string();
        match effect {
            worker::Effect::Spawn { start, target } => match self.launch(id, start, &target) {
                Ok(launched) => {
                    // So that an agent that finds it already ended, before the state was written, can still say what it ran.
                    // It is plain text and numbers, which always have a form; without a note its environment says the same.
                    let note = serde_json::to_string(target.as_ref()).unwrap_or_default();
                    let settings = self
                        .pools
                        .get(&id.pool)
                        .map_or_else(Vec::new, |run| launch::group_settings(&run.settings, &self.groups.controllers));
                    self.ask(Ask::SpawnIn { start: Box::new(Start { note, ..launched }), settings });
                }
                Err(error) => self.slot_event(id, worker::Event::SpawnFailed { start, error: error.into(), jitter: jitter() }),
            },
            // Written down before it is done: an agent that is killed in between must not take the end for the worker's own.
            worker::Effect::Signal { start, signal } => {
                self.ask_when_saved(Ask::Signal { key: key(start), number: signals::number(signal) })
            }
            worker::Effect::KillTree { start } => self.ask_when_saved(Ask::KillTree { key: key(start) }),
            worker::Effect::ClearTree { start } => self.ask(Ask::ClearTree { key: key(start) }),
            worker::Effect::WatchReady { start } => self.watch_ready(id, start),
            worker::Effect::KillJob { child, title, .. } => {
                self.ask(Ask::SignalJob { pid: child.pid, start_ticks: child.start_ticks, title: title.to_vec(), number: libc::SIGKILL });
            }
            worker::Effect::Tell(happening) => {
                if matches!(happening, worker::Happening::Judged(_)) {
                    if let Some(seen) = self.pools.get_mut(&id.pool).and_then(|run| run.seen.get_mut(&id.slot)) {
                        seen.verdict_at = Some(clock::wall());
                    }
                }
                self.telling.worker(id, &happening);
                if let worker::Happening::Quarantined { .. } = happening {
                    self.slot_is_unwell(id);
                }
            }
        }
    }

    /// A slot crashes again and again: that counts against the release that it runs, if it was well before.
    fn slot_is_unwell(&mut self, id: &SlotId) {
        let Some(run) = self.pools.get(&id.pool).filter(|run| run.machine().has_vote(id.slot)) else { return };
        let Some(slot) = run.machine().slot(id.slot) else { return };
        let Some(release) = slot.next_target().map(|target| target.release.clone()) else { return };
        let why = slot.last_verdict().map_or_else(String::new, |verdict| format!(": {verdict}"));
        self.deploy_event(DeployEvent::Unwell { release, text: format!("{id} is quarantined{why}") });
    }

    fn launch(&self, id: &SlotId, start: StartNo, target: &Target) -> Result<Start, String> {
        let run = self.pools.get(&id.pool).ok_or("the pool is gone")?;
        let key = WorkerKey { slot: id.clone(), start }.to_string();
        let which = Which { slot: id.clone(), start, generation: target.generation };
        self.from(&target.release, &target.revision)
            .and_then(|from| launch::worker(&self.settings, &self.known, &run.settings, &which, &from, key, &crate::config::process_env))
            .map_err(|error| chain(&error))
    }

    /// What is started in a release is started from.
    pub(crate) fn from(&self, release: &ReleaseId, revision: &Revision) -> Result<launch::From, LaunchError> {
        let runtime = self.deploying.runtimes.of(&self.layout, release)?;
        Ok(launch::From { release: release.clone(), revision: revision.clone(), path: self.layout.release(release), runtime })
    }

    /// A started worker: its output goes to its log, its slot hears of it.
    pub(crate) fn worker_started(&mut self, key: &str, process: ProcessId, streams: Vec<(u8, OwnedFd)>) {
        let Ok(worker) = key.parse::<WorkerKey>() else { return };
        self.listen_to(key, &worker.slot, streams);
        let slot = self.pools.get(&worker.slot.pool).and_then(|run| run.machine().slot(worker.slot.slot));
        if slot.is_some_and(|slot| slot.start() == Some(worker.start) && slot.process() == Some(process)) {
            // Known already: it was told again as more of its output could be opened.
            return;
        }
        if let Some(run) = self.pools.get_mut(&worker.slot.pool) {
            let now = clock::wall();
            run.seen.entry(worker.slot.slot).or_insert_with(|| Seen::new(SlotState::Starting, now)).started_at = Some(now);
        }
        self.slot_event(&worker.slot, worker::Event::Spawned { start: worker.start, process });
    }

    fn listen_to(&mut self, key: &str, slot: &SlotId, streams: Vec<(u8, OwnedFd)>) {
        let Some(run) = self.pools.get(&slot.pool) else { return };
        let sink = self.sink(&run.settings, slot);
        for (number, fd) in streams {
            let stream = if number == 1 { Stream::Out } else { Stream::Err };
            if let Err(error) = self.outputs.add(key, stream, fd, sink.clone()) {
                self.telling.warn(&format!("the output of {slot} cannot be kept: {}", chain(&error)));
            }
        }
    }

    /// Where the output of a slot goes.
    pub(crate) fn sink(&self, settings: &PoolSettings, slot: &SlotId) -> Sink {
        let log = &settings.log;
        let (file, label) = match &log.file {
            Some(file) => (self.settings.root.join(file), Some(slot.to_string())),
            None => (self.layout.log().join(format!("{}.{}.log", slot.pool, slot.slot)), None),
        };
        Sink { file, label, max_size: log.max_size, max_age: log.max_age, keep: log.keep, tap: Tap::default() }
    }

    pub(crate) fn worker_not_started(&mut self, key: &str, why: String) {
        let Ok(worker) = key.parse::<WorkerKey>() else { return };
        // "No such file" alone helps nobody. As it is written, so that no value of a placeholder is shown.
        let program = self.pools.get(&worker.slot.pool).map(|run| match &run.settings.command {
            Command::Words(words) => words.first().cloned().unwrap_or_default(),
            Command::Shell(_) => "sh".to_owned(),
        });
        let error = program.map_or_else(|| why.clone(), |program| format!("`{program}`: {why}"));
        self.slot_event(&worker.slot, worker::Event::SpawnFailed { start: worker.start, error: error.into(), jitter: jitter() });
    }

    pub(crate) fn worker_exited(&mut self, key: &str, how: Ended, tree_gone: bool) {
        let Ok(worker) = key.parse::<WorkerKey>() else { return };
        let starved = self.out_of_memory.remove(key);
        let how = match how {
            // The whole tree is ended, or its main process would end it later by failing: only the first has a limit for its cause.
            // Of an adopted one nobody else knows how it ended.
            Ended::Signal { number: libc::SIGKILL, .. } | Ended::Unknown if starved.is_some() => {
                ExitHow::OutOfMemory { peak: starved.flatten() }
            }
            Ended::Code(code) => ExitHow::Code(code),
            Ended::Signal { number, core } => ExitHow::Signal { number, core },
            Ended::Unknown => ExitHow::Unknown,
        };
        if let Some(run) = self.pools.get_mut(&worker.slot.pool) {
            if run.probes.get(&worker.slot.slot).is_some_and(|(start, _)| *start == worker.start) {
                if let Some((_, probe)) = run.probes.remove(&worker.slot.slot) {
                    probe.abort();
                }
            }
        }
        let event = worker::Event::Exited { start: worker.start, how, jitter: jitter() };
        let known = self.pools.get(&worker.slot.pool).and_then(|run| run.machine().slot(worker.slot.slot)).and_then(worker::Slot::start);
        if known == Some(worker.start) {
            let gone = tree_gone.then_some(worker.start);
            self.pool_event_with(&worker.slot.pool, Event::Slot { slot: worker.slot.slot, event }, gone);
        } else if tree_gone {
            // Nobody waits for it any more.
            self.over(key);
        } else {
            self.ask(Ask::ClearTree { key: key.to_owned() });
        }
    }

    pub(crate) fn worker_tree_gone(&mut self, key: &str, killed: u32) {
        let Ok(worker) = key.parse::<WorkerKey>() else { return };
        self.cleared(&worker.slot, worker.start, killed);
    }

    /// Nothing is left of a worker: its slot is free, and the last of its output is read, before any of its successor's, which has only
    /// been asked for.
    fn cleared(&mut self, slot: &SlotId, start: StartNo, killed: u32) {
        self.slot_event(slot, worker::Event::TreeGone { start, killed });
        self.over(&WorkerKey { slot: slot.clone(), start }.to_string());
    }

    /// Reads the last of a worker's output; the keeper may forget it once its end is on disk.
    fn over(&mut self, key: &str) {
        match self.outputs.finish(key, Now { mono: clock::now(), wall: clock::wall() }) {
            Ok((finish, progress)) => {
                self.output_progress(progress);
                // Otherwise its log cannot be written now: the keeper keeps its pipes, and `output_progress` lets it go later.
                if matches!(finish, Finish::Done) {
                    self.forget_after_save.push(key.to_owned());
                    self.dirty = true;
                }
            }
            Err(error) => self.telling.warn(&chain(&error)),
        }
    }

    /// Begins to ask a started worker whether it is ready.
    fn watch_ready(&mut self, id: &SlotId, start: StartNo) {
        let Some(run) = self.pools.get(&id.pool) else { return };
        let settings = run.settings.clone();
        let Some(target) = run.machine().slot(id.slot).and_then(|slot| slot.target().cloned()) else { return };
        let which = Which { slot: id.clone(), start, generation: target.generation };
        let from = match self.from(&target.release, &target.revision) {
            Ok(from) => from,
            Err(error) => return self.telling.warn(&format!("{id} cannot be asked whether it is ready: {}", chain(&error))),
        };
        let values = launch::worker_values(&self.settings, &settings, &which, &from);
        match &settings.policy.worker.ready.how {
            ReadyHow::After(_) => {}
            ReadyHow::Tcp(address) => {
                let address = expand(address, &values);
                let probe = self.works.spawn(ask_until_news(id.clone(), start, address, None));
                self.remember_probe(id, start, probe);
            }
            ReadyHow::Command(words) => {
                let words = words.iter().map(|word| expand(word, &values)).collect();
                let launched = match self.launch(id, start, &target) {
                    Ok(launched) => launched,
                    Err(error) => return self.telling.warn(&format!("{id} cannot be asked whether it is ready: {error}")),
                };
                let key = self.errands.begin("ready", What::Probe { slot: id.clone(), start }, Some(clock::now() + PROBE_TIMEOUT));
                self.ask(Ask::Spawn(Box::new(launch::probe(&launched, words, key))));
            }
        }
    }

    fn remember_probe(&mut self, id: &SlotId, start: StartNo, probe: AbortHandle) {
        if let Some(run) = self.pools.get_mut(&id.pool) {
            if let Some((_, former)) = run.probes.insert(id.slot, (start, probe)) {
                former.abort();
            }
        }
    }

    /// A worker was asked whether it is ready: it is, or it is asked again a little later.
    pub(crate) fn probed(&mut self, slot: &SlotId, start: StartNo, ready: bool) {
        if ready {
            return self.slot_event(slot, worker::Event::ReadySeen { start });
        }
        let waiting = self.pools.get(&slot.pool).and_then(|run| run.machine().slot(slot.slot));
        if waiting.is_some_and(|it| it.start() == Some(start) && it.shown() == SlotState::Starting) {
            let slot = slot.clone();
            let id = slot.clone();
            let probe = self.works.spawn(async move {
                tokio::time::sleep(PROBE_EVERY).await;
                Worked::AskReady(slot, start)
            });
            self.remember_probe(&id, start, probe);
        }
    }

    /// A worker was not reached, for another reason than before: it is asked again a little later.
    pub(crate) fn unreached(&mut self, slot: &SlotId, start: StartNo, address: String, met: Box<str>) {
        self.slot_event(slot, worker::Event::ReadyNotSeen { start, met: met.clone() });
        let waiting = self.pools.get(&slot.pool).and_then(|run| run.machine().slot(slot.slot));
        if waiting.is_some_and(|it| it.start() == Some(start) && it.shown() == SlotState::Starting) {
            let id = slot.clone();
            let probe = self.works.spawn(async move {
                tokio::time::sleep(PROBE_EVERY).await;
                ask_until_news(id, start, address, Some(met)).await
            });
            self.remember_probe(slot, start, probe);
        }
    }

    /// The wait before another question is over.
    pub(crate) fn ask_ready(&mut self, slot: &SlotId, start: StartNo) {
        let waiting = self.pools.get(&slot.pool).and_then(|run| run.machine().slot(slot.slot));
        if waiting.is_some_and(|it| it.start() == Some(start) && it.shown() == SlotState::Starting) {
            self.watch_ready(slot, start);
        }
    }

    /// Deadlines of pools, of their samples, and of the looks at their jobs.
    pub(crate) fn mind_deadlines(&mut self, now: MonoTime) {
        let due = |at: Option<MonoTime>| at.is_some_and(|at| at <= now);
        let names: Vec<PoolName> =
            self.pools.iter().filter(|(_, run)| due(pool::next_deadline(run.machine()))).map(|(name, _)| name.clone()).collect();
        for name in names {
            self.pool_event(&name, Event::DeadlineReached);
        }
        self.sample_due(now);
    }

    /// Drains a pool, once.
    pub(crate) fn drain_pool(&mut self, name: &PoolName) {
        if self.pools.get_mut(name).is_some_and(|run| !std::mem::replace(&mut run.draining, true)) {
            self.pool_event(name, Event::Drain);
        }
    }

    /// Ends the drain of a pool.
    pub(crate) fn undrain_pool(&mut self, name: &PoolName) {
        if self.pools.get_mut(name).is_some_and(|run| std::mem::take(&mut run.draining)) {
            self.pool_event(name, Event::Undrain);
        }
    }

    // ---- releases into pools

    /// Every pool gets this release, in the order of `after`; the deploy hears when all have it, or that one failed. A newer release ends
    /// the rollout of an older one.
    pub(crate) fn roll_out(&mut self, release: ReleaseId, revision: Revision) {
        let mut waiting = BTreeSet::new();
        for (name, run) in self.pools.iter_mut().filter(|(_, run)| !run.leaving) {
            waiting.insert(name.clone());
            run.waiting = Some((release.clone(), revision.clone()));
        }
        self.rolling = Some(Rolling { release, waiting });
        self.release_waiting();
        self.rolled_out_if_all();
    }

    /// Gives their release to the pools whose turn has come.
    pub(crate) fn release_waiting(&mut self) {
        if matches!(self.ending, Ending::Draining | Ending::Drained | Ending::Leaving) {
            return;
        }
        loop {
            let mut ready = Vec::new();
            let mut stuck = BTreeSet::new();
            for (name, run) in &self.pools {
                let Some((release, _)) = &run.waiting else { continue };
                let needs = run.settings.policy.after.iter().filter_map(|other| self.pools.get(other));
                let (mut rolled, mut well) = (true, true);
                for other in needs {
                    let machine = other.machine();
                    rolled &= other.waiting.is_none()
                        && machine.rolling_out().is_none()
                        && machine.target().is_some_and(|target| target.release == *release);
                    well &= machine.is_ready();
                }
                // A pool that runs already only waits for its turn: stopping it would not make the others well.
                if rolled && (well || !run.machine().is_empty()) {
                    ready.push(name.clone());
                } else if rolled {
                    stuck.insert(name.clone());
                }
            }
            // Those that wait for a stuck one get no turn before it does.
            while let Some(name) = self.pools.iter().find_map(|(name, run)| {
                let waits = run.waiting.is_some() && run.settings.policy.after.iter().any(|other| stuck.contains(other));
                (waits && !stuck.contains(name)).then(|| name.clone())
            }) {
                stuck.insert(name);
            }
            if let Some(rolling) = &mut self.rolling {
                // A pool that stays failing has had its turn; those behind it start when it is ready, and the deploy does not wait for that:
                // the next one may be its cure.
                rolling.waiting.retain(|name| !stuck.contains(name));
            }
            if ready.is_empty() {
                return self.rolled_out_if_all();
            }
            for name in ready {
                let Some((release, revision)) = self.pools.get_mut(&name).and_then(|run| run.waiting.take()) else { continue };
                self.pool_event(&name, Event::RollOut { release: release.clone(), revision });
                if self.pools.get(&name).is_some_and(|run| run.machine().rolling_out().is_none()) {
                    self.pool_rolled_out(&name, &release);
                }
            }
        }
    }

    pub(crate) fn pool_rolled_out(&mut self, name: &PoolName, release: &ReleaseId) {
        if let Some(rolling) = self.rolling.as_mut().filter(|rolling| rolling.release == *release) {
            rolling.waiting.remove(name);
        }
        self.rolled_out_if_all();
    }

    pub(crate) fn rolled_out_if_all(&mut self) {
        if self.rolling.as_ref().is_some_and(|rolling| rolling.waiting.is_empty()) {
            if let Some(rolling) = self.rolling.take() {
                self.deploy_event(DeployEvent::RolledOut { release: rolling.release });
            }
        }
    }

    // ---- coming back

    /// Makes the pools of the configuration, as an earlier agent of this boot left them.
    pub(crate) fn recall_pools(&mut self, mut saved: PoolsSaved) {
        let boot = boot_id();
        let same_boot = is_same_boot(&saved.boot, &boot);
        if boot.is_empty() {
            self.telling.warn(
                "/proc/sys/kernel/random/boot_id cannot be read: what an earlier agent has noted of slots (stopped, drained, resting) is forgotten",
            );
        }
        if same_boot && saved.drained {
            self.drained = true;
            self.ending = Ending::Draining;
        }
        // Not only by its first agent, which may have been killed before it could save anything.
        let keeper = process::stat(self.welcome.keeper_pid).ok().map(|stat| stat.id(self.welcome.keeper_pid));
        self.keeper = keeper;
        if keeper.is_none() || saved.keeper != keeper {
            // What the former keeper started after the last write is not known if it has ended too: its numbers are passed over.
            for slot in saved.pools.values_mut().flat_map(|pool| &mut pool.slots) {
                slot.slot.last_start.0 += STARTS_UNSAVED;
            }
        }
        let settings = self.settings.clone();
        for pool in &settings.pools {
            let name = pool.policy.name.clone();
            let machine = match saved.pools.remove(&name) {
                Some(saved) if same_boot => Pool::recall(saved, &pool.policy),
                Some(saved) => Pool::recall(saved.after_reboot(), &pool.policy),
                None => Pool::new(&pool.policy),
            };
            self.pools.insert(name, PoolRun::new(pool.clone(), machine));
        }
        if same_boot {
            // Pools that the configuration lost while no agent ran: their workers are stopped, by the default ladder.
            for (name, saved) in saved.pools {
                let machine = Pool::recall(saved, &gone_policy(&name));
                if !machine.is_empty() {
                    self.add_gone(&name, machine);
                }
            }
        }
        for (key, at) in saved.verdicts {
            if let Ok(id) = key.parse::<SlotId>() {
                if let Some(run) = self.pools.get_mut(&id.pool) {
                    run.seen.entry(id.slot).or_insert_with(|| Seen::new(SlotState::Stopped, clock::wall())).verdict_at = Some(at);
                }
            }
        }
    }

    fn add_gone(&mut self, name: &PoolName, machine: Pool) {
        let settings = PoolSettings {
            only: selfstart_core::only::Only::default(),
            policy: gone_policy(name),
            command: Command::Words(vec!["false".into()]),
            group: None,
            user: None,
            queue: QueueSettings { kind: QueueKind::None, url: None, namespace: None },
            queues: Vec::new(),
            env: BTreeMap::new(),
            env_files: Vec::new(),
            port: None,
            limits: Limits::default(),
            log: PoolLog { file: None, max_size: Bytes(50_000_000), max_age: None, keep: 5 },
        };
        let mut run = PoolRun::new(settings, machine);
        run.leaving = true;
        self.pools.insert(name.clone(), run);
    }

    /// The workers that the keeper has: into their slots. `exits` names those that have ended; their ends are heard after this.
    pub(crate) fn workers_recalled(&mut self, children: Vec<Child>, exits: &BTreeMap<Key, (Ended, bool)>) {
        let mut latest: BTreeMap<SlotId, StartNo> = BTreeMap::new();
        for worker in children.iter().filter_map(|child| child.key.parse::<WorkerKey>().ok()) {
            let start = latest.entry(worker.slot).or_insert(worker.start);
            *start = (*start).max(worker.start);
        }
        let mut children = children;
        // In the order in which they were started, which is not that of their names: `#9` comes before `#10`.
        children.sort_by_key(|child| child.key.parse::<WorkerKey>().ok());
        for child in children {
            let Ok(worker) = child.key.parse::<WorkerKey>() else {
                self.ask(Ask::KillTree { key: child.key });
                continue;
            };
            let newest = latest.get(&worker.slot) == Some(&worker.start);
            self.worker_recalled(&worker, child, newest, exits);
        }
    }

    fn worker_recalled(&mut self, worker: &WorkerKey, child: Child, newest: bool, exits: &BTreeMap<Key, (Ended, bool)>) {
        let Child { key, process, streams, note } = child;
        if !self.pools.contains_key(&worker.slot.pool) {
            let name = worker.slot.pool.clone();
            self.add_gone(&name, Pool::new(&gone_policy(&name)));
        }
        self.listen_to(&key, &worker.slot, streams);
        let ended = exits.contains_key(&key);
        let slot = self.pools.get(&worker.slot.pool).and_then(|run| run.machine().slot(worker.slot.slot));
        let known = slot.is_some_and(|slot| slot.start() == Some(worker.start));
        let after_all_known = slot.is_none_or(|slot| worker.start > slot.last_start());
        if ended && !(newest && (known || after_all_known && !note.is_empty())) {
            // A later start, or the saved state, shows that its end is known: what is left to do follows when its exit is heard.
            return;
        }
        let saved = slot.filter(|_| known).and_then(|slot| slot.target().cloned());
        let noted = || serde_json::from_str(&note).ok().map(Arc::new);
        let target = saved.or_else(noted).or_else(|| target_of(process.pid).map(Arc::new)).filter(|_| newest);
        let Some(target) = target else {
            // Nobody can say what it runs: it is replaced rather than kept on a guess.
            self.telling.warn(&format!("{key} (process {}) runs an unknown release and is ended", process.pid));
            return self.ask(Ask::KillTree { key });
        };
        let since = started(process);
        let ago = clock::now().since(since);
        let started_at =
            WallTime::from_unix_millis(clock::wall().unix_millis().saturating_sub(i64::try_from(ago.as_millis()).unwrap_or(0)));
        let event = worker::Event::Adopted { start: worker.start, process, target, since, ready_since: None };
        self.slot_event(&worker.slot, event);
        if let Some(seen) = self.pools.get_mut(&worker.slot.pool).and_then(|run| run.seen.get_mut(&worker.slot.slot)) {
            seen.started_at = Some(started_at);
        }
    }

    /// Every worker that the keeper has is in its slot: what was expected and is not there has vanished.
    pub(crate) fn recall_done(&mut self) {
        let mut vanished = Vec::new();
        for (name, run) in &self.pools {
            for (number, slot) in run.machine().slots() {
                if let Some(start) = slot.start().filter(|_| slot.is_recalled()) {
                    vanished.push((SlotId { pool: name.clone(), slot: number }, start));
                }
            }
        }
        for (id, start) in vanished {
            self.slot_event(&id, worker::Event::Vanished { start, jitter: jitter() });
        }
        let names: Vec<PoolName> = self.pools.keys().cloned().collect();
        for name in names {
            if self.drained {
                self.drain_pool(&name);
            }
            self.pool_event(&name, Event::Reloaded);
        }
    }

    /// Whether any worker runs.
    pub(crate) fn any_worker(&self) -> bool {
        self.pools.values().any(|run| !run.machine().is_empty())
    }

    /// What the configuration limits and this machine cannot, a sentence for each.
    pub(crate) fn limits_not_kept(&self) -> Vec<String> {
        let has = |name: &str| self.groups.controllers.iter().any(|controller| controller == name);
        let mut missing = Vec::new();
        for pool in &self.settings.pools {
            let Limits { cpu, tasks, memory, memory_high, .. } = pool.limits;
            let wanted =
                [("cpu", cpu.is_some(), "cpu"), ("tasks", tasks.is_some(), "pids"), ("memory_high", memory_high.is_some(), "memory")];
            for (key, _, controller) in wanted.into_iter().filter(|(_, set, controller)| *set && !has(controller)) {
                missing.push(format!("`pools.{}.limits.{key}` is not kept: {}", pool.policy.name, self.why_no(controller)));
            }
            if memory.is_some() && !has("memory") {
                let why = self.why_no("memory");
                missing.push(format!("`pools.{}.limits.memory` is kept by sampling only: {why}", pool.policy.name));
            }
        }
        missing
    }

    /// What an operator of a container must know: who stops one waits so long, and kills all in it then.
    pub(crate) fn longer_than_a_container_waits(&self) -> Option<String> {
        /// Of `docker stop` (docs.docker.com/reference/cli/docker/container/stop, `--timeout`).
        const WAITS: Duration = Duration::from_secs(10);
        let longest = self.settings.pools.iter().map(|pool| pool.policy.worker.stop.patience()).max()?;
        let text = || {
            let longest = Human(longest);
            format!(
                "this is process 1, of a container: stopping workers may take {longest}, and `docker stop` kills after 10s; start it with \
                 `--stop-timeout`, or make the ladders (`stop:`) shorter"
            )
        };
        (self.welcome.keeper_pid == 1 && longest > WAITS).then(text)
    }

    fn why_no(&self, controller: &str) -> String {
        match &self.groups.path {
            Some(path) => format!("the cgroups in `{path}` have no controller `{controller}`"),
            None => format!("there are no cgroups for workers ({})", self.groups.why),
        }
    }

    // ---- state on disk

    /// Asks the keeper once the state as it is now is on disk, or a moment later if the disk does not take it.
    fn ask_when_saved(&mut self, ask: Ask) {
        self.dirty = true;
        self.held.push(ask);
        self.held_until.get_or_insert(clock::now() + HELD_FOR);
    }

    /// Sends what waited for the disk long enough.
    pub(crate) fn release_held(&mut self, now: MonoTime) {
        if self.held_until.is_some_and(|until| until <= now) {
            self.held_until = None;
            for ask in std::mem::take(&mut self.being_saved).into_iter().chain(std::mem::take(&mut self.held)) {
                self.ask(ask);
            }
        }
    }

    /// Writes the state when it has changed; one write at a time, what changes meanwhile is in the next.
    pub(crate) fn save_state(&mut self) {
        // Soon, but a flood of changes (a thousand workers that start) not for each one. Nothing that ended is forgotten by the keeper
        // before it is written, and a start that is not is found again by what the keeper has.
        if !self.dirty || self.saving_state {
            return;
        }
        let now = clock::now();
        let rested = self.next_save;
        let due = *self.save_due.get_or_insert_with(|| rested.max(now + SAVE_AFTER));
        let urgent = !self.held.is_empty() || self.ending == Ending::Leaving || self.serving.waits_for_save();
        if now < due && !urgent {
            return;
        }
        self.save_due = None;
        self.save_began = now;
        self.saves_begun += 1;
        (self.dirty, self.saving_state) = (false, true);
        self.forgetting.append(&mut self.forget_after_save);
        self.being_saved.append(&mut self.held);
        let mut verdicts = BTreeMap::new();
        let mut pools = BTreeMap::new();
        let mut processes = BTreeMap::new();
        for (name, run) in &self.pools {
            for (number, slot) in run.machine().slots() {
                if let (Some(start), Some(process)) = (slot.start(), slot.process()) {
                    processes.insert(WorkerKey { slot: SlotId { pool: name.clone(), slot: number }, start }.to_string(), process);
                }
            }
            pools.insert(name.clone(), run.machine().saved());
            verdicts.extend(run.seen.iter().filter_map(|(slot, seen)| Some((format!("{name}/{slot}"), seen.verdict_at?))));
        }
        let saved = PoolsSaved { boot: boot_id(), keeper: self.keeper, drained: self.drained, pools, verdicts, processes };
        let path = self.layout.state();
        self.work(move || Worked::StateSaved(store::save(&path, store::SCHEMA_NOW, &saved).map_err(|error| chain(&error))));
    }

    pub(crate) fn state_saved(&mut self, result: Result<(), String>) {
        self.saving_state = false;
        let now = clock::now();
        self.next_save = now + (self.save_began.until(now) * 9).clamp(SAVE_REST.0, SAVE_REST.1);
        for ask in std::mem::take(&mut self.being_saved) {
            self.ask(ask);
        }
        if self.held.is_empty() {
            self.held_until = None;
        }
        self.serving.saved(self.saves_begun, result.as_ref().err().map(String::as_str));
        match result {
            Ok(()) => {
                self.state_trouble = None;
                for key in std::mem::take(&mut self.forgetting) {
                    self.ask(Ask::Forget { key });
                }
            }
            Err(error) => {
                self.save_again = Some(clock::now() + super::run::TRY_AGAIN);
                // Kept in the keeper until it can be written: an agent that comes back hears the exits again.
                if self.state_trouble.is_none() {
                    self.telling.warn(&format!("the state could not be written, and is tried again every second: {error}"));
                }
                self.state_trouble = Some(error);
            }
        }
    }
}

impl Seen {
    fn new(state: SlotState, now: WallTime) -> Self {
        Self { state, since: now, started_at: None, memory: None, verdict_at: None, job: None }
    }
}

fn gone_policy(name: &PoolName) -> PoolPolicy {
    PoolPolicy {
        name: name.clone(),
        count: 0,
        update: selfstart_core::policy::UpdatePolicy::default(),
        start_stagger: Duration::ZERO,
        after: Vec::new(),
        worker: selfstart_core::policy::WorkerPolicy {
            stop: StopLadder::default(),
            restart: selfstart_core::policy::RestartPolicy::default(),
            ready: selfstart_core::policy::ReadyPolicy::default(),
            memory: None,
            stale: None,
        },
    }
}

/// What a worker runs, as its own environment says.
fn target_of(pid: i32) -> Option<Target> {
    let variable = |name: &str| process::variable(pid, name);
    Some(Target {
        generation: Generation(variable("SELFSTART_GENERATION")?.parse().ok()?),
        release: variable("SELFSTART_RELEASE")?.parse().ok()?,
        revision: variable("SELFSTART_REVISION")?.parse().ok()?,
    })
}

/// When a process was started, from its ticks.
fn started(process: ProcessId) -> MonoTime {
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    let millis = process.start_ticks.saturating_mul(1000) / per_second;
    MonoTime::from_boot(Duration::from_millis(millis))
}

/// Whether what was saved is of this boot. Not when either cannot be told: two that are unknown are not the same.
fn is_same_boot(saved: &str, now: &str) -> bool {
    !now.is_empty() && saved == now
}

/// Names this run of `selfstart run` as no other on this machine is named; `None`: it cannot be told.
pub(crate) fn this_run(keeper_pid: i32) -> Option<String> {
    let keeper = process::stat(keeper_pid).ok()?.id(keeper_pid);
    let boot = boot_id();
    (!boot.is_empty()).then(|| format!("{boot}/{}/{}", keeper.pid, keeper.start_ticks))
}

/// Names this boot (`proc_sys_kernel(5)`); empty when it cannot be read, and then nothing that was saved is of this boot. It is read
/// once: no process sees two boots.
fn boot_id() -> String {
    static BOOT: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
        fs_err::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
    });
    BOOT.clone()
}

pub(crate) fn jitter() -> Jitter {
    Jitter(fastrand::u16(0..=1000))
}

/// Asks until it is answered, or meets something else than `known`: who has heard of it once need not hear it ten times a second.
async fn ask_until_news(slot: SlotId, start: StartNo, address: String, known: Option<Box<str>>) -> Worked {
    loop {
        match answers(&address).await {
            Ok(()) => return Worked::Answers(slot, start),
            Err(Some(met)) if Some(&met) != known.as_ref() => return Worked::Unreached { slot, start, address, met },
            Err(_) => tokio::time::sleep(PROBE_EVERY).await,
        }
    }
}

/// Whether somebody answers there; `Err`: what was met, for people, if anything was tried.
async fn answers(address: &str) -> Result<(), Option<Box<str>>> {
    let connected = async {
        // Most are numbers: nobody has to be asked for them.
        let addresses = match address.parse() {
            Ok(address) => vec![address],
            Err(_) => looked_up(address, &LOOKING, resolve).await?,
        };
        let mut met = None;
        for one in addresses {
            match tokio::net::TcpStream::connect(one).await {
                Ok(_) => return Ok(()),
                Err(error) => met = Some(format!("`{address}` cannot be reached: {error}").into()),
            }
        }
        Err(met)
    };
    let late = || format!("`{address}` did not resolve and answer within {}", Human(PROBE_TIMEOUT)).into();
    tokio::time::timeout(PROBE_TIMEOUT, connected).await.unwrap_or_else(|_| Err(Some(late())))
}

/// The names that are being looked up.
static LOOKING: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// So many names are looked up at a time: half of the threads on which the agent also writes its state. A look-up that hangs keeps its
/// thread long after nobody waits for it any more.
const LOOKING_MAX: usize = 4;

/// A name that is being looked up; until that is over it is not looked up again.
struct Looking(&'static Mutex<BTreeSet<String>>, String);

impl Drop for Looking {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}

/// Returns where a name and a port are, or why that is not known; `None`: it is being looked up already, or too many are: who asks asks
/// again.
async fn looked_up(
    address: &str,
    all: &'static Mutex<BTreeSet<String>>,
    resolve: impl FnOnce(&str) -> Result<Vec<SocketAddr>, Box<str>> + Send + 'static,
) -> Result<Vec<SocketAddr>, Option<Box<str>>> {
    let looking = {
        let mut names = all.lock().unwrap_or_else(PoisonError::into_inner);
        if names.len() >= LOOKING_MAX || !names.insert(address.to_owned()) {
            return Err(None);
        }
        Looking(all, address.to_owned())
    };
    // A look-up cannot be cancelled: who stops waiting leaves it to its thread, and `looking` keeps count of it.
    let mut found = JoinSet::new();
    found.spawn_blocking(move || {
        let found = resolve(&looking.1);
        drop(looking);
        found
    });
    found.join_next().await.and_then(Result::ok).map_or(Err(None), |found| found.map_err(Some))
}

fn resolve(address: &str) -> Result<Vec<SocketAddr>, Box<str>> {
    let unresolved = |why: &dyn std::fmt::Display| format!("`{address}` does not resolve: {why}").into();
    match address.to_socket_addrs().map(Vec::from_iter) {
        Ok(found) if found.is_empty() => Err(unresolved(&"the name has no address")),
        Ok(found) => Ok(found),
        Err(error) => Err(unresolved(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boots_that_cannot_be_told_apart_are_not_the_same() {
        assert!(is_same_boot("a", "a") && !is_same_boot("a", "b") && !is_same_boot("", "a"));
        assert!(!is_same_boot("", "") && !is_same_boot("a", ""));
    }

    #[test]
    fn look_ups_that_hang_leave_threads_to_others_and_a_name_is_looked_up_once_at_a_time() {
        static ALL: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().max_blocking_threads(8).build().expect("a runtime");
        runtime.block_on(async {
            let mut lets_go = Vec::new();
            let mut hanging = JoinSet::new();
            // Far more workers than threads, of more hosts than may be looked up at a time.
            for worker in 0..100 {
                let (go, wait) = std::sync::mpsc::channel::<()>();
                lets_go.push(go);
                hanging.spawn(async move {
                    let name = format!("host{}:80", worker % 10);
                    let found = looked_up(&name, &ALL, move |_| {
                        let _until_let_go = wait.recv();
                        Ok(vec![SocketAddr::from(([127, 0, 0, 1], 80))])
                    });
                    found.await.unwrap_or_default().len()
                });
            }
            // Those that are not begun are answered at once.
            for _ in 0..96 {
                assert_eq!(hanging.join_next().await.expect("one of 100").expect("no panic"), 0);
            }
            assert_eq!(ALL.lock().expect("not poisoned").len(), LOOKING_MAX);
            // The state is written all the same.
            let written = tokio::time::timeout(Duration::from_secs(10), tokio::task::spawn_blocking(|| 7)).await;
            assert_eq!(written.expect("a thread is free").expect("no panic"), 7);
            // Nobody waits for one any more: its thread is still taken, and no other is.
            hanging.abort_all();
            while hanging.join_next().await.is_some() {}
            assert_eq!(looked_up("host0:80", &ALL, resolve).await, Err(None));
            assert_eq!(ALL.lock().expect("not poisoned").len(), LOOKING_MAX);
            lets_go.clear();
            while !ALL.lock().expect("not poisoned").is_empty() {
                tokio::task::yield_now().await;
            }
            assert!(looked_up("localhost:80", &ALL, resolve).await.is_ok_and(|found| !found.is_empty()));
        });
    }
}
