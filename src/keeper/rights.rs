//! What the keeper does for an agent that is not root, and what it refuses.
//!
//! The keeper starts `internal-rights` (see `crate::rights`) before each agent, and is told by it as whom the agent runs and as whom it may
//! have processes started. Nothing that an agent says can change that: not who, not whose groups, not the configuration that is read.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::CString;
use std::io::{self, Read, Seek};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::MemfdFlags;
use selfstart_core::time::MonoTime;

use super::protocol::{Errand, Start};
use crate::rights::{Grant, Split, Who};
use crate::sys::clock;
use crate::sys::process;
use crate::sys::spawn::{Credentials, Job};
use crate::sys::starter::{Started, Starter};

/// The longest that a helper may take: a directory server that does not answer, a disk that hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Errands that wait for the one before them. An agent has one of each kind at most.
const WAITING_MAX: usize = 8;

/// The largest answer that is read.
const ANSWER_MAX: u64 = 1 << 20;

/// The most of the memory of the kernel that an output pipe may take: what `log.buffer` may be.
pub(super) const PIPE_MAX_BYTES: u32 = 1 << 20;

/// Descriptors that outlive an agent: it keeps five.
pub(super) const KEPT_MAX: usize = 32;

/// What is to be told to an agent that does not listen, beside what is said of its children.
pub(super) const NOTES_MAX: usize = 1 << 16;

/// What an agent may tell the service manager (`sd_notify(3)`). Above all it may not name another main process: systemd believes root.
const SAYINGS: [&str; 9] = [
    "READY=1",
    "RELOADING=1",
    "STOPPING=1",
    "STATUS=",
    "EXTEND_TIMEOUT_USEC=",
    "MONOTONIC_USEC=",
    "ERRNO=",
    "WATCHDOG=1",
    "EXIT_STATUS=",
];

/// As whom agents run.
#[derive(Debug)]
enum Standing {
    /// It has not been told yet: no agent is started.
    Unknown,
    /// As the keeper.
    AsKeeper {
        /// What an operator should know of it.
        why: String,
    },
    /// As a user of its own.
    Split(Split),
}

#[derive(Debug)]
struct Running {
    pid: i32,
    errand: Errand,
    answer: OwnedFd,
    until: MonoTime,
}

/// An errand that is over.
#[derive(Debug)]
pub(super) struct Over {
    pub(super) errand: Errand,
    /// What the helper said, or why it did not.
    pub(super) answer: Result<OwnedFd, String>,
}

/// What follows from a new order.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ordered {
    /// An agent may be started.
    Go,
    /// It is to be tried again.
    Again,
    /// No agent may run.
    Never(String),
}

/// Who may do what.
#[derive(Debug)]
pub(super) struct Rights {
    /// The configuration; `None`: the keeper is not root, and there is nothing to be divided.
    config: Option<CString>,
    standing: Standing,
    /// Whether it was asked since the last agent ended.
    fresh: bool,
    running: Option<Running>,
    waiting: VecDeque<Errand>,
    /// Those as whom processes were ever allowed to be started.
    users: BTreeSet<u32>,
}

impl Rights {
    /// For a keeper with this configuration.
    pub(super) fn new(config: Option<CString>) -> Self {
        let config = config.filter(|_| rustix::process::geteuid().is_root());
        let standing = if config.is_some() { Standing::Unknown } else { Standing::AsKeeper { why: String::new() } };
        Self { config, standing, fresh: false, running: None, waiting: VecDeque::new(), users: BTreeSet::new() }
    }

    /// Whether an agent may be started now.
    pub(super) fn are_known(&self) -> bool {
        match self.standing {
            Standing::Unknown => false,
            _ => self.fresh || self.config.is_none(),
        }
    }

    /// Whether a helper runs.
    pub(super) fn are_being_looked_up(&self) -> bool {
        self.running.is_some()
    }

    /// What to say of an agent that is root although it need not be.
    pub(super) fn said(&self) -> Option<&str> {
        match &self.standing {
            Standing::AsKeeper { why } if !why.is_empty() => Some(why),
            _ => None,
        }
    }

    /// Whom the agent runs as; `None`: as we.
    pub(super) fn agent(&self) -> Option<Credentials> {
        self.split().map(|split| split.agent.credentials())
    }

    /// What an agent with a user of its own may do; `None`: all that we may.
    pub(super) fn split(&self) -> Option<&Split> {
        if let Standing::Split(split) = &self.standing { Some(split) } else { None }
    }

    /// The agent has ended: who may do what is looked up again before the next one.
    pub(super) fn agent_ended(&mut self) {
        self.fresh = false;
        self.waiting.clear();
        // What it was for is not there any more, and the next agent must not wait for it.
        if let Some(running) = &self.running {
            let _gone_already = process::signal_child(running.pid, libc::SIGKILL);
        }
    }

    /// Whom processes may belong to that are signalled without being our children; `None`: anybody.
    pub(super) fn users(&self) -> Option<&BTreeSet<u32>> {
        self.split().map(|_| &self.users)
    }

    /// Has an errand done, after those before it.
    ///
    /// # Errors
    /// Why it is not.
    pub(super) fn begin(&mut self, errand: Errand, starter: &mut Starter, null: &Arc<OwnedFd>) -> Result<(), String> {
        if self.config.is_none() {
            return Err("the keeper is not root".to_owned());
        }
        if self.running.is_some() {
            if self.waiting.len() >= WAITING_MAX {
                return Err("too many errands wait".to_owned());
            }
            self.waiting.push_back(errand);
            return Ok(());
        }
        self.start(errand, starter, null)
    }

    fn start(&mut self, errand: Errand, starter: &mut Starter, null: &Arc<OwnedFd>) -> Result<(), String> {
        let Some(config) = self.config.clone() else { return Err("the keeper is not root".to_owned()) };
        let told = |error: io::Error| error.to_string();
        let (verb, stdin) = match &errand {
            Errand::Order => (c"order", Arc::clone(null)),
            Errand::Uses => (c"uses", Arc::clone(null)),
            Errand::Prune(ids) => {
                let ids = serde_json::to_vec(ids).map_err(|error| error.to_string())?;
                (c"prune", Arc::new(super::above_standard(crate::sys::memory_file(&ids).map_err(told)?).map_err(told)?))
            }
        };
        let answer = rustix::fs::memfd_create("selfstart", MemfdFlags::CLOEXEC).map_err(|error| told(error.into()))?;
        rustix::fs::fchmod(&answer, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).map_err(|error| told(error.into()))?;
        let out = super::above_standard(answer.try_clone().map_err(told)?).map_err(told)?;
        let err = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 10)
            .or_else(|_| rustix::io::fcntl_dupfd_cloexec(&**null, 10))
            .map_err(|error| told(error.into()))?;
        let started = starter.start_at_any_rate(Job {
            programs: vec![c"/proc/self/exe".to_owned()],
            argv: vec![c"selfstart".to_owned(), c"internal-rights".to_owned(), verb.to_owned(), config],
            env: super::own_environment(),
            own_pid_at: None,
            cwd: Some(c"/".to_owned()),
            credentials: None,
            fds: vec![stdin, Arc::new(out), Arc::new(err)],
            nofile: None,
            nice: None,
            umask: None,
            reset_oom_score: false,
            new_session: true,
            dies_with_us: true,
            cgroup: None,
        });
        match started {
            Ok(Started::Executed(pid) | Started::Hangs(pid)) => {
                self.running = Some(Running { pid, errand, answer, until: clock::now() + PATIENCE });
                Ok(())
            }
            Err(error) => Err(error.source.to_string()),
        }
    }

    /// A child has been reaped: returns the errand that is over with it, if it was our helper.
    pub(super) fn reaped(&mut self, pid: i32, how: process::Ended) -> Option<Over> {
        let Running { errand, answer, .. } = self.running.take_if(|running| running.pid == pid)?;
        let answer = match how {
            process::Ended::Code(0) => Ok(answer),
            how => Err(format!("the helper ended ({})", super::describe(how))),
        };
        Some(Over { errand, answer })
    }

    /// Begins what waits; returns those that could not be begun.
    pub(super) fn go_on(&mut self, starter: &mut Starter, null: &Arc<OwnedFd>) -> Vec<Over> {
        let mut failed = Vec::new();
        while self.running.is_none() {
            let Some(errand) = self.waiting.pop_front() else { break };
            if let Err(why) = self.start(errand.clone(), starter, null) {
                failed.push(Over { errand, answer: Err(why) });
            }
        }
        failed
    }

    /// When a helper has taken too long.
    pub(super) fn deadline(&self) -> Option<MonoTime> {
        self.running.as_ref().map(|running| running.until)
    }

    /// Ends a helper that has taken too long; its end is heard like any.
    pub(super) fn end_late(&mut self, now: MonoTime) {
        if let Some(running) = self.running.as_mut().filter(|running| running.until <= now) {
            running.until = now + PATIENCE;
            let _gone_already = process::signal_child(running.pid, libc::SIGKILL);
        }
    }

    /// Takes what was found out about who may do what. `Err`: why what was known before stays; that is no reason to stop what runs.
    pub(super) fn ordered(&mut self, answer: Result<OwnedFd, String>) -> (Ordered, Result<(), String>) {
        let grant = answer.and_then(|answer| read(answer).map_err(|error| format!("the helper cannot be understood: {error}")));
        let first = matches!(self.standing, Standing::Unknown);
        let refused = match (grant, &self.standing) {
            (Err(why), Standing::Unknown) => return (Ordered::Again, Err(why)),
            (Ok(Grant::Refused { why }), Standing::Unknown) => return (Ordered::Never(why.clone()), Err(why)),
            (Err(why) | Ok(Grant::Refused { why }), _) => Some(why),
            (Ok(Grant::AsKeeper { why }), Standing::Unknown | Standing::AsKeeper { .. }) => {
                self.standing = Standing::AsKeeper { why };
                None
            }
            // An agent with less rights never becomes one with more while its keeper lives.
            (Ok(Grant::AsKeeper { why }), Standing::Split(_)) => {
                Some(if why.is_empty() { "the agent could be root again after a restart of selfstart".to_owned() } else { why })
            }
            (Ok(Grant::Split(new)), Standing::Split(old)) if (&new.root, &new.agent) != (&old.root, &old.agent) => {
                Some("`root`, or the user of the agent, is another after a restart of selfstart".to_owned())
            }
            (Ok(Grant::Split(new)), _) if new.users.iter().chain([&new.agent]).any(|who| who.uid == 0) => {
                Some("nobody is started as root".to_owned())
            }
            (Ok(Grant::Split(new)), _) => {
                self.users.extend(new.users.iter().map(|who| who.uid));
                self.standing = Standing::Split(new);
                None
            }
        };
        if first && refused.is_some() {
            return (Ordered::Again, Err(refused.unwrap_or_default()));
        }
        self.fresh = true;
        (Ordered::Go, refused.map_or(Ok(()), Err))
    }

    /// Returns as whom a process is started, or why it is not.
    ///
    /// # Errors
    /// What the agent may not ask for.
    pub(super) fn judge(&self, start: &Start) -> Result<Option<Credentials>, String> {
        let asked = start.user.as_ref();
        let split = match &self.standing {
            Standing::Unknown => return Err("nobody may start anything yet".to_owned()),
            Standing::AsKeeper { .. } => {
                return Ok(asked.map(|(uid, gid, groups)| Credentials { uid: *uid, gid: *gid, groups: groups.clone() }));
            }
            Standing::Split(split) => split,
        };
        if start.root != split.root {
            return Err(format!("`{}` is not the root that is minded here", start.root));
        }
        let Some((uid, gid, groups)) = asked else { return Err("a start without a user would be one as root".to_owned()) };
        let same = |who: &&Who| (who.uid, who.gid) == (*uid, *gid);
        // The groups are those of the configuration, whatever is asked for; they may have changed since it was read.
        let exact = split.users.iter().filter(same).find(|who| who.groups == *groups);
        match exact.or_else(|| split.users.iter().find(same)) {
            Some(who) => Ok(Some(who.credentials())),
            None => Err(format!("the configuration names no user {uid} with group {gid}; `selfstart reload` reads it again")),
        }
    }
}

/// Reads a grant from the beginning of a file.
fn read(answer: OwnedFd) -> io::Result<Grant> {
    let mut file = std::fs::File::from(answer);
    file.rewind()?;
    let mut text = Vec::new();
    file.take(ANSWER_MAX).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// What of an agent's words goes to the service manager.
pub(super) fn sayable(state: &str) -> String {
    state.lines().filter(|line| SAYINGS.iter().any(|saying| line.starts_with(saying))).collect::<Vec<_>>().join("\n")
}
