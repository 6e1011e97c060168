//! From a repository to `current`: the mirror, the releases on disk, the links between them.
//!
//! [`git`] is the helper that fetches and stages as the configured user; the rest are synchronous functions (paths in, typed
//! errors out) that the agent runs on a blocking thread. Nothing here decides *when*: that is `selfstart_core::deploy`.

mod base;
pub(crate) mod carry;
pub(crate) mod git;
pub(crate) mod layout;
pub(crate) mod link;
mod mirror;
mod modules;
pub(crate) mod prune;
pub(crate) mod signed;
mod stage;
pub(crate) mod switch;
pub(crate) mod transport;
