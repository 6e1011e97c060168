//! selfstart: worker machines that deploy themselves.

mod keeper;
mod sys;
//! The binary.
mod config;

fn main() {}
