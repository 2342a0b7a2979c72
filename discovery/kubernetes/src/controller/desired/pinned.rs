//! Names of one's own that lead to one cluster: each has an address, and so a derived Service and slices of its own.
//!
//! Which cluster that is the gateways know from their configuration: a port of theirs stands for the name.

use std::collections::BTreeMap;
use std::sync::Arc;

use eastway_model::{ClusterName, Import, ServiceKey};
use serde_json::json;

use super::{Draft, import, slice_labels, with};
use crate::controller::names;
use crate::controller::object::Observed;

/// The cluster that each name leads to, by service. Names are lower case, fully qualified and without a final dot.
pub type Names = BTreeMap<ServiceKey, BTreeMap<Arc<str>, ClusterName>>;

/// Services and slices of the names of an import. A name whose cluster does not offer the service has none.
pub(super) fn names(draft: &mut Draft<'_>, import: &Import) {
    let world = draft.world;
    for (fqdn, cluster) in world.names.get(draft.key).into_iter().flatten() {
        let is_own = cluster == draft.own();
        let Some(part) = import.part((!is_own).then_some(cluster)) else { continue };
        let ports = import::carried(import::named_of(part));
        let name = draft.key.name.as_str();
        let service = names::derived_name(&draft.key.name, fqdn);
        let labels = json!({
            names::MANAGED_BY: names::EASTWAY,
            names::SERVICE: name,
            names::SOURCE_CLUSTER: cluster.as_str(),
        });
        import::derived_service(draft, &service, &labels, &json!({ names::NAME: &**fqdn }), &ports);
        let labels = with(slice_labels(name), names::SOURCE_CLUSTER, cluster.as_str());
        import::gateway_slices(draft, &service, cluster, labels, &ports);
    }
}

/// Whether the derived Service is that of a name.
pub(super) fn is_of_name(service: &Observed) -> bool {
    service.at("/metadata/annotations").get(names::NAME).is_some()
}
