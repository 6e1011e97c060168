//! Names of new releases.

use crate::id::{ReleaseId, Revision};
use crate::time::WallTime;

/// Returns the name of a release begun at that time: `20261122T101530Z-1a2b3c4`, with `-2`, `-3` ... behind it while taken.
pub(super) fn release_name(at: WallTime, revision: &Revision, taken: impl Fn(&ReleaseId) -> bool) -> ReleaseId {
    let base = format!("{}-{}", compact_utc(at), revision.short());
    let mut name = base.clone();
    for count in 2u64.. {
        let id: ReleaseId = name.parse().expect("begins with a digit, digits, letters and dashes only, under 64 of them");
        if !taken(&id) {
            return id;
        }
        name = format!("{base}-{count}");
    }
    unreachable!("no book holds 2^64 releases")
}

/// Returns the date as `20261122T101530Z`; years outside 0 to 9999 are shown as the nearest of these.
fn compact_utc(at: WallTime) -> String {
    // 0000-01-01 and 9999-12-31T23:59:59Z.
    let secs = at.unix_millis().div_euclid(1_000).clamp(-62_167_219_200, 253_402_300_799);
    let (days, second) = (secs.div_euclid(86_400), secs.rem_euclid(86_400));
    // Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days: years begin in March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}{month:02}{day:02}T{:02}{:02}{:02}Z", second / 3_600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_dates_as_the_contract_does() {
        for (millis, text) in [
            (0, "19700101T000000Z"),
            (1_795_342_530_999, "20261122T101530Z"),
            (951_782_400_000, "20000229T000000Z"),
            (-1, "19691231T235959Z"),
            (i64::MAX, "99991231T235959Z"),
            (i64::MIN, "00000101T000000Z"),
        ] {
            assert_eq!(compact_utc(WallTime::from_unix_millis(millis)), text);
        }
    }

    #[test]
    fn a_second_release_of_the_same_second_gets_a_suffix() {
        let revision: Revision = "1a2b3c4d5e6f1a2b3c4d5e6f1a2b3c4d5e6f1a2b".parse().expect("a revision");
        let at = WallTime::from_unix_millis(1_795_342_530_000);
        let name = release_name(at, &revision, |id| !id.as_str().ends_with("-3"));
        assert_eq!(name.as_str(), "20261122T101530Z-1a2b3c4-3");
    }
}
