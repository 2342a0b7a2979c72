//! What a port speaks.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::service::ServicePort;

/// The protocol of a port, as far as a proxy has to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AppProtocol {
    /// HTTP/1.1, and WebSocket by its upgrade.
    Http,
    /// HTTP/2 without TLS, gRPC among it.
    Http2,
    /// Bytes.
    Tcp,
}

impl AppProtocol {
    /// By `appProtocol`, else by the first part of the port's name, as Istio reads it; else bytes.
    #[must_use]
    pub fn of(port: &ServicePort) -> Self {
        let by_name = || port.name.as_ref().and_then(|name| name.as_str().split('-').next());
        match port.app_protocol.as_deref().or_else(by_name) {
            Some("http" | "HTTP" | "kubernetes.io/ws") => Self::Http,
            Some("http2" | "h2c" | "grpc" | "kubernetes.io/h2c") => Self::Http2,
            Some(_) | None => Self::Tcp,
        }
    }

    /// Whether requests can be told apart.
    #[must_use]
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2)
    }
}

/// As it is written in files.
impl fmt::Display for AppProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "http",
            Self::Http2 => "http2",
            Self::Tcp => "tcp",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use crate::name::PortName;
    use crate::service::Protocol;

    use super::*;

    #[test]
    fn the_app_protocol_counts_before_the_name() {
        let of = |name: Option<&str>, app_protocol: Option<&str>| {
            AppProtocol::of(&ServicePort {
                name: name.map(|name| PortName::parse(name).unwrap()),
                number: NonZeroU16::MIN,
                protocol: Protocol::Tcp,
                app_protocol: app_protocol.map(Into::into),
            })
        };
        assert_eq!(of(Some("http"), None), AppProtocol::Http);
        assert_eq!(of(Some("http-web"), None), AppProtocol::Http);
        assert_eq!(of(Some("grpc"), None), AppProtocol::Http2);
        assert_eq!(of(Some("httpx"), None), AppProtocol::Tcp);
        assert_eq!(of(Some("http"), Some("tcp")), AppProtocol::Tcp);
        assert_eq!(of(None, Some("kubernetes.io/h2c")), AppProtocol::Http2);
        assert_eq!(of(None, Some("https")), AppProtocol::Tcp);
        assert_eq!(of(None, None), AppProtocol::Tcp);
    }
}
