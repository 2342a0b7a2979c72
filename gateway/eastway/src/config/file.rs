//! The files as users write them: shapes only, every value still a text. JSON Schemas are generated
//! from these structs, and Kubernetes resource definitions will be.

mod gateway;
mod injection;
mod peer;
mod policy;
mod registries;
pub mod route;
mod sidecar;

pub use gateway::{
    AuthorizationWord, DnsSection, GatewayConfig, KubernetesSection, LimitsSection, LinkSection, ListenSection,
    LogSection, NameSection, QuicLbSection, RelayPairSection, RelaySection, ReplicasSection, RoutesWord,
    SidecarsSection, SniSection, TrustSection, VipSection, WorkloadSection,
};
pub use injection::{InjectionSection, PullPolicyWord, QuantitiesSection};
pub use peer::{NameFilterSection, Peer, PeerMetadata, PeerSpec, ProxySection, TransportWord};
pub use policy::{
    AbortSection, AccessAllow, AccessPolicy, AccessPolicySpec, ConnectionLimitsSection, DelaySection, FaultSection,
    LocalityWord, OutlierSection, PolicyMetadata, SplitSection, TrafficPolicy, TrafficPolicySpec, Visibility,
    VisibilitySpec,
};
pub use registries::{ApiServerSection, ClusterRegistrySection, ExportMarkWord, RegistrySection};
pub use sidecar::{
    CaptureWord, EnvoyLogWord, EnvoySection, InboundProtocolWord, InboundSection, ListenerSection, ModeWord,
    ProtocolWord, SidecarConfig, SidecarLogSection, SidecarMode, SidecarTrustSection, WorkloadNameSection,
};

pub use eastway_registry::yaml::API_VERSION;
