//! Starts processes, and does not wait for those that hang.
//!
//! A start waits until the child has executed its program ([`super::spawn`]). Before that the child enters its directory and opens its
//! program, and on a mount that does not answer (NFS without its server, a stuck FUSE) either can take for ever, and cannot be
//! interrupted. So each start is made by a thread that can be left waiting. There is one of them, until one hangs; one that has waited
//! long enough is used again. None ever ends: the kernel would take that for the end of its children's parent (`PR_SET_PDEATHSIG`).
//!
//! Whether, and how often, something is started is not decided here.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use super::spawn::{Credentials, Spawn, SpawnError, Spawner, Step};

/// How long a start is waited for. It takes a millisecond, on a cold and busy disk some tens; what takes longer goes on without us.
const EXECUTED_WITHIN: Duration = Duration::from_millis(250);

/// The most starts that hang at a time. Each costs a thread and, while it is begun, [`EXECUTED_WITHIN`] of the caller's time.
const HANGING_MAX: usize = 8;

/// A thread needs little more than the plan of a start; the child has a stack of its own.
const STACK_BYTES: usize = 256 << 10;

/// What is started: as [`Spawn`], but owned, as it may outlive its caller's patience.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) programs: Vec<CString>,
    pub(crate) argv: Vec<CString>,
    pub(crate) env: Vec<CString>,
    pub(crate) own_pid_at: Option<(usize, usize)>,
    pub(crate) cwd: Option<CString>,
    pub(crate) credentials: Option<Credentials>,
    pub(crate) fds: Vec<Arc<OwnedFd>>,
    pub(crate) nofile: Option<(u64, u64)>,
    pub(crate) nice: Option<i8>,
    pub(crate) umask: Option<u32>,
    pub(crate) reset_oom_score: bool,
    pub(crate) new_session: bool,
    pub(crate) dies_with_us: bool,
}

/// A process that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Started {
    /// It has executed its program.
    Executed(i32),
    /// It has not yet. It is a child like any other all the same: it can be signalled and reaped, and if it fails after all it ends with 127.
    Hangs(i32),
}

/// A start that hung, and does so no more.
#[derive(Debug)]
pub(crate) struct Late {
    /// Its process.
    pub(crate) pid: i32,
    /// Why it has failed; `None`: it has executed its program, or was killed before.
    pub(crate) failed: Option<SpawnError>,
}

/// The threads that start processes.
#[derive(Debug, Default)]
pub(crate) struct Starter {
    threads: Vec<Thread>,
}

#[derive(Debug)]
struct Thread {
    jobs: Sender<(Job, Arc<AtomicI32>)>,
    results: Receiver<Result<i32, SpawnError>>,
    /// The process for which it waits, and nobody else.
    hangs: Option<i32>,
}

impl Thread {
    fn begin() -> io::Result<Self> {
        let (jobs, taken) = mpsc::channel::<(Job, Arc<AtomicI32>)>();
        let (done, results) = mpsc::channel();
        std::thread::Builder::new().name("starter".to_owned()).stack_size(STACK_BYTES).spawn(move || {
            let mut spawner = Spawner::new();
            while let Ok((job, pid)) = taken.recv() {
                let result = start(&mut spawner, job, &pid);
                // Nobody is there to hear it when the process ends.
                let _nobody = done.send(result);
            }
        })?;
        Ok(Self { jobs, results, hangs: None })
    }
}

/// Starts it; its descriptors are closed here when that is answered.
fn start(spawner: &mut Spawner, mut job: Job, pid: &AtomicI32) -> Result<i32, SpawnError> {
    let fds: Vec<BorrowedFd<'_>> = job.fds.iter().map(|fd| fd.as_fd()).collect();
    spawner.spawn(
        &mut Spawn {
            programs: &job.programs,
            argv: &job.argv,
            env: &mut job.env,
            own_pid_at: job.own_pid_at,
            cwd: job.cwd.as_ref(),
            credentials: job.credentials.as_ref(),
            fds: &fds,
            nofile: job.nofile,
            nice: job.nice,
            umask: job.umask,
            reset_oom_score: job.reset_oom_score,
            new_session: job.new_session,
            dies_with_us: job.dies_with_us,
        },
        pid,
    )
}

impl Starter {
    /// Starts it, and returns when it has executed its program, or hangs.
    ///
    /// # Errors
    /// With the step at which it failed; no process is left behind then. With EAGAIN when [`HANGING_MAX`] starts hang.
    pub(crate) fn start(&mut self, job: Job) -> Result<Started, SpawnError> {
        let cannot = |source| SpawnError { step: Step::Clone, source };
        let free = self.threads.iter().position(|thread| thread.hangs.is_none());
        let at = match free {
            Some(at) => at,
            None if self.threads.len() < HANGING_MAX => {
                self.threads.push(Thread::begin().map_err(cannot)?);
                self.threads.len() - 1
            }
            None => return Err(cannot(io::Error::from_raw_os_error(libc::EAGAIN))),
        };
        let thread = &mut self.threads[at];
        let pid = Arc::new(AtomicI32::new(0));
        let sent = thread.jobs.send((job, Arc::clone(&pid))).is_ok();
        while sent {
            match thread.results.recv_timeout(EXECUTED_WITHIN) {
                Ok(Ok(pid)) => return Ok(Started::Executed(pid)),
                Ok(Err(error)) => {
                    // It has ended already; leaving it a zombie would be an exit of a process that nobody knows.
                    if let Some(pid) = rustix::process::Pid::from_raw(pid.load(Ordering::Acquire)) {
                        let _reaped = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
                    }
                    return Err(error);
                }
                Err(RecvTimeoutError::Timeout) => match pid.load(Ordering::Acquire) {
                    // Nothing is made yet that could hang: the machine is busy.
                    0 => {}
                    pid => {
                        thread.hangs = Some(pid);
                        return Ok(Started::Hangs(pid));
                    }
                },
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        // It has panicked, which takes nobody else along.
        self.threads.remove(at);
        Err(cannot(io::Error::other("the thread that starts processes has ended")))
    }

    /// Whether a start hangs.
    pub(crate) fn hangs(&self) -> bool {
        self.threads.iter().any(|thread| thread.hangs.is_some())
    }

    /// Returns the starts that hang no more since the last look.
    pub(crate) fn late(&mut self) -> Vec<Late> {
        let mut late = Vec::new();
        for thread in self.threads.iter_mut().filter(|thread| thread.hangs.is_some()) {
            if let Ok(result) = thread.results.try_recv() {
                late.extend(thread.hangs.take().map(|pid| Late { pid, failed: result.err() }));
            }
        }
        late
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::fd::AsRawFd;
    use std::time::Instant;

    use rustix::fs::{Mode, OFlags};

    use super::*;
    use crate::sys::process;

    /// A program whose execution hangs: to open a file on which somebody has a lease waits until it is given up, for at most
    /// /proc/sys/fs/lease-break-time, 45 s (`fcntl(2)`, Leases).
    pub(crate) struct Hanging {
        folder: tempfile::TempDir,
        lease: std::fs::File,
    }

    /// What becomes of it when it goes on.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Then {
        Runs,
        /// We have it open for writing.
        Fails,
    }

    impl Hanging {
        /// A copy of `sleep`.
        pub(crate) fn new(then: Then) -> Self {
            /// The same on every architecture that has leases (include/uapi/asm-generic/fcntl.h); the crate `libc` does not have it.
            const F_SETSIG: i32 = 10;
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("program");
            fs_err::copy("/bin/sleep", &path).expect("a copy");
            let mode = if then == Then::Runs { OFlags::RDONLY } else { OFlags::RDWR };
            let lease = std::fs::File::from(rustix::fs::open(&path, mode | OFlags::CLOEXEC, Mode::empty()).expect("open"));
            // A test beside us that starts a program may have had a copy of the descriptor behind `copy`.
            until("lease", || {
                // Who breaks the lease is told us by a signal that ends nobody.
                // SAFETY: both take integers only.
                #[expect(unsafe_code, reason = "rustix has no leases")]
                let held = unsafe {
                    libc::fcntl(lease.as_raw_fd(), F_SETSIG, libc::SIGURG) == 0
                        && libc::fcntl(lease.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) == 0
                };
                held.then_some(())
            });
            Self { folder, lease }
        }

        pub(crate) fn path(&self) -> String {
            self.folder.path().join("program").display().to_string()
        }

        /// Lets it go on.
        pub(crate) fn release(&self) {
            // SAFETY: takes integers only.
            #[expect(unsafe_code, reason = "rustix has no leases")]
            let released = unsafe { libc::fcntl(self.lease.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) };
            assert_eq!(released, 0, "{}", io::Error::last_os_error());
        }
    }

    fn job(program: &str) -> Job {
        let text = |text: &str| CString::new(text).expect("no NUL");
        let null = Arc::new(OwnedFd::from(fs_err::File::open("/dev/null").expect("open").into_parts().0));
        Job {
            programs: vec![text(program)],
            argv: vec![text("sleep"), text("1000")],
            env: Vec::new(),
            own_pid_at: None,
            cwd: None,
            credentials: None,
            fds: vec![Arc::clone(&null), Arc::clone(&null), null],
            nofile: None,
            nice: None,
            umask: None,
            reset_oom_score: false,
            new_session: true,
            dies_with_us: false,
        }
    }

    /// Waits for something with a limit.
    pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            if let Some(seen) = look() {
                return seen;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "no {what}");
            std::thread::yield_now();
        }
    }

    /// Ends a child, and returns the signal that ended it.
    fn end(pid: i32) -> Option<i32> {
        process::signal_child(pid, libc::SIGKILL).expect("ours");
        let (_, status) = rustix::process::waitpid(rustix::process::Pid::from_raw(pid), rustix::process::WaitOptions::empty())
            .expect("ours")
            .expect("its end");
        status.terminating_signal()
    }

    #[test]
    fn a_start_that_hangs_holds_up_no_other_and_ends_like_any_child() {
        let hanging = Hanging::new(Then::Runs);
        let mut starter = Starter::default();
        let Ok(Started::Hangs(first)) = starter.start(job(&hanging.path())) else { panic!("it does not hang") };
        assert!(starter.hangs() && starter.late().is_empty());
        let Ok(Started::Executed(other)) = starter.start(job("/bin/sleep")) else { panic!("not started") };
        assert_eq!((starter.threads.len(), end(other)), (2, Some(libc::SIGKILL)));
        let Ok(Started::Hangs(second)) = starter.start(job(&hanging.path())) else { panic!("it does not hang") };
        // One is killed while it hangs; the other goes on by itself.
        assert_eq!(end(first), Some(libc::SIGKILL));
        let late = until("end of the wait", || starter.late().pop());
        assert_eq!((late.pid, late.failed.is_none()), (first, true));
        hanging.release();
        let late = until("end of the wait", || starter.late().pop());
        assert_eq!((late.pid, late.failed.is_none()), (second, true));
        assert_eq!(process::title(second).expect("it lives"), b"sleep\x001000");
        assert_eq!((end(second), starter.hangs()), (Some(libc::SIGKILL), false));
        // The threads are used again.
        let Ok(Started::Executed(last)) = starter.start(job("/bin/sleep")) else { panic!("not started") };
        assert_eq!((end(last), starter.threads.len()), (Some(libc::SIGKILL), 2));
    }

    /// What the thread costs a start. `cargo test --release --bin selfstart -- --ignored --nocapture with_and_without_the_thread`
    #[test]
    #[ignore = "a measurement"]
    fn a_start_with_and_without_the_thread() {
        let mut starter = Starter::default();
        let mut spawner = Spawner::new();
        let mut took = [Vec::new(), Vec::new()];
        for _ in 0..2000 {
            for (way, took) in took.iter_mut().enumerate() {
                let job = job("/bin/sleep");
                let begun = Instant::now();
                let pid = match way {
                    0 => start(&mut spawner, job, &AtomicI32::new(0)).expect("started"),
                    _ => match starter.start(job).expect("started") {
                        Started::Executed(pid) | Started::Hangs(pid) => pid,
                    },
                };
                took.push(begun.elapsed());
                end(pid);
            }
        }
        for (way, took) in ["without", "with"].iter().zip(&mut took) {
            took.sort_unstable();
            println!("{way}: median {:?}, 90 % {:?}, 99 % {:?}", took[1000], took[1800], took[1980]);
        }
    }

    #[test]
    fn so_many_starts_may_hang_and_one_that_fails_late_says_why_and_ends_with_127() {
        let hanging = Hanging::new(Then::Fails);
        let mut starter = Starter::default();
        let mut hung: Vec<i32> = (0..HANGING_MAX)
            .map(|_| match starter.start(job(&hanging.path())) {
                Ok(Started::Hangs(pid)) => pid,
                other => panic!("{other:?}"),
            })
            .collect();
        let refused = starter.start(job("/bin/sleep")).expect_err("too many");
        assert_eq!((refused.step, refused.source.raw_os_error()), (Step::Clone, Some(libc::EAGAIN)));
        hanging.release();
        let mut failed = Vec::new();
        let mut late = Vec::new();
        until("end of the wait", || {
            late.append(&mut starter.late());
            (late.len() == HANGING_MAX).then_some(())
        });
        for late in late {
            let error = late.failed.expect("it is open for writing");
            assert_eq!((error.step, error.source.raw_os_error()), (Step::Execute, Some(libc::ETXTBSY)));
            let ended = rustix::process::waitpid(rustix::process::Pid::from_raw(late.pid), rustix::process::WaitOptions::empty());
            assert_eq!(ended.expect("ours").expect("its end").1.exit_status(), Some(127));
            failed.push(late.pid);
        }
        hung.sort_unstable();
        failed.sort_unstable();
        assert_eq!((failed, starter.hangs()), (hung, false));
    }
}
