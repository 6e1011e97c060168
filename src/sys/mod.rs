//! How Linux does it: the only place for `unsafe`. No policy, no retry, no logging.

pub(crate) mod libgit2;
pub(crate) mod links;
pub(crate) mod sync;
