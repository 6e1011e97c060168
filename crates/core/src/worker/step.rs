//! The transitions.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use super::effect::{Effect, Happening, Rung};
use super::event::{Event, StaleJobSeen};
use super::history::Penalty;
use super::state::{
    After, End, Ladder, Manner, Minding, ReadyWait, Recall, Slot, State, StopOrder, StopWhy, Target, Then, Told, Wait, Worker,
};
use super::verdict::{EndWhy, ExitHow, Ignored, Sequel, StaleJobFacts, Verdict, What};
use crate::backoff::Jitter;
use crate::id::{ProcessId, StartNo};
use crate::memory::MemoryHistory;
use crate::policy::{MemoryAction, ReadyHow, WorkerPolicy};
use crate::signal::Signal;
use crate::time::MonoTime;
use crate::units::Bytes;

/// The least time between two starts of a slot that follow ends on which selfstart itself decided (a memory limit): a limit that is too
/// low must not become a hot loop. What an operator or a deploy asks for happens at once: an empty slot would serve nobody.
pub const POLICY_RESTART_EVERY: Duration = Duration::from_secs(10);

/// Whether a start keeps its distance to the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// It follows an end on which selfstart decided.
    Paced,
    /// Somebody asked for it, or it follows a crash, which has its own waits.
    Free,
}

impl Pace {
    fn of(end: &End) -> Self {
        match (&end.why, end.how) {
            (EndWhy::Asked { why: StopWhy::Memory(_), .. }, _) | (EndWhy::ItsOwn, ExitHow::OutOfMemory { .. }) => Self::Paced,
            (EndWhy::Asked { .. } | EndWhy::ItsOwn, _) => Self::Free,
        }
    }
}

/// A tree that is still there so long after it was killed is killed again: it may have forked faster than it was walked.
pub const KILL_AGAIN: Duration = Duration::from_secs(2);

/// The process of a stale job is killed again, if it is still seen, after this: a kill can take that long (page-out, core dump).
pub const STALE_AGAIN: Duration = Duration::from_secs(2);

/// Decides what to do about one slot. Pure: same inputs, same answer. An event that does not apply changes nothing and has no effects.
#[must_use]
pub fn step(mut slot: Slot, event: Event, now: MonoTime, policy: &WorkerPolicy) -> (Slot, Vec<Effect>) {
    let about_another = match (&event, event.start()) {
        // An adopted worker may be one that this slot's saved state does not know yet.
        (Event::Adopted { .. }, _) | (_, None) => false,
        (_, Some(start)) => slot.start() != Some(start),
    };
    if about_another {
        return (slot, Vec::new());
    }
    let mut turn = Turn { now, policy, effects: Vec::new() };
    let state = mem::take(&mut slot.state);
    slot.state = slot.next(state, event, &mut turn);
    (slot, turn.effects)
}

/// Returns the next moment at which [`step`] must see [`Event::DeadlineReached`], if any.
#[must_use]
pub fn next_deadline(slot: &Slot) -> Option<MonoTime> {
    match (&slot.state, slot.minding) {
        (State::Stopping { ladder, .. }, _) => Some(ladder.due()),
        (_, Minding::Paused) => None,
        (State::Starting { wait: ReadyWait::Up { until: due } | ReadyWait::Proof { by: due, .. }, .. }, _)
        | (State::Backoff { until: due, .. } | State::Quarantined { until: due, .. }, _) => Some(*due),
        _ => None,
    }
}

/// One call of [`step`].
struct Turn<'a> {
    now: MonoTime,
    policy: &'a WorkerPolicy,
    effects: Vec<Effect>,
}

impl Turn<'_> {
    fn act(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    fn tell(&mut self, happening: Happening) {
        self.effects.push(Effect::Tell(happening));
    }
}

/// Whether a start takes the place of a worker that ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    Fresh,
    Again,
}

impl Slot {
    /// One table per kind of event, each of all states: what is wanted, what became of a start, the end of a worker, time, judgements, and
    /// what the agent finds when it comes back. `step` has seen to it that the event is about the start that the slot knows.
    fn next(&mut self, state: State, event: Event, turn: &mut Turn<'_>) -> State {
        match event {
            Event::Start { target } => self.started(state, target, Urgency::AsItIs, turn),
            Event::StartNow { target } => self.started(state, target, Urgency::Now, turn),
            Event::StopRequested { why, then } => self.stop(state, StopOrder { why, then }, turn),
            Event::KillNow => Self::kill_now(state, turn),
            Event::Pause => self.pause(state, turn),
            Event::Resume => self.resume(state, turn),
            Event::SignalRequested { signal } => Self::signal(state, signal, turn),

            Event::Spawned { process, .. } => self.spawned(state, process, turn),
            Event::SpawnFailed { error, jitter, .. } => self.spawn_failed(state, error, jitter, turn),
            Event::ReadySeen { .. } => self.ready_seen(state, turn),
            Event::ReadyNotSeen { met, .. } => Self::ready_not_seen(state, met),

            Event::Exited { how, jitter, .. } => self.main_gone(state, how, jitter, turn),
            Event::TreeGone { killed, .. } => self.tree_gone(state, killed, turn),
            Event::Vanished { jitter, .. } => self.vanished(state, jitter, turn),

            Event::DeadlineReached => self.deadline_reached(state, turn),

            Event::MemorySample { sample, .. } => self.memory_sample(state, sample, turn),
            Event::StaleJob { job, .. } => self.stale_job(state, job, turn),

            Event::Adopted { start, process, target, since, ready_since } => {
                self.taken_up(state, Found { start, process, target, since, ready: ready_since }, turn)
            }
        }
    }

    /// Returns what makes of this end an operator's doing, if it is: it was by the signal that one of them let us send. No crash then.
    fn ordered(&self, signalled: Option<Signal>, target: &Arc<Target>, how: ExitHow) -> Option<Stop> {
        let signal = signalled.filter(|signal| self.minded() && how.is_by(*signal))?;
        let then = Then::Start(Arc::clone(target));
        Some(Stop { order: StopOrder { why: StopWhy::Signalled, then }, rung: Some(Rung::Polite(signal)), ignored: None })
    }

    fn minded(&self) -> bool {
        self.minding == Minding::Minded
    }

    // ---- what became of a start ----

    fn spawned(&mut self, state: State, process: ProcessId, turn: &mut Turn<'_>) -> State {
        let worker = |start, target, since| Worker { start, process, target, since, job_killed: None, signalled: None, met: None };
        match state {
            State::Spawning { start, target, .. } => {
                turn.tell(Happening::Started { start, process });
                self.starting(worker(start, target, turn.now), turn)
            }
            State::Cancelling { start, target, order, manner, .. } => {
                turn.tell(Happening::Started { start, process });
                Self::begin_stop(worker(start, target, turn.now), None, order, manner, turn)
            }
            state => state,
        }
    }

    fn spawn_failed(&mut self, state: State, error: Box<str>, jitter: Jitter, turn: &mut Turn<'_>) -> State {
        match state {
            State::Spawning { start, target, .. } => {
                let after = self.crash(&target, jitter, turn);
                self.start_failed(start, &target, error, after, turn)
            }
            State::Cancelling { start, target, order, .. } => {
                let after = self.after_stop(order.then, &target, jitter, turn);
                self.start_failed(start, &target, error, after, turn)
            }
            state => state,
        }
    }

    fn ready_seen(&mut self, state: State, turn: &mut Turn<'_>) -> State {
        match state {
            State::Starting { worker, wait: ReadyWait::Proof { .. }, memory } if self.minded() => Self::ready(worker, memory, turn),
            state => state,
        }
    }

    fn ready_not_seen(mut state: State, met: Box<str>) -> State {
        if let State::Starting { worker, wait: ReadyWait::Proof { .. }, .. } = &mut state {
            worker.met = Some(met);
        }
        state
    }

    // ---- the end of a worker ----

    fn main_gone(&mut self, state: State, how: ExitHow, jitter: Jitter, turn: &mut Turn<'_>) -> State {
        let ending = match state {
            State::Spawning { start, target, since } => Ending { start, target, since, ready: None, stop: None },
            State::Cancelling { start, target, since, order, .. } => {
                Ending { start, target, since, ready: None, stop: Some(Stop { order, rung: None, ignored: None }) }
            }
            State::Starting { worker, .. } => {
                let stop = self.ordered(worker.signalled, &worker.target, how);
                Ending::of(worker, None, stop)
            }
            State::Ready { worker, since, .. } => {
                let stop = self.ordered(worker.signalled, &worker.target, how);
                Ending::of(worker, Some(since), stop)
            }
            State::Stopping { worker, ready, order, ladder } => Ending::of(worker, ready, Some(Stop::at(order, Some(ladder)))),
            State::Recalled { start, target, plan } => match plan {
                Recall::Mind { ready, signalled } => {
                    let stop = self.ordered(signalled, &target, how);
                    Ending::recalled(start, target, ready, stop, turn.now)
                }
                Recall::Stop { order, ladder } => Ending::recalled(start, target, None, Some(Stop::at(order, ladder)), turn.now),
                Recall::Clear { end, after } => {
                    turn.act(Effect::ClearTree { start });
                    return State::Clearing { start, target, end, after };
                }
                Recall::Leave { end } => return State::Exited { start, target, end },
            },
            state => return state,
        };
        self.exited(ending, how, jitter, turn)
    }

    fn tree_gone(&mut self, state: State, killed: u32, turn: &mut Turn<'_>) -> State {
        match state {
            State::Clearing { start, target, end, after } => {
                let pace = Pace::of(&end);
                self.judge_end(start, &target, *end, killed, &after, turn);
                self.leave(after, pace, turn)
            }
            state => state,
        }
    }

    fn vanished(&mut self, state: State, jitter: Jitter, turn: &mut Turn<'_>) -> State {
        let State::Recalled { start, target, plan } = state else { return state };
        let (end, after) = match plan {
            Recall::Clear { end, after } => (*end, after),
            // Its end is told already, and nothing is left of it.
            Recall::Leave { .. } => return State::Backoff { until: turn.now, target, why: Wait::Resume },
            Recall::Mind { ready, .. } => {
                let ending = Ending::recalled(start, Arc::clone(&target), ready, None, turn.now);
                self.ended(ending, ExitHow::Unknown, jitter, turn)
            }
            Recall::Stop { order, ladder } => {
                let ending = Ending::recalled(start, Arc::clone(&target), None, Some(Stop::at(order, ladder)), turn.now);
                self.ended(ending, ExitHow::Unknown, jitter, turn)
            }
        };
        let pace = Pace::of(&end);
        self.judge_end(start, &target, end, 0, &after, turn);
        self.leave(after, pace, turn)
    }

    // ---- time ----

    fn deadline_reached(&mut self, state: State, turn: &mut Turn<'_>) -> State {
        match state {
            State::Starting { worker, wait: ReadyWait::Up { until }, memory } if self.minded() && turn.now >= until => {
                Self::ready(worker, memory, turn)
            }
            State::Starting { worker, wait: ReadyWait::Proof { by, within }, .. } if self.minded() && turn.now >= by => {
                let why = match worker.met.clone() {
                    Some(met) => StopWhy::NotReadySince { within, met },
                    None => StopWhy::NotReady(within),
                };
                let order = StopOrder { why, then: Then::AsAfterCrash };
                Self::begin_stop(worker, None, order, Manner::Ladder, turn)
            }
            State::Stopping { worker, ready, order, ladder } if turn.now >= ladder.due() => {
                let ladder = match ladder {
                    Ladder::Polite { rung, .. } => Self::take_rung(worker.start, rung.saturating_add(1), ladder.ignored(turn.now), turn),
                    Ladder::Killed { ignored, .. } => Self::kill(worker.start, ignored, turn),
                };
                State::Stopping { worker, ready, order, ladder }
            }
            State::Backoff { until, target, why } if self.minded() && turn.now >= until => {
                if why == Wait::Pace {
                    self.last_policy_start = Some(turn.now);
                }
                self.spawn(target, Cause::Again, turn)
            }
            State::Quarantined { until, target } if self.minded() && turn.now >= until => {
                self.crashes.probed();
                self.spawn(target, Cause::Again, turn)
            }
            state => state,
        }
    }

    // ---- judgements ----

    fn memory_sample(&mut self, state: State, sample: Option<Bytes>, turn: &mut Turn<'_>) -> State {
        match state {
            State::Starting { worker, wait, memory } if self.minded() => match Self::sampled(worker, None, memory, sample, turn) {
                Ok((worker, memory)) => State::Starting { worker, wait, memory },
                Err(stopping) => stopping,
            },
            State::Ready { worker, since, memory } if self.minded() => match Self::sampled(worker, Some(since), memory, sample, turn) {
                Ok((worker, memory)) => State::Ready { worker, since, memory },
                Err(stopping) => stopping,
            },
            state => state,
        }
    }

    fn stale_job(&mut self, mut state: State, job: StaleJobSeen, turn: &mut Turn<'_>) -> State {
        if let State::Starting { worker, .. } | State::Ready { worker, .. } | State::Stopping { worker, .. } = &mut state
            && self.minded()
        {
            self.kill_job(worker, job, turn);
        }
        state
    }

    // ---- the agent came back ----

    fn taken_up(&mut self, state: State, found: Found, turn: &mut Turn<'_>) -> State {
        match state {
            State::Recalled { start, target, plan } if found.start == start => match plan {
                Recall::Clear { end, after } => {
                    turn.act(Effect::ClearTree { start });
                    State::Clearing { start, target, end, after }
                }
                // Paused: not touched by the next agent either.
                Recall::Leave { end } => State::Exited { start, target, end },
                Recall::Stop { order, ladder: None } => {
                    let (worker, ready) = self.adopted(found, turn);
                    Self::begin_stop(worker, ready, order, Manner::Ladder, turn)
                }
                Recall::Stop { order, ladder: Some(ladder) } => {
                    let (worker, ready) = self.adopted(found, turn);
                    if let Ladder::Polite { signal, .. } = ladder {
                        // The rung was saved before its signal was sent: the former agent may have died in between, and a worker that
                        // was never asked would be killed for not having heard. Twice is better than never; its time goes on.
                        turn.act(Effect::Signal { start, signal });
                    }
                    State::Stopping { worker, ready, order, ladder }
                }
                Recall::Mind { ready: before, signalled } => {
                    let (worker, ready) = self.adopted(found, turn);
                    self.mind_again(Worker { signalled, ..worker }, ready.or(before), turn)
                }
            },
            // A later start than the one that was saved: what was saved says nothing about it.
            State::Recalled { start, .. } if found.start > start => {
                let (worker, ready) = self.adopted(found, turn);
                self.mind_again(worker, ready, turn)
            }
            // What was saved is older than what lives.
            State::Stopped | State::Backoff { .. } | State::Quarantined { .. } => {
                let (worker, ready) = self.adopted(found, turn);
                self.mind_again(worker, ready, turn)
            }
            state => state,
        }
    }

    // ---- what is wanted ----

    /// A worker of `target` is wanted.
    fn started(&mut self, state: State, target: Arc<Target>, urgency: Urgency, turn: &mut Turn<'_>) -> State {
        let newer = |old: &Arc<Target>| old.generation != target.generation;
        match state {
            State::Stopped => self.begin(target, Cause::Fresh, turn),
            State::Backoff { until, why: Wait::Pace, .. } if urgency == Urgency::AsItIs => {
                State::Backoff { until, target, why: Wait::Pace }
            }
            State::Backoff { target: old, .. } if newer(&old) || urgency == Urgency::Now => self.begin(target, Cause::Again, turn),
            State::Quarantined { target: old, .. } if newer(&old) => self.begin(target, Cause::Again, turn),
            State::Quarantined { .. } if urgency == Urgency::Now => {
                self.crashes.probed();
                self.begin(target, Cause::Again, turn)
            }
            // A worker is being stopped: what follows changes.
            State::Cancelling { start, target: old, since, mut order, manner } => {
                order.then = Self::then_start(order.then, target, &old);
                State::Cancelling { start, target: old, since, order, manner }
            }
            State::Stopping { worker, ready, mut order, ladder } => {
                order.then = Self::then_start(order.then, target, &worker.target);
                State::Stopping { worker, ready, order, ladder }
            }
            State::Recalled { start, target: old, plan: Recall::Stop { mut order, ladder } } => {
                order.then = Self::then_start(order.then, target, &old);
                State::Recalled { start, target: old, plan: Recall::Stop { order, ladder } }
            }
            State::Clearing { start, target: old, end, after } => {
                State::Clearing { start, target: old, end, after: Self::after_start(after, target, urgency) }
            }
            State::Recalled { start, target: old, plan: Recall::Clear { end, after } } => {
                let plan = Recall::Clear { end, after: Self::after_start(after, target, urgency) };
                State::Recalled { start, target: old, plan }
            }
            // It runs, or waits for its turn: already so.
            state => state,
        }
    }

    /// What follows a stop when a start is wanted too. A failed start of the same generation stays a crash: asking again is no cure.
    fn then_start(then: Then, target: Arc<Target>, running: &Arc<Target>) -> Then {
        match then {
            Then::AsAfterCrash if running.generation == target.generation => Then::AsAfterCrash,
            Then::Stay | Then::Start(_) | Then::AsAfterCrash => Then::Start(target),
        }
    }

    fn after_start(after: After, target: Arc<Target>, urgency: Urgency) -> After {
        match &after {
            After::Backoff { target: old, .. } | After::Quarantined { target: old, .. }
                if old.generation == target.generation && urgency == Urgency::AsItIs =>
            {
                after
            }
            _ => After::Start(target),
        }
    }

    /// The worker is to end.
    fn stop(&mut self, state: State, order: StopOrder, turn: &mut Turn<'_>) -> State {
        match state {
            State::Spawning { start, target, since } => {
                turn.tell(Happening::StopBegun { start, why: order.why.clone() });
                State::Cancelling { start, target, since, order, manner: Manner::Ladder }
            }
            State::Starting { worker, .. } => Self::begin_stop(worker, None, order, Manner::Ladder, turn),
            State::Ready { worker, since, .. } => Self::begin_stop(worker, Some(since), order, Manner::Ladder, turn),
            // Already being stopped: the first reason stays, only what follows changes.
            State::Cancelling { start, target, since, order: first, manner } => {
                let order = StopOrder { why: first.why, then: order.then };
                State::Cancelling { start, target, since, order, manner }
            }
            State::Stopping { worker, ready, order: first, ladder } => {
                State::Stopping { worker, ready, order: StopOrder { why: first.why, then: order.then }, ladder }
            }
            State::Recalled { start, target, plan } => {
                let plan = match plan {
                    Recall::Mind { .. } => Recall::Stop { order, ladder: None },
                    Recall::Stop { order: first, ladder } => Recall::Stop { order: StopOrder { why: first.why, then: order.then }, ladder },
                    Recall::Clear { end, after } => Recall::Clear { end, after: Self::after_second_stop(after, order.then) },
                    Recall::Leave { end } => Recall::Clear { end, after: Self::after_pause(order.then, &target) },
                };
                State::Recalled { start, target, plan }
            }
            State::Clearing { start, target, end, after } => {
                State::Clearing { start, target, end, after: Self::after_second_stop(after, order.then) }
            }
            // It ended by itself while nobody minded it; now somebody does.
            State::Exited { start, target, end } => {
                turn.act(Effect::ClearTree { start });
                let after = Self::after_pause(order.then, &target);
                State::Clearing { start, target, end, after }
            }
            // No worker: nothing to stop, only what follows counts.
            state @ (State::Stopped | State::Backoff { .. } | State::Quarantined { .. }) => match order.then {
                Then::Stay => State::Stopped,
                Then::Start(target) => match state {
                    State::Stopped => self.begin(target, Cause::Fresh, turn),
                    State::Backoff { until, why: Wait::Pace, .. } => State::Backoff { until, target, why: Wait::Pace },
                    waiting => self.started(waiting, target, Urgency::Now, turn),
                },
                Then::AsAfterCrash => state,
            },
        }
    }

    /// What follows the end of a worker while the slot was paused.
    fn after_pause(then: Then, target: &Arc<Target>) -> After {
        match then {
            Then::Stay => After::Stay,
            Then::Start(target) => After::Start(target),
            Then::AsAfterCrash => After::Start(Arc::clone(target)),
        }
    }

    fn after_second_stop(after: After, then: Then) -> After {
        match then {
            Then::Stay => After::Stay,
            Then::Start(target) => After::Start(target),
            Then::AsAfterCrash => after,
        }
    }

    fn kill_now(state: State, turn: &mut Turn<'_>) -> State {
        match state {
            State::Stopping { worker, ready, order, .. } => {
                let ladder = Self::kill(worker.start, None, turn);
                State::Stopping { worker, ready, order, ladder }
            }
            State::Cancelling { start, target, since, order, .. } => {
                State::Cancelling { start, target, since, order, manner: Manner::KillAtOnce }
            }
            State::Recalled { start, target, plan: Recall::Stop { order, .. } } => {
                let ladder = Some(Ladder::Killed { again: turn.now, ignored: None });
                State::Recalled { start, target, plan: Recall::Stop { order, ladder } }
            }
            state => state,
        }
    }

    fn signal(mut state: State, signal: Signal, turn: &mut Turn<'_>) -> State {
        if let State::Starting { worker, .. } | State::Ready { worker, .. } | State::Stopping { worker, .. } = &mut state {
            worker.signalled = Some(signal);
            turn.act(Effect::Signal { start: worker.start, signal });
        }
        state
    }

    fn pause(&mut self, state: State, turn: &mut Turn<'_>) -> State {
        if self.minded() {
            self.minding = Minding::Paused;
            turn.tell(Happening::Paused);
        }
        state
    }

    fn resume(&mut self, state: State, turn: &mut Turn<'_>) -> State {
        if self.minded() {
            return state;
        }
        self.minding = Minding::Minded;
        turn.tell(Happening::Resumed);
        match state {
            State::Exited { start, target, end } => {
                turn.act(Effect::ClearTree { start });
                let after = After::Start(Arc::clone(&target));
                State::Clearing { start, target, end, after }
            }
            State::Recalled { start, target, plan: Recall::Leave { end } } => {
                let after = After::Start(Arc::clone(&target));
                State::Recalled { start, target, plan: Recall::Clear { end, after } }
            }
            // What was seen before the pause says nothing about now.
            State::Starting { worker, .. } => self.starting(worker, turn),
            State::Ready { worker, since, .. } => State::Ready { worker, since, memory: MemoryHistory::default() },
            state => state,
        }
    }

    // ---- what several of them do ----

    /// Starts a worker, or, while the slot is paused, waits for its resume.
    fn begin(&mut self, target: Arc<Target>, cause: Cause, turn: &mut Turn<'_>) -> State {
        match self.minding {
            Minding::Minded => self.spawn(target, cause, turn),
            Minding::Paused => State::Backoff { until: turn.now, target, why: Wait::Resume },
        }
    }

    fn spawn(&mut self, target: Arc<Target>, cause: Cause, turn: &mut Turn<'_>) -> State {
        self.last_start = StartNo(self.last_start.0.saturating_add(1));
        if cause == Cause::Again {
            self.restarts = self.restarts.saturating_add(1);
        }
        turn.act(Effect::Spawn { start: self.last_start, target: Arc::clone(&target) });
        State::Spawning { start: self.last_start, target, since: turn.now }
    }

    fn starting(&self, worker: Worker, turn: &mut Turn<'_>) -> State {
        let ready = &turn.policy.ready;
        let wait = match &ready.how {
            ReadyHow::After(up) => ReadyWait::Up { until: turn.now + *up },
            ReadyHow::Tcp(_) | ReadyHow::Command(_) => {
                if self.minded() {
                    turn.act(Effect::WatchReady { start: worker.start });
                }
                ReadyWait::Proof { by: turn.now + ready.within, within: ready.within }
            }
        };
        State::Starting { worker, wait, memory: MemoryHistory::default() }
    }

    fn ready(worker: Worker, memory: MemoryHistory, turn: &mut Turn<'_>) -> State {
        turn.tell(Happening::Ready { start: worker.start, took: turn.now.since(worker.since) });
        State::Ready { worker, since: turn.now, memory }
    }

    /// Takes over a worker that lives; returns it, and since when it has been ready.
    fn adopted(&mut self, found: Found, turn: &mut Turn<'_>) -> (Worker, Option<MonoTime>) {
        let Found { start, process, target, since, ready } = found;
        self.last_start = self.last_start.max(start);
        turn.tell(Happening::Adopted { start, process });
        (Worker { start, process, target, since, job_killed: None, signalled: None, met: None }, ready)
    }

    fn mind_again(&self, worker: Worker, ready: Option<MonoTime>, turn: &mut Turn<'_>) -> State {
        match ready {
            Some(since) => State::Ready { worker, since, memory: MemoryHistory::default() },
            None => self.starting(worker, turn),
        }
    }

    fn begin_stop(worker: Worker, ready: Option<MonoTime>, order: StopOrder, manner: Manner, turn: &mut Turn<'_>) -> State {
        turn.tell(Happening::StopBegun { start: worker.start, why: order.why.clone() });
        let ladder = match manner {
            Manner::Ladder => Self::take_rung(worker.start, 0, None, turn),
            Manner::KillAtOnce => Self::kill(worker.start, None, turn),
        };
        State::Stopping { worker, ready, order, ladder }
    }

    /// `ignored`: what it did not end by until now.
    fn take_rung(start: StartNo, rung: u16, ignored: Option<Ignored>, turn: &mut Turn<'_>) -> Ladder {
        let Some(polite) = turn.policy.stop.rungs.get(usize::from(rung)).copied() else { return Self::kill(start, ignored, turn) };
        turn.act(Effect::Signal { start, signal: polite.signal });
        turn.tell(Happening::RungSent { start, rung: Rung::Polite(polite.signal) });
        Ladder::Polite { rung, signal: polite.signal, next: turn.now + polite.wait, sent: Some(turn.now) }
    }

    fn kill(start: StartNo, ignored: Option<Ignored>, turn: &mut Turn<'_>) -> Ladder {
        turn.act(Effect::KillTree { start });
        turn.tell(Happening::RungSent { start, rung: Rung::Kill });
        Ladder::Killed { again: turn.now + KILL_AGAIN, ignored }
    }

    /// The main process is gone: what it left must go too before anything else starts here.
    fn exited(&mut self, ending: Ending, how: ExitHow, jitter: Jitter, turn: &mut Turn<'_>) -> State {
        let (start, target) = (ending.start, Arc::clone(&ending.target));
        turn.tell(Happening::Exited { start, how });
        if !self.minded() && ending.stop.is_none() {
            let end = End { told: Told::Yes, ..ending.end(how, turn.now) };
            let verdict = self.judge(start, &target, end_facts(end.clone(), 0, Sequel::Paused), turn.now);
            turn.tell(Happening::Judged(verdict));
            return State::Exited { start, target, end: Box::new(end) };
        }
        let (end, after) = self.ended(ending, how, jitter, turn);
        turn.act(Effect::ClearTree { start });
        State::Clearing { start, target, end: Box::new(end), after }
    }

    /// Counts the end of a worker and returns what follows it.
    fn ended(&mut self, ending: Ending, how: ExitHow, jitter: Jitter, turn: &mut Turn<'_>) -> (End, After) {
        if ending.ready.is_some_and(|since| turn.now.since(since) >= turn.policy.restart.reset_after) {
            self.crashes.well();
        }
        let end = ending.end(how, turn.now);
        let after = match ending.stop {
            // A limit of memory that the kernel keeps is one all the same: its end is no crash.
            None if matches!(how, ExitHow::OutOfMemory { .. }) => After::Start(Arc::clone(&ending.target)),
            None => self.crash(&ending.target, jitter, turn),
            Some(Stop { order, .. }) => self.after_stop(order.then, &ending.target, jitter, turn),
        };
        (end, after)
    }

    fn after_stop(&mut self, then: Then, target: &Arc<Target>, jitter: Jitter, turn: &Turn<'_>) -> After {
        match then {
            Then::Stay => After::Stay,
            Then::Start(target) => After::Start(target),
            Then::AsAfterCrash => self.crash(target, jitter, turn),
        }
    }

    fn crash(&mut self, target: &Arc<Target>, jitter: Jitter, turn: &Turn<'_>) -> After {
        let target = Arc::clone(target);
        match self.crashes.crashed(target.generation, turn.now, &turn.policy.restart, jitter) {
            Penalty::Wait { wait, crashes } => After::Backoff { until: turn.now + wait, target, crashes },
            Penalty::Rest { wait } => After::Quarantined { until: turn.now + wait, target },
        }
    }

    fn start_failed(&mut self, start: StartNo, target: &Arc<Target>, error: Box<str>, after: After, turn: &mut Turn<'_>) -> State {
        let sequel = self.sequel(&after, Pace::Free, turn.now);
        let verdict = self.judge(start, target, What::StartFailed { error, sequel }, turn.now);
        turn.tell(Happening::Judged(verdict));
        self.leave(after, Pace::Free, turn)
    }

    fn judge_end(&mut self, start: StartNo, target: &Arc<Target>, end: End, killed: u32, after: &After, turn: &mut Turn<'_>) {
        let sequel = self.sequel(after, Pace::of(&end), turn.now);
        let (told, at) = match end.told {
            Told::No => (Told::No, turn.now),
            // What follows is news of the resume, not of this end: one end is one event.
            Told::Yes => (Told::Yes, end.at),
        };
        let verdict = self.judge(start, target, end_facts(end, killed, sequel), at);
        if told == Told::No {
            turn.tell(Happening::Judged(verdict));
        }
    }

    fn judge(&mut self, start: StartNo, target: &Arc<Target>, what: What, now: MonoTime) -> Arc<Verdict> {
        let verdict = Arc::new(Verdict { start, generation: target.generation, at: now, what });
        self.last_verdict = Some(Arc::clone(&verdict));
        verdict
    }

    /// Returns what [`Self::leave`] will do.
    fn sequel(&self, after: &After, pace: Pace, now: MonoTime) -> Sequel {
        match after {
            After::Stay => Sequel::Stopped,
            _ if !self.minded() => Sequel::Paused,
            After::Start(_) => match self.pace(pace, now) {
                None => Sequel::Restarted,
                Some(until) => Sequel::Backoff { wait: now.until(until), crashes: 0 },
            },
            After::Backoff { until, .. } if now >= *until => Sequel::Restarted,
            After::Backoff { until, crashes, .. } => Sequel::Backoff { wait: now.until(*until), crashes: *crashes },
            After::Quarantined { until, .. } => Sequel::Quarantined { wait: now.until(*until) },
        }
    }

    /// Returns until when a start that follows no crash must wait; `None`: not at all.
    fn pace(&self, pace: Pace, now: MonoTime) -> Option<MonoTime> {
        self.last_policy_start.filter(|_| pace == Pace::Paced).map(|last| last + POLICY_RESTART_EVERY).filter(|until| now < *until)
    }

    /// The slot is free.
    fn leave(&mut self, after: After, pace: Pace, turn: &mut Turn<'_>) -> State {
        match after {
            After::Stay => State::Stopped,
            After::Start(target) => match self.pace(pace, turn.now) {
                None => {
                    if pace == Pace::Paced {
                        self.last_policy_start = Some(turn.now);
                    }
                    self.begin(target, Cause::Again, turn)
                }
                Some(until) => {
                    turn.tell(Happening::BackedOff { wait: turn.now.until(until), crashes: 0 });
                    State::Backoff { until, target, why: Wait::Pace }
                }
            },
            After::Backoff { until, target, .. } if turn.now >= until => self.begin(target, Cause::Again, turn),
            After::Backoff { until, target, crashes } => {
                if self.minded() {
                    turn.tell(Happening::BackedOff { wait: turn.now.until(until), crashes });
                }
                State::Backoff { until, target, why: Wait::Crashes(crashes) }
            }
            After::Quarantined { until, target } => {
                turn.tell(Happening::Quarantined { wait: turn.now.until(until) });
                State::Quarantined { until, target }
            }
        }
    }

    /// Judges a memory sample; `Err`: the worker is being stopped for it.
    #[expect(clippy::result_large_err, reason = "both are the next state")]
    fn sampled(
        worker: Worker,
        ready: Option<MonoTime>,
        mut memory: MemoryHistory,
        sample: Option<Bytes>,
        turn: &mut Turn<'_>,
    ) -> Result<(Worker, MemoryHistory), State> {
        let Some(policy) = &turn.policy.memory else { return Ok((worker, memory)) };
        for call in memory.sampled(sample, policy) {
            let manner = match call.action {
                MemoryAction::Drain => Manner::Ladder,
                MemoryAction::Kill => Manner::KillAtOnce,
                MemoryAction::Signal(signal) => {
                    turn.act(Effect::Signal { start: worker.start, signal });
                    turn.tell(Happening::MemorySignal { start: worker.start, signal, passed: call.passed });
                    continue;
                }
            };
            let then = Then::Start(Arc::clone(&worker.target));
            let order = StopOrder { why: StopWhy::Memory(Box::new(call.passed)), then };
            return Err(Self::begin_stop(worker, ready, order, manner, turn));
        }
        Ok((worker, memory))
    }

    fn kill_job(&mut self, worker: &mut Worker, job: StaleJobSeen, turn: &mut Turn<'_>) {
        let last = worker.job_killed.as_deref().copied();
        let same_child = last.is_some_and(|(child, _)| child == job.child);
        if same_child && last.is_some_and(|(_, at)| turn.now.since(at) < STALE_AGAIN) {
            return;
        }
        worker.job_killed = Some(Box::new((job.child, turn.now)));
        turn.act(Effect::KillJob { start: worker.start, child: job.child, title: job.title });
        if !same_child {
            let facts = StaleJobFacts { pid: job.child.pid, class: job.class, queue: job.queue, age: job.age, timeout: job.timeout };
            self.judge(worker.start, &worker.target, What::StaleJob(facts.clone()), turn.now);
            turn.tell(Happening::StaleJobFound { start: worker.start, job: facts });
        }
    }
}

/// How soon a wanted worker is wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Urgency {
    /// After what it waits for.
    AsItIs,
    /// An operator said so.
    Now,
}

/// A worker that the agent found when it came back.
struct Found {
    start: StartNo,
    process: ProcessId,
    target: Arc<Target>,
    since: MonoTime,
    ready: Option<MonoTime>,
}

/// A worker that ended.
struct Ending {
    start: StartNo,
    target: Arc<Target>,
    since: MonoTime,
    ready: Option<MonoTime>,
    stop: Option<Stop>,
}

/// What was asked of a worker that ended.
struct Stop {
    order: StopOrder,
    /// The last that was done to end it.
    rung: Option<Rung>,
    /// Whether it is one who was killed for not having heard.
    ignored: Option<Ignored>,
}

impl Stop {
    fn at(order: StopOrder, ladder: Option<Ladder>) -> Self {
        let ignored = match ladder {
            Some(Ladder::Killed { ignored, .. }) => ignored,
            Some(Ladder::Polite { .. }) | None => None,
        };
        Self { order, rung: ladder.map(Ladder::rung), ignored }
    }
}

impl Ending {
    fn of(worker: Worker, ready: Option<MonoTime>, stop: Option<Stop>) -> Self {
        Self { start: worker.start, target: worker.target, since: worker.since, ready, stop }
    }

    /// One that ended while no agent was there: it ran since it was ready, as far as is known.
    fn recalled(start: StartNo, target: Arc<Target>, ready: Option<MonoTime>, stop: Option<Stop>, now: MonoTime) -> Self {
        Self { start, target, since: ready.unwrap_or(now), ready, stop }
    }

    fn end(&self, how: ExitHow, now: MonoTime) -> End {
        let why = match &self.stop {
            None => EndWhy::ItsOwn,
            Some(Stop { order, rung, ignored }) => EndWhy::Asked { why: order.why.clone(), rung: *rung, ignored: *ignored },
        };
        End { why, how, ran: now.since(self.since), at: now, told: Told::No }
    }
}

fn end_facts(end: End, leftovers: u32, sequel: Sequel) -> What {
    What::Ended { why: end.why, how: end.how, ran: end.ran, leftovers, sequel }
}
