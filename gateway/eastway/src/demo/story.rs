//! The three clouds of the demo: what is where, and who may call whom.
//!
//! The same pod addresses are used in every cloud on purpose: `10.244.1.11` is the productpage on-prem,
//! reviews v2 in gke and ratings on the edge.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use super::bookinfo::{NAMESPACE, PORT, Service, Version};
use super::lab::cloud::{Cloud, CloudSpec, introduce};
use super::lab::files::{self, ServiceSpec};
use super::lab::{Isolation, Lab};

/// Where the demo's own clients are.
pub(super) const VISITOR_POD: u8 = 20;
/// Weights of reviews v1, v2 and v3, percent.
pub(super) const WEIGHTS: [(Version, u32); 3] = [(Version(1), 50), (Version(2), 30), (Version(3), 20)];
/// A zone of its own that on-prem answers for, and the names in it: any service, or gke's share of it.
const OWN_ZONE: &str = "shop.example";
/// Names in [`OWN_ZONE`] with the cluster they stand for; `None`: any.
pub(super) const OWN_NAMES: [(&str, Option<&str>); 2] =
    [("reviews.shop.example", None), ("stars.shop.example", Some(GKE))];

pub(super) const ONPREM: &str = "onprem";
pub(super) const GKE: &str = "gke";
pub(super) const EDGE: &str = "edge";

/// (cloud, pod, service, version)
const WORKLOADS: [(&str, u8, Service, Version); 7] = [
    (ONPREM, 11, Service::Productpage, Version(1)),
    (ONPREM, 12, Service::Details, Version(1)),
    (ONPREM, 13, Service::Reviews, Version(1)),
    (GKE, 11, Service::Reviews, Version(2)),
    (GKE, 12, Service::Reviews, Version(3)),
    (EDGE, 11, Service::Ratings, Version(1)),
    (EDGE, 12, Service::Kiosk, Version(1)),
];

/// A cluster and a service account in it.
type Caller = (&'static str, &'static str);

/// (owner, service, who may call it)
const ALLOWED: [(&str, Service, &[Caller]); 5] = [
    (ONPREM, Service::Productpage, &[(EDGE, "bookinfo-kiosk")]),
    (ONPREM, Service::Details, &[(EDGE, "bookinfo-visitor"), (GKE, "bookinfo-visitor")]),
    (ONPREM, Service::Reviews, &[(EDGE, "bookinfo-visitor")]),
    (GKE, Service::Reviews, &[(ONPREM, "bookinfo-productpage"), (ONPREM, "bookinfo-visitor")]),
    (EDGE, Service::Ratings, &[(GKE, "bookinfo-reviews"), (ONPREM, "bookinfo-visitor")]),
];

/// The demo's clouds, running.
#[derive(Debug)]
pub(super) struct Story {
    pub(super) lab: Lab,
    pub(super) clouds: Vec<Cloud>,
    /// What keeps connections from outside away from edge.
    pub(super) edge_guard: String,
    /// From the start of each gateway to ready, in the order of the clouds.
    pub(super) ready: Vec<Duration>,
}

impl Story {
    /// Builds the clouds. Nothing runs yet.
    pub(super) async fn prepare(lab: Lab) -> Result<Self> {
        let mut edge = CloudSpec::new(EDGE, 3);
        edge.inbound = false;
        let mut onprem = CloudSpec::new(ONPREM, 1);
        let names = OWN_NAMES.map(|(name, cluster)| {
            let mut rule = json!({"name": name, "service": format!("{NAMESPACE}/{}", Service::Reviews.name())});
            files::merge(&mut rule, &cluster.map(|cluster| json!({ "cluster": cluster })).unwrap_or_default());
            rule
        });
        onprem.settings = json!({"dns": {"zones": [OWN_ZONE], "names": names}});
        let (onprem, gke, edge) = tokio::try_join!(
            Cloud::prepare(&lab, onprem),
            Cloud::prepare(&lab, CloudSpec::new(GKE, 2)),
            Cloud::prepare(&lab, edge),
        )?;
        let edge_guard = guard_edge(&lab, &edge).await;
        let story = Self { lab, clouds: vec![onprem, gke, edge], edge_guard, ready: Vec::new() };
        story.write_files().await?;
        Ok(story)
    }

    async fn write_files(&self) -> Result<()> {
        for cloud in &self.clouds {
            let here = WORKLOADS.iter().filter(|(name, ..)| *name == cloud.name());
            let mut services: Vec<ServiceSpec> = Vec::new();
            for (_, pod, service, version) in here {
                let address = cloud.net().pod(*pod);
                let known = services.iter().position(|spec| spec.name == service.name());
                let spec = known.map(|index| services.remove(index));
                let spec = spec.unwrap_or_else(|| ServiceSpec::new(NAMESPACE, service.name(), PORT));
                services.push(spec.endpoint(address, &version.to_string()));
            }
            for spec in &mut services {
                spec.health = Some("/health".to_owned());
                spec.export = spec.name != Service::Kiosk.name();
            }
            let visitor = cloud.net().pod(VISITOR_POD);
            cloud.write_services(&services, &[(visitor, NAMESPACE, "bookinfo-visitor")])?;
        }
        for (owner, service, allow) in ALLOWED {
            let policy = files::access_policy(NAMESPACE, service.name(), &[service.name()], allow);
            self.cloud(owner)?.write_policy(&format!("access-{}", service.name()), &policy)?;
        }
        let split = WEIGHTS.map(|(version, weight)| json!({"weight": weight, "subset": {"version": version}}));
        let policy = json!({"split": split, "failover": ["local"]});
        let policy = files::traffic_policy(NAMESPACE, Service::Reviews.name(), &policy);
        self.cloud(ONPREM)?.write_policy("reviews", &policy)?;
        introduce(&self.clouds, &[NAMESPACE]).await
    }

    /// Starts everything; waits for the gateways, not for links.
    pub(super) async fn start(&mut self) -> Result<()> {
        for cloud in &mut self.clouds {
            cloud.start_ca().await?;
            cloud.start_gateway(0).await?;
        }
        let started = Instant::now();
        for (name, pod, service, version) in WORKLOADS {
            let cloud = self.cloud_mut(name)?;
            let arguments = [
                "demo-app".to_owned(),
                format!("--service={}", service.name()),
                format!("--version={version}"),
                format!("--cloud={name}"),
                format!("--listen={}", SocketAddr::new(cloud.net().pod(pod), PORT)),
                format!("--dns={}", cloud.dns(0)?),
            ];
            let arguments = arguments.map(OsString::from).to_vec();
            cloud.start_workload(&format!("{}-{version}", service.name()), arguments).await?;
        }
        for cloud in &mut self.clouds {
            cloud.wait_ready(0).await?;
            self.ready.push(started.elapsed());
        }
        Ok(())
    }

    pub(super) fn cloud(&self, name: &str) -> Result<&Cloud> {
        self.clouds.iter().find(|cloud| cloud.name() == name).with_context(|| format!("no cloud {name}"))
    }

    fn cloud_mut(&mut self, name: &str) -> Result<&mut Cloud> {
        self.clouds.iter_mut().find(|cloud| cloud.name() == name).with_context(|| format!("no cloud {name}"))
    }

    /// What runs in a cloud, and where.
    pub(super) fn workloads(&self, cloud: &str) -> impl Iterator<Item = (u8, Service)> {
        WORKLOADS.iter().filter(move |(name, ..)| *name == cloud).map(|(_, pod, service, _)| (*pod, *service))
    }

    /// Where a service of this cloud listens, for clients beside it.
    pub(super) fn local_address(&self, cloud: &str, service: Service) -> Result<SocketAddr> {
        let found = WORKLOADS.iter().find(|(name, _, running, _)| *name == cloud && *running == service);
        let (_, pod, ..) = found.with_context(|| format!("no {} in {cloud}", service.name()))?;
        Ok(SocketAddr::new(self.cloud(cloud)?.net().pod(*pod), PORT))
    }

    /// Address of the demo's own client in a cloud.
    pub(super) fn visitor(cloud: &Cloud) -> IpAddr {
        cloud.net().pod(VISITOR_POD)
    }

    /// Everything that was logged lately.
    pub(super) fn logs(&self) -> String {
        self.clouds.iter().map(Cloud::logs).collect()
    }

    /// Ends all processes in order.
    pub(super) async fn stop(&mut self) -> Result<()> {
        let patience = Duration::from_secs(3);
        let stops = self.clouds.iter_mut().map(|cloud| cloud.stop(patience));
        futures_util::future::try_join_all(stops).await.map(drop)
    }
}

/// Keeps new connections from outside away from edge; says how.
async fn guard_edge(lab: &Lab, edge: &Cloud) -> String {
    const UNLISTED: &str = "peers' files list no address";
    if lab.isolation() == Isolation::Loopback {
        return format!("{UNLISTED}; nothing is filtered on loopback");
    }
    match edge.net().forbid_inbound().await {
        Ok(()) => format!("{UNLISTED}, its link does not listen on the WAN, nftables drops all but answers"),
        Err(_) => format!("{UNLISTED}, its link does not listen on the WAN (nftables is missing)"),
    }
}
