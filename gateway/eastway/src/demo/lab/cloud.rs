//! One cloud: its folder of configuration, its gateways and its workloads.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use eastway_identity::ca::{Ca, InitOptions};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::files::{self, GatewaySpec, ServiceSpec};
use super::net::CloudNet;
use super::place::Place;
use super::process::{LOG_TAIL, Leash, Process, Program};
use super::{Isolation, Lab};

mod operator;

/// What a cloud is made from.
#[derive(Clone, Debug)]
pub struct CloudSpec {
    /// Name of its cluster.
    pub name: String,
    /// Its number in the lab, 1 to [`super::net::MAX_CLOUDS`].
    pub number: u8,
    /// Gateway replicas, 1 to [`super::net::MAX_REPLICAS`].
    pub replicas: u8,
    /// Whether it listens on the WAN and its peers know where.
    pub inbound: bool,
    /// Changes to each gateway's main file ([`files::merge`]).
    pub settings: Value,
}

impl CloudSpec {
    /// One gateway that peers can dial.
    #[must_use]
    pub fn new(name: &str, number: u8) -> Self {
        Self { name: name.to_owned(), number, replicas: 1, inbound: true, settings: Value::Null }
    }
}

/// A cloud. Dropping it kills its processes.
#[derive(Debug)]
pub struct Cloud {
    spec: CloudSpec,
    net: CloudNet,
    folder: PathBuf,
    binary: PathBuf,
    leash: Leash,
    isolation: Isolation,
    pin: String,
    ca: Option<Process>,
    gateways: Vec<Option<Process>>,
    workloads: Vec<Process>,
}

impl Cloud {
    /// Makes its network, its CA and its main files. Nothing runs yet.
    ///
    /// # Errors
    /// The network or the folder cannot be made.
    pub async fn prepare(lab: &Lab, spec: CloudSpec) -> Result<Self> {
        let folder = lab.folder().join(&spec.name);
        for inner in ["run", "peers", "policies"] {
            let path = folder.join(inner);
            std::fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        }
        let pin = init_ca(&folder.join("cacerts"), &spec.name)?;
        let net = CloudNet::lay(lab, &spec.name, spec.number, spec.replicas).await?;
        let gateways = (0..spec.replicas).map(|_| None).collect();
        let cloud = Self {
            spec,
            net,
            folder,
            binary: lab.binary().to_owned(),
            leash: lab.leash(),
            isolation: lab.isolation(),
            pin,
            ca: None,
            gateways,
            workloads: Vec::new(),
        };
        for replica in 0..usize::from(cloud.spec.replicas) {
            files::write(&cloud.main_file(replica), &cloud.main_value(replica)?)?;
        }
        cloud.write_services(&[], &[])?;
        Ok(cloud)
    }

    /// Its cluster's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Its network.
    #[must_use]
    pub fn net(&self) -> &CloudNet {
        &self.net
    }

    /// Its network, to change it before something runs there.
    pub fn net_mut(&mut self) -> &mut CloudNet {
        &mut self.net
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Pin of its CA's key.
    #[must_use]
    pub fn pin(&self) -> &str {
        &self.pin
    }

    /// Whether its peers know an address of it.
    #[must_use]
    pub fn is_inbound(&self) -> bool {
        self.spec.inbound
    }

    /// Where its gateways' links listen, `host:port`.
    #[must_use]
    pub fn link_addresses(&self) -> Vec<String> {
        let addresses = self.net.gateways().iter();
        addresses.map(|gateway| SocketAddr::new(gateway.wan, files::LINK_PORT).to_string()).collect()
    }

    /// What a peer file for it lists.
    #[must_use]
    pub fn advertised(&self) -> Vec<String> {
        if self.spec.inbound { self.link_addresses() } else { Vec::new() }
    }

    /// Its DNS server.
    ///
    /// # Errors
    /// It has no such replica.
    pub fn dns(&self, replica: usize) -> Result<SocketAddr> {
        Ok(SocketAddr::new(self.gateway_net(replica)?.inside, files::DNS_PORT))
    }

    fn gateway_net(&self, replica: usize) -> Result<&super::net::GatewayNet> {
        self.net.gateways().get(replica).with_context(|| format!("{} has no gateway {replica}", self.spec.name))
    }

    /// The main file of a replica.
    #[must_use]
    pub fn main_file(&self, replica: usize) -> PathBuf {
        self.folder.join(format!("gateway-{replica}.yaml"))
    }

    /// The state folder of a replica.
    #[must_use]
    pub fn state(&self, replica: usize) -> PathBuf {
        self.folder.join(format!("state-{replica}"))
    }

    /// Contents of a replica's main file.
    ///
    /// # Errors
    /// It has no such replica.
    pub fn main_value(&self, replica: usize) -> Result<Value> {
        let gateway = self.gateway_net(replica)?;
        let spec = GatewaySpec {
            cluster: self.spec.name.clone(),
            replica,
            link: self.link_listener(gateway.wan),
            advertise: self.advertised(),
            inside: gateway.inside,
            operator: self.operator(replica)?.1,
            vip_ranges: vec![self.net.vip_range()],
            loopback: self.isolation == Isolation::Loopback,
        };
        let mut value = spec.value();
        files::merge(&mut value, &self.spec.settings);
        Ok(value)
    }

    /// Where a gateway's link listens: a cloud without an inbound address does not listen on the WAN at all.
    fn link_listener(&self, wan: IpAddr) -> IpAddr {
        if self.spec.inbound || self.isolation == Isolation::Loopback { wan } else { IpAddr::from([127, 0, 0, 1]) }
    }

    /// Writes its `services.yaml`.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write_services(&self, services: &[ServiceSpec], workloads: &[(IpAddr, &str, &str)]) -> Result<()> {
        files::write(&self.folder.join("services.yaml"), &files::service_list(services, workloads))
    }

    /// Writes a file of its policies folder.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write_policy(&self, name: &str, value: &Value) -> Result<()> {
        files::write(&self.folder.join("policies").join(format!("{name}.yaml")), value)
    }

    /// Writes the Peer file for the cluster `name`.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write_peer(&self, name: &str, value: &Value) -> Result<()> {
        files::write(&self.peer_file(name), value)
    }

    /// Where the Peer file for the cluster `name` is.
    #[must_use]
    pub fn peer_file(&self, name: &str) -> PathBuf {
        self.folder.join("peers").join(format!("{name}.yaml"))
    }

    fn program(&self, log: &str, arguments: Vec<OsString>) -> Program {
        let log = self.folder.join(log);
        Program { binary: self.binary.clone(), arguments, log, leash: self.leash }
    }

    /// Starts the process that holds the CA key.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn start_ca(&mut self) -> Result<()> {
        let program = self.program("ca.log", run_arguments(&self.main_file(0), "ca"));
        let place = &self.gateway_net(0)?.place;
        self.ca = Some(Process::start(place, &format!("{}/ca", self.spec.name), program).await?);
        Ok(())
    }

    /// The process that holds the CA key.
    ///
    /// # Errors
    /// It is not running.
    pub fn ca(&mut self) -> Result<&mut Process> {
        self.ca.as_mut().with_context(|| format!("{} has no CA process", self.spec.name))
    }

    /// Starts a gateway replica; does not wait until it is ready.
    ///
    /// # Errors
    /// It cannot be started, or runs already.
    pub async fn start_gateway(&mut self, replica: usize) -> Result<()> {
        let program = self
            .program(&format!("gateway-{replica}.log"), run_arguments(&self.main_file(replica), "gateway,controller"));
        let name = format!("{}/gateway-{replica}", self.spec.name);
        let place = self.gateway_net(replica)?.place.clone();
        let slot = self.gateways.get_mut(replica).with_context(|| format!("no {name}"))?;
        ensure!(slot.is_none(), "{name} runs already");
        *slot = Some(Process::start(&place, &name, program).await?);
        Ok(())
    }

    /// A gateway's process.
    ///
    /// # Errors
    /// It does not run.
    pub fn gateway(&self, replica: usize) -> Result<&Process> {
        let gateway = self.gateways.get(replica).and_then(Option::as_ref);
        gateway.with_context(|| format!("{}/gateway-{replica} does not run", self.spec.name))
    }

    /// Takes a gateway's process out, to be ended by the caller; the replica can be started again then.
    ///
    /// # Errors
    /// It does not run.
    pub fn take_gateway(&mut self, replica: usize) -> Result<Process> {
        let gateway = self.gateways.get_mut(replica).and_then(Option::take);
        gateway.with_context(|| format!("{}/gateway-{replica} does not run", self.spec.name))
    }

    /// Ends a gateway at once, as a crash would.
    ///
    /// # Errors
    /// It does not run.
    pub async fn kill_gateway(&mut self, replica: usize) -> Result<()> {
        self.take_gateway(replica)?.kill().await
    }

    /// Starts a workload of this binary among the pods, e.g. a service of Bookinfo.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn start_workload(&mut self, name: &str, arguments: Vec<OsString>) -> Result<()> {
        self.start_at(&self.net.pods().clone(), name, arguments).await
    }

    /// As [`Cloud::start_workload`], on a certain pod, wherever that is.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn start_on_pod(&mut self, pod: u8, name: &str, arguments: Vec<OsString>) -> Result<()> {
        self.start_at(&self.net.place_of(pod).clone(), name, arguments).await
    }

    async fn start_at(&mut self, place: &Place, name: &str, arguments: Vec<OsString>) -> Result<()> {
        let program = self.program(&format!("{name}.log"), arguments);
        let process = Process::start(place, &format!("{}/{name}", self.spec.name), program).await?;
        self.workloads.push(process);
        Ok(())
    }

    /// Workloads that were started and have ended by themselves.
    ///
    /// # Errors
    /// The kernel cannot say.
    pub fn ended_workloads(&self) -> Result<Vec<&Process>> {
        let mut ended = Vec::new();
        for process in &self.workloads {
            if process.has_ended()? {
                ended.push(process);
            }
        }
        Ok(ended)
    }

    /// The end of the log of every process that has one, for error messages.
    #[must_use]
    pub fn logs(&self) -> String {
        let gateways = self.gateways.iter().flatten();
        let processes = self.ca.iter().chain(gateways).chain(&self.workloads);
        processes.map(|process| format!("--- {}\n{}\n", process.name(), process.log_tail(LOG_TAIL))).collect()
    }

    /// Ends all processes: gateways in order with SIGTERM, what is left with SIGKILL.
    ///
    /// # Errors
    /// One did not end in time.
    pub async fn stop(&mut self, patience: Duration) -> Result<()> {
        let mut result = Ok(());
        for process in self.gateways.iter().flatten() {
            // The drain of one would wait for streams of workloads that end anyway. The second signal, below, ends it, unless the
            // two came so close together that they were one.
            let _gone = process.signal(Signal::SIGTERM);
        }
        for mut workload in self.workloads.drain(..) {
            workload.kill().await?;
        }
        for mut process in self.gateways.iter_mut().filter_map(Option::take).chain(self.ca.take()) {
            if let Err(error) = process.terminate(patience).await {
                result = Err(error);
            }
        }
        result
    }
}

/// Makes a CA for the cluster and returns its pin.
fn init_ca(folder: &Path, cluster: &str) -> Result<String> {
    let options = InitOptions::new(&files::trust_domain(cluster));
    let ca = Ca::init(folder, &options).with_context(|| format!("make the CA of {cluster}"))?;
    Ok(ca.pin().to_string())
}

fn run_arguments(config: &Path, roles: &str) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["run".into(), "--roles".into(), roles.into(), "--config".into()];
    arguments.push(config.into());
    arguments
}

/// Gives each cloud the Peer files of all others as `eastway peer export` prints them there, with everything in
/// `namespaces` offered and taken, as a user would write into them.
///
/// # Errors
/// A command fails or a folder cannot be written.
pub async fn introduce(clouds: &[Cloud], namespaces: &[&str]) -> Result<()> {
    let exported = futures_util::future::try_join_all(clouds.iter().map(Cloud::export_peer)).await?;
    for (from, text) in clouds.iter().zip(&exported) {
        let file = offer_and_take(text, namespaces).with_context(|| format!("the Peer file of {}", from.name()))?;
        for cloud in clouds.iter().filter(|cloud| cloud.name() != from.name()) {
            files::replace(&cloud.peer_file(from.name()), file.as_bytes())?;
        }
    }
    Ok(())
}

/// Fills the two empty lists of an exported Peer file in.
fn offer_and_take(exported: &str, namespaces: &[&str]) -> Result<String> {
    let list: Vec<String> = namespaces.iter().map(|name| format!("{{namespace: {name}}}")).collect();
    let mut text = exported.to_owned();
    for key in ["export", "import"] {
        let empty = format!("\n  {key}: []\n");
        ensure!(text.contains(&empty), "it has no empty list `{key}`");
        text = text.replacen(&empty, &format!("\n  {key}: [{}]\n", list.join(", ")), 1);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exported_files_are_filled_in() {
        let exported = "kind: Peer\nspec:\n  # What you offer\n  export: []\n  # What you take\n  import: []\n";
        let filled = offer_and_take(exported, &["bookinfo", "shop"]).unwrap();
        assert!(filled.contains("\n  export: [{namespace: bookinfo}, {namespace: shop}]\n"), "{filled}");
        assert!(filled.contains("\n  import: [{namespace: bookinfo}, {namespace: shop}]\n"), "{filled}");
        assert!(offer_and_take("kind: Peer\n", &["bookinfo"]).is_err());
    }
}
