//! The ways that sidecars of a have to `reviews`, which a has a pod of, and to `ratings`, which only b has.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use eastway_tests::kube::istio::joined;
use eastway_tests::kube::pods::Pod;
use eastway_tests::kube::{Cluster, eastway as installed};
use eastway_tests::within;

use crate::parts::PORT;

const PATIENCE: Duration = Duration::from_secs(90);
/// Where the servers listen.
const TARGET: u16 = 8080;

/// Which of the two lead to b.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Led {
    /// Both.
    Both,
    /// `ratings`, as b was known last: `reviews` has a pod of a.
    Ratings,
    /// Neither.
    Neither,
}

/// Endpoints as sidecars have them.
#[derive(Debug)]
pub(crate) struct Ways {
    namespace: &'static str,
    /// The pod of a.
    pod: String,
    /// The gateways' port for b, at the address of their Service in a.
    gateway: String,
}

impl Ways {
    /// Reads them.
    ///
    /// # Errors
    /// The pod or the Service is not there.
    pub(crate) async fn of(a: &Cluster, namespace: &'static str) -> Result<Self> {
        let pod = a.pod_ip(namespace, "reviews-v1").await?;
        let service = a.get(&["service", joined::GATEWAYS, "-n", installed::SYSTEM]).await?;
        let gateway = service["spec"]["clusterIP"].as_str().context("an address")?;
        let gateway = format!("{gateway}:{}", joined::FIRST_PORT);
        Ok(Self { namespace, pod: format!("{pod}:{TARGET}"), gateway })
    }

    /// Waits until the sidecar of `client` has exactly these, under each name of the two services. At no moment may it have had
    /// another one: an address of a pod of b is that of another pod here.
    ///
    /// # Errors
    /// It does not come to that, or it had another one.
    pub(crate) async fn until(&self, client: &Pod, led: Led) -> Result<()> {
        let to_b = |is: bool| is.then_some(&self.gateway);
        let reviews: BTreeSet<&String> = to_b(led == Led::Both).into_iter().chain([&self.pod]).collect();
        let ratings: BTreeSet<&String> = to_b(led != Led::Neither).into_iter().collect();
        let host = |service: &str, domain: &str| format!("{service}.{}.svc.{domain}.local", self.namespace);
        for (host, wanted) in [
            (host("reviews", "cluster"), &reviews),
            (host("reviews", "clusterset"), &reviews),
            (host("ratings", "clusterset"), &ratings),
            (joined::own_name(), &ratings),
        ] {
            self.are(client, &host, wanted).await.with_context(|| format!("{led:?} to b"))?;
        }
        Ok(())
    }

    async fn are(&self, client: &Pod, host: &str, wanted: &BTreeSet<&String>) -> Result<()> {
        let strange = RefCell::new(BTreeSet::new());
        within(PATIENCE, format!("a sidecar has {wanted:?} for {host}"), async || {
            let told = client.endpoints(host, PORT).await?;
            let others = told.keys().filter(|way| **way != self.pod && **way != self.gateway);
            strange.borrow_mut().extend(others.cloned());
            ensure!(told.keys().eq(wanted.iter().copied()), "it has {told:?}");
            Ok(true)
        })
        .await?;
        let strange = strange.into_inner();
        ensure!(strange.is_empty(), "for {host} it had {strange:?}");
        Ok(())
    }
}
