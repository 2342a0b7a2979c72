//! Clouds that have been introduced to each other, with services and clients in them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use eastway::admin::views::{LinkView, PeerView};
use eastway::demo::names;
use serde_json::{Value, json};

use crate::lab::Lab;
use crate::lab::cloud::{Cloud, CloudSpec};
use crate::lab::files::{self, LINK_PORT, ServiceSpec};
use crate::lab::place::Place;
use crate::load::{self, Load, Plan};
use crate::relay::Relay;
use crate::servers::{Habit, Server};
use crate::until::{eventually, within};

/// Namespace of every service.
pub const NAMESPACE: &str = "shop";
/// Port of every service.
pub const PORT: u16 = 8080;
/// Which pod of each cloud clients run on.
const CLIENT_POD: u8 = 20;
/// Host number of the first relay on the WAN's bridge.
const FIRST_RELAY_PORT: u16 = 20_000;
/// Longest orderly stop of a gateway at the end of a test.
const STOP: Duration = Duration::from_secs(10);

/// What a mesh is made from.
#[derive(Debug, Default)]
pub struct MeshBuilder {
    clouds: Vec<CloudSpec>,
    relays: Vec<(String, String, u64)>,
    /// (from, to): the Peer file has a host name.
    named: Vec<(String, String)>,
    peer_changes: BTreeMap<(String, String), Value>,
    strangers: Vec<(String, String)>,
}

/// Running clouds. Dropped without [`Mesh::stop`], by a test that fails, it prints the logs.
#[derive(Debug)]
pub struct Mesh {
    lab: Lab,
    clouds: Vec<Cloud>,
    relays: BTreeMap<(String, String), Relay>,
    services: BTreeMap<String, Vec<ServiceSpec>>,
    names: BTreeMap<String, IpAddr>,
    stopped: bool,
}

impl MeshBuilder {
    /// Clouds of these names, each with one gateway, all introduced to all.
    #[must_use]
    pub fn of(names: &[&str]) -> Self {
        let clouds = names.iter().zip(1..).map(|(name, number)| CloudSpec::new(name, number)).collect();
        Self { clouds, ..Self::default() }
    }

    fn spec(&mut self, cloud: &str) -> &mut CloudSpec {
        self.clouds.iter_mut().find(|spec| spec.name == cloud).expect("a cloud of this mesh")
    }

    /// Gives a cloud several gateway replicas.
    #[must_use]
    pub fn replicas(mut self, cloud: &str, replicas: u8) -> Self {
        self.spec(cloud).replicas = replicas;
        self
    }

    /// No peer knows an address of this cloud.
    #[must_use]
    pub fn private(mut self, cloud: &str) -> Self {
        self.spec(cloud).inbound = false;
        self
    }

    /// Changes a cloud's main files.
    #[must_use]
    pub fn settings(mut self, cloud: &str, changes: &Value) -> Self {
        files::merge(&mut self.spec(cloud).settings, changes);
        self
    }

    /// `from` reaches `to` through a relay only, and `to` knows no address of `from`: every packet
    /// between the two goes through that one relay.
    #[must_use]
    pub fn relay(mut self, from: &str, to: &str, seed: u64) -> Self {
        self.relays.push((from.to_owned(), to.to_owned(), seed));
        self
    }

    /// The Peer file of `from` names `to` by a host name, `gw.<to>.test`, and `to` knows no address of `from`.
    #[must_use]
    pub fn named(mut self, from: &str, to: &str) -> Self {
        self.named.push((from.to_owned(), to.to_owned()));
        self
    }

    /// Changes the Peer file that `from` has for `to`.
    #[must_use]
    pub fn peer(mut self, from: &str, to: &str, changes: &Value) -> Self {
        let value = self.peer_changes.entry((from.to_owned(), to.to_owned())).or_default();
        files::merge(value, changes);
        self
    }

    /// The two are not introduced.
    #[must_use]
    pub fn strangers(mut self, one: &str, other: &str) -> Self {
        self.strangers.push((one.to_owned(), other.to_owned()));
        self
    }

    /// Makes networks, CAs and files, and starts the CA processes; no gateway runs yet.
    ///
    /// # Errors
    /// Not in a lab, or something cannot be made.
    pub async fn prepare(self) -> Result<Mesh> {
        let lab = Lab::in_namespaces(&crate::binary()).await?;
        let mut clouds = Vec::new();
        for spec in &self.clouds {
            clouds.push(Cloud::prepare(&lab, spec.clone()).await?);
        }
        let mut relays = BTreeMap::new();
        for ((from, to, seed), port) in self.relays.iter().zip(FIRST_RELAY_PORT..) {
            let target = clouds.iter().find(|cloud| cloud.name() == to).context("no such cloud")?;
            let target = SocketAddr::new(target.net().gateways()[0].wan, LINK_PORT);
            let listen = SocketAddr::from(([198, 51, 100, 1], port));
            relays.insert((from.clone(), to.clone()), Relay::start(lab.wan(), listen, target, *seed).await?);
        }
        let mesh = Mesh { lab, clouds, relays, services: BTreeMap::new(), names: BTreeMap::new(), stopped: false };
        self.introduce(mesh).await
    }

    async fn introduce(self, mut mesh: Mesh) -> Result<Mesh> {
        for (from, to) in self.pairs() {
            mesh.cloud(&from).write_peer(&to, &self.peer_file(&mesh, &from, &to))?;
        }
        let everyone: Vec<(&str, &str)> = self.clouds.iter().map(|spec| (spec.name.as_str(), "*")).collect();
        for spec in &self.clouds {
            let policy = files::access_policy(NAMESPACE, "everyone", &["*"], &everyone);
            mesh.cloud(&spec.name).write_policy("everyone", &policy)?;
            mesh.change_services(&spec.name, |_| {})?;
        }
        for (_, to) in &self.named {
            let address = mesh.cloud(to).net().gateways()[0].wan;
            mesh.names.insert(host_name(to), address);
        }
        mesh.publish_names()?;
        for cloud in &mut mesh.clouds {
            cloud.start_ca().await?;
        }
        Ok(mesh)
    }

    /// Every (from, to) that has a Peer file.
    fn pairs(&self) -> Vec<(String, String)> {
        let names: Vec<&String> = self.clouds.iter().map(|spec| &spec.name).collect();
        let stranger = |a: &String, b: &String| {
            self.strangers.iter().any(|(one, other)| (one == a && other == b) || (one == b && other == a))
        };
        let mut pairs = Vec::new();
        for from in &names {
            let others = names.iter().filter(|to| *to != from && !stranger(from, to));
            pairs.extend(others.map(|to| ((*from).clone(), (*to).clone())));
        }
        pairs
    }

    fn peer_file(&self, mesh: &Mesh, from: &str, to: &str) -> Value {
        let one_way = |pairs: &[(String, String)]| pairs.iter().any(|(a, b)| a == to && b == from);
        let relays: Vec<(String, String)> = self.relays.iter().map(|(a, b, _)| (a.clone(), b.clone())).collect();
        let target = mesh.cloud(to);
        let addresses = if let Some(relay) = mesh.relays.get(&(from.to_owned(), to.to_owned())) {
            vec![relay.address().to_string()]
        } else if self.named.iter().any(|(a, b)| a == from && b == to) {
            vec![format!("{}:{LINK_PORT}", host_name(to))]
        } else if one_way(&relays) || one_way(&self.named) {
            Vec::new()
        } else {
            target.advertised()
        };
        let mut file = files::peer(to, &addresses, target.pin(), &[NAMESPACE]);
        if let Some(changes) = self.peer_changes.get(&(from.to_owned(), to.to_owned())) {
            files::merge(&mut file, changes);
        }
        file
    }

    /// [`MeshBuilder::prepare`], then starts every gateway and waits until all links are up.
    ///
    /// # Errors
    /// As there, or a gateway does not come up.
    pub async fn start(self) -> Result<Mesh> {
        let pairs = self.pairs();
        let mut mesh = self.prepare().await?;
        mesh.start_gateways().await?;
        for (from, to) in pairs {
            mesh.wait_up(&from, &to, Duration::from_secs(10)).await?;
        }
        Ok(mesh)
    }
}

fn host_name(cloud: &str) -> String {
    format!("gw.{cloud}.test")
}

impl Mesh {
    /// The lab it is in.
    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// A cloud.
    #[must_use]
    pub fn cloud(&self, name: &str) -> &Cloud {
        self.clouds.iter().find(|cloud| cloud.name() == name).expect("a cloud of this mesh")
    }

    /// A cloud, to change it.
    #[must_use]
    pub fn cloud_mut(&mut self, name: &str) -> &mut Cloud {
        self.clouds.iter_mut().find(|cloud| cloud.name() == name).expect("a cloud of this mesh")
    }

    /// The relay that `from` reaches `to` through.
    #[must_use]
    pub fn relay(&self, from: &str, to: &str) -> &Relay {
        self.relays.get(&(from.to_owned(), to.to_owned())).expect("a relay of this mesh")
    }

    /// Where clients of a cloud run, and their address.
    #[must_use]
    pub fn client(&self, cloud: &str) -> (Place, IpAddr) {
        let net = self.cloud(cloud).net();
        (net.pods().clone(), net.pod(CLIENT_POD))
    }

    /// Starts every gateway that does not run and waits until all are ready.
    ///
    /// # Errors
    /// One does not get ready.
    pub async fn start_gateways(&mut self) -> Result<()> {
        for cloud in &mut self.clouds {
            for replica in 0..cloud.net().gateways().len() {
                if cloud.gateway(replica).is_err() {
                    cloud.start_gateway(replica).await?;
                }
            }
        }
        for cloud in &mut self.clouds {
            for replica in 0..cloud.net().gateways().len() {
                cloud.wait_ready(replica).await?;
            }
        }
        Ok(())
    }

    /// Waits until every replica of `from` has a live link to `to`.
    ///
    /// # Errors
    /// Not within `patience`.
    pub async fn wait_up(&self, from: &str, to: &str, patience: Duration) -> Result<Duration> {
        let cloud = self.cloud(from);
        within(patience, format!("{from} sees {to} up"), async || {
            for replica in 0..cloud.net().gateways().len() {
                if !cloud.is_up(replica, to).await? {
                    return Ok(false);
                }
            }
            Ok(true)
        })
        .await
    }

    /// Waits until the first replica of `from` has one link to `to` and that one is of QUIC, and gives it: where both dial, or TCP
    /// was quicker, another one goes first.
    ///
    /// # Errors
    /// It does not come to that in 20 s.
    pub async fn settled(&self, from: &str, to: &str) -> Result<LinkView> {
        within(Duration::from_secs(20), format!("{from} has one link to {to}"), async || {
            let links = self.peer(from, to).await?.links;
            Ok(links.len() == 1 && links.iter().all(|link| link.transport == "quic"))
        })
        .await?;
        self.peer(from, to).await?.links.pop().context("a link")
    }

    /// Fails unless `before` is still the only link of the first replica of `from` to `to`, but for one by TCP that is kept
    /// beside for what moves much.
    ///
    /// # Errors
    /// It is not, or the gateway does not answer.
    pub async fn same_link(&self, from: &str, to: &str, before: &LinkView) -> Result<()> {
        let mut links = self.peer(from, to).await?.links;
        links.retain(|link| link.role == "whole");
        let same = links.iter().all(|link| link.replica == before.replica && link.since == before.since);
        ensure!(links.len() == 1 && same, "the link was replaced: {before:?} {links:?}");
        Ok(())
    }

    /// Waits until the first replica of `from` says that `to` is down.
    ///
    /// # Errors
    /// Not within `patience`.
    pub async fn wait_down(&self, from: &str, to: &str, patience: Duration) -> Result<Duration> {
        let cloud = self.cloud(from);
        within(patience, format!("{from} sees {to} down"), async || Ok(!cloud.is_up(0, to).await?)).await
    }

    /// What the first replica of `from` says about `to`.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn peer(&self, from: &str, to: &str) -> Result<PeerView> {
        self.cloud(from).peer(0, to).await
    }

    /// Starts a server on a pod and adds it as an endpoint of `service`, which it makes if need be.
    ///
    /// # Errors
    /// The address is taken, or the file cannot be written.
    pub async fn serve(&mut self, cloud: &str, service: &str, pod: u8, habit: Habit) -> Result<Server> {
        let net = self.cloud(cloud).net();
        let address = SocketAddr::new(net.pod(pod), PORT);
        let server = Server::start(net.pods(), address, &format!("{cloud}-{pod}"), habit).await?;
        self.change_services(cloud, |services| {
            let known = services.iter().position(|spec| spec.name == service);
            let spec = known.map_or_else(|| ServiceSpec::new(NAMESPACE, service, PORT), |index| services.remove(index));
            services.push(spec.endpoint(address.ip(), "v1"));
        })?;
        Ok(server)
    }

    /// Changes what a cloud's registry says.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn change_services(&mut self, cloud: &str, change: impl FnOnce(&mut Vec<ServiceSpec>)) -> Result<()> {
        let services = self.services.entry(cloud.to_owned()).or_default();
        change(services);
        services.sort_by(|a, b| a.name.cmp(&b.name));
        let services = services.clone();
        let (_, client) = self.client(cloud);
        self.cloud(cloud).write_services(&services, &[(client, NAMESPACE, "client")])
    }

    /// Points the WAN's host name of `cloud` somewhere else.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn move_name(&mut self, cloud: &str, address: IpAddr) -> Result<()> {
        self.names.insert(host_name(cloud), address);
        self.publish_names()
    }

    fn publish_names(&self) -> Result<()> {
        let names: Vec<(&str, IpAddr)> = self.names.iter().map(|(name, address)| (name.as_str(), *address)).collect();
        self.lab.set_hosts(&names)
    }

    /// Looks a service up at a cloud's own DNS, from its pods.
    ///
    /// # Errors
    /// It has no address.
    pub async fn resolve(&self, cloud: &str, service: &str) -> Result<IpAddr> {
        let name = format!("{service}.{NAMESPACE}.svc.clusterset.local");
        let server = self.cloud(cloud).dns(0)?;
        self.cloud(cloud).net().pods().run(async move { names::address_of(server, &name).await }).await
    }

    /// Waits until a service has an address in a cloud, and gives it with the port.
    ///
    /// # Errors
    /// It gets none.
    pub async fn target(&self, cloud: &str, service: &str) -> Result<SocketAddr> {
        eventually(format!("{cloud} resolves {service}"), async || self.resolve(cloud, service).await.map(|_| true))
            .await?;
        let address = self.resolve(cloud, service).await?;
        ensure!(self.cloud(cloud).net().is_vip(address), "{address} is not a virtual address of {cloud}");
        Ok(SocketAddr::new(address, PORT))
    }

    /// One request from a cloud's client to `target`; gives the name of the server.
    ///
    /// # Errors
    /// It is not answered in full within [`load::PATIENCE`].
    pub async fn ask(&self, cloud: &str, target: SocketAddr) -> Result<String> {
        let (place, source) = self.client(cloud);
        place.run(async move { load::ask_once(source, target, 1000).await }).await
    }

    /// Waits until a request from a cloud's client is answered by `server`.
    ///
    /// # Errors
    /// It is not within `patience`.
    pub async fn wait_answer(
        &self,
        cloud: &str,
        target: SocketAddr,
        server: &str,
        patience: Duration,
    ) -> Result<Duration> {
        within(patience, format!("{cloud} gets {target} from {server}"), async || {
            let answer = self.ask(cloud, target).await?;
            ensure!(answer == server, "answered by {answer}");
            Ok(true)
        })
        .await
    }

    /// Loads `target` from a cloud's client with `rate` requests per second.
    #[must_use]
    pub fn load(&self, cloud: &str, target: SocketAddr, rate: u32) -> Load {
        let (place, source) = self.client(cloud);
        Load::start(&place, Plan { source, target, rate, size: 2000 })
    }

    /// Names of the services that a cloud imports from `peer`, as its admin port shows them.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn imports(&self, cloud: &str, peer: &str) -> Result<Vec<String>> {
        let answer: Value = self.cloud(cloud).admin(0, "/services").await?;
        let items = answer.get("items").and_then(Value::as_array).context("no items")?;
        let from_peer = |item: &&Value| {
            let parts = item.get("parts").and_then(Value::as_array);
            parts.is_some_and(|parts| parts.iter().any(|part| part.get("cluster") == Some(&json!(peer))))
        };
        let named = items.iter().filter(from_peer).filter_map(|item| item.get("name").and_then(Value::as_str));
        Ok(named.map(str::to_owned).collect())
    }

    /// Ends everything in order. Each test's last step.
    ///
    /// # Errors
    /// A gateway did not end in time.
    pub async fn stop(mut self) -> Result<()> {
        for cloud in &mut self.clouds {
            cloud.stop(STOP).await?;
        }
        self.stopped = true;
        Ok(())
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if !self.stopped {
            for cloud in &self.clouds {
                println!("{}", cloud.logs());
            }
        }
    }
}
