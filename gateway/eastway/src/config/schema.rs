//! JSON Schemas of our files, for editors and for whoever generates them.

use eastway_registry::file::list::ServiceList;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};

use super::file::route::{GrpcRoute, HttpRoute, ServiceShare, TcpRoute, TlsRoute};
use super::file::{AccessPolicy, GatewayConfig, Peer, SidecarConfig, TrafficPolicy, Visibility};

/// Every kind of file with a schema.
pub const KINDS: [&str; 12] = [
    "GatewayConfig",
    "Peer",
    "TrafficPolicy",
    "AccessPolicy",
    "Visibility",
    "HTTPRoute",
    "GRPCRoute",
    "TCPRoute",
    "TLSRoute",
    "ServiceShare",
    "ServiceList",
    "SidecarConfig",
];

/// The JSON Schema (draft 2020-12) of a kind of file, with a final newline; `None` for an unknown
/// kind. Capitals do not matter.
#[must_use]
pub fn schema(kind: &str) -> Option<String> {
    let kind = KINDS.into_iter().find(|known| known.eq_ignore_ascii_case(kind))?;
    let schema = match kind {
        "GatewayConfig" => generate::<GatewayConfig>(),
        "Peer" => generate::<Peer>(),
        "TrafficPolicy" => generate::<TrafficPolicy>(),
        "AccessPolicy" => generate::<AccessPolicy>(),
        "Visibility" => generate::<Visibility>(),
        "SidecarConfig" => generate::<SidecarConfig>(),
        "HTTPRoute" => generate::<HttpRoute>(),
        "GRPCRoute" => generate::<GrpcRoute>(),
        "TCPRoute" => generate::<TcpRoute>(),
        "TLSRoute" => generate::<TlsRoute>(),
        "ServiceShare" => generate::<ServiceShare>(),
        _ => generate::<ServiceList>(),
    };
    // A schema is a JSON value already.
    serde_json::to_string_pretty(&schema).ok().map(|text| text + "\n")
}

fn generate<T: JsonSchema>() -> Schema {
    SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<T>()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn file(kind: &str) -> PathBuf {
        let mut name = String::new();
        let kind = kind.replace("HTTP", "Http").replace("GRPC", "Grpc").replace("TCP", "Tcp").replace("TLS", "Tls");
        for (index, letter) in kind.char_indices() {
            if letter.is_ascii_uppercase() && index > 0 {
                name.push('-');
            }
            name.push(letter.to_ascii_lowercase());
        }
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("schema").join(name + ".json")
    }

    /// `make regenerate` writes them.
    #[test]
    fn committed_schemas_are_those_of_the_structs() {
        for kind in KINDS {
            let (schema, path) = (schema(kind).unwrap(), file(kind));
            if std::env::var_os("EASTWAY_REGENERATE").is_some() {
                std::fs::write(&path, &schema).unwrap();
            }
            let committed = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(schema == committed, "{} is out of date: eastway schema {kind} prints it", path.display());
        }
    }

    #[test]
    fn kinds_are_found_however_they_are_written() {
        assert_eq!(schema("peer"), schema("Peer"));
        assert_eq!(schema("Service"), None);
    }

    #[test]
    fn required_fields_and_no_others_are_required() {
        let schema: serde_json::Value = serde_json::from_str(&schema("Peer").unwrap()).unwrap();
        assert_eq!(schema["required"], serde_json::json!(["apiVersion", "kind", "metadata", "spec"]));
        assert_eq!(schema["$defs"]["PeerSpec"]["required"], serde_json::json!(["trustDomain", "pins"]));
        assert_eq!(schema["additionalProperties"], serde_json::json!(false));
    }
}
