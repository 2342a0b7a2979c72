//! Real Kubernetes clusters on this machine: two clouds that share nothing but a WAN.
//!
//! Each cluster is what a cloud's is: etcd, API server, controller-manager, scheduler, kubelet with containerd,
//! kube-proxy and CoreDNS, with RBAC and verified TLS. All clusters use **the same pod and service
//! addresses**, and no packet finds a way from the pods of one to the pods of another.
//!
//! ```text
//!  network namespace of the stage: the WAN, 198.51.100.1/24 (tests and kubectl run here)
//!        │ bridge
//!        ├── node a, 198.51.100.11: pods 10.244.0.0/16, services 10.96.0.0/16
//!        └── node b, 198.51.100.12: pods 10.244.0.0/16, services 10.96.0.0/16
//! ```
//!
//! Everything runs inside one *stage* ([`stage`]): PID, mount and network namespaces that end with their first
//! process, so that whatever is killed first, nothing stays. It needs root, since containers do.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

pub mod bare;
pub mod bookinfo;
pub mod cluster;
pub mod conformance;
pub mod containers;
pub mod eastway;
pub mod etcd;
pub mod image;
pub mod istio;
pub mod kubectl;
pub mod lookup;
pub mod node;
pub mod pki;
pub mod pods;
pub mod process;
pub mod stage;
pub mod suite;
pub mod tools;
pub mod traffic;
pub mod wan;

pub use cluster::Cluster;

use cluster::Options;
use wan::Wan;

/// Running clusters.
#[derive(Debug)]
pub struct Bed {
    clusters: Vec<Cluster>,
    wan: Wan,
    /// What goes into the summary, by step.
    figures: Mutex<BTreeMap<String, Value>>,
    /// Whether Eastway is in the clusters and they are joined: done by the first test that wants it.
    installed: tokio::sync::OnceCell<Result<()>>,
    /// Istio, likewise.
    istio: tokio::sync::OnceCell<Result<istio::Istio>>,
}

impl Bed {
    /// Brings up clusters of these names at once, each until names resolve in it.
    ///
    /// # Errors
    /// Not on a stage, a tool is missing, or a part does not come up; the message has its log.
    pub async fn start(names: &[&str]) -> Result<Self> {
        let options = names.iter().zip(1..).map(|(name, number)| Options::new(name, number)).collect();
        Self::start_with(options).await
    }

    /// As [`Bed::start`], with settings of one's own for each cluster.
    ///
    /// # Errors
    /// As there.
    pub async fn start_with(options: Vec<Options>) -> Result<Self> {
        let started = Instant::now();
        let folder = stage::folder()?;
        let wan = Wan::lay(&folder).await?;
        let images = image::base_images(&folder.join("images")).await.context("write the images")?;
        let images_took = started.elapsed();
        let starting = options.into_iter().map(|options| {
            let (wan, images, folder) = (wan.clone(), images.clone(), folder.clone());
            tokio::spawn(async move { Cluster::start(&wan, &folder, options, &images).await })
        });
        let mut clusters = Vec::new();
        for cluster in starting.collect::<Vec<_>>() {
            clusters.push(cluster.await??);
        }
        let bed = Self {
            clusters,
            wan,
            figures: Mutex::default(),
            installed: tokio::sync::OnceCell::new(),
            istio: tokio::sync::OnceCell::new(),
        };
        bed.record("bed.images_s", seconds(images_took));
        for cluster in &bed.clusters {
            for (step, took) in cluster.steps() {
                bed.record(&format!("bed.{}.{step}_s", cluster.name()), seconds(*took));
            }
        }
        bed.record("bed.up_s", seconds(started.elapsed()));
        Ok(bed)
    }

    /// Starts a cluster that is an API server and no more, for this test; [`Bed::end`] ends it. `number` is its place on the
    /// WAN, behind those of the bed.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn api_server(&self, name: &str, number: u8) -> Result<Cluster> {
        Cluster::start_api(&self.wan, &stage::folder()?, Options::new(name, number)).await
    }

    /// Ends a cluster that [`Bed::api_server`] started.
    ///
    /// # Errors
    /// A program cannot be killed.
    pub async fn end(&self, cluster: Cluster) -> Result<()> {
        cluster.stop().await
    }

    /// A cluster by name.
    ///
    /// # Panics
    /// There is none of this name.
    #[must_use]
    pub fn cluster(&self, name: &str) -> &Cluster {
        self.clusters.iter().find(|cluster| cluster.name() == name).expect("a cluster of this bed")
    }

    /// All clusters, in the order they were named.
    #[must_use]
    pub fn clusters(&self) -> &[Cluster] {
        &self.clusters
    }

    /// The network between them.
    #[must_use]
    pub fn wan(&self) -> &Wan {
        &self.wan
    }

    /// One kubeconfig for the administrator of every cluster, with a context each, for use on the WAN.
    ///
    /// # Errors
    /// A cluster's own cannot be read.
    pub fn kubeconfig(&self) -> Result<String> {
        let mut merged = Value::Null;
        for cluster in &self.clusters {
            let file: Value = serde_json::from_str(&std::fs::read_to_string(cluster.pki().admin())?)?;
            if merged.is_null() {
                merged = file;
                continue;
            }
            for list in ["clusters", "users", "contexts"] {
                let more = file.get(list).and_then(Value::as_array).cloned().unwrap_or_default();
                merged.get_mut(list).and_then(Value::as_array_mut).context("a kubeconfig")?.extend(more);
            }
        }
        Ok(merged.to_string())
    }

    /// Keeps a figure for the summary.
    pub fn record(&self, name: &str, value: impl Into<Value>) {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), value.into());
    }

    /// All figures kept so far.
    #[must_use]
    pub fn figures(&self) -> BTreeMap<String, Value> {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends every program of every cluster. What they leave ends with the stage.
    ///
    /// # Errors
    /// A program cannot be killed.
    pub async fn stop(self) -> Result<()> {
        for cluster in self.clusters {
            cluster.stop().await?;
        }
        Ok(())
    }
}

/// A duration as the summary has it: seconds, to the millisecond.
#[must_use]
pub fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}
