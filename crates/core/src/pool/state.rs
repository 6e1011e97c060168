//! What is true of a pool.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::rollout::{Part, Rollout, Vote};
use crate::id::{Generation, StartNo};
use crate::policy::{MAX_COUNT, PoolPolicy};
use crate::time::MonoTime;
use crate::worker::{Minding, Slot, Target};

/// The slots of one pool. The default has none, and is there to be left behind by `mem::take`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pool {
    /// By number; those from `count` on are on their way out.
    pub(super) slots: Vec<Entry>,
    /// How many are wanted.
    pub(super) count: u32,
    /// An operator's number, and the `count` of the configuration at that time.
    pub(super) scaled: Option<Scaled>,
    /// What new slots run; `None`: no release yet.
    pub(super) target: Option<Arc<Target>>,
    /// The last generation that was given.
    pub(super) generation: Generation,
    /// Workers of generations before this are to be replaced, even if they run the right release.
    pub(super) oldest: Generation,
    /// Whether the rollout of the present target failed.
    pub(super) failed: bool,
    pub(super) rollout: Option<Rollout>,
    /// What the operator said last about the whole pool: new slots follow it.
    pub(super) wanted: Wanted,
    pub(super) minding: Minding,
    pub(super) drain: Drain,
    /// Slots whose first start waits for `start_stagger`.
    pub(super) queue: VecDeque<u32>,
    /// When the next of them may start.
    pub(super) next_start: MonoTime,
    /// When slots must hear of the time.
    pub(super) deadlines: BTreeSet<(MonoTime, u32)>,
    /// Slots that have left the list had start numbers up to this.
    pub(super) start_floor: StartNo,
    /// Slots with a ready worker.
    pub(super) ready: u32,
    /// Slots with a worker.
    pub(super) occupied: u32,
    /// Slots that should have a worker.
    pub(super) running_wanted: u32,
}

/// An operator's number of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Scaled {
    pub(super) to: u32,
    /// What `count` was: when it changes, the configuration counts again.
    pub(super) over: u32,
}

/// Whether a slot should have a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wanted {
    /// Yes.
    #[default]
    Running,
    /// No: an operator stopped it.
    Stopped,
}

/// Whether the pool is drained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Drain {
    #[default]
    No,
    Yes,
}

/// A slot, and what the pool wants of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) slot: Slot,
    pub(super) wanted: Wanted,
    pub(super) part: Part,
    /// It was taken without a vote, and has not settled since. A later rollout may find it just started and without a crash yet, which is
    /// no sign that it is well: an update cut short is taken up again with another generation.
    pub(super) unproven: bool,
    /// Its vote in a rollout that ended (with the agent) while its turn was not over; a rollout that goes on from there counts it.
    pub(super) cut_short: Option<Vote>,
    /// What stands in [`Pool::deadlines`].
    pub(super) deadline: Option<MonoTime>,
}

impl Pool {
    /// Returns a pool of `count` empty slots that waits for its first release.
    #[must_use]
    pub fn new(policy: &PoolPolicy) -> Self {
        let count = policy.count.min(MAX_COUNT);
        Self { slots: (0..count).map(|_| Entry::default()).collect(), count, running_wanted: count, ..Self::default() }
    }

    /// Returns how many slots are wanted.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Returns how many slots have a ready worker (also while paused).
    #[must_use]
    pub fn ready(&self) -> u32 {
        self.ready
    }

    /// Returns how many slots have a worker, or one on its way in or out.
    #[must_use]
    pub fn occupied(&self) -> u32 {
        self.occupied
    }

    /// Returns whether every slot that should have a worker has a ready one.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.target.is_some() && self.ready >= self.running_wanted && self.drain == Drain::No
    }

    /// Returns whether no worker is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.occupied == 0
    }

    /// Returns what new workers run; `None`: no release yet.
    #[must_use]
    pub fn target(&self) -> Option<&Arc<Target>> {
        self.target.as_ref()
    }

    /// Returns the target of the rollout that is going on, if any.
    #[must_use]
    pub fn rolling_out(&self) -> Option<&Arc<Target>> {
        self.rollout.as_ref().and(self.target.as_ref())
    }

    /// Returns the number of slots that have an operator's word against the configured count; `None`: as configured.
    #[must_use]
    pub fn scaled_to(&self) -> Option<u32> {
        self.scaled.map(|scaled| scaled.to)
    }

    /// Returns the slots in order: those that are wanted, and those beyond the count that have not stopped yet.
    pub fn slots(&self) -> impl Iterator<Item = (u32, &Slot)> {
        (0_u32..)
            .zip(&self.slots)
            .filter(|(number, entry)| *number < self.count || !entry.slot.is_stopped())
            .map(|(number, entry)| (number, &entry.slot))
    }

    /// Returns a slot, if it is in the list.
    #[must_use]
    pub fn slot(&self, number: u32) -> Option<&Slot> {
        self.entry(number).map(|entry| &entry.slot).filter(|slot| number < self.count || !slot.is_stopped())
    }

    /// Returns whether a slot should have a worker; `None`: it is not in the list, or on its way out.
    #[must_use]
    pub fn wanted(&self, number: u32) -> Option<Wanted> {
        self.entry(number).filter(|_| number < self.count).map(|entry| entry.wanted)
    }

    pub(super) fn entry(&self, number: u32) -> Option<&Entry> {
        self.slots.get(usize::try_from(number).ok()?)
    }

    pub(super) fn entry_mut(&mut self, number: u32) -> Option<&mut Entry> {
        self.slots.get_mut(usize::try_from(number).ok()?)
    }

    /// Returns how many entries there are, those on their way out and those already out counted.
    pub(super) fn len(&self) -> u32 {
        u32::try_from(self.slots.len()).unwrap_or(u32::MAX)
    }
}
