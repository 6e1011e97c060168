//! Dates as text: RFC 3339, UTC, milliseconds.

use selfstart_core::time::WallTime;

/// The length of [`stamp`]'s text, without a year beyond 9999.
pub(crate) const STAMP_LEN: usize = "2026-11-22T14:02:11.123Z".len();

/// Returns the date as text: UTC with milliseconds; a date that cannot be shown as the year 1970.
#[must_use]
pub(crate) fn stamp(at: WallTime) -> String {
    let at = jiff::Timestamp::from_millisecond(at.unix_millis()).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    format!("{at:.3}")
}

/// Reads [`stamp`]'s text back; `None` if it is none.
#[must_use]
pub(crate) fn parse_stamp(text: &[u8]) -> Option<WallTime> {
    let text = std::str::from_utf8(text).ok().filter(|text| text.ends_with('Z'))?;
    text.parse::<jiff::Timestamp>().ok().map(|at| WallTime::from_unix_millis(at.as_millisecond()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_read_back_and_those_out_of_range_are_shown_as_1970() {
        let at = WallTime::from_unix_millis(1_795_356_131_007);
        assert_eq!(stamp(at), "2026-11-22T14:02:11.007Z");
        assert_eq!(parse_stamp(stamp(at).as_bytes()), Some(at));
        assert_eq!(stamp(WallTime::from_unix_millis(i64::MAX)), "1970-01-01T00:00:00.000Z");
        assert_eq!(parse_stamp(b"2026-11-22 14:02"), None);
    }
}
