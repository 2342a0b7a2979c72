//! What a sidecar asks for: the authority of its CONNECT request.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use eastway_model::endpoint::labels;
use eastway_model::{ClusterName, EndpointId, NameError, PortNumber, ServiceKey, Subset};

use crate::proxy::outbound::Target;

/// `<endpoint>.<service>.<namespace>.<cluster>:<port>`, or without the endpoint: any of the service in that cluster; with
/// labels in its place, e.g. `version=v2`, any that has them ([`labels`] says how they are written). Only names of services and endpoints can be said, no address (invariant I1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// Exactly this endpoint.
    pub endpoint: Option<EndpointId>,
    /// Only endpoints with these labels; empty: any.
    pub subset: Subset,
    /// The service.
    pub service: ServiceKey,
    /// The cluster.
    pub cluster: ClusterName,
    /// The service's port.
    pub port: PortNumber,
}

/// Why a text is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// Nothing after a colon that is a decimal number from 1 to 65535, without a zero in front.
    #[error("the port must be a number from 1 to 65535")]
    Port,
    /// Neither three nor four parts.
    #[error("must have the form [endpoint or labels.]service.namespace.cluster:port")]
    Form,
    /// The first of four parts, if it has a `=`.
    #[error("the labels must be written as key=value, joined by +, in the order of their keys")]
    Labels,
    /// The first of four parts, if it has none.
    #[error("the endpoint must be 1 to 64 characters of a-z, 0-9 and '-'")]
    Endpoint,
    /// Service or namespace.
    #[error("service or namespace {0}")]
    Service(#[source] NameError),
    /// The cluster.
    #[error("cluster {0}")]
    Cluster(#[source] NameError),
}

impl FromStr for Authority {
    type Err = AuthorityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = text.rsplit_once(':').ok_or(AuthorityError::Port)?;
        let port = parse_port(port).ok_or(AuthorityError::Port)?;
        // The fifth is one too many.
        let mut parts = host.splitn(5, '.');
        let mut next = || parts.next();
        let (which, [service, namespace, cluster]) = match (next(), next(), next(), next(), next()) {
            (Some(service), Some(namespace), Some(cluster), None, None) => (None, [service, namespace, cluster]),
            (Some(which), Some(service), Some(namespace), Some(cluster), None) => {
                (Some(which), [service, namespace, cluster])
            }
            _ => return Err(AuthorityError::Form),
        };
        let (endpoint, subset) = match which {
            None => (None, Subset::default()),
            Some(word) if word.contains('=') => (None, labels::of_word(word).ok_or(AuthorityError::Labels)?),
            Some(id) => (Some(EndpointId::parse(id).ok_or(AuthorityError::Endpoint)?), Subset::default()),
        };
        let service = ServiceKey::parse(namespace, service).map_err(AuthorityError::Service)?;
        let cluster = ClusterName::parse(cluster).map_err(AuthorityError::Cluster)?;
        Ok(Self { endpoint, subset, service, cluster, port })
    }
}

/// As it is written: `+80` and `080` are numbers for the standard library, and no ports here.
fn parse_port(text: &str) -> Option<PortNumber> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    text.parse().ok().filter(|_| plain).and_then(PortNumber::new)
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoint, subset, service: ServiceKey { namespace, name }, cluster, port } = self;
        if let Some(endpoint) = endpoint {
            write!(f, "{endpoint}.")?;
        } else if !subset.is_empty() {
            write!(f, "{}.", labels::to_word(subset))?;
        }
        write!(f, "{name}.{namespace}.{cluster}:{port}")
    }
}

impl From<Authority> for Target {
    fn from(Authority { endpoint, subset, service, cluster, port }: Authority) -> Self {
        let subset = (!subset.is_empty()).then(|| Arc::new(subset));
        Self { service, port, cluster: Some(cluster), subset, endpoint }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn endpoints_are_told_from_services_by_the_number_of_parts() {
        let one: Authority = "e-1.reviews.bookinfo.gke:9080".parse().unwrap();
        assert_eq!(one.endpoint, EndpointId::parse("e-1"));
        assert_eq!(one.service, ServiceKey::parse("bookinfo", "reviews").unwrap());
        assert_eq!((one.cluster.as_str(), one.port.get()), ("gke", 9080));
        let all: Authority = "reviews.bookinfo.gke:9080".parse().unwrap();
        assert_eq!(all, Authority { endpoint: None, ..one });
        let of_version: Authority = "version=v1~2E2.reviews.bookinfo.gke:9080".parse().unwrap();
        let subset: Subset = [("version".into(), "v1.2".into())].into_iter().collect();
        assert_eq!(of_version, Authority { subset: subset.clone(), ..all });
        assert_eq!(Target::from(of_version).subset.as_deref(), Some(&subset));
        // As HTTP reads it.
        let uri: hyper::Uri = "a=1+b~2Ec=V_2.reviews.bookinfo.gke:9080".parse().unwrap();
        assert!(uri.authority().unwrap().as_str().parse::<Authority>().is_ok());
    }

    #[test]
    fn i1_no_address_and_nothing_malformed_is_taken() {
        let cases = [
            ("", AuthorityError::Port),
            ("-", AuthorityError::Port),
            ("reviews.bookinfo.gke", AuthorityError::Port),
            ("reviews.bookinfo.gke:", AuthorityError::Port),
            ("reviews.bookinfo.gke:0", AuthorityError::Port),
            ("reviews.bookinfo.gke:080", AuthorityError::Port),
            ("reviews.bookinfo.gke:+80", AuthorityError::Port),
            ("reviews.bookinfo.gke:65536", AuthorityError::Port),
            ("reviews.bookinfo.gke:http", AuthorityError::Port),
            ("reviews.bookinfo:80", AuthorityError::Form),
            ("a.b.c.d.e:80", AuthorityError::Form),
            ("e-1.reviews.bookinfo.gke.:80", AuthorityError::Form),
            ("[::1]:80", AuthorityError::Form),
            ("E.reviews.bookinfo.gke:80", AuthorityError::Endpoint),
            ("me@e.reviews.bookinfo.gke:80", AuthorityError::Endpoint),
            (".reviews.bookinfo.gke:80", AuthorityError::Endpoint),
            ("version=.x.reviews.bookinfo.gke:80", AuthorityError::Form),
            ("=v2.reviews.bookinfo.gke:80", AuthorityError::Labels),
            ("b=1+a=2.reviews.bookinfo.gke:80", AuthorityError::Labels),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<Authority>(), Err(error), "{text}");
        }
        for text in ["10.0.0.1:80", "0x7f.a.gke:80", "a.B.gke:80", "..:80", "a.b_c.gke:80"] {
            assert!(text.parse::<Authority>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_taken_is_written_as_it_was_read(text in r"[a-z0-9.:-]{0,40}|[a-c=+~2E]{1,8}\.[a-z]\.[a-z]\.[a-z]:[1-9]|[a-z]{1,3}(\.[a-z0-9-]{1,5}){2,4}:[0-9]{1,5}|\PC*") {
            if let Ok(authority) = text.parse::<Authority>() {
                prop_assert_eq!(authority.to_string(), text);
            }
        }
    }
}
