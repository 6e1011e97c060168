//! Looks at memory and jobs: one pass over `/proc` for all workers, on a blocking thread, and only when somebody has a limit.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use selfstart_core::id::{PoolName, ProcessId, SlotId, StartNo};
use selfstart_core::job::{self, ProcessSeen};
use selfstart_core::policy::StalePolicy;
use selfstart_core::pool::Event;
use selfstart_core::time::{MonoTime, WallTime};
use selfstart_core::units::Bytes;
use selfstart_core::worker::{self, StaleJobSeen};

use super::run::{Agent, Worked};
use crate::sys::{clock, process};

/// What was seen.
#[derive(Debug)]
pub(crate) struct Sampled {
    memory: Vec<(SlotId, StartNo, Option<Bytes>)>,
    jobs: Vec<(SlotId, StartNo, JobShown)>,
    /// The pools whose jobs were looked at.
    looked: Vec<PoolName>,
    /// When jobs are looked at again.
    next_look: Option<Duration>,
}

/// A job in flight, as a title shows it.
#[derive(Clone, Debug)]
pub(crate) struct JobShown {
    pub(crate) child: ProcessId,
    pub(crate) class: Option<String>,
    pub(crate) queue: String,
    pub(crate) started_at: WallTime,
    title: Box<[u8]>,
    age: Duration,
    /// `None`: not stale.
    stale_after: Option<Duration>,
}

/// One worker to look at.
struct Worker {
    slot: SlotId,
    start: StartNo,
    process: ProcessId,
    /// The lowest limit of its memory; `None`: not looked at now.
    limit: Option<Bytes>,
    stale: Option<Arc<StalePolicy>>,
}

/// How long after the first worker its jobs are looked at first.
pub(crate) fn first_look(policy: &StalePolicy) -> Duration {
    job::next_look::<()>(&[], [policy]).unwrap_or(job::LEAST_LOOK)
}

impl Agent {
    /// Begins a pass when one is due; one at a time.
    pub(crate) fn sample_due(&mut self, now: MonoTime) {
        let due = |at: Option<MonoTime>| at.is_some_and(|at| at <= now);
        let mut workers = Vec::new();
        let mut looked = Vec::new();
        let busy = self.sampling;
        for (name, run) in &mut self.pools {
            let policy = &run.settings.policy.worker;
            let (memory, jobs) = (due(run.next_sample), due(run.next_jobs));
            if !memory && !jobs {
                continue;
            }
            if busy {
                // The pass before this one still runs: the next comes a little later, none is queued.
                let later = Some(now + job::LEAST_LOOK);
                (run.next_sample, run.next_jobs) = (run.next_sample.max(later.filter(|_| memory)), run.next_jobs.max(later.filter(|_| jobs)));
                continue;
            }
            let limit = policy.memory.as_ref().filter(|_| memory).and_then(|policy| policy.ladder.first()).map(|rung| rung.limit);
            let stale = policy.stale.as_ref().filter(|_| jobs).map(|policy| Arc::new(policy.clone()));
            if memory {
                run.next_sample = policy.memory.as_ref().map(|policy| now + policy.every);
            }
            if jobs {
                looked.push(name.clone());
                run.next_jobs = policy.stale.as_ref().map(|policy| now + first_look(policy));
            }
            for (number, slot) in run.machine().slots() {
                if let (Some(start), Some(process)) = (slot.start(), slot.process()) {
                    workers.push(Worker { slot: SlotId { pool: name.clone(), slot: number }, start, process, limit, stale: stale.clone() });
                }
            }
        }
        if !busy && !(workers.is_empty() && looked.is_empty()) {
            self.sampling = true;
            self.work(move || Worked::Sampled(Box::new(look(&workers, looked))));
        }
    }

    /// Brings the workers what was seen of them.
    pub(crate) fn sampled(&mut self, sampled: Sampled) {
        self.sampling = false;
        for (slot, start, sample) in sampled.memory {
            if let Some(seen) = self.pools.get_mut(&slot.pool).and_then(|run| run.seen.get_mut(&slot.slot)) {
                seen.memory = sample;
            }
            let event = worker::Event::MemorySample { start, sample };
            self.pool_event(&slot.pool, Event::Slot { slot: slot.slot, event });
        }
        let now = clock::now();
        for name in &sampled.looked {
            if let Some(run) = self.pools.get_mut(name) {
                for seen in run.seen.values_mut() {
                    seen.job = None;
                }
                if let (Some(at), Some(wait)) = (run.next_jobs, sampled.next_look) {
                    run.next_jobs = Some(at.min(now + wait));
                }
            }
        }
        for (slot, start, job) in sampled.jobs {
            let stale = job.stale_after.map(|timeout| StaleJobSeen {
                child: job.child,
                title: job.title.as_ref().into(),
                class: job.class.as_deref().map(Into::into),
                queue: job.queue.as_str().into(),
                age: job.age,
                timeout,
            });
            if let Some(seen) = self.pools.get_mut(&slot.pool).and_then(|run| run.seen.get_mut(&slot.slot)) {
                seen.job = Some(Box::new(job));
            }
            if let Some(job) = stale {
                let event = worker::Event::StaleJob { start, job };
                self.pool_event(&slot.pool, Event::Slot { slot: slot.slot, event });
            }
        }
    }
}

/// Reads what is asked for. What cannot be read is `None`, never zero.
fn look(workers: &[Worker], looked: Vec<PoolName>) -> Sampled {
    let mut sampled = Sampled { memory: Vec::new(), jobs: Vec::new(), looked, next_look: None };
    let Ok(everyone) = process::everyone() else {
        sampled.memory = workers.iter().filter(|worker| worker.limit.is_some()).map(|worker| (worker.slot.clone(), worker.start, None)).collect();
        return sampled;
    };
    let by_pid: BTreeMap<i32, &process::Stat> = everyone.iter().map(|(pid, stat)| (*pid, stat)).collect();
    let roots: BTreeMap<i32, usize> = workers.iter().enumerate().map(|(index, worker)| (worker.process.pid, index)).collect();
    let mut trees: Vec<Vec<i32>> = vec![Vec::new(); workers.len()];
    for (pid, stat) in &everyone {
        if let Some(index) = owner(*pid, stat, &by_pid, &roots) {
            trees[index].push(*pid);
        }
    }
    for (worker, tree) in workers.iter().zip(&trees) {
        if let Some(limit) = worker.limit {
            sampled.memory.push((worker.slot.clone(), worker.start, memory(worker, tree, &by_pid, limit)));
        }
    }
    sampled.jobs = jobs(workers, &trees, &by_pid, &mut sampled.next_look);
    sampled
}

/// Finds the worker to whose tree a process belongs: by its session (each worker has its own), else by its ancestors.
fn owner(pid: i32, stat: &process::Stat, by_pid: &BTreeMap<i32, &process::Stat>, roots: &BTreeMap<i32, usize>) -> Option<usize> {
    if let Some(index) = roots.get(&pid).or_else(|| roots.get(&stat.session)) {
        return Some(*index);
    }
    let mut parent = stat.ppid;
    let mut passed = BTreeSet::new();
    // A number may have come again while we read, so what looks like a ring is possible, and ends.
    while parent > 1 && passed.insert(parent) {
        if let Some(index) = roots.get(&parent) {
            return Some(*index);
        }
        parent = by_pid.get(&parent)?.ppid;
    }
    None
}

/// The memory of a whole tree: the sum of resident sizes; where that is over the limit, and processes share pages (a fork does), the sum
/// of proportional sizes, which counts a shared page once.
fn memory(worker: &Worker, tree: &[i32], by_pid: &BTreeMap<i32, &process::Stat>, limit: Bytes) -> Option<Bytes> {
    let main = by_pid.get(&worker.process.pid)?;
    if main.start_ticks != worker.process.start_ticks {
        return None;
    }
    let page = u64::try_from(rustix::param::page_size()).ok()?;
    let resident: u64 = tree.iter().filter_map(|pid| by_pid.get(pid)).map(|stat| stat.rss_pages.saturating_mul(page)).sum();
    if resident <= limit.0 {
        return Some(Bytes(resident));
    }
    // One that cannot be read leaves the cheap figure, which is never below the true one.
    let proportional = tree.iter().map(|pid| process::proportional(*pid)).sum::<Option<u64>>();
    Some(Bytes(proportional.unwrap_or(resident).min(resident)))
}

fn jobs(
    workers: &[Worker],
    trees: &[Vec<i32>],
    by_pid: &BTreeMap<i32, &process::Stat>,
    next: &mut Option<Duration>,
) -> Vec<(SlotId, StartNo, JobShown)> {
    let mut titles: Vec<(ProcessId, i32, Vec<u8>, Duration)> = Vec::new();
    let mut masters: BTreeMap<i32, (usize, Option<&StalePolicy>)> = BTreeMap::new();
    let now = clock::now();
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    for (index, (worker, tree)) in workers.iter().zip(trees).enumerate() {
        let Some(policy) = &worker.stale else { continue };
        masters.insert(worker.process.pid, (index, Some(policy)));
        for pid in tree {
            let Some(stat) = by_pid.get(pid).filter(|stat| stat.ppid == worker.process.pid) else { continue };
            let Ok(title) = process::title(*pid) else { continue };
            let started = MonoTime::from_boot(Duration::from_millis(stat.start_ticks.saturating_mul(1000) / per_second));
            titles.push((ProcessId { pid: *pid, start_ticks: stat.start_ticks }, stat.ppid, title, now.since(started)));
        }
    }
    let seen: Vec<ProcessSeen<'_>> = titles
        .iter()
        .map(|(process, parent, title, own_age)| ProcessSeen { process: *process, parent: *parent, cmdline: title, own_age: *own_age })
        .collect();
    let found = job::in_flight(&seen, &masters, clock::wall());
    *next = job::next_look(&found, workers.iter().filter_map(|worker| worker.stale.as_deref()));
    let whole = |child: ProcessId| titles.iter().find(|(process, ..)| *process == child).map(|(_, _, title, _)| title.clone());
    found
        .into_iter()
        .filter_map(|job| {
            let worker = workers.get(job.master)?;
            let shown = JobShown {
                child: job.child,
                class: job.class.as_deref().map(str::to_owned),
                queue: job.queue.to_string(),
                started_at: job.started,
                // The whole of what was read: that is what is compared before it is killed.
                title: whole(job.child)?.into(),
                age: job.age,
                stale_after: job.timeout.filter(|_| job.is_stale()),
            };
            Some((worker.slot.clone(), worker.start, shown))
        })
        .collect()
}
