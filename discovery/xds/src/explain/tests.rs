use eastway_proto::envoy::config::cluster::v3 as cluster;
use eastway_proto::envoy::config::core::v3 as core;
use eastway_proto::envoy::extensions::transport_sockets::tls::v3 as tls;
use eastway_proto::envoy::google::protobuf;
use prost::Message as _;

use super::*;

fn shown(kind: Kind, message: &impl prost::Message) -> Value {
    Schema::load().resource(kind, &Resource::new(kind, "x", message))
}

#[test]
fn a_cluster_is_shown_as_envoy_would_show_it() {
    let metadata = protobuf::Struct {
        fields: [(
            "version".to_owned(),
            protobuf::Value { kind: Some(protobuf::value::Kind::StringValue("v1".into())) },
        )]
        .into(),
    };
    let cluster = cluster::Cluster {
        name: "x".to_owned(),
        connect_timeout: Some(protobuf::Duration { seconds: 1, nanos: 250_000_000 }),
        lb_policy: cluster::cluster::LbPolicy::RingHash.into(),
        circuit_breakers: Some(cluster::CircuitBreakers {
            thresholds: vec![cluster::circuit_breakers::Thresholds {
                max_requests: Some(protobuf::UInt32Value { value: 7 }),
                ..cluster::circuit_breakers::Thresholds::default()
            }],
            ..cluster::CircuitBreakers::default()
        }),
        metadata: Some(core::Metadata {
            filter_metadata: [("envoy.lb".to_owned(), metadata)].into(),
            ..core::Metadata::default()
        }),
        typed_extension_protocol_options: [(
            "other".to_owned(),
            protobuf::Any { type_url: "type.googleapis.com/example.Other".to_owned(), value: vec![1, 2] },
        )]
        .into(),
        ..cluster::Cluster::default()
    };
    let wanted = json!({
        "name": "x",
        "connect_timeout": "1.25s",
        "lb_policy": "RING_HASH",
        "circuit_breakers": {"thresholds": [{"max_requests": 7}]},
        "metadata": {"filter_metadata": {"envoy.lb": {"version": "v1"}}},
        "typed_extension_protocol_options": {"other": {"@type": "type.googleapis.com/example.Other", "value": "AQI="}},
    });
    assert_eq!(shown(Kind::Cluster, &cluster), wanted);
}

#[test]
fn i10_no_key_is_shown() {
    let inline = |text: &str| core::DataSource {
        specifier: Some(core::data_source::Specifier::InlineString(text.to_owned())),
        ..core::DataSource::default()
    };
    let secret = tls::Secret {
        name: "x".to_owned(),
        r#type: Some(tls::secret::Type::TlsCertificate(tls::TlsCertificate {
            certificate_chain: Some(inline("a certificate")),
            private_key: Some(inline("a key")),
            ..tls::TlsCertificate::default()
        })),
    };
    let text = shown(Kind::Secret, &secret).to_string();
    assert!(text.contains("a certificate") && text.contains("[not shown]") && !text.contains("a key"), "{text}");
}

#[test]
fn what_cannot_be_read_ends_where_it_is() {
    let mut bytes = cluster::Cluster { name: "x".to_owned(), ..cluster::Cluster::default() }.encode_to_vec();
    // A number that nobody knows, and a length beyond the end.
    bytes.extend([0xf8, 0xff, 0x03, 5, 0x0a, 200]);
    let shown = Schema::load().message("envoy.config.cluster.v3.Cluster", &bytes, 0);
    assert_eq!(shown, json!({"name": "x", "#8191": 5}));
}
