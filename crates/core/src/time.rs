//! Moments and spans, as values that come in from outside: the core never reads a clock.
//!
//! [`MonoTime`] is for waiting; [`WallTime`] only for showing and for comparing with dates that others set
//! (a job's start in a process title).

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A moment on a clock that never jumps: `CLOCK_BOOTTIME`, so it is comparable between processes of one boot
/// and goes on while the machine sleeps (`clock_gettime(2)`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MonoTime(Duration);

impl MonoTime {
    /// The boot of the machine.
    pub const ZERO: Self = Self(Duration::ZERO);

    /// Returns the moment `since_boot` after the boot of the machine.
    #[must_use]
    pub const fn from_boot(since_boot: Duration) -> Self {
        Self(since_boot)
    }

    /// Returns the time since the boot of the machine.
    #[must_use]
    pub const fn since_boot(self) -> Duration {
        self.0
    }

    /// Returns how long ago `earlier` was; zero if it is in the future.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// Returns how long it is until `later`; zero if that has passed.
    #[must_use]
    pub fn until(self, later: Self) -> Duration {
        later.0.saturating_sub(self.0)
    }
}

impl Add<Duration> for MonoTime {
    type Output = Self;

    /// Saturates: a deadline in the far future is "never", not a panic.
    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(rhs))
    }
}

impl Sub<Duration> for MonoTime {
    type Output = Self;

    fn sub(self, rhs: Duration) -> Self {
        Self(self.0.saturating_sub(rhs))
    }
}

/// A date: milliseconds since 1970-01-01T00:00:00Z. It can jump in either direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WallTime(i64);

impl WallTime {
    /// Returns the date that many milliseconds after 1970-01-01T00:00:00Z.
    #[must_use]
    pub const fn from_unix_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Returns the milliseconds since 1970-01-01T00:00:00Z.
    #[must_use]
    pub const fn unix_millis(self) -> i64 {
        self.0
    }

    /// Returns how long before `self` the date `earlier` was; zero if it was not before.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

/// A duration as PRODUCT.md writes it: `10m`, `1h30m`, `500ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Human(pub Duration);

impl Human {
    /// Returns a measured duration as people say it, in its two largest units: below a tenth of a second to the millisecond, below a
    /// second to the tenth, then to the second, from one hour on to the minute, from one day on to the hour. Not for what somebody
    /// configured, which is shown as it is written.
    #[must_use]
    pub fn rough(span: Duration) -> Self {
        let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let to = |unit: u64| (millis.saturating_add(unit / 2) / unit).saturating_mul(unit);
        // What it is rounded to, up to which amount: 59.7 s are a minute, and so no longer to the second.
        let fine = [(1, 100), (100, 1_000), (1_000, 3_600_000), (60_000, 86_400_000)];
        let unit = fine.into_iter().find(|(unit, below)| to(*unit) < *below).map_or(3_600_000, |(unit, _)| unit);
        Self(Duration::from_millis(to(unit)))
    }
}

impl fmt::Display for Human {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total_millis = self.0.as_millis();
        if total_millis == 0 {
            return f.write_str("0s");
        }
        let (secs, millis) = (self.0.as_secs(), self.0.subsec_millis());
        for (unit, amount) in [("d", secs / 86_400), ("h", secs / 3_600 % 24), ("m", secs / 60 % 60), ("s", secs % 60)] {
            if amount > 0 {
                write!(f, "{amount}{unit}")?;
            }
        }
        if millis > 0 {
            write!(f, "{millis}ms")?;
        }
        Ok(())
    }
}

/// Why a text is not a duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// A number without a unit.
    #[error("the unit is missing")]
    NoUnit,
    /// Not a whole number before a unit.
    #[error("not a duration")]
    Malformed,
    /// A unit that does not exist.
    #[error("no such unit: `{0}`")]
    Unit(String),
    /// More than `u64` holds.
    #[error("too long")]
    TooLong,
}

/// Parses `10m`, `1h30m`, `500ms`; units are `ms`, `s`, `m`, `h`, `d`, and `0` needs none.
///
/// # Errors
/// If it is anything else.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    if text.is_empty() {
        return Err(DurationError::Malformed);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        if digits == 0 {
            return Err(DurationError::Malformed);
        }
        let amount: u64 = rest[..digits].parse().map_err(|_| DurationError::TooLong)?;
        rest = &rest[digits..];
        let letters = rest.len() - rest.trim_start_matches(|c: char| c.is_alphabetic()).len();
        let (unit, after) = rest.split_at(letters);
        let millis = match unit {
            "" if after.is_empty() => return Err(DurationError::NoUnit),
            "" => return Err(DurationError::Malformed),
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            other => return Err(DurationError::Unit(other.to_owned())),
        };
        let span = amount.checked_mul(millis).map(Duration::from_millis).ok_or(DurationError::TooLong)?;
        total = total.checked_add(span).ok_or(DurationError::TooLong)?;
        rest = after;
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rough_duration_is_what_people_read() {
        let rough = |millis| Human::rough(Duration::from_millis(millis)).to_string();
        assert_eq!(
            [0, 3, 40, 99, 100, 149, 820, 950, 999].map(rough),
            ["0s", "3ms", "40ms", "99ms", "100ms", "100ms", "800ms", "1s", "1s"]
        );
        assert_eq!([1_001, 1_499, 9_999, 59_700, 250_400, 299_999].map(rough), ["1s", "1s", "10s", "1m", "4m10s", "5m"]);
        assert_eq!([3_599_700, 11_529_999, 86_385_000, 451_000_000].map(rough), ["1h", "3h12m", "1d", "5d5h"]);
        assert!(Human::rough(Duration::MAX).0 > Duration::from_secs(1 << 50));
    }

    #[test]
    fn reads_and_shows_durations() {
        for (text, millis) in [("0", 0), ("0s", 0), ("500ms", 500), ("10m", 600_000), ("1h30m", 5_400_000), ("1d", 86_400_000)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(Human(Duration::from_millis(5_400_500)).to_string(), "1h30m500ms");
        assert_eq!(Human(Duration::ZERO).to_string(), "0s");
    }

    #[test]
    fn refuses_what_is_no_duration() {
        assert_eq!(parse_duration("10"), Err(DurationError::NoUnit));
        assert_eq!(parse_duration(""), Err(DurationError::Malformed));
        assert_eq!(parse_duration("m"), Err(DurationError::Malformed));
        assert_eq!(parse_duration("-1s"), Err(DurationError::Malformed));
        assert_eq!(parse_duration("1.5s"), Err(DurationError::Malformed));
        assert_eq!(parse_duration("10x"), Err(DurationError::Unit("x".into())));
        assert_eq!(parse_duration("99999999999999999999s"), Err(DurationError::TooLong));
        assert_eq!(parse_duration("999999999999999999d"), Err(DurationError::TooLong));
    }
}
