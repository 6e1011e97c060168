//! The clocks. Everything else gets its time as a value.

use std::time::{Duration, Instant, SystemTime};

use rustix::time::{ClockId, clock_gettime};
use selfstart_core::time::{MonoTime, WallTime};

/// Returns the time since boot, sleep included: the same in every process of one boot (`clock_gettime(2)`, CLOCK_BOOTTIME).
pub(crate) fn now() -> MonoTime {
    let time = clock_gettime(ClockId::Boottime);
    MonoTime::from_boot(Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0)))
}

/// Returns the date; it may jump.
pub(crate) fn wall() -> WallTime {
    // By way of the C library, as TLS has it: a test that gives a node a wrong clock (libfaketime) gives it to all of it.
    let now = system();
    let millis = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
    WallTime::from_unix_millis(match now.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => millis(since),
        Err(before) => -millis(before.duration()),
    })
}

/// Returns the moment as std's own waits want it; not for deciding, and meaningless in another process.
#[expect(clippy::disallowed_methods, reason = "the one place")]
pub(crate) fn instant() -> Instant {
    Instant::now()
}

/// Returns the date as std's files have it; it may jump.
#[expect(clippy::disallowed_methods, reason = "the one place")]
pub(crate) fn system() -> SystemTime {
    SystemTime::now()
}
