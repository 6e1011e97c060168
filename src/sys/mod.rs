//! How Linux does it: the only place for `unsafe`. No policy, no retry, no logging.

pub mod libgit2;
pub mod links;
pub mod sync;
