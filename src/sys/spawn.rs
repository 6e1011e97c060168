//! Starts a process without copying the address space: `clone(2)` with CLONE_VM and CLONE_VFORK.
//!
//! The child borrows our memory until it executes, so between the two it only makes system calls on what was prepared
//! before; it allocates nothing, takes no lock and calls nothing that could.

use std::ffi::{CString, c_char, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr;

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

/// Starts processes; keeps the stack that each child borrows in turn.
#[derive(Debug)]
pub(crate) struct Spawner {
    stack: Vec<u128>,
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
    failed: Option<(Step, i32)>,
}

impl Spawner {
    /// Returns one that is ready.
    pub(crate) fn new() -> Self {
        Self { stack: vec![0; STACK_BYTES / size_of::<u128>()] }
    }

    /// Starts it and returns its process id, after it has executed.
    ///
    /// # Errors
    /// With the step at which it failed; no process is left behind then.
    #[expect(unsafe_code, reason = "clone(2) has no safe form")]
    pub(crate) fn spawn(&mut self, spawn: &mut Spawn<'_>) -> Result<i32, SpawnError> {
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
            fds: spawn.fds.iter().map(AsRawFd::as_raw_fd).collect(),
            nofile: spawn.nofile.map(|(soft, hard)| libc::rlimit { rlim_cur: soft, rlim_max: hard }),
            nice: spawn.nice,
            umask: spawn.umask,
            reset_oom_score: spawn.reset_oom_score,
            new_session: spawn.new_session,
            dies_with_us: spawn.dies_with_us,
            failed: None,
        };
        let top = self.stack.as_mut_ptr_range().end.cast::<c_void>();
        // SAFETY: the stack is 64 KiB, 16-byte aligned (u128), grows down from `top` and is used by one child at a time, because
        // CLONE_VFORK suspends us until the child has executed or ended. `plan` outlives that. `child` touches only `plan` and
        // makes system calls. All signals are blocked around it, so that no handler runs in the child.
        let pid = unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
            let pid = libc::clone(child, top, libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD, (&raw mut plan).cast());
            let error = io::Error::last_os_error();
            libc::sigprocmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut());
            if pid < 0 { Err(error) } else { Ok(pid) }
        };
        if let Some((entry, _, text)) = own_pid {
            // SAFETY: it came from `into_raw`, and the child wrote digits only, so it ends where it ended; the child has executed or ended.
            spawn.env[entry] = unsafe { CString::from_raw(text) };
        }
        let pid = pid.map_err(|source| SpawnError { step: Step::Clone, source })?;
        match plan.failed {
            None => Ok(pid),
            Some((step, errno)) => {
                // The child has ended already; leaving it a zombie would be an exit of a process that nobody knows.
                if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                    let _reaped = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
                }
                Err(SpawnError { step, source: io::Error::from_raw_os_error(errno) })
            }
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
        // What we ignore (Rust ignores SIGPIPE) or somebody made us ignore (nohup) must not reach a worker.
        let mut default: libc::sigaction = std::mem::zeroed();
        default.sa_sigaction = libc::SIG_DFL;
        for signal in 1..=64 {
            libc::sigaction(signal, &raw const default, ptr::null_mut());
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        check(libc::c_long::from(libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut())), Step::Limits)
    }
}
