//! What this gateway delivers to workloads that speak mutual TLS, so that it ends when a workload's certificate is revoked.
//!
//! The TLS runs from client to server, and clients judge a server when they connect. What they have open goes on after its
//! certificate is revoked, and the server cannot be relied upon to end it: it may be what was broken into. So the gateway
//! that delivers to it cuts it off. Whom a revoked certificate is about its serial number tells.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use eastway_identity::crl;
use eastway_model::WorkloadIdentity;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::local::listener::Revoked;

/// By the identity of the endpoint that they go to; `None`: it is not known who that is. As many as this cluster has service
/// accounts with endpoints.
#[derive(Debug, Default)]
pub struct Deliveries(Mutex<HashMap<Option<WorkloadIdentity>, CancellationToken>>);

impl Deliveries {
    /// What is cancelled when a certificate is revoked that may be this workload's.
    #[must_use]
    pub fn to(&self, workload: Option<&WorkloadIdentity>) -> CancellationToken {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.entry(workload.cloned()).or_default().clone()
    }

    /// Cuts what goes to workloads that one of these certificates may be of.
    fn cut(&self, serials: &[&String]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|workload, token| {
            let name = workload.as_ref().map(ToString::to_string);
            let is_meant = serials.iter().any(|serial| name.as_ref().is_none_or(|name| crl::may_be_of(serial, name)));
            if is_meant {
                info!(workload = name, "a certificate of it is revoked: connections to it are cut");
                token.cancel();
            }
            !is_meant
        });
    }

    /// Cuts as certificates are revoked, and never ends.
    pub async fn follow(&self, mut revoked: Revoked) {
        let mut known: Arc<BTreeSet<String>> = Arc::clone(&revoked.borrow_and_update());
        while revoked.changed().await.is_ok() {
            let now = Arc::clone(&revoked.borrow_and_update());
            self.cut(&now.difference(&known).collect::<Vec<_>>());
            known = now;
        }
        // Nobody will revoke anything any more: the process ends.
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use eastway_identity::ca::InitOptions;
    use eastway_identity::{Ca, SpiffeId};

    use super::*;

    #[test]
    fn i9_only_what_goes_to_whom_a_certificate_may_be_of_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        let ca = Ca::init(folder.path(), &InitOptions::new("a.example")).unwrap();
        let web = SpiffeId::workload("a.example", "shop", "web").unwrap();
        let identity = ca.issue_identity(&web, Duration::from_secs(60), SystemTime::now()).unwrap();
        let serial = crl::serial(&identity.chain()[0]).unwrap();
        let named =
            |account: &str| WorkloadIdentity::parse(&format!("spiffe://a.example/ns/shop/sa/{account}")).unwrap();

        let deliveries = Deliveries::default();
        let open = |account: &str| deliveries.to(Some(&named(account)));
        let (to_web, to_cart, to_somebody) = (open("web"), open("cart"), deliveries.to(None));
        deliveries.cut(&[&serial]);
        assert!(to_web.is_cancelled() && to_somebody.is_cancelled() && !to_cart.is_cancelled());
        assert!(!open("web").is_cancelled(), "its next certificate may be good");
        // One that Istio chose.
        deliveries.cut(&[&"0123456789abcdef0123456789abcdef".to_owned()]);
        assert!(to_cart.is_cancelled());
    }
}
