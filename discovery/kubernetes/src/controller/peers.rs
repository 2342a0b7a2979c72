//! What the API says about clusters: the status of Peer objects, a Lease per cluster that can be reached, and the name
//! of this one.
//!
//! The Lease is what KEP-1645 asks for: other controllers see by it whether a cluster's endpoints can be believed. Ours
//! do not go with it; they stay until `withdrawAfter` (invariant I4).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use eastway_model::store::{PeerView, Reader, Snapshot};
use eastway_model::{ClusterName, PeerState};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::difference::same;
use super::names;
use super::object::{Condition, Observed};
use super::property;
use super::reconcile::Feed;
use crate::client;
use crate::lease::REQUEST;
use crate::types::eastway::Peer;
use crate::watch::{Difference, Selection, Watch};

/// How often Leases are renewed.
const RENEWAL: Duration = Duration::from_secs(10);
/// How long one lasts: three renewals may be lost.
const LASTS: Duration = Duration::from_secs(40);
/// How long a feed may be away before it is said: a gateway that is replaced is no news.
const GRACE: Duration = Duration::from_secs(15);
/// Pause after something failed.
const RETRY: Duration = Duration::from_secs(5);

/// What is followed.
pub struct Inputs {
    /// The store.
    pub reader: Reader,
    /// How the feed is doing.
    pub feed: watch::Receiver<Feed>,
    /// This replica writes.
    pub leading: watch::Receiver<bool>,
    /// Eastway's own namespace, for the Leases.
    pub namespace: String,
}

/// Writes what there is to say until `stop`.
pub async fn run(client: Client, mut inputs: Inputs, stop: CancellationToken) {
    let mut watch = Watch::<Value>::new(client.clone(), Selection::all::<Peer>());
    let mut objects: BTreeMap<String, Arc<Value>> = BTreeMap::new();
    let mut due = Instant::now();
    let writer = Writer { client, namespace: inputs.namespace.clone() };
    let mut failing = false;
    let mut away = None;
    let mut named = false;
    loop {
        let changed = tokio::select! {
            () = stop.cancelled() => return,
            differences = watch.next() => {
                for difference in differences {
                    match difference {
                        Difference::Set(name, object) => _ = objects.insert(name.name.to_string(), object),
                        Difference::Gone(name) => _ = objects.remove(&*name.name),
                    }
                }
                true
            }
            changed = inputs.reader.changed() => changed.is_ok(),
            changed = inputs.feed.changed() => changed.is_ok(),
            changed = inputs.leading.changed() => changed.is_ok(),
            () = sleep_until(due) => true,
        };
        if !changed {
            return;
        }
        let feed = *inputs.feed.borrow_and_update();
        let now = Instant::now();
        away = if feed.connected && feed.peers_known { None } else { away.or(Some(now)) };
        if !*inputs.leading.borrow_and_update() {
            (due, named) = (now + RENEWAL, false);
            continue;
        }
        let snapshot = inputs.reader.load_full();
        let mut result = match away {
            Some(since) if now < since + GRACE => Ok(()),
            _ => writer.statuses(&snapshot, feed, &mut objects).await,
        };
        if Instant::now() >= due {
            due = Instant::now() + RENEWAL;
            result = result.and(writer.leases(&snapshot, feed).await);
            if !named {
                let written = property::write(&writer.client, snapshot.cluster()).await;
                named = written.is_ok();
                result = result.and(written);
            }
        }
        match result {
            Ok(()) => failing = false,
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    warn!(error, "controller: what is known of peers cannot be written");
                }
                due = due.min(Instant::now() + RETRY.mul_f64(0.5 + 0.5 * fastrand::f64()));
            }
        }
    }
}

struct Writer {
    client: Client,
    namespace: String,
}

impl Writer {
    /// Writes the status of all Peers that do not have the right one.
    async fn statuses(
        &self,
        snapshot: &Snapshot,
        feed: Feed,
        objects: &mut BTreeMap<String, Arc<Value>>,
    ) -> Result<(), String> {
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &ApiResource::erase::<Peer>(&()));
        let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default().to_string();
        let mut result = Ok(());
        for (name, object) in objects {
            let observed = Observed::new(Value::clone(object));
            let view = snapshot.peer(name);
            let status = status(view, feed, &observed, &now);
            if same(observed.at("/status"), &status) {
                continue;
            }
            let body = json!({
                "apiVersion": "eastway.dev/v1alpha1", "kind": "Peer", "metadata": { "name": name }, "status": status,
            });
            let params = PatchParams::apply(names::MANAGER).force();
            match timeout(REQUEST, api.patch_status(name, &params, &Patch::Apply(&body))).await {
                // The watch tells the same; until it does this is not written again.
                Ok(Ok(written)) => *object = Arc::new(serde_json::to_value(written).unwrap_or_default()),
                Ok(Err(kube::Error::Api(status))) if status.code == 404 => debug!(peer = name, "gone"),
                Ok(Err(error)) => result = Err(error.to_string()),
                Err(_) => result = Err("no answer in time".to_owned()),
            }
        }
        result
    }

    /// Renews the Leases of clusters that can be reached, and removes those of clusters that are no peers any more.
    async fn leases(&self, snapshot: &Snapshot, feed: Feed) -> Result<(), String> {
        // Whether a peer can be reached is known while a gateway says so.
        if !feed.peers_known || !feed.connected {
            return Ok(());
        }
        let api = client::objects::<Lease>(&self.client, &self.namespace);
        let mut result = Ok(());
        for peer in snapshot.peers().filter(|peer| peer.configured && peer.state == PeerState::Up) {
            let name = names::cluster_lease(&peer.name);
            let body = lease(&self.namespace, &peer.name, Timestamp::now());
            let params = PatchParams::apply(names::MANAGER).force();
            match timeout(REQUEST, api.patch(&name, &params, &Patch::Apply(&body))).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => result = Err(error.to_string()),
                Err(_) => result = Err("no answer in time".to_owned()),
            }
        }
        let ours = ListParams::default().labels(&format!("{}={}", names::MANAGED_BY, names::EASTWAY));
        let found = timeout(REQUEST, api.list(&ours)).await.map_err(|_| "no answer in time".to_owned())?;
        for lease in found.map_err(|error| error.to_string())? {
            let labels = lease.metadata.labels.unwrap_or_default();
            let (Some(cluster), Some(name)) = (labels.get(names::SOURCE_CLUSTER), lease.metadata.name) else {
                continue;
            };
            if snapshot.peer(cluster).is_none_or(|peer| !peer.configured) {
                let deleted = timeout(REQUEST, api.delete(&name, &DeleteParams::default())).await;
                debug!(cluster, gone = matches!(deleted, Ok(Ok(_))), "the Lease of a removed peer");
            }
        }
        result
    }
}

fn lease(namespace: &str, cluster: &ClusterName, now: Timestamp) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": names::cluster_lease(cluster),
            "namespace": namespace,
            "labels": { names::MANAGED_BY: names::EASTWAY, names::SOURCE_CLUSTER: cluster.as_str() },
        },
        "spec": {
            "holderIdentity": cluster.as_str(),
            "leaseDurationSeconds": LASTS.as_secs(),
            // Microseconds, always six digits: what the API calls MicroTime.
            "renewTime": format!("{now:.6}"),
        },
    })
}

/// The status of a Peer object. `view`: what the store knows of it.
fn status(view: Option<&PeerView>, feed: Feed, observed: &Observed, now: &str) -> Value {
    let view = view.filter(|view| view.configured);
    let conditions = Condition::list(&conditions(view, feed), observed, now);
    json!({ "conditions": conditions, "importedServices": view.map_or(0, |view| view.services) })
}

fn conditions(view: Option<&PeerView>, feed: Feed) -> Vec<Condition> {
    if !feed.peers_known || !feed.connected {
        let why = "no gateway of this cluster can be asked at the moment";
        return ["Accepted", "Connected", "Synced", "Ready"]
            .map(|kind| Condition::unknown(kind, "GatewayUnreachable", why))
            .into();
    }
    let Some(view) = view else {
        let why = "the gateways have not taken this Peer over: a mistake in it is in their log and metrics";
        return vec![
            Condition::new("Accepted", false, "NotTaken", why),
            Condition::new("Connected", false, "NotAccepted", "it is not accepted"),
            Condition::new("Synced", false, "NotAccepted", "it is not accepted"),
            Condition::new("Ready", false, "NotAccepted", why),
        ];
    };
    let accepted = Condition::new("Accepted", true, "Accepted", "the gateways accept links of it and dial it");
    let (up, reason, message) = match view.state {
        PeerState::Up => (true, "Connected", "a link acknowledged something within the last 5 s".to_owned()),
        PeerState::Down { .. } => (
            false,
            "Down",
            "no link: its services are served as they were last known; eastway check says what is in the way"
                .to_owned(),
        ),
        PeerState::Unknown => (
            false,
            "NeverConnected",
            "no link since the gateway's start: eastway check says what is in the way".to_owned(),
        ),
    };
    let connected = Condition::new("Connected", up, reason, message.clone());
    let synced = if view.synced {
        Condition::new("Synced", true, "Synced", "all that it exports to this cluster is known")
    } else {
        Condition::new("Synced", false, "Pending", "it has not told yet what it exports")
    };
    let ready = match (up, view.synced) {
        (true, true) => Condition::new("Ready", true, "Ready", "connected, and its exports are known"),
        (true, false) => Condition::new("Ready", false, "Pending", "connected; it has not told yet what it exports"),
        (false, _) => Condition::new("Ready", false, reason, message),
    };
    vec![accepted, connected, synced, ready]
}

#[cfg(test)]
mod tests {
    use eastway_model::{Label, UnixMillis};

    use super::*;

    const FEED: Feed = Feed { connected: true, peers_known: true };

    fn view(state: PeerState, synced: bool) -> PeerView {
        let name = Label::parse("gke").unwrap();
        PeerView { name, configured: true, state, synced, services: 3, endpoints: 0, withdraw_at: None }
    }

    fn states(status: &Value) -> Vec<(String, String, String)> {
        let text = |condition: &Value, key: &str| condition[key].as_str().unwrap().to_owned();
        let conditions = status["conditions"].as_array().unwrap().iter();
        conditions.map(|it| (text(it, "type"), text(it, "status"), text(it, "reason"))).collect()
    }

    #[test]
    fn a_peer_says_how_it_is() {
        let of = |view: Option<&PeerView>, feed| {
            let all = states(&status(view, feed, &Observed::default(), "now"));
            all.into_iter()
                .map(|(kind, status, reason)| format!("{kind}={status}/{reason}"))
                .collect::<Vec<_>>()
                .join(" ")
        };
        let lost = PeerState::Down { since: UnixMillis(1) };
        assert_eq!(
            of(Some(&view(PeerState::Up, true)), FEED),
            "Accepted=True/Accepted Connected=True/Connected Synced=True/Synced Ready=True/Ready"
        );
        assert_eq!(
            of(Some(&view(lost, true)), FEED),
            "Accepted=True/Accepted Connected=False/Down Synced=True/Synced Ready=False/Down"
        );
        assert_eq!(
            of(Some(&view(PeerState::Unknown, false)), FEED),
            "Accepted=True/Accepted Connected=False/NeverConnected Synced=False/Pending Ready=False/NeverConnected"
        );
        assert_eq!(
            of(None, FEED),
            "Accepted=False/NotTaken Connected=False/NotAccepted Synced=False/NotAccepted Ready=False/NotAccepted"
        );
        assert!(of(None, Feed { connected: false, ..FEED }).starts_with("Accepted=Unknown/GatewayUnreachable"));
    }

    #[test]
    fn a_lease_has_the_time_that_the_api_wants() {
        let lease = lease("eastway-system", &Label::parse("gke").unwrap(), Timestamp::UNIX_EPOCH);
        assert_eq!(lease["spec"]["renewTime"], "1970-01-01T00:00:00.000000Z");
        let parsed: Lease = serde_json::from_value(lease).unwrap();
        assert_eq!(parsed.spec.unwrap().lease_duration_seconds, Some(40));
    }
}
