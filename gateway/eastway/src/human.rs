//! Numbers as people read them.

use std::time::Duration;

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// Milliseconds as the two largest units, e.g. `3d 4h`, `1m 1s`, `31s`, `250ms`.
#[must_use]
pub fn duration(millis: u64) -> String {
    let two = |large: u64, large_unit: &str, small: u64, small_unit: &str| match small {
        0 => format!("{large}{large_unit}"),
        _ => format!("{large}{large_unit} {small}{small_unit}"),
    };
    match millis {
        0..1_000 => format!("{millis}ms"),
        1_000..MINUTE => format!("{}s", millis / 1_000),
        MINUTE..HOUR => two(millis / MINUTE, "m", millis % MINUTE / 1_000, "s"),
        HOUR..DAY => two(millis / HOUR, "h", millis % HOUR / MINUTE, "m"),
        _ => two(millis / DAY, "d", millis % DAY / HOUR, "h"),
    }
}

/// How long ago a time was; both in milliseconds since the Unix epoch.
#[must_use]
pub fn age(then: u64, now: u64) -> String {
    duration(now.saturating_sub(then))
}

/// `in 3d 4h`, or `3d 4h ago`.
#[must_use]
pub fn until(then: u64, now: u64) -> String {
    if then >= now { format!("in {}", duration(then - now)) } else { format!("{} ago", duration(now - then)) }
}

/// Bytes with a binary unit, e.g. `1.9 MiB`.
#[must_use]
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1_024 {
        return format!("{count} B");
    }
    // Tenths of the unit, so that no float is needed.
    let mut tenths = u128::from(count) * 10 / 1_024;
    let mut units = UNITS.iter();
    let mut unit = units.next().unwrap_or(&"");
    while tenths >= 10_240 {
        let Some(next) = units.next() else { break };
        (tenths, unit) = (tenths / 1_024, next);
    }
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

/// A time in milliseconds, e.g. `20.4 ms`.
#[must_use]
pub fn millis(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_two_units() {
        let cases = [
            (0, "0ms"),
            (250, "250ms"),
            (31_999, "31s"),
            (61_500, "1m 1s"),
            (2 * HOUR, "2h"),
            (DAY + HOUR + MINUTE, "1d 1h"),
            (3_650 * DAY, "3650d"),
        ];
        for (input, expected) in cases {
            assert_eq!(duration(input), expected);
        }
    }

    #[test]
    fn bytes_have_one_decimal() {
        let cases =
            [(0, "0 B"), (1_023, "1023 B"), (1_024, "1.0 KiB"), (2_000_000, "1.9 MiB"), (u64::MAX, "16777215.9 TiB")];
        for (input, expected) in cases {
            assert_eq!(bytes(input), expected);
        }
    }
}
