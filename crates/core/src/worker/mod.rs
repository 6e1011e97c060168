//! One slot and the worker in it: started, judged, stopped, started again.
//!
//! [`step()`] takes one event and says what is done; [`next_deadline`] says when it must hear of the time. Neither knows of other
//! slots (that is [`crate::pool`]), of the keeper, or of the clock. What it is for: a slot never has two workers, every
//! stop ends, and every end has a verdict.
//!
//! ```text
//!              Start                Spawned                  ready
//!   stopped ───────────▶ spawning ───────────▶ starting ───────────────▶ ready
//!      ▲                  │  │  │stop             │  │ stop, not ready      │ stop, memory
//!      │      SpawnFailed │  │  ▼                 │  └────────┐  ┌──────────┘
//!      │                  │  │ cancelling ───────────────────▶ stopping   one rung after the other, then KILL to the tree
//!      │                  │  │        Spawned     │               │
//!      │                  │  └──────────┬─────────┘ Exited        │ Exited
//!      │                  │             ▼                         ▼
//!      │                  │          clearing ◀───────────────────┘   what is left of its tree is ended
//!      │                  │             │ TreeGone: the slot is free
//!      │                  ▼             ▼
//!      ├─ nothing wanted ─┴──┬──────────┴─────────┐
//!      │                     │ crash              │ too many crashes
//!      │                     ▼                    ▼
//!      └────── stop ───── backoff            quarantined ──▶ one probe ──▶ spawning
//!                            └──▶ spawning
//! ```
//!
//! Two more: **recalled**, what is known from before the agent came back until it is known whether that worker lives (nothing is
//! started there: it might be the second), and **exited**, a main process that ended while the slot was paused.
//!
//! A slot is **paused** in any state: then nothing is started, judged or cleared, exits are noted, and only a stop that somebody asked
//! for goes on.
//!
//! Each start has a number that is never used again in its slot, and every event about a process carries it: what comes late, twice or
//! about a former process changes nothing. Only `Exited` and then `TreeGone` (or the word that there never was a process:
//! `SpawnFailed`, `Vanished`) free a slot.

mod effect;
mod event;
mod history;
mod saved;
mod state;
mod step;
#[cfg(test)]
mod table;
#[cfg(test)]
mod tests;
mod verdict;

pub use effect::{Effect, Happening, Rung};
pub use event::{Event, StaleJobSeen};
pub use saved::{Saved, SavedState};
pub use state::{Minding, Slot, SlotState, StopWhy, Target, Then};
pub use step::{KILL_AGAIN, POLICY_RESTART_EVERY, STALE_AGAIN, next_deadline, step};
pub use verdict::{EndWhy, ExitHow, Ignored, Sequel, StaleJobFacts, Verdict, VerdictKind, What, signal_name};
