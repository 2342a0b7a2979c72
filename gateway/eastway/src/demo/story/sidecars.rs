//! An Envoy beside each workload but the kiosk: a pod with a namespace of its own, and `eastway sidecar` in it.
//!
//! The workload's own program knows nothing of it. It connects to virtual addresses, which are those of its own host
//! there, where Envoy listens; and what others connect to is a port of Envoy's, by the registry. No packet is redirected,
//! which takes no privilege.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use futures_util::future::try_join_all;
use serde_json::{Value, json};

use super::{Cloud, NAMESPACE, PORT, SIBLINGS, Service, Story, WORKLOADS, Workload};
use crate::demo::lab::files::{self, API_VERSION, trust_domain};

/// Where Envoy takes connections for its workload.
const INBOUND: u16 = 9443;
/// Address of each cloud's gateway for its pods, and its ports for sidecars.
const GATEWAY: [u8; 4] = [10, 244, 0, 1];
const HBONE: u16 = 15008;
const XDS: u16 = 15012;

/// Between two looks at whether all run.
const LOOK: Duration = Duration::from_millis(100);

/// The service account of a service, as the lab's registries list it.
pub(in super::super) fn account(service: Service) -> String {
    format!("{NAMESPACE}-{}", service.name())
}

fn has_sidecar(workload: &Workload) -> bool {
    workload.service != Service::Kiosk
}

/// What the main file of a cloud's gateway says in addition.
pub(super) fn gateway_settings(cloud: &str) -> Value {
    let at = |port: u16| SocketAddr::from((GATEWAY, port)).to_string();
    let here = WORKLOADS.iter().chain(&SIBLINGS).filter(|workload| workload.cloud == cloud && has_sidecar(workload));
    let accounts: BTreeMap<String, Value> = here
        .map(|workload| account(workload.service))
        .map(|account| {
            let socket = format!("./run/{account}.sock");
            (account.clone(), json!({"namespace": NAMESPACE, "serviceAccount": account, "socket": socket}))
        })
        .collect();
    json!({
        "listen": {"hbone": at(HBONE), "local": at(XDS)},
        "sidecars": {"gateway": at(HBONE)},
        "trust": {"workloads": accounts.into_values().collect::<Vec<_>>()},
    })
}

/// What the registry says of a service whose workloads have sidecars: who has none is let in, too.
pub(super) fn behind() -> Value {
    let port = json!({"name": "http", "port": PORT, "targetPort": INBOUND, "appProtocol": "http"});
    json!({"tls": "permissive", "ports": [port]})
}

impl Story {
    pub(super) fn has_sidecar(&self, workload: &Workload) -> bool {
        self.envoy.is_some() && has_sidecar(workload)
    }

    /// Workloads with an Envoy.
    pub(in super::super) fn sidecars(&self) -> impl Iterator<Item = Workload> {
        self.all().filter(|workload| self.has_sidecar(workload))
    }

    /// Gives each of them its own network namespace.
    pub(super) async fn set_apart(&mut self) -> Result<()> {
        let apart: Vec<Workload> = self.sidecars().collect();
        try_join_all(self.clouds.iter_mut().map(async |cloud| {
            let name = cloud.name().to_owned();
            for workload in apart.iter().filter(|workload| workload.cloud == name) {
                cloud.net_mut().set_apart(workload.pod).await?;
            }
            anyhow::Ok(())
        }))
        .await?;
        Ok(())
    }

    /// Starts all sidecars, which start their Envoys; waits for none.
    pub(super) async fn start_sidecars(&mut self) -> Result<()> {
        let Some(envoy) = self.envoy.clone() else { return Ok(()) };
        for workload in self.sidecars().collect::<Vec<_>>() {
            let cloud = self.cloud_mut(workload.cloud)?;
            ensure!(cloud.dns(0)?.ip() == std::net::IpAddr::from(GATEWAY), "the gateway has another address");
            let file = cloud.folder().join(format!("{}.yaml", workload.name()));
            let mut config = config(cloud, &workload);
            files::merge(&mut config, &json!({"envoy": {"path": envoy.path, "concurrency": 1}}));
            files::write(&file, &config)?;
            let arguments = vec!["sidecar".into(), "--config".into(), file.into()];
            cloud.start_on_pod(workload.pod, &format!("{}-sidecar", workload.name()), arguments).await?;
        }
        Ok(())
    }
}

impl Story {
    /// Waits until a workload or its sidecar has ended, which none does by itself; says which, and what it said last.
    pub(in super::super) async fn until_one_ended(&self) -> Result<Infallible> {
        loop {
            for cloud in &self.clouds {
                if let Some(process) = cloud.ended_workloads()?.first() {
                    let said = process.last_line().unwrap_or_else(|| "without a word".to_owned());
                    bail!("{} has ended: {}", process.name(), said.trim_start_matches("error: "));
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Its `kind: SidecarConfig` file, without Envoy.
fn config(cloud: &Cloud, workload: &Workload) -> Value {
    let (account, address) = (account(workload.service), cloud.net().pod(workload.pod));
    json!({
        "apiVersion": API_VERSION,
        "kind": "SidecarConfig",
        "workload": {"namespace": NAMESPACE, "serviceAccount": account, "name": workload.name()},
        "trust": {"domain": trust_domain(workload.cloud), "ca": format!("unix:./run/{account}.sock")},
        "gateway": SocketAddr::from((GATEWAY, XDS)).to_string(),
        "state": format!("./{}", workload.name()),
        "outbound": !workload.service.calls(workload.version).is_empty(),
        "inbound": [{
            "listen": SocketAddr::new(address, INBOUND).to_string(),
            "app": SocketAddr::new(address, PORT).to_string(),
            "protocol": "http",
            "mode": "permissive",
        }],
    })
}
