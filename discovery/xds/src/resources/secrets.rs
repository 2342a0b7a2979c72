//! What trust domains are known by, as secrets (SDS) on the stream of all else.

use std::collections::BTreeMap;
use std::sync::Arc;

use eastway_proto::envoy::config::core::v3::{DataSource, data_source::Specifier};
use eastway_proto::envoy::extensions::transport_sockets::tls::v3 as tls;

use super::Generated;
use crate::kind::Kind;
use crate::resource::Resource;

/// Name of the secret with the anchors of all trust domains together, for who is connected to by all of them. Each anchor
/// is constrained to its own domain.
pub const ALL_ANCHORS: &str = "anchors";

/// Name of the secret with the anchors of one trust domain.
#[must_use]
pub fn bundle_name(trust_domain: &str) -> String {
    format!("bundle:{trust_domain}")
}

/// What one trust domain is known by, in PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bundle {
    /// Certificates.
    pub anchors: String,
    /// A revocation list for each of them.
    pub crls: String,
}

/// What all trust domains are known by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// By trust domain.
    pub bundles: BTreeMap<Arc<str>, Bundle>,
    /// Changes when somebody who was trusted is trusted no more: connections of before are cut then.
    pub cut: Arc<str>,
}

pub(super) fn resources(trust: &Trust) -> Vec<Generated> {
    let mut all = Bundle::default();
    let mut resources = Vec::new();
    for (domain, bundle) in &trust.bundles {
        all.anchors.push_str(&bundle.anchors);
        all.crls.push_str(&bundle.crls);
        resources.push(secret(&bundle_name(domain), bundle));
    }
    // An empty list would be refused, and without the secret nobody is accepted.
    if !all.anchors.is_empty() {
        resources.push(secret(ALL_ANCHORS, &all));
    }
    resources
}

fn secret(name: &str, bundle: &Bundle) -> Generated {
    let context = tls::CertificateValidationContext {
        trusted_ca: Some(inline(&bundle.anchors)),
        crl: Some(inline(&bundle.crls)),
        // Anchors are their own issuers: there is nobody who could revoke them.
        only_verify_leaf_cert_crl: true,
        ..tls::CertificateValidationContext::default()
    };
    let message = tls::Secret { name: name.to_owned(), r#type: Some(tls::secret::Type::ValidationContext(context)) };
    (Kind::Secret, Resource::new(Kind::Secret, name, &message))
}

fn inline(pem: &str) -> DataSource {
    DataSource { specifier: Some(Specifier::InlineBytes(pem.as_bytes().to_vec())), ..DataSource::default() }
}
