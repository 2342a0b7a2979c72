//! What the API says about clusters: the status of Peer objects, a Lease per cluster that can be reached, and the name
//! of this one.
//!
//! The Lease is what KEP-1645 asks for: other controllers see by it whether a cluster's endpoints can be believed. Ours
//! do not go with it; they stay until `withdrawAfter` (invariant I4).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use eastway_model::store::{PeerView, Reader, Snapshot};
use eastway_model::{ClusterName, PeerState};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Map, Value, json};
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

/// How far apart two accounts of one moment may be: it is told as how long ago it was.
const SAME_MOMENT: i64 = 3;

/// How the links to one peer are, all together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Links {
    /// Since when it is up, or not.
    pub since: SystemTime,
    /// What carries the best one, `udp` or `tcp`; `None`: there is none.
    pub path: Option<&'static str>,
    /// Smoothed round trip time of the best one; zero without one.
    pub rtt: Duration,
    /// Services of this cluster that the peer may see.
    pub exported: u64,
}

/// What is known of links, by peer.
pub type AllLinks = Arc<BTreeMap<ClusterName, Links>>;

/// Why Peer objects cannot be used, by name; those that can are not in it.
pub type Mistakes = Arc<BTreeMap<String, String>>;

/// What is followed.
pub struct Inputs {
    /// The store.
    pub reader: Reader,
    /// How the feed is doing.
    pub feed: watch::Receiver<Feed>,
    /// What is known of links.
    pub links: watch::Receiver<AllLinks>,
    /// What is wrong with Peer objects.
    pub mistakes: watch::Receiver<Mistakes>,
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
            changed = inputs.links.changed() => changed.is_ok(),
            changed = inputs.mistakes.changed() => changed.is_ok(),
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
        let (links, mistakes) = (inputs.links.borrow_and_update().clone(), inputs.mistakes.borrow_and_update().clone());
        let known = Known { snapshot: &snapshot, feed, links: &links, mistakes: &mistakes };
        let mut result = match away {
            Some(since) if now < since + GRACE => Ok(()),
            _ => writer.statuses(&known, &mut objects).await,
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

/// What there is to say.
struct Known<'a> {
    snapshot: &'a Snapshot,
    feed: Feed,
    links: &'a BTreeMap<ClusterName, Links>,
    mistakes: &'a BTreeMap<String, String>,
}

impl<'a> Known<'a> {
    fn of(&self, name: &str) -> About<'a> {
        let view = self.snapshot.peer(name).filter(|view| view.configured);
        let links = view.and_then(|view| self.links.get(&view.name));
        About { view, feed: self.feed, links, mistake: self.mistakes.get(name).map(String::as_str) }
    }
}

/// What there is to say about one Peer.
#[derive(Clone, Copy)]
struct About<'a> {
    /// What the store knows, if the gateways have it.
    view: Option<&'a PeerView>,
    feed: Feed,
    links: Option<&'a Links>,
    mistake: Option<&'a str>,
}

struct Writer {
    client: Client,
    namespace: String,
}

impl Writer {
    /// Writes the status of all Peers that do not have the right one.
    async fn statuses(&self, known: &Known<'_>, objects: &mut BTreeMap<String, Arc<Value>>) -> Result<(), String> {
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &ApiResource::erase::<Peer>(&()));
        let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default().to_string();
        let mut result = Ok(());
        for (name, object) in objects {
            let observed = Observed::new(Value::clone(object));
            let status = status(&known.of(name), &observed, &now);
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

/// The status of a Peer object.
fn status(about: &About<'_>, observed: &Observed, now: &str) -> Value {
    let mut status = Map::new();
    if let Some(generation) = observed.at("/metadata/generation").as_i64() {
        status.insert("observedGeneration".to_owned(), generation.into());
    }
    status.insert("conditions".to_owned(), Condition::list(&conditions(about), observed, now));
    status.insert("importedServices".to_owned(), about.view.map_or(0, |view| view.services).into());
    if let Some(links) = about.links {
        status.insert("exportedServices".to_owned(), links.exported.into());
        status.insert("link".to_owned(), link(links, observed));
    }
    Value::Object(status)
}

fn link(links: &Links, observed: &Observed) -> Value {
    let before = Some(observed).filter(|it| it.at("/status/link/path").is_null() == links.path.is_none());
    let before = before.and_then(|it| it.text("/status/link/since").parse::<Timestamp>().ok());
    let since = Timestamp::try_from(links.since).unwrap_or_default().as_second();
    // The same moment is not written anew because it took another while to tell.
    let since =
        before.map(Timestamp::as_second).filter(|before| (before - since).abs() <= SAME_MOMENT).unwrap_or(since);
    let since = Timestamp::from_second(since).unwrap_or_default().to_string();
    match links.path {
        Some(path) => json!({ "since": since, "path": path, "roundTrip": round_trip(links.rtt) }),
        None => json!({ "since": since }),
    }
}

/// Two digits that mean something: more would be news all the time.
fn round_trip(rtt: Duration) -> String {
    let millis = rtt.as_secs_f64() * 1e3;
    let decimals = if millis < 1.0 { 2 } else { usize::from(millis < 10.0) };
    format!("{millis:.decimals$}ms")
}

fn conditions(about: &About<'_>) -> Vec<Condition> {
    let About { view, feed, mistake, .. } = *about;
    if !feed.peers_known || !feed.connected {
        let why = "no gateway of this cluster can be asked at the moment";
        return ["Accepted", "Connected", "Synced", "Ready"]
            .map(|kind| Condition::unknown(kind, "GatewayUnreachable", why))
            .into();
    }
    let Some(view) = view else {
        let (reason, why) = match mistake {
            Some(mistake) => ("Invalid", mistake),
            None => ("NotTaken", "the gateways have not taken this Peer over yet"),
        };
        return vec![
            Condition::new("Accepted", false, reason, why),
            Condition::new("Connected", false, "NotAccepted", "it is not accepted"),
            Condition::new("Synced", false, "NotAccepted", "it is not accepted"),
            Condition::new("Ready", false, "NotAccepted", why),
        ];
    };
    let accepted = match mistake {
        Some(mistake) => Condition::new("Accepted", false, "Invalid", mistake),
        None => Condition::new("Accepted", true, "Accepted", "the gateways accept links of it and dial it"),
    };
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

    fn about(view: Option<&PeerView>) -> About<'_> {
        About { view, feed: FEED, links: None, mistake: None }
    }

    /// Types, statuses and reasons.
    fn of(about: &About<'_>) -> String {
        let status = status(about, &Observed::default(), "now");
        let text = |condition: &Value, key: &str| condition[key].as_str().unwrap().to_owned();
        let one = |it: &Value| format!("{}={}/{}", text(it, "type"), text(it, "status"), text(it, "reason"));
        status["conditions"].as_array().unwrap().iter().map(one).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_peer_says_how_it_is() {
        let lost = PeerState::Down { since: UnixMillis(1) };
        let (up, down) = (view(PeerState::Up, true), view(lost, true));
        assert_eq!(
            of(&about(Some(&up))),
            "Accepted=True/Accepted Connected=True/Connected Synced=True/Synced Ready=True/Ready"
        );
        assert_eq!(
            of(&about(Some(&down))),
            "Accepted=True/Accepted Connected=False/Down Synced=True/Synced Ready=False/Down"
        );
        assert_eq!(
            of(&about(Some(&view(PeerState::Unknown, false)))),
            "Accepted=True/Accepted Connected=False/NeverConnected Synced=False/Pending Ready=False/NeverConnected"
        );
        assert_eq!(
            of(&about(None)),
            "Accepted=False/NotTaken Connected=False/NotAccepted Synced=False/NotAccepted Ready=False/NotAccepted"
        );
        let mistake = Some("Peer/gke: spec.pins: the pin is none");
        assert_eq!(
            of(&About { mistake, ..about(None) }),
            "Accepted=False/Invalid Connected=False/NotAccepted Synced=False/NotAccepted Ready=False/NotAccepted"
        );
        // Its last good version serves.
        assert_eq!(
            of(&About { mistake, ..about(Some(&up)) }),
            "Accepted=False/Invalid Connected=True/Connected Synced=True/Synced Ready=True/Ready"
        );
        let away = About { feed: Feed { connected: false, ..FEED }, ..about(None) };
        assert!(of(&away).starts_with("Accepted=Unknown/GatewayUnreachable"));
    }

    #[test]
    fn link_facts_are_told_so_that_nothing_is_written_twice() {
        let second = |second| SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        let up = view(PeerState::Up, true);
        let links = |since, rtt| Links { since, path: Some("udp"), rtt: Duration::from_micros(rtt), exported: 4 };
        let (first, later) = (links(second(100), 12_345), links(second(102), 12_444));
        let object = |status| Observed::new(json!({ "metadata": { "generation": 3 }, "status": status }));
        let written = status(&About { links: Some(&first), ..about(Some(&up)) }, &object(json!({})), "now");
        assert_eq!(written["link"], json!({"since": "1970-01-01T00:01:40Z", "path": "udp", "roundTrip": "12ms"}));
        assert_eq!((&written["exportedServices"], &written["observedGeneration"]), (&json!(4), &json!(3)));
        let again = About { links: Some(&later), ..about(Some(&up)) };
        assert_eq!(status(&again, &object(written.clone()), "later"), written);
        let down = Links { path: None, ..links(second(102), 0) };
        let written = status(&About { links: Some(&down), ..about(Some(&up)) }, &object(written), "later");
        assert_eq!(written["link"], json!({"since": "1970-01-01T00:01:42Z"}));
        assert_eq!(
            [412, 1_000, 4_200, 130_000].map(|us| round_trip(Duration::from_micros(us))).join(" "),
            "0.41ms 1.0ms 4.2ms 130ms"
        );
    }

    #[test]
    fn a_lease_has_the_time_that_the_api_wants() {
        let lease = lease("eastway-system", &Label::parse("gke").unwrap(), Timestamp::UNIX_EPOCH);
        assert_eq!(lease["spec"]["renewTime"], "1970-01-01T00:00:00.000000Z");
        let parsed: Lease = serde_json::from_value(lease).unwrap();
        assert_eq!(parsed.spec.unwrap().lease_duration_seconds, Some(40));
    }
}
