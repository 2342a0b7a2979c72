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
use super::envoy::Envoy;
use super::lab::cloud::{Cloud, CloudSpec, introduce};
use super::lab::files::{self, ServiceSpec};
use super::lab::{Isolation, Lab};

pub(super) mod rules;
pub(super) mod sidecars;

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

/// A service that runs somewhere.
#[derive(Clone, Copy, Debug)]
pub(super) struct Workload {
    pub(super) cloud: &'static str,
    pub(super) pod: u8,
    pub(super) service: Service,
    pub(super) version: Version,
}

impl Workload {
    const fn new(cloud: &'static str, pod: u8, service: Service, version: u8) -> Self {
        Self { cloud, pod, service, version: Version(version) }
    }

    /// Its name, unique in its cloud.
    pub(super) fn name(&self) -> String {
        format!("{}-{}-{}", self.service.name(), self.version, self.pod)
    }
}

const WORKLOADS: [Workload; 7] = [
    Workload::new(ONPREM, 11, Service::Productpage, 1),
    Workload::new(ONPREM, 12, Service::Details, 1),
    Workload::new(ONPREM, 13, Service::Reviews, 1),
    Workload::new(GKE, 11, Service::Reviews, 2),
    Workload::new(GKE, 12, Service::Reviews, 3),
    Workload::new(EDGE, 11, Service::Ratings, 1),
    Workload::new(EDGE, 12, Service::Kiosk, 1),
];
/// With Envoys, of which each sees single pods: siblings of gke's reviews v2.
const SIBLINGS: [Workload; 2] =
    [Workload::new(GKE, 13, Service::Reviews, 2), Workload::new(GKE, 14, Service::Reviews, 2)];

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
    /// What is beside the workloads.
    pub(super) envoy: Option<Envoy>,
    /// What keeps connections from outside away from edge.
    pub(super) edge_guard: String,
    /// From the start of each gateway to ready, in the order of the clouds.
    pub(super) ready: Vec<Duration>,
}

impl Story {
    /// Builds the clouds. Nothing runs yet.
    pub(super) async fn prepare(lab: Lab, envoy: Option<Envoy>) -> Result<Self> {
        let (mut onprem, mut gke, mut edge) =
            (CloudSpec::new(ONPREM, 1), CloudSpec::new(GKE, 2), CloudSpec::new(EDGE, 3));
        edge.inbound = false;
        if envoy.is_some() {
            for spec in [&mut onprem, &mut gke, &mut edge] {
                spec.settings = sidecars::gateway_settings(&spec.name);
            }
        }
        let names = OWN_NAMES.map(|(name, cluster)| {
            let mut rule = json!({"name": name, "service": format!("{NAMESPACE}/{}", Service::Reviews.name())});
            files::merge(&mut rule, &cluster.map(|cluster| json!({ "cluster": cluster })).unwrap_or_default());
            rule
        });
        files::merge(&mut onprem.settings, &json!({"dns": {"zones": [OWN_ZONE], "names": names}}));
        let (onprem, gke, edge) =
            tokio::try_join!(Cloud::prepare(&lab, onprem), Cloud::prepare(&lab, gke), Cloud::prepare(&lab, edge),)?;
        let edge_guard = guard_edge(&lab, &edge).await;
        let mut story = Self { lab, clouds: vec![onprem, gke, edge], envoy, edge_guard, ready: Vec::new() };
        story.set_apart().await?;
        story.write_files().await?;
        Ok(story)
    }

    async fn write_files(&self) -> Result<()> {
        for cloud in &self.clouds {
            let mut services: Vec<ServiceSpec> = Vec::new();
            for workload in self.workloads(cloud.name()) {
                let (address, name) = (cloud.net().pod(workload.pod), workload.service.name());
                let known = services.iter().position(|spec| spec.name == name);
                let spec = known.map(|index| services.remove(index));
                let mut spec = spec.unwrap_or_else(|| ServiceSpec::new(NAMESPACE, name, PORT));
                if self.has_sidecar(&workload) {
                    spec.more = sidecars::behind();
                }
                services.push(spec.endpoint(address, &workload.version.to_string()));
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
        self.cloud(ONPREM)?.write_policy("reviews", &rules::policy(&json!({})))?;
        if self.envoy.is_some() {
            for (name, file) in rules::shares() {
                self.cloud(ONPREM)?.write_policy(&name, &file)?;
            }
        }
        introduce(&self.clouds, &[NAMESPACE]).await
    }

    /// Starts everything; waits for the gateways, not for links.
    pub(super) async fn start(&mut self) -> Result<()> {
        for cloud in &mut self.clouds {
            cloud.start_ca().await?;
            cloud.start_gateway(0).await?;
        }
        let started = Instant::now();
        for workload in self.all().collect::<Vec<_>>() {
            let cloud = self.cloud_mut(workload.cloud)?;
            let arguments = [
                "demo-app".to_owned(),
                format!("--service={}", workload.service.name()),
                format!("--version={}", workload.version),
                format!("--cloud={}", workload.cloud),
                format!("--listen={}", SocketAddr::new(cloud.net().pod(workload.pod), PORT)),
                format!("--dns={}", cloud.dns(0)?),
            ];
            let arguments = arguments.map(OsString::from).to_vec();
            cloud.start_on_pod(workload.pod, &workload.name(), arguments).await?;
        }
        self.start_sidecars().await?;
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

    fn all(&self) -> impl Iterator<Item = Workload> + use<> {
        let siblings = if self.envoy.is_some() { &SIBLINGS[..] } else { &[] };
        WORKLOADS.into_iter().chain(siblings.iter().copied())
    }

    /// What runs in a cloud, and where.
    pub(super) fn workloads(&self, cloud: &str) -> impl Iterator<Item = Workload> {
        self.all().filter(move |workload| workload.cloud == cloud)
    }

    /// Pods of a version of a service in a cloud.
    pub(super) fn pods(&self, cloud: &str, service: Service, version: Version) -> impl Iterator<Item = u8> {
        let wanted = move |workload: &Workload| workload.service == service && workload.version == version;
        self.workloads(cloud).filter(wanted).map(|workload| workload.pod)
    }

    /// Where a service of this cloud listens, for clients beside it.
    pub(super) fn local_address(&self, cloud: &str, service: Service) -> Result<SocketAddr> {
        let found = self.workloads(cloud).find(|workload| workload.service == service);
        let pod = found.with_context(|| format!("no {} in {cloud}", service.name()))?.pod;
        Ok(SocketAddr::new(self.cloud(cloud)?.net().pod(pod), PORT))
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
        // More than a drain of nothing takes, whose links a fault may have cut just before.
        let patience = Duration::from_secs(10);
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
