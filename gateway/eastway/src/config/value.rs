//! Values with a grammar of their own.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use eastway_identity::SpiffeId;
use eastway_model::ClusterName;
use eastway_registry::value::PortError;

/// Where a peer's gateway can be dialled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// A DNS name in lower case, or an IP address without brackets.
    pub host: Arc<str>,
    /// 1 to 65535.
    pub port: u16,
}

/// Why a text is not an address of a peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostPortError {
    /// A URL.
    #[error("must be host:port, without {0}")]
    Scheme(String),
    /// A blank before, in or after it.
    #[error("must not contain blanks")]
    Blank,
    /// A name alone.
    #[error("must be host:port; the port is missing, e.g. {0}:15443")]
    NoPort(String),
    /// `::1:15443` could be two things.
    #[error("an IPv6 address must be in brackets, e.g. [2001:db8::1]:15443")]
    Brackets,
    /// Not a port.
    #[error("{0}")]
    Port(PortError),
    /// An address that is nobody's.
    #[error("{0} is not an address that can be dialled")]
    Undiallable(IpAddr),
    /// Neither a DNS name nor an IP address.
    #[error("the host must be a DNS name or an IP address")]
    Host,
}

impl HostPort {
    /// Parses `host:port`; IPv6 addresses in brackets.
    ///
    /// # Errors
    /// [`HostPortError`] says what to write instead.
    pub fn parse(text: &str) -> Result<Self, HostPortError> {
        if let Some((scheme, _)) = text.split_once("://") {
            return Err(HostPortError::Scheme(format!("{}://", printable(scheme))));
        }
        if text.contains(char::is_whitespace) {
            return Err(HostPortError::Blank);
        }
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, rest) = rest.split_once(']').ok_or(HostPortError::Brackets)?;
            let host: std::net::Ipv6Addr = host.parse().map_err(|_| HostPortError::Host)?;
            let port = rest.strip_prefix(':').ok_or_else(|| HostPortError::NoPort(format!("[{host}]")))?;
            (host.to_string(), port)
        } else {
            if text.parse::<std::net::Ipv6Addr>().is_ok() || text.matches(':').count() > 1 {
                return Err(HostPortError::Brackets);
            }
            let (host, port) = text.split_once(':').ok_or_else(|| HostPortError::NoPort(printable(text)))?;
            (host.to_ascii_lowercase(), port)
        };
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let number = port.parse().ok().filter(|_| digits).unwrap_or(0);
        let port = eastway_registry::value::port(number).map_err(HostPortError::Port)?.get();
        if let Ok(address) = host.parse::<IpAddr>() {
            let broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
            if address.is_unspecified() || address.is_multicast() || broadcast {
                return Err(HostPortError::Undiallable(address));
            }
        } else if host.trim_end_matches('.').rsplit('.').next().is_none_or(all_digits) {
            // 10.1, 0x7f.1 and 300.1.2.3 are addresses to some resolvers and names to none.
            return Err(HostPortError::Host);
        } else {
            Fqdn::parse(&host).map_err(|_| HostPortError::Host)?;
        }
        Ok(Self { host: Arc::from(host), port })
    }

    /// The address, if the host is one and needs no resolving.
    #[must_use]
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        self.host.parse().ok().map(|ip| SocketAddr::new(ip, self.port))
    }
}

fn all_digits(label: &str) -> bool {
    let hex = label.strip_prefix("0x").is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    label.is_empty() || hex || label.bytes().all(|byte| byte.is_ascii_digit())
}

fn printable(text: &str) -> String {
    text.chars().take(60).filter(char::is_ascii_graphic).collect()
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl serde::Serialize for HostPort {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A DNS name in lower case, fully qualified, without the final dot.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fqdn(Arc<str>);

/// Why a text is not a DNS name (RFC 1035 §2.3.1, RFC 1123 §2.1).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FqdnError {
    /// More than 253 characters, or none.
    #[error("must have 1 to 253 characters")]
    Length,
    /// A label is empty, longer than 63, or has other characters.
    #[error("must be a DNS name: labels of letters, digits and '-' with dots between them")]
    Label,
}

impl Fqdn {
    /// Checks the grammar; a final dot is allowed, capitals become lower case.
    ///
    /// # Errors
    /// [`FqdnError`] says which rule the text breaks.
    pub fn parse(text: &str) -> Result<Self, FqdnError> {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        if name.is_empty() || name.len() > 253 {
            return Err(FqdnError::Length);
        }
        let good = |label: &str| eastway_model::Label::parse(label).is_ok();
        if name.split('.').all(good) { Ok(Self(Arc::from(name))) } else { Err(FqdnError::Label) }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `self` is `zone` or lies in it.
    #[must_use]
    pub fn is_in(&self, zone: &Self) -> bool {
        let rest = self.0.strip_suffix(&*zone.0);
        rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    }
}

impl fmt::Display for Fqdn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Fqdn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl serde::Serialize for Fqdn {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// A trust domain: lower-case, as in `spiffe://<trust domain>/…`.
///
/// # Errors
/// What its grammar is (SPIFFE-ID standard §2.1).
pub fn trust_domain(text: &str) -> Result<Arc<str>, &'static str> {
    match SpiffeId::gateway(text) {
        Ok(id) if id.trust_domain() == text => Ok(Arc::from(text)),
        _ => Err("must be 1 to 255 characters of a-z, 0-9, '.', '-' and '_', e.g. onprem.example"),
    }
}

/// A name of a cluster. `local` stands for one's own cluster in policies and cannot be one.
///
/// # Errors
/// What its grammar is.
pub fn cluster_name(text: &str) -> Result<ClusterName, String> {
    if text == "local" {
        return Err("local means one's own cluster in policies; choose another name".to_owned());
    }
    ClusterName::parse(text).map_err(|error| error.to_string())
}

/// A number of bytes: `4096`, `64KiB`, `256MiB`, `1GiB`.
///
/// # Errors
/// What to write.
pub fn byte_size(text: &str) -> Result<u64, &'static str> {
    let error = "must be a number of bytes, such as 64KiB, 256MiB or 1GiB";
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| error)?;
    let shift = match unit {
        "" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return Err(error),
    };
    number.checked_mul(1 << shift).ok_or("is too large")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_peers() {
        for (text, shown) in [
            ("gw.onprem.example:15443", "gw.onprem.example:15443"),
            ("GW.Example.:1", "gw.example.:1"),
            ("198.51.100.12:15443", "198.51.100.12:15443"),
            ("[2001:db8::1]:15443", "[2001:db8::1]:15443"),
            ("127.0.0.1:65535", "127.0.0.1:65535"),
        ] {
            assert_eq!(HostPort::parse(text).map(|address| address.to_string()), Ok(shown.to_owned()));
        }
        let bad = [
            "gw",
            "gw:",
            "gw:0",
            "gw:70000",
            "gw:-1",
            "gw:+1",
            "gw: 1",
            "gw:1 ",
            "http://gw:1",
            "::1:15443",
            "2001:db8::1",
            "[::1]",
            "[::1:1",
            "0.0.0.0:1",
            "[::]:1",
            "224.0.0.1:1",
            "255.255.255.255:1",
            ":1",
            "a..b:1",
            "-a:1",
            "10.1:1",
            "0x7f.1:1",
            "0x7f000001:1",
            "300.1.2.3:1",
            "2130706433:1",
            "a_b:1",
            "é.example:1",
            "",
        ];
        for text in bad {
            assert!(HostPort::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn names_lie_in_zones() {
        let name = |text: &str| Fqdn::parse(text).unwrap();
        assert!(name("reviews.shop.example").is_in(&name("shop.example")));
        assert!(name("shop.example.").is_in(&name("Shop.Example")));
        assert!(!name("workshop.example").is_in(&name("shop.example")));
        for bad in ["", ".", "a..b", ".a", "a b", "*.a", &"a".repeat(64), &"a.".repeat(128)] {
            assert!(Fqdn::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(byte_size("4096"), Ok(4096));
        assert_eq!(byte_size("64KiB"), Ok(65_536));
        assert_eq!(byte_size("1GiB"), Ok(1 << 30));
        for bad in ["", "MiB", "1MB", "1.5GiB", "-1", "18446744073709551615KiB", "1 GiB"] {
            assert!(byte_size(bad).is_err(), "{bad:?}");
        }
    }
}
