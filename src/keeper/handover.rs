//! What one keeper leaves to the next, which is executed in its place: everything that only its memory knew, and the numbers of its
//! descriptors. docs/decisions/0006-upgrade.md.
//!
//! JSON, so that an older or newer program reads what it knows and leaves the rest. It is in a sealed file in memory, whose number stands
//! in the environment. Nothing here waits, and nothing is on a disk.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use rustix::event::epoll;
use selfstart_core::id::ProcessId;
use selfstart_core::time::MonoTime;
use serde::{Deserialize, Serialize};

use super::protocol::{Key, Upgraded};
use super::table::{Child, Life};
use super::{Keeper, KeeperError, LOOK_AGAIN, Note, PROCESS, Unread, complain};
use crate::sys::process::Ended;
use crate::sys::{cgroup, clock, exec};

/// The environment variable that says where the state is.
pub(super) const VARIABLE: &str = "SELFSTART_HANDOVER";

/// The format that this program writes, and the newest that it knows.
pub(super) const FORMAT: u32 = 1;

/// The oldest format whose readers read what we write rightly: what was added since may be ignored.
const NEEDS: u32 = 1;

/// Why a state cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandoverError {
    /// It is not there, or could be changed by others.
    #[error("the state could not be read")]
    Unreadable(#[source] io::Error),
    /// It is something else.
    #[error("the state is not one")]
    Malformed(#[source] serde_json::Error),
    /// It is a newer program's, and has what this one would misread.
    #[error("the state needs a reader of format {0}, and this program (selfstart {version}) knows {FORMAT}", version = env!("CARGO_PKG_VERSION"))]
    Newer(u32),
    /// Two things cannot be one descriptor, and none is a standard one.
    #[error("the state has descriptor {0} where it cannot be")]
    Descriptor(i32),
    /// A descriptor that it names is not open.
    #[error("descriptor {0} of the state could not be taken")]
    Taken(i32, #[source] io::Error),
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct State {
    /// [`FORMAT`] of the writer.
    pub(super) format: u32,
    /// Who knows less must not read it.
    pub(super) needs: u32,
    /// Of the writer.
    pub(super) version: String,
    /// What the agent gets after its own verb.
    pub(super) arguments: Vec<Vec<u8>>,
    /// The file that was started at first: where the next one is looked for.
    pub(super) program: Vec<u8>,
    /// What RLIMIT_NOFILE was before the keeper raised it.
    pub(super) nofile: (u64, u64),
    /// Who is there.
    pub(super) children: Vec<Handed>,
    /// What is kept for the agent.
    pub(super) kept: Vec<(String, i32)>,
    /// Leftovers that were killed: number and pidfd.
    #[serde(default)]
    pub(super) dying: Vec<(i32, i32)>,
    /// The tree of cgroups that we have made: where, and its name.
    #[serde(default)]
    pub(super) own_tree: Option<(PathBuf, String)>,
    /// The tree of cgroups that is used.
    #[serde(default)]
    pub(super) tree: Option<PathBuf>,
    /// Cgroups that were killed.
    #[serde(default)]
    pub(super) emptying: Vec<Key>,
    /// Outputs that could not be opened.
    #[serde(default)]
    pub(super) unread: Vec<(Key, Vec<u8>)>,
    /// Signals that no agent has heard.
    #[serde(default)]
    pub(super) signals: Vec<i32>,
    /// How many agents there were.
    pub(super) agent_starts: u32,
    /// How the last one ended.
    #[serde(default)]
    pub(super) last_agent: Option<Ended>,
    /// Whether the node was told to end.
    #[serde(default)]
    pub(super) leaving: bool,
    /// Twice.
    #[serde(default)]
    pub(super) hurry: bool,
    /// How many upgrades there were.
    #[serde(default)]
    pub(super) upgrades: u32,
    /// What became of the last one.
    #[serde(default)]
    pub(super) report: Option<Upgraded>,
    /// Whom the agent may ever have had processes started as: those are signalled that are no children of ours.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) users: Vec<u32>,
    /// Who takes this over is on trial.
    #[serde(default)]
    pub(super) trial: Option<OnTrial>,
}

/// One child.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Handed {
    key: Key,
    pid: i32,
    start_ticks: u64,
    adopted: bool,
    #[serde(default)]
    pidfd: Option<i32>,
    streams: Vec<(u8, i32)>,
    /// `None`: it runs.
    #[serde(default)]
    ended: Option<HandedEnd>,
    root: String,
    note: String,
    #[serde(default)]
    group: Option<String>,
    #[serde(default)]
    oom: u64,
    #[serde(default)]
    peak_bytes: Option<u64>,
    #[serde(default)]
    clearing: Option<u32>,
}

/// How one ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct HandedEnd {
    how: Ended,
    at_micros: u64,
    tree_gone: bool,
}

/// Where to go back to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct OnTrial {
    /// The former program, opened.
    pub(super) former: i32,
    /// Its version.
    pub(super) from: String,
    /// Who asked for it.
    pub(super) by: String,
    /// Until when the new agent must have said that it is alive: microseconds since boot.
    pub(super) until_micros: u64,
    /// The file that takes the place of `program` when all is well, and which one that is (device, inode).
    #[serde(default)]
    pub(super) placed: Option<(Vec<u8>, u64, u64)>,
}

/// Returns microseconds since boot.
pub(super) fn micros(at: MonoTime) -> u64 {
    u64::try_from(at.since_boot().as_micros()).unwrap_or(u64::MAX)
}

impl State {
    /// Reads a state, and looks at it as far as that can be done without taking it over.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, HandoverError> {
        /// What every format has.
        #[derive(Deserialize)]
        struct Versioned {
            needs: u32,
        }
        let Versioned { needs } = serde_json::from_slice(bytes).map_err(HandoverError::Malformed)?;
        if needs > FORMAT {
            return Err(HandoverError::Newer(needs));
        }
        let state: Self = serde_json::from_slice(bytes).map_err(HandoverError::Malformed)?;
        let mut seen = BTreeSet::new();
        match state.descriptors().into_iter().find(|number| *number < 3 || !seen.insert(*number)) {
            None => Ok(state),
            Some(number) => Err(HandoverError::Descriptor(number)),
        }
    }

    /// Reads the state that a sealed file holds.
    pub(super) fn read(fd: impl AsFd) -> Result<Self, HandoverError> {
        Self::decode(&exec::read_sealed(fd).map_err(HandoverError::Unreadable)?)
    }

    /// Returns the file that holds it.
    pub(super) fn seal(&self) -> io::Result<OwnedFd> {
        exec::sealed(&serde_json::to_vec(self)?)
    }

    /// The numbers of all descriptors that it is about.
    pub(super) fn descriptors(&self) -> Vec<i32> {
        let children = self.children.iter().flat_map(|child| child.streams.iter().map(|(_, fd)| *fd).chain(child.pidfd));
        let kept = self.kept.iter().map(|(_, fd)| *fd).chain(self.dying.iter().map(|(_, fd)| *fd));
        children.chain(kept).chain(self.trial.iter().map(|trial| trial.former)).collect()
    }

    /// What the agent gets after its own verb.
    pub(super) fn arguments(&self) -> Vec<CString> {
        self.arguments.iter().filter_map(|text| CString::new(text.clone()).ok()).collect()
    }
}

/// A program that is executed in our place, and what it finds.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) program: OwnedFd,
    pub(super) state: OwnedFd,
    pub(super) descriptors: Vec<i32>,
}

impl Parcel {
    /// Executes it, with the words that we were started with; returns only when that failed, and then with the state.
    ///
    /// Only the first thread may: the others, whose children are told of their end (PR_SET_PDEATHSIG), are to have ended.
    pub(super) fn execute(self) -> (OwnedFd, io::Error) {
        let words = std::env::args_os().filter_map(|word| CString::new(word.into_vec()).ok());
        let mut env = super::own_environment();
        env.extend(CString::new(format!("{VARIABLE}={}", self.state.as_raw_fd())));
        for number in self.descriptors.iter().copied().chain([self.state.as_raw_fd()]) {
            if let Err(error) = exec::leave(number) {
                return (self.state, error);
            }
        }
        let argv: Vec<CString> = words.collect();
        let error = exec::execute(self.program.as_fd(), &argv, &env);
        (self.state, error)
    }
}

/// Takes the state that the program before us has left; `None`: there was none before us.
///
/// Called once, first of all.
pub(super) fn inherited() -> Option<Result<State, HandoverError>> {
    let number = std::env::var(VARIABLE).ok()?.parse().ok()?;
    exec::name_ourselves();
    let state = exec::take(number).map_err(HandoverError::Unreadable).and_then(State::read);
    if state.is_err() {
        // The lock of the root is among what was left: it would be ours, and in nobody's hand.
        exec::close_all();
    }
    Some(state)
}

impl Keeper {
    /// Everything that the next one must know. The agent has ended, or this is a rehearsal.
    pub(super) fn state(&self, report: Option<Upgraded>, trial: Option<OnTrial>) -> State {
        let children = self.table.everything().filter_map(|(key, _)| {
            let child = self.table.get(&key)?;
            Some(Handed {
                pid: child.id.pid,
                start_ticks: child.id.start_ticks,
                adopted: child.adopted,
                pidfd: child.pidfd.as_ref().map(AsRawFd::as_raw_fd),
                streams: child.streams.iter().map(|(number, fd)| (*number, fd.as_raw_fd())).collect(),
                ended: match child.life {
                    Life::Running => None,
                    Life::Ended { how, at, tree_gone } => Some(HandedEnd { how, at_micros: micros(at), tree_gone }),
                },
                root: child.root.clone(),
                note: child.note.clone(),
                group: child.group.clone(),
                oom: child.counted.oom,
                peak_bytes: child.counted.peak_bytes,
                clearing: child.clearing,
                key,
            })
        });
        let signals = self.notes.iter().filter_map(|note| if let Note::Signalled(number) = note { Some(*number) } else { None });
        State {
            format: FORMAT,
            needs: NEEDS,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            arguments: self.agent_command.iter().skip(2).map(|text| text.as_bytes().to_vec()).collect(),
            program: self.upgrade.program().as_os_str().as_bytes().to_vec(),
            nofile: self.nofile,
            children: children.collect(),
            kept: self.kept.iter().map(|(name, fd)| (name.clone(), fd.as_raw_fd())).collect(),
            dying: self.dying.iter().map(|(pid, fd)| (*pid, fd.as_raw_fd())).collect(),
            own_tree: self.own_tree.clone(),
            tree: self.table.tree.as_ref().map(|tree| tree.path().to_owned()),
            emptying: self.emptying.keys().cloned().collect(),
            unread: self.unread.iter().map(|(key, unread)| (key.clone(), unread.numbers.clone())).collect(),
            signals: signals.collect(),
            agent_starts: self.agent_starts,
            last_agent: self.last_agent,
            leaving: self.leaving,
            hurry: self.hurry,
            upgrades: self.upgrade.number(),
            report,
            users: self.rights.all_users().collect(),
            trial,
        }
    }

    /// Takes over what another keeper has left.
    pub(super) fn restore(&mut self, state: State) -> Result<(), KeeperError> {
        let taking = |error: HandoverError| KeeperError { what: "take over what the former one has left", source: io::Error::other(error) };
        let mut fds = BTreeMap::new();
        for number in state.descriptors() {
            fds.insert(number, exec::take(number).map_err(|error| taking(HandoverError::Taken(number, error)))?);
        }
        // Each number is there once: `State::decode` has seen to that.
        let mut take = |number: i32| fds.remove(&number);
        self.nofile = state.nofile;
        if let Some(path) = &state.tree {
            match cgroup::Tree::open(path) {
                Ok(tree) => self.table.tree = Some(tree),
                Err(error) => complain(&format!("the cgroups in `{}` cannot be opened any more: {error}", path.display())),
            }
        }
        self.own_tree = state.own_tree;
        self.rights.remember(state.users);
        for handed in state.children {
            self.take_over(handed, &mut take);
        }
        self.kept = state.kept.into_iter().filter_map(|(name, number)| Some((name, take(number)?))).collect();
        for (pid, number) in state.dying {
            if let Some(pidfd) = take(number).filter(|pidfd| self.watch_process(pid, pidfd)) {
                self.dying.insert(pid, pidfd);
            }
        }
        for key in state.emptying {
            if let Some(events) = self.table.group(&key).and_then(|group| group.ok()?.watch().ok()) {
                self.watch_emptying(&key, events);
            }
        }
        let now = clock::now();
        self.unread = state.unread.into_iter().map(|(key, numbers)| (key, Unread { numbers, next: now, wait: LOOK_AGAIN })).collect();
        self.notes.extend(state.signals.into_iter().map(Note::Signalled));
        (self.agent_starts, self.last_agent) = (state.agent_starts, state.last_agent);
        (self.leaving, self.hurry) = (state.leaving, state.hurry);
        let former = state.trial.and_then(|trial| Some((take(trial.former)?, trial)));
        let program = PathBuf::from(OsString::from_vec(state.program));
        self.upgrade.resume(program, state.upgrades, state.report, former);
        Ok(())
    }

    /// Reaps who has ended while nobody was there. A SIGCHLD that was pending is gone: to set its default discards it (`sigaction(2)`: of a
    /// signal whose default is to be ignored). Where `close_range` is tried the child that tries it makes another; not everywhere.
    pub(super) fn see_who_ended(&mut self) -> Result<(), KeeperError> {
        let mut ended = Vec::new();
        self.take_signals(&mut ended)?;
        self.note_exits(ended);
        Ok(())
    }

    fn take_over(&mut self, handed: Handed, take: &mut impl FnMut(i32) -> Option<OwnedFd>) {
        let id = ProcessId { pid: handed.pid, start_ticks: handed.start_ticks };
        let streams = handed.streams.into_iter().filter_map(|(number, fd)| Some((number, take(fd)?))).collect();
        let mut child = Child::new(id, handed.adopted, streams, handed.root, handed.note);
        child.group = handed.group;
        child.counted = cgroup::Counted { oom: handed.oom, peak_bytes: handed.peak_bytes };
        child.clearing = handed.clearing;
        child.pidfd = handed.pidfd.and_then(&mut *take).filter(|pidfd| self.watch_process(id.pid, pidfd));
        if let Some(HandedEnd { how, at_micros, tree_gone }) = handed.ended {
            child.life = Life::Ended { how, at: MonoTime::from_boot(Duration::from_micros(at_micros)), tree_gone };
        }
        self.table.insert(handed.key.clone(), child);
        if handed.clearing.is_some() {
            self.table.clear(&handed.key);
        }
    }

    /// Has the end of a process that is not our child told.
    fn watch_process(&self, pid: i32, pidfd: &OwnedFd) -> bool {
        let token = epoll::EventData::new_u64((u64::from(pid.unsigned_abs()) << 2) | PROCESS);
        epoll::add(&self.epoll, pidfd, token, epoll::EventFlags::IN).is_ok()
    }
}

/// What a program that rehearses answers: one line of JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rehearsed {
    /// Its version.
    pub(super) selfstart: String,
    /// The format that it writes.
    pub(super) format: u32,
    /// How many children it has found in the state.
    #[serde(default)]
    pub(super) children: usize,
    /// Why it cannot take the state over; `None`: it can.
    #[serde(default)]
    pub(super) refused: Option<String>,
}

/// Reads a state as one that takes it over would, and says whether it could.
pub(super) fn rehearse(state: impl AsFd) -> Rehearsed {
    let state = State::read(state);
    Rehearsed {
        selfstart: env!("CARGO_PKG_VERSION").to_owned(),
        format: FORMAT,
        children: state.as_ref().map_or(0, |state| state.children.len()),
        refused: state.err().map(|error| {
            let cause = std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
            format!("{error}{cause}")
        }),
    }
}

/// `selfstart internal-keeper`: reads the state from standard input, and answers on standard output.
pub(super) fn rehearsal() -> std::process::ExitCode {
    use std::io::Write;
    let answer = rehearse(rustix::stdio::stdin());
    let line = serde_json::to_string(&answer).unwrap_or_default();
    match writeln!(io::stdout(), "{line}") {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(_) => std::process::ExitCode::FAILURE,
    }
}

/// Returns a state that could not be handed over: whoever wrote it goes on with it.
pub(super) fn not_executed(mut state: State, error: &io::Error) -> State {
    if let Some(trial) = state.trial.take() {
        // It leads to this very program.
        drop(exec::take(trial.former));
        let text = format!("the new program could not be executed: {error}");
        state.report = Some(Upgraded::failed(state.upgrades, &trial.from, None, &trial.by, text));
    } else if let Some(report) = &mut state.report {
        report.text = format!("{}; the former program could not be executed: {error}", report.text);
    }
    state
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::keeper::protocol::{Ask, HowUpgraded, Start, Tell};
    use crate::sys::signals::SignalFd;

    /// Every format that was ever written must be read for ever.
    const FIRST: &str = include_str!("../../tests/fixtures/handover/state-1.json");

    fn keeper() -> Keeper {
        let mut keeper = Keeper::new(SignalFd::take().expect("signals"), vec![c"/etc/selfstart/config.yaml".to_owned()]).expect("a keeper");
        // Nobody is asked who may do what.
        keeper.rights = crate::keeper::rights::Rights::new(&[]);
        keeper
    }

    fn start(key: &str, script: &str) -> Start {
        Start {
            key: key.to_owned(),
            programs: vec!["/bin/sh".into()],
            argv: vec!["sh".into(), "-c".into(), script.into()],
            env: Vec::new(),
            root: "/handed".into(),
            cwd: "/".into(),
            user: None,
            nofile: None,
            nice: None,
            umask: None,
            pipe_bytes: 1 << 16,
            helper: false,
            note: format!("note of {key}"),
        }
    }

    fn end(pid: i32) {
        crate::sys::process::signal_child(pid, libc::SIGKILL).expect("ours");
        rustix::process::waitpid(rustix::process::Pid::from_raw(pid), rustix::process::WaitOptions::empty()).expect("its end");
    }

    #[test]
    fn the_first_format_reads_and_writes_back_and_what_is_newer_in_it_is_left() {
        let state = State::decode(FIRST.as_bytes()).expect("a state");
        assert_eq!((state.format, state.children.len(), state.arguments()), (1, 3, vec![c"/etc/selfstart/config.yaml".to_owned()]));
        let written: serde_json::Value = serde_json::to_value(&state).expect("JSON");
        assert_eq!(written, serde_json::from_str::<serde_json::Value>(FIRST).expect("JSON"));
        let mut newer = written.clone();
        newer["format"] = 7.into();
        newer["of_the_future"] = serde_json::json!({"a": [1]});
        newer["children"][0]["of_the_future"] = 1.into();
        let read = State::decode(newer.to_string().as_bytes()).expect("a newer one that an older program may read");
        assert_eq!(State { format: 1, ..read }, state);
    }

    #[test]
    fn what_needs_a_newer_program_or_cannot_be_is_refused() {
        let with = |change: fn(&mut serde_json::Value)| {
            let mut state: serde_json::Value = serde_json::from_str(FIRST).expect("JSON");
            change(&mut state);
            let sealed = exec::sealed(state.to_string().as_bytes()).expect("made");
            rehearse(sealed).refused.unwrap_or_default()
        };
        assert_eq!(with(|_| {}), "");
        let newer = with(|state| state["needs"] = 2.into());
        assert!(newer.starts_with("the state needs a reader of format 2, and this program (selfstart "), "{newer}");
        assert_eq!(with(|state| state["kept"][0][1] = 1.into()), "the state has descriptor 1 where it cannot be");
        assert_eq!(with(|state| state["kept"][0][1] = state["kept"][1][1].clone()), "the state has descriptor 41 where it cannot be");
        let less = with(|state| drop(state.as_object_mut().expect("an object").remove("children")));
        assert!(less.starts_with("the state is not one: missing field `children`"), "{less}");
        let open = crate::sys::memory_file(FIRST.as_bytes()).expect("made");
        assert_eq!(rehearse(open).refused.expect("others could change it"), "the state could not be read: it is not sealed");
    }

    proptest! {
        #[test]
        fn a_damaged_state_is_refused_or_is_another_without_a_panic(at in 0_usize..4000, with in any::<u8>(), cut in 0_usize..4000) {
            let mut bytes = FIRST.as_bytes().to_vec();
            let len = bytes.len();
            bytes[at % len] = with;
            let _any = State::decode(&bytes);
            bytes.truncate(cut % len);
            prop_assert!(State::decode(&bytes).is_err());
        }
    }

    #[test]
    fn all_that_one_keeper_knows_the_next_one_tells_the_same() {
        let mut former = keeper();
        former.nofile = (1000, 4000);
        former.leaving = true;
        (former.agent_starts, former.last_agent) = (4, Some(Ended::Signal { number: 9, core: false }));
        for (key, script) in [("w/0#1", "echo said; exec sleep 1000"), ("w/1#1", "exit 7"), ("w/2#1", "exec sleep 1000")] {
            former.start_child(&start(key, script), None, None);
        }
        let pid = |keeper: &Keeper, key: &str| keeper.table.get(key).expect("a child").id.pid;
        let (runs, gone, adopted) = (pid(&former, "w/0#1"), pid(&former, "w/1#1"), former.table.get("w/2#1").expect("a child").id);
        rustix::process::waitpid(rustix::process::Pid::from_raw(gone), rustix::process::WaitOptions::empty()).expect("its end");
        former.table.ended(gone, Ended::Code(7), MonoTime::from_boot(Duration::from_micros(1_234_567)));
        former.table.set_tree_gone("w/1#1", true);
        former.table.forget("w/2#1");
        former.adopt("w/3#1".to_owned(), adopted, "/handed");
        former.watch("w/3#1");
        let kept = exec::sealed(b"kept").expect("made");
        former.obey(Ask::Keep { name: "lock".into() }, vec![super::super::above_standard(kept).expect("moved")]);
        former.notes.clear();
        former.notes.extend([Note::Signalled(libc::SIGHUP), Note::Listed]);
        former.upgrade.refuse_for_test("because");
        let state = former.state(former.upgrade.report().cloned(), None);
        std::mem::forget(former);

        let handed = State::read(state.seal().expect("sealed")).expect("a state");
        assert_eq!(handed, state);
        let mut next = Keeper::new(SignalFd::take().expect("signals"), handed.arguments()).expect("a keeper");
        next.restore(handed).expect("taken over");
        assert_eq!((next.nofile, next.leaving, next.hurry, next.agent_starts), ((1000, 4000), true, false, 4));
        assert_eq!(next.last_agent, Some(Ended::Signal { number: 9, core: false }));
        next.greet(crate::keeper::protocol::PROTOCOL);
        let told: Vec<String> = next.notes.iter().map(|note| format!("{note:?}")).collect();
        let all = [
            "Welcome",
            "Child(\"w/0#1\")",
            "Child(\"w/1#1\")",
            "Exited(\"w/1#1\")",
            "Child(\"w/3#1\")",
            "Kept(\"lock\")",
            "Upgraded",
            "Listed",
            "Signalled(15)",
            "Signalled(1)",
        ];
        assert_eq!(told, all);
        let tells: Vec<(Tell, usize)> =
            next.notes.iter().filter_map(|note| next.words(note)).map(|(tell, fds)| (tell, fds.len())).collect();
        assert!(matches!(&tells[1], (Tell::Child { pid, adopted: false, streams, note, .. }, 2)
            if *pid == runs && *streams == [1, 2] && note == "note of w/0#1"));
        let exit = (Tell::Exited { key: "w/1#1".into(), how: Ended::Code(7), at_micros: 1_234_567, tree_gone: true }, 0);
        assert_eq!(tells[3], exit);
        assert!(matches!(&tells[4], (Tell::Child { pid, adopted: true, .. }, _) if *pid == adopted.pid), "{:?}", tells[4]);
        assert!(matches!(&tells[6], (Tell::Upgraded(upgraded), 0) if upgraded.text == "because" && upgraded.how == HowUpgraded::Refused));
        // Its output, from where it was; and the end of the adopted one is told.
        let mut buffer = [0; 16];
        let (_, out) = &next.table.get("w/0#1").expect("a child").streams[0];
        rustix::event::poll(&mut [rustix::event::PollFd::new(out, rustix::event::PollFlags::IN)], None).expect("poll");
        let read = rustix::io::read(out, &mut buffer).expect("read");
        assert_eq!(&buffer[..read], b"said\n");
        assert!(!next.table.has_unwatched());
        end(adopted.pid);
        let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 4];
        let patience = rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 };
        let woken = epoll::wait(&next.epoll, &mut events[..], Some(&patience)).expect("a wait");
        let token = (u64::from(adopted.pid.unsigned_abs()) << 2) | PROCESS;
        assert!(events[..woken].iter().any(|event| event.data.u64() == token), "nobody tells");
        end(runs);
    }

    #[test]
    fn a_cgroup_that_was_killed_when_the_keeper_changed_is_told_empty_by_the_next_one() {
        use std::time::Duration;
        let Some(own) = cgroup::tests::Own::make("handed") else { return eprintln!("skipped: no cgroup v2 to write to") };
        crate::sys::process::become_subreaper().expect("a subreaper");
        let mut former = keeper();
        former.table.tree = Some(cgroup::Tree::open(own.0.path()).expect("a tree"));
        let none: [(String, String); 0] = [];
        // What it leaves has left its session and has no name; and it cannot end before it is let go on: it is stopped until its KILL.
        former.start_child(&start("w/0#1", "env -i setsid sleep 1000 & exec sleep 1000"), Some(&none), None);
        let main = former.table.get("w/0#1").expect("started").id.pid;
        let group = own.0.group("w.0#1").expect("made");
        use crate::sys::starter::tests::until;
        until("a leftover", || (group.processes().ok()?.len() == 2).then_some(()));
        end(main);
        former.table.ended(main, Ended::Code(0), MonoTime::from_boot(Duration::from_secs(1)));
        former.note_exits(vec!["w/0#1".into()]);
        former.obey(Ask::ClearTree { key: "w/0#1".into() }, Vec::new());
        // Nobody has been told yet when it is handed over: as if the kernel had not come to it.
        let events = group.watch().expect("watched");
        former.watch_emptying("w/0#1", events);
        let state = former.state(None, None);
        assert_eq!((state.emptying.clone(), state.children[0].clearing), (vec!["w/0#1".to_owned()], Some(0)));
        std::mem::forget(former);

        let mut next = Keeper::new(SignalFd::take().expect("signals"), state.arguments()).expect("a keeper");
        next.rights = crate::keeper::rights::Rights::new(&[]);
        next.restore(state).expect("taken over");
        assert!(next.emptying.contains_key("w/0#1"), "nobody would tell");
        assert!(next.table.next_look(clock::now()).is_some(), "nobody would look");
        next.clear_trees();
        // The kill is seen by what is watched since before it, not by the look a second later.
        let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 4];
        let patience = rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 };
        until("the news", || {
            let woken = epoll::wait(&next.epoll, &mut events[..], Some(&patience)).expect("a wait");
            let news = events[..woken].iter().map(|event| event.data.u64()).find(|token| token & 3 == crate::keeper::GROUP);
            news.map(|token| next.group_changed(token >> 2))
        });
        next.notes.clear();
        until("the end of the tree", || {
            next.clear_trees();
            next.notes.iter().any(|note| matches!(note, Note::TreeGone(key, _) if key == "w/0#1")).then_some(())
        });
        next.table.remove_groups();
        assert_eq!(own.0.names().expect("read"), Vec::<String>::new(), "its cgroup is still there");
        assert!(next.emptying.is_empty());
    }

    #[test]
    fn whom_a_keeper_may_signal_is_known_to_the_next_one_before_it_is_told() {
        let mut former = keeper();
        former.rights.remember([1001, 1002]);
        let state = former.state(None, None);
        assert_eq!(state.users, [1001, 1002]);
        let mut next = Keeper::new(SignalFd::take().expect("signals"), state.arguments()).expect("a keeper");
        next.restore(state).expect("taken over");
        assert_eq!(next.rights.all_users().collect::<Vec<_>>(), [1001, 1002]);
    }
}
