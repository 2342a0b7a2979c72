//! What this gateway delivers to workloads that speak mutual TLS, so that it ends when a workload's certificate is revoked.
//!
//! The TLS runs from client to server, and clients judge a server when they connect. What they have open goes on after its
//! certificate is revoked, and the server cannot be relied upon to end it: it may be what was broken into. So the gateway
//! that delivers to it cuts it off. Whom a revoked certificate is about its serial number tells.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use eastway_identity::crl;
use eastway_model::WorkloadIdentity;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::local::listener::Revoked;

/// When those are cut who have come back to a server whose certificate is revoked: what clients judge it by reaches them
/// later than the gateway that cuts, usually within a second, and at most after the longest pause between two questions to
/// a CA ([`crate::roles::enroll`]).
const AGAIN: [Duration; 2] = [Duration::from_secs(3), Duration::from_secs(12)];

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
    fn cut(&self, serials: &[String]) {
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

    /// Cuts as certificates are revoked, and never ends. What is known at the beginning is cut once: nobody has heard of it
    /// just now.
    pub async fn follow(&self, mut revoked: Revoked) {
        let mut known: Arc<BTreeSet<String>> = Arc::clone(&revoked.borrow_and_update());
        self.cut(&known.iter().cloned().collect::<Vec<_>>());
        let mut again = BinaryHeap::new();
        loop {
            let due = again.peek().map(|Reverse((due, _))| *due);
            tokio::select! {
                changed = revoked.changed() => {
                    if changed.is_err() {
                        // Nobody will revoke anything any more: the process ends.
                        return std::future::pending().await;
                    }
                    let now = Arc::clone(&revoked.borrow_and_update());
                    let new: Vec<String> = now.difference(&known).cloned().collect();
                    known = now;
                    self.cut(&new);
                    again.extend(AGAIN.map(|after| Reverse((Instant::now() + after, new.clone()))));
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    again.pop().iter().for_each(|Reverse((_, serials))| self.cut(serials));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use eastway_identity::ca::InitOptions;
    use eastway_identity::{Ca, SpiffeId};
    use tokio::sync::watch;
    use tokio::time::sleep;

    use super::*;

    /// The serial number of a certificate of this account.
    fn serial_of(account: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let ca = Ca::init(folder.path(), &InitOptions::new("a.example")).unwrap();
        let id = SpiffeId::workload("a.example", "shop", account).unwrap();
        let identity = ca.issue_identity(&id, Duration::from_secs(60), SystemTime::now()).unwrap();
        crl::serial(&identity.chain()[0]).unwrap()
    }

    fn named(account: &str) -> WorkloadIdentity {
        WorkloadIdentity::parse(&format!("spiffe://a.example/ns/shop/sa/{account}")).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn i9_who_comes_back_before_its_client_knows_is_cut_once_more() {
        let deliveries = Arc::new(Deliveries::default());
        let (revoke, revoked) = watch::channel(Arc::default());
        let (task, following) = (Arc::clone(&deliveries), revoked.clone());
        tokio::spawn(async move { task.follow(following).await });
        sleep(Duration::from_millis(1)).await;
        let first = deliveries.to(Some(&named("web")));
        revoke.send_replace(Arc::new(BTreeSet::from([serial_of("web")])));
        sleep(Duration::from_millis(1)).await;
        assert!(first.is_cancelled());
        let (back, other) = (deliveries.to(Some(&named("web"))), deliveries.to(Some(&named("cart"))));
        sleep(Duration::from_secs(3)).await;
        assert!(back.is_cancelled());
        let late = deliveries.to(Some(&named("web")));
        sleep(Duration::from_secs(9)).await;
        assert!(late.is_cancelled());
        // By now every client knows.
        let good = deliveries.to(Some(&named("web")));
        sleep(Duration::from_secs(3_600)).await;
        assert!(!good.is_cancelled() && !other.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_revoked_before_is_no_news() {
        let deliveries = Arc::new(Deliveries::default());
        let before = deliveries.to(Some(&named("web")));
        let (_revoke, revoked) = watch::channel(Arc::new(BTreeSet::from([serial_of("web")])));
        let task = Arc::clone(&deliveries);
        tokio::spawn(async move { task.follow(revoked).await });
        sleep(Duration::from_millis(1)).await;
        assert!(before.is_cancelled(), "the process may have heard of it after this began");
        let good = deliveries.to(Some(&named("web")));
        sleep(Duration::from_secs(3_600)).await;
        assert!(!good.is_cancelled());
    }

    #[test]
    fn i9_only_what_goes_to_whom_a_certificate_may_be_of_is_cut() {
        let serial = serial_of("web");
        let deliveries = Deliveries::default();
        let open = |account: &str| deliveries.to(Some(&named(account)));
        let (to_web, to_cart, to_somebody) = (open("web"), open("cart"), deliveries.to(None));
        deliveries.cut(&[serial]);
        assert!(to_web.is_cancelled() && to_somebody.is_cancelled() && !to_cart.is_cancelled());
        assert!(!open("web").is_cancelled(), "its next certificate may be good");
        // One that Istio chose.
        deliveries.cut(&["0123456789abcdef0123456789abcdef".to_owned()]);
        assert!(to_cart.is_cancelled());
    }
}
