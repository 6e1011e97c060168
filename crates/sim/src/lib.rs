//! Simulated processes, clock and faults around the machines of selfstart-core: for tests only.
//!
//! A [`World`] carries out the effects of slots as a keeper would, with processes that have a [`Temper`]: they obey signals or not, end by
//! themselves, leave children behind, and are heard of twice. It holds what must never happen against what it is asked to do: two
//! workers in one slot, a start number used again, a tree cleared before its main process has ended.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use selfstart_core::backoff::Jitter;
use selfstart_core::id::{ProcessId, StartNo};
use selfstart_core::signal::Signal;
use selfstart_core::time::MonoTime;
use selfstart_core::worker::{Effect, Event, ExitHow, Target};

/// How a simulated worker behaves.
#[derive(Clone, Debug)]
pub struct Temper {
    /// How long the keeper takes to make the process; `None`: it cannot be made.
    pub spawn: Option<Duration>,
    /// How long it takes to be ready, if that is asked for; `None`: for ever.
    pub ready: Option<Duration>,
    /// How long it lives if nobody ends it; `None`: for ever.
    pub lives: Option<Duration>,
    /// What ends it, and how long that takes. KILL to the tree always does.
    pub obeys: Vec<(Signal, Duration)>,
    /// How many children outlive it.
    pub leftovers: u32,
    /// News of it comes a second time, so much later; `None`: once.
    pub echo: Option<Duration>,
}

impl Temper {
    /// Returns a worker that does what it should.
    #[must_use]
    pub fn good() -> Self {
        let ms = Duration::from_millis;
        Self { spawn: Some(ms(1)), ready: Some(ms(100)), lives: None, obeys: vec![(Signal::Term, ms(200))], leftovers: 0, echo: None }
    }
}

/// A keeper and its processes.
#[derive(Debug)]
pub struct World {
    /// What time it is.
    pub now: MonoTime,
    /// Each start takes the next; the last one stays.
    tempers: Vec<Temper>,
    used: usize,
    coming: BTreeMap<(MonoTime, u64), Coming>,
    order: u64,
    workers: BTreeMap<u32, Worker>,
    last_start: BTreeMap<u32, StartNo>,
}

#[derive(Debug)]
struct Worker {
    start: StartNo,
    target: Arc<Target>,
    temper: Temper,
    leftovers: u32,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Spawning,
    Up { process: ProcessId, since: MonoTime },
    Dead { process: ProcessId, since: MonoTime },
}

#[derive(Clone, Debug)]
enum Coming {
    Spawned(u32, StartNo),
    Exit(u32, StartNo, ExitHow),
    TreeGone(u32, StartNo),
    Ready(u32, StartNo),
    /// Heard again.
    Echo(u32, Event),
}

impl World {
    /// Returns a world whose starts take these tempers in turn, and [`Temper::good`] after them.
    #[must_use]
    pub fn new(mut tempers: Vec<Temper>) -> Self {
        tempers.push(Temper::good());
        Self {
            now: MonoTime::from_boot(Duration::from_secs(1_000)),
            tempers,
            used: 0,
            coming: BTreeMap::new(),
            order: 0,
            workers: BTreeMap::new(),
            last_start: BTreeMap::new(),
        }
    }

    /// Returns whether anything of a worker is in this slot: a process being made, alive, or its tree not yet cleared.
    #[must_use]
    pub fn is_occupied(&self, slot: u32) -> bool {
        self.workers.contains_key(&slot)
    }

    /// Returns how long the worker of this slot has lived; `None`: there is none, or it is not up.
    #[must_use]
    pub fn age(&self, slot: u32) -> Option<Duration> {
        match self.workers.get(&slot)?.phase {
            Phase::Up { since, .. } => Some(self.now.since(since)),
            Phase::Spawning | Phase::Dead { .. } => None,
        }
    }

    /// Returns whether nothing is left anywhere.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }

    /// Returns when something happens next, if anything does.
    #[must_use]
    pub fn next_at(&self) -> Option<MonoTime> {
        self.coming.first_key_value().map(|((at, _), _)| *at)
    }

    fn at(&mut self, wait: Duration, coming: Coming) {
        self.order += 1;
        self.coming.insert((self.now + wait, self.order), coming);
    }

    /// Carries out an effect.
    ///
    /// # Panics
    /// If it is one that must never be asked for.
    pub fn carry_out(&mut self, slot: u32, effect: &Effect) {
        match effect {
            Effect::Spawn { start, target } => {
                assert!(!self.is_occupied(slot), "a second worker in slot {slot}: {:?}", self.workers[&slot]);
                let last = self.last_start.insert(slot, *start).unwrap_or_default();
                assert!(*start > last, "start {start:?} of slot {slot} comes after {last:?}");
                let temper = self.tempers[self.used.min(self.tempers.len() - 1)].clone();
                self.used += 1;
                let wait = temper.spawn.unwrap_or(Duration::from_millis(1));
                let worker =
                    Worker { start: *start, target: Arc::clone(target), leftovers: temper.leftovers, temper, phase: Phase::Spawning };
                self.workers.insert(slot, worker);
                self.at(wait, Coming::Spawned(slot, *start));
            }
            Effect::Signal { start, signal } => {
                let obeyed = self
                    .alive(slot, *start)
                    .and_then(|worker| worker.temper.obeys.iter().find(|(obeyed, _)| obeyed == signal).map(|(_, wait)| *wait));
                if let Some(wait) = obeyed {
                    self.at(wait, Coming::Exit(slot, *start, ExitHow::Code(0)));
                }
            }
            Effect::KillTree { start } => {
                if let Some(worker) = self.workers.get_mut(&slot).filter(|worker| worker.start == *start) {
                    worker.leftovers = 0;
                    self.at(Duration::from_millis(10), Coming::Exit(slot, *start, ExitHow::Signal { number: 9, core: false }));
                }
            }
            Effect::ClearTree { start } => {
                let worker = self.workers.get(&slot).filter(|worker| worker.start == *start);
                assert!(
                    worker.is_none_or(|worker| matches!(worker.phase, Phase::Dead { .. })),
                    "the tree of a living worker is cleared: slot {slot}"
                );
                self.at(Duration::from_millis(5), Coming::TreeGone(slot, *start));
            }
            Effect::WatchReady { start } => {
                if let Some(wait) = self.alive(slot, *start).and_then(|worker| worker.temper.ready) {
                    self.at(wait, Coming::Ready(slot, *start));
                }
            }
            Effect::KillJob { .. } | Effect::Tell(_) => {}
        }
    }

    fn alive(&self, slot: u32, start: StartNo) -> Option<&Worker> {
        self.workers.get(&slot).filter(|worker| worker.start == start && matches!(worker.phase, Phase::Up { .. }))
    }

    /// Lets the next thing happen; returns which slot hears what of it, if that makes news.
    pub fn happen(&mut self) -> Option<(u32, Event)> {
        let ((at, _), coming) = self.coming.pop_first()?;
        self.now = self.now.max(at);
        let (slot, event) = match coming {
            Coming::Echo(slot, event) => return Some((slot, event)),
            Coming::Spawned(slot, start) => (slot, self.spawned(slot, start)?),
            Coming::Exit(slot, start, how) => {
                let worker = self.workers.get_mut(&slot).filter(|worker| worker.start == start)?;
                let Phase::Up { process, since } = worker.phase else { return None };
                worker.phase = Phase::Dead { process, since };
                (slot, Event::Exited { start, how, jitter: Jitter(500) })
            }
            Coming::TreeGone(slot, start) => {
                let killed = self.workers.get(&slot).filter(|worker| worker.start == start)?.leftovers;
                let echo = self.workers.remove(&slot).and_then(|worker| worker.temper.echo);
                let event = Event::TreeGone { start, killed };
                if let Some(wait) = echo {
                    self.at(wait, Coming::Echo(slot, event.clone()));
                }
                (slot, event)
            }
            Coming::Ready(slot, start) => {
                self.alive(slot, start)?;
                (slot, Event::ReadySeen { start })
            }
        };
        if let Some(wait) = self.workers.get(&slot).and_then(|worker| worker.temper.echo) {
            self.at(wait, Coming::Echo(slot, event.clone()));
        }
        Some((slot, event))
    }

    fn spawned(&mut self, slot: u32, start: StartNo) -> Option<Event> {
        let now = self.now;
        let worker = self.workers.get_mut(&slot).filter(|worker| worker.start == start)?;
        if worker.temper.spawn.is_none() {
            self.workers.remove(&slot);
            return Some(Event::SpawnFailed { start, error: "no such file".into(), jitter: Jitter(0) });
        }
        let pid = i32::try_from(self.used).unwrap_or(i32::MAX);
        let process = ProcessId { pid, start_ticks: u64::try_from(now.since_boot().as_millis()).unwrap_or(0) };
        worker.phase = Phase::Up { process, since: now };
        if let Some(lives) = worker.temper.lives {
            // Some by a limit that the kernel keeps.
            let how = if start.0 % 5 == 4 { ExitHow::OutOfMemory { peak: None } } else { ExitHow::Code(1) };
            self.at(lives, Coming::Exit(slot, start, how));
        }
        Some(Event::Spawned { start, process })
    }

    /// The agent was killed and is back: returns what the keeper tells it of this slot. News that was on its way still comes.
    pub fn tell_again(&mut self, slot: u32, recalled: Option<StartNo>) -> Vec<Event> {
        let Some(worker) = self.workers.get(&slot) else {
            return recalled.map(|start| Event::Vanished { start, jitter: Jitter(0) }).into_iter().collect();
        };
        let (start, target) = (worker.start, Arc::clone(&worker.target));
        let adopted = |process, since| Event::Adopted { start, process, target: Arc::clone(&target), since, ready_since: None };
        match worker.phase {
            // It waits for the answer of the keeper, which comes before all else.
            Phase::Spawning => match self.spawned(slot, start) {
                Some(Event::Spawned { process, .. }) => vec![adopted(process, self.now)],
                Some(Event::SpawnFailed { start, jitter, .. }) => vec![Event::Vanished { start, jitter }],
                _ => Vec::new(),
            },
            Phase::Up { process, since } => vec![adopted(process, since)],
            Phase::Dead { process, since } => {
                vec![adopted(process, since), Event::Exited { start, how: ExitHow::Unknown, jitter: Jitter(0) }]
            }
        }
    }
}
