//! Reaping, signalling and recognising processes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, pidfd_send_signal};
use selfstart_core::id::ProcessId;

use super::fault;
use super::proc_scan::ProcScanner;

/// How a process ended, as `waitpid(2)` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) enum Ended {
    /// It exited with this status.
    Code(i32),
    /// This signal ended it.
    Signal {
        /// The kernel's number.
        number: i32,
        /// Whether it left a core file.
        core: bool,
    },
    /// It was not our child (adopted): nobody told us.
    Unknown,
}

/// Reaps one ended child, `None` when there is none now.
///
/// # Errors
/// Anything but "no children", which is `None`.
pub(crate) fn reap() -> io::Result<Option<(i32, Ended)>> {
    loop {
        return match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => {
                let ended = match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => Ended::Code(code),
                    (_, Some(number)) => Ended::Signal { number, core: status.as_raw() & 0x80 != 0 },
                    // Stopped or continued: not asked for, so not an end.
                    _ => continue,
                };
                Ok(Some((pid.as_raw_nonzero().get(), ended)))
            }
            Ok(None) | Err(rustix::io::Errno::CHILD) => Ok(None),
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => Err(error.into()),
        };
    }
}

/// Makes this process the one to which orphaned descendants go (`prctl(2)`, PR_SET_CHILD_SUBREAPER).
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn become_subreaper() -> io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// Marks every descriptor from 3 on close-on-exec, so that nothing we inherited reaches a worker.
pub(crate) fn close_inherited_on_exec() {
    // SAFETY: only a flag of our own descriptors changes. A kernel without the call (before 5.11) leaves them as they are.
    #[expect(unsafe_code, reason = "close_range(2) has no safe wrapper")]
    let _before_5_11 = unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
}

/// Sends a signal to a child that has not been reaped yet (so its number cannot be another's). A process that is gone is no error.
///
/// # Errors
/// When we may not.
pub(crate) fn signal_child(pid: i32, number: i32) -> io::Result<()> {
    // SAFETY: kill(2) takes two integers.
    #[expect(unsafe_code, reason = "any signal number, real-time ones too")]
    let result = unsafe { libc::kill(pid, number) };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::ESRCH) { Ok(()) } else { Err(error) }
}

/// Starts a command in a session of its own, so that a terminal's signals do not reach it, and with TERM for it when the thread that
/// starts it is gone, however that ended.
pub(crate) fn apart(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: between fork and exec only two system calls are made; nothing is allocated and no lock is taken.
    #[expect(unsafe_code, reason = "no safe way to a session before exec")]
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            Ok(rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?)
        });
    }
}

/// Has a command killed when the thread that starts it is gone, however that ended.
pub(crate) fn ends_with_us(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: between fork and exec only one system call is made; nothing is allocated and no lock is taken.
    #[expect(unsafe_code, reason = "no safe way to a death signal before exec")]
    unsafe {
        command.pre_exec(|| Ok(rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?));
    }
}

/// Hides our memory and descriptors from other processes of our user, and from core dumps (`PR_SET_DUMPABLE`, `proc(5)`).
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn keep_secrets() -> io::Result<()> {
    Ok(rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?)
}

/// Undoes [`keep_secrets`]: who has none is seen like any other process.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn keep_no_secrets() -> io::Result<()> {
    Ok(rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable)?)
}

/// Opens a process by number and start, so that it can be signalled and awaited whatever happens to the number.
///
/// # Errors
/// `NotFound` when it is gone or is another by now; any other: it could not be opened or looked at now (out of descriptors, say).
pub(crate) fn open(id: ProcessId) -> io::Result<OwnedFd> {
    let gone = || io::Error::new(io::ErrorKind::NotFound, "the process is gone");
    let pid = Pid::from_raw(id.pid).ok_or_else(gone)?;
    let fd = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| if error == rustix::io::Errno::SRCH { gone() } else { error.into() })?;
    // Read after the descriptor was opened: from here on the descriptor and what was read are the same process or it is dead.
    if lives(id)? { Ok(fd) } else { Err(gone()) }
}

/// Whether a process, known by number and start, lives.
///
/// # Errors
/// When that cannot be seen now.
pub(crate) fn lives(id: ProcessId) -> io::Result<bool> {
    match stat(id.pid) {
        Ok(seen) => Ok(seen.start_ticks == id.start_ticks && !seen.zombie),
        Err(error) if is_gone(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Sends a signal through a pidfd. A process that is gone is no error.
///
/// # Errors
/// When we may not.
pub(crate) fn signal_open(process: BorrowedFd<'_>, number: i32) -> io::Result<()> {
    // SAFETY: the number comes from our own protocol, where it is a valid one; an invalid one gives EINVAL.
    #[expect(unsafe_code, reason = "any signal number, real-time ones too")]
    let signal = unsafe { rustix::process::Signal::from_raw_unchecked(number) };
    match pidfd_send_signal(process, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Returns the real, effective, saved and file system user of a process (`proc_pid_status(5)`).
///
/// # Errors
/// When the process is gone, or `/proc` may not be read.
pub(crate) fn users(pid: i32) -> io::Result<[u32; 4]> {
    fault::proc("status")?;
    let mut buffer = [0_u8; 4096];
    let read = read_file(&format!("/proc/{pid}/status"), &mut buffer)?;
    let unknown = || io::Error::new(io::ErrorKind::InvalidData, "an unknown form of /proc/PID/status");
    let line = buffer[..read].split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Uid:")).ok_or_else(unknown)?;
    let numbers = std::str::from_utf8(line).map_err(|_| unknown())?.split_ascii_whitespace().map(str::parse);
    numbers.collect::<Result<Vec<u32>, _>>().ok().and_then(|numbers| numbers.try_into().ok()).ok_or_else(unknown)
}

/// Returns what a process is called (`comm`, `proc(5)`): 15 bytes at most.
///
/// # Errors
/// When the process is gone, or `/proc` may not be read.
pub(crate) fn name(pid: i32) -> io::Result<Vec<u8>> {
    let mut buffer = [0_u8; 64];
    let read = read_file(&format!("/proc/{pid}/comm"), &mut buffer)?;
    Ok(buffer[..read].strip_suffix(b"\n").unwrap_or(&buffer[..read]).to_vec())
}

/// Whether a process runs the program that we run, or another version of it: a file of that name and of that owner, which nobody else can
/// write (the file itself is looked at, also when it has no name any more). False when that cannot be seen.
pub(crate) fn runs_our_program(pid: i32) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let look = |whose: &str| -> Option<(Vec<u8>, u32, u32)> {
        let link = format!("/proc/{whose}/exe");
        let path = fs_err::read_link(&link).ok()?;
        let name = path.file_name()?.as_bytes();
        let found = rustix::fs::stat(link.as_str()).ok()?;
        Some((name.strip_suffix(b" (deleted)").unwrap_or(name).to_vec(), found.st_uid, found.st_mode & 0o022))
    };
    look("self").is_some_and(|ours| look(&pid.to_string()) == Some(ours))
}

/// What one line of `/proc/PID/stat` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    /// The parent.
    pub(crate) ppid: i32,
    /// The session.
    pub(crate) session: i32,
    /// When it started, in clock ticks after boot.
    pub(crate) start_ticks: u64,
    /// Its resident pages.
    pub(crate) rss_pages: u64,
    /// Whether it has ended and waits to be reaped: all of it, not only its first thread.
    pub(crate) zombie: bool,
}

impl Stat {
    /// Which process this is, if it was read from there.
    #[must_use]
    pub(crate) const fn id(&self, pid: i32) -> ProcessId {
        ProcessId { pid, start_ticks: self.start_ticks }
    }
}

/// Reads `/proc/PID/stat`.
///
/// # Errors
/// When the process is gone, or `/proc` may not be read.
pub(crate) fn stat(pid: i32) -> io::Result<Stat> {
    fault::proc("stat")?;
    let mut buffer = [0_u8; 1024];
    let read = read_file(&format!("/proc/{pid}/stat"), &mut buffer)?;
    parse_stat(&buffer[..read]).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "an unknown form of /proc/PID/stat"))
}

/// Parses `pid (name) state ppid pgrp session ... starttime(22) vsize rss(24) ...`; the name may hold anything, so what follows the *last*
/// parenthesis counts (`proc_pid_stat(5)`).
pub(super) fn parse_stat(line: &[u8]) -> Option<Stat> {
    parse_line(line).map(|(stat, _)| stat)
}

/// As [`parse_stat`], and whether its first thread has ended while others live on.
///
/// The state is the first thread's. The kernel counts the threads that are not reaped yet (num_threads, field 20): the first one always,
/// as it is reaped with the process; the others no longer than they live. So one thread in state Z is a process that has ended.
pub(super) fn parse_line(line: &[u8]) -> Option<(Stat, bool)> {
    let after = memchr::memrchr(b')', line)?;
    let text = std::str::from_utf8(line.get(after + 1..)?).ok()?;
    let mut fields = text.split_ascii_whitespace();
    let state = fields.next()?;
    let ppid = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    // state is field 3; session was field 6; num_threads is field 20, starttime 22.
    let threads: i64 = fields.nth(13)?.parse().ok()?;
    let start_ticks = fields.nth(1)?.parse().ok()?;
    // rss is field 24; the kernel writes it as a signed number.
    let rss_pages = u64::try_from(fields.nth(1)?.parse::<i64>().ok()?.max(0)).ok()?;
    let (ended, headless) = (matches!(state, "Z" | "X"), threads > 1);
    Some((Stat { ppid, session, start_ticks, rss_pages, zombie: ended && !headless }, ended && headless))
}

/// Returns the threads of a process besides its first.
///
/// # Errors
/// When it is gone, or may not be looked into.
pub(crate) fn other_threads(pid: i32) -> io::Result<Vec<i32>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let tasks = rustix::fs::open(format!("/proc/{pid}/task"), flags, Mode::empty())?;
    let mut threads = Vec::new();
    for entry in rustix::fs::Dir::read_from(&tasks)? {
        let tid = entry?.file_name().to_str().ok().and_then(|name| name.parse::<i32>().ok());
        threads.extend(tid.filter(|tid| *tid != pid));
    }
    Ok(threads)
}

/// Reads a whole file below `/proc/PID`. A process whose first thread has ended has nothing there any more, so one that is empty or gone is
/// read through its other threads.
fn read_of(pid: i32, name: &str) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let read = |path: String| -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        std::fs::File::from(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let first = read(format!("/proc/{pid}/{name}"));
    match &first {
        Ok(bytes) if !bytes.is_empty() => return first,
        Err(error) if !is_gone(error) => return first,
        _ => {}
    }
    for thread in other_threads(pid).unwrap_or_default() {
        match read(format!("/proc/{pid}/task/{thread}/{name}")) {
            Ok(bytes) if !bytes.is_empty() => return Ok(bytes),
            _ => {}
        }
    }
    first
}

/// Whether a read of `/proc` failed because there is no such process any more.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// Reads up to a buffer of a file in one go.
fn read_file(path: &str, buffer: &mut [u8]) -> io::Result<usize> {
    let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut filled = 0;
    while filled < buffer.len() {
        match rustix::io::read(&fd, &mut buffer[filled..])? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

/// Returns the children that this process inherited as subreaper, those that ended and were not reaped too: the kernel gives them to its
/// first thread (`find_new_reaper` in kernel/exit.c). What another thread has started is not among them: see [`crate::keeper::run`].
///
/// # Errors
/// When the kernel has no `/proc/PID/task/TID/children` (CONFIG_PROC_CHILDREN); then [`everyone`] tells it.
pub(crate) fn inherited() -> io::Result<Vec<i32>> {
    fault::proc("children")?;
    let me = std::process::id();
    let text = fs_err::read(format!("/proc/{me}/task/{me}/children"))?;
    Ok(text.split(u8::is_ascii_whitespace).filter_map(|word| std::str::from_utf8(word).ok()?.parse().ok()).collect())
}

/// Returns every process that can be read, in one pass over `/proc`.
///
/// # Errors
/// When `/proc` itself cannot be read.
pub(crate) fn everyone() -> io::Result<Vec<(i32, Stat)>> {
    Ok(ProcScanner::new()?.scan()?.into_procs())
}

/// What a process's environment says of a variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Variable {
    /// This.
    Is(String),
    /// Nothing, for certain: it has no such variable, it has ended, or it may not be looked into, which will not change.
    None,
    /// It could not be read now: it is executing a program, or we are out of something. It is worth another look.
    Unknown,
}

/// Looks for a variable in a process's environment as it was at its start.
pub(crate) fn look_for(pid: i32, name: &str) -> Variable {
    let found = |block: &[u8]| {
        let value = block.split(|&byte| byte == 0).find_map(|entry| {
            let value = entry.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            String::from_utf8(value.to_vec()).ok()
        });
        value.map_or(Variable::None, Variable::Is)
    };
    let read = || {
        fault::proc("environ")?;
        read_of(pid, "environ")
    };
    for _ in 0..2 {
        match read() {
            Ok(block) if !block.is_empty() => return found(&block),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Variable::None,
            Err(error) if !is_gone(&error) => return Variable::Unknown,
            Ok(_) | Err(_) => {}
        }
        match has_environment(pid) {
            // It has executed its program since; or it was started with nothing, as `env -i` does.
            Ok(Some(true)) => {}
            Ok(Some(false)) => return Variable::Unknown,
            Ok(None) => return Variable::None,
            Err(error) if is_gone(&error) => return Variable::None,
            Err(_) => return Variable::Unknown,
        }
    }
    Variable::None
}

/// Whether the kernel knows where a process's environment is, which it does not while the process executes a program and when its first
/// thread has ended; `None`: it never will, as it is a kernel thread or has ended (`proc_pid_stat(5)`).
fn has_environment(pid: i32) -> io::Result<Option<bool>> {
    const PF_KTHREAD: u64 = 0x0020_0000;
    fault::proc("stat")?;
    let mut buffer = [0_u8; 1024];
    let read = read_file(&format!("/proc/{pid}/stat"), &mut buffer)?;
    let unknown = || io::Error::new(io::ErrorKind::InvalidData, "an unknown form of /proc/PID/stat");
    let (stat, _) = parse_line(&buffer[..read]).ok_or_else(unknown)?;
    let after = memchr::memrchr(b')', &buffer[..read]).map_or(0, |at| at + 1);
    let fields: Vec<&str> = std::str::from_utf8(&buffer[after..read]).map_err(|_| unknown())?.split_ascii_whitespace().collect();
    // The first of them is field 3; flags are field 9, env_end is field 51.
    let field = |number: usize| fields.get(number - 3).and_then(|text| text.parse::<u64>().ok()).ok_or_else(unknown);
    if stat.zombie || field(9)? & PF_KTHREAD != 0 { Ok(None) } else { Ok(Some(field(51)? != 0)) }
}

/// Returns the value of a variable in a process's environment as it was at its start; `None` when it has none, or cannot be read.
pub(crate) fn variable(pid: i32, name: &str) -> Option<String> {
    match look_for(pid, name) {
        Variable::Is(value) => Some(value),
        Variable::None | Variable::Unknown => None,
    }
}

/// Returns a process's title: its argument bytes without the NULs at the end.
///
/// # Errors
/// When it is gone or may not be read.
pub(crate) fn title(pid: i32) -> io::Result<Vec<u8>> {
    fault::proc("cmdline")?;
    let mut bytes = read_of(pid, "cmdline")?;
    bytes.truncate(bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1));
    Ok(bytes)
}

/// Makes a pipe for a worker's output: the end that we read, non-blocking, and the end that the worker gets.
///
/// The worker's end is opened for reading too, so that the worker is itself a reader: when everyone else is gone it waits when the pipe
/// is full instead of being killed by SIGPIPE, and a later process can go on reading through `/proc/PID/fd/1`.
///
/// # Errors
/// When the process is out of descriptors, or `/proc` is not there.
pub(crate) fn output_pipe(size_bytes: usize) -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&read, true)?;
    if size_bytes != DEFAULT_PIPE_BYTES {
        // More than fs.pipe-user-pages-soft allows is refused (pipe(7)); the pipe then keeps the size it has.
        let _kept_size = rustix::pipe::fcntl_setpipe_size(&read, size_bytes);
    }
    let both = rustix::fs::open(descriptor_path(write.as_fd()), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    Ok((read, both))
}

/// What a pipe holds unless told otherwise (`pipe(7)`).
const DEFAULT_PIPE_BYTES: usize = 64 << 10;

/// Opens the pipe behind a descriptor of a running process for reading, `None` when it is no pipe.
///
/// # Errors
/// When the process is gone or may not be looked into.
pub(crate) fn reopen_output(pid: i32, fd: i32) -> io::Result<Option<OwnedFd>> {
    fault::proc("fd")?;
    let mut path = format!("/proc/{pid}/fd/{fd}");
    let mut target = rustix::fs::readlink(&path, Vec::new());
    if target == Err(rustix::io::Errno::NOENT) {
        // Closed; or the process's first thread has ended, and the others have its descriptors.
        for thread in other_threads(pid)? {
            path = format!("/proc/{pid}/task/{thread}/fd/{fd}");
            target = rustix::fs::readlink(&path, Vec::new());
            if target.is_ok() {
                break;
            }
        }
    }
    let target = target?;
    if !target.to_bytes().starts_with(b"pipe:") {
        return Ok(None);
    }
    let opened = rustix::fs::open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
    // Its owner may have put another file in its place since: one that we may read and it may not.
    Ok(is_pipe(&opened)?.then_some(opened))
}

/// Whether a descriptor leads to a pipe that has no name in any folder.
fn is_pipe(fd: &OwnedFd) -> io::Result<bool> {
    /// PIPEFS_MAGIC (`statfs(2)`).
    const PIPEFS: u64 = 0x5049_5045;
    let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode);
    Ok(kind == rustix::fs::FileType::Fifo && rustix::fs::fstatfs(fd)?.f_type as u64 == PIPEFS)
}

fn descriptor_path(fd: BorrowedFd<'_>) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::super::headless;
    use super::*;

    #[test]
    fn a_stat_line_is_read_whatever_the_name_is() {
        for name in ["sh", "a b", "a) S 1 2 3 (b", "x)\n) R 9", ")", "", "(((", "1 2 3"] {
            let rest =
                |threads| format!("12 4710 4711 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 {threads} 0 987654 1000 200 18446744073709551615\n");
            let expected = |zombie| Some(Stat { ppid: 12, session: 4711, start_ticks: 987_654, rss_pages: 200, zombie });
            // No thread: it was reaped while it was read.
            for (state, threads, zombie) in [('S', 1, false), ('Z', 1, true), ('S', 2, false), ('Z', 2, false), ('X', 0, true)] {
                let line = format!("4711 ({name}) {state} {}", rest(threads));
                assert_eq!(parse_stat(line.as_bytes()), expected(zombie), "{name:?} {state} {threads}");
            }
        }
        for wrong in ["", "1", "1 (x", "1 (x)", "1 (x) S", "1 (x) S 1 1 1 0", "1 (x) S x 40 39 0 -1 4 1 2 3 4 5 6 7 8 20 0 1 0 1 9 2 1"] {
            assert_eq!(parse_stat(wrong.as_bytes()), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_process_whose_first_thread_has_ended_lives_and_is_read_through_another() {
        let (read, write) = output_pipe(DEFAULT_PIPE_BYTES).expect("a pipe");
        let process = headless::start(headless::command().env("OF_IT", "its own").stdout(write));
        let (pid, seen) = (process.pid(), stat(process.pid()).expect("there"));
        assert!(!seen.zombie, "{seen:?}");
        assert_eq!(variable(pid, "OF_IT").as_deref(), Some("its own"));
        assert!(title(pid).expect("a title").ends_with(headless::NAME.as_bytes()));
        assert!(reopen_output(pid, 1).expect("looked into").is_some());
        let scanned = everyone().expect("/proc").into_iter().find(|(other, _)| *other == pid).expect("found").1;
        assert!(scanned.rss_pages > 0, "{scanned:?}");
        assert!(ProcScanner::new().expect("/proc").pss(pid).expect("ours").expect("there").0 > 0);
        let opened = open(seen.id(pid)).expect("it lives");
        signal_open(opened.as_fd(), libc::SIGKILL).expect("ours");
        drop((process, read));
        assert_eq!(open(seen.id(pid)).expect_err("reaped").kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_an_environment_says_is_told_from_what_could_not_be_read() {
        let sleep = |command: &mut std::process::Command| command.arg("1000").spawn().expect("sleep");
        let mut children =
            [sleep(std::process::Command::new("sleep").env("A", "1")), sleep(std::process::Command::new("sleep").env_clear())];
        let pids = children.each_ref().map(|child| i32::try_from(child.id()).expect("a pid"));
        // Until it executes it has ours, and none while it does so.
        let settled = |pid: i32| loop {
            match look_for(pid, "PATH") {
                Variable::Unknown => std::thread::yield_now(),
                _ if title(pid).is_ok_and(|title| title == b"sleep\x001000") => return look_for(pid, "A"),
                _ => std::thread::yield_now(),
            }
        };
        let seen = pids.map(settled);
        fault::set_proc(Some("environ"));
        let unreadable = look_for(pids[0], "A");
        fault::set_proc(Some("stat"));
        let no_stat = look_for(pids[1], "A");
        fault::set_proc(None);
        children.iter_mut().for_each(|child| child.kill().expect("ours"));
        // It has ended, or is just about to.
        let zombie = loop {
            match stat(pids[0]).expect("not reaped").zombie {
                true => break look_for(pids[0], "A"),
                false => std::thread::yield_now(),
            }
        };
        for child in &mut children {
            child.wait().expect("its end");
        }
        assert_eq!(seen, [Variable::Is("1".into()), Variable::None]);
        assert_eq!([unreadable, no_stat], [Variable::Unknown, Variable::Unknown]);
        assert_eq!([zombie, look_for(pids[0], "A")], [Variable::None, Variable::None]);
        // kthreadd, where it is not hidden by a container.
        if stat(2).is_ok_and(|stat| stat.ppid == 0) {
            assert_eq!(look_for(2, "A"), Variable::None);
        }
    }

    #[test]
    fn nothing_but_a_pipe_is_read_as_output() {
        let (read, _write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe");
        assert!(is_pipe(&read).expect("looked at"));
        let dir = tempfile::tempdir().expect("a folder");
        rustix::fs::mknodat(rustix::fs::CWD, dir.path().join("fifo"), rustix::fs::FileType::Fifo, Mode::RUSR, 0).expect("made");
        fs_err::write(dir.path().join("file"), "").expect("written");
        for name in ["fifo", "file", ""] {
            let fd = rustix::fs::open(dir.path().join(name), OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty());
            assert!(!is_pipe(&fd.expect("open")).expect("looked at"), "{name}");
        }
    }

    #[test]
    fn this_process_is_found() {
        let me = i32::try_from(std::process::id()).expect("a pid fits");
        let seen = stat(me).expect("our own stat");
        assert!(everyone().expect("/proc").iter().any(|(pid, stat)| *pid == me && stat.start_ticks == seen.start_ticks));
        assert!(open(ProcessId { pid: me, start_ticks: seen.start_ticks }).is_ok());
        let other = open(ProcessId { pid: me, start_ticks: seen.start_ticks + 1 }).expect_err("another process of that number");
        assert_eq!(other.kind(), io::ErrorKind::NotFound);
    }
}
