//! Dates as text: RFC 3339, UTC, milliseconds; and the time zone of whoever reads them otherwise.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::OnceLock;

use jiff::tz::TimeZone;
use selfstart_core::time::WallTime;

/// Where systems keep their time zones (`tzset(3)`, which also names TZDIR).
const ZONES: &str = "/usr/share/zoneinfo";

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

/// Returns the time zone that this process was given: `TZ`, else that of the machine (`/etc/localtime`), else UTC.
#[must_use]
pub(crate) fn zone() -> TimeZone {
    static OF_TZ: OnceLock<Option<TimeZone>> = OnceLock::new();
    let of_tz = OF_TZ.get_or_init(|| {
        let zones = std::env::var_os("TZDIR").filter(|dir| !dir.is_empty()).unwrap_or_else(|| ZONES.into());
        std::env::var_os("TZ").map(|tz| of_tz(&tz, Path::new(&zones)))
    });
    // What the machine says may change while an agent runs: jiff looks again every five minutes.
    of_tz.clone().unwrap_or_else(TimeZone::system)
}

/// Reads `TZ` as `tzset(3)` does: a file of the system's database or by its path, else a rule such as `JST-9`; what is neither is UTC.
///
/// Not by jiff's own database (its feature `tzdb-zoneinfo`): that lists all files of the system's before it opens one.
fn of_tz(tz: &OsStr, zones: &Path) -> TimeZone {
    /// The largest there is has some 4 kB.
    const FILE_MAX: u64 = 256 * 1024;
    let tz = tz.as_bytes().strip_prefix(b":").map_or(tz, OsStr::from_bytes);
    let read = |path: &Path| {
        let is_file = fs_err::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() <= FILE_MAX);
        is_file.then(|| fs_err::read(path).ok()).flatten()
    };
    // An absolute path takes the place of the folder.
    let file = (!tz.is_empty()).then(|| read(&zones.join(tz))).flatten();
    let of_file = file.and_then(|bytes| TimeZone::tzif("TZ", &bytes).ok());
    of_file.or_else(|| TimeZone::posix(tz.to_str()?).ok()).unwrap_or(TimeZone::UTC)
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

    #[test]
    fn a_time_zone_is_a_file_of_the_system_or_a_rule_and_else_utc() {
        let noon = jiff::Timestamp::from_second(1_795_348_800).expect("a date");
        let shown = |tz: &str, zones: &Path| noon.to_zoned(of_tz(OsStr::new(tz), zones)).strftime("%H:%M%:z").to_string();
        let none = Path::new("/nowhere");
        for (tz, time) in [
            ("JST-9", "21:00+09:00"),
            (":JST-9", "21:00+09:00"),
            ("EST5EDT,M3.2.0,M11.1.0", "07:00-05:00"),
            ("", "12:00+00:00"),
            ("UTC", "12:00+00:00"),
            ("Not/There", "12:00+00:00"),
            ("/dev/null", "12:00+00:00"),
            ("/", "12:00+00:00"),
        ] {
            assert_eq!(shown(tz, none), time, "{tz}");
        }
        let tokyo = Path::new(ZONES).join("Asia/Tokyo");
        if !tokyo.is_file() {
            return eprintln!("skipped: this machine has no `{}`", tokyo.display());
        }
        for tz in ["Asia/Tokyo", ":Asia/Tokyo", &tokyo.display().to_string()] {
            assert_eq!(shown(tz, Path::new(ZONES)), "21:00+09:00", "{tz}");
        }
        // Nobody of this name in a folder of one's own, and one that is no time zone.
        let dir = tempfile::tempdir().expect("a folder");
        fs_err::copy(&tokyo, dir.path().join("Here")).expect("copied");
        fs_err::write(dir.path().join("Torn"), "TZif2").expect("written");
        assert_eq!(["Here", "Torn", "Asia/Tokyo"].map(|tz| shown(tz, dir.path())), ["21:00+09:00", "12:00+00:00", "12:00+00:00"]);
    }
}
