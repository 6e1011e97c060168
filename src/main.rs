//! selfstart: worker machines that deploy themselves.

mod keeper;
mod sys;

fn main() {}
