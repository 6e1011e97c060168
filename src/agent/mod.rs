//! The head: owns all state and decisions, and carries out what they lead to.

pub mod output;
pub mod store;
