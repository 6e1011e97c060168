//! How Linux does it. The only unsafe code. No policy, no retry, no logging.

pub(crate) mod fault;
pub(crate) mod proc_scan;
pub(crate) mod shared_map;
