//! The loop: waits for the first of what can happen, makes one event of it, lets the core decide, begins the effects.
//!
//! Things that are ready at the same time are taken in this order: what the keeper says (exits before everything, so that no deadline acts
//! on a process whose end is known), results of work, what helpers say, operators, deadlines, and last what workers write: a flood of output must not hold up the rest.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use selfstart_core::deploy::{Event as DeployEvent, PhaseName};
use selfstart_core::id::{PoolName, SlotId, StartNo};
use selfstart_core::time::MonoTime;
use selfstart_core::trigger::Event as TriggerEvent;
use selfstart_core::units::Bytes;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::deploying::Deploying;
use super::errands::{Errands, Over, What};
use super::line::{Line, LineError};
use super::minding::{PoolRun, Rolling, Sampled};
use super::notifying::Notifying;
use super::output::{self, Outputs};
use super::serving::Serving;
use super::tell::Telling;
use super::triggering::Triggering;
use crate::config::settings::Settings;
use crate::control::server::Call;
use crate::keeper::protocol::{ALIVE_EVERY, Ask, Key, Tell, Upgraded, Welcome};
use crate::release::layout::Layout;
use crate::sys::clock;
use crate::sys::watch::watched;

/// Output taken in one turn, so that a flood leaves time for everything else.
const OUTPUT_A_TURN_BYTES: usize = 1 << 20;

/// After this, what could not be written or read is tried again: a full disk is not helped by trying more often.
pub(crate) const TRY_AGAIN: Duration = Duration::from_secs(1);

/// What came of work on a blocking thread or in a task.
#[derive(Debug)]
pub(crate) enum Worked {
    /// The journal of the deploy was written, or not.
    DeploySaved(Result<(), String>),
    /// An effect of the deploy was carried out.
    Deploy(DeployEvent),
    /// Releases are gone, or are kept because they are in use; `trouble`: what did not work, or nothing; `unsure`: what may be in use.
    Pruned {
        gone: Vec<selfstart_core::id::ReleaseId>,
        kept: Vec<selfstart_core::id::ReleaseId>,
        trouble: String,
        unsure: Option<crate::release::prune::Unsure>,
    },
    /// What triggers a deploy was written down, or not.
    TriggersSaved(Result<(), String>),
    /// `source.credentials.askpass` was asked, and said nothing wrong or why it has no answer.
    Asked { fetch: selfstart_core::deploy::FetchId, request: Result<Box<crate::release::git::Fetch>, String> },
    /// The same, for a look at the source.
    AskedLook(Result<Box<crate::release::git::Fetch>, String>),
    /// The state of the pools was written, or not.
    StateSaved(Result<(), String>),
    /// Memory and jobs were looked at.
    Sampled(Box<Sampled>),
    /// A worker answers at its address.
    Answers(SlotId, StartNo),
    /// A worker could not be asked at its address, for a reason that was not told yet.
    Unreached { slot: SlotId, start: StartNo, address: String, met: Box<str> },
    /// It is time to ask a worker again whether it is ready.
    AskReady(SlotId, StartNo),
    /// The configuration was kept as a good one, or not.
    ConfigKept(Result<(), String>),
    /// The fleet's Redis was asked, or has said something.
    Leased(super::once::Leased),
    /// A lease of the fleet was let go.
    LetGo,
    /// The control socket is served no more.
    Served,
    /// A reader or the like has ended.
    Nothing,
}

/// How far the agent is with ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It minds.
    No,
    /// `drain`: everything stops, the agent stays.
    Draining,
    /// Everything is stopped, by `drain`.
    Drained,
    /// A signal: everything stops, then selfstart ends.
    Leaving,
}

/// The agent.
pub(crate) struct Agent {
    pub(crate) at: super::boot::At,
    pub(crate) settings: Arc<Settings>,
    /// What an operator must see in the status.
    pub(crate) notes: Vec<String>,
    pub(crate) layout: Layout,
    pub(crate) line: Line,
    pub(crate) welcome: Welcome,
    pub(crate) errands: Errands,
    pub(crate) outputs: Outputs,
    pub(crate) outputs_ready: AsyncFd<OwnedFd>,
    pub(crate) telling: Telling,
    pub(crate) deploying: Deploying,
    pub(crate) triggering: Triggering,
    pub(crate) notifying: Notifying,
    pub(crate) onces: super::once::Onces,
    pub(crate) pools: BTreeMap<PoolName, PoolRun>,
    pub(crate) serving: Serving,
    pub(crate) calls: mpsc::Receiver<Call>,
    pub(crate) works: JoinSet<Worked>,
    pub(crate) ending: Ending,
    pub(crate) started_at: selfstart_core::time::WallTime,
    pub(crate) dirty: bool,
    pub(crate) saving_state: bool,
    /// The state is not written again before this; when the change that is there now is; and when the last write began.
    pub(crate) next_save: MonoTime,
    pub(crate) save_due: Option<MonoTime>,
    pub(crate) save_began: MonoTime,
    pub(crate) known: crate::sys::users::Known,
    /// Children whose end must be on disk before the keeper forgets it; those behind it are being written.
    pub(crate) forget_after_save: Vec<Key>,
    pub(crate) forgetting: Vec<Key>,
    /// The keeper, as the saved state names it; `None`: it cannot be looked at.
    pub(crate) keeper: Option<selfstart_core::id::ProcessId>,
    /// Why the state could not be written the last time; `None`: it was.
    pub(crate) state_trouble: Option<String>,
    /// How many writes of the state were begun: names what each of them contains.
    pub(crate) saves_begun: u64,
    /// Signals that wait for the state that says why they are sent; those of the write that goes on; and until when at most.
    pub(crate) held: Vec<Ask>,
    pub(crate) being_saved: Vec<Ask>,
    pub(crate) held_until: Option<MonoTime>,
    /// When something that could not be written or read is tried again.
    pub(crate) save_again: Option<MonoTime>,
    /// Whether `drain` was asked for, which a restart of selfstart does not end.
    pub(crate) drained: bool,
    pub(crate) rolling: Option<Rolling>,
    pub(crate) sampling: bool,
    /// What waits for errands that the keeper does for an agent that is not root.
    pub(crate) waiting: super::apart::Waiting,
    /// Whether the code that only the start, the last deploy or the last sample needed has been given back.
    pub(crate) rested: bool,
    /// When it may be given back again.
    pub(crate) rest_again: MonoTime,
    pub(crate) quit: Option<u8>,
    /// When the keeper is told again that this loop goes round.
    pub(crate) next_alive: MonoTime,
    /// Whether there is a service manager to be told.
    pub(crate) notified: bool,
    /// What it was last told.
    pub(crate) said_status: String,
    /// The step that it was about.
    pub(crate) said_step: Option<(Ending, PhaseName)>,
    pub(crate) groups: Groups,
    /// Whom the kernel has ended for want of memory, and the most that they had; until their end is heard.
    pub(crate) out_of_memory: BTreeMap<Key, Option<Bytes>>,
    /// What became of the last upgrade.
    pub(crate) upgraded: Option<Upgraded>,
}

/// What the keeper has of cgroups for our children.
#[derive(Clone, Debug, Default)]
pub(crate) struct Groups {
    /// Where they are; `None`: there are none.
    pub(crate) path: Option<String>,
    /// What they can limit.
    pub(crate) controllers: Vec<String>,
    /// Why there are none.
    pub(crate) why: String,
}

impl Agent {
    /// Runs until it is over; returns the exit code that the keeper was told.
    ///
    /// # Errors
    /// When the keeper is gone, or output cannot be kept any more: the next agent goes on.
    pub(crate) async fn run(mut self) -> Result<u8, RunError> {
        self.settle();
        loop {
            if let Some(code) = self.quit {
                self.farewell().await;
                self.ask(Ask::Quit { code });
                while self.line.is_waiting() {
                    self.line.next().await?;
                }
                return Ok(code);
            }
            let deadline = self.next_deadline();
            let wait = deadline.map(|deadline| clock::now().until(deadline));
            tokio::select! {
                biased;
                told = self.line.next() => {
                    for (tell, fds) in told? {
                        self.told(tell, fds);
                    }
                }
                Some(worked) = self.works.join_next(), if !self.works.is_empty() => match worked {
                    Ok(worked) => self.worked(worked),
                    Err(error) if error.is_cancelled() => {}
                    Err(error) => return Err(RunError::Work(error)),
                },
                chunk = self.errands.next() => {
                    let (lines, over) = self.errands.heard(chunk);
                    for line in lines {
                        self.helper_line(&line);
                    }
                    self.errand_over(over);
                }
                Some(call) = self.calls.recv() => self.call(call),
                Some(ask) = self.triggering.asks.recv() => self.http_asks(ask),
                () = sleep(wait) => self.deadline()?,
                ready = self.outputs_ready.readable() => {
                    let mut guard = ready.map_err(RunError::Poll)?;
                    let now = output::Now { mono: clock::now(), wall: clock::wall() };
                    let progress = self.outputs.ready(now, OUTPUT_A_TURN_BYTES)?;
                    let more = progress.more;
                    if !more {
                        guard.clear_ready();
                    }
                    drop(guard);
                    self.output_progress(progress);
                    if more {
                        // A flood never lets the loop rest, and only a rest lets the runtime look at everything else.
                        tokio::task::yield_now().await;
                    }
                }
            }
            self.settle();
        }
    }

    /// Asks the keeper; a message that cannot be sent is answered as the keeper would.
    pub(crate) fn ask(&mut self, ask: Ask) {
        self.ask_with(ask, None);
    }

    /// Asks the keeper, with a descriptor.
    pub(crate) fn ask_with(&mut self, ask: Ask, fd: Option<OwnedFd>) {
        match self.line.ask(&ask, fd) {
            // A closed line ends the loop when it is next read.
            Ok(()) | Err(LineError::Closed) => {}
            Err(error) => {
                let text = super::deploying::chain(&error);
                self.telling.warn(&format!("the keeper could not be asked: {text}"));
                if let Ask::Spawn(start) | Ask::SpawnIn { start, .. } = ask {
                    self.spawn_failed(start.key, text);
                }
            }
        }
    }

    /// Begins work on a blocking thread; its result comes back to the loop.
    pub(crate) fn work(&mut self, work: impl FnOnce() -> Worked + Send + 'static) {
        self.works.spawn_blocking(work);
    }

    pub(crate) fn told(&mut self, tell: Tell, fds: Vec<OwnedFd>) {
        match tell {
            Tell::Child { key, pid, start_ticks, streams, .. } => {
                let process = selfstart_core::id::ProcessId { pid, start_ticks };
                let streams = streams.into_iter().zip(fds).collect();
                self.child(key, process, streams);
            }
            Tell::SpawnFailed { key, step, errno } => {
                let error = std::io::Error::from_raw_os_error(errno);
                self.spawn_failed(key, spawn_error(step, &error));
            }
            Tell::Exited { key, how, tree_gone, .. } => {
                if self.errands.has(&key) {
                    if tree_gone {
                        self.errand_gone(&key);
                    } else {
                        self.ask(Ask::ClearTree { key: key.clone() });
                    }
                    let over = self.errands.exited(&key, how, tree_gone, clock::now());
                    self.errand_over(over);
                } else {
                    self.worker_exited(&key, how, tree_gone);
                }
            }
            Tell::TreeGone { key, killed } => {
                if self.errands.has(&key) {
                    self.errand_gone(&key);
                    let over = self.errands.tree_gone(&key, clock::now());
                    self.errand_over(over);
                } else {
                    self.worker_tree_gone(&key, killed);
                }
            }
            Tell::Signalled { number } => self.signalled(number),
            Tell::Tree { path, controllers, why } => self.groups = Groups { path, controllers, why },
            Tell::OutOfMemory { key, peak_bytes, .. } => {
                self.out_of_memory.insert(key, peak_bytes.map(Bytes));
            }
            Tell::Errand { errand, failed } => self.errand_told(&errand, failed, fds.into_iter().next()),
            Tell::Upgraded(upgraded) => self.upgraded(upgraded),
            Tell::Welcome(_) | Tell::Kept { .. } | Tell::Listed | Tell::Adopted => {}
        }
    }

    /// The keeper may forget a helper: its exit is known. Comes before the errand is over, so that its last lines are in its verdict. What it said last is in our own copies of its pipes.
    fn errand_gone(&mut self, key: &str) {
        if matches!(self.errands.what(key), Some(What::Step { .. } | What::Chore { .. })) {
            let now = output::Now { mono: clock::now(), wall: clock::wall() };
            match self.outputs.finish(key, now) {
                Ok((_, progress)) => self.output_progress(progress),
                Err(error) => self.telling.warn(&super::deploying::chain(&error)),
            }
        }
        self.ask(Ask::Forget { key: key.to_owned() });
    }

    fn errand_over(&mut self, over: Option<Over>) {
        let Some(over) = over else { return };
        match over.what {
            What::Probe { ref slot, start } => {
                let (slot, ready) = (slot.clone(), over.how == Some(crate::sys::process::Ended::Code(0)));
                self.probed(&slot, start, ready);
            }
            What::Leftover => {}
            What::Look => self.look_over(&over),
            What::Notify { number } => self.notify_over(number, &over),
            _ => self.deploy_errand_over(over),
        }
    }

    /// Ends an errand with its whole tree; its end is heard like any other.
    pub(crate) fn end_errand(&mut self, key: &str) {
        self.errands.ending(key, clock::now());
        self.ask(Ask::KillTree { key: key.to_owned() });
    }

    fn child(&mut self, key: Key, process: selfstart_core::id::ProcessId, streams: Vec<(u8, OwnedFd)>) {
        if !self.errands.has(&key) {
            return self.worker_started(&key, process, streams);
        }
        match self.errands.what(&key) {
            Some(What::Step { release, .. } | What::Chore { release, .. }) => {
                let sink = output::Sink {
                    file: self.layout.build_log(release),
                    label: None,
                    max_size: BUILD_LOG_BYTES,
                    max_age: None,
                    keep: 1,
                    tap: output::Tap::Open,
                };
                for (number, fd) in streams {
                    let stream = if number == 1 { output::Stream::Out } else { output::Stream::Err };
                    if let Err(error) = self.outputs.add(&key, stream, fd, sink.clone()) {
                        self.telling.warn(&super::deploying::chain(&error));
                    }
                }
            }
            _ => self.errands.listen(&key, streams),
        }
    }

    fn spawn_failed(&mut self, key: Key, why: String) {
        if self.errands.has(&key) {
            let over = self.errands.failed(&key, why);
            self.errand_over(over);
        } else {
            self.worker_not_started(&key, why);
        }
    }

    fn worked(&mut self, worked: Worked) {
        match worked {
            Worked::DeploySaved(result) => self.deploy_saved(result),
            Worked::Deploy(event) => self.deploy_event(event),
            Worked::TriggersSaved(result) => self.triggers_saved(result),
            Worked::Pruned { gone, kept, trouble, unsure } => self.pruned(gone, kept, trouble, unsure),
            Worked::Asked { fetch, request } => self.asked(fetch, request),
            Worked::AskedLook(request) => self.look_asked(request),
            Worked::StateSaved(result) => self.state_saved(result),
            Worked::Sampled(sampled) => {
                self.sampled(*sampled);
                // A pass over /proc needs more code than all that a node at rest does besides.
                self.rested = self.rested && clock::now() < self.rest_again;
            }
            Worked::Answers(slot, start) => self.probed(&slot, start, true),
            Worked::Unreached { slot, start, address, met } => self.unreached(&slot, start, address, met),
            Worked::AskReady(slot, start) => self.ask_ready(&slot, start),
            Worked::Leased(leased) => self.leased(leased),
            Worked::LetGo => self.let_go(),
            Worked::ConfigKept(result) => {
                if let Err(error) = result {
                    self.telling.warn(&format!("the good configuration could not be kept: {error}"));
                }
            }
            Worked::Served | Worked::Nothing => {}
        }
    }

    /// Tells what the output side has to tell, and lets go of workers whose last line is written.
    pub(crate) fn output_progress(&mut self, progress: output::Progress) {
        for news in &progress.news {
            self.telling.output(news);
        }
        for line in progress.tapped {
            let text = String::from_utf8_lossy(&line.text).into_owned();
            self.telling.build_line(&text);
            self.deploying.last_line = Some(text.clone());
            self.errands.remember(&line.key, text);
        }
        for key in progress.finished {
            // A worker's end must be on disk before the keeper forgets it.
            self.forget_after_save.push(key);
            self.dirty = true;
        }
    }

    fn next_deadline(&self) -> Option<MonoTime> {
        let pools = self.pools.values().filter_map(PoolRun::next_deadline);
        let save = self.save_due.filter(|_| self.dirty && !self.saving_state);
        let rest = [
            save,
            self.held_until,
            self.deploying.next_deadline(),
            self.trigger_deadline(),
            self.notifying.next_deadline(),
            self.onces.next_deadline(),
            self.http_again(),
            self.errands.next_deadline(),
            self.outputs.next_retry(),
            self.save_again,
            Some(self.next_alive),
        ];
        pools.chain(rest.into_iter().flatten()).min()
    }

    fn deadline(&mut self) -> Result<(), RunError> {
        let now = clock::now();
        if self.next_alive <= now {
            self.say_alive(now);
        }
        if self.deploying.next_deadline().is_some_and(|at| at <= now) {
            self.deploy_event(DeployEvent::DeadlineReached);
        }
        if self.trigger_deadline().is_some_and(|at| at <= now) {
            self.trigger_event(TriggerEvent::DeadlineReached);
        }
        self.notify_deadline(now);
        self.once_deadlines(now);
        if self.http_again().is_some_and(|at| at <= now) {
            self.begin_http();
        }
        let (kill, over) = self.errands.due(now);
        for key in kill {
            self.ask(Ask::KillTree { key });
        }
        for over in over {
            self.errand_over(Some(over));
        }
        if self.outputs.next_retry().is_some_and(|at| at <= now) {
            let progress = self.outputs.ready(output::Now { mono: now, wall: clock::wall() }, OUTPUT_A_TURN_BYTES)?;
            self.output_progress(progress);
        }
        self.mind_deadlines(now);
        self.release_held(now);
        if self.save_again.is_some_and(|at| at <= now) {
            self.save_again = None;
            self.telling.write_waiting();
            self.dirty = self.dirty || self.state_trouble.is_some();
            self.save_deploy_again();
            self.save_triggers_again();
            if !self.deploying.booted && !self.errands.has_leftovers() {
                self.begin_deploys();
            }
        }
        Ok(())
    }

    /// Tells the keeper that this loop goes round; and the service manager what it does, and to wait for an orderly end.
    fn say_alive(&mut self, now: MonoTime) {
        self.next_alive = now + ALIVE_EVERY;
        self.ask(Ask::Alive);
        if self.notified && self.ending == Ending::Leaving {
            let micros = (ALIVE_EVERY * 6).as_micros();
            self.ask(Ask::Notify { state: format!("EXTEND_TIMEOUT_USEC={micros}") });
        }
        self.say_status();
    }

    /// Tells the service manager what the node does, when that has changed.
    fn say_status(&mut self) {
        if !self.notified {
            return;
        }
        self.said_step = Some((self.ending, self.deploying.machine().phase_name()));
        let status = self.status_line();
        if status != self.said_status {
            self.ask(Ask::Notify { state: format!("STATUS={status}") });
            self.said_status = status;
        }
    }

    /// The node in one line.
    fn status_line(&self) -> String {
        let ready: u64 = self.pools.values().map(|run| u64::from(run.machine().ready())).sum();
        let wanted: u64 = self.pools.values().map(|run| u64::from(run.machine().count())).sum();
        let what = match (self.ending, self.deploying.machine().phase_name()) {
            (Ending::Leaving, _) => "ending".to_owned(),
            (Ending::Draining, _) => "draining".to_owned(),
            (Ending::Drained, _) => "drained".to_owned(),
            (Ending::No, PhaseName::Idle) => "minding".to_owned(),
            (Ending::No, phase) => format!("minding, {}", phase.as_str().replace('_', " ")),
        };
        format!("{what} `{}`: {ready} of {wanted} workers ready", self.settings.app)
    }

    /// After each turn: what follows from the state as it is now.
    fn settle(&mut self) {
        if !self.deploying.booted && !self.errands.has_leftovers() && self.save_again.is_none() {
            self.begin_deploys();
        }
        if self.notified && self.said_step != Some((self.ending, self.deploying.machine().phase_name())) {
            self.say_status();
        }
        self.settle_triggers();
        self.settle_notify();
        self.answer_pending();
        self.save_state();
        self.see_end();
        if self.telling.waits() {
            self.save_again.get_or_insert_with(|| clock::now() + TRY_AGAIN);
        }
        self.rest();
    }

    /// After the start and after each deploy, once nothing goes on any more: gives back the code that only they needed.
    fn rest(&mut self) {
        /// The task that takes commands.
        const ALWAYS: usize = 1;
        if !matches!(self.deploying.machine().phase_name(), PhaseName::Idle) {
            self.rested = false;
        } else if !self.rested && !self.dirty && self.works.len() <= ALWAYS && self.errands.is_empty() {
            (self.rested, self.rest_again) = (true, clock::now() + REST_EVERY);
            crate::sys::rest::rest();
        }
    }
}

/// How often code is given back at the most: where workers are sampled every second, it stays.
const REST_EVERY: Duration = Duration::from_secs(5);

/// A build that says more than this goes on in a second file.
const BUILD_LOG_BYTES: Bytes = Bytes(50_000_000);

/// Sleeps, or for ever.
async fn sleep(wait: Option<Duration>) {
    match wait {
        // A timer that is due already says so only after the runtime has looked at its clock, and in a flood of output it is dropped before
        // that, turn after turn.
        Some(Duration::ZERO) => {}
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

fn spawn_error(step: crate::sys::spawn::Step, error: &std::io::Error) -> String {
    use crate::sys::spawn::Step;
    let what = match step {
        Step::Clone => "make a process",
        Step::Limits => "set its limits",
        Step::User => "become its user",
        Step::Directory => "enter its release",
        Step::Descriptors => "arrange its output",
        Step::Execute => "execute its command",
        Step::Cgroup => "make its cgroup",
    };
    format!("failed to {what}: {error}")
}

/// Watches the descriptor of [`Outputs`] from the loop.
pub(crate) fn watch_outputs(outputs: &Outputs) -> Result<AsyncFd<OwnedFd>, std::io::Error> {
    use std::os::fd::AsFd;
    watched(outputs.as_fd().try_clone_to_owned()?, Interest::READABLE)
}

/// Why the agent ended by itself; the keeper starts the next.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// The keeper is gone, or speaks otherwise.
    #[error("the line to the keeper")]
    Line(#[from] LineError),
    /// Output cannot be kept any more.
    #[error("the output of the workers")]
    Output(#[from] output::OutputError),
    /// The kernel's poll failed.
    #[error("the poll")]
    Poll(#[source] std::io::Error),
    /// Work ended without a result.
    #[error("work on a thread")]
    Work(#[source] tokio::task::JoinError),
}
