//! What the keeper does for an agent that is not root, and what it refuses.
//!
//! The keeper starts `internal-rights` (see `crate::rights`) before each agent, and is told by it as whom the agent runs and as whom it may
//! have processes started. Nothing that an agent says can change that: not who, not whose groups, not the configuration that is read.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::CString;
use std::io::{self, Read, Seek};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::MemfdFlags;
use selfstart_core::time::MonoTime;

use super::protocol::{Errand, Start};
use crate::rights::{Grant, Measured, Split};
use crate::sys::clock;
use crate::sys::process;
use crate::sys::spawn::{Credentials, Job};
use crate::sys::starter::{Started, Starter};

/// The longest that a helper may take: a directory server that does not answer, a disk that hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// The longest that a new agent waits to be told anew what was known before: workers are without one meanwhile.
const PATIENCE_AGAIN: Duration = Duration::from_millis(500);

/// The largest answer that is read.
const ANSWER_MAX: u64 = 1 << 20;

/// The most of the memory of the kernel that an output pipe may take: what `log.buffer` may be.
pub(super) const PIPE_MAX_BYTES: u32 = 1 << 20;

/// Descriptors that outlive an agent: it keeps five.
pub(super) const KEPT_MAX: usize = 32;

/// What is to be told to an agent that does not listen, beside what is said of its children.
pub(super) const NOTES_MAX: usize = 1 << 16;

/// What an agent may tell the service manager (`sd_notify(3)`). Above all it may not name another main process: systemd believes root.
const SAYINGS: [&str; 9] =
    ["READY=1", "RELOADING=1", "STOPPING=1", "STATUS=", "EXTEND_TIMEOUT_USEC=", "MONOTONIC_USEC=", "ERRNO=", "WATCHDOG=1", "EXIT_STATUS="];

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
    /// What the node is for, beside what that says.
    roles: Vec<CString>,
    standing: Standing,
    /// Why the configuration is not to be believed now: an agent runs the last good one then.
    distrust: Option<String>,
    /// Whether it was asked since the last agent ended.
    fresh: bool,
    /// One of a kind: what takes long (a release that is removed) must not keep what must not wait (a look at memory).
    running: Vec<Running>,
    /// One of a kind, too.
    waiting: VecDeque<(Errand, Vec<Measured>)>,
    /// Those as whom processes were ever allowed to be started.
    users: BTreeSet<u32>,
}

impl Rights {
    /// For a keeper with these words for its agents: the configuration, and roles.
    pub(super) fn new(words: &[CString]) -> Self {
        let config = words.first().cloned().filter(|_| rustix::process::geteuid().is_root());
        let standing = if config.is_some() { Standing::Unknown } else { Standing::AsKeeper { why: String::new() } };
        Self {
            config,
            roles: words.iter().skip(1).cloned().collect(),
            standing,
            distrust: None,
            fresh: false,
            running: Vec::new(),
            waiting: VecDeque::new(),
            users: BTreeSet::new(),
        }
    }

    /// Whether an agent may be started now.
    pub(super) fn are_known(&self) -> bool {
        match self.standing {
            Standing::Unknown => false,
            _ => self.fresh || self.config.is_none(),
        }
    }

    /// Whether a helper runs that the next agent waits for.
    pub(super) fn are_being_looked_up(&self) -> bool {
        self.runs(&Errand::Order) && !self.are_known()
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

    /// Whether it has been told who may do what.
    pub(super) fn are_told(&self) -> bool {
        !matches!(self.standing, Standing::Unknown)
    }

    /// The root whose last good configuration an agent is to run, and why; `None`: the configuration is to be believed.
    pub(super) fn last_good(&self) -> Option<(&str, &str)> {
        Some((self.split()?.root.as_str(), self.distrust.as_deref()?))
    }

    /// Whose processes the workers of each pool are; `None`: anybody's.
    pub(super) fn pools(&self) -> Option<&BTreeMap<String, u32>> {
        self.split().map(|split| &split.pools)
    }

    /// Those as whom processes were ever allowed to be started: for the keeper that is executed in our place.
    pub(super) fn all_users(&self) -> impl Iterator<Item = u32> + '_ {
        self.users.iter().copied()
    }

    /// Takes them over from the keeper before us.
    pub(super) fn remember(&mut self, users: impl IntoIterator<Item = u32>) {
        self.users.extend(users);
    }

    fn runs(&self, errand: &Errand) -> bool {
        self.running.iter().any(|running| same_kind(&running.errand, errand))
    }

    /// The agent has ended: who may do what is looked up again before the next one.
    pub(super) fn agent_ended(&mut self) {
        self.fresh = false;
        self.waiting.clear();
        // What it was for is not there any more, and the next agent must not wait for it.
        for running in &mut self.running {
            running.until = running.until.min(clock::now() + PATIENCE_AGAIN);
            let _gone_already = process::signal_child(running.pid, libc::SIGKILL);
        }
    }

    /// Whom processes may belong to that are signalled without being our children; `None`: anybody.
    pub(super) fn users(&self) -> Option<&BTreeSet<u32>> {
        self.split().map(|_| &self.users)
    }

    /// Has an errand done, after the one before it of its kind.
    ///
    /// # Errors
    /// Why it is not.
    pub(super) fn begin(&mut self, errand: Errand, mains: Vec<Measured>, starter: &mut Starter, null: &Arc<OwnedFd>) -> Result<(), String> {
        if self.config.is_none() {
            return Err("the keeper is not root".to_owned());
        }
        if self.runs(&errand) {
            if self.waiting.iter().any(|(other, _)| same_kind(other, &errand)) {
                return Err("one like it waits already".to_owned());
            }
            self.waiting.push_back((errand, mains));
            return Ok(());
        }
        self.start(errand, &mains, starter, null)
    }

    fn start(&mut self, errand: Errand, mains: &[Measured], starter: &mut Starter, null: &Arc<OwnedFd>) -> Result<(), String> {
        let Some(config) = self.config.clone() else { return Err("the keeper is not root".to_owned()) };
        let told = |error: io::Error| error.to_string();
        let (verb, said) = match &errand {
            Errand::Order => (c"order", None),
            Errand::Uses => (c"uses", None),
            Errand::Prune(ids) => (c"prune", Some(serde_json::to_vec(ids))),
            Errand::Memory(_) => (c"memory", Some(serde_json::to_vec(mains))),
        };
        let stdin = match said {
            None => Arc::clone(null),
            Some(said) => {
                let said = said.map_err(|error| error.to_string())?;
                Arc::new(super::above_standard(crate::sys::memory_file(&said).map_err(told)?).map_err(told)?)
            }
        };
        let answer = rustix::fs::memfd_create("selfstart", MemfdFlags::CLOEXEC).map_err(|error| told(error.into()))?;
        rustix::fs::fchmod(&answer, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).map_err(|error| told(error.into()))?;
        let out = super::above_standard(answer.try_clone().map_err(told)?).map_err(told)?;
        let err = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 10)
            .or_else(|_| rustix::io::fcntl_dupfd_cloexec(&**null, 10))
            .map_err(|error| told(error.into()))?;
        let words = [c"selfstart".to_owned(), c"internal-rights".to_owned(), verb.to_owned(), config];
        let started = starter.start_at_any_rate(Job {
            programs: vec![c"/proc/self/exe".to_owned()],
            argv: words.into_iter().chain(self.roles.iter().cloned()).collect(),
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
            confined: false,
            called: None,
            cgroup: None,
        });
        match started {
            Ok(Started::Executed(pid) | Started::Hangs(pid)) => {
                let again = errand == Errand::Order && !self.fresh && !matches!(self.standing, Standing::Unknown);
                let patience = if again { PATIENCE_AGAIN } else { PATIENCE };
                self.running.push(Running { pid, errand, answer, until: clock::now() + patience });
                Ok(())
            }
            Err(error) => Err(error.source.to_string()),
        }
    }

    /// A child has been reaped: returns the errand that is over with it, if it was our helper.
    pub(super) fn reaped(&mut self, pid: i32, how: process::Ended) -> Option<Over> {
        let at = self.running.iter().position(|running| running.pid == pid)?;
        let Running { errand, answer, .. } = self.running.swap_remove(at);
        let answer = match how {
            process::Ended::Code(0) => Ok(answer),
            how => Err(format!("the helper ended ({})", super::describe(how))),
        };
        Some(Over { errand, answer })
    }

    /// Begins what waits; returns those that could not be begun.
    pub(super) fn go_on(&mut self, starter: &mut Starter, null: &Arc<OwnedFd>) -> Vec<Over> {
        let mut failed = Vec::new();
        for (errand, mains) in std::mem::take(&mut self.waiting) {
            if self.runs(&errand) {
                self.waiting.push_back((errand, mains));
            } else if let Err(why) = self.start(errand.clone(), &mains, starter, null) {
                failed.push(Over { errand, answer: Err(why) });
            }
        }
        failed
    }

    /// When a helper has taken too long.
    pub(super) fn deadline(&self) -> Option<MonoTime> {
        self.running.iter().map(|running| running.until).min()
    }

    /// Ends a helper that has taken too long; its end is heard like any.
    pub(super) fn end_late(&mut self, now: MonoTime) {
        let told = self.are_told();
        for running in self.running.iter_mut().filter(|running| running.until <= now) {
            running.until = now + PATIENCE;
            let _gone_already = process::signal_child(running.pid, libc::SIGKILL);
            // What is known stays as it was; one that cannot even be killed (a disk that hangs) is not waited for.
            self.fresh |= told && running.errand == Errand::Order;
        }
    }

    /// Takes what was found out about who may do what. `Err`: why what was known before stays; that is no reason to stop what runs.
    pub(super) fn ordered(&mut self, answer: Result<OwnedFd, String>) -> (Ordered, Result<(), String>) {
        let grant = answer.and_then(|answer| read(answer).map_err(|error| format!("the helper cannot be understood: {error}")));
        let first = matches!(self.standing, Standing::Unknown);
        // What could not be found out is as it was.
        if let Ok(grant) = &grant {
            self.distrust = match grant {
                Grant::LastGood { why, .. } | Grant::Refused { why } => Some(why.clone()),
                Grant::Split(_) | Grant::AsKeeper { .. } => None,
            };
        }
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
            // The one that is minded by is the one before.
            (Ok(Grant::LastGood { why, .. }), Standing::Split(_) | Standing::AsKeeper { .. }) => Some(why),
            (Ok(Grant::Split(new)), Standing::Split(old)) if (&new.root, &new.agent) != (&old.root, &old.agent) => {
                Some("`root`, or the user of the agent, is another after a restart of selfstart".to_owned())
            }
            (Ok(Grant::Split(new) | Grant::LastGood { split: new, .. }), _)
                if new.users.iter().chain([&new.agent]).any(|who| who.uid == 0) =>
            {
                Some("nobody is started as root".to_owned())
            }
            (Ok(Grant::Split(new) | Grant::LastGood { split: new, .. }), _) => {
                let former = new.former.iter().copied().filter(|uid| *uid != 0 && *uid != new.agent.uid);
                self.users.extend(new.users.iter().map(|who| who.uid).chain(former));
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
        let same = |who: &&crate::rights::Who| (who.uid, who.gid) == (*uid, *gid);
        // The groups are those of the configuration, whatever is asked for; they may have changed since it was read.
        let exact = split.users.iter().filter(same).find(|who| who.groups == *groups);
        match exact.or_else(|| split.users.iter().find(same)) {
            Some(who) => Ok(Some(who.credentials())),
            None => Err(format!("the configuration names no user {uid} with group {gid}; `selfstart reload` reads it again")),
        }
    }
}

/// Whether two errands are of one kind, whatever they are about.
fn same_kind(one: &Errand, other: &Errand) -> bool {
    std::mem::discriminant(one) == std::mem::discriminant(other)
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
    // systemd takes a carriage return for the end of a line, too.
    let lines = state.split(['\n', '\r']).filter(|line| !line.contains(char::is_control));
    lines.filter(|line| SAYINGS.iter().any(|saying| line.starts_with(saying))).collect::<Vec<_>>().join("\n")
}

/// A hostile agent speaks the protocol at the other end of the line.
#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, BorrowedFd};
    use std::process::{Child, Command, Stdio};

    use super::super::protocol::{Ask, Tell, decode, encode};
    use super::super::tests::{end, keeper, sleep};
    use super::super::{Agent, Keeper};
    use super::*;
    use crate::rights::Who;
    use crate::sys::packet;
    use crate::sys::spawn::Step;

    const NOBODY: (u32, u32) = (65534, 65534);
    /// Of this test alone: a keeper adopts whoever names its root, so those of others that run beside it too.
    fn root() -> String {
        let test = std::thread::current().name().unwrap_or_default().rsplit("::").next().unwrap_or_default().to_owned();
        format!("/of-a-hostile-agent/{}/{test}", std::process::id())
    }

    fn who((uid, gid): (u32, u32)) -> Who {
        Who { uid, gid, groups: vec![gid] }
    }

    fn granted() -> Split {
        Split {
            agent: who((424_242, 424_242)),
            users: vec![who(NOBODY)],
            root: root(),
            tree: "selfstart-ours-1".into(),
            pools: BTreeMap::from([("w".to_owned(), NOBODY.0)]),
            former: BTreeSet::new(),
        }
    }

    /// What a helper has written.
    fn answer(grant: &Grant) -> Result<OwnedFd, String> {
        Ok(crate::sys::memory_file(&serde_json::to_vec(grant).expect("JSON")).expect("a file"))
    }

    /// A keeper whose agent is not root, and the agent's end of the line.
    struct Scene {
        keeper: Keeper,
        line: OwnedFd,
    }

    impl Scene {
        fn new() -> Self {
            let mut keeper = keeper();
            assert!(keeper.ordered(answer(&Grant::Split(granted()))).is_ok());
            let (ours, line) = packet::pair().expect("a line");
            keeper.agent = Some(Agent { pid: None, line: ours, since: clock::now(), greeted: true, silent: None });
            Self { keeper, line }
        }

        fn ask(&mut self, ask: &Ask) -> Vec<Tell> {
            self.ask_with(ask, &[])
        }

        /// Asks, and returns what is told.
        fn ask_with(&mut self, ask: &Ask, fds: &[BorrowedFd<'_>]) -> Vec<Tell> {
            packet::send(self.line.as_fd(), &encode(ask), fds).expect("room");
            self.keeper.hear();
            // As often as somebody is executing a program just then, who may be anybody.
            crate::sys::starter::tests::until("end of the adoption", || {
                self.keeper.go_on_adopting();
                self.keeper.adopting.is_none().then_some(())
            });
            self.keeper.tell();
            let (mut told, mut buffer) = (Vec::new(), Vec::new());
            while packet::receive(self.line.as_fd(), &mut buffer).is_ok() {
                told.push(decode::<Tell>(&buffer).expect("a message"));
            }
            told
        }

        fn start(&mut self, start: Start) -> Vec<Tell> {
            self.ask(&Ask::Spawn(Box::new(start)))
        }
    }

    impl Drop for Scene {
        fn drop(&mut self) {
            // Also when the test has failed: they would be adopted by the next one.
            for key in self.keeper.table.running_children() {
                let _gone = self.keeper.table.signal(&key, libc::SIGKILL);
            }
        }
    }

    /// A process that is none of the keeper's children, ended with the test.
    struct Stranger(Child);

    impl Stranger {
        fn new() -> (Self, i32) {
            let child = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().expect("sleep");
            let pid = i32::try_from(child.id()).expect("a pid");
            // Until it has executed its program it has the title of this one.
            while process::title(pid).expect("a title") != b"sleep\x001000" {
                std::thread::yield_now();
            }
            (Self(child), pid)
        }

        fn lives(&mut self) -> bool {
            self.0.try_wait().expect("looked").is_none()
        }
    }

    impl Drop for Stranger {
        fn drop(&mut self) {
            let _gone = self.0.kill();
            let _reaped = self.0.wait();
        }
    }

    fn as_user(key: &str, user: Option<(u32, u32, Vec<u32>)>) -> Start {
        Start { user, ..sleep(&root(), key, &[]) }
    }

    #[test]
    fn nobody_is_started_whom_the_configuration_does_not_name() {
        let mut scene = Scene::new();
        let (uid, gid) = NOBODY;
        let refused = [
            None,
            Some((0, 0, vec![0])),
            Some((0, gid, vec![gid])),
            Some((uid, 0, vec![0])),
            Some((1, 1, vec![1])),
            // Not as itself either: its state would be a worker's to write.
            Some((424_242, 424_242, vec![424_242])),
        ];
        for user in refused {
            let told = scene.start(as_user("w/0#1", user.clone()));
            let all = matches!(&told[..], [Tell::SpawnFailed { step: Step::User, errno: libc::EPERM, .. }]);
            assert!(all, "{user:?}: {told:?}");
        }
        // Nor for another root, whose workers would be taken for these.
        let told = scene.start(Start { root: "/another".into(), ..as_user("w/0#1", Some((uid, gid, vec![gid]))) });
        assert!(matches!(&told[..], [Tell::SpawnFailed { step: Step::User, .. }]), "{told:?}");
        assert!(scene.keeper.table.running_children().is_empty());
    }

    #[test]
    fn whom_it_names_is_started_with_the_groups_of_the_configuration_and_small_pipes() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: only root can start another user's processes");
        }
        let mut scene = Scene::new();
        let start = Start { pipe_bytes: 8 << 20, ..as_user("w/0#1", Some((NOBODY.0, NOBODY.1, vec![0, 4, 42]))) };
        let told = scene.start(start);
        let [Tell::Child { pid, .. }] = told[..] else { panic!("{told:?}") };
        let child = scene.keeper.table.get("w/0#1").expect("a child");
        let sizes: Vec<usize> = child.streams.iter().map(|(_, fd)| rustix::pipe::fcntl_getpipe_size(fd).expect("a pipe")).collect();
        let status = fs_err::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
        end(pid);
        let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned();
        assert_eq!(line("Groups:"), NOBODY.1.to_string());
        assert_eq!(line("Uid:"), [NOBODY.0.to_string().as_str(); 4].join("\t"));
        assert_eq!(line("CapEff:"), "0000000000000000");
        assert!(sizes.iter().all(|size| *size <= PIPE_MAX_BYTES as usize), "{sizes:?}");
    }

    #[test]
    fn nothing_is_signalled_or_killed_that_is_no_child() {
        let mut scene = Scene::new();
        let (mut stranger, pid) = Stranger::new();
        let start_ticks = process::stat(pid).expect("it lives").start_ticks;
        let title = b"sleep\x001000".to_vec();
        assert!(scene.ask(&Ask::SignalJob { pid, start_ticks, title: title.clone(), number: libc::SIGKILL }).is_empty());
        // Called a worker of its own.
        let known = vec![("w/0#1".to_owned(), pid, start_ticks)];
        let told = scene.ask(&Ask::Adopt { root: root(), known });
        assert!(matches!(&told[..], [Tell::Adopted]), "{told:?}");
        for ask in [
            Ask::Signal { key: "w/0#1".into(), number: libc::SIGKILL },
            Ask::KillTree { key: "w/0#1".into() },
            Ask::ClearTree { key: "w/0#1".into() },
        ] {
            scene.ask(&ask);
        }
        scene.keeper.clear_trees();
        assert!(stranger.lives());
        // Another root's workers are not this one's, whatever their environment says.
        let told = scene.ask(&Ask::Adopt { root: "/another".into(), known: Vec::new() });
        assert!(matches!(&told[..], [Tell::Adopted]), "{told:?}");
        assert!(scene.keeper.adopting.is_none());
    }

    #[test]
    fn a_job_below_a_worker_is_signalled() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: only root can start another user's processes");
        }
        let mut scene = Scene::new();
        let start = Start {
            programs: vec!["/bin/sh".into()],
            argv: ["sh", "-c", "sleep 2000; exec sleep 1000"].map(str::to_owned).to_vec(),
            ..as_user("w/0#1", Some((NOBODY.0, NOBODY.1, vec![NOBODY.1])))
        };
        let told = scene.start(Start { env: vec![("PATH".into(), "/usr/bin:/bin".into())], ..start });
        let [Tell::Child { pid, .. }] = told[..] else { panic!("{told:?}") };
        let job = crate::sys::starter::tests::until("job", || {
            process::everyone()
                .expect("/proc")
                .into_iter()
                .find(|(it, stat)| stat.ppid == pid && process::title(*it).is_ok_and(|title| title == b"sleep\x002000"))
        });
        scene.ask(&Ask::SignalJob { pid: job.0, start_ticks: job.1.start_ticks, title: b"sleep\x002000".to_vec(), number: libc::SIGTERM });
        crate::sys::starter::tests::until("end of the job", || (!process::lives(job.1.id(job.0)).unwrap_or(true)).then_some(()));
        // The worker's shell goes on.
        assert!(process::stat(pid).is_ok_and(|stat| !stat.zombie));
        end(pid);
    }

    #[test]
    fn it_has_no_cgroups_but_its_own_and_no_helper_of_its_choice() {
        let mut scene = Scene::new();
        for name in ["selfstart-others-1", "../system.slice", ""] {
            let told = scene.ask(&Ask::Tree { name: name.into() });
            assert!(matches!(&told[..], [Tell::Tree { path: None, why, .. }] if why.contains("is not this node's")), "{name}: {told:?}");
        }
        // A helper gets the keeper's own configuration, or none is started.
        let told = scene.ask(&Ask::Errand(Errand::Order));
        assert!(matches!(&told[..], [Tell::Errand { failed: Some(_), .. }]), "{told:?}");
        // What it may name are releases.
        for ids in ["[\"../../etc\"]", "[\"/etc\"]", "[\"20261122T101530Z-1a2b3c4/..\"]", "[\"--x\"]"] {
            assert!(serde_json::from_str::<Vec<selfstart_core::id::ReleaseId>>(ids).is_err(), "{ids}");
        }
    }

    #[test]
    fn a_keeper_that_may_start_no_agent_ends_but_not_beside_workers() {
        let mut keeper = keeper();
        keeper.start_child(&sleep("/never", "w/0#1", &[]), None, None);
        let pid = keeper.table.get("w/0#1").expect("a child").id.pid;
        keeper.rights.standing = Standing::Unknown;
        let refuse = |keeper: &mut Keeper| keeper.ordered(answer(&Grant::Refused { why: "no".into() })).is_err();
        assert!(refuse(&mut keeper) && keeper.quit.is_none() && keeper.next_agent > clock::now());
        end(pid);
        keeper.table.forget("w/0#1");
        assert!(refuse(&mut keeper));
        assert_eq!(keeper.quit, Some(78));
    }

    #[test]
    fn systemd_is_told_nothing_but_how_the_node_is() {
        assert_eq!(sayable("READY=1\nMAINPID=1\nSTATUS=minding\nFDSTORE=1\nNOTIFYACCESS=all"), "READY=1\nSTATUS=minding");
        assert_eq!(sayable("MAINPID=1"), "");
        assert_eq!(sayable("STATUS=a\rMAINPID=1\rREADY=1"), "STATUS=a\nREADY=1");
        assert_eq!(sayable("STATUS=a\u{b}b"), "");
    }

    #[test]
    fn who_asks_and_does_not_listen_is_ended_and_takes_no_memory() {
        let mut agent = Command::new("sleep").arg("1000").spawn().expect("sleep");
        let mut scene = Scene::new();
        if let Some(it) = &mut scene.keeper.agent {
            it.pid = i32::try_from(agent.id()).ok();
            it.greeted = false;
        }
        let ask = encode(&Ask::ClearTree { key: "w/0#1".into() });
        let mut most = 0;
        for _ in 0..2 * NOTES_MAX {
            packet::send(scene.line.as_fd(), &ask, &[]).expect("room");
            scene.keeper.hear();
            most = most.max(scene.keeper.notes.len());
            if agent.try_wait().expect("looked").is_some() {
                break;
            }
        }
        let null = fs_err::File::open("/dev/null").expect("open");
        if let Some(it) = &mut scene.keeper.agent {
            it.pid = None;
        }
        for number in 0..2 * KEPT_MAX {
            scene.ask_with(&Ask::Keep { name: number.to_string() }, &[null.as_fd()]);
        }
        assert!(most <= NOTES_MAX + 1, "{most}");
        assert_eq!(scene.keeper.kept.len(), KEPT_MAX);
        assert!(agent.wait().expect("its end").code().is_none());
    }

    #[test]
    fn what_an_agent_says_is_held_up_to_a_measure_and_costs_no_worker() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: only root can start another user's processes");
        }
        let mut scene = Scene::new();
        let user = Some((NOBODY.0, NOBODY.1, vec![NOBODY.1]));
        let told = scene.start(as_user("w/0#1", user.clone()));
        let [Tell::Child { pid, .. }] = told[..] else { panic!("{told:?}") };
        let held = scene.keeper.table.held();
        // Refused with words, as a start that failed; whose very name is too long hears nothing.
        let long = |bytes: usize| "x".repeat(bytes);
        let told = scene.start(Start { note: long(5_000), ..as_user("w/1#1", user.clone()) });
        assert!(matches!(&told[..], [Tell::SpawnFailed { errno: libc::E2BIG, .. }]), "{told:?}");
        for ask in [
            Ask::Spawn(Box::new(Start { key: long(257), ..as_user("w/1#1", user.clone()) })),
            Ask::ClearTree { key: long(1 << 20) },
            Ask::Keep { name: long(1 << 20) },
            Ask::Upgrade { placed: false, by: long(1 << 20) },
        ] {
            let told = scene.ask(&ask);
            assert!(told.is_empty() && scene.keeper.notes.is_empty(), "{told:?}");
        }
        let told = scene.ask(&Ask::Adopt { root: root(), known: vec![(long(257), 1, 1)] });
        assert!(matches!(&told[..], [Tell::Adopted]) && scene.keeper.adopting.is_none(), "{told:?}");
        // An errand is told by its kind.
        let told = scene.ask(&Ask::Errand(Errand::Prune(vec![long(1 << 20)])));
        assert!(matches!(&told[..], [Tell::Errand { errand: Errand::Prune(ids), failed: Some(_) }] if ids.is_empty()), "{told:?}");
        assert_eq!((scene.keeper.table.len(), scene.keeper.table.held()), (1, held));
        assert!(process::stat(pid).is_ok_and(|stat| !stat.zombie));
        end(pid);
        scene.ask(&Ask::Forget { key: "w/0#1".into() });
        assert_eq!((scene.keeper.table.len(), scene.keeper.table.held()), (0, 0));
    }

    /// Of those that other tests, which run beside it, must not adopt.
    const OWN_ROOT: &str = "/of-two-users";

    /// A process of this user that carries the name of a worker; its number stands for `$$`.
    fn named(uid: u32, name: &str) -> (Stranger, i32) {
        use std::os::unix::process::CommandExt;
        let script = format!("exec env {}={name}@{OWN_ROOT} sleep 1000", crate::keeper::protocol::KEY_VARIABLE);
        let child = Command::new("sh").args(["-c", &script]).uid(uid).gid(uid).stdin(Stdio::null()).spawn().expect("sh");
        let pid = i32::try_from(child.id()).expect("a pid");
        while process::title(pid).expect("a title") != b"sleep\x001000" {
            std::thread::yield_now();
        }
        (Stranger(child), pid)
    }

    #[test]
    fn who_is_of_another_user_than_its_pool_is_gone_before_the_pools_slots_are_filled() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: only root can start another user's processes");
        }
        let mut scene = Scene::new();
        // Another user of the configuration, one that the pool had before, and one of whom nobody has heard.
        let (other, former, unheard): (u32, u32, u32) = (65_533, 65_532, 65_531);
        let mut split = Split { root: OWN_ROOT.into(), ..granted() };
        scene.keeper.rights.standing = Standing::Unknown;
        split.users.push(who((other, other)));
        split.former.insert(former);
        assert!(scene.keeper.ordered(answer(&Grant::Split(split))).is_ok());
        let (_right, right) = named(NOBODY.0, "w/5#1:$$");
        let (_gone, gone) = named(other, "gone/0#1:$$");
        let (mut strange, _) = named(unheard, "w/3#1:$$");
        // Started by the living worker as somebody else, as `sudo` does.
        let (mut of_right, _) = named(other, &format!("w/5#1:{right}"));
        for by_name in [false, true] {
            let wrong = [named(other, "w/0#1:$$"), named(former, "w/1#1:$$"), named(former, "w/2#1:1")];
            let ticks = |pid: i32| process::stat(pid).expect("it lives").start_ticks;
            let known = wrong.iter().filter(|_| by_name).map(|(_, pid)| ("w/0#1".to_owned(), *pid, ticks(*pid))).collect();
            let told = scene.ask(&Ask::Adopt { root: OWN_ROOT.into(), known });
            let expected = [("gone/0#1".to_owned(), gone), ("w/5#1".to_owned(), right)];
            let adopted = |tell: &Tell| if let Tell::Child { key, pid, .. } = tell { Some((key.clone(), *pid)) } else { None };
            assert!(told.iter().filter_map(adopted).all(|one| expected.contains(&one)), "{told:?}");
            assert!(expected.iter().all(|(key, _)| scene.keeper.table.has(key)));
            assert_eq!(wrong.map(|(mut one, _)| one.lives()), [false; 3]);
        }
        assert!(strange.lives() && of_right.lives());
    }

    #[test]
    fn what_is_left_is_not_cleared_before_it_is_known_whose_it_may_be() {
        use super::super::Note;
        use super::super::table::{Child, Life};
        use selfstart_core::id::ProcessId;
        let mut scene = Scene::new();
        let key = "w/0#1".to_owned();
        let mut child = Child::new(ProcessId { pid: 0, start_ticks: 0 }, true, Vec::new(), root(), String::new());
        child.life = Life::Ended { how: process::Ended::Unknown, at: clock::now(), tree_gone: false };
        scene.keeper.table.insert(key.clone(), child);
        scene.keeper.table.clear(&key);
        scene.keeper.rights.standing = Standing::Unknown;
        let gone = |note: &Note| matches!(note, Note::TreeGone(..));
        scene.keeper.clear_trees();
        assert!(!scene.keeper.notes.iter().any(gone) && scene.keeper.table.clearing() == [key]);
        scene.keeper.rights.standing = Standing::Split(granted());
        crate::sys::starter::tests::until("an end of it", || {
            scene.keeper.clear_trees();
            scene.keeper.notes.iter().any(gone).then_some(())
        });
    }

    #[test]
    fn a_look_at_memory_does_not_wait_for_a_release_that_is_removed() {
        let mut long: Vec<Child> = (0..2).map(|_| Command::new("sleep").arg("1000").spawn().expect("sleep")).collect();
        let mut rights = Rights::new(&[]);
        rights.config = Some(c"/nowhere/at/all".to_owned());
        rights.standing = Standing::Split(granted());
        let running = |child: &Child, errand| {
            let pid = i32::try_from(child.id()).expect("a pid");
            Running { pid, errand, answer: crate::sys::memory_file(b"").expect("a file"), until: clock::now() + PATIENCE }
        };
        rights.running = vec![running(&long[0], Errand::Prune(Vec::new()))];
        let null = Arc::new(OwnedFd::from(fs_err::File::open("/dev/null").expect("open").into_parts().0));
        let mut starter = Starter::default();
        rights.begin(Errand::Memory(Vec::new()), Vec::new(), &mut starter, &null).expect("begun");
        let begun: Vec<_> = rights.running.iter().map(|running| running.errand.clone()).collect();
        assert_eq!((begun, rights.waiting.len()), (vec![Errand::Prune(Vec::new()), Errand::Memory(Vec::new())], 0));
        // One of a kind at a time, and one more waits.
        rights.begin(Errand::Prune(vec!["a".into()]), Vec::new(), &mut starter, &null).expect("waits");
        assert!(rights.begin(Errand::Prune(vec!["b".into()]), Vec::new(), &mut starter, &null).is_err());
        let (helper, waits) = (rights.running[1].pid, rights.waiting.len());
        assert_eq!(waits, 1);
        // Its end lets that one go on, and nobody else's does.
        end(helper);
        assert!(rights.reaped(helper, process::Ended::Code(0)).is_some_and(|over| over.errand == Errand::Memory(Vec::new())));
        assert!(rights.go_on(&mut starter, &null).is_empty() && rights.waiting.len() == 1);
        let first = rights.running[0].pid;
        assert!(rights.reaped(first, process::Ended::Code(0)).is_some());
        assert!(rights.go_on(&mut starter, &null).is_empty() && rights.waiting.is_empty());
        rights.running.iter().for_each(|running| end(running.pid));
        // One that is late does not make the other so, and only a look who may do what lets an agent start.
        rights.running = vec![running(&long[1], Errand::Uses)];
        rights.running[0].until = clock::now();
        rights.end_late(clock::now());
        assert!(!rights.are_known());
        long.iter_mut().for_each(|child| {
            let _gone = child.kill();
            child.wait().expect("its end");
        });
    }

    #[test]
    fn an_agent_does_not_wait_long_for_a_helper_that_hangs_if_who_may_do_what_is_known() {
        let mut helper = Command::new("sleep").arg("1000").spawn().expect("a process");
        let pid = i32::try_from(helper.id()).expect("a pid");
        let hangs = |rights: &mut Rights| {
            let answer = crate::sys::memory_file(b"").expect("a file");
            rights.running = vec![Running { pid, errand: Errand::Order, answer, until: clock::now() }];
        };
        let mut rights = Rights::new(&[]);
        rights.config = Some(c"/etc/selfstart/config.yaml".to_owned());
        rights.standing = Standing::Unknown;
        hangs(&mut rights);
        rights.end_late(clock::now());
        assert!(rights.are_being_looked_up() && !rights.are_known(), "nobody starts anything before it is known");
        rights.standing = Standing::Split(granted());
        hangs(&mut rights);
        assert!(rights.are_being_looked_up());
        rights.end_late(clock::now());
        assert!(!rights.are_being_looked_up() && rights.are_known());
        rights.agent_ended();
        assert!(!rights.are_known(), "the next one asks again");
        helper.wait().expect("killed");
    }

    #[test]
    fn a_configuration_that_others_can_write_is_not_read_again_until_it_is_in_order() {
        let mut rights = Rights::new(&[]);
        rights.standing = Standing::Unknown;
        let last_good = || Grant::LastGood { split: granted(), why: "others can write it".into() };
        // By root's record a keeper that knows nothing yet minds its workers.
        assert_eq!(rights.ordered(answer(&last_good())), (Ordered::Go, Ok(())));
        assert_eq!((rights.split(), rights.last_good()), (Some(&granted()), Some((root().as_str(), "others can write it"))));
        assert_eq!(rights.ordered(answer(&Grant::Split(granted()))), (Ordered::Go, Ok(())));
        assert_eq!(rights.last_good(), None);
        // Later it is no reload, and the next agent does not read it either; nor if nothing is known of it.
        for grant in [last_good(), Grant::Refused { why: "others can write it".into() }] {
            assert_eq!(rights.ordered(answer(&grant)), (Ordered::Go, Err("others can write it".into())));
            assert!(rights.last_good().is_some());
            assert_eq!(rights.ordered(Err("it ended".into())).0, Ordered::Go);
            assert!(rights.last_good().is_some());
        }
    }

    #[test]
    fn an_agent_never_gets_more_rights_while_its_keeper_lives() {
        let split = |change: fn(&mut Split)| {
            let mut split = granted();
            change(&mut split);
            Grant::Split(split)
        };
        let mut rights = Rights::new(&[]);
        rights.standing = Standing::Unknown;
        assert!(!rights.are_known() && rights.judge(&as_user("w/0#1", None)).is_err());
        assert_eq!(rights.ordered(Err("it ended".into())).0, Ordered::Again);
        assert!(matches!(rights.ordered(answer(&Grant::Refused { why: "no".into() })).0, Ordered::Never(why) if why == "no"));
        assert_eq!(rights.ordered(answer(&split(|split| split.users[0].uid = 0))).0, Ordered::Again);
        assert!(!rights.are_known());
        assert_eq!(rights.ordered(answer(&split(|_| {}))), (Ordered::Go, Ok(())));
        for worse in [
            Grant::AsKeeper { why: String::new() },
            Grant::Refused { why: "writable".into() },
            split(|split| split.root = "/another".into()),
            split(|split| split.agent.uid = 1),
            split(|split| split.users[0].uid = 0),
        ] {
            let (then, result) = rights.ordered(answer(&worse));
            assert!(then == Ordered::Go && result.is_err(), "{worse:?}");
            assert_eq!(rights.split(), Some(&granted()));
        }
        // Other users are taken over; those of before may still be ended.
        assert_eq!(rights.ordered(answer(&split(|split| split.users[0].uid = 65_533))).1, Ok(()));
        assert!(rights.judge(&as_user("w/0#1", Some((NOBODY.0, NOBODY.1, vec![NOBODY.1])))).is_err());
        assert_eq!(rights.users(), Some(&[65_533, NOBODY.0].into()));
    }
}
