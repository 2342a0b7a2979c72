//! Addresses of single shares of an import, for clients that choose between clouds and versions themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use eastway_model::store::Snapshot;
use eastway_model::{Import, Protocol, routing};
use eastway_xds::resources::AppProtocol;

use super::{Frontend, Plan};
use crate::app::addresses::Purpose;

impl Frontend {
    /// An address for each share that clients of a port may choose: of ports that speak HTTP/2, as gRPC does. The
    /// controller gives out none; where there is none, the gateway chooses, at the address of the whole service.
    pub(super) fn shares(&mut self, plan: &mut Plan, snapshot: &Snapshot, import: Option<&Import>) {
        if self.current.shares.is_none() || self.addresses.is_controllers() {
            return;
        }
        let mut addresses = BTreeMap::new();
        if let Some(import) = import {
            let tcp = import.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
            let http2 = tcp.filter(|port| AppProtocol::of(port) == AppProtocol::Http2);
            let shares = http2.flat_map(|port| routing::remote_shares(snapshot.cluster(), import, port.number));
            // That one of these has none keeps nobody from the service.
            let shortage = plan.shortage;
            for (cluster, subset) in shares.collect::<BTreeSet<_>>() {
                let purpose = Purpose::Share(cluster.clone(), Arc::clone(&subset));
                addresses.insert((cluster, subset), self.allocate(plan, purpose, import));
            }
            plan.shortage = shortage;
        }
        if let Some(shares) = &mut self.current.shares {
            shares.remove(&plan.key);
            shares.extend((!addresses.is_empty()).then(|| (plan.key.clone(), addresses)));
        }
    }
}
