//! Cables and addresses of a lab.
//!
//! ```text
//!   wan ── bridge "wan" 198.51.100.1/24 ──┬──────────────┬───────────── …
//!                                    eth0 │         eth0 │
//!   onprem ── gw 198.51.100.11, 10.244.0.1      gke ── gw 198.51.100.21, 10.244.0.1
//!                │ pod0                               │ pod0
//!             pods 10.244.0.0/16                   pods 10.244.0.0/16      (the same addresses)
//! ```
//!
//! `pods` has routes to its own range and, through its gateway, to the range of virtual addresses; no
//! default route, and no namespace forwards. A pod with a sidecar has a namespace of its own, on the same bridge, in which
//! the virtual addresses are its own host's ([`CloudNet::set_apart`]). On loopback every cloud has `127.<number>.0.0/16` instead.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};

use super::place::Place;
use super::{Isolation, Lab};

/// The bridge that stands for the internet.
const WAN_BRIDGE: &str = "wan";
/// The range of every cloud's pods in namespaces.
pub const POD_RANGE: &str = "10.244.0.0/16";
/// The range of virtual addresses in namespaces.
pub const VIP_RANGE: &str = "242.0.0.0/16";
/// Most replicas of one gateway a lab can hold, by its address plan.
pub const MAX_REPLICAS: u8 = 5;
/// Most pods of one cloud.
pub const MAX_PODS: u8 = 32;
/// Most clouds a lab can hold, by its address plan.
pub const MAX_CLOUDS: u8 = 20;

/// The network of one cloud.
#[derive(Debug)]
pub struct CloudNet {
    name: String,
    number: u8,
    isolation: Isolation,
    pods: Place,
    /// Pods that are not with the others.
    apart: BTreeMap<u8, Place>,
    gateways: Vec<GatewayNet>,
}

/// The network of one gateway replica.
#[derive(Debug)]
pub struct GatewayNet {
    /// Where its process runs.
    pub place: Place,
    /// Its address on the WAN.
    pub wan: IpAddr,
    /// Its address towards the pods.
    pub inside: IpAddr,
    /// The WAN's end of its cable.
    port: String,
    /// What its packet filter drops.
    filter: Mutex<Filter>,
}

#[derive(Debug, Default)]
struct Filter {
    /// Nothing comes in from the WAN but answers.
    no_inbound: bool,
    /// No UDP comes in from the WAN.
    no_udp: bool,
    /// Sources whose packets are dropped.
    blocked: BTreeSet<IpAddr>,
}

/// Makes the bridge.
pub(super) async fn lay_wan(wan: &Place) -> Result<()> {
    let lines = [
        format!("link add {WAN_BRIDGE} type bridge"),
        format!("addr add 198.51.100.1/24 dev {WAN_BRIDGE}"),
        format!("link set {WAN_BRIDGE} up"),
    ];
    wan.ip_batch(&lines).await.context("network of the WAN")
}

impl CloudNet {
    /// Makes the namespaces and cables of a cloud. `number` (1 to [`MAX_CLOUDS`]) must differ between clouds.
    ///
    /// # Errors
    /// The kernel or `ip` refuses.
    pub async fn lay(lab: &Lab, name: &str, number: u8, replicas: u8) -> Result<Self> {
        ensure!((1..=MAX_CLOUDS).contains(&number), "cloud number {number} is not in 1..={MAX_CLOUDS}");
        ensure!((1..=MAX_REPLICAS).contains(&replicas), "{replicas} replicas are not in 1..={MAX_REPLICAS}");
        let isolated = lab.isolation == Isolation::Namespaces;
        let pods = if isolated {
            lay_pods(&format!("{name}/pods")).await?
        } else {
            Place::host(&format!("{name}/pods")).await?
        };
        let mut gateways = Vec::new();
        for replica in 0..replicas {
            let place_name = format!("{name}/gateway-{replica}");
            let place = if isolated { Place::namespace(&place_name).await? } else { Place::host(&place_name).await? };
            let gateway = GatewayNet::plan(lab.isolation, place, number, replica);
            if isolated {
                gateway.connect(lab.wan(), &pods).await.with_context(|| format!("network of {place_name}"))?;
            }
            gateways.push(gateway);
        }
        if let (true, Some(gateway)) = (isolated, gateways.first()) {
            pods.ip(&format!("route add {VIP_RANGE} via {}", gateway.inside)).await?;
        }
        Ok(Self { name: name.to_owned(), number, isolation: lab.isolation, pods, apart: BTreeMap::new(), gateways })
    }

    /// Gives its `n`th pod a namespace of its own, in which a sidecar can listen at virtual addresses.
    ///
    /// # Errors
    /// On loopback there are no namespaces; the kernel or `ip` refuses; it has one already.
    pub async fn set_apart(&mut self, n: u8) -> Result<()> {
        ensure!(self.isolation == Isolation::Namespaces, "there are no namespaces on loopback");
        let name = format!("{}/pod-{n}", self.name);
        let (place, port, address) = (Place::namespace(&name).await?, format!("pod{n}"), self.pod(n));
        self.pods.veth(&port, &place, "eth0").await.with_context(|| format!("network of {name}"))?;
        let outside = [
            format!("addr del {address}/16 dev eth0"),
            format!("link set {port} master eth0"),
            format!("link set {port} up"),
        ];
        let inside = [
            format!("addr add {address}/16 dev eth0"),
            "link set eth0 up".to_owned(),
            format!("route add local {VIP_RANGE} dev lo"),
        ];
        self.pods.ip_batch(&outside).await.with_context(|| format!("network of {name}"))?;
        place.ip_batch(&inside).await.with_context(|| format!("network of {name}"))?;
        self.apart.insert(n, place);
        Ok(())
    }

    /// Where its `n`th pod runs.
    #[must_use]
    pub fn place_of(&self, n: u8) -> &Place {
        self.apart.get(&n).unwrap_or(&self.pods)
    }

    /// Its cloud's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its number in the lab, 1 to [`MAX_CLOUDS`].
    #[must_use]
    pub fn number(&self) -> u8 {
        self.number
    }

    /// Where its workloads run.
    #[must_use]
    pub fn pods(&self) -> &Place {
        &self.pods
    }

    /// Its gateway replicas.
    #[must_use]
    pub fn gateways(&self) -> &[GatewayNet] {
        &self.gateways
    }

    /// The address of its `n`th pod.
    #[must_use]
    pub fn pod(&self, n: u8) -> IpAddr {
        match self.isolation {
            Isolation::Namespaces => IpAddr::V4(Ipv4Addr::new(10, 244, 1, n)),
            Isolation::Loopback => IpAddr::V4(Ipv4Addr::new(127, self.number, 1, n)),
        }
    }

    /// The range its pods' addresses are from.
    #[must_use]
    pub fn pod_range(&self) -> String {
        match self.isolation {
            Isolation::Namespaces => POD_RANGE.to_owned(),
            Isolation::Loopback => format!("127.{}.1.0/24", self.number),
        }
    }

    /// The range of its virtual addresses.
    #[must_use]
    pub fn vip_range(&self) -> String {
        match self.isolation {
            Isolation::Namespaces => VIP_RANGE.to_owned(),
            // A slice of 127.64.0.0/10 for each: all of them are on one host.
            Isolation::Loopback => format!("127.{}.0.0/16", 64 + self.number),
        }
    }

    /// Whether `address` is in [`CloudNet::vip_range`].
    #[must_use]
    pub fn is_vip(&self, address: IpAddr) -> bool {
        let IpAddr::V4(address) = address else { return false };
        let [first, second, ..] = address.octets();
        match self.isolation {
            Isolation::Namespaces => (first, second) == (242, 0),
            Isolation::Loopback => (first, second) == (127, 64 + self.number),
        }
    }

    /// What `ip route` says in the pods' namespace.
    ///
    /// # Errors
    /// `ip` is missing.
    pub async fn routes(&self) -> Result<Vec<String>> {
        Ok(self.pods.ip("route show").await?.lines().map(|line| line.trim().to_owned()).collect())
    }

    /// Why a packet from its pods does not reach `target` by routing; `None`: there is a way.
    ///
    /// # Errors
    /// `ip` is missing.
    pub async fn no_route_to(&self, target: IpAddr) -> Result<Option<String>> {
        match self.pods.ip(&format!("route get {target}")).await {
            Ok(_) => Ok(None),
            Err(error) => {
                let text = format!("{error:#}");
                let said = text.rsplit("RTNETLINK answers: ").next().unwrap_or(&text);
                ensure!(said.contains("unreachable"), "ip route get: {text}");
                Ok(Some(said.trim().to_owned()))
            }
        }
    }

    /// Pulls or plugs the cables of all its gateways.
    ///
    /// # Errors
    /// On loopback there are none.
    pub async fn set_cable(&self, lab: &Lab, plugged: bool) -> Result<()> {
        ensure!(self.isolation == Isolation::Namespaces, "there are no cables on loopback");
        let state = if plugged { "up" } else { "down" };
        for gateway in &self.gateways {
            lab.wan().ip(&format!("link set {} {state}", gateway.port)).await?;
        }
        Ok(())
    }

    /// Drops, from now on, what comes from the gateways of `other`; the other direction stays open.
    ///
    /// # Errors
    /// `nft` is missing or refuses.
    pub async fn block_from(&self, other: &Self) -> Result<()> {
        for gateway in &self.gateways {
            gateway.change_filter(|filter| filter.blocked.extend(other.gateways.iter().map(|other| other.wan))).await?;
        }
        Ok(())
    }

    /// Ends [`CloudNet::block_from`].
    ///
    /// # Errors
    /// `nft` is missing or refuses.
    pub async fn unblock_from(&self, other: &Self) -> Result<()> {
        for gateway in &self.gateways {
            gateway
                .change_filter(|filter| filter.blocked.retain(|ip| !other.gateways.iter().any(|o| o.wan == *ip)))
                .await?;
        }
        Ok(())
    }

    /// Drops UDP that comes from the WAN, or lets it in again.
    ///
    /// # Errors
    /// `nft` is missing or refuses.
    pub async fn set_udp(&self, passes: bool) -> Result<()> {
        for gateway in &self.gateways {
            gateway.change_filter(|filter| filter.no_udp = !passes).await?;
        }
        Ok(())
    }

    /// Lets nothing in from the WAN but answers to what went out.
    ///
    /// # Errors
    /// `nft` is missing or refuses.
    pub async fn forbid_inbound(&self) -> Result<()> {
        for gateway in &self.gateways {
            gateway.change_filter(|filter| filter.no_inbound = true).await?;
        }
        Ok(())
    }

    /// Ends [`CloudNet::forbid_inbound`].
    ///
    /// # Errors
    /// `nft` is missing or refuses.
    pub async fn allow_inbound(&self) -> Result<()> {
        for gateway in &self.gateways {
            gateway.change_filter(|filter| filter.no_inbound = false).await?;
        }
        Ok(())
    }
}

/// The pods' namespace: a bridge of its own, so that several gateway replicas fit on it.
async fn lay_pods(name: &str) -> Result<Place> {
    let pods = Place::namespace(name).await?;
    let mut lines = vec!["link add eth0 type bridge".to_owned()];
    lines.push("addr add 10.244.1.1/16 dev eth0".to_owned());
    lines.extend((2..=MAX_PODS).map(|n| format!("addr add 10.244.1.{n}/16 dev eth0")));
    lines.push("link set eth0 up".to_owned());
    pods.ip_batch(&lines).await.with_context(|| format!("network of {name}"))?;
    Ok(pods)
}

impl GatewayNet {
    fn plan(isolation: Isolation, place: Place, number: u8, replica: u8) -> Self {
        let (wan, inside) = match isolation {
            Isolation::Namespaces => {
                (Ipv4Addr::new(198, 51, 100, 10 * number + replica + 1), Ipv4Addr::new(10, 244, 0, replica + 1))
            }
            Isolation::Loopback => {
                (Ipv4Addr::new(127, number, 2, replica + 1), Ipv4Addr::new(127, number, 0, replica + 1))
            }
        };
        let port = format!("w-{number}-{replica}");
        Self { place, wan: IpAddr::V4(wan), inside: IpAddr::V4(inside), port, filter: Mutex::default() }
    }

    async fn connect(&self, wan: &Place, pods: &Place) -> Result<()> {
        let port = &self.port;
        wan.veth(port, &self.place, "eth0").await?;
        wan.ip_batch(&[format!("link set {port} master {WAN_BRIDGE}"), format!("link set {port} up")]).await?;
        let inner = format!("gw{}", port.rsplit('-').next().unwrap_or("0"));
        pods.veth(&inner, &self.place, "pod0").await?;
        pods.ip_batch(&[format!("link set {inner} master eth0"), format!("link set {inner} up")]).await?;
        let lines = [
            format!("addr add {}/24 dev eth0", self.wan),
            "link set eth0 up".to_owned(),
            format!("addr add {}/16 dev pod0", self.inside),
            "link set pod0 up".to_owned(),
            // Makes the whole range its own, so that virtual addresses can be listened on.
            format!("route add local {VIP_RANGE} dev lo"),
        ];
        self.place.ip_batch(&lines).await
    }

    async fn change_filter(&self, change: impl FnOnce(&mut Filter)) -> Result<()> {
        let script = {
            let mut filter = self.filter.lock().unwrap_or_else(PoisonError::into_inner);
            change(&mut filter);
            filter.script()
        };
        self.place.nft(&script).await.with_context(|| format!("packet filter of {}", self.place.name()))
    }
}

impl Filter {
    /// Replaces the table in one transaction.
    fn script(&self) -> String {
        let mut rules = String::new();
        for source in &self.blocked {
            rules.push_str(&format!("    iifname \"eth0\" ip saddr {source} drop\n"));
        }
        if self.no_udp {
            rules.push_str("    iifname \"eth0\" meta l4proto udp drop\n");
        }
        if self.no_inbound {
            rules.push_str("    iifname \"eth0\" ct state established,related accept\n    iifname \"eth0\" drop\n");
        }
        format!(
            "table inet lab\ndelete table inet lab\ntable inet lab {{\n  chain incoming {{\n    type filter hook input priority 0; policy accept;\n{rules}  }}\n}}"
        )
    }
}
