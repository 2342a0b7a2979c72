//! TLS from workload to workload: which endpoints of a cluster are spoken to by it, and how they are known.
//!
//! The owner of an endpoint says whether it speaks mutual TLS; a client follows that, endpoint by endpoint: a label in
//! the endpoint's metadata chooses a transport socket of the cluster. The TLS runs inside the CONNECT stream, so that no
//! gateway reads it. An endpoint is accepted for the identities that its owner names, by the anchors of its owner's
//! trust domain and of no other.

use std::collections::{BTreeMap, BTreeSet};

use eastway_model::store::Snapshot;
use eastway_model::{ClusterName, EndpointGroup, Import, ImportPart, ServicePort, TlsMode, WorkloadIdentity};
use eastway_proto::envoy::config::cluster::v3::cluster::TransportSocketMatch;
use eastway_proto::envoy::config::core::v3 as core;
use eastway_proto::envoy::extensions::transport_sockets::tls::v3 as tls;
use eastway_proto::envoy::google::protobuf;
use eastway_proto::envoy::r#type::matcher::v3 as matcher;
use eastway_proto::xds::v1 as wire;

use super::AppProtocol;
use super::import::named_to_the_gateway;
use super::parts::{ads, agents_secret, number, transport_socket};
use super::secrets::bundle_name;

/// Name of the secret with a workload's certificate and key, which only its agent has.
pub(super) const WORKLOAD: &str = "workload";
/// Key of the metadata that chooses a transport socket of a cluster.
const MATCH: &str = "envoy.transport_socket_match";
/// The label in it.
const LABEL: &str = "eastway";
/// What our sidecars call the bytes of a connection; no HTTP is inside.
pub(super) const BYTES_ALPN: &str = "eastway";
/// What Istio's sidecars call it.
pub(super) const ISTIO_ALPN: &str = "istio";

/// The transport sockets of a cluster beside the plain one: one for each owner with endpoints that speak TLS.
pub(super) fn matches(
    snapshot: &Snapshot,
    import: &Import,
    port: &ServicePort,
    own_domain: &str,
) -> Vec<TransportSocketMatch> {
    let host = format!("{}.{}.svc.clusterset.local", import.key.name, import.key.namespace);
    let sni = format!("outbound_.{}_._.{host}", port.number);
    let mut sockets = Vec::new();
    for part in import.parts.iter().filter(|part| part.serves(port.protocol, port.number)) {
        let domain = match &part.cluster {
            None => own_domain,
            Some(cluster) => match snapshot.rules().peers.get(cluster) {
                Some(peer) => &*peer.trust_domain,
                None => continue,
            },
        };
        let Some(servers) = Servers::of(snapshot, import, part) else { continue };
        let who = servers.matchers(import, domain);
        let context = context(&sni, alpn(AppProtocol::of(port), servers.istio), who, domain);
        let name = label(part.cluster.as_ref().unwrap_or(snapshot.cluster()));
        let text = protobuf::value::Kind::StringValue(name.clone());
        let value = protobuf::Value { kind: Some(text) };
        sockets.push(TransportSocketMatch {
            name,
            r#match: Some(protobuf::Struct { fields: [(LABEL.to_owned(), value)].into() }),
            transport_socket: Some(socket(&context)),
        });
    }
    sockets
}

/// Puts the label of an endpoint of `cluster` that speaks TLS among its metadata.
pub(super) fn mark(metadata: &mut BTreeMap<String, wire::Struct>, cluster: &ClusterName, mode: TlsMode) {
    if mode.is_mutual() {
        let value = wire::Value { string_value: Some(label(cluster)) };
        metadata.insert(MATCH.to_owned(), wire::Struct { fields: [(LABEL.to_owned(), value)].into() });
    }
}

/// What endpoints speak of which nobody knows which will serve: TLS if all do.
pub(super) fn mode_of_all(groups: &[&EndpointGroup]) -> TlsMode {
    let all = !groups.is_empty() && groups.iter().all(|group| group.tls.is_mutual());
    groups.first().filter(|_| all).map_or(TlsMode::None, |group| group.tls)
}

fn label(cluster: &ClusterName) -> String {
    format!("mtls.{cluster}")
}

/// The endpoints of one owner that speak TLS.
struct Servers {
    identities: BTreeSet<WorkloadIdentity>,
    /// Of some it is not said who they are.
    unnamed: bool,
    istio: bool,
}

impl Servers {
    fn of(snapshot: &Snapshot, import: &Import, part: &ImportPart) -> Option<Self> {
        let mut servers = Self { identities: BTreeSet::new(), unnamed: false, istio: false };
        let mut found = false;
        let mut add = |mode: TlsMode, identities: &mut dyn Iterator<Item = &WorkloadIdentity>| {
            if !mode.is_mutual() {
                return;
            }
            found = true;
            servers.istio |= matches!(mode, TlsMode::Istio | TlsMode::IstioStrict);
            let mut named = false;
            for identity in identities {
                named = true;
                servers.identities.insert(identity.clone());
            }
            servers.unnamed |= !named;
        };
        match &part.cluster {
            None => {
                for local in snapshot.local(&import.key)?.endpoints.iter() {
                    add(local.endpoint.tls, &mut local.endpoint.identity.iter());
                }
            }
            Some(_) if part.endpoints.is_empty() => {
                for group in &part.record.groups {
                    add(group.tls, &mut group.identities.iter());
                }
            }
            Some(_) => {
                for endpoint in part.endpoints.iter() {
                    add(endpoint.shape.tls, &mut endpoint.shape.identity.iter());
                }
            }
        }
        found.then_some(servers)
    }

    /// Whom to accept. Of an endpoint whose account is not known it is known at least in which namespace it runs.
    fn matchers(&self, import: &Import, domain: &str) -> Vec<tls::SubjectAltNameMatcher> {
        use matcher::string_matcher::MatchPattern;
        if self.unnamed {
            let prefix = format!("spiffe://{domain}/ns/{}/sa/", import.key.namespace);
            return vec![uri(MatchPattern::Prefix(prefix))];
        }
        self.identities.iter().map(|identity| uri(MatchPattern::Exact(identity.to_string()))).collect()
    }
}

/// A matcher of a URI SAN.
pub(super) fn uri(pattern: matcher::string_matcher::MatchPattern) -> tls::SubjectAltNameMatcher {
    tls::SubjectAltNameMatcher {
        san_type: tls::subject_alt_name_matcher::SanType::Uri.into(),
        matcher: Some(matcher::StringMatcher { match_pattern: Some(pattern), ..matcher::StringMatcher::default() }),
        ..tls::SubjectAltNameMatcher::default()
    }
}

fn alpn(protocol: AppProtocol, istio: bool) -> Vec<String> {
    let names: &[&str] = match (protocol, istio) {
        (AppProtocol::Http, false) => &["http/1.1"],
        (AppProtocol::Http2, false) => &["h2"],
        (AppProtocol::Tcp, false) => &[BYTES_ALPN],
        (AppProtocol::Http, true) => &["istio-http/1.1", ISTIO_ALPN, "http/1.1"],
        (AppProtocol::Http2, true) => &["istio-h2", ISTIO_ALPN, "h2"],
        (AppProtocol::Tcp, true) => &[ISTIO_ALPN],
    };
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn context(
    sni: &str,
    alpn_protocols: Vec<String>,
    who: Vec<tls::SubjectAltNameMatcher>,
    domain: &str,
) -> tls::UpstreamTlsContext {
    tls::UpstreamTlsContext {
        common_tls_context: Some(common(alpn_protocols, who, bundle_name(domain))),
        sni: sni.to_owned(),
        // No resumption: each connection proves anew who is there (invariant I9).
        max_session_keys: number(0),
        ..tls::UpstreamTlsContext::default()
    }
}

/// Mutual TLS 1.3 by the workload's certificate, with whom `who` says, known by the anchors named `bundle`.
pub(super) fn common(
    alpn_protocols: Vec<String>,
    who: Vec<tls::SubjectAltNameMatcher>,
    bundle: String,
) -> tls::CommonTlsContext {
    use tls::common_tls_context::{CombinedCertificateValidationContext, ValidationContextType};
    let validation = CombinedCertificateValidationContext {
        default_validation_context: Some(tls::CertificateValidationContext {
            match_typed_subject_alt_names: who,
            ..tls::CertificateValidationContext::default()
        }),
        validation_context_sds_secret_config: Some(tls::SdsSecretConfig { name: bundle, sds_config: Some(ads()) }),
        ..CombinedCertificateValidationContext::default()
    };
    // Envoy's clients stop at 1.2 by default.
    let version = i32::from(tls::tls_parameters::TlsProtocol::TlSv13);
    tls::CommonTlsContext {
        tls_params: Some(tls::TlsParameters {
            tls_minimum_protocol_version: version,
            tls_maximum_protocol_version: version,
            ..tls::TlsParameters::default()
        }),
        tls_certificate_sds_secret_configs: vec![agents_secret(WORKLOAD)],
        alpn_protocols,
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(validation)),
        ..tls::CommonTlsContext::default()
    }
}

/// TLS inside of what names the endpoint to the gateway; there is no other order.
fn socket(context: &tls::UpstreamTlsContext) -> core::TransportSocket {
    let inner = transport_socket("envoy.transport_sockets.tls", context);
    transport_socket("envoy.transport_sockets.internal_upstream", &named_to_the_gateway(inner))
}
