//! The configuration: from the file to policies, in three stages.
//!
//! `raw` (as it is written, with places) → `merged` (typed, over the defaults, all problems at once) → [`settings`] (what the
//! rest of the program sees). [`load`] is the way in. Not here: looking up users, reading secrets, looking at the machine.

pub mod placeholders;
pub mod problem;
mod raw;
pub mod secret;
pub mod settings;
