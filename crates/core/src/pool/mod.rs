//! The slots of one pool: how many, what they run, and in what order they change.
//!
//! [`step()`] takes one event and gives it to the slots that it is for ([`crate::worker`]); what it decides itself is which slots are
//! wanted, when a new slot may start (`start_stagger`), and a **rollout**: which slot is replaced next.
//!
//! ```text
//!   rollout:   pending ──▶ moving ──▶ (settling) ──▶ done          each slot that does not yet have the generation
//!                            └────── crashes into a wait ──▶ it had a vote: the rollout has failed; else: done, as failing
//! ```
//!
//! A rollout is planned once, has a generation, and always ends: rolled out, failed, or dropped for a newer one (or a drain).
//! Slots that wait or are stopped are no loss and start at the new target at once; slots whose worker is just ending only get another
//! target; the others are taken one by one, each when fewer than `max_unavailable` are moving (whatever they were before: so a slot that
//! was down tries the new release before one that works is given up for it).
//! A slot has a **vote** if it was well when it was taken: only then does its failure fail the rollout. Slots that are paused or that an
//! operator stopped are left out; they come to the newest target when they are resumed or started.
//!
//! The work for one event does not grow with the number of slots, except for what concerns all of them (a rollout's plan, a scale, an
//! operator's word about the pool). What it is not for: pools that wait for each other (`after:`), and whether a release is good.

mod event;
mod rollout;
mod saved;
mod state;
mod step;
#[cfg(test)]
mod tests;

pub use event::{Dropped, Effect, Event, RestartWhy, Scale, Which, rolled_out_text};
pub use saved::{SavedPool, SavedSlot};
pub use state::{Pool, Wanted};
pub use step::{next_deadline, step};
