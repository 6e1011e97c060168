//! How Linux does it. The only unsafe code. No policy, no retry, no logging.

pub mod fault;
pub mod proc_scan;
pub mod shared_map;
