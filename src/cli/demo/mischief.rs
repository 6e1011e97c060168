//! The part of the story in which three workers misbehave at once: a job hangs, a worker leaks, a worker crashes. Each is followed by a
//! struct of its own, which looks once a turn, tells what is new, and ends with what is to be judged.

use std::time::{Duration, Instant};

use selfstart_core::id::ProcessId;

use super::judge::{self, Crash, Hang, Leak};
use super::watch::{self, Seen};
use super::{EVERY, End, LIMIT_MB, SAMPLES, STALE, Story, Style, alive};
use crate::sys::clock;

/// How long all three may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// When the crash is cued at the latest, so that a leak that is never noticed does not hide it.
const CRASH_AT: Duration = Duration::from_secs(6);

impl Story {
    /// A job hangs; meanwhile one leaks, and then one crashes.
    pub(super) fn mischief(&mut self) -> Result<(), End> {
        self.chapter("Three workers misbehave")?;
        let before = self.watch.now.clone();
        let (mut hanging, mut leaking, mut crashing) = (Hanging::new(&before), Leaking::new(&before), Crashing::new(&before));
        self.cue("hang")?;
        self.cue("leak")?;
        let (began, mut cued) = (clock::instant(), false);
        self.wait(PATIENCE, |story| {
            let now = story.watch.now.clone();
            hanging.look(story, &now)?;
            leaking.look(story, &now)?;
            if !cued && (leaking.is_over() || began.elapsed() > CRASH_AT) {
                story.cue("crash")?;
                cued = true;
            }
            crashing.look(story, &now)?;
            Ok((hanging.is_over() && leaking.is_over() && crashing.is_over()).then_some(()))
        })?;
        self.judged([judge::memory(&leaking.seen), judge::stale(&hanging.seen), judge::crash(&crashing.seen)])
    }
}

/// A master whose job never ends.
struct Hanging {
    seen: Hang,
    job: Option<ProcessId>,
    /// Jobs that it had finished when the one that hung was gone.
    jobs_before: usize,
}

impl Hanging {
    fn new(before: &Seen) -> Self {
        let master = before.workers.get("hang/0").map(|worker| worker.process);
        Self { seen: Hang { timeout: STALE, age: None, masters: (master, None), jobs_after: 0 }, job: None, jobs_before: 0 }
    }

    fn is_over(&self) -> bool {
        self.seen.jobs_after > 0
    }

    fn look(&mut self, story: &mut Story, now: &Seen) -> Result<(), End> {
        match self.job {
            None => self.begins(story, now),
            Some(job) if self.seen.age.is_none() && !alive(job) => self.is_ended(story, job),
            Some(_) if self.seen.age.is_some() && !self.is_over() => self.goes_on(story, now),
            Some(_) => Ok(()),
        }
    }

    fn begins(&mut self, story: &mut Story, now: &Seen) -> Result<(), End> {
        let Some(child) = now.others.iter().find(|other| other.title.contains("[HangingJob]")) else { return Ok(()) };
        self.job = Some(child.process);
        let text = format!("took a job that never ends, in process {}; jobs may take {} s", child.process.pid, STALE.as_secs());
        story.tell("hang/0", Style::Warn, &text)
    }

    fn is_ended(&mut self, story: &mut Story, job: ProcessId) -> Result<(), End> {
        let age = story.watch.age(job);
        self.seen.age = Some(age);
        self.jobs_before = watch::wrote(&story.node.root, "hang/0", "QuickJob done");
        let text = format!("the job's process {} is gone after {} ms", job.pid, age.as_millis());
        story.tell("hang/0", Style::Good, &text)?;
        story.verdict("stale_job", "hang", None)
    }

    fn goes_on(&mut self, story: &mut Story, now: &Seen) -> Result<(), End> {
        self.seen.jobs_after = watch::wrote(&story.node.root, "hang/0", "QuickJob done").saturating_sub(self.jobs_before);
        if !self.is_over() {
            return Ok(());
        }
        self.seen.masters.1 = now.workers.get("hang/0").map(|worker| worker.process);
        story.tell("hang/0", Style::Good, "took the next job, and finished it")
    }
}

/// A worker that grows past its limit.
struct Leaking {
    seen: Leak,
    /// When it was first seen above its limit.
    passed: Option<Instant>,
}

impl Leaking {
    fn new(before: &Seen) -> Self {
        let limit = LIMIT_MB * 1_000_000;
        let seen = Leak { limit, samples: SAMPLES, every: EVERY, peak: 0, late: None, pids: (before.pid("leak/0"), None) };
        Self { seen, passed: None }
    }

    fn is_over(&self) -> bool {
        self.seen.pids.1.is_some()
    }

    fn look(&mut self, story: &mut Story, now: &Seen) -> Result<(), End> {
        let found = now.workers.get("leak/0").map(|worker| (worker.process.pid, worker.bytes));
        if let Some((pid, bytes)) = found.filter(|(pid, _)| Some(*pid) == self.seen.pids.0) {
            self.seen.peak = self.seen.peak.max(bytes);
            if self.passed.is_none() && bytes > self.seen.limit {
                self.passed = Some(clock::instant());
                let text = format!("leaks: process {pid} has {} MB; its limit is {LIMIT_MB} MB", bytes / 1_000_000);
                story.tell("leak/0", Style::Warn, &text)?;
            }
            return Ok(());
        }
        if self.seen.late.is_none() {
            self.seen.late = self.passed.map(|passed| passed.elapsed());
        }
        let (None, Some((pid, bytes))) = (self.seen.pids.1, found) else { return Ok(()) };
        self.seen.pids.1 = Some(pid);
        story.tell("leak/0", Style::Good, &format!("process {pid} takes over, with {} MB", bytes / 1_000_000))?;
        story.verdict("worker_ended", "leak", None)
    }
}

/// A worker that ends at once, and leaves a process in a session of its own.
struct Crashing {
    seen: Crash,
    stray: Option<ProcessId>,
    /// When it was first seen to be gone.
    gone: Option<Instant>,
}

impl Crashing {
    fn new(before: &Seen) -> Self {
        let stray = before.others.iter().find(|other| other.slot == "crash/0").map(|other| other.process);
        Self { seen: Crash { pids: (before.pid("crash/0"), None), took: None, left: None }, stray, gone: None }
    }

    fn is_over(&self) -> bool {
        self.seen.pids.1.is_some() && self.seen.left.is_none_or(|(_, gone)| gone)
    }

    fn look(&mut self, story: &mut Story, now: &Seen) -> Result<(), End> {
        self.seen.left = self.stray.map(|stray| (stray.pid, !alive(stray)));
        let found = now.workers.get("crash/0").map(|worker| worker.process.pid);
        if found.is_some() && found == self.seen.pids.0 {
            return Ok(());
        }
        let gone = *self.gone.get_or_insert_with(clock::instant);
        let (None, Some(pid)) = (self.seen.pids.1, found) else { return Ok(()) };
        self.seen.pids.1 = Some(pid);
        self.seen.took = Some(gone.elapsed());
        story.tell("crash/0", Style::Warn, "crashed, and left a process in a session of its own")?;
        story.tell("crash/0", Style::Good, &format!("process {pid} takes over"))?;
        story.verdict("worker_ended", "crash", None)
    }
}
