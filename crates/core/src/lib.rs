//! Every decision of selfstart, as pure functions over plain values.
//!
//! Nothing here reads a clock, a file, an environment variable or a random number: the shell (the binary) observes the
//! world, turns it into one event at a time, calls `step`, and carries out the effects that come back.
#![forbid(unsafe_code)]

pub mod command;
pub mod date;
pub mod id;
pub mod policy;
pub mod signal;
pub mod status;
pub mod time;
pub mod units;
