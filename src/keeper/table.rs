//! Who the keeper's children are, and what is left of them.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use selfstart_core::id::ProcessId;
use selfstart_core::time::MonoTime;

use super::bounds::KEY_MAX;
use super::protocol::{KEY_VARIABLE, Key};
use crate::sys::cgroup::{self, Counted};
use crate::sys::process::{self, Ended, Stat, Variable};

/// Whether a child's main process lives.
#[derive(Debug)]
pub(super) enum Life {
    Running,
    Ended { how: Ended, at: MonoTime, tree_gone: bool },
}

/// One child.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) id: ProcessId,
    /// Whether an earlier keeper started it: then it is not ours to reap, its pidfd says when it ends.
    pub(super) adopted: bool,
    pub(super) pidfd: Option<OwnedFd>,
    pub(super) streams: Vec<(u8, OwnedFd)>,
    pub(super) life: Life,
    pub(super) root: String,
    pub(super) note: String,
    /// The name of its cgroup; `None`: it has none of its own.
    pub(super) group: Option<String>,
    /// What the kernel counted in it, once the main process has ended.
    pub(super) counted: Counted,
    /// While its tree is being cleared: how many were killed.
    pub(super) clearing: Option<u32>,
    /// While nothing is known to be left of its tree, but something might be: since when.
    doubtful: Option<MonoTime>,
}

/// What is left of a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Left {
    /// Those who certainly belong to it.
    pub(super) processes: Vec<ProcessId>,
    /// One that may belong to it, which cannot be seen now: it is executing a program, say.
    pub(super) doubtful: Option<i32>,
}

/// How soon who may belong to a tree is looked at again at first: to execute a program takes some microseconds.
pub(super) const LOOK_SOON: Duration = Duration::from_millis(5);

/// How long it is done that often.
pub(super) const LOOK_SOON_FOR: Duration = Duration::from_millis(100);

/// How often it is looked at what could not be looked at or killed.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// After this time who may belong to a tree does not: a slot must not stay empty for a stranger whom nobody can see.
pub(super) const DOUBT_FOR: Duration = Duration::from_secs(10);

impl Child {
    /// `adopted`: it is not our child.
    pub(super) fn new(id: ProcessId, adopted: bool, streams: Vec<(u8, OwnedFd)>, root: String, note: String) -> Self {
        Self {
            id,
            adopted,
            pidfd: None,
            streams,
            life: Life::Running,
            root,
            note,
            group: None,
            counted: Counted::default(),
            clearing: None,
            doubtful: None,
        }
    }

    /// What is held of one for the agent's sake.
    pub(super) fn bytes(key: &str, root: &str, note: &str) -> usize {
        // The name stands in two maps while it runs.
        2 * key.len() + root.len() + note.len()
    }

    fn running(&self) -> bool {
        matches!(self.life, Life::Running)
    }
}

/// The children by name and by process id.
#[derive(Debug, Default)]
pub(super) struct Table {
    children: BTreeMap<Key, Child>,
    /// What all of them hold ([`Child::bytes`]).
    held: usize,
    running: BTreeMap<i32, Key>,
    clearing: BTreeSet<Key>,
    /// Adopted and running, without a pidfd: nothing tells when they end.
    unwatched: BTreeSet<Key>,
    /// The agent: a child too, but nobody's leftover.
    pub(super) agent: Option<i32>,
    /// Where the children have their cgroups; `None`: they have none.
    pub(super) tree: Option<cgroup::Tree>,
    /// The cgroups that nobody is in any more.
    empty_groups: Vec<String>,
    /// Whom children that were adopted may belong to, and what is signalled with them; `None`: anybody. An agent that is not root names
    /// whom to adopt, and must not name others' processes.
    pub(super) users: Option<BTreeSet<u32>>,
    /// Whose processes the workers of each pool are; `None`: anybody's. Of a pool that is not in it, any of `users`.
    pub(super) pools: Option<BTreeMap<String, u32>>,
}

impl Table {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.children.len()
    }

    /// What is held of them all for the agent's sake.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// The child whose main process has this number, while it lives.
    pub(super) fn running_at(&self, pid: i32) -> Option<&Child> {
        self.children.get(self.running.get(&pid)?)
    }

    /// Whether a process that is no child of ours may be one of theirs.
    pub(super) fn may_be_adopted(&self, pid: i32) -> bool {
        self.users.as_ref().is_none_or(|users| process::users(pid).is_ok_and(|found| found.iter().all(|uid| users.contains(uid))))
    }

    /// What there is to a process that is no child of ours and calls itself one.
    fn claim(&self, key: &str, pid: i32) -> Claim {
        let uid = key.split_once('/').and_then(|(pool, _)| self.pools.as_ref()?.get(pool));
        if !self.may_be_adopted(pid) {
            return if uid.is_some() { Claim::Stranger } else { Claim::None };
        }
        match uid {
            Some(uid) if !process::users(pid).is_ok_and(|found| found.iter().all(|it| it == uid)) => Claim::OfAnotherUser,
            _ => Claim::Ours,
        }
    }

    pub(super) fn insert(&mut self, key: Key, mut child: Child) {
        if child.adopted {
            // It may be from before there were cgroups.
            child.group = group_name(&key).filter(|name| self.tree.as_ref().is_some_and(|tree| tree.group(name).is_ok()));
        }
        if child.running() {
            self.running.insert(child.id.pid, key.clone());
            if child.adopted && child.pidfd.is_none() {
                self.unwatched.insert(key.clone());
            }
        }
        self.held += Child::bytes(&key, &child.root, &child.note);
        if let Some((key, former)) = self.children.remove_entry(&key) {
            self.held = self.held.saturating_sub(Child::bytes(&key, &former.root, &former.note));
        }
        self.children.insert(key, child);
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.children.contains_key(key)
    }

    pub(super) fn get(&self, key: &str) -> Option<&Child> {
        self.children.get(key)
    }

    /// Everyone, and whether they have ended.
    pub(super) fn everything(&self) -> impl Iterator<Item = (Key, bool)> + '_ {
        self.children.iter().map(|(key, child)| (key.clone(), !child.running()))
    }

    /// Notes the end of a main process, and returns whose it was.
    pub(super) fn ended(&mut self, pid: i32, how: Ended, at: MonoTime) -> Option<Key> {
        let key = self.running.remove(&pid)?;
        let child = self.children.get_mut(&key)?;
        child.life = Life::Ended { how, at, tree_gone: false };
        child.pidfd = None;
        self.unwatched.remove(&key);
        if child.clearing.is_some() {
            self.clearing.insert(key.clone());
        }
        Some(key)
    }

    pub(super) fn set_tree_gone(&mut self, key: &str, gone: bool) {
        if let Some(Life::Ended { tree_gone, .. }) = self.children.get_mut(key).map(|child| &mut child.life) {
            *tree_gone = gone;
        }
        if let (true, Some(Child { group: Some(name), .. })) = (gone, self.children.get(key)) {
            self.empty_groups.push(name.clone());
        }
    }

    /// Notes output of a child that could not be opened before.
    pub(super) fn found(&mut self, key: &str, streams: Vec<(u8, OwnedFd)>) {
        if let Some(child) = self.children.get_mut(key) {
            child.streams.extend(streams);
        }
    }

    /// Notes the descriptor that tells when an adopted child ends.
    pub(super) fn watched(&mut self, key: &str, pidfd: OwnedFd) {
        if let Some(child) = self.children.get_mut(key).filter(|child| child.running()) {
            child.pidfd = Some(pidfd);
            self.unwatched.remove(key);
        }
    }

    /// The adopted children whose end nothing tells: they must be looked at.
    pub(super) fn unwatched(&self) -> Vec<(Key, ProcessId)> {
        self.unwatched.iter().filter_map(|key| Some((key.clone(), self.children.get(key)?.id))).collect()
    }

    /// Whether there are such.
    pub(super) fn has_unwatched(&self) -> bool {
        !self.unwatched.is_empty()
    }

    /// Returns a copy of the pidfd of an adopted child that was running until now.
    pub(super) fn adopted(&mut self, pid: i32) -> Option<OwnedFd> {
        let key = self.running.get(&pid)?;
        self.children.get_mut(key)?.pidfd.take()
    }

    /// Signals a main process; one that has ended is left alone.
    pub(super) fn signal(&self, key: &str, number: i32) -> Option<io::Error> {
        let child = self.children.get(key).filter(|child| child.running())?;
        let sent = match &child.pidfd {
            Some(pidfd) => process::signal_open(pidfd.as_fd(), number),
            // Ours and not reaped, so the number is still its own.
            None if !child.adopted => process::signal_child(child.id.pid, number),
            None => match process::open(child.id) {
                Ok(pidfd) => process::signal_open(pidfd.as_fd(), number),
                // Its end is seen at the next look.
                Err(error) if process::is_gone(&error) => Ok(()),
                Err(error) => Err(error),
            },
        };
        sent.err()
    }

    /// Begins to clear a tree whose main process has ended; false when there is no such child.
    pub(super) fn clear(&mut self, key: &str) -> bool {
        match self.children.get_mut(key) {
            Some(child) if !child.running() => {
                child.clearing.get_or_insert(0);
                self.clearing.insert(key.to_owned());
                true
            }
            // Asked too early: it begins when the main process has ended.
            Some(child) => {
                child.clearing.get_or_insert(0);
                true
            }
            None => false,
        }
    }

    /// The trees that are being cleared.
    pub(super) fn clearing(&self) -> Vec<Key> {
        self.clearing.iter().cloned().collect()
    }

    pub(super) fn count_killed(&mut self, key: &str, more: u32) {
        if let Some(killed) = self.children.get_mut(key).and_then(|child| child.clearing.as_mut()) {
            *killed = killed.saturating_add(more);
        }
    }

    /// The cgroup of a child, if it has one.
    pub(super) fn group(&self, key: &str) -> Option<io::Result<cgroup::Group>> {
        Some(self.tree.as_ref()?.group(self.children.get(key)?.group.as_ref()?))
    }

    /// Removes the cgroups of children of which nothing is left. One that cannot be removed now is when the next agent comes up.
    pub(super) fn remove_groups(&mut self) {
        let empty = std::mem::take(&mut self.empty_groups);
        if let Some(tree) = &self.tree {
            for name in empty {
                let _later = tree.remove(&name);
            }
        }
    }

    /// Reads what the kernel has counted for a child that has ended.
    pub(super) fn count(&mut self, key: &str) {
        if let Some(Ok(group)) = self.group(key) {
            if let (Ok(counted), Some(child)) = (group.counted(), self.children.get_mut(key)) {
                child.counted = counted;
            }
        }
    }

    /// Ends the clearing of a tree, and returns how many were killed.
    pub(super) fn cleared(&mut self, key: &str) -> Option<u32> {
        self.clearing.remove(key);
        self.set_tree_gone(key, true);
        self.children.get_mut(key)?.clearing.take()
    }

    pub(super) fn forget(&mut self, key: &str) {
        self.clearing.remove(key);
        self.unwatched.remove(key);
        if let Some(child) = self.children.remove(key) {
            self.held = self.held.saturating_sub(Child::bytes(key, &child.root, &child.note));
            // The number may be another child's by now.
            if self.running.get(&child.id.pid).is_some_and(|owner| owner == key) {
                self.running.remove(&child.id.pid);
            }
        }
    }

    /// Returns what is left of the trees of ended children, by name; nothing is left of those that are not in it.
    ///
    /// What a dead child of ours leaves comes to us, its subreaper, before the child can be reaped. So when we have inherited nobody,
    /// nothing is left, and that is one short read however many have ended and however many run.
    ///
    /// # Errors
    /// When `/proc` cannot be read: then nothing is known.
    pub(super) fn leftovers(&self, ended: &[Key]) -> io::Result<BTreeMap<Key, Left>> {
        let mut left = BTreeMap::new();
        let mut others = Vec::new();
        for key in ended {
            match self.group(key) {
                // The kernel keeps the list of those who are in it: nobody can leave, hide or be overlooked.
                Some(group) => {
                    let processes = members_of(group)?;
                    if !processes.is_empty() {
                        left.insert(key.clone(), Left { processes, doubtful: None });
                    }
                }
                None => others.push(key.clone()),
            }
        }
        if !others.is_empty() {
            left.extend(self.leftovers_without_groups(&others)?);
        }
        Ok(left)
    }

    fn leftovers_without_groups(&self, ended: &[Key]) -> io::Result<BTreeMap<Key, Left>> {
        let ours = ended.iter().all(|key| self.children.get(key).is_none_or(|child| !child.adopted));
        if ours {
            if let Ok(inherited) = process::inherited() {
                let others = inherited.into_iter().filter(|pid| !self.running.contains_key(pid) && self.agent != Some(*pid));
                if !others.into_iter().any(|pid| self.is_of(pid, ended)) {
                    return Ok(BTreeMap::new());
                }
            }
        }
        let everyone = Everyone::look()?;
        let mut left = BTreeMap::new();
        for key in ended {
            let tree = self.members(key, &everyone);
            if tree != Left::default() {
                left.insert(key.clone(), tree);
            }
        }
        Ok(left)
    }

    /// How long until the trees that are being cleared are looked at again, if nothing happens before; `None`: there are none.
    pub(super) fn next_look(&self, now: MonoTime) -> Option<Duration> {
        let soon = |key: &Key| self.children.get(key)?.doubtful.map(|since| now.since(since) < LOOK_SOON_FOR);
        match self.clearing.iter().any(|key| soon(key).unwrap_or(false)) {
            true => Some(LOOK_SOON),
            false => (!self.clearing.is_empty()).then_some(LOOK_AGAIN),
        }
    }

    /// Notes whether somebody may be left of a tree of which nobody certainly is; returns whether that has been so for too long.
    pub(super) fn doubt(&mut self, key: &str, doubtful: bool, now: MonoTime) -> bool {
        let Some(child) = self.children.get_mut(key) else { return false };
        child.doubtful = doubtful.then(|| child.doubtful.unwrap_or(now));
        child.doubtful.is_some_and(|since| now.since(since) >= DOUBT_FOR)
    }

    /// Everyone whose main process lives.
    pub(super) fn running_children(&self) -> Vec<Key> {
        self.running.values().cloned().collect()
    }

    /// Whether a child of ours that we did not start is left over from one of the ended.
    fn is_of(&self, pid: i32, ended: &[Key]) -> bool {
        let session = match process::stat(pid) {
            Ok(stat) => stat.session,
            Err(error) if process::is_gone(&error) => return false,
            // It is there and cannot be looked at (out of descriptors, say): so it may be.
            Err(_) => return true,
        };
        let name = match process::look_for(pid, KEY_VARIABLE) {
            Variable::Is(name) => Some(name),
            Variable::None => None,
            // As above.
            Variable::Unknown => return true,
        };
        let name = name.as_deref().and_then(name_in);
        ended.iter().any(|key| {
            self.children.get(key).is_some_and(|child| {
                (child.id.pid != 0 && session == child.id.pid)
                    || name.as_ref().is_some_and(|name| name.key == key && name.root == child.root)
            })
        })
    }

    /// Returns a child's whole tree, its main process included while it lives.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub(super) fn tree(&self, key: &str) -> io::Result<Vec<ProcessId>> {
        if let Some(group) = self.group(key) {
            return members_of(group);
        }
        Ok(self.members(key, &Everyone::look()?).processes)
    }

    /// Who belongs to a child: its main process, its session, whoever carries its name in the environment and has lost its parent, and
    /// all that descends from these.
    fn members(&self, key: &str, everyone: &Everyone) -> Left {
        let Some(child) = self.children.get(key) else { return Left::default() };
        if matches!(child.life, Life::Ended { tree_gone: true, .. }) {
            // Since then its numbers can be anybody's.
            return Left::default();
        }
        // While a session has members its number is not given out again; so a process with that number that is not the main one shows
        // that the session is another's.
        let leader = everyone.processes.get(&child.id.pid);
        // Of what is known by its cgroup alone the number is 0, which is the session of all whose leader is outside of this namespace of pids.
        let own_session = child.id.pid != 0 && leader.is_none_or(|stat| stat.start_ticks == child.id.start_ticks);
        let me = i32::try_from(std::process::id()).unwrap_or(0);
        let alive = |stat: &Stat| !stat.zombie;
        let mut member: BTreeMap<i32, u64> = BTreeMap::new();
        let mut doubtful = Vec::new();
        for (pid, stat) in everyone.processes.iter().filter(|(_, stat)| alive(stat)) {
            if *pid == me || self.agent == Some(*pid) || self.running.get(pid).is_some_and(|other| other != key) {
                continue;
            }
            let main = child.running() && *pid == child.id.pid && stat.start_ticks == child.id.start_ticks;
            let orphan = stat.ppid == me || (child.adopted && everyone.may_be_orphan(*pid, stat, child.id.start_ticks));
            if main || (own_session && stat.session == child.id.pid) {
                member.insert(*pid, stat.start_ticks);
            } else if orphan {
                match everyone.carries(*pid, key, &child.root) {
                    Some(true) => {
                        member.insert(*pid, stat.start_ticks);
                    }
                    Some(false) => {}
                    // What is older than the worker is not of it.
                    None if stat.start_ticks >= child.id.start_ticks => doubtful.push(*pid),
                    None => {}
                }
            }
        }
        // Until nothing is added: a child can have a lower number than its parent.
        loop {
            let before = member.len();
            for (pid, stat) in everyone.processes.iter().filter(|(_, stat)| alive(stat)) {
                if member.contains_key(&stat.ppid) && !self.running.contains_key(pid) {
                    member.insert(*pid, stat.start_ticks);
                }
            }
            if member.len() == before {
                break;
            }
        }
        if child.adopted {
            member.retain(|pid, _| self.may_be_adopted(*pid));
        }
        // Whom somebody of the tree has started is of it, whatever its environment.
        let doubtful = doubtful.into_iter().find(|pid| !member.contains_key(pid));
        Left { processes: member.into_iter().map(|(pid, start_ticks)| ProcessId { pid, start_ticks }).collect(), doubtful }
    }
}

/// Who lives in a cgroup; nobody, when it is gone.
fn members_of(group: io::Result<cgroup::Group>) -> io::Result<Vec<ProcessId>> {
    let group = match group {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        group => group?,
    };
    if !group.is_populated()? {
        return Ok(Vec::new());
    }
    let mut members = Vec::new();
    for pid in group.processes()? {
        match process::stat(pid) {
            Ok(stat) if stat.zombie => {}
            Ok(stat) => members.push(stat.id(pid)),
            Err(error) if process::is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(members)
}

/// The name of a child's cgroup; `None`: this is no child's name.
pub(super) fn group_name(key: &str) -> Option<String> {
    // With a `#`, it is none of the kernel's own files.
    (key.contains('#') && !key.contains('\0')).then(|| key.replace('/', "."))
}

/// The worker whose cgroup has this name. No pool's name has a dot.
fn key_of_group(name: &str) -> Option<Key> {
    let (pool, rest) = name.split_once('.')?;
    rest.contains('#').then(|| format!("{pool}/{rest}"))
}

/// What a worker or helper of this root is called until it executes its program (`comm`: 15 letters).
pub(super) fn called_at_first(root: &str) -> CString {
    // FNV-1a: two roots are to differ, and a root is to be the same next time.
    let hash = root.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    CString::new(format!("sstart-{hash:08x}")).unwrap_or_default()
}

/// The main process of the worker or helper in whose name a process was started.
pub(crate) fn main_process_of(pid: i32) -> Option<i32> {
    process::variable(pid, KEY_VARIABLE).as_deref().and_then(name_in).map(|name| name.pid)
}

/// One look at all processes. Whose name one carries is read when it is asked for, and once: many may have ended.
struct Everyone {
    processes: BTreeMap<i32, Stat>,
    names: RefCell<BTreeMap<i32, Variable>>,
}

impl Everyone {
    fn look() -> io::Result<Self> {
        Ok(Self { processes: process::everyone()?.into_iter().collect(), names: RefCell::default() })
    }

    /// Whether a process can be what another keeper's worker left: it is younger than the worker, and whoever inherited it, an ancestor
    /// of the worker, is older. `since`: when the worker started, 0 when that is not known any more.
    fn may_be_orphan(&self, pid: i32, stat: &Stat, since: u64) -> bool {
        const KTHREADD: i32 = 2;
        let older = self.processes.get(&stat.ppid).is_none_or(|parent| parent.start_ticks <= since);
        pid != KTHREADD && stat.ppid != KTHREADD && (since == 0 || (stat.start_ticks >= since && older))
    }

    /// Whether a process was started with this name in its environment; `None`: it cannot be seen now.
    fn carries(&self, pid: i32, key: &str, root: &str) -> Option<bool> {
        let mut names = self.names.borrow_mut();
        match names.entry(pid).or_insert_with(|| process::look_for(pid, KEY_VARIABLE)) {
            Variable::Is(value) => Some(name_in(value).is_some_and(|name| name.key == key && name.root == root)),
            Variable::None => Some(false),
            Variable::Unknown => None,
        }
    }
}

/// A child's name as its environment has it.
#[derive(Debug, PartialEq, Eq)]
struct Name<'a> {
    key: &'a str,
    pid: i32,
    root: &'a str,
}

/// Parses `KEY:PID@ROOT`.
fn name_in(value: &str) -> Option<Name<'_>> {
    let (left, root) = value.split_once('@')?;
    let (key, pid) = left.rsplit_once(':')?;
    Some(Name { key, pid: pid.parse().ok()?, root })
}

/// What is found of the children of earlier keepers.
#[derive(Debug, Default)]
pub(super) struct Survivors {
    /// Their main process lives.
    pub(super) living: Vec<(Key, ProcessId)>,
    /// Their main process is gone, and something is left. True only without a doubt: the main process may be what could not be seen.
    pub(super) remains: Vec<(Key, ProcessId)>,
    /// They have not executed their program, and their keeper is gone: it hung, and may go on.
    pub(super) unstarted: Vec<ProcessId>,
    /// They call themselves workers of a pool and are of another user of ours: of one that the pool had before, or liars. Each with what is
    /// in its session. They must be gone before the pool's slots are filled.
    pub(super) of_another_user: Vec<(Key, ProcessId)>,
    /// They call themselves workers of a pool, and are of nobody whom we may signal.
    pub(super) strangers: Vec<(Key, i32)>,
    /// Why there may be more.
    pub(super) doubt: Option<Doubt>,
}

/// What there is to a process that calls itself a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    /// Nothing speaks against it.
    Ours,
    /// It is of another user than the pool's, whose processes we may signal.
    OfAnotherUser,
    /// It is of nobody whom we may signal, and its pool is configured.
    Stranger,
    /// As that, and its pool is not.
    None,
}

/// Whether a process hangs before the program of a worker of this root. It has the name, the session and the program of one, so a program of
/// somebody else's that is called so is none.
fn hangs_before_its_program(pid: i32, stat: &Stat, called: &CString, table: &Table) -> bool {
    !stat.zombie
        && stat.session == pid
        && process::name(pid).is_ok_and(|name| name == called.as_bytes())
        && process::runs_our_program(pid)
        && table.may_be_adopted(pid)
}

/// Why not everybody has been looked at.
#[derive(Debug)]
pub(super) enum Doubt {
    /// This process cannot be seen now: it is executing a program, say.
    Of(i32),
    /// Nothing can be seen.
    All(io::Error),
}

/// Finds the children of earlier keepers of this root that `table` does not have.
pub(super) fn survivors(root: &str, known: &[(Key, i32, u64)], table: &Table) -> Survivors {
    let mut mains: BTreeMap<Key, (ProcessId, bool)> = BTreeMap::new();
    let (mut strangers, mut unstarted, called) = (Vec::new(), Vec::new(), called_at_first(root));
    // Those of another user: main processes, and what only carries a name.
    let (mut wrong, mut wrong_rest) = (BTreeMap::new(), Vec::new());
    let mut doubt = None;
    for (key, pid, start_ticks) in known.iter().filter(|(key, ..)| !table.has(key)) {
        let id = ProcessId { pid: *pid, start_ticks: *start_ticks };
        match process::lives(id) {
            Ok(true) => match table.claim(key, *pid) {
                Claim::Ours => drop(mains.insert(key.clone(), (id, true))),
                Claim::OfAnotherUser => drop(wrong.insert(*pid, (key.clone(), id))),
                Claim::Stranger => strangers.push((key.clone(), *pid)),
                Claim::None => {}
            },
            // Gone, or the number is another process's by now.
            Ok(false) => {}
            Err(error) => doubt = Some(Doubt::All(error)),
        }
    }
    let everyone = process::everyone().unwrap_or_else(|error| {
        doubt = Some(Doubt::All(error));
        Vec::new()
    });
    for &(pid, stat) in &everyone {
        if table.agent == Some(pid) || table.running.contains_key(&pid) {
            continue;
        }
        let value = match process::look_for(pid, KEY_VARIABLE) {
            Variable::Is(value) => value,
            Variable::None => {
                // Its environment is the keeper's until it has one of its own.
                if hangs_before_its_program(pid, &stat, &called, table) {
                    unstarted.push(stat.id(pid));
                }
                continue;
            }
            Variable::Unknown => {
                doubt = doubt.or(Some(Doubt::Of(pid)));
                continue;
            }
        };
        let ours = |name: &Name<'_>| name.root == root && name.key.len() <= KEY_MAX && !table.has(name.key);
        let Some(name) = name_in(&value).filter(ours) else { continue };
        match table.claim(name.key, pid) {
            Claim::Ours => {}
            Claim::OfAnotherUser if stat.zombie => continue,
            Claim::OfAnotherUser if name.pid == pid => {
                wrong.insert(pid, (name.key.to_owned(), stat.id(pid)));
                continue;
            }
            Claim::OfAnotherUser => {
                wrong_rest.push((name.key.to_owned(), stat.id(pid)));
                continue;
            }
            Claim::Stranger => {
                strangers.push((name.key.to_owned(), pid));
                continue;
            }
            Claim::None => continue,
        }
        if name.pid == pid && !stat.zombie {
            mains.insert(name.key.to_owned(), (ProcessId { pid, start_ticks: stat.start_ticks }, true));
        } else {
            mains.entry(name.key.to_owned()).or_insert((ProcessId { pid: name.pid, start_ticks: 0 }, false));
        }
    }
    if let Some(tree) = &table.tree {
        // What is left in a cgroup is a worker's whatever it did to its environment. Its main process is found above, or is gone.
        for name in tree.names().unwrap_or_default() {
            let Some(key) = key_of_group(&name).filter(|key| !table.has(key)) else { continue };
            match tree.group(&name).and_then(|group| group.is_populated()) {
                Ok(true) => {
                    mains.entry(key).or_insert((ProcessId { pid: 0, start_ticks: 0 }, false));
                }
                _ => drop(tree.remove(&name)),
            }
        }
    }
    // What a living worker has started as somebody else is that worker's.
    wrong_rest.retain(|(key, _)| mains.get(key).is_none_or(|(_, lives)| !lives));
    let in_session = |(pid, stat): &(i32, Stat)| {
        let (key, _) = wrong.get(&stat.session).filter(|_| *pid != stat.session && !stat.zombie)?;
        (!table.running.contains_key(pid) && table.may_be_adopted(*pid)).then(|| (key.clone(), stat.id(*pid)))
    };
    wrong_rest.extend(everyone.iter().filter_map(in_session));
    let of_another_user = wrong.into_values().chain(wrong_rest).collect();
    let me = i32::try_from(std::process::id()).unwrap_or(0);
    if matches!(doubt, Some(Doubt::Of(_))) && process::look_for(me, KEY_VARIABLE) == Variable::Unknown {
        // It is not they who cannot be seen: we cannot see ourselves.
        doubt = Some(Doubt::All(io::Error::other("no environment can be read")));
    }
    let (living, remains): (Vec<_>, Vec<_>) = mains.into_iter().partition(|(_, (_, lives))| *lives);
    let plain = |list: Vec<(Key, (ProcessId, bool))>| list.into_iter().map(|(key, (id, _))| (key, id)).collect();
    Survivors { living: plain(living), remains: plain(remains), unstarted, of_another_user, strangers, doubt }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use crate::sys::{fault, headless};

    /// Killed and reaped when the test is over, also when it fails.
    struct Orphan(i32);

    impl Drop for Orphan {
        fn drop(&mut self) {
            let _gone = process::signal_child(self.0, libc::SIGKILL);
            let _reaped = rustix::process::Pid::from_raw(self.0)
                .map(|pid| rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()));
        }
    }

    #[test]
    fn what_is_known_by_its_cgroup_alone_is_not_the_session_of_number_0() {
        // The kernel's own threads are in it, and in a namespace of pids whoever was put there from outside.
        let everyone = process::everyone().expect("/proc");
        if !everyone.iter().any(|(_, stat)| stat.session == 0) {
            return eprintln!("left out: nobody that can be seen here is in session 0");
        }
        let mut table = Table::default();
        let mut child = Child::new(ProcessId { pid: 0, start_ticks: 0 }, true, Vec::new(), "/x".into(), String::new());
        child.life = Life::Ended { how: Ended::Unknown, at: MonoTime::from_boot(Duration::from_secs(1)), tree_gone: false };
        table.insert("w/0#1".into(), child);
        assert_eq!(table.tree("w/0#1").expect("/proc"), Vec::new());
        assert!(everyone.iter().filter(|(_, stat)| stat.session == 0).all(|(pid, _)| !table.is_of(*pid, &["w/0#1".into()])));
    }

    #[test]
    fn what_cannot_be_looked_at_is_not_taken_for_gone() {
        process::become_subreaper().expect("a subreaper");
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 >/dev/null & echo $!"]).stdin(Stdio::null()).stdout(Stdio::piped());
        process::apart(&mut command);
        let mut main = command.spawn().expect("sh");
        let id = process::stat(i32::try_from(main.id()).expect("a pid")).expect("not reaped").id(i32::try_from(main.id()).expect("a pid"));
        let mut line = String::new();
        io::BufRead::read_line(&mut io::BufReader::new(main.stdout.take().expect("piped")), &mut line).expect("a line");
        let left = Orphan(line.trim().parse().expect("a pid"));
        main.wait().expect("its end");

        let key = "w/0#1".to_owned();
        let mut table = Table::default();
        table.insert(key.clone(), Child::new(id, false, Vec::new(), "/x".into(), String::new()));
        let now = MonoTime::from_boot(Duration::from_secs(1));
        assert_eq!(table.ended(id.pid, Ended::Code(0), now), Some(key.clone()));
        let look = || {
            table
                .leftovers(std::slice::from_ref(&key))
                .map(|left| left.get(&key).map_or((0, false), |left| (left.processes.len(), left.doubtful.is_some())))
        };
        assert_eq!(look().expect("/proc"), (1, false));
        fault::set_proc(Some("stat"));
        let blind = look();
        fault::set_proc(Some("children"));
        let slow = look();
        fault::set_proc(None);
        assert!(blind.is_err(), "{blind:?}");
        assert_eq!(slow.expect("the long way"), (1, false));
        drop(left);
        assert_eq!(look().expect("/proc"), (0, false));
    }

    #[test]
    fn whose_name_cannot_be_read_may_be_left_over_and_is_looked_at_again_for_a_while() {
        process::become_subreaper().expect("a subreaper");
        // One that left its worker's session, as daemons do; its parent is gone.
        let mut main = Command::new("sh")
            .args(["-c", "setsid sleep 1000 >/dev/null & echo $!"])
            .env(KEY_VARIABLE, "w/0#1:0000000001@/doubt")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh");
        let pid = i32::try_from(main.id()).expect("a pid");
        let id = process::stat(pid).expect("not reaped").id(pid);
        let mut line = String::new();
        io::BufRead::read_line(&mut io::BufReader::new(main.stdout.take().expect("piped")), &mut line).expect("a line");
        let left = Orphan(line.trim().parse().expect("a pid"));
        main.wait().expect("its end");
        // `setsid` and `sleep` have been executed.
        while process::stat(left.0).expect("it lives").session != left.0 || process::title(left.0).expect("ours") != b"sleep\x001000" {
            std::thread::yield_now();
        }

        let (key, mut table) = ("w/0#1".to_owned(), Table::default());
        table.insert(key.clone(), Child::new(id, false, Vec::new(), "/doubt".into(), String::new()));
        let at = |millis| MonoTime::from_boot(Duration::from_millis(millis));
        table.ended(id.pid, Ended::Code(0), at(1000));
        let look = |table: &Table| table.leftovers(std::slice::from_ref(&key)).expect("/proc").remove(&key).unwrap_or_default();
        fault::set_proc(Some("environ"));
        let blind = look(&table);
        fault::set_proc(None);
        assert!(blind.processes.is_empty() && blind.doubtful.is_some(), "{blind:?}");
        assert_eq!(look(&table).processes.iter().map(|id| id.pid).collect::<Vec<_>>(), [left.0]);
        drop(left);
        assert_eq!(look(&table), Left::default());

        table.clear(&key);
        assert_eq!(table.next_look(at(1000)), Some(LOOK_AGAIN));
        assert!(!table.doubt(&key, true, at(2000)));
        assert_eq!(table.next_look(at(2050)), Some(LOOK_SOON));
        assert!(!table.doubt(&key, true, at(11_999)));
        assert_eq!(table.next_look(at(11_999)), Some(LOOK_AGAIN));
        assert!(table.doubt(&key, true, at(12_000)), "for ever");
        assert!(!table.doubt(&key, false, at(12_001)) && !table.doubt(&key, true, at(13_000)), "a new doubt");
        table.cleared(&key);
        assert_eq!(table.next_look(at(14_000)), None);
    }

    #[test]
    fn a_process_whose_first_thread_has_ended_is_left_over_and_survives() {
        let key = "w/0#1".to_owned();
        let process = headless::start(headless::command().env(KEY_VARIABLE, "w/0#1:0000000001@/headless"));
        let id = process::stat(process.pid()).expect("it lives").id(process.pid());
        let found = survivors("/headless", &[(key.clone(), id.pid, id.start_ticks)], &Table::default());
        assert_eq!(found.living, [(key.clone(), id)], "{found:?}");

        let mut table = Table::default();
        let main = ProcessId { pid: 1 << 22, start_ticks: id.start_ticks };
        table.insert(key.clone(), Child::new(main, false, Vec::new(), "/headless".into(), String::new()));
        table.ended(main.pid, Ended::Code(0), MonoTime::from_boot(Duration::from_secs(1)));
        assert_eq!(table.tree(&key).expect("/proc"), [id]);
        drop(process);
        assert_eq!(table.tree(&key).expect("/proc"), []);
    }

    #[test]
    fn a_name_in_the_environment_is_taken_apart() {
        let name = name_in("helper:build#3:0000004711@/srv/a@b");
        assert_eq!(name, Some(Name { key: "helper:build#3", pid: 4711, root: "/srv/a@b" }));
        for wrong in ["", "a", "a@/", "a:x@/"] {
            assert_eq!(name_in(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_a_worker_of_another_keeper_left_is_younger_than_it_and_its_parent_older() {
        let stat = |ppid, start_ticks| Stat { ppid, session: 0, start_ticks, rss_pages: 0, zombie: false };
        let init = (1, stat(0, 1));
        // The worker was 50, started at 500, and is gone.
        let orphan = (60, stat(1, 510));
        let of_the_same_tick = (61, stat(1, 500));
        let older = (40, stat(1, 400));
        let of_another = (62, stat(60, 520));
        let kernel = (70, stat(2, 600));
        let processes = BTreeMap::from([init, orphan, of_the_same_tick, older, of_another, kernel]);
        let everyone = Everyone { processes, names: RefCell::default() };
        let may = |pid: i32, since| everyone.may_be_orphan(pid, &everyone.processes[&pid], since);
        assert_eq!([60, 61, 40, 62, 70].map(|pid| may(pid, 500)), [true, true, false, false, false]);
        assert_eq!([60, 61, 40, 62, 70].map(|pid| may(pid, 0)), [true, true, true, true, false], "not known since when");
    }
}
