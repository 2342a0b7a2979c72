//! Grammars of single values that several kinds of file share.

use std::num::NonZeroU16;
use std::time::Duration;

pub use eastway_model::address::{RefusedAddress, dialable};
pub use eastway_model::name::{LabelPairError, check_label_pair as label_pair};

/// Longest duration: what is longer is a slip, not a wish.
const MAX_DURATION: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// Why a text is not a duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Digits only.
    #[error("needs a unit: {0}s, {0}m or {0}h")]
    NoUnit(String),
    /// Begins with `-`.
    #[error("must not be negative")]
    Negative,
    /// More than a year.
    #[error("is too long; at most 366d is allowed")]
    TooLong,
    /// None of the above.
    #[error("must be a number with a unit, such as 500ms, 5s, 10m, 24h or 1h30m")]
    Format,
}

/// A duration as people write it: `500ms`, `5s`, `10m`, `24h`, `7d`, `1h30m`.
///
/// # Errors
/// [`DurationError`] says what to write instead.
pub fn duration(text: &str) -> Result<Duration, DurationError> {
    if text.starts_with('-') {
        return Err(DurationError::Negative);
    }
    if !text.is_empty() && text.len() <= 20 && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(DurationError::NoUnit(text.to_owned()));
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    // Each unit once, from large to small, as Kubernetes and Prometheus print them.
    let mut smaller_than = u64::MAX;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or(DurationError::Format)?;
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let millis = unit_millis(unit).ok_or(DurationError::Format)?;
        if number.is_empty() || millis >= smaller_than {
            return Err(DurationError::Format);
        }
        let number: u64 = number.parse().map_err(|_| DurationError::TooLong)?;
        let part = Duration::from_millis(number.checked_mul(millis).ok_or(DurationError::TooLong)?);
        total = total.checked_add(part).ok_or(DurationError::TooLong)?;
        smaller_than = millis;
        rest = after;
    }
    if text.is_empty() {
        return Err(DurationError::Format);
    }
    if total > MAX_DURATION { Err(DurationError::TooLong) } else { Ok(total) }
}

fn unit_millis(unit: &str) -> Option<u64> {
    match unit {
        "ms" => Some(1),
        "s" => Some(1_000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        "d" => Some(86_400_000),
        _ => None,
    }
}

/// The shortest text that [`duration`] reads as `value`.
#[must_use]
pub fn show_duration(value: Duration) -> String {
    let mut millis = value.as_millis();
    if millis == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (unit, size) in [("h", 3_600_000_u128), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
        if millis >= size {
            text.push_str(&(millis / size).to_string());
            text.push_str(unit);
            millis %= size;
        }
    }
    text
}

/// A number that is not a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("port must be 1-65535")]
pub struct PortError;

/// A port from whatever number a file has.
///
/// # Errors
/// [`PortError`] below 1 and above 65535.
pub fn port(number: i64) -> Result<NonZeroU16, PortError> {
    u16::try_from(number).ok().and_then(NonZeroU16::new).ok_or(PortError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        let cases = [("500ms", 500), ("5s", 5_000), ("10m", 600_000), ("24h", 86_400_000), ("1h30m", 5_400_000)];
        for (text, millis) in cases {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
            assert_eq!(show_duration(Duration::from_millis(millis)), text);
        }
        assert_eq!(duration("7d"), Ok(Duration::from_secs(7 * 86_400)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        assert_eq!(duration("5"), Err(DurationError::NoUnit("5".to_owned())));
        assert_eq!(duration("-1s"), Err(DurationError::Negative));
        for text in ["", "s", "5 s", "1e9h", "5x", "5s5s", "5s1h", "1.5h", "٣s", "5s "] {
            assert_eq!(duration(text), Err(DurationError::Format), "{text:?}");
        }
        for text in ["1000000000h", "99999999999999999999s", "18446744073709551615h", "367d"] {
            assert_eq!(duration(text), Err(DurationError::TooLong), "{text:?}");
        }
    }

    #[test]
    fn ports_are_1_to_65535() {
        assert_eq!(port(1).map(NonZeroU16::get), Ok(1));
        assert_eq!(port(65_535).map(NonZeroU16::get), Ok(65_535));
        for number in [0, -1, 65_536, i64::MAX, i64::MIN] {
            assert_eq!(port(number), Err(PortError));
        }
    }
}
