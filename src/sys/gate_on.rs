//! The gate of a debug build.
//!
//! `SELFSTART_GATE` names a folder, which keeper, agent and helpers share:
//!
//! - `order`: `NUMBER WHAT`: at that point (they count from 1 over all processes) do this: `kill` (this process, by KILL; a write is half
//!   done by then), `node` (keeper, agent and helpers, all at once), `enospc` (this point and the next few that take room), `eio`.
//!   Missing, or 0: only write down.
//! - `log`: a line of JSON for each point, before it is done. A lock on this file makes number, line and deed one.
//! - `pids`: who has come by; what `node` kills.
//!
//! It is the test's own machinery, so that what goes wrong with it panics.
#![expect(clippy::panic, reason = "a test's")]

use std::ffi::CStr;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;

use super::Op;

const VARIABLE: &str = "SELFSTART_GATE";

/// So many points that take room fail once the disk is full.
const FULL_FOR: u64 = 6;

/// What a helper, whose environment is made from nothing, must have to be counted too.
pub(crate) fn handed_on() -> Option<(String, String)> {
    Some((VARIABLE.to_owned(), std::env::var(VARIABLE).ok()?))
}

struct Gate {
    folder: PathBuf,
    who: String,
}

fn gate() -> Option<&'static Gate> {
    static GATE: OnceLock<Option<Gate>> = OnceLock::new();
    GATE.get_or_init(|| {
        let folder = PathBuf::from(std::env::var_os(VARIABLE)?);
        let who = std::env::args().find_map(|word| word.strip_prefix("internal-").map(str::to_owned));
        let gate = Gate { folder, who: who.unwrap_or_else(|| "keeper".to_owned()) };
        let mut pids = gate.file("pids");
        pids.seek(SeekFrom::End(0)).and_then(|_| writeln!(pids, "{}", std::process::id())).unwrap_or_else(|error| panic!("pids: {error}"));
        Some(gate)
    })
    .as_ref()
}

pub(super) fn point(op: &Op<'_>) -> Result<(), Errno> {
    gate().map_or(Ok(()), |gate| gate.pass(op))
}

impl Gate {
    #[expect(clippy::disallowed_methods, reason = "the points' own files")]
    fn file(&self, name: &str) -> File {
        let path = self.folder.join(name);
        let opened = File::options().read(true).append(true).create(true).open(&path);
        opened.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    fn pass(&self, op: &Op<'_>) -> Result<(), Errno> {
        let mut log = self.file("log");
        rustix::fs::flock(&log, FlockOperation::LockExclusive).unwrap_or_else(|error| panic!("the gate's log: {error}"));
        let mut count = self.file("count");
        let mut last = String::new();
        count.read_to_string(&mut last).unwrap_or_else(|error| panic!("the count: {error}"));
        let number = last.lines().last().and_then(|line| line.parse::<u64>().ok()).unwrap_or(0) + 1;
        writeln!(count, "{number}").unwrap_or_else(|error| panic!("the count: {error}"));
        let mut line = format!("{{\"n\":{number},\"pid\":{},\"who\":\"{}\",", std::process::id(), self.who);
        describe(op, &mut line);
        line.push_str("}\n");
        log.write_all(line.as_bytes()).unwrap_or_else(|error| panic!("the log: {error}"));
        let order = fs_err::read_to_string(self.folder.join("order")).unwrap_or_default();
        let (at, what) = order.trim().split_once(' ').unwrap_or(("0", ""));
        let at: u64 = at.parse().unwrap_or(0);
        match what {
            _ if at == 0 || number < at => Ok(()),
            "enospc" if number < at + FULL_FOR && takes_room(op) => {
                half(op);
                Err(Errno::NOSPC)
            }
            "eio" if number == at => Err(Errno::IO),
            "kill" if number == at => {
                half(op);
                end(std::process::id());
                Err(Errno::IO)
            }
            "node" if number == at => {
                half(op);
                self.end_all();
                Err(Errno::IO)
            }
            _ => Ok(()),
        }
    }

    /// Ends all that have come by, ourselves last; first they are stopped, so that none sees another go.
    fn end_all(&self) {
        let text = fs_err::read_to_string(self.folder.join("pids")).unwrap_or_default();
        let us = std::process::id();
        let others: Vec<u32> = text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid != us && ours(*pid)).collect();
        for signal in [rustix::process::Signal::STOP, rustix::process::Signal::KILL] {
            for pid in others.iter().filter_map(|pid| rustix::process::Pid::from_raw(pid.cast_signed())) {
                let _gone_already = rustix::process::kill_process(pid, signal);
            }
        }
        end(us);
    }
}

/// Whether this is still one of us: its number may be another's by now.
fn ours(pid: u32) -> bool {
    fs_err::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|all| all.split(|byte| *byte == 0).any(|one| one.starts_with(VARIABLE.as_bytes())))
}

fn end(pid: u32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid.cast_signed()) {
        let _ends = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

fn takes_room(op: &Op<'_>) -> bool {
    matches!(op, Op::Create(..) | Op::Write(..) | Op::Link(..) | Op::Mkdir(..) | Op::Rename(..) | Op::Sync(_) | Op::SyncAll(_))
}

/// A write that is cut short has written something.
#[expect(clippy::disallowed_methods, reason = "in the place of the write")]
fn half(op: &Op<'_>) {
    if let Op::Write(file, bytes) = op {
        let _as_far_as_it_goes = rustix::io::write(file, &bytes[..bytes.len() / 2]);
    }
}

fn describe(op: &Op<'_>, line: &mut String) {
    let mut put = |kind: &str, path: String, rest: String| {
        let _to_a_string = write!(line, "\"kind\":\"{kind}\",\"path\":{}{rest}", quoted(&path));
    };
    let at = |dir: BorrowedFd<'_>, name: &CStr| -> String {
        let name = name.to_string_lossy();
        if name.starts_with('/') || dir.as_raw_fd() == rustix::fs::CWD.as_raw_fd() {
            name.into_owned()
        } else {
            format!("{}/{name}", path_of(dir))
        }
    };
    match *op {
        Op::Create(dir, name, flags, mode) => {
            let rest = format!(",\"truncates\":{},\"mode\":{}", flags.contains(OFlags::TRUNC), mode.as_raw_mode());
            put("create", at(dir, name), rest);
        }
        Op::Write(file, bytes) => {
            let append = rustix::fs::fcntl_getfl(file).is_ok_and(|flags| flags.contains(OFlags::APPEND));
            let position = if append { None } else { rustix::fs::tell(file).ok() };
            let offset = position.unwrap_or_else(|| rustix::fs::fstat(file).map_or(0, |stat| stat.st_size.cast_unsigned()));
            let hex = bytes.iter().fold(String::new(), |mut hex, byte| {
                let _to_a_string = write!(hex, "{byte:02x}");
                hex
            });
            put("write", path_of(file), format!(",\"offset\":{offset},\"bytes\":\"{hex}\""));
        }
        Op::Truncate(file, len) => put("truncate", path_of(file), format!(",\"len\":{len}")),
        Op::Sync(file) => put("sync", path_of(file), String::new()),
        Op::SyncAll(file) => put("syncfs", path_of(file), String::new()),
        Op::Rename(from_dir, from, to_dir, to) => put("rename", at(from_dir, from), format!(",\"to\":{}", quoted(&at(to_dir, to)))),
        Op::Link(target, dir, name) => put("link", at(dir, name), format!(",\"to\":{}", quoted(&target.to_string_lossy()))),
        Op::Unlink(dir, name) => put("unlink", at(dir, name), String::new()),
        Op::Mkdir(dir, name, mode) => put("mkdir", at(dir, name), format!(",\"mode\":{}", mode.as_raw_mode())),
        Op::Spawn(program) => put("spawn", program.to_string_lossy().into_owned(), String::new()),
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn path_of(file: impl AsFd) -> String {
    let path = fs_err::read_link(Path::new("/proc/self/fd").join(file.as_fd().as_raw_fd().to_string()));
    path.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default()
}
