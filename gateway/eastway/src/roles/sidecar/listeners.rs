//! Envoy's listeners for single imports: of a workload that names them, since nothing leads its connections here. What is behind
//! one, cluster or routes, comes from the gateway as for everybody.

use eastway_xds::resources::{BUFFER, cluster_name};
use serde_json::{Value, json};

use crate::config::sidecar::Listener;

/// How long Envoy waits at its start for the routes of a service that the gateway does not know yet.
const PATIENCE: &str = "5s";

/// The listener.
pub(super) fn listener(wanted: &Listener) -> Value {
    let name = cluster_name(&wanted.service, wanted.port);
    let filter = if wanted.protocol.is_http() { requests(&name) } else { bytes(&name) };
    json!({
        "name": format!("listener|{}", wanted.listen),
        "address": {"socket_address": {"address": wanted.listen.ip(), "port_value": wanted.listen.port()}},
        "filter_chains": [{"filters": [filter]}],
        "traffic_direction": "OUTBOUND",
        "per_connection_buffer_limit_bytes": BUFFER,
    })
}

fn typed(name: &str, kind: &str, fields: &Value) -> Value {
    let mut config = fields.clone();
    if let Some(config) = config.as_object_mut() {
        config.insert("@type".to_owned(), format!("type.googleapis.com/envoy.extensions.filters.{kind}").into());
    }
    json!({"name": name, "typed_config": config})
}

fn bytes(cluster: &str) -> Value {
    let fields = json!({"stat_prefix": cluster, "cluster": cluster, "idle_timeout": "0s"});
    typed("envoy.filters.network.tcp_proxy", "network.tcp_proxy.v3.TcpProxy", &fields)
}

/// The filters are those of listeners that the gateway makes: routes speak to them by name.
fn requests(routes: &str) -> Value {
    let source = json!({"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": PATIENCE});
    let none = json!({});
    let fields = json!({
        "stat_prefix": routes,
        "rds": {"route_config_name": routes, "config_source": source},
        "http_filters": [
            typed("envoy.filters.http.fault", "http.fault.v3.HTTPFault", &none),
            typed("envoy.filters.http.stateful_session", "http.stateful_session.v3.StatefulSession", &none),
            typed("envoy.filters.http.router", "http.router.v3.Router", &none),
        ],
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "server_header_transformation": "PASS_THROUGH",
        "stream_idle_timeout": "0s",
    });
    let kind = "network.http_connection_manager.v3.HttpConnectionManager";
    typed("envoy.filters.network.http_connection_manager", kind, &fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(protocol: &str) -> Value {
        let text = format!(
            "{{apiVersion: eastway.dev/v1alpha1, kind: SidecarConfig, gateway: 'gateway:15012', outbound: false, \
             workload: {{namespace: shop, serviceAccount: web, name: web-1}}, \
             trust: {{domain: a.example, ca: 'https://ca:15012'}}, \
             listeners: [{{listen: '127.0.0.1:9080', service: bookinfo/reviews, port: 9080, protocol: {protocol}}}]}}"
        );
        let settings = crate::config::read_sidecar("x", &text).unwrap_or_else(|errors| panic!("{errors}"));
        listener(&settings.listeners[0])
    }

    #[test]
    fn a_place_leads_to_what_the_gateway_tells_of_the_import() {
        let name = "outbound|9080||reviews.bookinfo.svc.clusterset.local";
        let http = of("http");
        assert_eq!(http["address"]["socket_address"], json!({"address": "127.0.0.1", "port_value": 9080}));
        let config = &http["filter_chains"][0]["filters"][0]["typed_config"];
        assert_eq!(config["rds"]["route_config_name"], name);
        let tcp = of("tcp");
        assert_eq!(tcp["filter_chains"][0]["filters"][0]["typed_config"]["cluster"], name);
    }
}
