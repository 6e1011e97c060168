//! How Linux does it: processes, descriptors, `/proc`, clocks. The only place with unsafe code.
//!
//! It knows how, not when: no policy, no retry, no logging beyond returning errors.

pub(crate) mod clock;
pub(crate) mod packet;
pub(crate) mod process;
pub(crate) mod signals;
pub(crate) mod spawn;
pub(crate) mod users;
//! How Linux does it: the only place for `unsafe`. No policy, no retry, no logging.
pub mod libgit2;
pub mod links;
pub mod sync;
//! How Linux does it. The only unsafe code. No policy, no retry, no logging.
pub mod proc_scan;
pub mod shared_map;
