//! Jobs in flight, as workers show them in process titles, and which of them are stale.
//!
//! Resque: the child's title is `resque-VERSION: Processing QUEUE since EPOCH [CLASS]`, maybe under a prefix. RQ with `setproctitle`:
//! `rq:worker:NAME: Processing FUNCTION from QUEUE since EPOCH.FRACTION`. Both were seen on the real libraries (docs: queues).
//! A job counts only if its process is a child of a supervised worker: for a moment before the fork the worker itself shows the
//! same title.
//!
//! What it does not do: read `/proc`, kill, or know what a library keeps in its store.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::id::ProcessId;
use crate::policy::StalePolicy;
use crate::time::WallTime;

/// A process, as it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessSeen<'a> {
    /// Which.
    pub process: ProcessId,
    /// The number of its parent.
    pub parent: i32,
    /// `/proc/PID/cmdline` (`proc_pid_cmdline(5)`) as it is.
    pub cmdline: &'a [u8],
    /// How long the process has existed.
    pub own_age: Duration,
}

/// A job in flight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobSeen<M> {
    /// The worker that it belongs to, as the caller names it.
    pub master: M,
    /// The process that does it.
    pub child: ProcessId,
    /// The title, to be compared before the process is killed.
    pub title: Box<[u8]>,
    /// Its class (or function); `None`: the title has none.
    pub class: Option<Box<str>>,
    /// Its queue.
    pub queue: Box<str>,
    /// When it began, by the title.
    pub started: WallTime,
    /// How old it is.
    pub age: Duration,
    /// How old it may become; `None`: for ever.
    pub timeout: Option<Duration>,
}

impl<M> JobSeen<M> {
    /// Returns whether it is older than it may be.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.timeout.is_some_and(|timeout| self.age > timeout)
    }
}

/// What a title says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Title<'a> {
    /// The part of the command line that says it.
    pub text: &'a [u8],
    /// Its class (or function); `None`: the title has none.
    pub class: Option<&'a [u8]>,
    /// Its queue.
    pub queue: &'a [u8],
    /// When it began.
    pub started: WallTime,
}

/// Reads a command line as the title of a process that does a job; `None`: it is none.
///
/// Only what comes before the first NUL is looked at (a title that was set is padded with NULs; of `exec -a TITLE sleep 600` the rest are
/// arguments), and what follows the closing bracket is ignored.
#[must_use]
pub fn parse_title(cmdline: &[u8]) -> Option<Title<'_>> {
    let text = cmdline.split(|byte| *byte == 0).next()?;
    resque(text).or_else(|| rq(text))
}

fn resque(text: &[u8]) -> Option<Title<'_>> {
    const NAME: &[u8] = b"resque-";
    const DOES: &[u8] = b": Processing ";
    let mut from = 0;
    let rest = loop {
        let at = from + find(&text[from..], NAME)? + NAME.len();
        let version = text[at..].iter().position(|byte| *byte == b':').map(|colon| &text[at..at + colon]);
        if let Some(version) = version.filter(|version| version.first().is_some_and(u8::is_ascii_digit))
            && let Some(rest) = text[at + version.len()..].strip_prefix(DOES)
        {
            break rest;
        }
        from = at;
    };
    // From the right: a queue may be called anything.
    let (queue, after) = split_last(rest, b" since ", |after| epoch(after).is_some())?;
    let (started, after) = epoch(after)?;
    let class = match after.strip_prefix(b" [") {
        Some(bracket) => Some(&bracket[..bracket.iter().position(|byte| *byte == b']')?]),
        None => None,
    };
    let end = class.map_or(after, |class| &after[2 + class.len() + 1..]);
    let text = &text[..text.len() - end.len()];
    (!queue.is_empty()).then_some(Title { text, class, queue, started })
}

fn rq(text: &[u8]) -> Option<Title<'_>> {
    const NAME: &[u8] = b"rq:worker:";
    let named = &text[find(text, NAME)? + NAME.len()..];
    let rest = &named[find(named, b": Processing ")? + b": Processing ".len()..];
    let (what, after) = split_last(rest, b" since ", |after| epoch(after).is_some())?;
    let (started, end) = epoch(after)?;
    let (function, queue) = split_last(what, b" from ", |queue| !queue.is_empty())?;
    Some(Title { text: &text[..text.len() - end.len()], class: Some(function), queue, started })
}

/// Reads seconds since 1970, with or without a fraction, up to a space or the end. At most 11 digits: later than the year 5000 is no date.
fn epoch(text: &[u8]) -> Option<(WallTime, &[u8])> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if !(1..=11).contains(&digits) {
        return None;
    }
    let number = |digits: &[u8]| digits.iter().fold(0_i64, |sum, digit| sum * 10 + i64::from(digit - b'0'));
    let mut millis = number(&text[..digits]) * 1_000;
    let mut rest = &text[digits..];
    if let Some(fraction) = rest.strip_prefix(b".") {
        let length = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let mut three = [b'0'; 3];
        for (to, from) in three.iter_mut().zip(&fraction[..length]) {
            *to = *from;
        }
        millis += number(&three);
        rest = &fraction[length..];
    }
    rest.first().is_none_or(u8::is_ascii_whitespace).then_some((WallTime::from_unix_millis(millis), rest))
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

/// Splits at the last `what` after which `good` holds.
fn split_last<'a>(text: &'a [u8], what: &[u8], good: impl Fn(&[u8]) -> bool) -> Option<(&'a [u8], &'a [u8])> {
    let at = text.windows(what.len()).enumerate().rev().find(|(at, window)| *window == what && good(&text[at + what.len()..]))?.0;
    Some((&text[..at], &text[at + what.len()..]))
}

/// Returns the jobs that are in flight in children of `masters` (pid of a worker's main process -> what the caller calls it and how old its
/// jobs may become), in the order in which the processes were given.
///
/// A job's age is the wall clock's time since its title's date, but never more than the age of its process (so that a clock that jumps
/// forward kills nothing), and 0 for a date in the future.
#[must_use]
pub fn in_flight<M: Clone>(seen: &[ProcessSeen<'_>], masters: &BTreeMap<i32, (M, Option<&StalePolicy>)>, now: WallTime) -> Vec<JobSeen<M>> {
    let job = |process: &ProcessSeen<'_>| {
        let (master, policy) = masters.get(&process.parent)?;
        let title = parse_title(process.cmdline)?;
        let text = |bytes: &[u8]| -> Box<str> { String::from_utf8_lossy(bytes).into() };
        let class = title.class.map(text);
        let timeout = policy.map(|policy| class.as_deref().and_then(|class| policy.classes.get(class)).copied().unwrap_or(policy.default));
        Some(JobSeen {
            master: master.clone(),
            child: process.process,
            title: title.text.into(),
            class,
            queue: text(title.queue),
            started: title.started,
            age: now.since(title.started).min(process.own_age),
            timeout,
        })
    };
    seen.iter().filter_map(job).collect()
}

/// How late a stale job may be acted on: 2 s or 5 % of its timeout, whichever is more (PRODUCT.md, promise 6).
#[must_use]
pub fn lateness(timeout: Duration) -> Duration {
    (timeout / 20).max(Duration::from_secs(2))
}

/// The least time between two looks at the process table: half of the least [`lateness`].
pub const LEAST_LOOK: Duration = Duration::from_secs(1);

/// Returns how long after a look that found `jobs` the next one is due, so that no job is acted on later than [`lateness`] says; `None`: no
/// pool has a timeout, never.
///
/// A job that was not seen is younger than the look, so the shortest timeout is soon enough for it; one that was seen is looked at when its
/// time is over, and meanwhile often enough for a clock that is put right. While one is stale (it is being killed) looks go on at
/// [`LEAST_LOOK`]'s pace.
#[must_use]
pub fn next_look<'a, M>(jobs: &[JobSeen<M>], policies: impl IntoIterator<Item = &'a StalePolicy>) -> Option<Duration> {
    let shortest = |policy: &StalePolicy| policy.classes.values().copied().chain([policy.default]).min();
    let unseen = policies.into_iter().filter_map(shortest).min()?;
    let due = |job: &JobSeen<M>| job.timeout.map(|timeout| timeout.saturating_sub(job.age).min(lateness(timeout)));
    Some(jobs.iter().filter_map(due).fold(unseen, Duration::min).max(LEAST_LOOK))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(cmdline: &str) -> Option<(String, Option<String>, i64)> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("tests are UTF-8");
        parse_title(cmdline.as_bytes()).map(|title| (text(title.queue), title.class.map(text), title.started.unix_millis()))
    }

    fn job(queue: &str, class: &str, millis: i64) -> Option<(String, Option<String>, i64)> {
        Some((queue.into(), Some(class.into()), millis))
    }

    #[test]
    fn reads_the_titles_of_resque_children() {
        let slow = job("slow", "SleepJob", 1_795_332_148_000);
        for title in [
            "resque-3.0.0: Processing slow since 1795332148 [SleepJob]",
            "resque-1.25.2: Processing slow since 1795332148 [SleepJob]",
            "myapp-resque-2.7.0: Processing slow since 1795332148 [SleepJob]",
            "resque-pool-resque-2.7.0: Processing slow since 1795332148 [SleepJob]",
            "resque-3.0.0: Processing slow since 1795332148 [SleepJob]\0\0\0\0",
            "resque-3.0.0: Processing slow since 1795332148 [SleepJob]\x00600",
            "resque-3.0.0: Processing slow since 1795332148 [SleepJob] rails[production]",
        ] {
            assert_eq!(shown(title), slow, "{title}");
        }
        assert_eq!(shown("resque-1.9: Processing slow since 1795332148"), Some(("slow".into(), None, 1_795_332_148_000)));
        assert_eq!(shown("resque-3.0.0: Processing a since 5 b since 7 [A::B]"), job("a since 5 b", "A::B", 7_000));
    }

    #[test]
    fn reads_the_titles_of_rq_horses() {
        assert_eq!(
            shown("rq:worker:5f3a: Processing jobs.slow from slow since 1795332475.694785\0\0"),
            job("slow", "jobs.slow", 1_795_332_475_694)
        );
        assert_eq!(shown("x rq:worker:a:b: Processing f from q since 5"), job("q", "f", 5_000));
        assert_eq!(shown("rq:worker:a: Processing f from x from q since 5.1"), job("q", "f from x", 5_100));
    }

    #[test]
    fn other_titles_are_no_jobs() {
        for title in [
            "",
            "\0",
            "sleep\x00600",
            "resque-3.0.0: Waiting for slow",
            "resque-3.0.0: Forked 16504 at 1795332148",
            "resque-3.0.0: Paused",
            "resque-x: Processing slow since 1795332148 [SleepJob]",
            "resque-: Processing slow since 1 [A]",
            "resque-3.0.0: Processing slow since soon [SleepJob]",
            "resque-3.0.0: Processing slow since 99999999999999999999 [SleepJob]",
            "resque-3.0.0: Processing slow since 1795332148 [SleepJ",
            "resque-3.0.0: Processing slow since 1795332148x",
            "resque-3.0.0: Processing  since 1795332148 [SleepJob]".trim_end_matches(" since 1795332148 [SleepJob]"),
            "grep\0resque-3.0.0: Processing slow since 1795332148 [SleepJob]",
            "rq:worker:a: Listening on slow",
            "rq:worker:a: Forked 2884 at 1795332475.6898184",
            "rq:worker:a: Processing f since 5",
        ] {
            assert_eq!(shown(title), None, "{title}");
        }
    }

    #[test]
    fn the_text_to_compare_ends_with_the_bracket() {
        let title = parse_title(b"resque-3.0.0: Processing q since 5 [A] more\0").expect("a title");
        assert_eq!(title.text, b"resque-3.0.0: Processing q since 5 [A]");
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    /// Returns the age of a job of class A that began at 1,000 s and its timeout, as seen at `now` in a process of age `own_age`.
    fn seen(now: i64, own_age: u64, parent: i32, policy: Option<&StalePolicy>) -> Vec<JobSeen<&'static str>> {
        let process = ProcessSeen {
            process: ProcessId { pid: 9, start_ticks: 1 },
            parent,
            cmdline: b"resque-3.0.0: Processing q since 1000 [A]",
            own_age: secs(own_age),
        };
        in_flight(&[process], &BTreeMap::from([(7, ("w", policy))]), WallTime::from_unix_millis(now * 1_000))
    }

    fn policy() -> StalePolicy {
        StalePolicy { default: secs(60), classes: BTreeMap::from([("Long".to_owned(), secs(600))]) }
    }

    #[test]
    fn only_children_of_supervised_workers_do_jobs() {
        assert_eq!(seen(1_100, 100, 8, Some(&policy())), []);
        assert_eq!(seen(1_100, 100, 7, Some(&policy())).len(), 1);
    }

    #[test]
    fn a_job_is_no_older_than_its_process_and_never_from_the_future() {
        assert_eq!(seen(1_061, 100, 7, None)[0].age, secs(61));
        assert_eq!(seen(90_000, 5, 7, None)[0].age, secs(5), "the clock jumped forward");
        assert_eq!(seen(500, 100, 7, None)[0].age, secs(0), "the clock jumped back");
    }

    #[test]
    fn stale_is_older_than_the_timeout_of_the_class_or_the_default() {
        let mut policy = policy();
        assert!(!seen(1_060, 100, 7, Some(&policy))[0].is_stale());
        assert!(seen(1_061, 100, 7, Some(&policy))[0].is_stale());
        assert!(!seen(1_061, 100, 7, None)[0].is_stale(), "no timeout: for ever");
        policy.classes.insert("A".into(), secs(600));
        assert!(!seen(1_061, 100, 7, Some(&policy))[0].is_stale());
    }

    #[test]
    fn looks_are_rare_and_never_too_late() {
        let policy = StalePolicy { default: secs(600), classes: BTreeMap::new() };
        let look = |now| next_look(&seen(now, 9_999, 7, Some(&policy)), [&policy]);
        assert_eq!(next_look::<()>(&[], [&policy]), Some(secs(600)), "a job that is not yet seen is younger than the look");
        assert_eq!(look(1_001), Some(secs(30)));
        assert_eq!(look(1_590), Some(secs(10)));
        assert_eq!(look(1_600), Some(LEAST_LOOK));
        assert_eq!(look(1_700), Some(LEAST_LOOK), "until it is gone");
        assert_eq!(next_look::<()>(&[], []), None);
    }

    #[test]
    fn every_job_is_acted_on_in_time_whenever_it_starts() {
        for timeout in [1, 3, 10, 40, 100, 600] {
            let policy = StalePolicy { default: secs(timeout), classes: BTreeMap::new() };
            for offset in 0..(timeout * 2) {
                // A look at 0 that sees nothing, and then as often as it is asked for; the job begins `offset` seconds after it.
                let (begun, mut now) = (1_000 + offset, 1_000);
                let acted = loop {
                    let jobs = if now < begun {
                        Vec::new()
                    } else {
                        let cmdline = format!("resque-3.0.0: Processing q since {begun} [A]");
                        let process = ProcessId { pid: 9, start_ticks: 1 };
                        let seen = ProcessSeen { process, parent: 7, cmdline: cmdline.as_bytes(), own_age: secs(now - begun) };
                        let now = WallTime::from_unix_millis(i64::try_from(now).expect("small") * 1_000);
                        in_flight(&[seen], &BTreeMap::from([(7, ((), Some(&policy)))]), now)
                    };
                    if jobs.iter().any(JobSeen::is_stale) {
                        break now;
                    }
                    now += next_look(&jobs, [&policy]).expect("there is a timeout").as_secs();
                };
                assert!(secs(acted) <= secs(begun + timeout) + lateness(secs(timeout)), "{timeout} {offset}: {acted}");
            }
        }
    }
}
