//! Amounts with their unit in the type.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An amount of memory or disk, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    /// As PRODUCT.md writes sizes, the largest unit that leaves a number of at least one: `350MB`, `1.5GB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, size) in [("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1_000)] {
            if self.0 >= size {
                let tenths = self.0 / (size / 10);
                return if tenths.is_multiple_of(10) || tenths >= 1_000 {
                    write!(f, "{}{unit}", tenths / 10)
                } else {
                    write!(f, "{}.{}{unit}", tenths / 10, tenths % 10)
                };
            }
        }
        write!(f, "{}B", self.0)
    }
}

/// Why a text is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BytesError {
    /// A number without a unit.
    #[error("the unit is missing")]
    NoUnit,
    /// Not a whole number before a unit.
    #[error("not a size")]
    Malformed,
    /// A unit that does not exist.
    #[error("no such unit: `{0}`")]
    Unit(String),
    /// More than `u64` holds.
    #[error("too large")]
    TooLarge,
}

/// Parses `350MB` (10^6) or `350MiB` (2^20); units are `B`, `kB`, `KB`, `MB`, `GB`, `TB`, `KiB`, `MiB`, `GiB`, `TiB`; `0` needs none.
///
/// # Errors
/// If it is anything else.
pub fn parse_bytes(text: &str) -> Result<Bytes, BytesError> {
    if text == "0" {
        return Ok(Bytes(0));
    }
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    if digits == 0 {
        return Err(BytesError::Malformed);
    }
    let amount: u64 = text[..digits].parse().map_err(|_| BytesError::TooLarge)?;
    let unit: u64 = match &text[digits..] {
        "" => return Err(BytesError::NoUnit),
        "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        other if other.chars().all(char::is_alphabetic) => return Err(BytesError::Unit(other.to_owned())),
        _ => return Err(BytesError::Malformed),
    };
    amount.checked_mul(unit).map(Bytes).ok_or(BytesError::TooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_shows_sizes() {
        assert_eq!(parse_bytes("350MB"), Ok(Bytes(350_000_000)));
        assert_eq!(parse_bytes("350MiB"), Ok(Bytes(367_001_600)));
        assert_eq!(parse_bytes("10"), Err(BytesError::NoUnit));
        assert_eq!(parse_bytes("10m"), Err(BytesError::Unit("m".into())));
        assert_eq!(parse_bytes("1.5GB"), Err(BytesError::Malformed));
        assert_eq!(parse_bytes("99999999999TiB"), Err(BytesError::TooLarge));
        assert_eq!(Bytes(350_000_000).to_string(), "350MB");
        assert_eq!(Bytes(1_500_000_000).to_string(), "1.5GB");
        assert_eq!(Bytes(12).to_string(), "12B");
    }
}
