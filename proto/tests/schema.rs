//! The schema of what proxies are told is what Envoy's own `.proto` files say. `EASTWAY_REGENERATE=1 cargo test -p
//! eastway-proto --test schema` writes it anew.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use prost_reflect::{DescriptorPool, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};

/// What is sent under a name of its own, and what may be in an `Any` of it.
const ROOTS: [&str; 29] = [
    "config/cluster/v3/cluster.proto Cluster",
    "config/endpoint/v3/endpoint.proto ClusterLoadAssignment",
    "config/listener/v3/listener.proto Listener",
    "config/route/v3/route.proto RouteConfiguration",
    "extensions/filters/common/fault/v3/fault.proto FaultDelay",
    "extensions/filters/http/fault/v3/fault.proto HTTPFault",
    "extensions/filters/http/rbac/v3/rbac.proto RBAC",
    "extensions/filters/http/router/v3/router.proto Router",
    "extensions/filters/http/stateful_session/v3/stateful_session.proto StatefulSession",
    "extensions/filters/http/stateful_session/v3/stateful_session.proto StatefulSessionPerRoute",
    "extensions/filters/listener/http_inspector/v3/http_inspector.proto HttpInspector",
    "extensions/filters/listener/original_dst/v3/original_dst.proto OriginalDst",
    "extensions/filters/listener/tls_inspector/v3/tls_inspector.proto TlsInspector",
    "extensions/filters/network/http_connection_manager/v3/http_connection_manager.proto HttpConnectionManager",
    "extensions/filters/network/rbac/v3/rbac.proto RBAC",
    "extensions/filters/network/tcp_proxy/v3/tcp_proxy.proto TcpProxy",
    "extensions/http/stateful_session/cookie/v3/cookie.proto CookieBasedSessionState",
    "extensions/http/stateful_session/header/v3/header.proto HeaderBasedSessionState",
    "extensions/load_balancing_policies/least_request/v3/least_request.proto LeastRequest",
    "extensions/load_balancing_policies/ring_hash/v3/ring_hash.proto RingHash",
    "extensions/load_balancing_policies/round_robin/v3/round_robin.proto RoundRobin",
    "extensions/matching/common_inputs/ssl/v3/ssl_inputs.proto UriSanInput",
    "extensions/retry/host/previous_hosts/v3/previous_hosts.proto PreviousHostsPredicate",
    "extensions/transport_sockets/internal_upstream/v3/internal_upstream.proto InternalUpstreamTransport",
    "extensions/transport_sockets/raw_buffer/v3/raw_buffer.proto RawBuffer",
    "extensions/transport_sockets/tls/v3/secret.proto Secret",
    "extensions/transport_sockets/tls/v3/tls.proto DownstreamTlsContext",
    "extensions/transport_sockets/tls/v3/tls.proto UpstreamTlsContext",
    "extensions/upstreams/http/v3/http_protocol_options.proto HttpProtocolOptions",
];
/// Folders of the crate with Envoy's files, beside one another.
const FOLDERS: [&str; 8] = [
    "data-plane-api",
    "googleapis",
    "xds",
    "protoc-gen-validate",
    "opentelemetry-proto",
    "cel-spec/proto",
    "client_model",
    "ratelimit",
];

#[test]
fn the_schema_is_current() {
    let fresh = schema(&envoy_types().join("proto"));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/gen/envoy.schema");
    if std::env::var_os("EASTWAY_REGENERATE").is_some() {
        std::fs::write(&path, &fresh).unwrap();
    }
    assert!(
        std::fs::read_to_string(&path).unwrap() == fresh,
        "src/gen/envoy.schema is stale: run with EASTWAY_REGENERATE=1"
    );
}

/// Where Cargo keeps the crate that has Envoy's files.
fn envoy_types() -> PathBuf {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["metadata", "--format-version", "1", "--offline", "--manifest-path"]);
    let output = cargo.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut packages = metadata["packages"].as_array().unwrap().iter();
    let package = packages.find(|package| package["name"] == "envoy-types").unwrap();
    Path::new(package["manifest_path"].as_str().unwrap()).parent().unwrap().to_owned()
}

/// One line for each message and enumeration, and one for each of their fields and values.
fn schema(protos: &Path) -> String {
    let roots: Vec<(String, &str)> = ROOTS
        .iter()
        .map(|root| {
            let (file, name) = root.split_once(' ').unwrap();
            (format!("envoy/{file}"), name)
        })
        .collect();
    let files: BTreeSet<&String> = roots.iter().map(|(file, _)| file).collect();
    let descriptors = protox::compile(files, FOLDERS.map(|folder| protos.join(folder))).unwrap();
    let pool = DescriptorPool::from_file_descriptor_set(descriptors).unwrap();
    let mut found = Found::default();
    for (file, name) in &roots {
        let file = pool.get_file_by_name(file).unwrap();
        let message = file.messages().find(|message| message.name() == *name);
        found.message(&message.unwrap_or_else(|| panic!("no {name} in {}", file.name())));
    }
    let mut text = String::new();
    for (name, fields) in found.messages {
        writeln!(text, "{name}").unwrap();
        for (number, field) in fields {
            writeln!(text, " {number} {field}").unwrap();
        }
    }
    for (name, values) in found.enums {
        writeln!(text, "={name}").unwrap();
        for (number, value) in values {
            writeln!(text, " {number} {value}").unwrap();
        }
    }
    text
}

/// All that can be reached.
#[derive(Default)]
struct Found {
    messages: BTreeMap<String, BTreeMap<u32, String>>,
    enums: BTreeMap<String, BTreeMap<i32, String>>,
}

impl Found {
    fn message(&mut self, message: &MessageDescriptor) {
        if self.messages.contains_key(message.full_name()) {
            return;
        }
        self.messages.insert(message.full_name().to_owned(), BTreeMap::new());
        let fields = message.fields().map(|field| (field.number(), self.field(&field))).collect();
        self.messages.insert(message.full_name().to_owned(), fields);
    }

    /// `name type`; a list is `name *type`, a map `name %key type`.
    fn field(&mut self, field: &FieldDescriptor) -> String {
        let name = field.name();
        if let (true, Kind::Message(entry)) = (field.is_map(), field.kind()) {
            let key = self.kind(&entry.map_entry_key_field());
            return format!("{name} %{key} {}", self.kind(&entry.map_entry_value_field()));
        }
        let many = if field.is_list() { "*" } else { "" };
        format!("{name} {many}{}", self.kind(field))
    }

    fn kind(&mut self, field: &FieldDescriptor) -> String {
        let kind = field.kind();
        if let Kind::Message(message) = kind {
            self.message(&message);
            message.full_name().to_owned()
        } else if let Kind::Enum(values) = kind {
            self.values(&values);
            format!("={}", values.full_name())
        } else {
            format!("{kind:?}").to_lowercase()
        }
    }

    fn values(&mut self, values: &EnumDescriptor) {
        let names = values.values().map(|value| (value.number(), value.name().to_owned()));
        self.enums.insert(values.full_name().to_owned(), names.collect());
    }
}
