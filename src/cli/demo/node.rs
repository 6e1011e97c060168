//! The demo's folder, and the node in it: a child in its own session. Both are gone when their values are.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use selfstart_core::command::Command as Asked;
use selfstart_core::signal::Signal;
use selfstart_core::status::Status;

use crate::control::client::{Client, ClientError};
use crate::control::wire::{Facts, Outcome, Request};
use crate::sys::gate;
use crate::sys::{clock, process, signals};

/// A variable that the node is started with and that no worker may have.
pub(super) const FOREIGN: &str = "DEMO_STARTED_BY";

/// A longer path leaves too little for the names below it (a socket's path has at most 107 bytes).
const LONGEST_BASE: usize = 40;

/// A folder of our own under a short path.
pub(super) struct Folder {
    pub(super) path: PathBuf,
    pub(super) keep: bool,
}

impl Folder {
    /// Makes it, for us alone.
    ///
    /// # Errors
    /// When there is no place for it.
    pub(super) fn make(keep: bool) -> io::Result<Self> {
        let wished = std::env::temp_dir();
        let bases = [wished.as_path(), Path::new("/tmp"), Path::new("/dev/shm")];
        let mut why = io::Error::from(io::ErrorKind::NotFound);
        for base in bases.into_iter().filter(|base| base.is_absolute() && base.as_os_str().len() <= LONGEST_BASE) {
            let name: String = (0..6).map(|_| fastrand::lowercase()).collect();
            let path = base.join(format!("selfstart-demo-{name}"));
            match gate::mkdirat(rustix::fs::CWD, &path, Mode::RWXU) {
                // Links in it are resolved: processes show the real path.
                Ok(()) => return Ok(Self { path: fs_err::canonicalize(path)?, keep }),
                Err(error) => why = error.into(),
            }
        }
        Err(why)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.keep {
            // What cannot be removed stays; there is nothing more that we could do.
            let _stays = gate::remove_dir_all(&self.path);
        }
    }
}

/// `selfstart run` on a configuration.
pub(super) struct Node {
    child: Child,
    code: Option<i32>,
    pub(super) root: PathBuf,
}

impl Node {
    /// Starts it; what it logs goes to a file.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(super) fn start(config: &Path, root: PathBuf, log: &Path) -> io::Result<Self> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
        let log: OwnedFd = gate::File::open(log, flags, 0o666)?.into();
        let mut command = Command::new("/proc/self/exe");
        command.arg0("selfstart").arg("--config").args([config.as_os_str(), OsStr::new("run")]).env(FOREIGN, "demo");
        command.env_remove("NOTIFY_SOCKET").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        process::apart(&mut command);
        Ok(Self { child: gate::spawn(&mut command)?, code: None, root })
    }

    pub(super) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or(0)
    }

    /// Asks, on a thread of its own: an answer may take long, and we must see meanwhile.
    pub(super) fn ask(&self, command: Asked) -> Receiver<Result<Outcome, ClientError>> {
        let socket = self.root.join("run/control.sock");
        let (answers, answer) = mpsc::channel();
        std::thread::spawn(move || {
            let outcome = Client::connect(&socket).and_then(|client| client.ask(&Request::new(command), None, |_| ()));
            // Nobody waits for it any more.
            let _nobody = answers.send(outcome);
        });
        answer
    }

    /// What the agent says; `None`: it does not answer now.
    pub(super) fn status(&self) -> Option<Status> {
        let within = Some(clock::instant() + Duration::from_secs(1));
        let client = Client::connect(&self.root.join("run/control.sock")).ok()?;
        match client.ask(&Request::new(Asked::Status {}), within, |_| ()).ok()? {
            Outcome::Done(done) => match done.facts? {
                Facts::Status(status) => Some(*status),
                _ => None,
            },
            _ => None,
        }
    }

    /// How it ended; `None`: it has not. A signal is 128 and its number, as a shell says it.
    pub(super) fn ended(&mut self) -> Option<i32> {
        use std::os::unix::process::ExitStatusExt;
        if self.code.is_none() {
            let status = self.child.try_wait().ok()??;
            self.code = Some(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)));
        }
        self.code
    }

    /// Asks it politely to stop, as an init system does.
    pub(super) fn stop(&mut self) {
        self.signal(Signal::Term);
    }

    fn signal(&mut self, signal: Signal) {
        if self.ended().is_none() {
            // It is our child and not reaped: it cannot be another. It may be gone.
            let _gone = process::signal_child(self.pid(), signals::number(signal));
        }
    }

    fn ends_within(&mut self, limit: Duration) -> bool {
        let began = clock::instant();
        while self.ended().is_none() {
            if began.elapsed() > limit {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    }
}

impl Drop for Node {
    /// Leaves nothing running: asks, asks for the last rung, and ends the rest itself.
    fn drop(&mut self) {
        for (signal, limit) in [(Signal::Term, 12), (Signal::Term, 5), (Signal::Kill, 5)] {
            self.signal(signal);
            if self.ends_within(Duration::from_secs(limit)) {
                break;
            }
        }
        // After a KILL, or if a promise was broken; a few rounds, as what is killed may have forked.
        for _ in 0..5 {
            let Ok(left) = super::watch::Watch::new(self.root.clone(), 0, false).and_then(|mut watch| watch.everyone()) else { return };
            if left.is_empty() {
                return;
            }
            for id in left {
                if let Ok(fd) = process::open(id) {
                    let _gone = process::signal_open(std::os::fd::AsFd::as_fd(&fd), signals::number(Signal::Kill));
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
