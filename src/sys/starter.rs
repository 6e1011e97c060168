//! Starts processes, and does not wait for those that hang.
//!
//! A start is waited for until the child has executed its program, for a moment. One that hangs (see [`super::spawn`]) keeps what it has
//! borrowed, and the next start gets another stack. Whether, and how often, something is started is not decided here.

use std::io;
use std::time::Duration;

use super::spawn::{Job, SpawnError, Spawner, Step};

/// How long a start is waited for. It takes a millisecond, on a cold and busy disk some tens; what takes longer goes on without us.
const EXECUTED_WITHIN: Duration = Duration::from_millis(250);

/// The most starts that hang at a time: each costs a stack and, when it is begun, [`EXECUTED_WITHIN`] of the caller's time.
const HANGING_MAX: usize = 8;

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

/// Starts processes, several at a time only if some hang.
#[derive(Debug, Default)]
pub(crate) struct Starter {
    spawners: Vec<Spawner>,
}

impl Starter {
    /// Starts it, and returns when it has executed its program, or hangs.
    ///
    /// # Errors
    /// With the step at which it failed; no process is left behind then. With EAGAIN when [`HANGING_MAX`] starts hang.
    pub(crate) fn start(&mut self, job: Job) -> Result<Started, SpawnError> {
        self.start_beside(job, HANGING_MAX)
    }

    /// As [`Self::start`], also when [`HANGING_MAX`] others hang: for the one that must not wait for them.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub(crate) fn start_at_any_rate(&mut self, job: Job) -> Result<Started, SpawnError> {
        self.start_beside(job, HANGING_MAX + 1)
    }

    /// `most`: so many may hang, this one included.
    fn start_beside(&mut self, job: Job, most: usize) -> Result<Started, SpawnError> {
        if self.spawners.iter().filter(|spawner| spawner.is_busy()).count() >= most {
            return Err(SpawnError { step: Step::Clone, source: io::Error::from_raw_os_error(libc::EAGAIN) });
        }
        let at = self.spawners.iter().position(|spawner| !spawner.is_busy()).unwrap_or_else(|| {
            self.spawners.push(Spawner::new());
            self.spawners.len() - 1
        });
        let pid = self.spawners[at].begin(job)?;
        match self.spawners[at].wait(EXECUTED_WITHIN) {
            None => Ok(Started::Hangs(pid)),
            Some((pid, Ok(()))) => Ok(Started::Executed(pid)),
            Some((pid, Err(error))) => {
                // It has ended already; leaving it a zombie would be an exit of a process that nobody knows.
                if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                    let _reaped = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
                }
                Err(error)
            }
        }
    }

    /// Whether a start hangs.
    pub(crate) fn hangs(&self) -> bool {
        self.spawners.iter().any(Spawner::is_busy)
    }

    /// Whether the start of this process hangs: it runs on our memory then.
    pub(crate) fn hangs_at(&self, pid: i32) -> bool {
        self.spawners.iter().any(|spawner| spawner.lends_to(pid))
    }

    /// This process has been reaped.
    pub(crate) fn reaped(&mut self, pid: i32) {
        self.spawners.iter_mut().for_each(|spawner| spawner.reaped(pid));
    }

    /// Returns the starts that hang no more since the last look.
    pub(crate) fn late(&mut self) -> Vec<Late> {
        let over = self.spawners.iter_mut().filter_map(|spawner| spawner.wait(Duration::ZERO));
        over.map(|(pid, result)| Late { pid, failed: result.err() }).collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::ffi::CString;
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::sync::Arc;

    use rustix::fs::{Mode, OFlags};

    use super::*;
    use crate::sys::{clock, process};

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
            ..Job::plain(vec![text("sleep"), text("1000")], vec![Arc::clone(&null), Arc::clone(&null), null])
        }
    }

    /// Waits for something with a limit.
    pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let begun = clock::instant();
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
        // Nor does it hold open what is ours: the lock of the root would be taken for as long as it hangs.
        let open = fs_err::read_dir(format!("/proc/{first}/fd")).expect("it lives").map(|fd| fd.expect("listed").file_name());
        assert_eq!(
            open.map(|fd| fd.to_string_lossy().into_owned()).collect::<std::collections::BTreeSet<_>>(),
            ["0", "1", "2"].map(str::to_owned).into()
        );
        let Ok(Started::Executed(other)) = starter.start(job("/bin/sleep")) else { panic!("not started") };
        assert_eq!((starter.spawners.len(), end(other)), (2, Some(libc::SIGKILL)));
        let Ok(Started::Hangs(second)) = starter.start(job(&hanging.path())) else { panic!("it does not hang") };
        // One is killed while it hangs; the other goes on by itself.
        assert_eq!(end(first), Some(libc::SIGKILL));
        let late = until("end of the wait", || starter.late().pop());
        assert_eq!((late.pid, late.failed.is_none()), (first, true));
        hanging.release();
        let late = until("end of the wait", || starter.late().pop());
        assert_eq!((late.pid, late.failed.is_none()), (second, true));
        // Our memory is given back a moment before it has its own title.
        until("title", || (process::title(second).expect("it lives") == b"sleep\x001000").then_some(()));
        assert_eq!((end(second), starter.hangs()), (Some(libc::SIGKILL), false));
        // What was borrowed is used again.
        let Ok(Started::Executed(last)) = starter.start(job("/bin/sleep")) else { panic!("not started") };
        assert_eq!((end(last), starter.spawners.len()), (Some(libc::SIGKILL), 2));
    }

    /// `cargo test --release --bin selfstart -- --ignored --nocapture what_a_start_takes`
    #[test]
    #[ignore = "a measurement"]
    fn what_a_start_takes() {
        let mut starter = Starter::default();
        let mut took = Vec::new();
        for _ in 0..2000 {
            let job = job("/bin/sleep");
            let begun = clock::instant();
            let Ok(Started::Executed(pid)) = starter.start(job) else { panic!("not started") };
            took.push(begun.elapsed());
            end(pid);
        }
        took.sort_unstable();
        println!("median {:?}, 90 % {:?}, 99 % {:?}", took[1000], took[1800], took[1980]);
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
        // The agent, who can end them, must not be kept away by them.
        let Ok(Started::Executed(agent)) = starter.start_at_any_rate(job("/bin/sleep")) else { panic!("not started") };
        let refused = starter.start(job("/bin/sleep")).expect_err("what the agent has left is for the next agent");
        assert_eq!((refused.source.raw_os_error(), end(agent)), (Some(libc::EAGAIN), Some(libc::SIGKILL)));
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
