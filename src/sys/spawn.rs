//! Starts a process without copying the address space: `clone(2)` with CLONE_VM and CLONE_VFORK.
//!
//! The child borrows our memory until it executes, for which the thread that starts it waits (and no other: [`super::starter`]). Between the two it only makes system calls
//! on what was prepared before; it allocates nothing, takes no lock and calls nothing that could.
//!
//! It borrows our descriptors too, and first of all takes a copy of the lowest ones only (`close_range(2)` with CLOSE_RANGE_UNSHARE). A
//! keeper holds two pipes a worker: to copy two thousand descriptors for a child that closes them when it executes took 1.3 ms a start.

use std::ffi::{CString, c_char, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::AtomicI32;

use rustix::fs::{Mode, OFlags};
use rustix::io::DupFlags;

/// What is started, as whom, and with what.
#[derive(Debug)]
pub(crate) struct Spawn<'a> {
    /// Files tried in order, as `execvp(3)` tries the directories of PATH.
    pub(crate) programs: &'a [CString],
    /// The arguments, from the zeroth.
    pub(crate) argv: &'a [CString],
    /// The whole environment.
    pub(crate) env: &'a mut [CString],
    /// The place in `env` (entry, offset) at which the child writes its own process id over ten zeros, so that a main process can
    /// be told from a child that inherited its environment.
    pub(crate) own_pid_at: Option<(usize, usize)>,
    /// The working directory, entered as the new user; `None`: ours.
    pub(crate) cwd: Option<&'a CString>,
    /// User, group and supplementary groups; `None`: ours.
    pub(crate) credentials: Option<&'a Credentials>,
    /// What becomes descriptor 0, 1, 2, 3 ...; each is above 2 itself.
    pub(crate) fds: &'a [BorrowedFd<'a>],
    /// RLIMIT_NOFILE (soft, hard).
    pub(crate) nofile: Option<(u64, u64)>,
    /// -20 to 19.
    pub(crate) nice: Option<i8>,
    /// The file mode creation mask.
    pub(crate) umask: Option<u32>,
    /// Whether to put `oom_score_adj` back to 0: it is inherited, and the keeper may have been made hard to kill.
    pub(crate) reset_oom_score: bool,
    /// Whether it gets a session of its own.
    pub(crate) new_session: bool,
    /// Whether it is killed when the keeper ends.
    pub(crate) dies_with_us: bool,
}

/// A user to become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Credentials {
    /// The user's number.
    pub(crate) uid: u32,
    /// The group's number.
    pub(crate) gid: u32,
    /// The supplementary groups' numbers.
    pub(crate) groups: Vec<u32>,
}

/// Where a start failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) enum Step {
    /// No process could be made.
    Clone,
    /// Its limits, priority or mask.
    Limits,
    /// Becoming the user.
    User,
    /// Entering the working directory.
    Directory,
    /// Arranging its descriptors.
    Descriptors,
    /// Executing the program.
    Execute,
}

/// A start that failed.
#[derive(Debug, thiserror::Error)]
#[error("the process could not be started ({step:?})")]
pub(crate) struct SpawnError {
    /// Where.
    pub(crate) step: Step,
    /// Why.
    #[source]
    pub(crate) source: io::Error,
}

/// The child's stack; it calls a dozen wrappers, each of which needs less than a page.
const STACK_BYTES: usize = 64 << 10;

/// The most descriptors that a process is started with.
const PAD: usize = 4;

/// Starts processes; keeps the stack that each child borrows in turn.
#[derive(Debug)]
pub(crate) struct Spawner {
    stack: Vec<u128>,
    /// What is ignored here (Rust ignores SIGPIPE, nohup SIGHUP) and must not be in a worker. Whatever else is set, exec resets.
    ignored: Vec<i32>,
    pad: Option<Pad>,
}

/// Low descriptor numbers through which a child gets its own, so that it needs no others. They lead to nowhere between two starts.
#[derive(Debug)]
struct Pad {
    slots: [OwnedFd; PAD],
    nowhere: OwnedFd,
}

impl Pad {
    /// Takes free numbers near the lowest; `None` where the kernel (before 5.9, or a filter) has no `close_range`, or one that leaves a
    /// worse table than it should, or there are none.
    fn reserve() -> Option<Self> {
        // Closes nothing: there is no such number.
        // SAFETY: takes and returns integers.
        #[expect(unsafe_code, reason = "close_range(2) has no safe form")]
        let there = unsafe { libc::syscall(libc::SYS_close_range, libc::c_uint::MAX, libc::c_uint::MAX, 0) } == 0;
        if !there {
            return None;
        }
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let nowhere = rustix::fs::open("/dev/null", flags, Mode::empty()).ok()?;
        if !cuts_cleanly(&nowhere)? {
            return None;
        }
        let mut slots = Vec::with_capacity(PAD);
        for _ in 0..PAD {
            // Above the standard ones, which dup2 puts in place one after the other.
            slots.push(rustix::io::fcntl_dupfd_cloexec(&nowhere, 10).ok()?);
        }
        Some(Self { slots: slots.try_into().ok()?, nowhere })
    }

    /// Puts the descriptors of the next child in place, and returns their numbers there.
    fn fill(&mut self, fds: &[BorrowedFd<'_>]) -> io::Result<Vec<RawFd>> {
        let mut numbers = Vec::with_capacity(fds.len());
        for (slot, fd) in self.slots.iter_mut().zip(fds) {
            rustix::io::dup3(fd, slot, DupFlags::CLOEXEC)?;
            numbers.push(slot.as_raw_fd());
        }
        if numbers.len() < fds.len() { Err(io::ErrorKind::InvalidInput.into()) } else { Ok(numbers) }
    }

    /// Lets go of what the last child was given: a pipe that stays open here would never end.
    fn clear(&mut self) {
        for slot in &mut self.slots {
            // Cannot fail: both are open, and the number is in use.
            let _in_place = rustix::io::dup3(&self.nowhere, slot, DupFlags::CLOEXEC);
        }
    }

    /// The number from which on a child needs nothing.
    fn end(&self) -> libc::c_uint {
        let highest = self.slots.iter().map(AsRawFd::as_raw_fd).max().unwrap_or(RawFd::MAX);
        libc::c_uint::try_from(highest).map_or(libc::c_uint::MAX, |highest| highest + 1)
    }
}

/// The descriptors that one word of the kernel's table of free ones stands for.
const WORD: RawFd = 64;

/// Whether a table of descriptors that is cut to 64 by `close_range` knows that those above are free; `None`: it could not be tried.
///
/// Linux from 5.11 to 6.10 without the repair of CVE-2024-45025 forgets that: a worker could then open no more than 64 files, where we had
/// many. It is tried as the kernel's own test does it (`close_range_bitmap_corruption`): 128 are open, and the first free one after the cut
/// must be the 64th. It costs some 0.1 ms, once.
fn cuts_cleanly(nowhere: &OwnedFd) -> Option<bool> {
    let mut filled: Vec<OwnedFd> = Vec::new();
    while filled.last().is_none_or(|last| last.as_raw_fd() < 2 * WORD - 1) {
        filled.push(rustix::io::fcntl_dupfd_cloexec(nowhere, 0).ok()?);
    }
    let mut stack = vec![0_u128; STACK_BYTES / size_of::<u128>()];
    let mut cut = Cut { from: nowhere.as_raw_fd(), free: -1 };
    // SAFETY: as in `Spawner::spawn`: we wait until the child has ended, and it touches only `cut` and makes system calls. Its table of
    // descriptors is ours until it has cut off its own; it opens and closes nothing before.
    #[expect(unsafe_code, reason = "clone(2) has no safe form")]
    let pid = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES | libc::SIGCHLD;
        let pid = libc::clone(cut_and_try, stack.as_mut_ptr_range().end.cast(), flags, (&raw mut cut).cast());
        libc::sigprocmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut());
        pid
    };
    let pid = rustix::process::Pid::from_raw(pid).filter(|pid| pid.as_raw_nonzero().get() > 0)?;
    rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).ok()?;
    (cut.free >= 0).then_some(cut.free < 2 * WORD)
}

/// What [`cut_and_try`] works on.
struct Cut {
    /// Any descriptor below 64.
    from: RawFd,
    /// The number that a copy of it got; -1: none.
    free: RawFd,
}

#[expect(unsafe_code, reason = "runs on borrowed memory")]
extern "C" fn cut_and_try(cut: *mut c_void) -> libc::c_int {
    // SAFETY: `cut` points to the live Cut of the suspended parent; only system calls are made.
    unsafe {
        let cut = &mut *cut.cast::<Cut>();
        if libc::syscall(libc::SYS_close_range, WORD, libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE) == 0 {
            cut.free = libc::dup(cut.from);
        }
        libc::_exit(0)
    }
}

/// Returns which signals are ignored in this process.
fn ignored() -> Vec<i32> {
    (1..=64)
        .filter(|&signal| {
            // SAFETY: only asks; the memory is ours, and zeros are a valid `sigaction`.
            #[expect(unsafe_code, reason = "sigaction(2) has no safe form")]
            unsafe {
                let mut now: libc::sigaction = std::mem::zeroed();
                libc::sigaction(signal, ptr::null(), &raw mut now) == 0 && now.sa_sigaction == libc::SIG_IGN
            }
        })
        .collect()
}

/// All that the child touches, as plain pointers made before the clone.
struct Plan {
    programs: Vec<*const c_char>,
    argv: Vec<*const c_char>,
    env: Vec<*const c_char>,
    own_pid: *mut u8,
    parent: i32,
    cwd: *const c_char,
    credentials: Option<(u32, u32, Vec<u32>)>,
    fds: Vec<RawFd>,
    nofile: Option<libc::rlimit>,
    nice: Option<i8>,
    umask: Option<u32>,
    reset_oom_score: bool,
    new_session: bool,
    dies_with_us: bool,
    /// Descriptors from this number on are not the child's; `None`: it has a copy of all, and exec closes them.
    own_below: Option<libc::c_uint>,
    ignored: *const [i32],
    failed: Option<(Step, i32)>,
}

impl Spawner {
    /// Returns one that is ready. What is ignored must be so by now.
    pub(crate) fn new() -> Self {
        Self { stack: vec![0; STACK_BYTES / size_of::<u128>()], ignored: ignored(), pad: Pad::reserve() }
    }

    /// Starts it and returns its process id, after it has executed. `pid` has it as soon as there is a process, and 0 until then.
    ///
    /// # Errors
    /// With the step at which it failed; if `pid` is not 0 a process was made, has ended, and is to be reaped.
    #[expect(unsafe_code, reason = "clone(2) has no safe form")]
    pub(crate) fn spawn(&mut self, spawn: &mut Spawn<'_>, pid: &AtomicI32) -> Result<i32, SpawnError> {
        let fds = match &mut self.pad {
            Some(pad) => pad.fill(spawn.fds).map_err(|source| {
                pad.clear();
                SpawnError { step: Step::Descriptors, source }
            })?,
            None => spawn.fds.iter().map(AsRawFd::as_raw_fd).collect(),
        };
        let own_below = self.pad.as_ref().map(Pad::end);
        let terminated = |list: &[CString]| list.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect::<Vec<_>>();
        // The offset is checked here, so that the child writes ten bytes inside the entry or none. While the child may write, the entry is
        // a raw pointer and nobody's.
        let own_pid = spawn
            .own_pid_at
            .filter(|(entry, offset)| spawn.env.get(*entry).is_some_and(|text| offset + 10 <= text.as_bytes().len()))
            .map(|(entry, offset)| (entry, offset, std::mem::take(&mut spawn.env[entry]).into_raw()));
        let mut env = terminated(spawn.env);
        if let Some((entry, _, text)) = own_pid {
            env[entry] = text;
        }
        let mut plan = Plan {
            programs: spawn.programs.iter().map(|text| text.as_ptr()).collect(),
            argv: terminated(spawn.argv),
            env,
            own_pid: own_pid.map_or(ptr::null_mut(), |(_, offset, text)| text.cast::<u8>().wrapping_add(offset)),
            // SAFETY: takes and returns integers.
            parent: unsafe { libc::getpid() },
            cwd: spawn.cwd.map_or(ptr::null(), |text| text.as_ptr()),
            credentials: spawn.credentials.map(|who| (who.uid, who.gid, who.groups.clone())),
            fds,
            nofile: spawn.nofile.map(|(soft, hard)| libc::rlimit { rlim_cur: soft, rlim_max: hard }),
            nice: spawn.nice,
            umask: spawn.umask,
            reset_oom_score: spawn.reset_oom_score,
            new_session: spawn.new_session,
            dies_with_us: spawn.dies_with_us,
            own_below,
            ignored: self.ignored.as_slice(),
            failed: None,
        };
        // Shared descriptors are borrowed until the child has its own, which is the first thing it does.
        let files = if own_below.is_some() { libc::CLONE_FILES } else { 0 };
        let top = self.stack.as_mut_ptr_range().end.cast::<c_void>();
        // SAFETY: the stack is 64 KiB, 16-byte aligned (u128), grows down from `top` and is used by one child at a time, because
        // CLONE_VFORK suspends us until the child has executed or ended. `plan` outlives that. `child` touches only `plan` and
        // makes system calls. All signals are blocked around it, so that no handler runs in the child. `made` outlives it too.
        let made = pid.as_ptr();
        let pid = unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
            let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PARENT_SETTID | files | libc::SIGCHLD;
            let pid = libc::clone(child, top, flags, (&raw mut plan).cast(), made);
            let error = io::Error::last_os_error();
            libc::sigprocmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut());
            if pid < 0 { Err(error) } else { Ok(pid) }
        };
        if let Some((entry, _, text)) = own_pid {
            // SAFETY: it came from `into_raw`, and the child wrote digits only, so it ends where it ended; the child has executed or ended.
            spawn.env[entry] = unsafe { CString::from_raw(text) };
        }
        if let Some(pad) = &mut self.pad {
            pad.clear();
        }
        let pid = pid.map_err(|source| SpawnError { step: Step::Clone, source })?;
        match plan.failed {
            None => Ok(pid),
            Some((step, errno)) => Err(SpawnError { step, source: io::Error::from_raw_os_error(errno) }),
        }
    }
}

/// The child: system calls only.
#[expect(unsafe_code, reason = "runs between clone and exec on borrowed memory")]
extern "C" fn child(plan: *mut c_void) -> libc::c_int {
    // SAFETY: `plan` points to the live Plan of the suspended parent, and nobody else uses it meanwhile. Raw system calls are used
    // for the credentials because glibc's wrappers would try to change every thread of the parent too (nptl(7)).
    unsafe {
        let plan = &mut *plan.cast::<Plan>();
        let step = prepare(plan);
        if let Err(step) = step {
            plan.failed = Some((step, *libc::__errno_location()));
            libc::_exit(127);
        }
        let mut errno = libc::ENOENT;
        for &program in &plan.programs {
            libc::execve(program, plan.argv.as_ptr(), plan.env.as_ptr());
            let now = *libc::__errno_location();
            // As execvp(3): go on after what is not there; a file that may not be executed is remembered over one that is missing.
            match now {
                libc::ENOENT | libc::ENOTDIR => {}
                libc::EACCES => errno = now,
                _ => {
                    errno = now;
                    break;
                }
            }
        }
        plan.failed = Some((Step::Execute, errno));
        libc::_exit(127)
    }
}

/// Everything before the exec; on failure errno says why.
#[expect(unsafe_code, reason = "runs between clone and exec on borrowed memory")]
unsafe fn prepare(plan: &mut Plan) -> Result<(), Step> {
    let check = |result: libc::c_long, step: Step| if result < 0 { Err(step) } else { Ok(()) };
    // SAFETY: see `child`; every pointer below is to prepared memory, and every call is async-signal-safe.
    unsafe {
        if let Some(from) = plan.own_below {
            // Before anything that changes a descriptor: until then they are the parent's.
            check(libc::syscall(libc::SYS_close_range, from, libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE), Step::Descriptors)?;
        }
        if plan.new_session {
            check(libc::c_long::from(libc::setsid()), Step::Limits)?;
        }
        if !plan.own_pid.is_null() {
            let mut rest = libc::getpid();
            for place in (0..10).rev() {
                *plan.own_pid.add(place) = b'0' + u8::try_from(rest % 10).unwrap_or(0);
                rest /= 10;
            }
        }
        if plan.reset_oom_score {
            // Not fatal: without it the worker is only harder to kill than it should be.
            let fd = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if fd >= 0 {
                libc::write(fd, c"0".as_ptr().cast(), 1);
                libc::close(fd);
            }
        }
        if let Some(limit) = &plan.nofile {
            check(libc::c_long::from(libc::setrlimit(libc::RLIMIT_NOFILE, limit)), Step::Limits)?;
        }
        if let Some(nice) = plan.nice {
            check(libc::c_long::from(libc::setpriority(libc::PRIO_PROCESS, 0, i32::from(nice))), Step::Limits)?;
        }
        if let Some(mask) = plan.umask {
            libc::umask(mask);
        }
        if let Some((uid, gid, groups)) = &plan.credentials {
            check(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()), Step::User)?;
            check(libc::syscall(libc::SYS_setresgid, *gid, *gid, *gid), Step::User)?;
            check(libc::syscall(libc::SYS_setresuid, *uid, *uid, *uid), Step::User)?;
        }
        if plan.dies_with_us {
            // After the change of user, which clears it (prctl(2)).
            check(libc::c_long::from(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL)), Step::Limits)?;
            if libc::getppid() != plan.parent {
                // It ended before we asked to be told.
                libc::_exit(127);
            }
        }
        if !plan.cwd.is_null() {
            check(libc::c_long::from(libc::chdir(plan.cwd)), Step::Directory)?;
        }
        for (target, &fd) in plan.fds.iter().enumerate() {
            let target = i32::try_from(target).unwrap_or(i32::MAX);
            if fd == target {
                check(libc::c_long::from(libc::fcntl(fd, libc::F_SETFD, 0)), Step::Descriptors)?;
            } else {
                check(libc::c_long::from(libc::dup2(fd, target)), Step::Descriptors)?;
            }
        }
        let mut default: libc::sigaction = std::mem::zeroed();
        default.sa_sigaction = libc::SIG_DFL;
        for &signal in &*plan.ignored {
            libc::sigaction(signal, &raw const default, ptr::null_mut());
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        check(libc::c_long::from(libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut())), Step::Limits)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn start<'a>(spawner: &mut Spawner, argv: &[CString], fds: &[BorrowedFd<'a>]) -> Result<i32, SpawnError> {
        let pid = AtomicI32::new(0);
        let mut spawn = Spawn {
            programs: &argv[..1],
            argv,
            env: &mut [],
            own_pid_at: None,
            cwd: None,
            credentials: None,
            fds,
            nofile: None,
            nice: None,
            umask: None,
            reset_oom_score: false,
            new_session: true,
            dies_with_us: false,
        };
        let result = spawner.spawn(&mut spawn, &pid);
        let made = pid.into_inner();
        match &result {
            Ok(pid) => assert_eq!(made, *pid),
            Err(error) if error.step == Step::Descriptors => assert_eq!(made, 0),
            Err(_) => {
                let ended = rustix::process::waitpid(rustix::process::Pid::from_raw(made), rustix::process::WaitOptions::empty());
                assert_eq!(ended.expect("ours").expect("its end").1.exit_status(), Some(127));
            }
        }
        result
    }

    /// All that comes out of a pipe until its last writer is gone.
    fn drained(pipe: &OwnedFd) -> String {
        let mut text = Vec::new();
        let mut room = [0; 4096];
        loop {
            let patience = Timespec { tv_sec: 20, tv_nsec: 0 };
            let ready = poll(&mut [PollFd::new(pipe, PollFlags::IN)], Some(&patience)).expect("poll");
            assert!(ready > 0, "the pipe is still open; so far {:?}", String::from_utf8_lossy(&text));
            match rustix::io::read(pipe, &mut room).expect("read") {
                0 => return String::from_utf8(text).expect("text"),
                read => text.extend_from_slice(&room[..read]),
            }
        }
    }

    #[test]
    fn a_child_has_its_own_descriptors_only_and_we_keep_none_of_them() {
        // As the keeper does: what the test runner left open.
        crate::sys::process::close_inherited_on_exec();
        let with_pad = Spawner::new();
        assert!(with_pad.pad.is_some(), "this kernel has close_range");
        let without = Spawner { pad: None, ..Spawner::new() };
        for mut spawner in [without, with_pad] {
            // Above the pad, with which they are not even copied.
            let ours: Vec<OwnedFd> =
                (0..100).map(|_| rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).expect("open")).collect();
            let null = rustix::io::fcntl_dupfd_cloexec(&ours[0], 10).expect("dup");
            for _ in 0..2 {
                let (out, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe");
                let line = c"/bin/sh".to_owned();
                let argv = [line, c"-c".to_owned(), c"ls /proc/$$/fd; echo then >&2".to_owned()];
                let pid = start(&mut spawner, &argv, &[null.as_fd(), theirs.as_fd(), theirs.as_fd()]).expect("started");
                drop(theirs);
                let text = drained(&out);
                assert_eq!(text, "0\n1\n2\nthen\n");
                let _reaped = rustix::process::waitpid(rustix::process::Pid::from_raw(pid), rustix::process::WaitOptions::empty());
            }
        }
    }

    #[test]
    fn the_kernel_is_tried_without_a_trace() {
        // A file that no other test has.
        let file = tempfile::NamedTempFile::new().expect("a file");
        let nowhere = rustix::fs::open(file.path(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).expect("open");
        let open = || {
            let ours = fs_err::read_dir("/proc/self/fd").expect("/proc").filter_map(Result::ok);
            ours.filter(|fd| fs_err::read_link(fd.path()).is_ok_and(|to| to == file.path())).count()
        };
        let before = open();
        assert_eq!(cuts_cleanly(&nowhere), Some(true), "this kernel has no such fault");
        assert_eq!(open(), before);
    }

    #[test]
    fn a_program_that_is_not_there_is_told_and_leaves_nothing_open() {
        let mut spawner = Spawner::new();
        let (out, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe");
        let error = start(&mut spawner, &[c"/nowhere/at/all".to_owned()], &[theirs.as_fd(), theirs.as_fd()]).expect_err("refused");
        assert!(error.step == Step::Execute && error.source.raw_os_error() == Some(libc::ENOENT), "{error:?}");
        drop(theirs);
        assert_eq!(drained(&out), "");
    }

    #[test]
    fn more_descriptors_than_there_is_room_for_are_refused() {
        let mut spawner = Spawner::new();
        let (out, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe");
        let five = [theirs.as_fd(); PAD + 1];
        let error = start(&mut spawner, &[c"/bin/true".to_owned()], &five).expect_err("refused");
        assert_eq!(error.step, Step::Descriptors);
        drop(theirs);
        assert_eq!(drained(&out), "");
    }
}
