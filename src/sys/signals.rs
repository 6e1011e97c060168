//! Signals as something to read (`signalfd(2)`), and their numbers.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use selfstart_core::signal::Signal;

/// Returns the kernel's number (`signal(7)`; libc has it right for each architecture).
pub(crate) const fn number(signal: Signal) -> i32 {
    match signal {
        Signal::Hup => libc::SIGHUP,
        Signal::Int => libc::SIGINT,
        Signal::Quit => libc::SIGQUIT,
        Signal::Usr1 => libc::SIGUSR1,
        Signal::Usr2 => libc::SIGUSR2,
        Signal::Alrm => libc::SIGALRM,
        Signal::Term => libc::SIGTERM,
        Signal::Cont => libc::SIGCONT,
        Signal::Stop => libc::SIGSTOP,
        Signal::Tstp => libc::SIGTSTP,
        Signal::Ttin => libc::SIGTTIN,
        Signal::Ttou => libc::SIGTTOU,
        Signal::Winch => libc::SIGWINCH,
        Signal::Abrt => libc::SIGABRT,
        Signal::Kill => libc::SIGKILL,
    }
}

/// The signals that the keeper takes: child ends, and what is meant for the node.
pub(crate) const TAKEN: [i32; 6] = [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGUSR1, libc::SIGUSR2];

/// Gives [`TAKEN`] their default dispositions, whatever they were in who started us: with SIGCHLD ignored the kernel reaps our children
/// itself and tells nobody (`wait(2)`).
///
/// # Errors
/// Never: these can be set.
#[expect(unsafe_code, reason = "signal(2) has no safe wrapper")]
pub(crate) fn take_back() -> io::Result<()> {
    for signal in TAKEN {
        // SAFETY: sets a disposition; no handler is involved.
        if unsafe { libc::signal(signal, libc::SIG_DFL) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The taken signals, blocked and readable.
#[derive(Debug)]
pub(crate) struct SignalFd(OwnedFd);

impl SignalFd {
    /// Blocks [`TAKEN`] in this thread and makes them readable. Children get an empty mask back in [`super::spawn`].
    ///
    /// # Errors
    /// When the process is out of descriptors.
    #[expect(unsafe_code, reason = "signalfd and sigprocmask have no safe wrapper here")]
    pub(crate) fn take() -> io::Result<Self> {
        // SAFETY: the set is initialised by sigemptyset before use; all pointers are to live locals; signalfd returns a new
        // descriptor that nothing else owns.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            for signal in TAKEN {
                libc::sigaddset(&raw mut set, signal);
            }
            if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Self(OwnedFd::from_raw_fd(fd)))
        }
    }

    /// Returns the next pending signal's number, `None` when there is none.
    ///
    /// # Errors
    /// When the kernel refuses the read.
    #[expect(unsafe_code, reason = "the record is a C struct")]
    pub(crate) fn next(&self) -> io::Result<Option<i32>> {
        // SAFETY: an all-zero signalfd_siginfo is valid; read(2) writes at most its size into it.
        let (read, signal) = unsafe {
            let mut record: libc::signalfd_siginfo = std::mem::zeroed();
            let read = libc::read(self.0.as_raw_fd(), (&raw mut record).cast(), size_of::<libc::signalfd_siginfo>());
            (read, record.ssi_signo)
        };
        if read < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) };
        }
        Ok(i32::try_from(signal).ok())
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
