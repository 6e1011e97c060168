//! For tests: a process whose first thread has ended while another lives on. It is this test program, started again.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Set in the environment of the one that shall be it.
const ASKED: &str = "SELFSTART_TEST_HEADLESS";

/// The test below, by its full name.
pub(crate) const NAME: &str = "sys::headless::without_being_asked_nothing_happens";

/// Killed and reaped when the test is over, also when it fails.
pub(crate) struct Headless(Child);

impl Headless {
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).expect("a pid")
    }
}

impl Drop for Headless {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What becomes one; it may be given a folder, variables and descriptors.
pub(crate) fn command() -> Command {
    let mut command = Command::new(std::env::current_exe().expect("our own path"));
    command.args(["--nocapture", "--exact", NAME]).env(ASKED, "1");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Starts it, and waits until its first thread has ended.
pub(crate) fn start(command: &mut Command) -> Headless {
    let process = Headless(command.spawn().expect("started"));
    let began = Instant::now();
    loop {
        let stat = fs_err::read_to_string(format!("/proc/{}/stat", process.pid())).expect("not reaped");
        if stat.contains(") Z ") {
            return process;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{stat}");
        std::thread::yield_now();
    }
}

#[test]
#[expect(unsafe_code, reason = "one thread ends with a bare system call, made by another's signal")]
fn without_being_asked_nothing_happens() {
    extern "C" fn end_this_thread(_: libc::c_int) {
        // SAFETY: ends the thread that runs it (exit(2), not exit_group); nobody waits for what it owned.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    }
    if std::env::var_os(ASKED).is_none() {
        return;
    }
    // In a thread of its own, since the test runner may run tests in the first one.
    let other = std::thread::spawn(|| {
        let handler: extern "C" fn(libc::c_int) = end_this_thread;
        // SAFETY: the handler makes one system call; the first thread's number is the process's.
        unsafe {
            libc::signal(libc::SIGUSR1, handler as libc::sighandler_t);
            libc::syscall(libc::SYS_tgkill, libc::getpid(), libc::getpid(), libc::SIGUSR1);
        }
        loop {
            std::thread::park();
        }
    });
    let _never = other.join();
}
