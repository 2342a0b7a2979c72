//! The roles that the chart installs, and what belongs to one of them.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::Object;

/// A role: what only it has, and what the pods of all have.
macro_rules! role {
    ($(#[$about:meta])* $name:ident { $($(#[$meta:meta])* $field:ident: $kind:ty,)* }) => {
        $(#[$about])*
        #[derive(Debug, Deserialize, JsonSchema)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        pub struct $name {
            $($(#[$meta])* pub $field: $kind,)*
            /// CPU and memory.
            pub resources: Object,
            /// Annotations of the pods.
            pub pod_annotations: BTreeMap<String, String>,
            /// Labels of the pods.
            pub pod_labels: BTreeMap<String, String>,
            /// Labels of nodes to run on.
            pub node_selector: BTreeMap<String, String>,
            /// Taints to bear.
            pub tolerations: Vec<Object>,
            /// Where to run.
            pub affinity: Object,
            /// Spread pods over zones and nodes.
            pub topology_spread: bool,
            /// Priority of the pods.
            pub priority_class_name: String,
        }
    };
}

role! {
    /// The gateway role.
    Gateway {
        /// Pods, unless `autoscaling` decides.
        #[schemars(range(min = 1, max = 64))]
        replicas: u32,
        /// Addresses at which peers reach this cluster, `host:port`, as `eastway peer export` prints them.
        advertise: Vec<String>,
        /// How peers reach the gateways.
        service: Service,
        /// Pods by load.
        autoscaling: Autoscaling,
        /// Keep all but one pod running while nodes are drained; only if there are several.
        pod_disruption_budget: bool,
        /// How long connections may go on when a pod stops, seconds; those that are still open then are cut. The pod is
        /// killed 15 s later.
        #[schemars(range(min = 1, max = 3600))]
        drain_seconds: u32,
    }
}

/// How peers reach the gateways.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Service {
    /// `ClusterIP` for a cluster that only dials.
    #[serde(rename = "type")]
    pub kind: ServiceKind,
    /// Its port, UDP and TCP.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// TCP in the same Service (`mixed`), in one of its own that shares the address (`separate`), or not at all (`none`).
    pub tcp: TcpWord,
    /// Annotations of the Service.
    pub annotations: BTreeMap<String, String>,
    /// Annotations of the Service for TCP, if it is separate.
    pub tcp_annotations: BTreeMap<String, String>,
    /// Labels of both.
    pub labels: BTreeMap<String, String>,
    /// Which load balancer.
    pub load_balancer_class: String,
    /// Its address, if it can be chosen.
    #[serde(rename = "loadBalancerIP")]
    pub load_balancer_ip: String,
    /// Ranges that may connect. Empty: all.
    pub load_balancer_source_ranges: Vec<String>,
    /// `Local` keeps the peers' addresses and a hop less, and lets load balancers ask nodes for gateways.
    pub external_traffic_policy: TrafficWord,
    /// False where load balancers reach pods without node ports.
    pub allocate_load_balancer_node_ports: bool,
    /// Port for health checks of nodes under `Local`. 0: any.
    #[schemars(range(max = 65535))]
    pub health_check_node_port: u16,
    /// Node port. 0: any.
    #[schemars(range(max = 65535))]
    pub node_port: u16,
    /// Addresses that lead here without a load balancer. Kubernetes is giving them up.
    #[serde(rename = "externalIPs")]
    pub external_ips: Vec<String>,
    /// `SingleStack`, `PreferDualStack` or `RequireDualStack`. Empty: the cluster's default.
    #[schemars(regex(pattern = "^(SingleStack|PreferDualStack|RequireDualStack)?$"))]
    pub ip_family_policy: String,
    /// `IPv4`, `IPv6`. Empty: the cluster's default.
    pub ip_families: Vec<String>,
}

/// Types of Services.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum ServiceKind {
    /// With an address of a load balancer.
    LoadBalancer,
    /// With a port of each node.
    NodePort,
    /// From inside alone.
    ClusterIP,
}

/// Where TCP is.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub enum TcpWord {
    /// In the same Service.
    Mixed,
    /// In a Service of its own.
    Separate,
    /// Nowhere.
    None,
}

/// Which nodes carry traffic from outside.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum TrafficWord {
    /// Those with a gateway.
    Local,
    /// All.
    Cluster,
}

/// Pods by load.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Autoscaling {
    /// Whether.
    pub enabled: bool,
    /// Least pods.
    #[schemars(range(min = 1, max = 64))]
    pub min_replicas: u32,
    /// Most pods.
    #[schemars(range(min = 1, max = 64))]
    pub max_replicas: u32,
    /// Load to aim at, percent of the CPU request.
    #[serde(rename = "targetCPUUtilizationPercentage")]
    #[schemars(range(min = 1, max = 1000))]
    pub target_cpu: u32,
}

role! {
    /// A role without a side to the outside.
    Role {
        /// Pods. One works, the others wait.
        #[schemars(range(min = 1, max = 16))]
        replicas: u32,
    }
}

role! {
    /// The injector role.
    Injector {
        /// Pods, all of which answer.
        #[schemars(range(min = 1, max = 16))]
        replicas: u32,
    }
}

role! {
    /// The ca role.
    Ca {
        /// Pods, all of which sign.
        #[schemars(range(min = 1, max = 16))]
        replicas: u32,
        /// Make a CA before the first installation, if the Secret is not there.
        init: bool,
        /// Secret with the CA in Istio's `cacerts` layout.
        #[schemars(length(min = 1, max = 253))]
        secret_name: String,
        /// Lifetime of certificates, 1m to 24h. Empty: `24h`.
        leaf_ttl: String,
    }
}
