//! What was promised, what was seen, and whether the one is the other. Pure: only values, so that each way to break a promise is a test.
//!
//! What was not seen (`None`) breaks a promise: it is never taken for "as promised".

use std::collections::BTreeMap;
use std::time::Duration;

use selfstart_core::id::ProcessId;
use selfstart_core::job;

use super::watch::SlotName;

/// Whether a promise was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judged {
    Kept,
    Broken,
    /// This machine lacks what it takes to show it.
    NotShown,
}

/// A line of the summary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) promise: &'static str,
    pub(super) seen: String,
    pub(super) judged: Judged,
}

fn row(promise: &'static str, kept: bool, seen: String) -> Row {
    Row { promise, seen, judged: if kept { Judged::Kept } else { Judged::Broken } }
}

/// What is said where nothing was seen.
fn millis(span: Option<Duration>) -> String {
    span.map_or_else(|| "never".to_owned(), |span| format!("after {} ms", span.as_millis()))
}

fn megabytes(bytes: u64) -> u64 {
    bytes / 1_000_000
}

/// A look comes every 15 ms; a machine that is busy shows things a little later than they are. Added to every time that is promised,
/// but not to the agent's second.
pub(super) const LATE_EYES: Duration = Duration::from_millis(500);

/// The kernel notes the start of a process in ticks of 10 ms; a difference of two can be off by as much as two.
const TICKS: Duration = Duration::from_millis(20);

/// How long a worker of the demo must be up to be ready: the next slot is not touched before.
pub(super) const READY_AFTER: Duration = Duration::from_millis(300);

/// Promise 1.
pub(super) fn current(looks: u64, torn: u64, first: Option<&str>, versions: &[String]) -> Row {
    // Fewer looks than that would say nothing.
    let kept = looks >= 100 && torn == 0 && versions.len() >= 3;
    let first = first.map_or_else(String::new, |first| format!(" (first: {first})"));
    let seen = format!("{looks} looks, {torn} of them at something else{first}; it went {}", versions.join(" -> "));
    row("`current` always points to a whole, built release", kept, seen)
}

/// What a worker was started with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Birth {
    /// Its working directory is the live release.
    pub(super) directory: bool,
    /// Its environment names the live revision.
    pub(super) revision: bool,
    /// It has a variable of who started the node.
    pub(super) foreign: bool,
}

/// Promise 2.
pub(super) fn births(births: &[Birth], wanted: usize) -> Row {
    let good = births.iter().filter(|birth| birth.directory && birth.revision && !birth.foreign).count();
    let foreign = births.iter().filter(|birth| birth.foreign).count();
    let seen = format!("{good} of {wanted} workers have the new release's directory and revision; {foreign} a variable of the agent's");
    row("A worker never inherits an older release or the agent's environment", good == wanted && births.len() == wanted, seen)
}

/// The rollout of a release, seen in the pool `steady`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rollout {
    /// The command said that it is done.
    pub(super) done: bool,
    pub(super) took: Duration,
    /// How many workers the pool has.
    pub(super) count: usize,
    /// The fewest at one time, and in how many looks.
    pub(super) fewest: (usize, u64),
    /// The least time between the starts of two of the new ones; `None`: fewer than two are there.
    pub(super) apart: Option<Duration>,
    /// Workers that are still the same.
    pub(super) old: usize,
    /// Workers that wrote a line with the new version.
    pub(super) new: usize,
}

impl Rollout {
    fn kept(&self) -> bool {
        let Self { done, count, fewest: (fewest, looks), apart, old, new, .. } = *self;
        let one_at_a_time = (count.saturating_sub(1)..=count).contains(&fewest) && apart.is_some_and(|apart| apart + TICKS >= READY_AFTER);
        done && old == 0 && new == count && looks > 0 && one_at_a_time
    }

    fn seen(&self, version: &str) -> String {
        let Self { took, count, fewest, new, .. } = self;
        let apart = self.apart.map_or_else(|| "nothing".to_owned(), |apart| format!("{} ms", apart.as_millis()));
        // Never looked: there is no number to show.
        let fewest = if fewest.1 == 0 { "nobody looked".to_owned() } else { format!("at least {} up at any time", fewest.0) };
        format!("{new} of {count} workers write `version {version}` after {} ms; started {apart} apart or more, {fewest}", took.as_millis())
    }
}

/// Promise 7, a push.
pub(super) fn pushed(rollout: &Rollout, version: &str) -> Row {
    row("A push is rolled out one slot at a time", rollout.kept(), rollout.seen(version))
}

/// A rollback by command.
pub(super) fn rolled_back(rollout: &Rollout, version: &str, held: bool) -> Row {
    let seen = format!("{}; updates are {}held", rollout.seen(version), if held { "" } else { "not " });
    row("`rollback` returns to the last good release, and holds updates", rollout.kept() && held, seen)
}

/// How many workers are the same processes as before.
fn same(before: &BTreeMap<SlotName, ProcessId>, after: &BTreeMap<SlotName, ProcessId>) -> usize {
    before.iter().filter(|(slot, process)| after.get(*slot) == Some(*process)).count()
}

/// Promise 3: the agent was killed.
pub(super) fn agent(
    pids: (Option<i32>, Option<i32>),
    back: Option<Duration>,
    before: &BTreeMap<SlotName, ProcessId>,
    after: &BTreeMap<SlotName, ProcessId>,
    told: &BTreeMap<SlotName, i32>,
) -> Row {
    let (old, new) = pids;
    let stayed = same(before, after);
    let knows = after.iter().filter(|(slot, process)| told.get(*slot) == Some(&process.pid)).count();
    let kept = back.is_some_and(|back| back <= Duration::from_secs(1))
        && old.is_some()
        && new.is_some()
        && old != new
        && !before.is_empty()
        && stayed == before.len()
        && after.len() == before.len()
        && told.len() == after.len()
        && knows == after.len();
    let pid = |pid: Option<i32>| pid.map_or_else(|| "nobody".to_owned(), |pid| pid.to_string());
    let seen = format!(
        "process {} killed, {} answers {}; {stayed} of {} workers kept their pids, it knows {knows}",
        pid(old),
        pid(new),
        millis(back),
        before.len()
    );
    row("The agent, killed, is back within a second; its workers stay", kept, seen)
}

/// Numbered lines of output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lines {
    pub(super) there: u64,
    pub(super) missing: u64,
    /// Or out of order.
    pub(super) doubled: u64,
}

impl Lines {
    /// Counts one, after the one with the number `before` (0: it is its process's first).
    pub(super) fn add(&mut self, before: u64, number: u64) {
        self.there += 1;
        if number <= before {
            self.doubled += 1;
        } else {
            self.missing += number - before - 1;
        }
    }
}

/// Promise 3: output.
pub(super) fn output(lines: Lines) -> Row {
    let kept = lines.there >= 20 && lines.missing == 0 && lines.doubled == 0;
    let seen = format!("{} numbered lines of output: {} missing, {} twice", lines.there, lines.missing, lines.doubled);
    row("No line of output is lost or doubled, whoever is killed", kept, seen)
}

/// A leak.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Leak {
    pub(super) limit: u64,
    /// How many samples in a row must be above.
    pub(super) samples: u32,
    pub(super) every: Duration,
    /// The most that was seen.
    pub(super) peak: u64,
    /// From when it was seen above the limit until its process was gone.
    pub(super) late: Option<Duration>,
    /// The old and the new process.
    pub(super) pids: (Option<i32>, Option<i32>),
}

/// Promise 6: a memory limit is acted on at most one `every` late.
pub(super) fn memory(leak: &Leak) -> Row {
    let allowed = leak.every * (leak.samples + 1) + LATE_EYES;
    let replaced = leak.pids.0.is_some() && leak.pids.1.is_some() && leak.pids.0 != leak.pids.1;
    let kept = replaced && leak.peak > leak.limit && leak.late.is_some_and(|late| late <= allowed);
    let new = leak.pids.1.map_or_else(|| "nobody".to_owned(), |pid| format!("process {pid}"));
    let seen = format!(
        "{} MB, limit {} MB in {} samples, {} ms apart: gone {}; {new} took over",
        megabytes(leak.peak),
        megabytes(leak.limit),
        leak.samples,
        leak.every.as_millis(),
        millis(leak.late)
    );
    row("A memory limit is acted on at most one sample late", kept, seen)
}

/// A job that hangs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hang {
    pub(super) timeout: Duration,
    /// How old its process was when it was gone.
    pub(super) age: Option<Duration>,
    /// The master, before and after.
    pub(super) masters: (Option<ProcessId>, Option<ProcessId>),
    /// Jobs that the master finished afterwards.
    pub(super) jobs_after: usize,
}

/// Promise 6: a stale job is acted on at most max(2 s, 5 %) late.
pub(super) fn stale(hang: &Hang) -> Row {
    let allowed = hang.timeout + job::lateness(hang.timeout) + LATE_EYES;
    let in_time = hang.age.is_some_and(|age| age <= allowed && age + TICKS >= hang.timeout);
    let stayed = hang.masters.0.is_some() && hang.masters.0 == hang.masters.1;
    let seen = format!(
        "timeout {} ms: its process gone {}; the master {}, and finished the next job: {}",
        hang.timeout.as_millis(),
        millis(hang.age),
        match hang.masters {
            (Some(process), Some(other)) if process == other => format!("is still {}", process.pid),
            _ => "is another".to_owned(),
        },
        if hang.jobs_after > 0 { "yes" } else { "no" }
    );
    row("A stale job is ended at most 2 s late; its worker stays", in_time && stayed && hang.jobs_after > 0, seen)
}

/// A crash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Crash {
    /// The old and the new process.
    pub(super) pids: (Option<i32>, Option<i32>),
    /// From when it was seen to be gone until the new one was seen.
    pub(super) took: Option<Duration>,
    /// The process that it left in a session of its own, and whether it is gone.
    pub(super) left: Option<(i32, bool)>,
}

/// Promises 4 and 6: a crash.
pub(super) fn crash(crash: &Crash) -> Row {
    let replaced = crash.pids.0.is_some() && crash.pids.1.is_some() && crash.pids.0 != crash.pids.1;
    // The first restart is at once.
    let kept =
        replaced && crash.took.is_some_and(|took| took <= Duration::from_secs(1) + LATE_EYES) && crash.left.is_some_and(|(_, gone)| gone);
    let left = match crash.left {
        None => "it left nothing that was seen".to_owned(),
        Some((pid, true)) => format!("process {pid}, which it left behind, is gone"),
        Some((pid, false)) => format!("process {pid}, which it left behind, is still there"),
    };
    let new = crash.pids.1.map_or_else(|| "nobody".to_owned(), |pid| format!("process {pid}"));
    row(
        "A crashed worker is started again at once, and leaves nothing behind",
        kept,
        format!("{new} took over {}; {left}", millis(crash.took)),
    )
}

/// Promises 1 and 7: a build that fails.
pub(super) fn broken_build(
    failed: bool,
    quarantined: bool,
    current: (&str, &str),
    before: &BTreeMap<SlotName, ProcessId>,
    after: &BTreeMap<SlotName, ProcessId>,
) -> Row {
    let stayed = same(before, after);
    let kept = failed && quarantined && !current.0.is_empty() && current.0 == current.1 && !before.is_empty() && stayed == before.len();
    let seen = format!(
        "the deploy {}; its revision is {}quarantined; `current` {}; {stayed} of {} workers kept their pids",
        if failed { "failed" } else { "did not fail" },
        if quarantined { "" } else { "not " },
        if current.0 == current.1 { "did not move" } else { "moved" },
        before.len()
    );
    row("A failed build changes nothing: not `current`, not the workers", kept, seen)
}

/// Says that a build cannot be shown here.
pub(super) fn no_builds() -> Row {
    Row {
        promise: "A failed build changes nothing: not `current`, not the workers",
        seen: "build steps need /bin/sh, which this machine lacks".to_owned(),
        judged: Judged::NotShown,
    }
}

/// Promise 9. `seen` and `told` count ends by slot, `readable` those that were told with a verdict and a text.
pub(super) fn verdicts(seen: &BTreeMap<SlotName, u64>, told: &BTreeMap<SlotName, u64>, readable: u64) -> Row {
    let (ends, all): (u64, u64) = (seen.values().sum(), told.values().sum());
    let untold: u64 = seen.iter().map(|(slot, ends)| ends.saturating_sub(told.get(slot).copied().unwrap_or(0))).sum();
    let text = format!("{ends} workers were seen to end; {untold} of them without a verdict ({readable} told)");
    row("Every end of a worker has a verdict that a person can read", ends > 0 && untold == 0 && readable == all, text)
}

/// Promise 4: the end. `code`: `None` if it did not end in time; `left`: `None` if that could not be read.
pub(super) fn stopped(code: Option<i32>, took: Duration, before: usize, left: Option<usize>) -> Row {
    let kept = code == Some(0) && before > 0 && left == Some(0);
    let code = code.map_or_else(|| "it did not end".to_owned(), |code| format!("it ended with {code} after {} ms", took.as_millis()));
    let left = left.map_or_else(|| "what is left cannot be read".to_owned(), |left| format!("{left} of {before} processes left"));
    row("Stopping ends everything, what daemonised itself too", kept, format!("{code}; {left}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Option<Duration> {
        Some(Duration::from_millis(ms))
    }

    fn workers(pids: &[i32]) -> BTreeMap<SlotName, ProcessId> {
        pids.iter().enumerate().map(|(slot, pid)| (format!("w/{slot}"), ProcessId { pid: *pid, start_ticks: 9 })).collect()
    }

    fn told(pids: &[i32]) -> BTreeMap<SlotName, i32> {
        pids.iter().enumerate().map(|(slot, pid)| (format!("w/{slot}"), *pid)).collect()
    }

    #[track_caller]
    fn kept(row: Row) {
        assert_eq!(row.judged, Judged::Kept, "{row:?}");
    }

    #[track_caller]
    fn broken(row: Row) {
        assert_eq!(row.judged, Judged::Broken, "{row:?}");
    }

    #[test]
    fn a_current_that_was_torn_once_or_hardly_looked_at_is_broken() {
        let versions: Vec<String> = ["1", "2", "1"].map(str::to_owned).into();
        kept(current(100, 0, None, &versions));
        let torn = current(100, 1, Some("no `VERSION`"), &versions);
        assert_eq!(torn.seen, "100 looks, 1 of them at something else (first: no `VERSION`); it went 1 -> 2 -> 1");
        broken(torn);
        broken(current(99, 0, None, &versions));
        broken(current(100, 0, None, &versions[..2]));
    }

    #[test]
    fn a_worker_of_an_older_release_or_with_the_agents_environment_is_broken() {
        let good = Birth { directory: true, revision: true, foreign: false };
        kept(births(&[good, good], 2));
        broken(births(&[good, Birth { directory: false, ..good }], 2));
        broken(births(&[good, Birth { revision: false, ..good }], 2));
        broken(births(&[good, Birth { foreign: true, ..good }], 2));
        broken(births(&[good], 2));
    }

    #[test]
    fn a_rollout_that_takes_two_at_once_forgets_one_or_was_not_seen_is_broken() {
        let good = Rollout { done: true, took: Duration::from_secs(1), count: 3, fewest: (2, 50), apart: ms(280), old: 0, new: 3 };
        kept(pushed(&good, "2"));
        kept(rolled_back(&good, "1", true));
        broken(rolled_back(&good, "1", false));
        for bad in [
            Rollout { done: false, ..good.clone() },
            Rollout { fewest: (1, 50), ..good.clone() },
            Rollout { fewest: (4, 50), ..good.clone() },
            Rollout { fewest: (usize::MAX, 0), ..good.clone() },
            Rollout { apart: ms(279), ..good.clone() },
            Rollout { apart: None, ..good.clone() },
            Rollout { old: 1, ..good.clone() },
            Rollout { new: 2, ..good.clone() },
        ] {
            broken(pushed(&bad, "2"));
            broken(rolled_back(&bad, "1", true));
        }
    }

    #[test]
    fn an_agent_that_is_late_or_loses_or_doubles_a_worker_is_broken() {
        let (before, pids) = (workers(&[7, 8]), (Some(3), Some(4)));
        kept(agent(pids, ms(1000), &before, &before, &told(&[7, 8])));
        broken(agent(pids, ms(1001), &before, &before, &told(&[7, 8])));
        broken(agent(pids, None, &before, &before, &told(&[7, 8])));
        broken(agent((Some(3), Some(3)), ms(9), &before, &before, &told(&[7, 8])));
        broken(agent((Some(3), None), ms(9), &before, &before, &told(&[7, 8])));
        broken(agent(pids, ms(9), &before, &workers(&[7, 9]), &told(&[7, 9])));
        broken(agent(pids, ms(9), &before, &workers(&[7]), &told(&[7])));
        broken(agent(pids, ms(9), &before, &workers(&[7, 8, 9]), &told(&[7, 8, 9])));
        broken(agent(pids, ms(9), &before, &before, &told(&[7, 9])));
        broken(agent(pids, ms(9), &before, &before, &told(&[7])));
        broken(agent(pids, ms(9), &workers(&[]), &workers(&[]), &told(&[])));
        let reused: BTreeMap<_, _> = before.iter().map(|(slot, id)| (slot.clone(), ProcessId { start_ticks: 10, ..*id })).collect();
        broken(agent(pids, ms(9), &before, &reused, &told(&[7, 8])));
    }

    #[test]
    fn a_line_that_is_lost_or_doubled_is_broken_and_so_is_hardly_any() {
        let counted = |numbers: &[u64]| {
            let (mut lines, mut last) = (Lines { there: 20, ..Lines::default() }, 0);
            for number in numbers {
                lines.add(last, *number);
                last = *number;
            }
            lines
        };
        kept(output(counted(&[1, 2, 3])));
        broken(output(counted(&[1, 3])));
        broken(output(counted(&[2, 3])));
        broken(output(counted(&[1, 2, 2])));
        broken(output(Lines { there: 19, ..Lines::default() }));
    }

    #[test]
    fn a_leak_that_is_recycled_too_late_not_at_all_or_below_its_limit_is_broken() {
        let every = Duration::from_millis(200);
        let good = Leak { limit: 32, samples: 2, every, peak: 40, late: ms(1100), pids: (Some(7), Some(8)) };
        kept(memory(&good));
        for bad in [
            Leak { late: ms(1101), ..good.clone() },
            Leak { late: None, ..good.clone() },
            Leak { peak: 32, ..good.clone() },
            Leak { pids: (Some(7), None), ..good.clone() },
            Leak { pids: (Some(7), Some(7)), ..good.clone() },
        ] {
            broken(memory(&bad));
        }
    }

    #[test]
    fn a_stale_job_that_ends_late_or_early_or_takes_its_master_along_is_broken() {
        let master = |pid| Some(ProcessId { pid, start_ticks: 9 });
        let good = Hang { timeout: Duration::from_secs(2), age: ms(4500), masters: (master(7), master(7)), jobs_after: 1 };
        kept(stale(&good));
        kept(stale(&Hang { age: ms(1980), ..good.clone() }));
        for bad in [
            Hang { age: ms(4501), ..good.clone() },
            Hang { age: ms(1979), ..good.clone() },
            Hang { age: None, ..good.clone() },
            Hang { masters: (master(7), master(8)), ..good.clone() },
            Hang { masters: (None, None), ..good.clone() },
            Hang { jobs_after: 0, ..good.clone() },
        ] {
            broken(stale(&bad));
        }
    }

    #[test]
    fn a_crash_without_a_successor_or_with_something_left_is_broken() {
        let good = Crash { pids: (Some(7), Some(9)), took: ms(1500), left: Some((8, true)) };
        kept(crash(&good));
        for bad in [
            Crash { pids: (Some(7), None), ..good.clone() },
            Crash { pids: (Some(7), Some(7)), ..good.clone() },
            Crash { took: ms(1501), ..good.clone() },
            Crash { took: None, ..good.clone() },
            Crash { left: Some((8, false)), ..good.clone() },
            Crash { left: None, ..good.clone() },
        ] {
            broken(crash(&bad));
        }
    }

    #[test]
    fn a_failed_build_that_moves_anything_is_broken() {
        let before = workers(&[7, 8]);
        kept(broken_build(true, true, ("a", "a"), &before, &before));
        broken(broken_build(false, true, ("a", "a"), &before, &before));
        broken(broken_build(true, false, ("a", "a"), &before, &before));
        broken(broken_build(true, true, ("a", "b"), &before, &before));
        broken(broken_build(true, true, ("", ""), &before, &before));
        broken(broken_build(true, true, ("a", "a"), &before, &workers(&[7, 9])));
        assert_eq!(no_builds().judged, Judged::NotShown);
    }

    #[test]
    fn an_end_that_is_not_told_or_not_readable_is_broken() {
        let ends = |of: &[(&str, u64)]| of.iter().map(|(slot, ends)| ((*slot).to_owned(), *ends)).collect::<BTreeMap<SlotName, u64>>();
        let seen = ends(&[("a/0", 2), ("b/0", 1)]);
        kept(verdicts(&seen, &ends(&[("a/0", 2), ("b/0", 2)]), 4));
        broken(verdicts(&seen, &ends(&[("a/0", 3)]), 3));
        broken(verdicts(&seen, &ends(&[("a/0", 1), ("b/0", 2)]), 3));
        broken(verdicts(&seen, &seen, 2));
        broken(verdicts(&ends(&[]), &ends(&[]), 0));
    }

    #[test]
    fn a_stop_that_leaves_something_hangs_or_fails_is_broken() {
        let took = Duration::from_millis(9);
        kept(stopped(Some(0), took, 7, Some(0)));
        broken(stopped(Some(1), took, 7, Some(0)));
        broken(stopped(None, took, 7, Some(0)));
        broken(stopped(Some(0), took, 7, Some(1)));
        broken(stopped(Some(0), took, 7, None));
        broken(stopped(Some(0), took, 0, Some(0)));
    }
}
