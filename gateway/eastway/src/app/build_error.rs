//! Why the gateway cannot start.

/// Why the gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// One of the HTTP ports.
    #[error(transparent)]
    Admin(#[from] crate::admin::BindError),
    /// The DNS port.
    #[error(transparent)]
    Dns(#[from] eastway_dns::BindError),
    /// The link port.
    #[error(transparent)]
    Link(#[from] eastway_tunnel::BindError),
    /// The local port.
    #[error(transparent)]
    Local(#[from] crate::local::listener::BindError),
    /// A port for Istio's sidecars cannot be listened on.
    #[error(transparent)]
    Sni(#[from] super::sni::BindError),
    /// A zone of one's own is none.
    #[error("dns.zones: {0}")]
    Zone(#[from] eastway_dns::NameError),
    /// The trust domain makes no SPIFFE id.
    #[error("trust.domain: {0}")]
    TrustDomain(#[from] eastway_identity::SpiffeIdError),
    /// The peers contradict each other.
    #[error(transparent)]
    Trust(#[from] eastway_identity::TrustError),
    /// Connection ids cannot be made as a load balancer wants them.
    #[error(transparent)]
    QuicLb(#[from] super::quic_lb::QuicLbUnusable),
    /// The system gives no random numbers.
    #[error(transparent)]
    Randomness(#[from] eastway_tunnel::NoRandomness),
}
