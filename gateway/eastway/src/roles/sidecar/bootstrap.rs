//! What Envoy is started with: who it is, and that all else comes from the agent's socket.

use std::path::{Path, PathBuf};

use eastway_xds::inbound;
use eastway_xds::node::{LISTEN, Outbound};
use eastway_xds::resources::BUFFER;
use serde_json::{Value, json};

use super::memory::Budget;
use super::{capture, listeners};
use crate::config::SidecarSettings;
use crate::config::file::CaptureWord;

/// Name of the cluster that is the agent, for whoever names it in configuration that comes later.
pub const AGENT: &str = "agent";

/// Files of the state folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The agent's socket.
    pub agent: PathBuf,
    /// Envoy's administration, unless it has a port.
    pub admin: PathBuf,
    /// Envoy's first configuration.
    pub bootstrap: PathBuf,
}

impl Files {
    /// Those of this folder.
    #[must_use]
    pub fn of(state: &Path) -> Self {
        Self {
            agent: state.join("agent.sock"),
            admin: state.join(crate::config::sidecar::LONGEST_SOCKET),
            bootstrap: state.join("envoy.json"),
        }
    }
}

/// Envoy's bootstrap configuration.
#[must_use]
pub fn bootstrap(settings: &SidecarSettings, files: &Files) -> Value {
    let (namespace, account) = (settings.namespace.as_str(), settings.service_account.as_str());
    let listen = match (settings.outbound, settings.capture) {
        (true, CaptureWord::None) => Outbound::Bound,
        (true, CaptureWord::Nftables | CaptureWord::Prepared) => Outbound::Captured,
        (false, _) => Outbound::None,
    };
    let mut metadata = json!({"NAMESPACE": namespace, "SERVICE_ACCOUNT": account, LISTEN: listen.word()});
    if !settings.inbound.is_empty()
        && let (Some(fields), Ok(text)) = (metadata.as_object_mut(), serde_json::to_string(&settings.inbound))
    {
        fields.insert(inbound::KEY.to_owned(), text.into());
        if !settings.by_service.addresses.is_empty()
            && let Ok(text) = serde_json::to_string(&settings.by_service)
        {
            fields.insert(inbound::BY_SERVICE.to_owned(), text.into());
        }
    }
    let budget = Budget::of(settings);
    let captured = listen == Outbound::Captured;
    let passthrough = captured.then(|| capture::passthrough(settings.capture, budget.connections())).flatten();
    let clusters: Vec<Value> = std::iter::once(agent_cluster(files)).chain(passthrough).collect();
    let own = captured.then(|| capture::listener(settings.capture)).into_iter();
    let own: Vec<Value> = own.chain(settings.listeners.iter().map(listeners::listener)).collect();
    let from_ads = json!({"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"});
    json!({
        "node": {
            "id": format!("sidecar~{}.{namespace}", settings.name),
            "cluster": format!("{account}.{namespace}"),
            // Hints: what counts is the certificate. Of its own listeners it alone decides.
            "metadata": metadata,
        },
        // Without it no listener inside Envoy works, and those lead to remote endpoints.
        "bootstrap_extensions": [{
            "name": "envoy.bootstrap.internal_listener",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener",
                "buffer_size_kb": BUFFER >> 10,
            },
        }],
        // This process looks there how Envoy is, the more so when it has too much to do.
        "admin": {"address": admin_address(settings, files), "ignore_global_conn_limit": true},
        "overload_manager": budget.overload_manager(),
        // By default Envoy refuses a rule whose regular expression is longer than a few words.
        "layered_runtime": {"layers": [{
            "name": "eastway",
            "static_layer": {"re2.max_program_size.error_level": 32_768, "re2.max_program_size.warn_level": 32_768},
        }]},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": true,
                "grpc_services": [{
                    "envoy_grpc": {
                        "cluster_name": AGENT,
                        "retry_policy": {"retry_back_off": {"base_interval": "0.2s", "max_interval": "5s"}},
                    },
                }],
            },
            "cds_config": from_ads,
            "lds_config": from_ads,
        },
        "static_resources": {
            "clusters": clusters,
            "listeners": own,
        },
    })
}

fn admin_address(settings: &SidecarSettings, files: &Files) -> Value {
    match settings.envoy.admin {
        Some(port) => json!({"socket_address": {"address": "127.0.0.1", "port_value": port.get()}}),
        None => json!({"pipe": {"path": files.admin, "mode": 0o600}}),
    }
}

/// The agent: HTTP/2 over its socket, whose permissions are what protects it.
fn agent_cluster(files: &Files) -> Value {
    json!({
        "name": AGENT,
        "type": "STATIC",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            },
        },
        "load_assignment": {
            "cluster_name": AGENT,
            "endpoints": [{
                "lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": files.agent}}}}],
            }],
        },
    })
}
