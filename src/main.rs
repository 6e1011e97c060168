//! The binary.
mod control;

fn main() {}
