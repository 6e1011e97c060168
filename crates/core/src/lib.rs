//! Every decision of selfstart, as pure functions over plain values.
//!
//! Nothing here reads a clock, a file, an environment variable or a random number: the shell (the binary) observes the
//! world, turns it into one event at a time, calls `step`, and carries out the effects that come back.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::panic, clippy::unwrap_used, clippy::expect_used, clippy::unreachable, clippy::todo))]

pub mod backoff;
pub mod command;
pub mod date;
pub mod deploy;
pub mod drain;
pub mod flapping;
pub mod id;
pub mod job;
pub mod lease;
pub mod memory;
pub mod notify;
pub mod only;
pub mod policy;
pub mod pool;
pub mod retention;
pub mod runtime;
pub mod signal;
pub mod status;
pub mod time;
pub mod trigger;
pub mod units;
pub mod worker;
