//! The plan of a rollout, and how it goes on.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::event::{Dropped, Effect};
use super::state::{Drain, Entry, Pool, Wanted};
use super::step::Turn;
use crate::policy::UpdateHow;
use crate::worker::{self, Minding, Slot, StopWhy, Target, Then};

/// A rollout of the pool's target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rollout {
    /// Why workers that run are stopped.
    pub(super) why: StopWhy,
    /// Slots whose turn has not come, in order; those that left meanwhile are no longer [`Part::Pending`].
    pub(super) pending: VecDeque<u32>,
    /// Slots whose turn has come and is not over.
    pub(super) moving: u32,
    pub(super) ready: u32,
    pub(super) failing: u32,
    pub(super) canary: Canary,
}

/// How far the first slot of a deploy is, on which the others wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Canary {
    /// No slot with a vote has had its turn.
    #[default]
    Wanted,
    /// This one must stay up.
    Slot(u32),
    /// It has stayed up.
    Confirmed,
}

/// A slot's part in the rollout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Part {
    /// None, or it is over.
    #[default]
    None,
    /// Its turn has not come.
    Pending,
    /// Its turn has come.
    Moving(Vote),
}

/// Whether a slot's failure fails the rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Vote {
    Yes,
    No,
}

/// How a slot can come to a new target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// It has it, or will have it next; also a worker of the same release from an earlier rollout (a rollback restarts no such worker).
    Already,
    /// It has no worker: it is started.
    Start,
    /// Its worker is ending: what follows is changed.
    Retarget,
    /// Its worker is stopped, at the cost of it.
    Replace,
}

impl Pool {
    /// Returns how this slot can come to the present target.
    fn way(&self, slot: &Slot, target: &Target) -> Way {
        let next = slot.next_target();
        let other_generation = next.is_none_or(|next| next.generation != target.generation);
        if next.is_some_and(|next| self.is_as_wanted(next, target)) && !(slot.waits_after_crash() && other_generation) {
            Way::Already
        } else if !slot.is_occupied() {
            Way::Start
        } else if slot.is_stopping() {
            Way::Retarget
        } else {
            Way::Replace
        }
    }

    /// Returns whether a worker of `its` need not be replaced: it runs the release, and was started after the last restart of all.
    fn is_as_wanted(&self, its: &Target, target: &Target) -> bool {
        its.release == target.release && its.generation >= self.oldest
    }

    /// Plans the rollout of the present target over all slots that take part. A rollout that was going on is dropped.
    pub(super) fn plan_rollout(&mut self, why: StopWhy, turn: &mut Turn<'_>) {
        let Some(target) = self.target.clone() else { return };
        self.clear_parts();
        self.failed = false;
        let numbers: Vec<u32> = (0..self.count).filter(|number| self.takes_part(*number)).collect();
        let way = |pool: &Self, number: u32| pool.entry(number).map_or(Way::Already, |entry| pool.way(&entry.slot, &target));
        // First those that cost nothing, then those that are not ready anyway, then the ready ones.
        let (mut down, mut unready, mut ready) = (Vec::new(), VecDeque::new(), VecDeque::new());
        for number in numbers {
            match way(self, number) {
                // On its way to it since a rollout that was cut short: only when it is ready is the release known to be good.
                Way::Already if self.entry(number).is_some_and(|entry| !is_settled(&entry.slot, turn)) => down.push(number),
                Way::Already => self.forget_vote(number),
                Way::Start | Way::Retarget => down.push(number),
                Way::Replace if self.entry(number).is_some_and(|entry| entry.slot.ready_since().is_some()) => ready.push_back(number),
                Way::Replace => unready.push_back(number),
            }
        }
        unready.append(&mut ready);
        if down.is_empty() && unready.is_empty() {
            // All run it already, as after each restart of the agent: nothing is rolled out, and nothing of it is told.
            self.rollout = None;
            return;
        }
        turn.effects.push(Effect::RolloutBegun { target: Arc::clone(&target) });
        for number in &unready {
            self.set_part(*number, Part::Pending, turn);
        }
        self.rollout = Some(Rollout { why, pending: unready, moving: 0, ready: 0, failing: 0, canary: Canary::Wanted });
        for number in down {
            self.take(number, &target, turn);
        }
    }

    /// Lets a slot that was left out come to the present target: as part of the rollout that is going on, or of a new one.
    pub(super) fn catch_up(&mut self, number: u32, turn: &mut Turn<'_>) {
        let Some(target) = self.target.clone() else { return };
        let behind = self.takes_part(number)
            && !self.failed
            && self.entry(number).is_some_and(|entry| entry.part == Part::None && self.way(&entry.slot, &target) != Way::Already);
        if !behind {
            return;
        }
        if self.rollout.is_none() {
            turn.effects.push(Effect::RolloutBegun { target: Arc::clone(&target) });
        }
        let why = StopWhy::Deploy(target.generation);
        let rollout =
            self.rollout.get_or_insert(Rollout { why, pending: VecDeque::new(), moving: 0, ready: 0, failing: 0, canary: Canary::Wanted });
        rollout.pending.push_back(number);
        self.set_part(number, Part::Pending, turn);
    }

    /// Takes the slots whose turn has come, and ends the rollout when all had theirs. Returns whether anything changed.
    pub(super) fn advance(&mut self, turn: &mut Turn<'_>) -> bool {
        let (Some(target), Some(rollout)) = (self.target.clone(), self.rollout.as_mut()) else { return false };
        let limit = match turn.policy.update.how {
            UpdateHow::OneAtATime => turn.policy.update.max_unavailable.max(1),
            UpdateHow::AllAtOnce => u32::MAX,
        };
        let Some(number) = rollout.pending.front().copied() else {
            if rollout.moving > 0 {
                return false;
            }
            let (ready, failing) = (rollout.ready, rollout.failing);
            self.rollout = None;
            turn.effects.push(Effect::RolledOut { target, ready, failing });
            return true;
        };
        let alone = turn.policy.update.how == UpdateHow::OneAtATime && matches!(rollout.canary, Canary::Slot(_));
        let full = alone || rollout.moving >= limit;
        let way = self.entry(number).filter(|entry| entry.part == Part::Pending).map(|entry| self.way(&entry.slot, &target));
        if way == Some(Way::Replace) && full {
            return false;
        }
        if let Some(rollout) = &mut self.rollout {
            rollout.pending.pop_front();
        }
        if way.is_some() {
            self.take(number, &target, turn);
        }
        true
    }

    /// A slot's turn has come.
    fn take(&mut self, number: u32, target: &Arc<Target>, turn: &mut Turn<'_>) {
        let (Some(entry), Some(rollout)) = (self.entry(number), &self.rollout) else { return };
        let why = rollout.why.clone();
        let (way, well) = (self.way(&entry.slot, target), is_well(&entry.slot) && (!entry.unproven || entry.slot.ready_since().is_some()));
        let waits_well = entry.slot.waits_until().is_some() && !entry.slot.waits_after_crash() && well;
        let vote = match way {
            // It came to it before its turn (an operator restarted it), or in a rollout that was cut short, which knew whether it was well.
            Way::Already if well && entry.part == Part::Pending => Vote::Yes,
            Way::Already => entry.cut_short.unwrap_or(Vote::No),
            Way::Start if waits_well => Vote::Yes,
            Way::Retarget | Way::Replace if well => Vote::Yes,
            Way::Start | Way::Retarget | Way::Replace => Vote::No,
        };
        if let Some(entry) = self.entry_mut(number).filter(|_| way != Way::Already) {
            entry.unproven = vote == Vote::No;
        }
        self.forget_vote(number);
        if let Some(rollout) = &mut self.rollout {
            rollout.moving += 1;
            let deploys = matches!(rollout.why, StopWhy::Deploy(_)) && !turn.policy.update.confirm.is_zero();
            if deploys && vote == Vote::Yes && rollout.canary == Canary::Wanted {
                rollout.canary = Canary::Slot(number);
            }
        }
        self.set_part(number, Part::Moving(vote), turn);
        match way {
            Way::Already => {}
            Way::Start => self.start_slot(number, turn),
            Way::Retarget | Way::Replace => {
                self.feed(number, worker::Event::StopRequested { why, then: Then::Start(Arc::clone(target)) }, turn);
            }
        }
        turn.touched.push(number);
    }

    /// Looks whether a slot's turn is over.
    pub(super) fn progress(&mut self, number: u32, turn: &mut Turn<'_>) {
        let (Some(target), Some(entry)) = (self.target.clone(), self.entry(number)) else { return };
        let Part::Moving(vote) = entry.part else { return };
        let slot = &entry.slot;
        if !slot.target().is_some_and(|its| self.is_as_wanted(its, &target)) {
            return;
        }
        let settled = slot.ready_since().is_some_and(|since| turn.now >= since + self.settle_of(number, turn));
        let failing = slot.waits_after_crash();
        let verdict = slot.last_verdict().cloned();
        if !settled && !failing {
            return;
        }
        let is_canary = self.canary() == Some(number);
        self.leave_rollout(number, turn);
        if let Some(rollout) = self.rollout.as_mut().filter(|_| is_canary && settled) {
            rollout.canary = Canary::Confirmed;
        }
        if let Some(entry) = self.entry_mut(number).filter(|_| settled) {
            entry.unproven = false;
        }
        let Some(rollout) = &mut self.rollout else { return };
        if settled {
            rollout.ready += 1;
        } else if vote == Vote::No {
            rollout.failing += 1;
        } else {
            self.rollout = None;
            self.failed = true;
            self.clear_parts();
            turn.effects.push(Effect::RolloutFailed { target, slot: number, verdict });
        }
    }

    /// A slot no longer takes part: its turn is over, or it has left.
    pub(super) fn leave_rollout(&mut self, number: u32, turn: &Turn<'_>) {
        let Some(entry) = self.entry(number) else { return };
        let part = entry.part;
        self.set_part(number, Part::None, turn);
        if let (Part::Moving(_), Some(rollout)) = (part, &mut self.rollout) {
            rollout.moving -= 1;
            if rollout.canary == Canary::Slot(number) {
                // An operator has stopped it: the next one is looked at instead.
                rollout.canary = Canary::Wanted;
            }
        }
    }

    /// Returns the slot that must stay up before the others have their turn.
    #[must_use]
    pub fn canary(&self) -> Option<u32> {
        match self.rollout.as_ref()?.canary {
            Canary::Slot(number) => Some(number),
            Canary::Wanted | Canary::Confirmed => None,
        }
    }

    /// Returns how long a slot must have been ready before its turn is over.
    pub(super) fn settle_of(&self, number: u32, turn: &Turn<'_>) -> Duration {
        let update = &turn.policy.update;
        if self.canary() == Some(number) { update.settle.max(update.confirm) } else { update.settle }
    }

    /// Returns whether a slot runs the present target and was well when that came: what becomes of it says something about the release.
    #[must_use]
    pub fn has_vote(&self, number: u32) -> bool {
        let target = self.target.as_ref();
        self.entry(number).is_some_and(|entry| {
            !entry.unproven && target.zip(entry.slot.next_target()).is_some_and(|(target, its)| self.is_as_wanted(its, target))
        })
    }

    /// Ends the rollout that is going on, if any.
    pub(super) fn drop_rollout(&mut self, why: Dropped, turn: &mut Turn<'_>) {
        if let (Some(target), Some(_)) = (self.target.clone(), self.rollout.take()) {
            self.clear_parts();
            turn.effects.push(Effect::RolloutDropped { target, why });
        }
    }

    fn clear_parts(&mut self) {
        for entry in &mut self.slots {
            entry.cut_short = entry.vote();
            entry.part = Part::None;
        }
    }

    fn forget_vote(&mut self, number: u32) {
        if let Some(entry) = self.entry_mut(number) {
            entry.cut_short = None;
        }
    }

    fn set_part(&mut self, number: u32, part: Part, turn: &Turn<'_>) {
        if let Some(entry) = self.entry_mut(number) {
            entry.part = part;
        }
        self.refresh_deadline(number, turn);
    }

    /// Returns whether a rollout touches this slot.
    fn takes_part(&self, number: u32) -> bool {
        self.drain == Drain::No
            && number < self.count
            && self.entry(number).is_some_and(|entry| entry.wanted == Wanted::Running && entry.slot.minding() == Minding::Minded)
    }
}

impl Entry {
    /// Returns the vote of a slot whose turn has come and is not over, also in a rollout that was cut short.
    pub(super) fn vote(&self) -> Option<Vote> {
        match self.part {
            Part::Moving(vote) => Some(vote),
            Part::None | Part::Pending => self.cut_short,
        }
    }
}

/// Returns whether a slot has been ready for long enough.
fn is_settled(slot: &Slot, turn: &Turn<'_>) -> bool {
    slot.ready_since().is_some_and(|since| turn.now >= since + turn.policy.update.settle)
}

/// Returns whether a slot has a worker that gave no cause for complaint.
fn is_well(slot: &Slot) -> bool {
    slot.ready_since().is_some() || (slot.crashes_in_a_row() == 0 && !slot.ends_as_crash())
}
