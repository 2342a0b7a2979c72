//! Grammars of single values that several kinds of file share.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::Duration;

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

/// Why an address must not be dialled for a service (threat P6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RefusedAddress {
    /// `127.0.0.0/8`, `::1`.
    #[error("loopback")]
    Loopback,
    /// `169.254.0.0/16`, `fe80::/10`: cloud metadata services live there.
    #[error("link-local")]
    LinkLocal,
    /// `224.0.0.0/4`, `ff00::/8`.
    #[error("multicast")]
    Multicast,
    /// `0.0.0.0/8`, `::`: "this host" on most systems.
    #[error("unspecified")]
    Unspecified,
    /// `255.255.255.255`.
    #[error("broadcast")]
    Broadcast,
    /// `::ffff:a.b.c.d` and `::a.b.c.d`: an IPv4 address that filters for IPv4 do not see.
    #[error("an IPv4 address in IPv6 form; write it as IPv4")]
    MappedV4,
}

/// Whether a gateway may dial `address` as an endpoint. `allow_loopback` is for demonstrations and
/// tests on one machine.
///
/// # Errors
/// [`RefusedAddress`] says which kind of address is refused.
pub fn dialable(address: IpAddr, allow_loopback: bool) -> Result<(), RefusedAddress> {
    let refused = match address {
        IpAddr::V4(v4) if v4.octets()[0] == 0 => Some(RefusedAddress::Unspecified),
        IpAddr::V4(v4) if v4.is_link_local() => Some(RefusedAddress::LinkLocal),
        IpAddr::V4(v4) if v4.is_multicast() => Some(RefusedAddress::Multicast),
        IpAddr::V4(v4) if v4.is_broadcast() => Some(RefusedAddress::Broadcast),
        IpAddr::V4(v4) if v4.is_loopback() => Some(RefusedAddress::Loopback),
        IpAddr::V4(_) => None,
        IpAddr::V6(v6) if v6.is_unspecified() => Some(RefusedAddress::Unspecified),
        IpAddr::V6(v6) if v6.is_loopback() => Some(RefusedAddress::Loopback),
        IpAddr::V6(v6) if v6.is_multicast() => Some(RefusedAddress::Multicast),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some(RefusedAddress::LinkLocal),
        // Deprecated ::a.b.c.d (RFC 4291 §2.5.5.1) is routed by some stacks all the same.
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() || v6.segments().starts_with(&[0; 6]) => {
            Some(RefusedAddress::MappedV4)
        }
        IpAddr::V6(_) => None,
    };
    match refused {
        Some(RefusedAddress::Loopback) if allow_loopback => Ok(()),
        Some(refused) => Err(refused),
        None => Ok(()),
    }
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
    fn p6_only_addresses_of_workloads_are_dialled() {
        let refused = [
            "127.0.0.1",
            "127.255.0.1",
            "169.254.169.254",
            "224.0.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::10.0.0.1",
        ];
        for text in refused {
            assert!(dialable(text.parse().unwrap(), false).is_err(), "{text}");
        }
        for text in ["10.0.0.1", "192.0.2.1", "fd00::1", "2001:db8::1", "242.0.0.1"] {
            assert_eq!(dialable(text.parse().unwrap(), false), Ok(()), "{text}");
        }
        assert_eq!(dialable("127.0.0.5".parse().unwrap(), true), Ok(()));
        assert_eq!(dialable("::1".parse().unwrap(), true), Ok(()));
        assert!(dialable("::ffff:127.0.0.1".parse().unwrap(), true).is_err());
        assert!(dialable("169.254.169.254".parse().unwrap(), true).is_err());
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
