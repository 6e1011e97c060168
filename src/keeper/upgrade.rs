//! The keeper and its agent renew themselves: another program is executed in the keeper's place, and goes back if its agent does not come
//! up. docs/decisions/0006-upgrade.md.
//!
//! ```text
//!     idle ─▶ rehearsing ─▶ ending the agent ─▶ (the new program) on trial ─▶ idle
//!       ▲         │                 │                              │
//!       └─────────┴─────────────────┴──────── (the former one) ◀───┘
//! ```
//!
//! Nothing here waits: the workers are minded all the time, but for the moment of `execve(2)`.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use selfstart_core::time::MonoTime;

use super::handover::{OnTrial, Parcel, Rehearsed, micros};
use super::protocol::{HowUpgraded, Upgraded};
use super::{Keeper, Note, complain, describe};
use crate::sys::clock;
use crate::sys::gate;
use crate::sys::process::{self, Ended};
use crate::sys::spawn::{Credentials, Job, SpawnError, Step};
use crate::sys::starter::Started;

/// How long the new program has for each: the rehearsal, and until its agent says that it is alive.
const PATIENCE: Duration = Duration::from_secs(10);

/// So many agents of the new program that end before they are up: the next ones will too.
const ENDS_MAX: u32 = 3;

/// What is put beside the program, to take its place once it has passed.
const PLACED: &str = ".new";

/// Who the rehearsal is, if we are root: `nobody`, by the number that it has everywhere (an account of that name need not be there).
const NOBODY: u32 = 65_534;

/// The longest answer of a rehearsal that is read.
const ANSWER_BYTES: usize = 4096;

/// How far the upgrade is.
#[derive(Debug, Default)]
enum Phase {
    #[default]
    Idle,
    /// The new program reads a copy of the state, in a process of its own.
    Rehearsing { pid: i32, answer: OwnedFd, children: usize, until: MonoTime, candidate: Candidate },
    /// It can; the agent is being ended.
    Ending { to: String, until: MonoTime, candidate: Candidate },
    /// Its agent did not come up and is being ended.
    Back { why: String, until: MonoTime, trial: Trial },
}

/// A program that may take our place.
#[derive(Debug)]
struct Candidate {
    program: OwnedFd,
    /// Where it lies, if that is not where it is to lie.
    placed: Option<Placed>,
    /// Who asked.
    by: String,
}

/// A file beside the program: its name, and which file that is.
#[derive(Clone, Debug)]
struct Placed {
    path: PathBuf,
    file: (u64, u64),
}

/// We are on trial.
#[derive(Debug)]
struct Trial {
    former: OwnedFd,
    from: String,
    by: String,
    until: MonoTime,
    placed: Option<Placed>,
    /// How many agents of ours have ended.
    ends: u32,
}

/// What the keeper knows of upgrades.
#[derive(Debug, Default)]
pub(super) struct Upgrade {
    program: PathBuf,
    number: u32,
    phase: Phase,
    trial: Option<Trial>,
    report: Option<Upgraded>,
    /// Whether the last agent was ended for it: then nothing is wrong with that one.
    ended_agent: bool,
    parcel: Option<Parcel>,
}

impl Upgrade {
    /// At the first start: the program is the one that runs.
    pub(super) fn new() -> Self {
        // Unreadable: then an upgrade says so.
        let program = fs_err::read_link("/proc/self/exe").unwrap_or_default();
        Self { program, ..Self::default() }
    }

    /// Takes up what a former keeper has left.
    pub(super) fn resume(&mut self, program: PathBuf, number: u32, report: Option<Upgraded>, trial: Option<(OwnedFd, OnTrial)>) {
        (self.program, self.number, self.report) = (program, number, report);
        self.ended_agent = true;
        self.trial = trial.map(|(former, trial)| Trial {
            former,
            from: trial.from,
            by: trial.by,
            until: MonoTime::from_boot(Duration::from_micros(trial.until_micros)),
            placed: trial
                .placed
                .map(|(path, device, inode)| Placed { path: PathBuf::from(std::ffi::OsStr::from_bytes(&path)), file: (device, inode) }),
            ends: 0,
        });
    }

    /// The file that was started at first.
    pub(super) fn program(&self) -> &Path {
        &self.program
    }

    /// How many there were.
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// What became of the last one.
    pub(super) fn report(&self) -> Option<&Upgraded> {
        self.report.as_ref()
    }

    /// Whether the last agent was ended for an upgrade.
    pub(super) fn ended_agent(&self) -> bool {
        self.ended_agent
    }

    /// An agent has told it in the journal.
    pub(super) fn noted(&mut self, number: u32) {
        if let Some(report) = self.report.as_mut().filter(|report| report.number == number) {
            report.told = true;
        }
    }

    /// When something must be done without anybody telling.
    pub(super) fn next(&self) -> Option<MonoTime> {
        let phase = match &self.phase {
            Phase::Idle => None,
            Phase::Rehearsing { until, .. } | Phase::Ending { until, .. } | Phase::Back { until, .. } => Some(*until),
        };
        phase.into_iter().chain(self.trial.as_ref().map(|trial| trial.until)).min()
    }

    /// Returns what is to be executed in our place, once it is time.
    pub(super) fn parcel(&mut self) -> Option<Parcel> {
        self.parcel.take()
    }

    /// As if one had been refused.
    #[cfg(test)]
    pub(super) fn refuse_for_test(&mut self, why: &str) {
        self.report = Some(Upgraded::failed(1, "0", None, "root", why.to_owned()));
    }

    /// Whether the agent that has just ended was ended for it.
    pub(super) fn goes_on(&self) -> bool {
        matches!(self.phase, Phase::Ending { .. } | Phase::Back { .. })
    }

    /// The agent has ended by itself.
    pub(super) fn agent_ended_by_itself(&mut self) {
        self.ended_agent = false;
    }

    /// Whether it is: then nothing else is begun.
    pub(super) fn has_parcel(&self) -> bool {
        self.parcel.is_some()
    }
}

impl Keeper {
    /// Begins an upgrade. `placed`: to the program that was put beside ours; else to the one that lies where ours lay when it was started.
    pub(super) fn begin_upgrade(&mut self, placed: bool, by: String) {
        if self.leaving {
            return self.refuse_upgrade(&by, None, "the node is ending");
        }
        if !matches!(self.upgrade.phase, Phase::Idle) || self.upgrade.trial.is_some() {
            // Who asked is told by what becomes of the one that goes on.
            return complain(&format!("{by} asked for an upgrade, and one is under way"));
        }
        self.upgrade.number += 1;
        let path = if placed { beside(&self.upgrade.program) } else { self.upgrade.program.clone() };
        let (program, file) = match open_checked(&path) {
            Ok(opened) => opened,
            Err(why) => return self.refuse_upgrade(&by, None, &why),
        };
        let candidate = Candidate { program, placed: placed.then_some(Placed { path, file }), by };
        if let Err((candidate, why)) = self.begin_rehearsal(candidate) {
            self.give_up(&candidate, None, &why);
        }
    }

    /// Has the new program read the state in a process of its own.
    fn begin_rehearsal(&mut self, candidate: Candidate) -> Result<(), (Candidate, String)> {
        let (answer, theirs, state, children) = match self.prepare_rehearsal(&candidate) {
            Ok(prepared) => prepared,
            Err(error) => return Err((candidate, format!("the rehearsal could not be prepared: {error}"))),
        };
        let program = match rustix::io::fcntl_dupfd_cloexec(&candidate.program, 10) {
            Ok(program) => program,
            Err(error) => return Err((candidate, format!("the rehearsal could not be prepared: {error}"))),
        };
        let stderr = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 10).map_or_else(|_| Arc::clone(&self.null), Arc::new);
        let started = self.starter.start(Job {
            programs: vec![c"/proc/self/fd/3".to_owned()],
            argv: vec![c"selfstart".to_owned(), c"internal-keeper".to_owned()],
            env: vec![c"PATH=/usr/bin:/bin".to_owned(), c"LANG=C.UTF-8".to_owned()],
            own_pid_at: None,
            cwd: Some(c"/".to_owned()),
            // Whatever it is, as nobody it does little harm.
            credentials: rustix::process::geteuid().is_root().then(|| Credentials { uid: NOBODY, gid: NOBODY, groups: Vec::new() }),
            fds: vec![Arc::new(state), Arc::new(theirs), stderr, Arc::new(program)],
            nofile: None,
            nice: None,
            umask: None,
            reset_oom_score: self.reset_oom_score,
            new_session: true,
            dies_with_us: true,
            confined: false,
            called: None,
            cgroup: None,
        });
        match started {
            Ok(Started::Executed(pid) | Started::Hangs(pid)) => {
                let until = clock::now() + PATIENCE;
                self.upgrade.phase = Phase::Rehearsing { pid, answer, children, until, candidate };
                Ok(())
            }
            Err(SpawnError { step: Step::Execute, source }) => Err((candidate, format!("it cannot be executed: {source}"))),
            Err(error) => Err((candidate, format!("the rehearsal could not be started ({:?}): {}", error.step, error.source))),
        }
    }

    /// The pipe for the answer, the state, and how many children are in it.
    fn prepare_rehearsal(&self, candidate: &Candidate) -> io::Result<(OwnedFd, OwnedFd, OwnedFd, usize)> {
        use rustix::pipe::{PipeFlags, pipe_with};
        let (answer, theirs) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let theirs = super::above_standard(theirs)?;
        // With all that it will have then: the former program is any descriptor that is in nothing else.
        let state = self.state(self.upgrade.report.clone(), Some(on_trial(candidate, candidate.program.as_raw_fd(), clock::now())));
        Ok((answer, theirs, super::above_standard(state.seal()?)?, state.children.len()))
    }

    /// A process has been reaped; returns whether it was the rehearsal.
    pub(super) fn rehearsal_ended(&mut self, pid: i32, how: Ended) -> bool {
        if !matches!(self.upgrade.phase, Phase::Rehearsing { pid: ours, .. } if ours == pid) {
            return false;
        }
        let Phase::Rehearsing { answer, children, candidate, .. } = std::mem::take(&mut self.upgrade.phase) else { return false };
        match understood(&answer, how, children) {
            Ok(to) => {
                complain(&format!("selfstart {to} understands the state of {}: it takes over, on trial", env!("CARGO_PKG_VERSION")));
                self.upgrade.phase = Phase::Ending { to, until: clock::now() + PATIENCE, candidate };
                self.upgrade.ended_agent = true;
                self.end_agent();
            }
            Err((to, why)) => self.give_up(&candidate, to, &why),
        }
        true
    }

    /// Does what is due; returns whether something is to be executed in our place.
    pub(super) fn go_on_upgrading(&mut self) -> bool {
        let now = clock::now();
        match std::mem::take(&mut self.upgrade.phase) {
            Phase::Rehearsing { pid, until, candidate, .. } if until <= now => {
                // Reaped like any child that nobody knows.
                let _gone = process::signal_child(pid, libc::SIGKILL);
                self.give_up(&candidate, None, "it did not answer within 10 s");
            }
            Phase::Ending { candidate, .. } if self.agent.is_none() => self.hand_over(&candidate),
            Phase::Ending { to, until, candidate } if until <= now => {
                self.upgrade.ended_agent = false;
                self.give_up(&candidate, Some(to), "the agent cannot be ended: it hangs in the kernel");
            }
            // One that hangs in the kernel has its KILL, and is a child of the former one then.
            Phase::Back { why, until, trial } if self.agent.is_none() || until <= now => self.hand_back(trial, why),
            phase => self.upgrade.phase = phase,
        }
        if self.upgrade.trial.as_ref().is_some_and(|trial| trial.until <= now) {
            self.go_back("its agent did not come up within 10 s");
        }
        self.upgrade.has_parcel()
    }

    /// Has the new program executed.
    fn hand_over(&mut self, candidate: &Candidate) {
        let prepared = || -> io::Result<Parcel> {
            // Of this very file, whatever its name leads to by now.
            let former = rustix::fs::open("/proc/self/exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
            let former = super::above_standard(former)?;
            let state = self.state(None, Some(on_trial(candidate, former.as_raw_fd(), clock::now())));
            let parcel = Parcel { program: candidate.program.try_clone()?, state: state.seal()?, descriptors: state.descriptors() };
            // From here on its number is all there is of it.
            std::mem::forget(former);
            Ok(parcel)
        };
        match prepared() {
            Ok(parcel) => self.upgrade.parcel = Some(parcel),
            Err(error) => self.give_up(candidate, None, &format!("the state could not be handed over: {error}")),
        }
    }

    /// Has the former program executed.
    fn hand_back(&mut self, trial: Trial, why: String) {
        let to = Some(env!("CARGO_PKG_VERSION").to_owned());
        let text = format!("selfstart {} is back: {why}", trial.from);
        let report = Upgraded { how: HowUpgraded::WentBack, ..Upgraded::failed(self.upgrade.number, &trial.from, to, &trial.by, text) };
        let state = self.state(Some(report.clone()), None);
        match state.seal() {
            Ok(sealed) => {
                self.upgrade.parcel = Some(Parcel { program: trial.former, state: sealed, descriptors: state.descriptors() });
            }
            Err(error) => {
                let text = format!("{}; it could not be handed the state: {error}", report.text);
                self.report(Upgraded { text, ..report });
            }
        }
    }

    /// We have not passed: the former program is to be back.
    fn go_back(&mut self, why: &str) {
        let Some(trial) = self.upgrade.trial.take() else { return };
        complain(&format!("selfstart {} did not pass: {why}; going back to {}", env!("CARGO_PKG_VERSION"), trial.from));
        if let Some(placed) = &trial.placed {
            remove(placed);
        }
        self.upgrade.phase = Phase::Back { why: why.to_owned(), until: clock::now() + PATIENCE, trial };
        self.end_agent();
    }

    /// The agent's loop goes round: who is on trial has passed.
    pub(super) fn agent_is_up(&mut self) {
        let Some(trial) = self.upgrade.trial.take() else { return };
        let to = env!("CARGO_PKG_VERSION");
        let but = match trial.placed.as_ref().map_or(Ok(()), |placed| put(placed, &self.upgrade.program)) {
            Ok(()) => String::new(),
            Err(error) => format!("; it could not take the place of `{}`: {error}", self.upgrade.program.display()),
        };
        let text = format!("selfstart {to} has taken over from {}{but}", trial.from);
        complain(&text);
        self.report(Upgraded {
            number: self.upgrade.number,
            from: trial.from,
            to: Some(to.to_owned()),
            by: trial.by,
            how: HowUpgraded::Done,
            text,
            told: false,
        });
    }

    /// An agent has ended.
    pub(super) fn agent_of_trial_ended(&mut self, how: Ended) {
        let Some(trial) = &mut self.upgrade.trial else { return };
        trial.ends += 1;
        if trial.ends >= ENDS_MAX {
            self.go_back(&format!("its agent ended {ENDS_MAX} times before it was up, at last by {}", describe(how)));
        }
    }

    /// The agent has said that all is over; returns whether that is to be believed.
    pub(super) fn may_quit(&mut self) -> bool {
        let believed = self.upgrade.trial.is_none() || self.leaving;
        if !believed {
            self.go_back("its agent wanted to end the node");
        }
        believed
    }

    fn give_up(&mut self, candidate: &Candidate, to: Option<String>, why: &str) {
        if let Some(placed) = &candidate.placed {
            remove(placed);
        }
        self.refuse_upgrade(&candidate.by, to, why);
    }

    fn refuse_upgrade(&mut self, by: &str, to: Option<String>, why: &str) {
        complain(&format!("no upgrade: {why}"));
        let text = format!("no upgrade, selfstart {} goes on: {why}", env!("CARGO_PKG_VERSION"));
        self.report(Upgraded::failed(self.upgrade.number, env!("CARGO_PKG_VERSION"), to, by, text));
    }

    fn report(&mut self, report: Upgraded) {
        self.upgrade.report = Some(report);
        self.notes.push_back(Note::Upgraded);
    }
}

fn on_trial(candidate: &Candidate, former: i32, now: MonoTime) -> OnTrial {
    OnTrial {
        former,
        from: env!("CARGO_PKG_VERSION").to_owned(),
        by: candidate.by.clone(),
        until_micros: micros(now + PATIENCE),
        placed: candidate.placed.as_ref().map(|placed| (placed.path.as_os_str().as_bytes().to_vec(), placed.file.0, placed.file.1)),
    }
}

/// Returns the version of a program that has rehearsed well; or that, if it said so, and why it has not.
fn understood(answer: &OwnedFd, how: Ended, children: usize) -> Result<String, (Option<String>, String)> {
    let mut buffer = [0; ANSWER_BYTES];
    let read = rustix::io::read(answer, &mut buffer).unwrap_or(0);
    let line = buffer[..read].split(|byte| *byte == b'\n').next().unwrap_or_default();
    let Ok(said) = serde_json::from_slice::<Rehearsed>(line) else {
        return Err((None, format!("it is no selfstart that can take over ({}, without an answer)", describe(how))));
    };
    match said.refused {
        Some(why) => Err((Some(said.selfstart), why)),
        None if how != Ended::Code(0) => Err((Some(said.selfstart), format!("its rehearsal ended by {}", describe(how)))),
        None if said.children != children => {
            Err((Some(said.selfstart), format!("it found {} of {children} processes in the state", said.children)))
        }
        None => Ok(said.selfstart),
    }
}

/// Where a program is put that is to take the place of this one.
pub(crate) fn beside(program: &Path) -> PathBuf {
    let mut name = program.as_os_str().to_owned();
    name.push(PLACED);
    PathBuf::from(name)
}

/// Opens a program that may be executed in our place, and says which file it is.
///
/// If we are root, whoever can change the file, or what its name leads to, is root then. So it must be root's and nobody else's to write,
/// and so must each directory above it be; one with the sticky bit (`/tmp`) lets nobody replace what is root's. What was looked at is what
/// is executed: it is opened once.
fn open_checked(path: &Path) -> Result<(OwnedFd, (u64, u64)), String> {
    let shown = path.display();
    let unusable = |error: io::Error| format!("`{shown}` cannot be used: {error}");
    let us = rustix::process::geteuid().as_raw();
    let real = fs_err::canonicalize(path).map_err(|error| format!("`{shown}` cannot be used: {}", error.kind()))?;
    for above in real.ancestors().skip(1) {
        let stat = rustix::fs::stat(above).map_err(|error| unusable(error.into()))?;
        checked(above, &stat, us, stat.st_mode & 0o1000 != 0)?;
    }
    let fd = rustix::fs::open(&real, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| unusable(error.into()))?;
    let stat = rustix::fs::fstat(&fd).map_err(|error| unusable(error.into()))?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::RegularFile {
        return Err(format!("`{shown}` is no file"));
    }
    checked(path, &stat, us, false)?;
    if stat.st_mode & 0o005 != 0o005 {
        return Err(format!("`{shown}` may not be executed and read by everybody (mode {:o}): 755 is expected", stat.st_mode & 0o7777));
    }
    machine(&fd).map_err(|why| format!("`{shown}` {why}"))?;
    let fd = super::above_standard(fd).map_err(unusable)?;
    Ok((fd, (stat.st_dev, stat.st_ino)))
}

/// Whether others can change what this is.
fn checked(path: &Path, stat: &rustix::fs::Stat, us: u32, sticky: bool) -> Result<(), String> {
    if us != 0 {
        return Ok(());
    }
    if stat.st_uid != 0 {
        return Err(format!("`{}` belongs to user {}, and root executes only what nobody else can replace", path.display(), stat.st_uid));
    }
    if stat.st_mode & 0o022 != 0 && !sticky {
        let mode = stat.st_mode & 0o7777;
        return Err(format!("`{}` may be written by others (mode {mode:o}), and root executes only what they cannot", path.display()));
    }
    Ok(())
}

/// Whether it is a program for this machine, as the one that runs is (`elf(5)`).
fn machine(fd: &OwnedFd) -> Result<(), String> {
    let head = |fd: &OwnedFd| {
        let mut head = [0_u8; 20];
        let read = rustix::io::pread(fd, &mut head, 0).unwrap_or(0);
        (read == head.len() && head.starts_with(b"\x7fELF")).then_some(head)
    };
    let ours = rustix::fs::open("/proc/self/exe", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(|error| error.to_string())?;
    let (Some(theirs), Some(ours)) = (head(fd), head(&ours)) else { return Err("is no program".to_owned()) };
    // Class and byte order are bytes 4 and 5, the machine is in 18 and 19.
    if theirs[4..6] != ours[4..6] || theirs[18..20] != ours[18..20] {
        return Err(format!("is a program for another machine (ELF {}, not {})", theirs[18], ours[18]));
    }
    Ok(())
}

/// Whether the name still leads to that file.
fn is_there(placed: &Placed) -> bool {
    rustix::fs::lstat(&placed.path).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == placed.file)
}

/// Puts a program that has passed where the next start looks for it. It is on the disk already; who asked for it syncs the directory.
fn put(placed: &Placed, program: &Path) -> io::Result<()> {
    if !is_there(placed) {
        return Err(io::Error::other(format!("`{}` is another file by now", placed.path.display())));
    }
    gate::rename(&placed.path, program)
}

/// Removes one that has not.
fn remove(placed: &Placed) {
    if is_there(placed) {
        let _stays = gate::remove_file(&placed.path);
    }
}

#[cfg(test)]
mod tests {
    use super::super::protocol::Ask;
    use super::*;
    use crate::sys::signals::SignalFd;

    fn answered(text: &str, how: Ended) -> Result<String, (Option<String>, String)> {
        let (answer, theirs) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK).expect("a pipe");
        rustix::io::write(&theirs, text.as_bytes()).expect("room");
        understood(&answer, how, 3)
    }

    #[test]
    fn only_who_has_found_everybody_has_understood_the_state() {
        let good = "{\"selfstart\": \"0.2.0\", \"format\": 1, \"children\": 3, \"of_the_future\": 1}\nmore\n";
        assert_eq!(answered(good, Ended::Code(0)), Ok("0.2.0".to_owned()));
        let two = "{\"selfstart\": \"0.2.0\", \"format\": 1, \"children\": 2}\n";
        let to = || Some("0.2.0".to_owned());
        assert_eq!(answered(two, Ended::Code(0)), Err((to(), "it found 2 of 3 processes in the state".to_owned())));
        assert_eq!(answered(good, Ended::Code(1)), Err((to(), "its rehearsal ended by exit 1".to_owned())));
        let refused = "{\"selfstart\": \"0.2.0\", \"format\": 1, \"children\": 3, \"refused\": \"why\"}\n";
        assert_eq!(answered(refused, Ended::Code(0)), Err((to(), "why".to_owned())));
        for none in ["", "\n", "selfstart 0.1.0\n", "{}"] {
            let (to, why) = answered(none, Ended::Code(0)).expect_err("no answer");
            assert_eq!((to, why.as_str()), (None, "it is no selfstart that can take over (exit 0, without an answer)"));
        }
    }

    #[test]
    fn an_agent_on_trial_may_end_the_node_only_when_it_is_to_end() {
        let on_trial = |leaving| {
            let mut keeper = Keeper::new(SignalFd::take().expect("signals"), Vec::new()).expect("a keeper");
            keeper.leaving = leaving;
            let former = rustix::fs::open("/proc/self/exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).expect("us");
            let until_micros = micros(clock::now() + PATIENCE);
            let trial = OnTrial { former: 9, from: "0".to_owned(), by: "root".to_owned(), until_micros, placed: None };
            keeper.upgrade.resume(PathBuf::from("/nowhere"), 1, None, Some((former, trial)));
            keeper.obey(Ask::Quit { code: 0 }, Vec::new());
            let back = keeper.go_on_upgrading();
            (keeper.quit, back, keeper.upgrade.report().map(|report| report.how))
        };
        assert_eq!(on_trial(true), (Some(0), false, None));
        // The way back is told by who is back.
        assert_eq!(on_trial(false), (None, true, None));
    }
}
