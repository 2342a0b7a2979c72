//! A leaf on trial: what peers and sidecars will do with every leaf is done once at load.

use std::time::Duration;

use rustls_pki_types::UnixTime;
use webpki::{EndEntityCert, KeyUsage};

use super::Ca;
use crate::csr;
use crate::spiffe::SpiffeId;
use crate::timestamp::Timestamp;

/// Signs a leaf and verifies it up to the root with webpki.
pub(super) fn sign_and_verify(ca: &Ca, now: Timestamp) -> Result<(), String> {
    let id = SpiffeId::gateway("trial.invalid").map_err(|error| error.to_string())?;
    let (_, request) = csr::new_key_and_csr().map_err(|error| error.to_string())?;
    let chain = ca.issue(&request, &id, Duration::from_secs(60), now.to_system()).map_err(|error| error.to_string())?;
    let (leaf, intermediates) = chain.split_first().ok_or("the chain is empty")?;
    let anchors: Result<Vec<_>, _> = ca.roots.iter().map(webpki::anchor_from_trusted_cert).collect();
    let anchors = anchors.map_err(|error| format!("root: {error:?}"))?;
    let time = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now.unix()).unwrap_or(0)));
    let leaf = EndEntityCert::try_from(leaf).map_err(|error| format!("{error:?}"))?;
    for usage in [KeyUsage::server_auth(), KeyUsage::client_auth()] {
        leaf.verify_for_usage(crate::trust::algorithms(), &anchors, intermediates, time, usage, None, None)
            .map_err(|error| format!("{error:?}"))?;
    }
    Ok(())
}
