//! What of a pool outlives the agent.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::rollout::Vote;
use super::state::{Entry, Pool, Scaled, Wanted};
use crate::id::{Generation, StartNo};
use crate::policy::{MAX_COUNT, PoolPolicy};
use crate::worker::{self, Minding, Saved, Slot, Target};

/// A pool on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedPool {
    /// The last generation that was given.
    pub generation: Generation,
    /// What new workers run.
    pub target: Option<Target>,
    /// Slots, by number.
    pub slots: Vec<SavedSlot>,
    oldest: Generation,
    failed: bool,
    scaled: Option<Scaled>,
    wanted: Wanted,
    minding: Minding,
    start_floor: StartNo,
}

/// A slot of a pool on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedSlot {
    /// The slot.
    pub slot: Saved,
    /// Whether it should have a worker.
    pub wanted: Wanted,
    /// Whether it was taken by a rollout without a vote, and has not settled since.
    #[serde(default)]
    pub unproven: bool,
    /// Its vote in the rollout that went on, if its turn had come and was not over.
    #[serde(default)]
    vote: Option<Vote>,
}

impl Pool {
    /// Returns what the next agent must know. Of a rollout that is going on only the votes are kept: `RollOut` of the same release goes on
    /// with it.
    #[must_use]
    pub fn saved(&self) -> SavedPool {
        SavedPool {
            generation: self.generation,
            target: self.target.as_deref().cloned(),
            slots: self
                .slots
                .iter()
                .map(|entry| SavedSlot { slot: entry.slot.saved(), wanted: entry.wanted, unproven: entry.unproven, vote: entry.vote() })
                .collect(),
            oldest: self.oldest,
            failed: self.failed,
            scaled: self.scaled,
            wanted: self.wanted,
            minding: self.minding,
            start_floor: self.start_floor,
        }
    }

    /// Returns the pool as another agent of this boot saved it. Nothing is started by this: the shell tells of each recalled slot
    /// (`Adopted`, `Vanished`), then says `Reloaded` and what release is wanted.
    #[must_use]
    pub fn recall(saved: SavedPool, policy: &PoolPolicy) -> Self {
        let mut pool = Self::new(policy);
        pool.generation = saved.generation;
        pool.target = saved.target.map(Arc::new);
        pool.oldest = saved.oldest;
        pool.failed = saved.failed;
        pool.scaled = saved.scaled;
        pool.wanted = saved.wanted;
        pool.minding = saved.minding;
        pool.start_floor = saved.start_floor;
        pool.slots = saved
            .slots
            .into_iter()
            .take(MAX_COUNT as usize)
            .map(|SavedSlot { slot, wanted, unproven, vote }| {
                let slot = Slot::recall(slot);
                Entry { deadline: worker::next_deadline(&slot), slot, wanted, unproven, cut_short: vote, ..Entry::default() }
            })
            .collect();
        // `Reloaded` makes it fit the policy: by what it finds, slots are started or stopped.
        pool.count = pool.len();
        pool.deadlines = (0_u32..).zip(&pool.slots).filter_map(|(number, entry)| Some((entry.deadline?, number))).collect();
        pool.occupied = u32::try_from(pool.slots.iter().filter(|entry| entry.slot.is_occupied()).count()).unwrap_or(u32::MAX);
        pool.recount();
        pool
    }
}

impl SavedPool {
    /// Returns what still holds after a reboot: numbers that are never used again, the operator's count, and the last verdicts. What was
    /// stopped or paused by hand is so no more.
    #[must_use]
    pub fn after_reboot(self) -> Self {
        let fresh = |SavedSlot { slot, .. }| SavedSlot { slot: slot.after_reboot(), wanted: Wanted::Running, unproven: false, vote: None };
        Self { slots: self.slots.into_iter().map(fresh).collect(), wanted: Wanted::Running, minding: Minding::Minded, ..self }
    }
}
