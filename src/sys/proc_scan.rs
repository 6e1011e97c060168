//! One pass over all processes, and the memory of whole trees.
//!
//! For: reading. Not for: deciding what a figure means, or sending signals (a pid from here may be somebody else's by then: use a
//! pidfd and look again). Nothing here takes a failed read for zero: what is not known is `None` or an error.
//!
//! Sources: `proc_pid_stat(5)`, `proc_pid_smaps(5)` (smaps_rollup), `proc(5)` (hidepid: who is hidden from us is in no tree).

use std::collections::{BTreeSet, HashMap};
use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, RawDir, SeekFrom};
use rustix::io::Errno;
use selfstart_core::id::ProcessId;
use selfstart_core::time::MonoTime;
use selfstart_core::units::Bytes;

use super::fault;
use super::process::{Stat, other_threads, parse_line, parse_stat};

/// All processes at about one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    /// By pid, ascending.
    procs: Vec<(i32, Stat)>,
}

impl Snapshot {
    /// All of them, by pid.
    #[must_use]
    pub(crate) fn procs(&self) -> &[(i32, Stat)] {
        &self.procs
    }

    /// As a list of its own.
    #[must_use]
    pub(crate) fn into_procs(self) -> Vec<(i32, Stat)> {
        self.procs
    }

    /// The process with this number.
    #[must_use]
    pub(crate) fn by_pid(&self, pid: i32) -> Option<&Stat> {
        self.procs.binary_search_by_key(&pid, |(pid, _)| *pid).ok().map(|index| &self.procs[index].1)
    }

    /// This very process, not a later one with its number.
    #[must_use]
    pub(crate) fn get(&self, id: ProcessId) -> Option<&Stat> {
        self.by_pid(id.pid).filter(|stat| stat.start_ticks == id.start_ticks)
    }

    /// Says for each process which of the trees it belongs to.
    #[must_use]
    pub(crate) fn owners(&self, trees: &[Tree]) -> Vec<Option<usize>> {
        #[derive(Clone, Copy, PartialEq)]
        enum Owner {
            Unknown,
            Nobody,
            Tree(usize),
        }
        let mut roots: HashMap<ProcessId, usize> = HashMap::new();
        let mut sessions: HashMap<i32, usize> = HashMap::new();
        for (index, tree) in trees.iter().enumerate() {
            roots.insert(tree.main, index);
            roots.extend(tree.also.iter().map(|id| (*id, index)));
            // A session's number is not given to a new process while anybody is in it; but once it is empty it may be.
            if self.by_pid(tree.main.pid).is_none_or(|stat| stat.start_ticks == tree.main.start_ticks) {
                sessions.insert(tree.main.pid, index);
            }
        }
        let mut owners: Vec<Owner> = self
            .procs
            .iter()
            .map(|(pid, stat)| match roots.get(&stat.id(*pid)).or_else(|| sessions.get(&stat.session)) {
                Some(tree) => Owner::Tree(*tree),
                None => Owner::Unknown,
            })
            .collect();
        let mut path = Vec::new();
        for start in 0..self.procs.len() {
            let mut at = start;
            let owner = loop {
                if owners[at] != Owner::Unknown {
                    break owners[at];
                }
                // Set before going up: numbers may have been reused while we read, and make a circle.
                owners[at] = Owner::Nobody;
                path.push(at);
                match self.procs.binary_search_by_key(&self.procs[at].1.ppid, |(pid, _)| *pid) {
                    Ok(parent) => at = parent,
                    Err(_) => break Owner::Nobody,
                }
            };
            for passed in path.drain(..) {
                owners[passed] = owner;
            }
        }
        owners.into_iter().map(|owner| if let Owner::Tree(tree) = owner { Some(tree) } else { None }).collect()
    }
}

/// A worker's processes: its main process, all who are in its session, all their descendants, and what else is known to be its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tree {
    /// The main process; it leads its session.
    pub main: ProcessId,
    /// Processes that left the tree (new session, adopted by the keeper) and are still the worker's; their descendants are as well.
    pub also: Vec<ProcessId>,
    /// The lowest limit that the sum is compared with: PSS is read only when RSS comes near it. `None`: RSS will do.
    pub limit: Option<Bytes>,
}

/// Reads /proc.
#[derive(Debug)]
pub(crate) struct ProcScanner {
    proc_dir: OwnedFd,
    /// For entries of the directory, 32 KiB: some thousand of them at a time.
    entries: Vec<u8>,
    /// For one file.
    text: Vec<u8>,
    page_size: u64,
    ticks_per_second: u64,
}

impl ProcScanner {
    /// Opens /proc.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            proc_dir: rustix::fs::open("/proc", flags, Mode::empty())?,
            entries: Vec::with_capacity(32 * 1024),
            text: Vec::with_capacity(4096),
            page_size: rustix::param::page_size() as u64,
            ticks_per_second: rustix::param::clock_ticks_per_second().max(1),
        })
    }

    /// Reads all processes, one after the other: a process that ends or begins meanwhile is in it or is not.
    ///
    /// # Errors
    /// If /proc cannot be listed, or a process in it not be read although it is not hidden from us.
    pub(crate) fn scan(&mut self) -> io::Result<Snapshot> {
        fault::proc("")?;
        let mut snapshot = Snapshot::default();
        rustix::fs::seek(&self.proc_dir, SeekFrom::Start(0))?;
        let Self { proc_dir, entries, text, .. } = self;
        let mut dir = RawDir::new(&*proc_dir, entries.spare_capacity_mut());
        while let Some(entry) = dir.next() {
            let entry = entry?;
            let Some(pid) = number(entry.file_name().to_bytes()).and_then(|pid| i32::try_from(pid).ok()) else { continue };
            let there = match read_into(proc_dir, pid, "stat", 4096, text) {
                Ok(there) => there,
                // Hidden from us (hidepid).
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => false,
                // Out of descriptors or memory: it may be there, so nothing can be said of any tree.
                Err(error) => return Err(error),
            };
            if there && let Some((mut stat, headless)) = parse_line(text) {
                if headless {
                    // Its first thread has given up its memory, the others have not.
                    for thread in other_threads(pid).unwrap_or_default() {
                        if read_into(proc_dir, pid, &format!("task/{thread}/stat"), 4096, text).is_ok_and(|there| there) {
                            stat.rss_pages = stat.rss_pages.max(parse_stat(text).map_or(0, |of_thread| of_thread.rss_pages));
                        }
                    }
                }
                snapshot.procs.push((pid, stat));
            }
        }
        // The kernel lists them in this order; nothing promises it.
        if !snapshot.procs.is_sorted_by_key(|(pid, _)| *pid) {
            snapshot.procs.sort_by_key(|(pid, _)| *pid);
        }
        Ok(snapshot)
    }

    /// The proportional set of one process; `None` if it is gone.
    ///
    /// # Errors
    /// If it is there and may not be read (another user's, without CAP_SYS_PTRACE).
    pub(crate) fn pss(&mut self, pid: i32) -> io::Result<Option<Bytes>> {
        let mut read = read_into(&self.proc_dir, pid, "smaps_rollup", 4096, &mut self.text);
        if read.as_ref().is_ok_and(|there| !there || self.text.is_empty()) {
            // It is gone, or only its first thread is.
            for thread in other_threads(pid).unwrap_or_default() {
                read = read_into(&self.proc_dir, pid, &format!("task/{thread}/smaps_rollup"), 4096, &mut self.text);
                if read.as_ref().is_ok_and(|there| *there) {
                    break;
                }
            }
        }
        match read {
            Ok(false) => Ok(None),
            Ok(true) => parse_pss(&self.text).map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into()),
            Err(error) => Err(error),
        }
    }

    /// The memory of many trees, from one snapshot, in the order of `trees`. `None`: not known, as the main process is not in the
    /// snapshot (ended, or hidden from us), or something in the tree could not be read.
    pub(crate) fn memory(&mut self, snapshot: &Snapshot, trees: &[Tree]) -> Vec<Option<Bytes>> {
        let mut members: Vec<Vec<(i32, &Stat)>> = vec![Vec::new(); trees.len()];
        for ((pid, stat), owner) in snapshot.procs.iter().zip(snapshot.owners(trees)) {
            if let Some(tree) = owner {
                members[tree].push((*pid, stat));
            }
        }
        trees.iter().zip(members).map(|(tree, members)| self.tree_memory(snapshot, tree, &members)).collect()
    }

    /// Whether what we may see of these trees is enough, where we may not look into their processes: nobody can be theirs whom only an
    /// environment shows to be (`everybody`: the main processes of all workers), and none is near its limit, where pages that several have must be divided among them.
    pub(crate) fn sees(&self, snapshot: &Snapshot, trees: &[Tree], everybody: &BTreeSet<i32>) -> bool {
        let (me, keeper) =
            (i32::try_from(std::process::id()).unwrap_or(0), rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get()));
        let owners = snapshot.owners(trees);
        let left = snapshot.procs.iter().zip(&owners).any(|((pid, stat), owner)| {
            let of_others = everybody.contains(pid) || everybody.contains(&stat.session);
            owner.is_none() && Some(stat.ppid) == keeper && *pid != me && !of_others && !stat.zombie
        });
        let mut pages = vec![0_u64; trees.len()];
        for ((_, stat), owner) in snapshot.procs.iter().zip(&owners) {
            if let Some(tree) = *owner {
                pages[tree] = pages[tree].saturating_add(stat.rss_pages);
            }
        }
        let near =
            |(tree, pages): (&Tree, u64)| tree.limit.is_some_and(|limit| pages.saturating_mul(self.page_size) > limit.0 - limit.0 / 16);
        !left && !trees.iter().zip(pages).any(near)
    }

    /// The sum of resident sets, which counts a shared page for each who has it, and is cheap; near the limit the sum of proportional
    /// sets, which divides it between them. Where another user's processes do not let that be read, the first, never below the second.
    fn tree_memory(&mut self, snapshot: &Snapshot, tree: &Tree, members: &[(i32, &Stat)]) -> Option<Bytes> {
        snapshot.get(tree.main).filter(|main| !main.zombie)?;
        let pages = members.iter().fold(0_u64, |sum, (_, stat)| sum.saturating_add(stat.rss_pages));
        let rss = Bytes(pages.saturating_mul(self.page_size));
        // A sixteenth below: RSS in stat lags behind.
        if tree.limit.is_some_and(|limit| rss.0 > limit.0 - limit.0 / 16) {
            match self.sum_of_pss(tree.main.pid, members) {
                Ok(bytes) => return Some(bytes),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                Err(_) => return None,
            }
        }
        Some(rss)
    }

    fn sum_of_pss(&mut self, main: i32, members: &[(i32, &Stat)]) -> io::Result<Bytes> {
        let mut sum = 0_u64;
        for (pid, _) in members.iter().filter(|(_, stat)| stat.rss_pages > 0) {
            match self.pss(*pid)? {
                Some(pss) => sum = sum.saturating_add(pss.0),
                None if *pid == main => return Err(Errno::SRCH.into()),
                // What ended since the snapshot has no memory any more.
                None => {}
            }
        }
        Ok(Bytes(sum))
    }

    /// When a process began, on the clock that waits are measured with. Ticks are counted from boot, also while the machine slept.
    #[must_use]
    pub(crate) fn started_at(&self, start_ticks: u64) -> MonoTime {
        let (secs, rest) = (start_ticks / self.ticks_per_second, start_ticks % self.ticks_per_second);
        MonoTime::from_boot(Duration::from_secs(secs) + Duration::from_nanos(rest * 1_000_000_000 / self.ticks_per_second))
    }
}

/// Reads `/proc/PID/NAME` as far as `max`; false if there is no such process.
fn read_into(proc_dir: &OwnedFd, pid: i32, name: &str, max: usize, text: &mut Vec<u8>) -> io::Result<bool> {
    text.clear();
    fault::proc(name)?;
    let mut path = [0_u8; 40];
    let file = match rustix::fs::openat(proc_dir, path_of(&mut path, pid, name)?, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::SRCH) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    while text.len() < max {
        text.reserve(4096.min(max - text.len()));
        let room = text.capacity().min(max) - text.len();
        match rustix::io::read(&file, rustix::buffer::spare_capacity(text)) {
            Ok(0) => break,
            // A short answer is the whole file for those that are made in one piece (stat); asking once more is a tenth of the cost.
            Ok(n) if n < room && name == "stat" => break,
            Ok(_) => {}
            Err(Errno::INTR) => {}
            // It ended between the open and the read.
            Err(Errno::SRCH | Errno::NOENT) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

/// `PID/NAME` without an allocation.
fn path_of<'a>(buffer: &'a mut [u8; 40], pid: i32, name: &str) -> io::Result<&'a CStr> {
    use std::io::Write;
    let mut rest = &mut buffer[..39];
    write!(rest, "{pid}/{name}")?;
    CStr::from_bytes_until_nul(buffer).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// `Pss:  123 kB` in `/proc/PID/smaps_rollup`.
fn parse_pss(text: &[u8]) -> Option<Bytes> {
    let line = text.split(|b| *b == b'\n').find_map(|line| line.strip_prefix(b"Pss:"))?;
    let kilobytes = line.trim_ascii().strip_suffix(b" kB").and_then(|text| number(text.trim_ascii()))?;
    u64::try_from(kilobytes).ok()?.checked_mul(1024).map(Bytes)
}

fn number(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn id(pid: i32, start_ticks: u64) -> ProcessId {
        ProcessId { pid, start_ticks }
    }

    fn proc(pid: i32, ppid: i32, session: i32) -> (i32, Stat) {
        (pid, Stat { ppid, session, start_ticks: 1, rss_pages: 10, zombie: false })
    }

    fn tree(pid: i32) -> Tree {
        Tree { main: id(pid, 1), also: Vec::new(), limit: None }
    }

    fn tree_of(snapshot: &Snapshot, tree: &Tree) -> Vec<i32> {
        let owners = snapshot.owners(std::slice::from_ref(tree));
        snapshot.procs.iter().zip(owners).filter(|(_, owner)| owner.is_some()).map(|((pid, _), _)| *pid).collect()
    }

    #[test]
    fn pss_is_read_in_bytes_and_never_from_another_line() {
        let text = b"55d0-7ffe ---p 00000000 00:00 0 [rollup]\nRss:  3000 kB\nPss:                1234 kB\nPss_Anon:  1 kB\n";
        assert_eq!(parse_pss(text), Some(Bytes(1234 * 1024)));
        assert_eq!(parse_pss(b"Rss: 1 kB\nPss_Anon: 2 kB\n"), None);
        assert_eq!(parse_pss(b"Pss: x kB\n"), None);
    }

    #[test]
    fn a_tree_is_the_session_the_descendants_and_what_else_is_known() {
        let procs = vec![
            proc(1, 0, 1),
            proc(5, 1, 5),    // the keeper
            proc(10, 5, 10),  // a worker,
            proc(11, 10, 10), // its child,
            proc(12, 11, 12), // one in a session of its own below it,
            proc(13, 5, 10),  // an orphan in its session, adopted by the keeper,
            proc(14, 5, 14),  // one that left all of that,
            proc(15, 14, 14), // and its child
            proc(20, 5, 20),  // another worker
            proc(21, 20, 20),
            proc(30, 5, 30),
        ];
        let snapshot = Snapshot { procs };
        assert_eq!(tree_of(&snapshot, &tree(10)), [10, 11, 12, 13]);
        assert_eq!(tree_of(&snapshot, &Tree { also: vec![id(14, 1)], ..tree(10) }), [10, 11, 12, 13, 14, 15]);
        assert_eq!(tree_of(&snapshot, &Tree { also: vec![id(14, 99)], ..tree(10) }), [10, 11, 12, 13], "a reused number");
        // The main process has ended; its session has not.
        let mut without = snapshot.clone();
        without.procs.retain(|(pid, _)| *pid != 10);
        assert_eq!(tree_of(&without, &tree(10)), [11, 12, 13]);
        // Its number and its session are somebody else's now.
        let mut reused = snapshot.clone();
        reused.procs[2].1.start_ticks = 2;
        assert_eq!(tree_of(&reused, &tree(10)), [0; 0]);
        let mut scanner = ProcScanner::new().expect("/proc");
        let memory = scanner.memory(&snapshot, &[tree(20), tree(10), tree(99)]);
        let page = rustix::param::page_size() as u64;
        let known = |processes: u64| Some(Bytes(processes * 10 * page));
        assert_eq!(memory, [known(2), known(4), None]);
        assert_eq!(scanner.memory(&reused, &[tree(10)]), [None]);
    }

    #[test]
    fn a_circle_of_parents_ends() {
        let snapshot = Snapshot { procs: vec![proc(10, 11, 1), proc(11, 12, 1), proc(12, 10, 1), proc(20, 1, 20)] };
        assert_eq!(tree_of(&snapshot, &tree(20)), [20]);
    }

    /// A child that is ended and reaped when the test is over.
    struct Guard(Child);

    impl Drop for Guard {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn child(script: &str) -> (Guard, i32) {
        let child = Command::new("sh")
            .args(["-c", script])
            .env("SELFSTART_WORKER", "jobs/0#1@/srv/x")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh");
        let pid = i32::try_from(child.id()).expect("a pid");
        let mut guard = Guard(child);
        // It has executed sh once it says so.
        let mut byte = [0];
        io::Read::read_exact(guard.0.stdout.as_mut().expect("piped"), &mut byte).expect("a byte");
        (guard, pid)
    }

    #[test]
    fn a_live_process_is_seen_with_its_title_environment_and_memory() {
        let (guard, pid) = child("printf .; read -r _");
        let mut scanner = ProcScanner::new().expect("/proc");
        let snapshot = scanner.scan().expect("a scan");
        let stat = *snapshot.by_pid(pid).expect("the child");
        assert_eq!(stat.ppid, i32::try_from(std::process::id()).expect("a pid"));
        let by = |limit| Tree { main: stat.id(pid), also: Vec::new(), limit };
        let mut of = |limit| scanner.memory(&snapshot, &[by(limit)])[0].expect("known");
        let (rss, far, near) = (of(None), of(Some(Bytes(u64::MAX))), of(Some(Bytes(1))));
        assert_eq!((rss.0, far), (stat.rss_pages * rustix::param::page_size() as u64, rss));
        // It shares its program and libraries with others, so the two differ.
        assert!(near != rss && (10_000..50_000_000).contains(&near.0), "{near:?}");
        let since_boot = scanner.started_at(stat.start_ticks).since_boot();
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let now = Duration::new(u64::try_from(now.tv_sec).expect("positive"), 0);
        assert!(since_boot <= now + Duration::from_secs(1) && since_boot + Duration::from_secs(3600) > now);
        drop(guard);
        assert_eq!(scanner.pss(pid).expect("pss"), None);
        // Gone after the snapshot, near its limit: nothing is known any more.
        assert_eq!(scanner.memory(&snapshot, &[by(Some(Bytes(1)))]), [None]);
    }

    #[test]
    fn a_zombie_has_no_known_memory() {
        let (mut guard, pid) = child("printf .; exit 0");
        let mut scanner = ProcScanner::new().expect("/proc");
        // It ends when its last descriptor closes; then it is a zombie until it is waited for.
        let mut rest = Vec::new();
        io::Read::read_to_end(guard.0.stdout.as_mut().expect("piped"), &mut rest).expect("the end");
        let zombie = loop {
            let stat = super::super::process::stat(pid).expect("not reaped");
            if stat.zombie {
                break stat;
            }
            std::thread::yield_now();
        };
        let snapshot = scanner.scan().expect("a scan");
        assert_eq!(scanner.memory(&snapshot, &[Tree { main: zombie.id(pid), also: Vec::new(), limit: None }]), [None]);
    }

    /// `cargo test --release --bin selfstart one_pass -- --ignored --nocapture`
    #[test]
    #[ignore = "a measurement"]
    fn one_pass_over_a_thousand_more_processes() {
        let children: Vec<Guard> =
            (0..1000).map(|_| Guard(Command::new("sleep").arg("1000").stdout(Stdio::null()).spawn().expect("sleep"))).collect();
        let mut scanner = ProcScanner::new().expect("/proc");
        let trees: Vec<Tree> = children
            .iter()
            .map(|child| {
                let pid = i32::try_from(child.0.id()).expect("a pid");
                Tree { main: super::super::process::stat(pid).expect("there").id(pid), also: Vec::new(), limit: Some(Bytes(350_000_000)) }
            })
            .collect();
        // CPU time of this thread: what the machine does besides does not count.
        let cpu = || {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            Duration::new(u64::try_from(now.tv_sec).expect("positive"), u32::try_from(now.tv_nsec).expect("below a second"))
        };
        for _ in 0..5 {
            let begin = cpu();
            let snapshot = scanner.scan().expect("a scan");
            let scanned = cpu() - begin;
            let memory = scanner.memory(&snapshot, &trees);
            eprintln!("{} processes: scan {scanned:?}, with memory of 1000 trees {:?}", snapshot.procs().len(), cpu() - begin);
            assert!(memory.iter().all(Option::is_some));
        }
        let begin = cpu();
        for child in children.iter().take(100) {
            scanner.pss(i32::try_from(child.0.id()).expect("a pid")).expect("pss");
        }
        eprintln!("100 x PSS: {:?}", cpu() - begin);
    }
}
