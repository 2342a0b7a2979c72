//! What is open at the address of a pod, by trying all of it, and what the page of ports lists.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use eastway_tests::documents;
use eastway_tests::kube::{Cluster, eastway as installed};
use futures_util::StreamExt as _;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::injected::one_of;

/// The list of ports per pod.
const LIST: &str = "docs/operations/ports.md";
/// The roles of the chart, each with pods of its own.
const ROLES: [&str; 4] = ["gateway", "controller", "ca", "injector"];
/// How long a port may take to answer that it is closed, on the same node.
const CLOSED: Duration = Duration::from_secs(5);
/// Ports that are tried at once.
const AT_ONCE: usize = 256;

/// Those of these ports of TCP that a pod has open, tried from its node.
pub(crate) async fn open(cluster: &Cluster, pod: &Value, ports: Vec<u16>) -> Result<BTreeSet<u16>> {
    let address: IpAddr = pod["status"]["podIP"].as_str().context("it has an address")?.parse()?;
    let scan = async move {
        let tried = futures_util::stream::iter(ports).map(|port| async move {
            let connected = timeout(CLOSED, TcpStream::connect(SocketAddr::new(address, port))).await;
            let connected = connected.with_context(|| format!("port {port} neither opens nor says no"))?;
            Ok(connected.is_ok().then_some(port))
        });
        let tried: Vec<Result<Option<u16>>> = tried.buffer_unordered(AT_ONCE).collect().await;
        tried.into_iter().filter_map(Result::transpose).collect::<Result<BTreeSet<u16>>>()
    };
    cluster.place().run(scan).await
}

/// A pod of each role has open what the list has for it with injection, and nothing else.
pub(crate) async fn x1_pods_of_each_role_have_open_what_is_listed(cluster: &Cluster) -> Result<()> {
    for role in ROLES {
        let (always, perhaps) = listed(role)?;
        let pod = one_of(cluster, installed::SYSTEM, &format!("app.kubernetes.io/component={role}")).await?;
        let others = (1..=u16::MAX).filter(|port| !perhaps.iter().any(|range| range.contains(port)));
        let open = open(cluster, &pod, others.collect()).await?;
        ensure!(open == always, "a {role} has open {open:?}, and {LIST} has {always:?}");
    }
    Ok(())
}

/// The ports of TCP that are listed for a role: single ones, and ranges of which any may be open.
fn listed(role: &str) -> Result<(BTreeSet<u16>, Vec<RangeInclusive<u16>>)> {
    let (mut always, mut perhaps) = (BTreeSet::new(), Vec::new());
    for line in documents::read(LIST).lines() {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [pod, port, protocol, _] = cells.as_slice() else { continue };
        if *pod != role || !protocol.contains("TCP") {
            continue;
        }
        if let Some((first, last)) = port.split_once(" to ") {
            perhaps.push(first.parse::<u16>()?..=last.parse::<u16>()?);
        } else if let Ok(port) = port.parse::<u16>() {
            // Else it is one that only other values of the chart bring about.
            always.insert(port);
        }
    }
    ensure!(!always.is_empty(), "{LIST} has no port of a {role}");
    Ok((always, perhaps))
}
