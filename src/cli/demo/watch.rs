//! What the demo sees from outside: `/proc`, the link `current`, the log files. The agent is not asked.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use selfstart_core::id::ProcessId;

use super::judge::Lines;
use crate::keeper::protocol::KEY_VARIABLE;
use crate::sys::proc_scan::{ProcScanner, Snapshot};
use crate::sys::{clock, process};

/// A slot, as `POOL/SLOT`.
pub(super) type SlotName = String;

/// A worker's main process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Worker {
    pub(super) process: ProcessId,
    /// Resident.
    pub(super) bytes: u64,
}

/// A process below a worker, or one that it left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Other {
    pub(super) process: ProcessId,
    pub(super) slot: SlotName,
    /// Its title, up to the first NUL.
    pub(super) title: String,
}

/// One look.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) agent: Option<ProcessId>,
    pub(super) workers: BTreeMap<SlotName, Worker>,
    pub(super) others: Vec<Other>,
}

impl Seen {
    /// The processes of all workers, by slot.
    pub(super) fn processes(&self) -> BTreeMap<SlotName, ProcessId> {
        self.workers.iter().map(|(slot, worker)| (slot.clone(), worker.process)).collect()
    }

    pub(super) fn pid(&self, slot: &str) -> Option<i32> {
        self.workers.get(slot).map(|worker| worker.process.pid)
    }

    /// How many workers a pool has.
    pub(super) fn alive(&self, pool: &str) -> usize {
        self.workers.keys().filter(|slot| slot.split('/').next() == Some(pool)).count()
    }
}

/// What many looks added up to.
pub(super) struct Watch {
    scanner: ProcScanner,
    root: PathBuf,
    keeper: i32,
    /// Whether a built release has the file that the build step makes.
    marked: bool,
    pub(super) now: Seen,
    /// Looks since the first switch.
    pub(super) looks: u64,
    /// How often `current` was not a whole, built release.
    pub(super) torn: u64,
    /// The first of them.
    pub(super) tear: Option<String>,
    /// What `current` was, in order.
    pub(super) versions: Vec<String>,
    /// Workers that ended, by slot.
    pub(super) ended: BTreeMap<SlotName, u64>,
    /// The fewest workers of the pool `steady` since [`Self::count_from_here`], and in how many looks.
    pub(super) fewest: (usize, u64),
}

impl Watch {
    pub(super) fn new(root: PathBuf, keeper: i32, marked: bool) -> io::Result<Self> {
        Ok(Self {
            scanner: ProcScanner::new()?,
            root,
            keeper,
            marked,
            now: Seen::default(),
            looks: 0,
            torn: 0,
            tear: None,
            versions: Vec::new(),
            ended: BTreeMap::new(),
            fewest: (usize::MAX, 0),
        })
    }

    /// Looks once more. A look that failed changes nothing: it is not taken for "nobody is there".
    pub(super) fn look(&mut self) {
        self.look_at_current();
        let Ok(snapshot) = self.scanner.scan() else { return };
        let seen = self.tree(&snapshot);
        for (slot, before) in &self.now.workers {
            if snapshot.get(before.process).is_none_or(|process| process.zombie) {
                *self.ended.entry(slot.clone()).or_default() += 1;
            }
        }
        // Between a fork and its exec a worker does not have its name yet, and one that is gone has it no more.
        self.now = seen;
        self.fewest = (self.fewest.0.min(self.now.alive("steady")), self.fewest.1 + 1);
    }

    /// The fewest workers are counted anew.
    pub(super) fn count_from_here(&mut self) {
        self.fewest = (usize::MAX, 0);
    }

    fn look_at_current(&mut self) {
        let target = match fs_err::read_link(self.root.join("current")) {
            Ok(target) => target,
            // Before the first switch there is none.
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.versions.is_empty() => return,
            Err(error) => return self.tear(error.to_string()),
        };
        self.looks += 1;
        match whole(&self.root.join(target), self.marked) {
            Ok(version) if self.versions.last() == Some(&version) => {}
            Ok(version) => self.versions.push(version),
            Err(why) => self.tear(why),
        }
    }

    /// It was not as it must be.
    fn tear(&mut self, why: String) {
        self.torn += 1;
        self.tear.get_or_insert(why);
    }

    fn tree(&mut self, snapshot: &Snapshot) -> Seen {
        let mut seen = Seen::default();
        let mut next = vec![self.keeper];
        let mut passed = BTreeSet::new();
        while let Some(parent) = next.pop() {
            if !passed.insert(parent) {
                continue;
            }
            for (pid, found) in snapshot.procs().iter().filter(|(_, found)| found.ppid == parent && !found.zombie) {
                let id = found.id(*pid);
                next.push(id.pid);
                // What ends meanwhile is not there any more.
                let Ok(cmdline) = process::title(id.pid) else { continue };
                let mut words = cmdline.split(|byte| *byte == 0);
                let title = String::from_utf8_lossy(words.next().unwrap_or_default()).into_owned();
                if parent == self.keeper && words.next() == Some(b"internal-agent") {
                    seen.agent = Some(id);
                    continue;
                }
                let Some((slot, main)) = self.name(id.pid) else { continue };
                if main == id.pid {
                    let bytes = found.rss_pages.saturating_mul(rustix::param::page_size() as u64);
                    seen.workers.insert(slot, Worker { process: id, bytes });
                } else {
                    seen.others.push(Other { process: id, slot, title });
                }
            }
        }
        seen
    }

    /// To which slot a process belongs, and the number of that worker's main process.
    fn name(&mut self, pid: i32) -> Option<(SlotName, i32)> {
        owner(&process::variable(pid, KEY_VARIABLE)?, &self.root)
    }

    /// How long ago a process began, by the kernel's own note; exact to a tick.
    pub(super) fn age(&self, process: ProcessId) -> Duration {
        clock::now().since(self.scanner.started_at(process.start_ticks))
    }

    /// Every process on this machine that belongs to this node, whoever its parent is now.
    pub(super) fn everyone(&mut self) -> io::Result<Vec<ProcessId>> {
        let snapshot = self.scanner.scan()?;
        let mut found = Vec::new();
        for (pid, seen) in snapshot.procs().iter().filter(|(_, seen)| !seen.zombie) {
            // Another user's is none of ours.
            let Some(value) = process::variable(*pid, KEY_VARIABLE) else { continue };
            if value.ends_with(&format!("@{}", self.root.display())) {
                found.push(seen.id(*pid));
            }
        }
        Ok(found)
    }
}

/// Returns the version of a release that is whole; or what it lacks. `marked`: its build writes its version into it.
fn whole(release: &Path, marked: bool) -> Result<String, String> {
    let text =
        |name: &str| fs_err::read_to_string(release.join(name)).map(|text| text.trim().to_owned()).map_err(|error| error.to_string());
    let version = text("VERSION")?;
    text("REVISION")?;
    match marked {
        true if text("BUILT")? != version => Err(format!("`{}` is built from another version", release.display())),
        _ => Ok(version),
    }
}

/// Reads `POOL/SLOT#START:PID@ROOT`.
fn owner(value: &str, root: &Path) -> Option<(SlotName, i32)> {
    let (named, at) = value.split_once('@')?;
    let (key, pid) = named.rsplit_once(':')?;
    let (slot, _start) = key.split_once('#')?;
    (Path::new(at) == root && slot.contains('/') && !slot.contains(':')).then_some(())?;
    Some((slot.to_owned(), pid.parse().ok()?))
}

/// The text of each line of a slot's output file.
fn texts(root: &Path, slot: &str) -> Vec<String> {
    let text = fs_err::read(root.join(format!("log/{}.log", slot.replace('/', ".")))).unwrap_or_default();
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    // A date and a stream's name stand before it.
    let line = |line: &str| line.splitn(3, ' ').nth(2).map(str::to_owned);
    String::from_utf8_lossy(&text[..whole]).lines().filter_map(line).collect()
}

/// Whether a slot's output has a line that begins so.
pub(super) fn wrote(root: &Path, slot: &str, beginning: &str) -> usize {
    texts(root, slot).iter().filter(|text| text.starts_with(beginning)).count()
}

/// Reads the numbered lines of steady workers.
pub(super) fn jobs<'a>(root: &Path, slots: impl IntoIterator<Item = &'a str>) -> (Lines, Vec<Job>) {
    let (mut lines, mut jobs) = (Lines::default(), Vec::new());
    for slot in slots {
        let mut last: BTreeMap<i32, u64> = BTreeMap::new();
        for job in texts(root, slot).iter().filter_map(|text| job(slot, text)) {
            let before = last.insert(job.pid, job.number).unwrap_or(0);
            lines.add(before, job.number);
            jobs.push(job);
        }
    }
    (lines, jobs)
}

/// A job that a steady worker did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) slot: SlotName,
    pub(super) pid: i32,
    pub(super) number: u64,
    pub(super) version: String,
}

fn job(slot: &str, text: &str) -> Option<Job> {
    let (number, rest) = text.strip_prefix("job ")?.split_once(" of process ")?;
    let (pid, version) = rest.split_once(" done by version ")?;
    Some(Job { slot: slot.to_owned(), pid: pid.parse().ok()?, number: number.parse().ok()?, version: version.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_variable_and_of_this_root_alone() {
        let root = Path::new("/tmp/x/root");
        assert_eq!(owner("steady/1#3:0000004711@/tmp/x/root", root), Some(("steady/1".into(), 4711)));
        for other in ["steady/1#3:0000004711@/tmp/y/root", "helper:fetch#1:0000004711@/tmp/x/root", "steady/1", ""] {
            assert_eq!(owner(other, root), None, "{other}");
        }
    }

    #[test]
    fn a_release_that_is_not_whole_is_told_with_what_it_lacks() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| fs_err::write(folder.path().join(name), text).expect("written");
        let lacks = |marked, name: &str| whole(folder.path(), marked).expect_err("not whole").contains(name);
        assert!(lacks(false, "VERSION"));
        write("VERSION", "2\n");
        assert!(lacks(false, "REVISION"));
        write("REVISION", "1");
        assert_eq!(whole(folder.path(), false).as_deref(), Ok("2"));
        assert!(lacks(true, "BUILT"));
        write("BUILT", "1");
        assert!(lacks(true, "another version"));
        write("BUILT", "2");
        assert_eq!(whole(folder.path(), true).as_deref(), Ok("2"));
    }

    #[test]
    fn lines_that_are_missing_or_doubled_are_counted_and_a_half_written_one_is_none() {
        let root = tempfile::tempdir().expect("a folder");
        fs_err::create_dir(root.path().join("log")).expect("a folder");
        let line = |number: u32, pid: u32| format!("2026-11-22T14:02:11.123Z out job {number} of process {pid} done by version 2\n");
        let text = [line(1, 7), line(2, 7), line(4, 7), line(4, 7), line(1, 8), "2026-11-22T14:02:11.123Z out job 2 of".into()].concat();
        fs_err::write(root.path().join("log/steady.0.log"), text).expect("written");
        let (lines, jobs) = jobs(root.path(), ["steady/0"]);
        assert_eq!(lines, Lines { there: 5, missing: 1, doubled: 1 });
        assert_eq!(jobs.last(), Some(&Job { slot: "steady/0".into(), pid: 8, number: 1, version: "2".into() }));
    }
}
