//! Dates as all JSON of selfstart shows them: RFC 3339, UTC, milliseconds. Arithmetic only: no clock, no time zone.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::time::WallTime;

const DAY_MILLIS: i64 = 86_400_000;
/// 0000-01-01T00:00:00.000Z and 9999-12-31T23:59:59.999Z in milliseconds of Unix time: RFC 3339 has four digits for a year.
const FIRST: i64 = -62_167_219_200_000;
const LAST: i64 = 253_402_300_799_999;

/// A date that reads and writes as `2026-11-22T10:15:30.123Z`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub WallTime);

impl From<WallTime> for Timestamp {
    fn from(at: WallTime) -> Self {
        Self(at)
    }
}

impl fmt::Display for Timestamp {
    /// A date outside the years 0 to 9999 shows as the first or last of them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.unix_millis().clamp(FIRST, LAST);
        let (days, of_day) = (millis.div_euclid(DAY_MILLIS), millis.rem_euclid(DAY_MILLIS));
        let (year, month, day) = civil_from_days(days);
        let (secs, ms) = (of_day / 1_000, of_day % 1_000);
        write!(f, "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{ms:03}Z", secs / 3_600, secs / 60 % 60, secs % 60)
    }
}

/// A text that is no RFC 3339 date.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an RFC 3339 date: `{0}`")]
pub struct NotADate(String);

impl FromStr for Timestamp {
    type Err = NotADate;

    /// Takes any offset and any number of digits of a second (those after the third are cut); a leap second counts as the next one.
    fn from_str(text: &str) -> Result<Self, NotADate> {
        parse(text).map(|millis| Self(WallTime::from_unix_millis(millis))).ok_or_else(|| NotADate(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    let number = |from: usize, to: usize| -> Option<i64> {
        let digits = bytes.get(from..to)?;
        digits.iter().try_fold(0, |sum, b| b.is_ascii_digit().then(|| sum * 10 + i64::from(b - b'0')))
    };
    let is = |at: usize, allowed: &[u8]| bytes.get(at).is_some_and(|b| allowed.contains(b));
    if !(is(4, b"-") && is(7, b"-") && is(10, b"Tt ") && is(13, b":") && is(16, b":")) {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if !(1..=12).contains(&month) || day < 1 || day > days_in_month(year, month) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let mut at = 19;
    let mut millis = 0;
    if is(at, b".") {
        let digits = bytes[at + 1..].iter().take_while(|b| b.is_ascii_digit()).count();
        if digits == 0 {
            return None;
        }
        millis = (1..=3).try_fold(0, |sum, i| Some(sum * 10 + if i <= digits { number(at + i, at + i + 1)? } else { 0 }))?;
        at += 1 + digits;
    }
    let offset_minutes = if is(at, b"Zz") && bytes.len() == at + 1 {
        0
    } else if is(at, b"+-") && is(at + 3, b":") && bytes.len() == at + 6 {
        let (hours, minutes) = (number(at + 1, at + 3)?, number(at + 4, at + 6)?);
        if hours > 23 || minutes > 59 {
            return None;
        }
        let magnitude = hours * 60 + minutes;
        if is(at, b"-") { -magnitude } else { magnitude }
    } else {
        return None;
    };
    let secs = (hour * 60 + minute - offset_minutes) * 60 + second;
    Some(days_from_civil(year, month, day) * DAY_MILLIS + secs * 1_000 + millis)
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Returns year, month and day of the day that many days after 1970-01-01.
///
/// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms": years begin in March, so that the leap day comes last.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// The inverse of [`civil_from_days`].
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let march_month = (month + 9) % 12;
    let of_year = (153 * march_month + 2) / 5 + day - 1;
    let of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year;
    era * 146_097 + of_era - 719_468
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Timestamp;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an RFC 3339 date")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Timestamp, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(millis: i64) -> String {
        Timestamp(WallTime::from_unix_millis(millis)).to_string()
    }

    fn read(text: &str) -> Option<i64> {
        text.parse::<Timestamp>().ok().map(|at| at.0.unix_millis())
    }

    #[test]
    fn shows_known_dates() {
        // Each checked with `date -u -d @SECONDS`.
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_795_342_530_123, "2026-11-22T10:15:30.123Z"),
            (4_107_542_399_999, "2100-02-28T23:59:59.999Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (FIRST, "0000-01-01T00:00:00.000Z"),
            (LAST, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(shown(millis), text);
            assert_eq!(read(text), Some(millis));
        }
        assert_eq!(shown(i64::MIN), "0000-01-01T00:00:00.000Z");
        assert_eq!(shown(i64::MAX), "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn reads_offsets_and_fractions() {
        for text in
            ["2026-11-22T11:15:30.123456+01:00", "2026-11-22T10:15:30.123Z", "2026-11-21t23:45:30.123-10:30", "2026-11-22 10:15:30.123z"]
        {
            assert_eq!(read(text), Some(1_795_342_530_123), "{text}");
        }
        assert_eq!(read("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(read("1970-01-01T00:00:00.5Z"), Some(500));
        assert_eq!(read("2016-12-31T23:59:60Z"), read("2017-01-01T00:00:00Z"));
    }

    #[test]
    fn refuses_what_is_no_date() {
        for text in [
            "",
            "2026",
            "2026-11-22",
            "2026-11-22T10:15:30",
            "2026-11-22T10:15:30.Z",
            "2026-11-22T10:15:30Zx",
            "2026-13-01T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "2100-02-29T00:00:00Z",
            "2026-11-31T00:00:00Z",
            "2026-11-00T00:00:00Z",
            "2026-11-22T24:00:00Z",
            "2026-11-22T10:60:00Z",
            "2026-11-22T10:15:30+1:00",
            "2026-11-22T10:15:30+01:60",
            "+026-11-22T10:15:30Z",
            "2026-11-22T10:15:3éZ",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn reads_back_what_it_shows(millis in FIRST..=LAST) {
            prop_assert_eq!(read(&shown(millis)), Some(millis));
        }

        #[test]
        fn never_panics(text in "\\PC*") {
            let _ = read(&text);
        }
    }
}
