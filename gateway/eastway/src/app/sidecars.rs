//! Sidecars: what they are told follows the store and the virtual addresses; who they are is in their certificates.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use eastway_identity::SpiffeIdError;
use eastway_model::store::{Reader, Snapshot};
use eastway_model::{Label, ServiceKey};
use eastway_xds::node::Workload;
use eastway_xds::resources::{self, GatewayAddress, Generator, Trust, proxyless};
use eastway_xds::server::{Admit, Caller, Cut, Limits, Observer, Server};
use eastway_xds::spoken::Spoken;
use eastway_xds::{Kind, Scopes};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::info;

use crate::app::Gateway;
use crate::app::frontend::FrontendView;
use crate::config::settings::{SYSTEM_NAMESPACE, SidecarSettings};
use crate::local::listener::{self, Revoked};
use crate::proxy::hbone::renewals::{Certificate, Renewals};
use crate::roles::{CA_ACCOUNT, CONTROLLER_ACCOUNT, GATEWAY_ACCOUNT};
use crate::telemetry::{Refusal, Telemetry};

/// Most sidecars of one gateway.
pub const MAX_SIDECARS: usize = 10_000;
/// Shortest time between two looks at the store. A change after rest goes out at once, those that follow it this closely
/// together.
const PACE: Duration = Duration::from_millis(25);
/// How long peers of which nothing is known are waited for, as DNS does: what they export would count as removed by
/// sidecars that outlived this gateway's predecessor (invariant I5).
const PEERS: Duration = Duration::from_secs(30);

/// Services whose endpoint records are wanted.
pub type Subscriptions = watch::Receiver<Arc<BTreeSet<ServiceKey>>>;

/// The server for sidecars of this gateway, and the task that keeps it in step with the store.
///
/// # Errors
/// The trust domain makes no SPIFFE id.
pub fn serve(
    gateway: &Arc<Gateway>,
    settings: &SidecarSettings,
    end: CancellationToken,
) -> Result<(Server, impl Future<Output = ()> + Send + 'static), SpiffeIdError> {
    let all = &gateway.settings;
    let settings = resources::Settings {
        gateway: GatewayAddress { host: settings.gateway.host.to_string(), port: settings.gateway.port },
        gateway_identity: all.service_account(GATEWAY_ACCOUNT)?.as_str().to_owned(),
        trust_domain: all.trust.domain.to_string(),
        endpoints_per_service: settings.endpoints_per_service,
    };
    let (scopes, proxyless_scopes): (Arc<Scopes>, Arc<Scopes>) = Default::default();
    let spoken = Arc::<Spoken>::default();
    let observer = Arc::new(Counting(gateway.telemetry.clone()));
    let limits = Limits { streams: MAX_SIDECARS, ..Limits::default() };
    let admit = admit(all.system_namespace(), gateway.telemetry.clone());
    let admit = showing(admit, Arc::clone(&gateway.renewals), gateway.revoked.subscribe());
    let server = Server::new(Arc::clone(&scopes), admit, observer, limits, gateway.clock.started_at().0, end.clone())
        .with_proxyless(Arc::clone(&proxyless_scopes), gateway.wants_shares.clone())
        .with_spoken(Arc::clone(&spoken));
    // Set here and nowhere else.
    let _set = gateway.sidecars.set(server.clients());
    let publisher = Publisher {
        reader: gateway.reader.clone(),
        known: gateway.known_peers.subscribe(),
        frontend: gateway.frontend.clone(),
        anchors: gateway.anchors.subscribe(),
        generator: Generator::new(&settings),
        summaries: gateway.summaries.clone(),
        spoken,
        scopes,
        proxyless: Proxyless { generator: proxyless::Generator::default(), scopes: proxyless_scopes },
    };
    let publish = async move {
        // Nothing to run is left when the process ends.
        let _ended = end.run_until_cancelled(publisher.run()).await;
    };
    Ok((server, publish))
}

/// Keeps the views in step with the store.
struct Publisher {
    reader: Reader,
    known: crate::local::server::KnownPeers,
    frontend: watch::Receiver<Arc<FrontendView>>,
    anchors: watch::Receiver<Option<Arc<Trust>>>,
    generator: Generator,
    summaries: watch::Sender<Arc<BTreeSet<ServiceKey>>>,
    spoken: Arc<Spoken>,
    scopes: Arc<Scopes>,
    proxyless: Proxyless,
}

/// What clients without a proxy are told, once there is one.
struct Proxyless {
    generator: proxyless::Generator,
    scopes: Arc<Scopes>,
}

impl Proxyless {
    fn publish(&mut self, snapshot: &Snapshot, addresses: &FrontendView) {
        // Until all shares have addresses there is nothing to say: it would change at once.
        let Some(shares) = &addresses.shares else { return };
        let view = self.generator.update(snapshot, &addresses.vips, shares);
        self.scopes.publish(view, &snapshot.rules().visibility);
    }
}

impl Publisher {
    /// Returns only if the store is closed.
    async fn run(mut self) {
        if !self.until_known().await {
            return;
        }
        loop {
            let snapshot = self.reader.load_full();
            let addresses = self.frontend.borrow_and_update().clone();
            if let Some(trust) = self.anchors.borrow_and_update().clone() {
                self.generator.set_trust(&trust);
            }
            // Before the views: who comes with the first of them is to take at once what is spoken.
            self.spoken.follow(&snapshot);
            let view = self.generator.update_all(&snapshot, (&addresses.vips, &addresses.endpoints));
            self.scopes.publish(view, &snapshot.rules().visibility);
            self.tell_summaries();
            self.proxyless.publish(&snapshot, &addresses);
            let next = Instant::now() + PACE;
            tokio::select! {
                changed = self.reader.changed() => if changed.is_err() { return },
                changed = self.frontend.changed() => if changed.is_err() { return },
                changed = self.anchors.changed() => if changed.is_err() { return },
            }
            sleep_until(next).await;
        }
    }

    fn tell_summaries(&self) {
        self.summaries.send_if_modified(|current| {
            let changed = !self.generator.summaries().eq(current.iter());
            if changed {
                *current = Arc::new(self.generator.summaries().cloned().collect());
            }
            changed
        });
    }

    /// Waits until what is missing in a snapshot is known not to be there, and virtual addresses are known of what is.
    /// False: the store was closed.
    async fn until_known(&mut self) -> bool {
        if !self.until_peers_known().await {
            return false;
        }
        let version = self.reader.load().version();
        let follows = |view: &Arc<FrontendView>| view.follows.is_some_and(|follows| follows >= version);
        if self.frontend.wait_for(follows).await.is_err() {
            return false;
        }
        // Without anchors their sidecars would refuse everybody.
        match timeout(PEERS, self.anchors.wait_for(Option::is_some)).await {
            Ok(known) => known.is_ok(),
            Err(_) => {
                info!("sidecars are served without anchors: the ca role does not say any");
                true
            }
        }
    }

    async fn until_peers_known(&mut self) -> bool {
        let mut patience: Option<Instant> = None;
        loop {
            let snapshot = self.reader.load_full();
            let all_known = self.known.borrow_and_update().is_some();
            if all_known && snapshot.is_local_synced() && are_peers_synced(&snapshot) {
                return true;
            }
            // Without an API server the Peers of the last run may be all there are (invariant I12). If others are to
            // come, it has their time.
            let some_known = all_known || snapshot.peers().any(|peer| peer.configured);
            if some_known && snapshot.is_local_synced() && patience.is_none() {
                patience = Some(Instant::now() + PEERS);
            }
            tokio::select! {
                changed = self.reader.changed() => if changed.is_err() { return false },
                changed = self.known.changed() => if changed.is_err() { return false },
                () = sleep_until(patience.unwrap_or_else(Instant::now)), if patience.is_some() => {
                    info!("sidecars are served without some peers, of which nothing is known");
                    return true;
                }
            }
        }
    }
}

fn are_peers_synced(snapshot: &Snapshot) -> bool {
    snapshot.peers().all(|peer| peer.synced || !peer.configured)
}

/// Wants the endpoint records of all imports, and of what `headless` names, until `end`.
pub async fn subscribe(
    mut reader: Reader,
    mut headless: Subscriptions,
    wanted: watch::Sender<Arc<BTreeSet<ServiceKey>>>,
    end: CancellationToken,
) {
    let follow = async {
        loop {
            let snapshot = reader.load_full();
            let mut all = BTreeSet::clone(&headless.borrow_and_update());
            all.extend(snapshot.imports().filter(|import| resources::is_served(import)).map(|one| one.key.clone()));
            wanted.send_if_modified(|current| {
                let changed = **current != all;
                if changed {
                    *current = Arc::new(all);
                }
                changed
            });
            let next = Instant::now() + PACE;
            tokio::select! {
                changed = reader.changed() => if changed.is_err() { return },
                changed = headless.changed() => if changed.is_err() { return },
            }
            sleep_until(next).await;
        }
    };
    let _ended = end.run_until_cancelled(follow).await;
}

/// Who asks for its configuration shows its certificate: the newest one, as a stream ends before the certificate does.
fn showing(admit: Admit, renewals: Arc<Renewals>, revoked: Revoked) -> Admit {
    Arc::new(move |extensions| {
        let caller = admit(extensions)?;
        if let Some(connection) = extensions.get::<listener::Caller>() {
            let address = connection.address.ip();
            let certificate = Certificate { end: caller.not_after, serial: Arc::clone(&caller.serial) };
            renewals.show(&caller.identity, address, certificate, SystemTime::now(), &revoked.borrow());
        }
        Ok(caller)
    })
}

/// Any workload of this cluster, and none of our own processes.
pub(crate) fn admit(system: &str, telemetry: Telemetry) -> Admit {
    let system = system.to_owned();
    Arc::new(move |extensions| {
        let caller = extensions.get::<listener::Caller>();
        let (address, identity) = caller
            .and_then(|caller| Some((caller.address, caller.identity.as_ref()?)))
            .ok_or_else(|| Status::unauthenticated("no certificate"))?;
        let workload = identity.id.service_account().and_then(|(namespace, account)| {
            let (namespace, service_account) = (Label::parse(namespace).ok()?, Label::parse(account).ok()?);
            Some(Workload { namespace, service_account })
        });
        let is_ours = |workload: &Workload| {
            let account = workload.service_account.as_str();
            let namespace = workload.namespace.as_str();
            (namespace == system || namespace == SYSTEM_NAMESPACE)
                && [GATEWAY_ACCOUNT, CONTROLLER_ACCOUNT, CA_ACCOUNT].contains(&account)
        };
        let Some(workload) = workload.filter(|workload| !is_ours(workload)) else {
            let detail =
                format_args!("{address}: {} is no workload and asks for a sidecar's configuration", identity.id);
            telemetry.refusals.refused(Refusal::Sidecar, None, detail);
            return Err(Status::permission_denied("only workloads have sidecars"));
        };
        let identity_text = Arc::from(identity.id.as_str());
        let (serial, not_after) = (Arc::clone(&identity.serial), identity.not_after);
        Ok(Caller { address: address.to_string(), identity: identity_text, workload, serial, not_after })
    })
}

/// Counts and logs what happens.
pub(crate) struct Counting(pub(crate) Telemetry);

impl Observer for Counting {
    fn connected(&self, clients: usize) {
        self.0.metrics.set_sidecars(clients);
    }

    fn pushed(&self, kind: Kind) {
        self.0.metrics.sidecar_pushed(kind.short());
    }

    fn refused(&self, client: &str, kind: Kind, reason: &str) {
        self.0.metrics.sidecar_refused(kind.short());
        let detail = format_args!("{client} refuses {kind}: {reason}");
        self.0.refusals.refused(Refusal::Sidecar, None, detail);
    }

    fn cut(&self, client: &str, why: &Cut) {
        let kind = match why {
            Cut::Stalled | Cut::TooMany => Refusal::Overload,
            Cut::Request(_) => Refusal::Sidecar,
        };
        self.0.refusals.refused(kind, None, format_args!("{client}: a sidecar is cut: {why}"));
    }
}

#[cfg(test)]
mod tests;
