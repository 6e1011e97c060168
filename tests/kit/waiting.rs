//! How tests wait, each time with a limit: for what tells of itself by its word, for all else by looking again.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Word of the kernel that files of some folders have changed (`inotify(7)`): they are made, moved, removed or written to.
pub(crate) struct Changes {
    inotify: OwnedFd,
    folders: Vec<PathBuf>,
}

impl Changes {
    /// Listens in these folders (not below them), as soon as they are there.
    pub(crate) fn of(folders: impl IntoIterator<Item = PathBuf>) -> Self {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).expect("an inotify");
        Self { inotify, folders: folders.into_iter().collect() }
    }

    /// Forgets what has happened, and listens also where a folder was made meanwhile. To be called before a look: what changes after it
    /// ends the wait.
    fn listen(&self) {
        let what = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::DELETE | WatchFlags::MODIFY | WatchFlags::ONLYDIR;
        for folder in &self.folders {
            match inotify::add_watch(&self.inotify, folder, what) {
                // Not there yet, or no longer.
                Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(error) => panic!("cannot listen in {}: {error}", folder.display()),
            }
        }
        let mut events = [0; 4096];
        while rustix::io::read(&self.inotify, &mut events[..]).is_ok_and(|read| read > 0) {}
    }
}

/// Waits until `look` finds something; `Err`: what it last saw, when `patience` is over.
///
/// It looks when there is word of `changes`, and `every` so often because not everything that is looked at sends word (a process of
/// somebody else, a title, an answer of the agent that no event goes with).
pub(crate) fn until<T>(
    changes: Option<&Changes>,
    every: Duration,
    patience: Duration,
    mut look: impl FnMut() -> Result<T, String>,
) -> Result<T, String> {
    let end = Instant::now() + patience;
    loop {
        changes.into_iter().for_each(Changes::listen);
        let last = match look() {
            Ok(found) => return Ok(found),
            Err(last) => last,
        };
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(last);
        }
        if let Some(changes) = changes {
            let _word_or_time = readable(&changes.inotify, every.min(left));
        } else {
            pause(every.min(left));
        }
    }
}

/// Waits for the end of a process (`pidfd_open(2)`); returns whether it came in time. One that is not there has ended.
pub(crate) fn ended(pid: i32, patience: Duration) -> bool {
    match Pid::from_raw(pid).map(|pid| pidfd_open(pid, PidfdFlags::empty())) {
        Some(Ok(process)) => readable(&process, patience),
        Some(Err(Errno::SRCH)) | None => true,
        Some(Err(error)) => panic!("cannot wait for {pid}: {error}"),
    }
}

/// Lets time pass: where a moment of the test's own choosing is the point, and between two looks at what sends no word. The only place
/// where a test sleeps.
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}

fn readable(fd: impl AsFd, patience: Duration) -> bool {
    let end = Instant::now() + patience;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let limit = Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)) {
            Err(Errno::INTR) => {}
            Ok(ready) => return ready > 0,
            Err(error) => panic!("cannot wait: {error}"),
        }
    }
}
