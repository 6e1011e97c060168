//! From a repository to `current`: the mirror, the releases on disk, the links between them.
//!
//! [`git`] is the helper that fetches and stages as the configured user; the rest are synchronous functions (paths in, typed
//! errors out) that the agent runs on a blocking thread. Nothing here decides *when*: that is `selfstart_core::deploy`.

pub mod book;
pub mod git;
pub mod layout;
pub mod link;
mod mirror;
pub mod prune;
mod stage;
pub mod switch;
mod transport;
