//! Looks at memory and jobs: one pass over `/proc` for all workers, on a blocking thread.
//!
//! Pools without a `memory` rule are looked at too, for `status`: seldom, by the cheap figure alone, and with a pass that another pool
//! needs wherever there is one. What is seen of them decides nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use selfstart_core::id::{PoolName, ProcessId, SlotId, StartNo, WorkerKey};
use selfstart_core::job::{self, ProcessSeen};
use selfstart_core::policy::{StalePolicy, WorkerPolicy};
use selfstart_core::pool::Event;
use selfstart_core::time::{MonoTime, WallTime};
use selfstart_core::units::Bytes;
use selfstart_core::worker::{self, StaleJobSeen};

use super::run::{Agent, Worked};
use crate::keeper;
use crate::keeper::protocol::{Ask, Errand};
use crate::sys::proc_scan::{ProcScanner, Snapshot, Tree};
use crate::sys::{clock, process};

/// How often the memory of a pool without a rule is looked at: as that of one whose rule does not say (PRODUCT.md, `memory`).
const SHOWN_EVERY: Duration = Duration::from_secs(10);

/// What was seen.
#[derive(Debug)]
pub(crate) struct Sampled {
    memory: Vec<(SlotId, StartNo, Option<Bytes>, Use)>,
    jobs: Vec<(SlotId, StartNo, JobShown)>,
    /// The pools whose jobs were looked at.
    looked: Vec<PoolName>,
    /// When jobs are looked at again.
    next_look: Option<Duration>,
    /// The memory that must be looked at by who may look into others: in place of `memory`.
    unseen: Vec<Unseen>,
}

/// A worker whose memory the keeper has to have looked at.
#[derive(Debug)]
pub(crate) struct Unseen {
    slot: SlotId,
    start: StartNo,
    of: Use,
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
    /// What its memory is looked at for; `None`: not now.
    memory: Option<Use>,
    stale: Option<Arc<StalePolicy>>,
}

/// What a figure is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// To be shown: the cheap figure will do.
    Shown,
    /// To be held against a ladder with this lowest limit, near which the exact figure is needed.
    Judged(Bytes),
}

impl Use {
    fn of(policy: &WorkerPolicy) -> Self {
        policy.memory.as_ref().and_then(|memory| memory.ladder.first()).map_or(Self::Shown, |rung| Self::Judged(rung.limit))
    }

    fn limit(self) -> Option<Bytes> {
        if let Self::Judged(limit) = self { Some(limit) } else { None }
    }
}

/// When the memory of a pool with workers is looked at next; `planned`: as it was, before something may have changed.
pub(crate) fn next_sample(planned: Option<MonoTime>, policy: &WorkerPolicy, now: MonoTime) -> MonoTime {
    let latest = now + every(policy);
    planned.map_or(latest, |planned| planned.min(latest))
}

fn every(policy: &WorkerPolicy) -> Duration {
    policy.memory.as_ref().map_or(SHOWN_EVERY, |memory| memory.every)
}

/// Whether a look that is planned for `planned` is taken now: when it is due, and of what is only shown also when a pass is made anyway
/// and the last one was long enough ago.
fn joins(planned: Option<MonoTime>, of: Use, now: MonoTime, pass: bool) -> bool {
    let early = if pass && of == Use::Shown { SHOWN_EVERY / 2 } else { Duration::ZERO };
    planned.is_some_and(|planned| planned <= now + early)
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
        let pass = !busy && self.pools.values().any(|run| due(run.next_sample) || due(run.next_jobs));
        for (name, run) in &mut self.pools {
            let policy = &run.settings.policy.worker;
            let measure = Use::of(policy);
            let (memory, jobs) = (joins(run.next_sample, measure, now, pass), due(run.next_jobs));
            if !memory && !jobs {
                continue;
            }
            if busy {
                // The pass before this one still runs: the next comes a little later, none is queued. No sample may be later than one
                // `every`, so where that is short a second is too long.
                let sample = Some(now + every(policy).min(job::LEAST_LOOK)).filter(|_| memory);
                let look = Some(now + job::LEAST_LOOK).filter(|_| jobs);
                (run.next_sample, run.next_jobs) = (run.next_sample.max(sample), run.next_jobs.max(look));
                continue;
            }
            let measure = Some(measure).filter(|_| memory);
            let stale = policy.stale.as_ref().filter(|_| jobs).map(|policy| Arc::new(policy.clone()));
            if memory {
                run.next_sample = Some(now + every(policy));
            }
            if jobs {
                looked.push(name.clone());
                run.next_jobs = policy.stale.as_ref().map(|policy| now + first_look(policy));
            }
            for (number, slot) in run.machine().slots() {
                if let (Some(start), Some(process)) = (slot.start(), slot.process()) {
                    workers.push(Worker {
                        slot: SlotId { pool: name.clone(), slot: number },
                        start,
                        process,
                        memory: measure,
                        stale: stale.clone(),
                    });
                }
            }
        }
        if !busy && (!workers.is_empty() || !looked.is_empty()) {
            self.sampling = true;
            let machines = self.pools.values().map(super::minding::PoolRun::machine);
            let everybody = machines.flat_map(|machine| machine.slots().filter_map(|(_, slot)| Some(slot.process()?.pid))).collect();
            self.work(move || Worked::Sampled(Box::new(look(&workers, &everybody, looked))));
        }
    }

    /// Brings the workers what was seen of them.
    pub(crate) fn sampled(&mut self, mut sampled: Sampled) {
        self.sampling = !sampled.unseen.is_empty();
        if self.sampling {
            self.measure_by_keeper(std::mem::take(&mut sampled.unseen));
        }
        self.memory_sampled(std::mem::take(&mut sampled.memory));
        self.jobs_sampled(sampled);
    }

    /// Has the keeper look at the memory of workers into which we may not look.
    fn measure_by_keeper(&mut self, unseen: Vec<Unseen>) {
        let key = |it: &Unseen| WorkerKey { slot: it.slot.clone(), start: it.start }.to_string();
        let of = unseen.iter().map(|it| (key(it), it.of.limit().map(|limit| limit.0))).collect();
        self.ask(Ask::Errand(Errand::Memory(of)));
        self.waiting.measured = unseen;
    }

    /// It has; what could not be seen is unknown.
    pub(super) fn measured(&mut self, unseen: Vec<Unseen>, seen: Result<Vec<Option<u64>>, String>) {
        self.sampling = false;
        let seen = seen.ok().filter(|seen| seen.len() == unseen.len()).unwrap_or_else(|| vec![None; unseen.len()]);
        let memory = unseen.into_iter().zip(seen).map(|(it, bytes)| (it.slot, it.start, bytes.map(Bytes), it.of));
        self.memory_sampled(memory.collect());
    }

    fn memory_sampled(&mut self, memory: Vec<(SlotId, StartNo, Option<Bytes>, Use)>) {
        for (slot, start, sample, of) in memory {
            let run = self.pools.get_mut(&slot.pool);
            // It may have been replaced while we read; the machine asks for itself.
            let same = run.as_ref().is_some_and(|run| run.machine().slot(slot.slot).is_some_and(|it| it.start() == Some(start)));
            if let Some(seen) = run.filter(|_| same).and_then(|run| run.seen.get_mut(&slot.slot)) {
                seen.memory = sample;
            }
            if of == Use::Shown {
                continue;
            }
            let event = worker::Event::MemorySample { start, sample };
            self.pool_event(&slot.pool, Event::Slot { slot: slot.slot, event });
        }
    }

    fn jobs_sampled(&mut self, sampled: Sampled) {
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

/// Reads what is asked for. What cannot be read is `None`, never zero. `everybody`: the main processes of all workers.
fn look(workers: &[Worker], everybody: &BTreeSet<i32>, looked: Vec<PoolName>) -> Sampled {
    let mut sampled = Sampled { memory: Vec::new(), jobs: Vec::new(), looked, next_look: None, unseen: Vec::new() };
    let scanned = ProcScanner::new().and_then(|mut scanner| scanner.scan().map(|snapshot| (scanner, snapshot)));
    let Ok((mut scanner, snapshot)) = scanned else {
        let asked = workers.iter().filter_map(|worker| Some((worker.slot.clone(), worker.start, None, worker.memory?)));
        sampled.memory = asked.collect();
        return sampled;
    };
    sampled.jobs = jobs(workers, &snapshot, &scanner, &mut sampled.next_look);
    let trees = trees(workers, &snapshot);
    if super::is_apart() && !scanner.sees(&snapshot, &trees, everybody) {
        let unseen = |worker: &Worker| Some(Unseen { slot: worker.slot.clone(), start: worker.start, of: worker.memory? });
        sampled.unseen = workers.iter().filter_map(unseen).collect();
        return sampled;
    }
    for (worker, bytes) in workers.iter().zip(scanner.memory(&snapshot, &trees)) {
        if let Some(of) = worker.memory {
            sampled.memory.push((worker.slot.clone(), worker.start, bytes, of));
        }
    }
    sampled
}

/// The workers' trees: with those who left their session and their parents, whom the keeper then has as its children.
fn trees(workers: &[Worker], snapshot: &Snapshot) -> Vec<Tree> {
    let tree = |worker: &Worker| Tree { main: worker.process, also: Vec::new(), limit: worker.memory.and_then(Use::limit) };
    let mut trees: Vec<Tree> = workers.iter().map(tree).collect();
    find_those_who_left(&mut trees, snapshot);
    trees
}

/// Adds to each tree those who left its session and their parents. The keeper is our parent.
pub(crate) fn find_those_who_left(trees: &mut [Tree], snapshot: &Snapshot) {
    let mains: BTreeMap<i32, usize> = trees.iter().enumerate().map(|(index, tree)| (tree.main.pid, index)).collect();
    let keeper = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
    for (pid, stat) in snapshot.procs().iter().filter(|(_, stat)| Some(stat.ppid) == keeper) {
        if mains.contains_key(pid) || mains.contains_key(&stat.session) {
            continue;
        }
        if let Some(index) = keeper::main_process_of(*pid).and_then(|main| mains.get(&main)) {
            trees[*index].also.push(stat.id(*pid));
        }
    }
}

fn jobs(workers: &[Worker], snapshot: &Snapshot, scanner: &ProcScanner, next: &mut Option<Duration>) -> Vec<(SlotId, StartNo, JobShown)> {
    let mut masters: BTreeMap<i32, (usize, Option<&StalePolicy>)> = BTreeMap::new();
    for (index, worker) in workers.iter().enumerate() {
        // One that has ended and whose number is another's has no jobs.
        if snapshot.get(worker.process).is_some() {
            masters.extend(worker.stale.as_deref().map(|policy| (worker.process.pid, (index, Some(policy)))));
        }
    }
    let now = clock::now();
    let mut titles: Vec<(ProcessId, i32, Vec<u8>, Duration)> = Vec::new();
    for (pid, stat) in snapshot.procs().iter().filter(|(_, stat)| masters.contains_key(&stat.ppid)) {
        let Ok(title) = process::title(*pid) else { continue };
        titles.push((stat.id(*pid), stat.ppid, title, now.since(scanner.started_at(stat.start_ticks))));
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

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::sys::fault;

    /// A master with a job in a child, both ended with the test.
    struct Master(Child);

    impl Drop for Master {
        fn drop(&mut self) {
            let _ends_the_job_too = rustix::process::Pid::from_raw(i32::try_from(self.0.id()).unwrap_or(0))
                .map(|pid| rustix::process::kill_process_group(pid, rustix::process::Signal::KILL));
            let _reaped = self.0.wait();
        }
    }

    #[test]
    fn what_is_only_shown_costs_a_pass_of_its_own_every_ten_seconds_at_most_and_none_where_there_is_one() {
        let at = |secs| MonoTime::from_boot(Duration::from_secs(secs));
        let (shown, judged) = (Use::Shown, Use::Judged(Bytes(1)));
        for (planned, of, pass, taken) in [
            (Some(100), shown, true, true),
            (Some(105), shown, true, true),
            (Some(106), shown, true, false),
            (Some(101), shown, false, false),
            (Some(100), judged, true, true),
            // A rule says when it is looked at: a hit too early would count as one more.
            (Some(101), judged, true, false),
            (None, shown, true, false),
        ] {
            assert_eq!(joins(planned.map(at), of, at(100), pass), taken, "{planned:?} {of:?} {pass}");
        }
        // Two pools that began apart are looked at in one pass from the second on, and each every 5 to 10 seconds.
        let mut next = [at(10), at(14)];
        let mut passes = Vec::new();
        for now in 0..=100 {
            let pass = next.iter().any(|next| *next <= at(now));
            let taken = next.map(|next| joins(Some(next), shown, at(now), pass));
            for (next, taken) in next.iter_mut().zip(taken) {
                *next = if taken { at(now) + SHOWN_EVERY } else { *next };
            }
            passes.extend(pass.then_some((now, taken)));
        }
        assert!(passes.iter().map(|(now, taken)| (*now, *taken)).eq((1..=10).map(|n| (n * 10, [true, true]))), "{passes:?}");
    }

    #[test]
    fn what_cannot_be_read_is_unknown_and_neither_zero_nor_a_stale_job() {
        use std::os::unix::process::CommandExt;
        let title = "resque-3.0.0: Processing slow since 1000000000 [SleepJob]";
        let mut command = Command::new("bash");
        command.args(["-c", &format!("(exec -a '{title}' sleep 1000) & wait")]).stdin(Stdio::null()).process_group(0);
        let master = Master(command.spawn().expect("bash"));
        let pid = i32::try_from(master.0.id()).expect("a pid");
        let worker = |of| Worker {
            slot: "w/0".parse().expect("a slot"),
            start: StartNo(1),
            process: process::stat(pid).expect("it lives").id(pid),
            memory: Some(of),
            stale: Some(Arc::new(StalePolicy { default: Duration::ZERO, classes: BTreeMap::new() })),
        };
        // Far from its limit its resident set is read, near it the proportional one.
        let (far, near) = ([worker(Use::Judged(Bytes(u64::MAX)))], [worker(Use::Judged(Bytes(1)))]);
        let shown = [worker(Use::Shown)];
        let seen = |workers: &[Worker]| {
            let sampled = look(workers, &BTreeSet::new(), Vec::new());
            assert_eq!(sampled.memory.len(), 1, "a sample that failed is told too");
            (sampled.memory[0].2, sampled.jobs.iter().filter(|(.., job)| job.stale_after.is_some()).count())
        };
        while seen(&far).1 == 0 {
            std::thread::yield_now();
        }
        for workers in [&far, &near, &shown] {
            let (memory, jobs) = seen(workers);
            assert!(memory.is_some_and(|bytes| bytes.0 > 100_000) && jobs == 1, "{memory:?} {jobs}");
        }
        for (file, workers, memory_is_known, jobs) in [
            ("", &far, false, 0),
            ("stat", &far, false, 0),
            ("smaps_rollup", &near, false, 1),
            ("smaps_rollup", &far, true, 1),
            ("stat", &shown, false, 0),
            ("smaps_rollup", &shown, true, 1),
            ("cmdline", &far, true, 0),
            ("environ", &far, true, 1),
        ] {
            fault::set_proc(Some(file));
            let (memory, stale) = seen(workers);
            fault::set_proc(None);
            assert_eq!((memory.is_some(), stale), (memory_is_known, jobs), "without `{file}`: {memory:?}");
        }
    }
}
