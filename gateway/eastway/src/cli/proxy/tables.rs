//! Envoy's JSON as tables: what a person looks for first. All of it is in `-o json`.

use serde_json::Value;

use crate::admin::sidecars::{ResourceKind, ResourceView};
use crate::cli::output::Table;
use crate::human;

/// The table of these resources.
pub(super) fn of(kind: ResourceKind, items: &[ResourceView], now: u64) -> Table {
    let mut table = Table::new(match kind {
        ResourceKind::Listeners => &["LISTENER", "FOR", "SPEAKS", "LEADS TO"],
        ResourceKind::Routes => &["ROUTES", "HOSTS", "MATCH", "LEADS TO", "AND"],
        ResourceKind::Clusters => &["CLUSTER", "ENDPOINTS BY", "BALANCING", "TLS"],
        ResourceKind::Endpoints => &["CLUSTER", "ENDPOINT", "HEALTH", "PRIORITY", "WEIGHT", "LOCALITY", "LABELS"],
        ResourceKind::Secrets => &["SECRET", "CERTIFICATE OF", "SERIAL", "ENDS"],
    });
    for item in items {
        match kind {
            ResourceKind::Listeners => listener(&mut table, item),
            ResourceKind::Routes => routes(&mut table, item),
            ResourceKind::Clusters => cluster(&mut table, item),
            ResourceKind::Endpoints => endpoints(&mut table, item),
            ResourceKind::Secrets => secret(&mut table, item, now),
        }
    }
    table
}

fn listener(table: &mut Table, item: &ResourceView) {
    if let Some(manager) = item.resource.pointer("/api_listener/api_listener") {
        table.row([item.name.clone(), "clients without a proxy".to_owned(), "http".to_owned(), http(manager)]);
        return;
    }
    let chains = list(&item.resource, "/filter_chains");
    for chain in chains.chain(item.resource.get("default_filter_chain")) {
        let filters: Vec<&Value> = list(chain, "/filters").filter_map(|filter| filter.get("typed_config")).collect();
        let Some(last) = filters.last() else { continue };
        let kind = text(last, "/@type");
        let (speaks, target) = if kind.ends_with(".HttpConnectionManager") {
            ("http", http(last))
        } else if let Some(authority) = last.pointer("/tunneling_config/hostname") {
            ("connect", format!("{} for {}", tcp(last), authority.as_str().unwrap_or_default()))
        } else {
            ("tcp", tcp(last))
        };
        let speaks = if chain.get("transport_socket").is_some() { format!("tls, {speaks}") } else { speaks.to_owned() };
        table.row([item.name.clone(), chain_match(chain), speaks, target]);
    }
}

/// Which connections a filter chain is for.
fn chain_match(chain: &Value) -> String {
    let Some(matching) = chain.get("filter_chain_match") else { return "all".to_owned() };
    let mut parts = Vec::new();
    for (name, path) in [("transport", "/transport_protocol"), ("port", "/destination_port")] {
        let value = text(matching, path);
        if !value.is_empty() {
            parts.push(format!("{name} {value}"));
        }
    }
    for (name, path) in [("name", "/server_names"), ("protocol", "/application_protocols")] {
        let values: Vec<&str> = list(matching, path).filter_map(Value::as_str).collect();
        if !values.is_empty() {
            parts.push(format!("{name} {}", values.join(",")));
        }
    }
    if parts.is_empty() { "some".to_owned() } else { parts.join(", ") }
}

fn http(manager: &Value) -> String {
    let by_name = text(manager, "/rds/route_config_name");
    if by_name.is_empty() {
        format!("routes {} inside", text(manager, "/route_config/name"))
    } else {
        format!("routes {by_name}")
    }
}

fn tcp(proxy: &Value) -> String {
    let one = text(proxy, "/cluster");
    if one.is_empty() { weighted(proxy, "/weighted_clusters/clusters") } else { one }
}

/// `a 80, b 20`.
fn weighted(value: &Value, path: &str) -> String {
    let clusters: Vec<String> =
        list(value, path).map(|one| format!("{} {}", text(one, "/name"), number(one, "/weight", 0))).collect();
    clusters.join(", ")
}

fn routes(table: &mut Table, item: &ResourceView) {
    for host in list(&item.resource, "/virtual_hosts") {
        let domains: Vec<&str> = list(host, "/domains").filter_map(Value::as_str).collect();
        for route in list(host, "/routes") {
            let (target, more) = action(route);
            table.row([item.name.clone(), domains.join(","), matches(route), target, more]);
        }
    }
}

/// Which requests a route is for.
fn matches(route: &Value) -> String {
    let Some(matching) = route.get("match") else { return String::new() };
    let path =
        [("/prefix", "*"), ("/path", ""), ("/path_separated_prefix", "/*")].into_iter().find_map(|(path, end)| {
            let text = matching.pointer(path)?.as_str()?;
            Some(format!("{text}{end}"))
        });
    let regex = || matching.pointer("/safe_regex/regex").and_then(Value::as_str).map(|regex| format!("~ {regex}"));
    let mut parts: Vec<String> = path.or_else(regex).into_iter().collect();
    for (word, path) in [("header", "/headers"), ("query", "/query_parameters")] {
        parts.extend(list(matching, path).map(|one| format!("{word} {}{}", text(one, "/name"), wanted(one))));
    }
    parts.join(", ")
}

/// What the value of a header or parameter has to be.
fn wanted(matcher: &Value) -> String {
    let Some(string) = matcher.get("string_match") else { return String::new() };
    let invert = if matcher.get("invert_match").is_some() { "!" } else { "" };
    let forms = [("exact", "="), ("prefix", "^="), ("suffix", "$="), ("contains", "*=")];
    let form = forms.into_iter().find_map(|(name, sign)| Some(format!("{sign}{}", string.get(name)?.as_str()?)));
    let form = form.unwrap_or_else(|| format!("~{}", text(string, "/safe_regex/regex")));
    format!("{invert}{form}")
}

/// Where a route leads, and what else it says.
fn action(route: &Value) -> (String, String) {
    if let Some(redirect) = route.get("redirect") {
        return (format!("redirect {redirect}"), String::new());
    }
    if let Some(direct) = route.get("direct_response") {
        return (format!("answer {}", number(direct, "/status", 200)), String::new());
    }
    let Some(action) = route.get("route") else { return ("refused".to_owned(), String::new()) };
    let one = text(action, "/cluster");
    let target = if one.is_empty() { weighted(action, "/weighted_clusters/clusters") } else { one };
    let mut more = Vec::new();
    let timeout = text(action, "/timeout");
    if !timeout.is_empty() && timeout != "0s" {
        more.push(format!("timeout {timeout}"));
    }
    if let Some(retry) = action.get("retry_policy") {
        more.push(format!("retries {}", number(retry, "/num_retries", 1)));
    }
    more.extend(list(action, "/request_mirror_policies").map(|mirror| format!("mirror {}", text(mirror, "/cluster"))));
    (target, more.join(", "))
}

fn cluster(table: &mut Table, item: &ResourceView) {
    let cluster = &item.resource;
    let word = |path: &str, default: &str| {
        let word = text(cluster, path);
        if word.is_empty() { default.to_owned() } else { word.to_lowercase().replace('_', " ") }
    };
    let tls = |socket: &Value| {
        text(socket, "/typed_config/@type").ends_with("TlsContext")
            || text(socket, "/typed_config/transport_socket/typed_config/@type").ends_with("TlsContext")
    };
    let by_endpoint = list(cluster, "/transport_socket_matches").filter_map(|one| one.get("transport_socket")).any(tls);
    let tls = match (by_endpoint, cluster.get("transport_socket").is_some_and(tls)) {
        (true, _) => "by endpoint",
        (false, true) => "mutual",
        (false, false) => "none",
    };
    table.row([item.name.clone(), word("/type", "static"), word("/lb_policy", "round robin"), tls.to_owned()]);
}

fn endpoints(table: &mut Table, item: &ResourceView) {
    for locality in list(&item.resource, "/endpoints") {
        let place = [text(locality, "/locality/region"), text(locality, "/locality/zone")];
        let place: Vec<&str> = place.iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
        for endpoint in list(locality, "/lb_endpoints") {
            let health = text(endpoint, "/health_status");
            let labels = endpoint.pointer("/metadata/filter_metadata/envoy.lb").and_then(Value::as_object);
            let labels = labels
                .into_iter()
                .flatten()
                .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()));
            table.row([
                item.name.clone(),
                address(endpoint),
                if health.is_empty() { "UNKNOWN".to_owned() } else { health },
                number(locality, "/priority", 0).to_string(),
                number(endpoint, "/load_balancing_weight", 1).to_string(),
                place.join("/"),
                labels.collect::<Vec<_>>().join(","),
            ]);
        }
    }
}

/// The address of an endpoint, or what the gateway is asked for.
fn address(endpoint: &Value) -> String {
    let named = |key: &str| {
        let named = endpoint.pointer("/metadata/filter_metadata/eastway").and_then(|named| named.get(key));
        named.and_then(Value::as_str)
    };
    if let Some(authority) = named("endpoint") {
        let summary = named("summary").map(|endpoints| format!(" (summary of {endpoints})"));
        return format!("{authority}{}", summary.unwrap_or_default());
    }
    let socket = endpoint.pointer("/endpoint/address/socket_address").unwrap_or(&Value::Null);
    format!("{}:{}", text(socket, "/address"), number(socket, "/port_value", 0))
}

fn secret(table: &mut Table, item: &ResourceView, now: u64) {
    for certificate in &item.certificates {
        table.row([
            item.name.clone(),
            certificate.subject.clone(),
            certificate.serial.clone(),
            human::until(certificate.not_after, now),
        ]);
    }
    if item.certificates.is_empty() {
        table.row([item.name.clone(), String::new(), String::new(), String::new()]);
    }
}

fn list<'a>(value: &'a Value, path: &str) -> impl Iterator<Item = &'a Value> {
    value.pointer(path).and_then(Value::as_array).into_iter().flatten()
}

fn text(value: &Value, path: &str) -> String {
    match value.pointer(path) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        _ => String::new(),
    }
}

fn number(value: &Value, path: &str, default: u64) -> u64 {
    value.pointer(path).and_then(Value::as_u64).unwrap_or(default)
}
