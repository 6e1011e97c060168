//! The binary.
mod agent;
mod sys;
mod telling;
fn main() {}
