//! Whose words a route is written in.

use std::fmt;

use super::{Route, RouteKind};

/// Whose object a route was written as. They differ in which of several rules counts: of the Gateway API the most specific
/// one, of Istio the first that matches. At one port the Gateway API comes first, and of Istio's the oldest object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub enum Origin {
    /// A route of the Gateway API.
    #[default]
    GatewayApi,
    /// A section of a VirtualService.
    Istio,
}

impl Origin {
    pub(crate) fn is_gateway_api(&self) -> bool {
        *self == Self::GatewayApi
    }
}

impl Route {
    /// The kind of the object that it comes from.
    #[must_use]
    pub fn object_kind(&self) -> &'static str {
        match self.origin {
            Origin::GatewayApi => self.kind.as_str(),
            Origin::Istio => "VirtualService",
        }
    }

    /// One of its rules, as its author calls it: `HTTPRoute shop/web rules[0]`.
    #[must_use]
    pub fn rule_name(&self, index: usize) -> String {
        let list = match (self.origin, self.kind) {
            (Origin::GatewayApi, _) => "rules",
            (Origin::Istio, RouteKind::Grpc | RouteKind::Http) => "http",
            (Origin::Istio, RouteKind::Tls) => "tls",
            (Origin::Istio, RouteKind::Tcp) => "tcp",
        };
        format!("{list}[{index}]")
    }
}

/// `HTTPRoute shop/web`.
impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.object_kind(), self.name)
    }
}
