//! Starts a process without copying the address space: `clone(2)` with CLONE_VM.
//!
//! The child borrows our memory until it executes, for which we wait, but not for ever: before that it enters its directory and opens its
//! program, and on a mount that does not answer (NFS without its server, a stuck FUSE) either can hang and cannot be interrupted. So it is
//! not CLONE_VFORK, whose wait has no limit, but what the kernel tells of the end of a thread (CLONE_CHILD_CLEARTID, `set_tid_address(2)`):
//! it clears a word and wakes its futex when the child has executed or ended. While one hangs, what it borrows is left alone
//! ([`super::starter`]). Between the two it only makes system calls on what was prepared before; it allocates nothing, takes no lock and
//! calls nothing that could. Not even `errno` is touched, which it would share with the thread that started it.
//!
//! It borrows our descriptors too, and first of all takes a copy of the lowest ones only (`close_range(2)` with CLOSE_RANGE_UNSHARE). A
//! keeper holds two pipes a worker: to copy two thousand descriptors for a child that closes them when it executes took 1.3 ms a start.

use std::ffi::{CString, c_char, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::DupFlags;

use super::clock;
use super::clone_into::clone_into;
use super::confine;
use super::gate;

/// What is started, as whom, and with what.
#[derive(Debug)]
pub(crate) struct Job {
    /// Files tried in order, as `execvp(3)` tries the directories of PATH.
    pub(crate) programs: Vec<CString>,
    /// The arguments, from the zeroth.
    pub(crate) argv: Vec<CString>,
    /// The whole environment.
    pub(crate) env: Vec<CString>,
    /// The place in `env` (entry, offset) at which the child writes its own process id over ten zeros, so that a main process can
    /// be told from a child that inherited its environment.
    pub(crate) own_pid_at: Option<(usize, usize)>,
    /// The working directory, entered as the new user; `None`: ours.
    pub(crate) cwd: Option<CString>,
    /// User, group and supplementary groups; `None`: ours.
    pub(crate) credentials: Option<Credentials>,
    /// What becomes descriptor 0, 1, 2, 3 ...; each is above 2 itself.
    pub(crate) fds: Vec<Arc<OwnedFd>>,
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
    /// Whether nothing that it executes may give it more rights, or make a file that does ([`super::confine`]).
    pub(crate) confined: bool,
    /// What `ps` calls it until it has executed its program (`comm`, `proc(5)`; 15 letters); `None`: as us.
    pub(crate) called: Option<CString>,
    /// The directory of the cgroup that it is started in; `None`: ours.
    pub(crate) cgroup: Option<OwnedFd>,
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
    /// Its cgroup.
    Cgroup,
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

/// Starts processes, one at a time; keeps the stack that each child borrows in turn.
#[derive(Debug)]
pub(crate) struct Spawner {
    stack: Vec<u128>,
    /// The child that has not executed yet.
    running: Option<Running>,
    /// What is ignored here (Rust ignores SIGPIPE, nohup SIGHUP) and must not be in a worker. Whatever else is set, exec resets.
    ignored: Vec<i32>,
    pad: Option<Pad>,
    /// This process: a child whose parent is another one does not execute.
    us: i32,
}

/// A child between clone and exec, with all that it borrows.
#[derive(Debug)]
struct Running {
    pid: i32,
    /// Its number until it has executed or ended, then 0. Written by the kernel.
    borrowed: Box<AtomicI32>,
    /// From `Box::into_raw`.
    plan: *mut Plan,
    /// From `CString::into_raw`: into this one entry it writes.
    own_pid: *mut c_char,
    /// What the plan points to.
    job: Job,
}

impl Running {
    /// Waits for it, so long at most; returns whether it has executed or ended.
    fn wait(&self, within: Duration) -> bool {
        let end = clock::instant() + within;
        loop {
            let word = self.borrowed.load(Ordering::Acquire);
            let left = end.saturating_duration_since(clock::instant());
            if word == 0 || left.is_zero() {
                return word == 0;
            }
            let left = libc::timespec {
                tv_sec: libc::time_t::try_from(left.as_secs()).unwrap_or(libc::time_t::MAX),
                tv_nsec: libc::c_long::from(left.subsec_nanos()),
            };
            // Not a private futex: the kernel's wake is not one (mm_release in kernel/fork.c). Why it returns does not matter: we look.
            // SAFETY: the word and the time live as long as the call.
            #[expect(unsafe_code, reason = "futex(2) has no safe form")]
            unsafe {
                libc::syscall(libc::SYS_futex, self.borrowed.as_ptr(), libc::FUTEX_WAIT, word, &raw const left);
            }
        }
    }

    /// Takes back what it borrowed; returns why it has failed. It must have executed or ended.
    fn finish(self) -> Option<(Step, i32)> {
        // SAFETY: both came from `into_raw` and nobody else has them any more; of the text the child wrote digits only.
        #[expect(unsafe_code, reason = "runs on borrowed memory")]
        let plan = unsafe {
            if !self.own_pid.is_null() {
                drop(CString::from_raw(self.own_pid));
            }
            Box::from_raw(self.plan)
        };
        plan.failed
    }
}

impl Drop for Spawner {
    fn drop(&mut self) {
        // Its child still runs on this: rather never given back.
        if let Some(running) = self.running.take().filter(|running| !running.wait(Duration::ZERO)) {
            std::mem::forget((running, std::mem::take(&mut self.stack)));
        }
    }
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
    fn fill(&mut self, fds: &[Arc<OwnedFd>]) -> io::Result<Vec<RawFd>> {
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
#[derive(Debug)]
struct Plan {
    programs: Vec<*const c_char>,
    argv: Vec<*const c_char>,
    env: Vec<*const c_char>,
    own_pid: *mut u8,
    parent: i32,
    cwd: *const c_char,
    credentials: Option<(u32, u32, Vec<u32>)>,
    fds: Vec<RawFd>,
    nofile: Option<libc::rlimit64>,
    nice: Option<i8>,
    umask: Option<u32>,
    reset_oom_score: bool,
    new_session: bool,
    dies_with_us: bool,
    called: *const c_char,
    /// Empty: it has no filter.
    filter: Vec<libc::sock_filter>,
    /// Descriptors from this number on are not the child's; `None`: it has a copy of all, and exec closes them.
    own_below: Option<libc::c_uint>,
    ignored: Vec<i32>,
    failed: Option<(Step, i32)>,
}

impl Spawner {
    /// Returns one that is ready. What is ignored must be so by now.
    pub(crate) fn new() -> Self {
        // SAFETY: takes and returns integers.
        #[expect(unsafe_code, reason = "as the kernel has it, in a namespace too")]
        let us = unsafe { libc::getpid() };
        Self { stack: vec![0; STACK_BYTES / size_of::<u128>()], running: None, ignored: ignored(), pad: Pad::reserve(), us }
    }

    /// Whether a child has neither executed nor ended yet.
    pub(crate) fn is_busy(&self) -> bool {
        self.running.is_some()
    }

    /// Whether this process still runs on our memory.
    pub(crate) fn lends_to(&self, pid: i32) -> bool {
        self.running.as_ref().is_some_and(|running| running.pid == pid && !running.wait(Duration::ZERO))
    }

    /// Makes a process, and returns its number. [`Self::wait`] says when it has executed, and another is made only then.
    ///
    /// # Errors
    /// With the step at which it failed; no process is left behind then.
    #[expect(unsafe_code, reason = "clone(2) has no safe form")]
    pub(crate) fn begin(&mut self, mut job: Job) -> Result<i32, SpawnError> {
        if self.running.is_some() {
            return Err(SpawnError { step: Step::Clone, source: io::Error::from_raw_os_error(libc::EAGAIN) });
        }
        let named = job.programs.first().map_or(c"", CString::as_c_str);
        gate::spawning(named).map_err(|error| SpawnError { step: Step::Clone, source: error.into() })?;
        let fds = match &mut self.pad {
            Some(pad) => pad.fill(&job.fds).map_err(|source| {
                pad.clear();
                SpawnError { step: Step::Descriptors, source }
            })?,
            None => job.fds.iter().map(AsRawFd::as_raw_fd).collect(),
        };
        let own_below = self.pad.as_ref().map(Pad::end);
        let terminated = |list: &[CString]| list.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect::<Vec<_>>();
        // The offset is checked here, so that the child writes ten bytes inside the entry or none. While the child may write, the entry is
        // a raw pointer and nobody's.
        let own_pid = job
            .own_pid_at
            .filter(|(entry, offset)| job.env.get(*entry).is_some_and(|text| offset + 10 <= text.as_bytes().len()))
            .map(|(entry, offset)| (entry, offset, std::mem::take(&mut job.env[entry]).into_raw()));
        let mut env = terminated(&job.env);
        if let Some((entry, _, text)) = own_pid {
            env[entry] = text;
        }
        let plan = Box::into_raw(Box::new(Plan {
            programs: job.programs.iter().map(|text| text.as_ptr()).collect(),
            argv: terminated(&job.argv),
            env,
            own_pid: own_pid.map_or(ptr::null_mut(), |(_, offset, text)| text.cast::<u8>().wrapping_add(offset)),
            parent: self.us,
            cwd: job.cwd.as_ref().map_or(ptr::null(), |text| text.as_ptr()),
            credentials: job.credentials.as_ref().map(|who| (who.uid, who.gid, who.groups.clone())),
            fds,
            nofile: job.nofile.map(|(soft, hard)| libc::rlimit64 { rlim_cur: soft, rlim_max: hard }),
            nice: job.nice,
            umask: job.umask,
            reset_oom_score: job.reset_oom_score,
            new_session: job.new_session,
            dies_with_us: job.dies_with_us,
            called: job.called.as_ref().map_or(ptr::null(), |text| text.as_ptr()),
            filter: if job.confined { confine::program() } else { Vec::new() },
            own_below,
            ignored: self.ignored.clone(),
            failed: None,
        }));
        // Shared descriptors are borrowed until the child has its own, which is the first thing it does.
        let files = if own_below.is_some() { libc::CLONE_FILES } else { 0 };
        let top = self.stack.as_mut_ptr_range().end.cast::<c_void>();
        let own_pid = own_pid.map_or(ptr::null_mut(), |(_, _, text)| text);
        let mut running = Running { pid: 0, borrowed: Box::new(AtomicI32::new(0)), plan, own_pid, job };
        let word = running.borrowed.as_ptr();
        // SAFETY: the stack is 64 KiB, 16-byte aligned (u128), grows down from `top` and is used by one child at a time: `running` is kept, and
        // with it all that `plan` points to, until the kernel has cleared `word`. `child` touches only `plan` and makes system calls. All
        // signals are blocked around it, so that no handler runs in the child.
        let pid = unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
            let flags = libc::CLONE_VM | libc::CLONE_PARENT_SETTID | libc::CLONE_CHILD_CLEARTID | files;
            let pid = match &running.job.cgroup {
                Some(cgroup) => clone_into(flags, cgroup.as_fd(), &mut self.stack, word, child, plan.cast()),
                None => match libc::clone(child, top, flags | libc::SIGCHLD, plan.cast(), word, ptr::null_mut::<c_void>(), word) {
                    pid if pid < 0 => Err(io::Error::last_os_error()),
                    pid => Ok(pid),
                },
            };
            libc::sigprocmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut());
            pid
        };
        match pid {
            Ok(pid) => {
                running.pid = pid;
                self.running = Some(running);
                Ok(pid)
            }
            Err(source) => {
                let step = if running.job.cgroup.is_some() { Step::Cgroup } else { Step::Clone };
                running.finish();
                self.pad.iter_mut().for_each(Pad::clear);
                Err(SpawnError { step, source })
            }
        }
    }

    /// Waits until the child has executed, so long at most; `None`: not yet, or there is none.
    ///
    /// A child that was killed before counts as one that has executed: its end is heard like any other.
    ///
    /// # Errors
    /// With the step at which it failed: then it has ended, with 127, and is to be reaped.
    pub(crate) fn wait(&mut self, within: Duration) -> Option<(i32, Result<(), SpawnError>)> {
        let running = self.running.take_if(|running| running.wait(within))?;
        Some(self.over(running))
    }

    /// This process has been reaped, so it borrows nothing any more, whether the kernel has told or not (it does not of one that dumps core).
    pub(crate) fn reaped(&mut self, pid: i32) {
        if let Some(running) = self.running.take_if(|running| running.pid == pid) {
            let _its_end_is_known = self.over(running);
        }
    }

    fn over(&mut self, running: Running) -> (i32, Result<(), SpawnError>) {
        let pid = running.pid;
        let failed = running.finish();
        self.pad.iter_mut().for_each(Pad::clear);
        let error = failed.map(|(step, errno)| SpawnError { step, source: io::Error::from_raw_os_error(errno) });
        (pid, error.map_or(Ok(()), Err))
    }
}

/// A system call, its fifth argument 0 (`prctl(2)` looks at that), that leaves `errno` alone; returns the kernel's answer, an error as its negative number.
///
/// # Safety
/// As the system call's. Its registers: `syscall(2)`, "Architecture calling conventions".
#[expect(unsafe_code, reason = "runs between clone and exec on borrowed memory")]
unsafe fn call(number: libc::c_long, a: usize, b: usize, c: usize, d: usize) -> isize {
    let answer: isize;
    // SAFETY: the caller's; the kernel changes no other registers than those named.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        std::arch::asm!(
            "syscall",
            inlateout("rax") number as isize => answer,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") 0,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
        #[cfg(target_arch = "aarch64")]
        std::arch::asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") a as isize => answer,
            in("x1") b, in("x2") c, in("x3") d, in("x4") 0,
            options(nostack),
        );
    }
    answer
}

/// The child: system calls only.
#[expect(unsafe_code, reason = "runs between clone and exec on borrowed memory")]
extern "C" fn child(plan: *mut c_void) -> libc::c_int {
    // SAFETY: `plan` points to a live Plan that nobody else uses until we have executed or ended.
    unsafe {
        let plan = &mut *plan.cast::<Plan>();
        plan.failed = Some(match prepare(plan) {
            Err(failed) => failed,
            Ok(()) => {
                if call(libc::SYS_getppid, 0, 0, 0, 0) != plan.parent as isize {
                    // The keeper is gone, while we hung perhaps. The next one may not know of us: what we would become could be a second
                    // worker in its slot.
                    end();
                }
                let mut failed = libc::ENOENT;
                for &program in &plan.programs {
                    let errno =
                        call(libc::SYS_execve, program as usize, plan.argv.as_ptr() as usize, plan.env.as_ptr() as usize, 0).unsigned_abs();
                    // As execvp(3): go on after what is not there; a file that may not be executed is remembered over one that is missing.
                    match errno as i32 {
                        libc::ENOENT | libc::ENOTDIR => {}
                        libc::EACCES => failed = libc::EACCES,
                        other => {
                            failed = other;
                            break;
                        }
                    }
                }
                (Step::Execute, failed)
            }
        });
        end()
    }
}

/// Ends the child.
#[expect(unsafe_code, reason = "runs between clone and exec on borrowed memory")]
unsafe fn end() -> ! {
    loop {
        // SAFETY: takes an integer, and does not return.
        unsafe { call(libc::SYS_exit_group, 127, 0, 0, 0) };
    }
}

/// Everything before the exec; on failure says where and why.
#[expect(unsafe_code, reason = "runs between clone and exec on borrowed memory")]
unsafe fn prepare(plan: &mut Plan) -> Result<(), (Step, i32)> {
    const SIGNAL_SET_BYTES: usize = 8;
    let check = |answer: isize, step: Step| if answer < 0 { Err((step, answer.unsigned_abs() as i32)) } else { Ok(()) };
    // A negative number goes to the kernel as it is in a register of two's complement.
    let int = |number: i32| number as isize as usize;
    // SAFETY: see `child`; every pointer below is to prepared memory or to our own stack.
    unsafe {
        if let Some(from) = plan.own_below {
            // Before anything that changes a descriptor: until then they are the parent's.
            check(
                call(libc::SYS_close_range, from as usize, libc::c_uint::MAX as usize, libc::CLOSE_RANGE_UNSHARE as usize, 0),
                Step::Descriptors,
            )?;
        }
        if plan.new_session {
            check(call(libc::SYS_setsid, 0, 0, 0, 0), Step::Limits)?;
        }
        if !plan.own_pid.is_null() {
            let mut rest = call(libc::SYS_getpid, 0, 0, 0, 0);
            for place in (0..10).rev() {
                *plan.own_pid.add(place) = b'0' + (rest % 10) as u8;
                rest /= 10;
            }
        }
        if plan.reset_oom_score {
            // Not fatal: without it the worker is only harder to kill than it should be.
            let path = c"/proc/self/oom_score_adj".as_ptr() as usize;
            let fd = call(libc::SYS_openat, int(libc::AT_FDCWD), path, int(libc::O_WRONLY | libc::O_CLOEXEC), 0);
            if fd >= 0 {
                call(libc::SYS_write, fd.unsigned_abs(), c"0".as_ptr() as usize, 1, 0);
                call(libc::SYS_close, fd.unsigned_abs(), 0, 0, 0);
            }
        }
        if let Some(limit) = &plan.nofile {
            check(call(libc::SYS_prlimit64, 0, libc::RLIMIT_NOFILE as usize, ptr::from_ref(limit) as usize, 0), Step::Limits)?;
        }
        if let Some(nice) = plan.nice {
            check(call(libc::SYS_setpriority, libc::PRIO_PROCESS as usize, 0, int(i32::from(nice)), 0), Step::Limits)?;
        }
        if let Some(mask) = plan.umask {
            call(libc::SYS_umask, mask as usize, 0, 0, 0);
        }
        if let Some((uid, gid, groups)) = &plan.credentials {
            let (uid, gid) = (*uid as usize, *gid as usize);
            check(call(libc::SYS_setgroups, groups.len(), groups.as_ptr() as usize, 0, 0), Step::User)?;
            check(call(libc::SYS_setresgid, gid, gid, gid, 0), Step::User)?;
            check(call(libc::SYS_setresuid, uid, uid, uid, 0), Step::User)?;
        }
        if plan.dies_with_us {
            // After the change of user, which clears it (prctl(2)). One that ended before this is seen below.
            check(call(libc::SYS_prctl, int(libc::PR_SET_PDEATHSIG), int(libc::SIGKILL), 0, 0), Step::Limits)?;
        }
        for (target, &fd) in plan.fds.iter().enumerate() {
            if fd as usize == target {
                check(call(libc::SYS_fcntl, target, int(libc::F_SETFD), 0, 0), Step::Descriptors)?;
            } else {
                check(call(libc::SYS_dup3, int(fd), target, 0, 0), Step::Descriptors)?;
            }
        }
        // Before anything that may hang: whoever finds us must find our own output, and what is the keeper's (the lock of its root, the pipes
        // of others) must not stay open with us when it is gone. A kernel without this call leaves it to exec.
        call(libc::SYS_close_range, plan.fds.len().max(3), libc::c_uint::MAX as usize, 0, 0);
        if !plan.called.is_null() {
            // Its environment is still ours: by this it is found if we are gone while it hangs below.
            call(libc::SYS_prctl, int(libc::PR_SET_NAME), plan.called as usize, 0, 0);
        }
        if !plan.cwd.is_null() {
            check(call(libc::SYS_chdir, plan.cwd as usize, 0, 0, 0), Step::Directory)?;
        }
        // The kernel's `struct sigaction` (four words) and `sigset_t` (one): all zeros are SIG_DFL, no flags, nothing blocked.
        let nothing = [0_u64; 4];
        for &signal in &plan.ignored {
            call(libc::SYS_rt_sigaction, int(signal), nothing.as_ptr() as usize, 0, SIGNAL_SET_BYTES);
        }
        check(call(libc::SYS_rt_sigprocmask, int(libc::SIG_SETMASK), nothing.as_ptr() as usize, 0, SIGNAL_SET_BYTES), Step::Limits)?;
        if !plan.filter.is_empty() {
            check(call(libc::SYS_prctl, int(libc::PR_SET_NO_NEW_PRIVS), 1, 0, 0), Step::Limits)?;
            let filter = libc::sock_fprog { len: plan.filter.len() as u16, filter: plan.filter.as_mut_ptr() };
            // A kernel that has none does without: who is started looks, and tells.
            call(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER as usize, confine::FLAGS, ptr::from_ref(&filter) as usize, 0);
        }
        Ok(())
    }
}

#[cfg(test)]
impl Job {
    /// A program in a session of its own, with nothing but its arguments and descriptors.
    pub(crate) fn plain(argv: Vec<CString>, fds: Vec<Arc<OwnedFd>>) -> Self {
        Self {
            programs: argv[..1].to_vec(),
            argv,
            env: Vec::new(),
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
            confined: false,
            called: None,
            cgroup: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, BorrowedFd};

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn start(spawner: &mut Spawner, argv: &[CString], fds: &[BorrowedFd<'_>]) -> Result<i32, SpawnError> {
        let copied = fds.iter().map(|fd| Arc::new(rustix::io::fcntl_dupfd_cloexec(fd, 10).expect("a copy")));
        let pid = spawner.begin(Job::plain(argv.to_vec(), copied.collect()))?;
        let (of, result) = spawner.wait(Duration::from_secs(20)).expect("it does not hang");
        assert_eq!(of, pid);
        if result.is_err() {
            let ended = rustix::process::waitpid(rustix::process::Pid::from_raw(pid), rustix::process::WaitOptions::empty());
            assert_eq!(ended.expect("ours").expect("its end").1.exit_status(), Some(127));
        }
        result.map(|()| pid)
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
        let mut without = Spawner::new();
        without.pad = None;
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
    fn a_child_whose_parent_is_gone_does_not_execute() {
        let mut spawner = Spawner::new();
        // As if it had been given to another one meanwhile.
        spawner.us = 1;
        let (out, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe");
        let argv = [c"/bin/sh".to_owned(), c"-c".to_owned(), c"echo runs".to_owned()];
        let pid = start(&mut spawner, &argv, &[theirs.as_fd(), theirs.as_fd(), theirs.as_fd()]).expect("made");
        drop(theirs);
        let ended = rustix::process::waitpid(rustix::process::Pid::from_raw(pid), rustix::process::WaitOptions::empty());
        assert_eq!(ended.expect("ours").expect("its end").1.exit_status(), Some(127));
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
