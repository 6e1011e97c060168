//! The transitions.

use std::mem;
use std::sync::Arc;

use super::event::{Dropped, Effect, Event, RestartWhy, Scale, Which};
use super::rollout::Part;
use super::state::{Drain, Entry, Pool, Scaled, Wanted};
use crate::id::{Generation, ReleaseId, Revision};
use crate::policy::{MAX_COUNT, PoolPolicy};
use crate::time::MonoTime;
use crate::worker::{self, Minding, Slot, SlotState, StopWhy, Target, Then};

/// Decides what to do about a pool. Pure: same inputs, same answer. An event that does not apply changes nothing and has no effects.
#[must_use]
pub fn step(mut pool: Pool, event: Event, now: MonoTime, policy: &PoolPolicy) -> (Pool, Vec<Effect>) {
    let mut turn = Turn { now, policy, effects: Vec::new(), touched: Vec::new() };
    pool.take_in(event, &mut turn);
    loop {
        while let Some(number) = turn.touched.pop() {
            pool.progress(number, &mut turn);
        }
        if !pool.advance(&mut turn) {
            break;
        }
    }
    pool.trim();
    (pool, turn.effects)
}

/// Returns the next moment at which [`step`] must see [`Event::DeadlineReached`], if any.
#[must_use]
pub fn next_deadline(pool: &Pool) -> Option<MonoTime> {
    let slots = pool.deadlines.first().map(|(due, _)| *due);
    let start = (!pool.queue.is_empty()).then_some(pool.next_start);
    slots.into_iter().chain(start).min()
}

/// One call of [`step`].
pub(super) struct Turn<'a> {
    pub(super) now: MonoTime,
    pub(super) policy: &'a PoolPolicy,
    pub(super) effects: Vec<Effect>,
    /// Slots that heard something.
    pub(super) touched: Vec<u32>,
}

impl Pool {
    fn take_in(&mut self, event: Event, turn: &mut Turn<'_>) {
        match event {
            Event::Slot { slot, event: event @ worker::Event::Adopted { .. } } => self.adopted(slot, event, turn),
            Event::Slot { slot, event } => self.feed(slot, event, turn),
            Event::RollOut { release, revision } => self.roll_out(release, revision, turn),
            Event::Start(which) => self.start(which, turn),
            Event::Stop(which) => self.stop(which, turn),
            Event::Restart { which: Which::Slot(number), why } => self.restart_one(number, why, turn),
            Event::Restart { which: Which::All, why } => self.restart_all(why, turn),
            Event::KillNow(which) => self.kill_now(which, turn),
            Event::Pause(which) => self.pause(which, turn),
            Event::Resume(which) => self.resume(which, turn),
            Event::Signal { which, signal } => {
                for number in self.numbers(which) {
                    self.feed(number, worker::Event::SignalRequested { signal }, turn);
                }
            }
            Event::Scale(scale) => {
                self.scaled = match scale {
                    Scale::To(to) => Some(Scaled { to: to.min(MAX_COUNT), over: turn.policy.count }),
                    Scale::Config => None,
                };
                self.fit(turn);
            }
            Event::Reloaded => self.fit(turn),
            Event::Drain => self.drain(turn),
            Event::Undrain => self.undrain(turn),
            Event::DeadlineReached => self.deadline_reached(turn),
        }
    }

    /// Plans the way of all slots to a release; one that is on its way there already goes on.
    fn roll_out(&mut self, release: ReleaseId, revision: Revision, turn: &mut Turn<'_>) {
        match &self.target {
            Some(target) if target.release == release && !self.failed => {
                if self.rollout.is_some() {
                    return;
                }
            }
            _ => self.new_target(|generation| Target { generation, release, revision }, turn),
        }
        self.plan_rollout(StopWhy::Deploy(self.generation), turn);
    }

    fn start(&mut self, which: Which, turn: &mut Turn<'_>) {
        if which == Which::All {
            self.wanted = Wanted::Running;
            self.drain = Drain::No;
        }
        for number in self.numbers(which) {
            self.set_wanted(number, Wanted::Running);
            self.start_now(number, turn);
        }
        self.recount();
    }

    fn stop(&mut self, which: Which, turn: &mut Turn<'_>) {
        if which == Which::All {
            self.wanted = Wanted::Stopped;
        }
        for number in self.numbers(which) {
            self.set_wanted(number, Wanted::Stopped);
            self.leave_rollout(number, turn);
            self.feed(number, worker::Event::StopRequested { why: StopWhy::Operator, then: Then::Stay }, turn);
        }
        self.recount();
    }

    fn restart_one(&mut self, number: u32, why: RestartWhy, turn: &mut Turn<'_>) {
        for number in self.numbers(Which::Slot(number)) {
            self.set_wanted(number, Wanted::Running);
            self.restart_slot(number, &why.stop_why(), turn);
        }
        self.recount();
    }

    /// A rollout to what the pool has already.
    fn restart_all(&mut self, why: RestartWhy, turn: &mut Turn<'_>) {
        // A changed configuration is no reason to start what an operator has stopped.
        if why == RestartWhy::Operator {
            self.wanted = Wanted::Running;
            for number in self.numbers(Which::All) {
                self.set_wanted(number, Wanted::Running);
            }
            self.recount();
        }
        if let Some(Target { release, revision, .. }) = self.target.as_deref().cloned() {
            self.new_target(|generation| Target { generation, release, revision }, turn);
            self.oldest = self.generation;
            self.plan_rollout(why.stop_why(), turn);
        }
    }

    fn kill_now(&mut self, which: Which, turn: &mut Turn<'_>) {
        // Those on their way out too.
        let numbers = match which {
            Which::All => 0..self.len(),
            Which::Slot(number) => number..number.saturating_add(1),
        };
        numbers.for_each(|number| self.feed(number, worker::Event::KillNow, turn));
    }

    fn pause(&mut self, which: Which, turn: &mut Turn<'_>) {
        if which == Which::All {
            self.minding = Minding::Paused;
        }
        for number in self.numbers(which) {
            self.leave_rollout(number, turn);
            self.feed(number, worker::Event::Pause, turn);
        }
    }

    fn resume(&mut self, which: Which, turn: &mut Turn<'_>) {
        if which == Which::All {
            self.minding = Minding::Minded;
        }
        for number in self.numbers(which) {
            self.feed(number, worker::Event::Resume, turn);
            self.catch_up(number, turn);
        }
    }

    fn drain(&mut self, turn: &mut Turn<'_>) {
        self.drain = Drain::Yes;
        self.drop_rollout(Dropped::Drained, turn);
        self.queue.clear();
        for number in 0..self.len() {
            self.feed(number, worker::Event::StopRequested { why: StopWhy::Drain, then: Then::Stay }, turn);
        }
    }

    fn undrain(&mut self, turn: &mut Turn<'_>) {
        if self.drain == Drain::Yes {
            self.drain = Drain::No;
            for number in 0..self.count {
                self.start_slot(number, turn);
            }
        }
    }

    /// Gives an event to a slot.
    pub(super) fn feed(&mut self, number: u32, event: worker::Event, turn: &mut Turn<'_>) {
        let Some(entry) = self.entry_mut(number) else { return };
        let slot = mem::take(&mut entry.slot);
        let (was_ready, was_occupied) = (slot.ready_since().is_some(), slot.is_occupied());
        let (slot, effects) = worker::step(slot, event, turn.now, &turn.policy.worker);
        let (is_ready, is_occupied) = (slot.ready_since().is_some(), slot.is_occupied());
        entry.slot = slot;
        self.ready = self.ready + u32::from(is_ready) - u32::from(was_ready);
        self.occupied = self.occupied + u32::from(is_occupied) - u32::from(was_occupied);
        turn.effects.extend(effects.into_iter().map(|effect| Effect::Slot { slot: number, effect }));
        self.refresh_deadline(number, turn);
        turn.touched.push(number);
    }

    /// Notes when a slot must next hear of the time: for itself, or because it has then been ready long enough for the rollout.
    pub(super) fn refresh_deadline(&mut self, number: u32, turn: &Turn<'_>) {
        let settle = self.settle_of(number, turn);
        let Some(entry) = self.entry_mut(number) else { return };
        let settled = match (entry.part, entry.slot.ready_since()) {
            (Part::Moving(_), Some(since)) if turn.now < since + settle => Some(since + settle),
            _ => None,
        };
        let due = worker::next_deadline(&entry.slot).into_iter().chain(settled).min();
        let old = mem::replace(&mut entry.deadline, due);
        if old != due {
            if let Some(old) = old {
                self.deadlines.remove(&(old, number));
            }
            if let Some(due) = due {
                self.deadlines.insert((due, number));
            }
        }
    }

    fn deadline_reached(&mut self, turn: &mut Turn<'_>) {
        while !self.queue.is_empty() && turn.now >= self.next_start {
            self.start_queued(turn);
        }
        // Collected first: a slot may be due again at once, and then has its next turn.
        let due: Vec<u32> = self.deadlines.iter().take_while(|(due, _)| *due <= turn.now).map(|(_, number)| *number).collect();
        for number in due {
            self.feed(number, worker::Event::DeadlineReached, turn);
        }
    }

    /// Starts the first slot of the queue that still waits for it.
    fn start_queued(&mut self, turn: &mut Turn<'_>) {
        let Some(target) = self.target.clone() else { return };
        while let Some(number) = self.queue.pop_front() {
            let still = self.entry(number).is_some_and(|entry| entry.wanted == Wanted::Running && entry.slot.is_stopped());
            if still && number < self.count {
                self.feed(number, worker::Event::Start { target }, turn);
                self.next_start = turn.now + turn.policy.start_stagger;
                return;
            }
        }
    }

    /// Lets a wanted slot have a worker of the present target, in its turn; no more than that.
    pub(super) fn start_slot(&mut self, number: u32, turn: &mut Turn<'_>) {
        let (Some(target), Some(entry)) = (self.target.clone(), self.entry(number)) else { return };
        if entry.wanted != Wanted::Running || self.drain == Drain::Yes || number >= self.count {
            return;
        }
        if !entry.slot.is_stopped() {
            return self.feed(number, worker::Event::Start { target }, turn);
        }
        if turn.policy.start_stagger.is_zero() {
            return self.feed(number, worker::Event::Start { target }, turn);
        }
        if !self.queue.contains(&number) {
            self.queue.push_back(number);
        }
        if turn.now >= self.next_start {
            self.start_queued(turn);
        }
    }

    /// As [`Self::start_slot`], on an operator's word: a slot that waits starts now.
    fn start_now(&mut self, number: u32, turn: &mut Turn<'_>) {
        let waits = self.entry(number).is_some_and(|entry| entry.slot.waits_until().is_some());
        match self.target.clone() {
            Some(target) if waits && self.drain == Drain::No => self.feed(number, worker::Event::StartNow { target }, turn),
            _ => self.start_slot(number, turn),
        }
    }

    fn restart_slot(&mut self, number: u32, why: &StopWhy, turn: &mut Turn<'_>) {
        let occupied = self.entry(number).is_some_and(|entry| entry.slot.is_occupied());
        match self.target.clone() {
            Some(target) if occupied && self.drain == Drain::No => {
                self.feed(number, worker::Event::StopRequested { why: why.clone(), then: Then::Start(target) }, turn);
            }
            _ => self.start_now(number, turn),
        }
    }

    fn new_target(&mut self, make: impl FnOnce(Generation) -> Target, turn: &mut Turn<'_>) {
        self.generation = Generation(self.generation.0.saturating_add(1));
        self.drop_rollout(Dropped::Superseded(self.generation), turn);
        self.target = Some(Arc::new(make(self.generation)));
    }

    /// A worker from before the agent came back. One that is not wanted any more is stopped; none is left alone.
    fn adopted(&mut self, number: u32, event: worker::Event, turn: &mut Turn<'_>) {
        let worker::Event::Adopted { target, .. } = &event else { return };
        if number >= MAX_COUNT {
            return;
        }
        self.generation = self.generation.max(target.generation);
        while self.len() <= number {
            self.slots.push(Entry { slot: Slot::after(self.start_floor), ..Entry::default() });
        }
        self.feed(number, event, turn);
        let Some(entry) = self.entry(number) else { return };
        let why = if number >= self.count {
            StopWhy::Scale
        } else if self.drain == Drain::Yes {
            StopWhy::Drain
        } else if entry.wanted == Wanted::Stopped {
            StopWhy::Operator
        } else {
            return;
        };
        self.feed(number, worker::Event::StopRequested { why, then: Then::Stay }, turn);
    }

    /// Makes the list as long as it should be.
    pub(super) fn fit(&mut self, turn: &mut Turn<'_>) {
        self.scaled = self.scaled.filter(|scaled| scaled.over == turn.policy.count);
        let count = self.scaled.map_or(turn.policy.count, |scaled| scaled.to).min(MAX_COUNT);
        let old = mem::replace(&mut self.count, count);
        for number in (count..self.len()).rev() {
            self.leave_rollout(number, turn);
            self.feed(number, worker::Event::StopRequested { why: StopWhy::Scale, then: Then::Stay }, turn);
        }
        for number in old..count {
            if number >= self.len() {
                self.slots.push(Entry { slot: Slot::after(self.start_floor), ..Entry::default() });
            }
            self.set_wanted(number, self.wanted);
            let minding = match self.minding {
                Minding::Minded => worker::Event::Resume,
                Minding::Paused => worker::Event::Pause,
            };
            self.feed(number, minding, turn);
            self.start_slot(number, turn);
        }
        self.recount();
    }

    /// Lets go of slots beyond the count that have stopped. Their start numbers are not used again.
    fn trim(&mut self) {
        while self.len() > self.count
            && let Some(entry) = self.slots.pop_if(|entry| entry.slot.is_stopped())
        {
            self.start_floor = self.start_floor.max(entry.slot.last_start());
        }
    }

    fn numbers(&self, which: Which) -> std::ops::Range<u32> {
        match which {
            Which::All => 0..self.count,
            Which::Slot(number) if number < self.count => number..number + 1,
            Which::Slot(_) => 0..0,
        }
    }

    fn set_wanted(&mut self, number: u32, wanted: Wanted) {
        if let Some(entry) = self.entry_mut(number) {
            entry.wanted = wanted;
        }
    }

    pub(super) fn recount(&mut self) {
        let running = (0..self.count).filter(|number| self.wanted(*number) == Some(Wanted::Running)).count();
        self.running_wanted = u32::try_from(running).unwrap_or(u32::MAX);
    }

    /// Returns how many slots people see in each state.
    #[must_use]
    pub fn shown(&self) -> Vec<(SlotState, u32)> {
        let mut counts = std::collections::BTreeMap::new();
        for (_, slot) in self.slots() {
            *counts.entry(slot.shown()).or_insert(0) += 1;
        }
        counts.into_iter().collect()
    }
}
