//! What each fuzz target does with its bytes. The targets in `fuzz_targets/` hand these functions to
//! libFuzzer; `gateway/eastway/tests/fuzz.rs` runs them in every test run, over the corpora and changes of them.
//!
//! A body panics when something does not hold that must hold for any bytes at all.

pub mod federation;
pub mod files;
pub mod identity;
pub mod links;
pub mod replicas;
pub mod sidecars;
pub mod xds;

/// A target: its name, which is that of its corpus, and its body.
pub type Target = (&'static str, fn(&[u8]));

/// All targets of this crate.
pub const TARGETS: &[Target] = &[
    ("federation_import", federation::import),
    ("federation_export", federation::export),
    ("import_image", federation::image),
    ("gateway_config", files::config),
    ("peer_file", files::config),
    ("policy_file", files::config),
    ("service_list", files::services),
    ("certificate_bundle", identity::bundle),
    ("certificate_chain", identity::chain),
    ("ca_folder", identity::ca_folder),
    ("anchor", identity::anchor),
    ("revocation_list", identity::revocation_list),
    ("signing_request", identity::signing_request),
    ("reauth", identity::reauth),
    ("spiffe_id", identity::spiffe_id),
    ("replica_envelope", replicas::envelope),
    ("flow_stream", links::flow_stream),
    ("flow_datagram", links::flow_datagram),
    ("tcp_frames", links::tcp_frames),
    ("tcp_preface", links::tcp_preface),
    ("proxy_answer", links::proxy_answer),
    ("xds_requests", xds::requests),
    ("hbone_authority", sidecars::authority),
    ("client_hello", sidecars::client_hello),
];
