//! Types of resources.

use std::fmt;

/// A type of resource. Their order is the one in which what is new is sent: a proxy must know what something refers
/// to before it refers to it (make before break).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// CDS: a set of endpoints, and how to talk to them.
    Cluster,
    /// EDS: the endpoints of a cluster of the same name.
    Endpoints,
    /// SDS: certificates and trust bundles. Before listeners: one that ends all connections because of who is revoked must
    /// not take them again by the old list.
    Secret,
    /// LDS: where the proxy listens.
    Listener,
    /// RDS: which HTTP request goes to which cluster.
    Route,
    /// Virtual hosts. There are none; like all below they are answered as absent, because a client may ask.
    VirtualHost,
    /// Scoped routes.
    ScopedRoute,
    /// Configurations of extensions.
    Extension,
    /// Runtime layers.
    Runtime,
}

/// A type that is not served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnknownKind {
    /// Of the API that Envoy dropped in 2021.
    #[error("type {0:?} is of xDS v2; only v3 is spoken here")]
    OldVersion(String),
    /// Not one of ours.
    #[error("type {0:?} is not served here")]
    Unknown(String),
}

impl Kind {
    /// All, in the order in which what is new is sent.
    pub const ALL: [Self; 9] = [
        Self::Cluster,
        Self::Endpoints,
        Self::Secret,
        Self::Listener,
        Self::Route,
        Self::VirtualHost,
        Self::ScopedRoute,
        Self::Extension,
        Self::Runtime,
    ];

    /// All, in the order in which what is gone is told: who refers goes before what it refers to.
    pub const REMOVAL: [Self; 9] = [
        Self::Listener,
        Self::ScopedRoute,
        Self::VirtualHost,
        Self::Route,
        Self::Cluster,
        Self::Endpoints,
        Self::Extension,
        Self::Secret,
        Self::Runtime,
    ];

    /// The type of a URL in a request.
    ///
    /// # Errors
    /// [`UnknownKind`]; the text is cut to 128 bytes.
    pub fn parse(url: &str) -> Result<Self, UnknownKind> {
        let known = Self::ALL.into_iter().find(|kind| kind.url() == url);
        known.ok_or_else(|| {
            let text: String = url.chars().take(128).collect();
            if url.starts_with("type.googleapis.com/envoy.api.v2.") {
                UnknownKind::OldVersion(text)
            } else {
                UnknownKind::Unknown(text)
            }
        })
    }

    /// Its URL.
    #[must_use]
    pub fn url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Self::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
            Self::VirtualHost => "type.googleapis.com/envoy.config.route.v3.VirtualHost",
            Self::ScopedRoute => "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration",
            Self::Extension => "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
            Self::Runtime => "type.googleapis.com/envoy.service.runtime.v3.Runtime",
        }
    }

    /// As people abbreviate it; a label of metrics.
    #[must_use]
    pub fn short(self) -> &'static str {
        match self {
            Self::Cluster => "cds",
            Self::Endpoints => "eds",
            Self::Listener => "lds",
            Self::Route => "rds",
            Self::Secret => "sds",
            Self::VirtualHost => "vhds",
            Self::ScopedRoute => "srds",
            Self::Extension => "ecds",
            Self::Runtime => "rtds",
        }
    }

    /// Whether a client can ask for all of them, and a state-of-the-world response holds all: true of clusters and
    /// listeners, which nothing else names.
    #[must_use]
    pub fn has_wildcard(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_found_by_its_url_and_others_say_why_not() {
        for kind in Kind::ALL {
            assert_eq!(Kind::parse(kind.url()), Ok(kind));
            assert!(Kind::REMOVAL.contains(&kind));
        }
        let v2 = Kind::parse("type.googleapis.com/envoy.api.v2.Cluster").unwrap_err().to_string();
        assert!(v2.contains("only v3 is spoken"), "{v2}");
        assert!(Kind::parse("").unwrap_err().to_string().contains("not served"));
    }
}
