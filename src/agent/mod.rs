//! The head: owns all state and decisions, and carries out what they lead to.

pub(crate) mod output;
pub(crate) mod store;
