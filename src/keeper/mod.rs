//! The hands: parent of the agent, of every helper and of every worker.
//!
//! One loop around one poll: it starts, signals and reaps processes, holds their output and other descriptors, and relays exits.
//! It has no configuration, no network and no opinion, except one: when the agent ends, it starts it again.
//! What it must tell the agent is kept in the table of children itself until it is told, so an agent may die at any moment and
//! the next one hears everything again.

mod bounds;
mod handover;
pub(crate) mod protocol;
mod rights;
mod table;
#[cfg(test)]
mod tests;
mod upgrade;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use selfstart_core::id::ProcessId;
use selfstart_core::time::MonoTime;
use selfstart_core::worker::signal_name;

use crate::rights::Measured;
use crate::sys::cgroup;
use crate::sys::process::{self, Ended};
use crate::sys::signals::{self, SignalFd};
use crate::sys::spawn::{Credentials, Job, SpawnError, Step};
use crate::sys::starter::{Started, Starter};
use crate::sys::{clock, packet};
use protocol::{Ask, Errand, Key, PROTOCOL, Start, Tell, Welcome, decode, encode};
use rights::{Ordered, Over, Rights};
pub(crate) use table::main_process_of;
use table::{Child, DOUBT_FOR, Doubt, LOOK_AGAIN, LOOK_SOON, LOOK_SOON_FOR, Life, Table};
pub(crate) use upgrade::beside;

/// The environment variable that tells the agent which descriptor leads to the keeper.
pub(crate) const LINE_VARIABLE: &str = "SELFSTART_KEEPER_FD";

/// The environment variable that tells the agent what it may do: [`STANDING_SPLIT`], or why it is root although it need not be.
pub(crate) const STANDING_VARIABLE: &str = "SELFSTART_STANDING";

/// The environment variable by which the agent is told to run the last good configuration: of which root, and on the lines after that why.
pub(crate) const LAST_GOOD_VARIABLE: &str = "SELFSTART_LAST_GOOD";

/// The agent has a user of its own.
pub(crate) const STANDING_SPLIT: &str = "split";

/// Where the agent finds the keeper: the first descriptor after standard error.
const AGENT_LINE_FD: usize = 3;

/// An agent that lived this long has earned a restart at once.
const AGENT_STEADY: Duration = Duration::from_secs(2);

/// How long after an agent has come up its start is over.
const SETTLED_AFTER: Duration = Duration::from_secs(2);

/// The waits between starts of an agent that does not stay up; the last is repeated.
const AGENT_BACKOFF: [Duration; 5] =
    [Duration::ZERO, Duration::from_millis(100), Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(5)];

/// So many agents in a row that did not stay up: none will see to an orderly end.
const HOPELESS: usize = 4;

/// So many descriptors are never given to a worker: with them an agent is started, `/proc` looked at and a process signalled when there are
/// no others left.
const RESERVE: i32 = 16;

/// How long an agent may say nothing before it is asked for by looking once more, and how long after that it may still say nothing. Two
/// looks, so that a machine (or a keeper) that stood still does not take its agent for stuck.
const SILENCE: [Duration; 2] = [Duration::from_secs(20), Duration::from_secs(5)];

/// How often it is said that not everybody can be looked at.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// So many processes that call themselves what they are not are told of.
const SAID_OF_OTHERS: usize = 16;

/// Messages taken in one turn, so that signals and exits are seen in between.
const MESSAGES_A_TURN: usize = 128;

/// Why the keeper could not go on.
#[derive(Debug, thiserror::Error)]
#[error("the keeper failed to {what}")]
pub(crate) struct KeeperError {
    what: &'static str,
    #[source]
    source: io::Error,
}

/// Adds what was being done to an error.
fn doing<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> KeeperError {
    move |source| KeeperError { what, source: source.into() }
}

/// Room kept between messages; most are smaller.
const BUFFER_BYTES: usize = 16 << 10;

/// What is to be told, in order. At most a handful of notes per child and per kept descriptor, so it is as bounded as the table.
#[derive(Debug)]
enum Note {
    Welcome,
    Child(Key),
    /// Output of a child that was told without it.
    Streams(Key, Vec<u8>),
    SpawnFailed(Key, Step, i32),
    Exited(Key),
    TreeGone(Key, u32),
    Kept(String),
    Listed,
    Adopted,
    Signalled(i32),
    Tree(String),
    OutOfMemory(Key),
    Errand(Errand, Result<OwnedFd, String>),
    Upgraded,
}

/// The exit code for a configuration with which nothing may run (PRODUCT.md, section 4).
const CONFIGURATION: u8 = 78;

/// What woke us.
const SIGNALS: u64 = 0;
const AGENT: u64 = 1;
const PROCESS: u64 = 2;
const GROUP: u64 = 3;

/// The path of the cgroups for workers, where a service manager has made them.
pub(crate) const CGROUP_VARIABLE: &str = "SELFSTART_CGROUP";

/// What may be set in the cgroup of a child. The agent decides how much, not what.
const GROUP_SETTINGS: [&str; 7] = ["memory.max", "memory.high", "memory.swap.max", "memory.oom.group", "cpu.max", "cpu.weight", "pids.max"];

struct Agent {
    /// Its number while that is its own: `None` once it is reaped, and its last words are heard.
    pid: Option<i32>,
    line: OwnedFd,
    since: MonoTime,
    greeted: bool,
    /// When it is looked whether it has said that it is alive, and how often it was and it had not; `None`: it has not said so yet.
    silent: Option<(MonoTime, usize)>,
}

/// The children of earlier keepers are being looked for.
#[derive(Debug)]
struct Adopting {
    root: String,
    known: Vec<(Key, i32, u64)>,
    since: MonoTime,
    next: MonoTime,
    said: Option<MonoTime>,
    /// Those who were killed: they hung before their program, or are of another user than their pool's.
    ended: BTreeSet<i32>,
}

/// The read ends of outputs, by their number.
type Streams = Vec<(u8, OwnedFd)>;

/// Output of an adopted child that could not be opened, and is tried again while it lives.
#[derive(Debug)]
struct Unread {
    numbers: Vec<u8>,
    next: MonoTime,
    /// Between the next try and the one after it.
    wait: Duration,
}

/// The most time between two tries to open a worker's output: a worker whose pipe is full waits for it.
const OPEN_AGAIN_MAX: Duration = Duration::from_secs(30);

/// The keeper.
struct Keeper {
    agent_command: Vec<CString>,
    signals: SignalFd,
    epoll: OwnedFd,
    null: Arc<OwnedFd>,
    starter: Starter,
    nofile: (u64, u64),
    /// Descriptors from this number on are [`RESERVE`].
    ceiling: i32,
    reset_oom_score: bool,
    table: Table,
    rights: Rights,
    kept: BTreeMap<String, OwnedFd>,
    /// Leftovers that are not our children and have been killed: their pidfds say when they are gone.
    dying: BTreeMap<i32, OwnedFd>,
    /// The tree of cgroups that we have made ourselves: where, and its name.
    own_tree: Option<(std::path::PathBuf, String)>,
    /// Cgroups that have been killed, by child, with a number each: what is watched says when they are empty.
    emptying: BTreeMap<Key, (u64, OwnedFd)>,
    groups_watched: u64,
    notes: VecDeque<Note>,
    agent: Option<Agent>,
    agent_starts: u32,
    agent_failures: usize,
    last_agent: Option<Ended>,
    next_agent: MonoTime,
    /// When the start of an agent is over: then the code that only a start needs is given back.
    rest_at: Option<MonoTime>,
    /// Whether selfstart was told to end: every agent that comes hears it, not only the one that heard it first.
    leaving: bool,
    /// Whether it was told so twice: then nothing is asked politely.
    hurry: bool,
    quit: Option<u8>,
    adopting: Option<Adopting>,
    /// When the adopted children whose end nothing tells are looked at.
    next_round: MonoTime,
    /// The adopted children of whose output some could not be opened.
    unread: BTreeMap<Key, Unread>,
    buffer: Vec<u8>,
    upgrade: upgrade::Upgrade,
}

/// Runs until the agent says that it is over; returns the exit code. `agent_arguments` are what the agent gets after its own verb.
///
/// The loop is in a second thread, and the first one only waits for it: so the children that we start (the second thread's) and those that
/// dead workers leave to us (the first one's) are two lists in `/proc`, and to see that a worker has left nothing is to read an empty
/// list. With one list it was the better part of a restart with a thousand workers.
///
/// # Errors
/// When the kernel refuses something without which nothing can be minded.
pub(crate) fn run(agent_arguments: Vec<CString>) -> Result<u8, KeeperError> {
    keep(Begin::Nothing(agent_arguments))
}

/// What another selfstart has left to this program, which it has executed in its place.
pub(crate) struct Inherited(handover::State);

/// Returns that, if there was one; called first of all. What cannot be understood is told and left: then a `run` like any goes on, and
/// adopts the workers.
pub(crate) fn inherited() -> Option<Inherited> {
    match handover::inherited()? {
        Ok(state) => Some(Inherited(state)),
        Err(error) => {
            let cause = std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
            complain(&format!("what the former selfstart has left cannot be used, and its workers are adopted: {error}{cause}"));
            None
        }
    }
}

/// Goes on in the place of another selfstart; as [`run`].
///
/// # Errors
/// As [`run`].
pub(crate) fn resume(inherited: Inherited) -> Result<u8, KeeperError> {
    keep(Begin::Inherited(Box::new(inherited.0)))
}

/// `selfstart internal-keeper`: reads what is handed over, and says whether it could be taken over.
pub(crate) fn rehearse() -> std::process::ExitCode {
    handover::rehearsal()
}

/// What there is at first.
enum Begin {
    Nothing(Vec<CString>),
    Inherited(Box<handover::State>),
}

/// How the loop ends.
enum End {
    Quit(u8),
    Execute(handover::Parcel),
}

/// Runs the loop in a thread of its own, and executes what takes its place. That is done here, where no other thread is left: those who
/// are to end with us end with the thread that started them, not with this one.
fn keep(mut begin: Begin) -> Result<u8, KeeperError> {
    loop {
        process::close_inherited_on_exec();
        process::become_subreaper().map_err(doing("become the parent of orphans"))?;
        signals::take_back().map_err(doing("take signals"))?;
        // Here, so that they are blocked in both threads.
        let signals = SignalFd::take().map_err(doing("take signals"))?;
        let thread = std::thread::Builder::new()
            .name("keeper".to_owned())
            .spawn(|| mind(signals, begin))
            .map_err(doing("start the thread that minds"))?;
        match thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))? {
            End::Quit(code) => return Ok(code),
            End::Execute(parcel) => {
                let (state, error) = parcel.execute();
                let state = handover::State::read(state).map_err(|error| doing("go on after all")(io::Error::other(error)))?;
                begin = Begin::Inherited(Box::new(handover::not_executed(state, &error)));
            }
        }
    }
}

/// The loop.
fn mind(signals: SignalFd, begin: Begin) -> Result<End, KeeperError> {
    let mut keeper = match begin {
        Begin::Nothing(arguments) => Keeper::new(signals, arguments)?,
        Begin::Inherited(state) => {
            let mut keeper = Keeper::new(signals, state.arguments())?;
            keeper.restore(*state)?;
            keeper.see_who_ended()?;
            keeper
        }
    };
    loop {
        keeper.turn()?;
        if let Some(code) = keeper.quit {
            return Ok(End::Quit(code));
        }
        if let Some(parcel) = keeper.upgrade.parcel() {
            // Its descriptors stay open for who takes them over, by their numbers.
            std::mem::forget(keeper);
            return Ok(End::Execute(parcel));
        }
    }
}

/// Our environment, without what is meant for one process only.
fn own_environment() -> Vec<CString> {
    use std::os::unix::ffi::OsStrExt;
    let not_ours = [LINE_VARIABLE, STANDING_VARIABLE, LAST_GOOD_VARIABLE, protocol::KEY_VARIABLE, handover::VARIABLE];
    std::env::vars_os()
        .filter(|(name, _)| !not_ours.iter().any(|other| name == other))
        .filter_map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()).ok())
        .collect()
}

/// Duplicates a descriptor out of the way of 0, 1 and 2, which a daemon may have been started without.
fn above_standard(fd: OwnedFd) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(&fd, 10)?)
}

/// Raises our own limit to the hard one (two descriptors a worker), and returns what it was, for the workers.
fn raise_descriptor_limit() -> (u64, u64) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let before = getrlimit(Resource::Nofile);
    // Refused: then fewer workers fit, and each that does not says so when it fails to start.
    let _as_before = setrlimit(Resource::Nofile, Rlimit { current: before.maximum, maximum: before.maximum });
    (before.current.unwrap_or(u64::MAX), before.maximum.unwrap_or(u64::MAX))
}

impl Keeper {
    /// Returns one without children.
    fn new(signals: SignalFd, agent_arguments: Vec<CString>) -> Result<Self, KeeperError> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(doing("make a poll"))?;
        epoll::add(&epoll, &signals, epoll::EventData::new_u64(SIGNALS), epoll::EventFlags::IN).map_err(doing("watch signals"))?;
        let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC, rustix::fs::Mode::empty())
            .map_err(doing("open /dev/null"))?;
        let null = above_standard(null).map_err(doing("move a descriptor"))?;
        let nofile = raise_descriptor_limit();
        let most = i32::try_from(nofile.1).unwrap_or(i32::MAX);
        Ok(Self {
            rights: Rights::new(&agent_arguments),
            agent_command: [c"selfstart".to_owned(), c"internal-agent".to_owned()].into_iter().chain(agent_arguments).collect(),
            signals,
            epoll,
            null: Arc::new(null),
            starter: Starter::default(),
            nofile,
            ceiling: most - RESERVE.min(most / 4),
            // Unreadable: then it cannot be written either.
            reset_oom_score: fs_err::read_to_string("/proc/self/oom_score_adj").is_ok_and(|score| score.trim() != "0"),
            table: Table::default(),
            kept: BTreeMap::new(),
            dying: BTreeMap::new(),
            own_tree: None,
            emptying: BTreeMap::new(),
            groups_watched: 0,
            notes: VecDeque::new(),
            agent: None,
            agent_starts: 0,
            agent_failures: 0,
            last_agent: None,
            next_agent: clock::now(),
            rest_at: None,
            leaving: false,
            hurry: false,
            quit: None,
            adopting: None,
            next_round: clock::now(),
            unread: BTreeMap::new(),
            buffer: Vec::new(),
            upgrade: upgrade::Upgrade::new(),
        })
    }

    /// Waits for something, deals with all of it, tells the agent.
    fn turn(&mut self) -> Result<(), KeeperError> {
        if self.go_on_upgrading() {
            return Ok(());
        }
        if self.agent.is_none() && clock::now() >= self.next_agent && !self.rights.are_being_looked_up() {
            if let Err(error) = self.look_up_rights().and_then(|known| if known { self.start_agent() } else { Ok(()) }) {
                // Out of descriptors, say: the workers are minded no worse for trying again.
                complain(&error.to_string());
                self.plan_agent(clock::now());
            }
        }
        self.leave_without_agent();
        if self.quit.is_some() {
            return Ok(());
        }
        // While who may do what is looked up, the end of the helper wakes us.
        let waits = self.agent.is_none() && !self.rights.are_being_looked_up();
        let agent = waits.then(|| clock::now().until(self.next_agent) + Duration::from_millis(1));
        let errand = self.rights.deadline().map(|at| clock::now().until(at) + Duration::from_millis(1));
        // What could not be looked at or opened is tried again.
        let clearing = self.table.next_look(clock::now());
        let rest = self.rest_at.map(|at| clock::now().until(at) + Duration::from_millis(1));
        let adopting = self.adopting.as_ref().map(|adopting| clock::now().until(adopting.next) + Duration::from_millis(1));
        let round = self.table.has_unwatched().then(|| clock::now().until(self.next_round) + Duration::from_millis(1));
        let silent = self.agent.as_ref().and_then(|agent| agent.silent).map(|(at, _)| clock::now().until(at) + Duration::from_millis(1));
        let unread = self.unread.values().map(|unread| clock::now().until(unread.next) + Duration::from_millis(1)).min();
        // A futex is nothing that can be polled. It is only told that it is over; its end is a signal like any.
        let late = self.starter.hangs().then_some(LOOK_AGAIN);
        let upgrade = self.upgrade.next().map(|at| clock::now().until(at) + Duration::from_millis(1));
        let wait = agent
            .into_iter()
            .chain(errand)
            .chain(upgrade)
            .chain(silent)
            .chain(clearing)
            .chain(rest)
            .chain(adopting)
            .chain(round)
            .chain(unread)
            .chain(late)
            .min();
        let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 64];
        let timeout = wait.and_then(|wait| Timespec::try_from(wait).ok());
        let woken = match epoll::wait(&self.epoll, &mut events[..], timeout.as_ref()) {
            Ok(woken) => woken,
            Err(rustix::io::Errno::INTR) => 0,
            Err(error) => return Err(doing("wait")(error)),
        };
        if self.rest_at.is_some_and(|at| at <= clock::now()) {
            self.rest_at = None;
            crate::sys::rest::rest();
        }
        let mut ended = Vec::new();
        let mut hear = false;
        for event in &events[..woken] {
            let (flags, token) = (event.flags, event.data.u64());
            match token & 3 {
                SIGNALS => self.take_signals(&mut ended)?,
                GROUP => self.group_changed(token >> 2),
                AGENT => hear = flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR) || hear,
                _ => self.adopted_gone(i32::try_from(token >> 2).unwrap_or(0), &mut ended),
            }
        }
        self.make_round(&mut ended);
        self.note_exits(ended);
        if hear {
            self.hear();
        } else {
            // Only when there is nothing from it to be read.
            self.look_at_silence();
        }
        self.rights.end_late(clock::now());
        self.go_on_adopting();
        self.open_unread();
        self.say_late();
        self.clear_trees();
        self.tell();
        // Last: the agent has something to do meanwhile.
        self.table.remove_groups();
        Ok(())
    }

    /// Says what became of the starts that hung. One that failed ends with 127, which is heard like any end.
    fn say_late(&mut self) {
        for late in self.starter.late() {
            let pid = late.pid;
            complain(&match late.failed {
                None => format!("the start of process {pid} hangs no more"),
                Some(error) => format!("process {pid} could not be started after all ({:?}): {}", error.step, error.source),
            });
        }
    }

    /// Reads pending signals; an ended child is reaped at once, any number of them for one signal.
    fn take_signals(&mut self, ended: &mut Vec<Key>) -> Result<(), KeeperError> {
        while let Some(number) = self.signals.next().map_err(doing("read signals"))? {
            if number == libc::SIGUSR2 {
                // Not the agent's affair: it may be the reason.
                self.begin_upgrade(false, "USR2".to_owned());
            } else if number != libc::SIGCHLD {
                let end = matches!(number, libc::SIGTERM | libc::SIGINT);
                self.hurry = self.hurry || (end && self.leaving);
                self.leaving = self.leaving || end;
                // Two of a kind say all that many would.
                if self.notes.iter().filter(|note| matches!(note, Note::Signalled(noted) if *noted == number)).count() < 2 {
                    self.notes.push_back(Note::Signalled(number));
                }
            }
        }
        // Before those that failed late are reaped: they have a reason.
        self.say_late();
        while let Some((pid, how)) = process::reap().map_err(doing("reap"))? {
            self.starter.reaped(pid);
            if self.agent.as_ref().is_some_and(|agent| agent.pid == Some(pid)) {
                self.agent_ended(how);
            } else if let Some(over) = self.rights.reaped(pid, how) {
                self.errand_over(over);
            } else if self.rehearsal_ended(pid, how) {
                continue;
            } else if let Some(key) = self.table.ended(pid, how, clock::now()) {
                ended.push(key);
            }
        }
        Ok(())
    }

    /// A process that is not our child has ended: an adopted main process, or a leftover that was killed.
    fn adopted_gone(&mut self, pid: i32, ended: &mut Vec<Key>) {
        if let Some(watched) = self.dying.remove(&pid) {
            unwatch(&self.epoll, &watched);
        }
        if let Some(pidfd) = self.table.adopted(pid) {
            unwatch(&self.epoll, &pidfd);
            ended.extend(self.table.ended(pid, Ended::Unknown, clock::now()));
        }
    }

    /// Looks once for what the ended left behind, and notes each exit with the answer.
    fn note_exits(&mut self, ended: Vec<Key>) {
        if ended.is_empty() {
            return;
        }
        let left = self.table.leftovers(&ended);
        for key in ended {
            // What could not be looked at is not gone.
            // Before its cgroup goes with the last of it.
            self.table.count(&key);
            self.table.set_tree_gone(&key, left.as_ref().is_ok_and(|left| !left.contains_key(&key)));
            self.note_exit(key);
        }
    }

    /// Lines up the end of a child, and what the kernel had to do with it.
    fn note_exit(&mut self, key: Key) {
        if self.table.get(&key).is_some_and(|child| child.counted.oom > 0) {
            self.notes.push_back(Note::OutOfMemory(key.clone()));
        }
        self.notes.push_back(Note::Exited(key));
    }

    /// A cgroup that was killed has changed: the look at what is being cleared, in this turn, sees how.
    fn group_changed(&mut self, number: u64) {
        if let Some(key) = self.emptying.iter().find(|(_, (watched, _))| *watched == number).map(|(key, _)| key.clone()) {
            if let Some((_, watched)) = self.emptying.remove(&key) {
                unwatch(&self.epoll, &watched);
            }
        }
    }

    /// Kills a whole cgroup, and has its emptiness told; false when it must be done one by one.
    fn kill_group(&mut self, key: &str) -> bool {
        let Some(Ok(group)) = self.table.group(key) else { return false };
        // Before the kill: what is empty when it is first looked at is no news. Without it, it is seen at the next look.
        let events = if self.emptying.contains_key(key) { None } else { group.watch().ok() };
        if group.kill().is_err() {
            return false;
        }
        if let Some(events) = events {
            self.watch_emptying(key, events);
        }
        true
    }

    /// Has the end of the last one in a cgroup told.
    fn watch_emptying(&mut self, key: &str, events: OwnedFd) {
        if !self.has_place_for(&events) {
            return;
        }
        self.groups_watched += 1;
        let token = epoll::EventData::new_u64((self.groups_watched << 2) | GROUP);
        if epoll::add(&self.epoll, &events, token, epoll::EventFlags::PRI).is_ok() {
            self.emptying.insert(key.to_owned(), (self.groups_watched, events));
        }
    }

    /// Kills what is left of each tree that is being cleared; a tree of which nothing is left is told.
    fn clear_trees(&mut self) {
        let clearing = self.table.clearing();
        // Whom the tree of an adopted child may belong to is not known before.
        if clearing.is_empty() || !self.rights.are_told() {
            return;
        }
        let left = match self.table.leftovers(&clearing) {
            Ok(left) => left,
            Err(error) => return complain(&format!("what is left of ended workers cannot be seen: {error}")),
        };
        let now = clock::now();
        for key in clearing {
            let left = left.get(&key);
            if let Some(left) = left.filter(|left| !left.processes.is_empty()) {
                self.table.doubt(&key, false, now);
                let again = self.emptying.contains_key(&key);
                let killed = match self.kill_group(&key) {
                    true if again => 0,
                    true => u32::try_from(left.processes.len()).unwrap_or(u32::MAX),
                    false => self.kill_all(&left.processes),
                };
                self.table.count_killed(&key, killed);
                continue;
            }
            if let Some(pid) = left.and_then(|left| left.doubtful) {
                if !self.table.doubt(&key, true, now) {
                    continue;
                }
                complain(&format!("whether process {pid} is left of {key} cannot be seen: taken for a stranger's"));
            }
            if let Some((_, watched)) = self.emptying.remove(&key) {
                unwatch(&self.epoll, &watched);
            }
            if let Some(killed) = self.table.cleared(&key) {
                self.notes.push_back(Note::TreeGone(key, killed));
            }
        }
    }

    /// Sends KILL to each process that is still the one it was, and watches it go; returns how many had not been sent it before.
    fn kill_all(&mut self, processes: &[ProcessId]) -> u32 {
        let mut killed = 0;
        for &id in processes {
            let pidfd = match process::open(id) {
                Ok(pidfd) => pidfd,
                // Gone meanwhile: what was wanted.
                Err(error) if process::is_gone(&error) => continue,
                Err(error) => {
                    complain(&format!("process {} cannot be killed now: {error}", id.pid));
                    continue;
                }
            };
            let sent = process::signal_open(pidfd.as_fd(), libc::SIGKILL);
            if let Err(error) = sent {
                // Without root, one that became another user's: its tree is never gone. Said once, as it is tried again and again.
                if !self.dying.contains_key(&id.pid) {
                    complain(&format!("process {} may not be killed: {error}", id.pid));
                }
            }
            // Without a place for it, its end is seen at the next look.
            if !self.dying.contains_key(&id.pid) && self.has_place_for(&pidfd) {
                let token = epoll::EventData::new_u64((u64::from(id.pid.unsigned_abs()) << 2) | PROCESS);
                if epoll::add(&self.epoll, &pidfd, token, epoll::EventFlags::IN).is_ok() {
                    self.dying.insert(id.pid, pidfd);
                    killed += 1;
                }
            }
        }
        killed
    }

    /// Told to end, with an agent that cannot come up to see to it: asks the workers itself, and ends when they have.
    fn leave_without_agent(&mut self) {
        if !self.leaving || self.agent_failures < HOPELESS || self.quit.is_some() {
            return;
        }
        let left = self.table.running_children();
        if left.is_empty() {
            complain("no agent comes up, and nothing runs any more: ending");
            self.quit = Some(1);
        }
        for key in left {
            if self.hurry {
                self.obey(Ask::KillTree { key }, Vec::new());
                continue;
            }
            // Those that have it already are not hurt by a second one.
            if let Some(error) = self.table.signal(&key, libc::SIGTERM) {
                complain(&format!("{key} could not be signalled: {error}"));
            }
        }
    }

    /// Starts an agent at the other end of a new line.
    fn start_agent(&mut self) -> Result<(), KeeperError> {
        let (ours, theirs) = packet::pair().map_err(doing("make a line to the agent"))?;
        let (stdin, theirs) = (self.null.as_fd(), above_standard(theirs).map_err(doing("move a descriptor"))?);
        let out = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 10).or_else(|_| rustix::io::fcntl_dupfd_cloexec(stdin, 10));
        let err = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 10).or_else(|_| rustix::io::fcntl_dupfd_cloexec(stdin, 10));
        let (out, err) = (out.map_err(doing("copy a descriptor"))?, err.map_err(doing("copy a descriptor"))?);
        let mut env = own_environment();
        env.extend(CString::new(format!("{LINE_VARIABLE}={AGENT_LINE_FD}")));
        let standing = if self.rights.split().is_some() { Some(STANDING_SPLIT) } else { self.rights.said() };
        env.extend(standing.and_then(|standing| CString::new(format!("{STANDING_VARIABLE}={standing}")).ok()));
        env.extend(self.rights.last_good().and_then(|(root, why)| CString::new(format!("{LAST_GOOD_VARIABLE}={root}\n{why}")).ok()));
        // Before there is an agent: one that is not listened to would mind nothing, for ever.
        epoll::add(&self.epoll, &ours, epoll::EventData::new_u64(AGENT), epoll::EventFlags::IN).map_err(doing("watch the agent"))?;
        self.agent_starts += 1;
        let fds = [out, err, theirs].map(Arc::new);
        let started = self.starter.start_at_any_rate(Job {
            programs: vec![c"/proc/self/exe".to_owned()],
            argv: self.agent_command.clone(),
            env,
            own_pid_at: None,
            cwd: None,
            credentials: self.rights.agent(),
            fds: std::iter::once(Arc::clone(&self.null)).chain(fds).collect(),
            nofile: None,
            nice: None,
            umask: None,
            reset_oom_score: false,
            // Ctrl-C and `timeout` signal the whole process group: what is meant for the node must come to the keeper only.
            new_session: true,
            dies_with_us: true,
            confined: self.rights.split().is_some(),
            called: None,
            cgroup: None,
        });
        match started {
            Ok(Started::Executed(pid) | Started::Hangs(pid)) => {
                self.table.agent = Some(pid);
                self.agent = Some(Agent { pid: Some(pid), line: ours, since: clock::now(), greeted: false, silent: None });
                // Whoever watches over us sees that we are.
                watchdog();
            }
            Err(SpawnError { source, .. }) => {
                unwatch(&self.epoll, &ours);
                complain(&format!("the agent could not be started: {source}"));
                self.plan_agent(clock::now());
            }
        }
        Ok(())
    }

    /// The agent has ended: hear what it said last, then have another started.
    fn agent_ended(&mut self, how: Ended) {
        // It is reaped, so its number can be anybody's by now: whatever is heard below, nothing is signalled by it.
        if let Some(agent) = &mut self.agent {
            agent.pid = None;
        }
        self.table.agent = None;
        // All that it said before it ended counts, its last word most.
        while self.hear() && self.quit.is_none() {}
        if let Some(agent) = self.agent.take() {
            unwatch(&self.epoll, &agent.line);
            self.plan_agent(agent.since);
        }
        self.notes.retain(|note| matches!(note, Note::Signalled(_)));
        self.rights.agent_ended();
        // The next one asks itself.
        self.adopting = None;
        self.last_agent = Some(how);
        self.agent_of_trial_ended(how);
        if self.quit.is_none() && !self.upgrade.goes_on() {
            self.upgrade.agent_ended_by_itself();
            complain(&format!("the agent has ended ({}); starting it again", describe(how)));
        }
    }

    /// Sets when the next agent is started: at once after one that was steady, later and later after those that were not.
    fn plan_agent(&mut self, since: MonoTime) {
        let now = clock::now();
        self.agent_failures = if now.since(since) >= AGENT_STEADY { 0 } else { self.agent_failures + 1 };
        self.next_agent = now + AGENT_BACKOFF[self.agent_failures.min(AGENT_BACKOFF.len() - 1)];
    }

    /// Takes what the agent has sent, up to a turn's worth; returns whether there may be more.
    fn hear(&mut self) -> bool {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut more = true;
        for _ in 0..MESSAGES_A_TURN {
            let Some(agent) = &self.agent else {
                more = false;
                break;
            };
            let fds = match packet::receive(agent.line.as_fd(), &mut buffer) {
                Ok(fds) => fds,
                // It ended without having read everything; what it said before comes after this.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => continue,
                Err(error) => {
                    more = false;
                    if error.kind() != io::ErrorKind::WouldBlock {
                        complain(&format!("the line to the agent failed: {error}"));
                        self.end_agent();
                    }
                    break;
                }
            };
            if buffer.is_empty() {
                // The other end is closed. One that has closed its line minds nothing any more, whether it ends by itself or not.
                unwatch(&self.epoll, &agent.line);
                self.end_agent();
                more = false;
                break;
            }
            if self.notes.len() > rights::NOTES_MAX + 4 * self.table.len() {
                complain("the agent asks and does not listen: it is ended, and the next one goes on");
                self.notes.clear();
                self.end_agent();
                more = false;
                break;
            }
            match decode::<Ask>(&buffer) {
                Ok(ask) => match bounds::look(&ask) {
                    Ok(()) => self.obey(ask, fds),
                    Err(why) => self.refuse(&ask, &why),
                },
                Err(error) => {
                    complain(&format!("the agent said something else: {error}"));
                    self.end_agent();
                    more = false;
                    break;
                }
            }
        }
        // What a large message needed is given back, so that memory does not grow with the largest.
        buffer.clear();
        buffer.shrink_to(BUFFER_BYTES);
        self.buffer = buffer;
        more
    }

    /// Answers what is not done because it is too long. Whose very name is too long is not held either, to be told.
    fn refuse(&mut self, ask: &Ask, why: &bounds::TooLong) {
        complain(&format!("the agent has asked for too much: {why}"));
        if let Ask::Spawn(start) | Ask::SpawnIn { start, .. } = ask {
            if start.key.len() <= bounds::KEY_MAX {
                self.notes.push_back(Note::SpawnFailed(start.key.clone(), Step::Execute, libc::E2BIG));
            }
        }
        if let Ask::Adopt { .. } = ask {
            self.notes.push_back(Note::Adopted);
        }
    }

    /// Ends an agent whose loop has stopped: the next one goes on, and nothing of the workers changes.
    fn look_at_silence(&mut self) {
        let now = clock::now();
        let Some(agent) = &mut self.agent else { return };
        match &mut agent.silent {
            Some((at, looks)) if *at <= now => {
                *looks += 1;
                let after = SILENCE.get(*looks).copied();
                *at = now + after.unwrap_or(LOOK_AGAIN);
                if after.is_none() {
                    complain("the agent has not said for 25 seconds that it is alive: it is ended, and the next one goes on");
                    self.end_agent();
                }
            }
            _ => {}
        }
    }

    /// Ends an agent that cannot be understood; its exit starts the next.
    fn end_agent(&self) {
        if let Some(pid) = self.agent.as_ref().and_then(|agent| agent.pid) {
            let _gone_already = process::signal_child(pid, libc::SIGKILL);
        }
    }

    fn obey(&mut self, ask: Ask, mut fds: Vec<OwnedFd>) {
        match ask {
            Ask::Hello { protocol } => self.greet(protocol),
            Ask::Spawn(start) => self.start_child(&start, None, fds.pop()),
            Ask::SpawnIn { start, settings } => self.start_child(&start, Some(&settings), fds.pop()),
            Ask::Tree { name } => {
                let why = match self.open_tree(&name) {
                    Ok(()) => String::new(),
                    Err(error) => error.to_string(),
                };
                self.notes.push_back(Note::Tree(why));
            }
            Ask::Signal { key, number } => {
                let number = self.harmless(&key, number);
                if let Some(error) = self.table.signal(&key, number) {
                    complain(&format!("{key} could not be signalled: {error}"));
                }
            }
            Ask::SignalJob { pid, start_ticks, title, number } => {
                signal_job(ProcessId { pid, start_ticks }, &title, number, |pid| self.descends_from_a_child(pid));
            }
            Ask::KillTree { key } => {
                // The main process is ours to signal even when nobody else can be seen.
                self.table.signal(&key, libc::SIGKILL);
                if self.kill_group(&key) {
                    return;
                }
                match self.table.tree(&key) {
                    Ok(everyone) => {
                        self.kill_all(&everyone);
                    }
                    Err(error) => complain(&format!("the tree of {key} cannot be seen: {error}")),
                }
            }
            Ask::ClearTree { key } => {
                if !self.table.clear(&key) {
                    // Not there any more, so nothing is left of it; the agent must hear it all the same.
                    self.notes.push_back(Note::TreeGone(key, 0));
                }
            }
            Ask::Forget { key } => self.table.forget(&key),
            Ask::Adopt { root, .. } if self.rights.split().is_some_and(|split| split.root != root) => {
                complain(&format!("`{root}` is not the root that is minded here: nobody of it is adopted"));
                self.notes.push_back(Note::Adopted);
            }
            Ask::Adopt { root, known } => {
                let now = clock::now();
                self.adopting = Some(Adopting { root, known, since: now, next: now, said: None, ended: BTreeSet::new() });
            }
            Ask::Keep { name } => {
                let place = self.kept.contains_key(&name) || self.kept.len() < rights::KEPT_MAX;
                if let Some(fd) = fds.pop().filter(|_| place) {
                    self.kept.insert(name, fd);
                }
            }
            Ask::Notify { state } => notify(&rights::sayable(&state)),
            Ask::Errand(errand) => {
                let mains = self.mains_of(&errand);
                if let Err(why) = self.rights.begin(errand.clone(), mains, &mut self.starter, &self.null) {
                    self.notes.push_back(Note::Errand(errand.kind(), Err(why)));
                }
            }
            Ask::Alive => {
                // Once in a while what starts and ends of workers needed meanwhile is given back, too.
                self.rest_at.get_or_insert_with(|| clock::now() + SETTLED_AFTER);
                if let Some(agent) = &mut self.agent {
                    agent.silent = Some((clock::now() + SILENCE[0], 0));
                }
                watchdog();
                self.agent_is_up();
            }
            Ask::Upgrade { placed, by } => self.begin_upgrade(placed, by),
            Ask::UpgradeNoted { number } => self.upgrade.noted(number),
            Ask::Quit { code } if self.may_quit() => {
                self.quit = Some(code);
                self.table.remove_groups();
                if let Some((mount, name)) = &self.own_tree {
                    // Nobody is in it any more, or it stays for who comes next.
                    let _stays = cgroup::Tree::open(mount).and_then(|mount| mount.remove(name));
                }
            }
            Ask::Quit { .. } => {}
        }
    }

    /// Sees that it is known who may do what, before an agent is started; returns whether it is.
    fn look_up_rights(&mut self) -> Result<bool, KeeperError> {
        if self.rights.are_known() {
            return Ok(true);
        }
        let begun = self.rights.begin(Errand::Order, Vec::new(), &mut self.starter, &self.null);
        begun.map(|()| false).map_err(|why| doing("look up who may do what")(io::Error::other(why)))
    }

    /// The main processes of the children that an errand is about: whoever asks knows them by name only.
    fn mains_of(&self, errand: &Errand) -> Vec<Measured> {
        let Errand::Memory(of) = errand else { return Vec::new() };
        let main = |key: &Key| self.table.get(key).map_or((0, 0), |child| (child.id.pid, child.id.start_ticks));
        of.iter().map(|(key, limit)| Measured { main: main(key), limit: *limit }).collect()
    }

    /// A helper that was root has ended.
    fn errand_over(&mut self, over: Over) {
        let Over { errand, answer } = over;
        let answer = if errand == Errand::Order { self.ordered(answer) } else { answer };
        if self.agent.is_some() {
            self.notes.push_back(Note::Errand(errand.kind(), answer));
        }
        let failed = self.rights.go_on(&mut self.starter, &self.null);
        self.notes.extend(failed.into_iter().map(|over| Note::Errand(over.errand.kind(), over.answer)));
    }

    /// Takes over who may do what; returns what the agent is told of it.
    fn ordered(&mut self, answer: Result<OwnedFd, String>) -> Result<OwnedFd, String> {
        let copy = answer.as_ref().ok().and_then(|answer| answer.try_clone().ok());
        let before = self.rights.said().map(str::to_owned);
        let (then, result) = self.rights.ordered(answer);
        (self.table.users, self.table.pools) = (self.rights.users().cloned(), self.rights.pools().cloned());
        match (&then, &result) {
            (Ordered::Never(why), _) => {
                complain(&format!("no agent is started: {why}"));
                // Who has taken over running workers from a former program does not leave them for it; who is on trial has not passed.
                self.quit = (self.may_quit() && self.table.len() == 0).then_some(CONFIGURATION);
            }
            (_, Err(why)) => complain(&format!("who may do what is as it was: {why}")),
            (_, Ok(())) if self.rights.last_good().is_some() => {
                let why = self.rights.last_good().map_or("", |(_, why)| why);
                complain(&format!("the configuration is not believed, and the last good one is run: {why}"));
            }
            (_, Ok(())) => match self.rights.said() {
                Some(why) if before.as_deref() != Some(why) => complain(&format!("the agent runs as root: {why}")),
                _ => {}
            },
        }
        if then != Ordered::Go && self.quit.is_none() {
            self.plan_agent(clock::now());
        }
        result.and_then(|()| copy.ok_or_else(|| "out of descriptors".to_owned()))
    }

    /// Whether a process descends from a child of ours that lives: only such are signalled by their number. Below one that was adopted by
    /// the agent's word alone, only what belongs to the users of the configuration.
    fn descends_from_a_child(&self, pid: i32) -> io::Result<bool> {
        const DEEPEST: u32 = 256;
        let mut at = pid;
        for _ in 0..DEEPEST {
            at = process::stat(at)?.ppid;
            if at <= 1 {
                break;
            }
            let Some(child) = self.table.running_at(at) else { continue };
            return Ok(!child.adopted || (process::lives(child.id)? && self.table.may_be_adopted(pid)));
        }
        Ok(false)
    }

    /// Returns the signal that ends a child without us. One that dumps core ends, before Linux 5.16, all that share its memory
    /// (`zap_threads` in fs/coredump.c), and a child that hangs before its program shares ours. There is nobody yet to be polite to.
    fn harmless(&self, key: &str, number: i32) -> i32 {
        /// Whose default is a core dump (`signal(7)`).
        const CORE: [i32; 10] = [
            libc::SIGQUIT,
            libc::SIGILL,
            libc::SIGTRAP,
            libc::SIGABRT,
            libc::SIGBUS,
            libc::SIGFPE,
            libc::SIGSEGV,
            libc::SIGXCPU,
            libc::SIGXFSZ,
            libc::SIGSYS,
        ];
        let hangs = || self.table.get(key).is_some_and(|child| self.starter.hangs_at(child.id.pid));
        if CORE.contains(&number) && hangs() { libc::SIGKILL } else { number }
    }

    /// Lines up all that an agent must know.
    fn greet(&mut self, protocol: u32) {
        if protocol != PROTOCOL {
            complain(&format!("the agent speaks protocol {protocol}, the keeper {PROTOCOL}"));
        }
        if let Some(agent) = &mut self.agent {
            agent.greeted = true;
        }
        let signals: Vec<Note> = self.notes.drain(..).filter(|note| matches!(note, Note::Signalled(_))).collect();
        self.notes.push_back(Note::Welcome);
        for (key, ended) in self.table.everything().collect::<Vec<_>>() {
            self.notes.push_back(Note::Child(key.clone()));
            if ended {
                self.note_exit(key);
            }
        }
        self.notes.extend(self.kept.keys().cloned().map(Note::Kept));
        self.notes.extend(self.upgrade.report().map(|_| Note::Upgraded));
        self.notes.push_back(Note::Listed);
        if self.leaving && !signals.iter().any(|note| matches!(note, Note::Signalled(libc::SIGTERM | libc::SIGINT))) {
            self.notes.push_back(Note::Signalled(libc::SIGTERM));
        }
        self.notes.extend(signals);
        self.rest_at = Some(clock::now() + SETTLED_AFTER);
    }

    /// Opens the tree of cgroups that is ours: the one that a service manager names, or else, where there is no systemd to whom all
    /// others belong, one that we make.
    fn open_tree(&mut self, name: &str) -> io::Result<()> {
        if self.rights.split().is_some_and(|split| split.tree != name) {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("`{name}` is not this node's")));
        }
        let path = match std::env::var_os(CGROUP_VARIABLE) {
            Some(path) => std::path::PathBuf::from(path),
            None if std::path::Path::new("/run/systemd/system").exists() => {
                return Err(io::Error::other(format!("{CGROUP_VARIABLE} names none, and all others are systemd's")));
            }
            None => {
                let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
                if !name.strip_prefix("selfstart-").is_some_and(|rest| !rest.is_empty() && rest.bytes().all(plain)) {
                    return Err(io::Error::from(io::ErrorKind::InvalidInput));
                }
                let mount = cgroup::mount_point()?;
                if !cgroup::can_limit(&mount)? {
                    // Beside the old hierarchies, which have them all: it would cost each start and limit nothing.
                    return Err(io::Error::other(format!("`{}` has no controllers", mount.display())));
                }
                let path = cgroup::make_tree(&mount, name)?;
                self.own_tree = Some((mount, name.to_owned()));
                path
            }
        };
        if self.table.tree.as_ref().is_none_or(|tree| tree.path() != path) {
            self.table.tree = Some(cgroup::Tree::open(&path)?);
        }
        Ok(())
    }

    /// Makes the cgroup of a child; `None`: there is no tree.
    fn make_group(&self, key: &str, settings: Option<&[(String, String)]>) -> Result<Option<(String, cgroup::Group)>, SpawnError> {
        let wrong = |source| SpawnError { step: Step::Cgroup, source };
        let (Some(tree), Some(settings)) = (&self.table.tree, settings) else { return Ok(None) };
        let name = table::group_name(key).ok_or_else(|| wrong(io::Error::from_raw_os_error(libc::EINVAL)))?;
        if settings.iter().any(|(file, _)| !GROUP_SETTINGS.contains(&file.as_str())) {
            return Err(wrong(io::Error::from_raw_os_error(libc::EPERM)));
        }
        let group = tree.make(&name, settings).map_err(|error| {
            complain(&format!("{key}: {error}"));
            wrong(error)
        })?;
        Ok(Some((name, group)))
    }

    fn start_child(&mut self, start: &Start, settings: Option<&[(String, String)]>, stdin: Option<OwnedFd>) {
        if self.table.has(&start.key) {
            self.notes.push_back(Note::Child(start.key.clone()));
            return;
        }
        match self.spawn(start, settings, stdin) {
            Ok(child) => {
                self.table.insert(start.key.clone(), child);
                self.notes.push_back(Note::Child(start.key.clone()));
            }
            Err(SpawnError { step, source }) => {
                self.notes.push_back(Note::SpawnFailed(start.key.clone(), step, source.raw_os_error().unwrap_or(libc::EINVAL)));
            }
        }
    }

    fn spawn(&mut self, start: &Start, settings: Option<&[(String, String)]>, stdin: Option<OwnedFd>) -> Result<Child, SpawnError> {
        let text = |text: &str| {
            CString::new(text).map_err(|_| SpawnError { step: Step::Execute, source: io::Error::from_raw_os_error(libc::EINVAL) })
        };
        let texts = |list: &[String]| list.iter().map(|one| text(one)).collect::<Result<Vec<_>, _>>();
        bounds::place_for(Child::bytes(&start.key, &start.root, &start.note), self.table.len(), self.table.held()).map_err(|why| {
            complain(&format!("{} is not started: {why}", start.key));
            SpawnError { step: Step::Clone, source: io::Error::from_raw_os_error(libc::ENOMEM) }
        })?;
        let pipes = |source| SpawnError { step: Step::Descriptors, source };
        let credentials = self.rights.judge(start).map_err(|why| {
            complain(&format!("{} is not started: {why}", start.key));
            SpawnError { step: Step::User, source: io::Error::from_raw_os_error(libc::EPERM) }
        })?;
        let programs = texts(&start.programs)?;
        let argv = texts(&start.argv)?;
        let mut env = Vec::with_capacity(start.env.len() + 1);
        // Of two entries of one name the first counts, and it must be ours.
        for (name, value) in start.env.iter().filter(|(name, _)| name != protocol::KEY_VARIABLE) {
            env.push(text(&format!("{name}={value}"))?);
        }
        env.push(text(&format!("{}={}:0000000000@{}", protocol::KEY_VARIABLE, start.key, start.root))?);
        let own_pid_at = Some((env.len() - 1, protocol::KEY_VARIABLE.len() + 1 + start.key.len() + 1));
        let cwd = text(&start.cwd)?;
        let size = usize::try_from(start.pipe_bytes.min(rights::PIPE_MAX_BYTES)).unwrap_or(0);
        let (out, worker_out) = process::output_pipe(size).map_err(pipes)?;
        let (err, worker_err) = process::output_pipe(size).map_err(pipes)?;
        if !self.has_place_for(&out) || !self.has_place_for(&err) {
            return Err(pipes(io::Error::from_raw_os_error(libc::EMFILE)));
        }
        if let Some(Credentials { uid, gid, .. }) = &credentials {
            // So that the worker may open /dev/stdout and /dev/stderr, which many programs log to.
            for pipe in [&worker_out, &worker_err] {
                let owner = (rustix::process::Uid::from_raw(*uid), rustix::process::Gid::from_raw(*gid));
                rustix::fs::fchown(pipe, Some(owner.0), Some(owner.1)).map_err(|error| pipes(error.into()))?;
            }
        }
        let group = self.make_group(&start.key, settings)?;
        let (group, cgroup) = group.map(|(name, group)| (name, group.into_dir())).unzip();
        let stdin = stdin.map_or_else(|| Arc::clone(&self.null), Arc::new);
        let started = self
            .starter
            .start(Job {
                programs,
                argv,
                env,
                own_pid_at,
                cwd: Some(cwd),
                credentials,
                fds: vec![stdin, Arc::new(worker_out), Arc::new(worker_err)],
                nofile: Some(start.nofile.map_or(self.nofile, |limit| (limit, limit))),
                nice: start.nice,
                umask: Some(start.umask.unwrap_or(0o022)),
                reset_oom_score: self.reset_oom_score,
                new_session: true,
                dies_with_us: start.helper,
                confined: false,
                called: Some(table::called_at_first(&start.root)),
                cgroup,
            })
            .inspect_err(|_| {
                if let (Some(tree), Some(name)) = (&self.table.tree, &group) {
                    let _when_the_next_agent_comes_up = tree.remove(name);
                }
            })?;
        let pid = match started {
            Started::Executed(pid) => pid,
            Started::Hangs(pid) => {
                // A child all the same: its slot is taken until it ends, so nothing is started beside it.
                let key = &start.key;
                complain(&format!(
                    "{key} (process {pid}) has not executed its program yet: does the mount with its release or its program hang?"
                ));
                pid
            }
        };
        // Two descriptors are free again for the look that needs one. Not reaped yet, so it is there even if it has ended already.
        let start_ticks = process::stat(pid).map_or(0, |seen| seen.start_ticks);
        let mut child = Child::new(ProcessId { pid, start_ticks }, false, vec![(1, out), (2, err)], start.root.clone(), start.note.clone());
        child.group = group;
        Ok(child)
    }

    /// Whether a descriptor may stay open: the kernel gives the lowest number that is free, so one of the [`RESERVE`] says that nothing
    /// else is left.
    fn has_place_for(&self, fd: &OwnedFd) -> bool {
        use std::os::fd::AsRawFd;
        fd.as_raw_fd() < self.ceiling
    }

    /// Takes over the children of an earlier keeper: says that all have been told only when everybody could be looked at. A worker that
    /// was overlooked would get a second one beside it.
    fn go_on_adopting(&mut self) {
        let now = clock::now();
        let Some(mut adopting) = self.adopting.take_if(|adopting| adopting.next <= now) else { return };
        let found = table::survivors(&adopting.root, &adopting.known, &self.table);
        let living: Vec<Key> = found.living.iter().map(|(key, _)| key.clone()).collect();
        for (key, id) in found.living {
            self.adopt(key, id, &adopting.root);
        }
        self.end_unstarted(found.unstarted, &mut adopting);
        let stubborn = self.end_those_of_another_user(found.of_another_user, &mut adopting);
        // When all have their output: without that they stop, without this they are looked at every second.
        for key in &living {
            self.watch(key);
        }
        let age = now.since(adopting.since);
        let wait = match found.doubt {
            // Killed, and a slot must not have two.
            None if !stubborn.is_empty() && age < LOOK_SOON_FOR => Some(LOOK_SOON),
            None => None,
            Some(Doubt::Of(pid)) if age >= DOUBT_FOR => {
                complain(&format!("whether process {pid} is a worker of an earlier keeper cannot be seen: taken for a stranger"));
                None
            }
            Some(_) if age < LOOK_SOON_FOR => Some(LOOK_SOON),
            Some(doubt) => {
                if adopting.said.is_none_or(|said| now.since(said) >= SAY_AGAIN) {
                    adopting.said = Some(now);
                    let what = match doubt {
                        Doubt::Of(pid) => format!("process {pid} cannot be seen"),
                        Doubt::All(error) => error.to_string(),
                    };
                    complain(&format!("whether workers of an earlier keeper live is not known yet, so none is started: {what}"));
                }
                Some(LOOK_AGAIN)
            }
        };
        if let Some(wait) = wait {
            adopting.next = now + wait;
            self.adopting = Some(adopting);
            return;
        }
        for (key, pid) in found.strangers.iter().take(SAID_OF_OTHERS) {
            complain(&format!(
                "process {pid} calls itself {key}, and is of no user of the configuration: it is nobody's worker, and lives on"
            ));
        }
        let slot = |key: &Key| key.split('#').next().unwrap_or_default().to_owned();
        let taken: BTreeSet<String> = self.table.running_children().iter().map(slot).collect();
        let stubborn: BTreeMap<Key, ProcessId> = stubborn.into_iter().filter(|(key, _)| !taken.contains(&slot(key))).collect();
        // What does not go at once keeps its own slot waiting, not the node.
        for (key, id) in found.remains.into_iter().collect::<BTreeMap<_, _>>().into_iter().chain(stubborn) {
            let mut child = Child::new(id, true, Vec::new(), adopting.root.clone(), String::new());
            child.life = Life::Ended { how: Ended::Unknown, at: now, tree_gone: false };
            self.table.insert(key.clone(), child);
            self.notes.extend([Note::Child(key.clone()), Note::Exited(key)]);
        }
        self.notes.push_back(Note::Adopted);
    }

    /// Ends those whom an earlier keeper has left before their program: what they would become when a mount is back would be a second worker.
    /// They need not be waited for: who has its KILL does not execute any more.
    fn end_unstarted(&mut self, unstarted: Vec<ProcessId>, adopting: &mut Adopting) {
        self.kill_all(&unstarted);
        for id in unstarted {
            if adopting.ended.insert(id.pid) {
                complain(&format!(
                    "process {} hung before its program when its keeper ended: it is ended, before it is a worker that nobody knows",
                    id.pid
                ));
            }
        }
    }

    /// Kills who calls itself a worker of a pool and is of another user of ours: the pool had that user before, or it lies. It may not be
    /// adopted, as it would have a slot that is another user's; nor live on, beside the one that gets its slot. Returns all of them: they are
    /// there until a look does not find them any more.
    fn end_those_of_another_user(&mut self, found: Vec<(Key, ProcessId)>, adopting: &mut Adopting) -> Vec<(Key, ProcessId)> {
        let ids: Vec<ProcessId> = found.iter().map(|(_, id)| *id).collect();
        self.kill_all(&ids);
        for (key, id) in &found {
            if adopting.ended.insert(id.pid) && adopting.ended.len() <= SAID_OF_OTHERS {
                complain(&format!(
                    "process {} is ended: it calls itself {key}, and is of another user than that pool's workers are now",
                    id.pid
                ));
            }
        }
        found
    }

    /// Takes over one whose main process lives, with what can be had of its output.
    fn adopt(&mut self, key: Key, id: ProcessId, root: &str) {
        let (streams, left) = self.open_outputs(id, &[1, 2]);
        if !left.is_empty() {
            for (number, error) in &left {
                complain(&format!("output {number} of {key} cannot be opened, and is tried again while it lives: {error}"));
            }
            let numbers = left.into_iter().map(|(number, _)| number).collect();
            self.unread.insert(key.clone(), Unread { numbers, next: clock::now() + LOOK_AGAIN, wait: LOOK_AGAIN });
        }
        self.table.insert(key.clone(), Child::new(id, true, streams, root.to_owned(), String::new()));
        self.notes.push_back(Note::Child(key));
    }

    /// Opens output of a process, and returns what can be read, and what could not be opened now. What it has closed, or what is no pipe,
    /// is neither.
    fn open_outputs(&self, id: ProcessId, numbers: &[u8]) -> (Streams, Vec<(u8, io::Error)>) {
        let (mut streams, mut left) = (Vec::new(), Vec::new());
        for &number in numbers {
            match process::reopen_output(id.pid, i32::from(number)) {
                Ok(Some(fd)) if self.has_place_for(&fd) => streams.push((number, fd)),
                Ok(Some(_)) => left.push((number, io::Error::from_raw_os_error(libc::EMFILE))),
                Ok(None) => {}
                // It has closed it.
                Err(error) if process::is_gone(&error) => {}
                Err(error) => left.push((number, error)),
            }
        }
        if matches!(process::lives(id), Ok(false)) {
            // What was opened may be another's, who has the number by now.
            return (Vec::new(), Vec::new());
        }
        (streams, left)
    }

    /// Tries again to open the output of adopted children that could not be opened, less and less often; what can is told to the agent.
    fn open_unread(&mut self) {
        let now = clock::now();
        let due: Vec<Key> = self.unread.iter().filter(|(_, unread)| unread.next <= now).map(|(key, _)| key.clone()).collect();
        for key in due {
            let Some(mut unread) = self.unread.remove(&key) else { continue };
            let Some(id) = self.table.get(&key).filter(|child| matches!(child.life, Life::Running)).map(|child| child.id) else { continue };
            let (streams, left) = self.open_outputs(id, &unread.numbers);
            if !left.is_empty() {
                unread.numbers = left.into_iter().map(|(number, _)| number).collect();
                unread.next = now + unread.wait;
                unread.wait = (unread.wait * 2).min(OPEN_AGAIN_MAX);
                self.unread.insert(key.clone(), unread);
            }
            if streams.is_empty() {
                continue;
            }
            let numbers: Vec<u8> = streams.iter().map(|(number, _)| *number).collect();
            complain(&format!("output {numbers:?} of {key} is read again"));
            self.table.found(&key, streams);
            // One who has not been told of the child yet is told of all of its output with it.
            if !self.notes.iter().any(|note| matches!(note, Note::Child(told) if *told == key)) {
                self.notes.push_back(Note::Streams(key, numbers));
            }
        }
    }

    /// Has the end of an adopted child told, if there is a descriptor for it.
    fn watch(&mut self, key: &str) {
        let Some(id) = self.table.get(key).map(|child| child.id) else { return };
        // Gone: the next round sees that.
        let Ok(pidfd) = process::open(id) else { return };
        let token = epoll::EventData::new_u64((u64::from(id.pid.unsigned_abs()) << 2) | PROCESS);
        if self.has_place_for(&pidfd) && epoll::add(&self.epoll, &pidfd, token, epoll::EventFlags::IN).is_ok() {
            self.table.watched(key, pidfd);
        }
    }

    /// Looks, every second, at the adopted children whose end nothing tells.
    fn make_round(&mut self, ended: &mut Vec<Key>) {
        let now = clock::now();
        if !self.table.has_unwatched() || now < self.next_round {
            return;
        }
        self.next_round = now + LOOK_AGAIN;
        for (key, id) in self.table.unwatched() {
            match process::lives(id) {
                Ok(true) => self.watch(&key),
                Ok(false) => ended.extend(self.table.ended(id.pid, Ended::Unknown, now)),
                Err(error) => complain(&format!("whether {key} lives cannot be seen: {error}")),
            }
        }
    }

    /// Tells the agent as much as it takes now.
    fn tell(&mut self) {
        let Some(agent) = self.agent.as_ref().filter(|agent| agent.greeted) else { return };
        let mut full = false;
        while let Some(note) = self.notes.front() {
            let sent = match self.words(note) {
                None => Ok(()),
                Some((tell, fds)) => packet::send(agent.line.as_fd(), &encode(&tell), &fds),
            };
            match sent {
                Ok(()) => {
                    self.notes.pop_front();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    full = true;
                    break;
                }
                Err(error) => {
                    // Gone: its exit is on the way. Else it can never be told this (too long, too many descriptors on the way), so it ends
                    // too: nothing else would wake us. The next agent is told everything anew.
                    if !matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) {
                        complain(&format!("the agent could not be told something: {error}"));
                        self.end_agent();
                    }
                    break;
                }
            }
        }
        let wanted = if full { epoll::EventFlags::IN | epoll::EventFlags::OUT } else { epoll::EventFlags::IN };
        // A line that was closed at the other end is not watched any more.
        let _not_watched = epoll::modify(&self.epoll, &agent.line, epoll::EventData::new_u64(AGENT), wanted);
    }

    /// Puts a note in words; `None` when what it is about is forgotten by now.
    fn words<'a>(&'a self, note: &'a Note) -> Option<(Tell, Vec<BorrowedFd<'a>>)> {
        let plain = |tell| Some((tell, Vec::new()));
        match note {
            Note::Welcome => plain(Tell::Welcome(Welcome {
                protocol: PROTOCOL,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                keeper_pid: rustix::process::getpid().as_raw_nonzero().get(),
                agent_starts: self.agent_starts,
                last_agent: self.last_agent,
                for_upgrade: self.upgrade.ended_agent(),
                program: self.upgrade.program().display().to_string(),
            })),
            Note::Child(key) | Note::Streams(key, _) => {
                let child = self.table.get(key)?;
                let told = |number: &u8| if let Note::Streams(_, some) = note { some.contains(number) } else { true };
                let (streams, fds) =
                    child.streams.iter().filter(|(number, _)| told(number)).map(|(number, fd)| (*number, fd.as_fd())).unzip();
                let tell = Tell::Child {
                    key: key.clone(),
                    pid: child.id.pid,
                    start_ticks: child.id.start_ticks,
                    adopted: child.adopted,
                    streams,
                    note: child.note.clone(),
                };
                Some((tell, fds))
            }
            Note::SpawnFailed(key, step, errno) => plain(Tell::SpawnFailed { key: key.clone(), step: *step, errno: *errno }),
            Note::Exited(key) => match self.table.get(key)?.life {
                Life::Running => None,
                Life::Ended { how, at, tree_gone } => plain(Tell::Exited {
                    key: key.clone(),
                    how,
                    at_micros: u64::try_from(at.since_boot().as_micros()).unwrap_or(u64::MAX),
                    tree_gone,
                }),
            },
            Note::TreeGone(key, killed) => plain(Tell::TreeGone { key: key.clone(), killed: *killed }),
            Note::Kept(name) => Some((Tell::Kept { name: name.clone() }, vec![self.kept.get(name)?.as_fd()])),
            Note::Listed => plain(Tell::Listed),
            Note::Adopted => plain(Tell::Adopted),
            Note::Tree(why) => {
                let tree = self.table.tree.as_ref();
                let controllers = tree.map_or_else(Vec::new, |tree| tree.controllers().unwrap_or_default());
                plain(Tell::Tree { path: tree.map(|tree| tree.path().display().to_string()), controllers, why: why.clone() })
            }
            Note::OutOfMemory(key) => {
                let counted = self.table.get(key)?.counted;
                plain(Tell::OutOfMemory { key: key.clone(), times: counted.oom, peak_bytes: counted.peak_bytes })
            }
            Note::Errand(errand, answer) => {
                let failed = answer.as_ref().err().cloned();
                Some((Tell::Errand { errand: errand.clone(), failed }, answer.iter().map(OwnedFd::as_fd).collect()))
            }
            Note::Upgraded => plain(Tell::Upgraded(self.upgrade.report()?.clone())),
            Note::Signalled(number) => plain(Tell::Signalled { number: *number }),
        }
    }
}

/// Takes a descriptor out of the poll, before it is closed: a child that was just started may hold a copy, and then closing alone
/// does not take it out.
fn unwatch(epoll: &OwnedFd, fd: &OwnedFd) {
    let _was_not_in = epoll::delete(epoll, fd);
}

/// Signals a process below a worker if it is still the one that was judged.
fn signal_job(id: ProcessId, title: &[u8], number: i32, ours: impl FnOnce(i32) -> io::Result<bool>) {
    let signalled = process::open(id).and_then(|pidfd| match process::title(id.pid)? == title {
        true if !ours(id.pid)? => Err(io::Error::new(io::ErrorKind::PermissionDenied, "it descends from no worker")),
        true => process::signal_open(pidfd.as_fd(), number),
        // It works on something else by now.
        false => Ok(()),
    });
    if let Err(error) = signalled
        && !process::is_gone(&error)
    {
        complain(&format!("process {} could not be signalled: {error}", id.pid));
    }
}

/// Tells the service manager that we are alive, if it wants to know (`sd_watchdog_enabled(3)`).
fn watchdog() {
    if std::env::var_os("WATCHDOG_USEC").is_some() {
        notify("WATCHDOG=1");
    }
}

/// Tells the service manager, if there is one.
fn notify(state: &str) {
    if let Err(error) = crate::sys::notify::notify(state) {
        complain(&format!("the service manager could not be told: {error}"));
    }
}

/// Says how a process ended.
pub(crate) fn describe(how: Ended) -> String {
    match how {
        Ended::Code(code) => format!("exit {code}"),
        Ended::Signal { number, .. } => signal_name(number).map_or_else(|| format!("signal {number}"), str::to_owned),
        Ended::Unknown => "nobody knows how".to_owned(),
    }
}

/// Says something on standard error; a closed one is nobody to tell.
fn complain(text: &str) {
    static UNSAID: AtomicU32 = AtomicU32::new(0);
    say(rustix::stdio::stderr(), &UNSAID, text);
}

/// Writes a line if there is room for it: who reads our complaints may have stopped, and the keeper must not stop with them. What was not
/// said is counted, and told with what is.
fn say(to: BorrowedFd<'_>, unsaid: &AtomicU32, text: &str) {
    /// A pipe that takes anything takes so much at once (`pipe(7)`, PIPE_BUF).
    const LINE_BYTES: usize = 4096;
    let mut ready = [PollFd::from_borrowed_fd(to, PollFlags::OUT)];
    let polled = poll(&mut ready, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    if polled.is_err() || !ready[0].revents().contains(PollFlags::OUT) {
        unsaid.fetch_add(1, Ordering::Relaxed);
        return;
    }
    let before = match unsaid.load(Ordering::Relaxed) {
        0 => String::new(),
        lines => format!("({lines} lines before this one could not be written) "),
    };
    let mut line = format!("selfstart keeper: {before}{text}").into_bytes();
    line.truncate(LINE_BYTES - 1);
    line.push(b'\n');
    #[expect(clippy::disallowed_methods, reason = "a line to whoever reads our standard error: on no disk of ours")]
    let written = rustix::io::write(to, &line);
    match written {
        Ok(_) => unsaid.store(0, Ordering::Relaxed),
        Err(_) => {
            unsaid.fetch_add(1, Ordering::Relaxed);
        }
    }
}
