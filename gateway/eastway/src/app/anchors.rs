//! What sidecars know trust domains by: the anchors of this cluster's own CA, and those that peers say, after all checks.
//!
//! Own ones are asked of the ca role and told to every peer. Those of a peer count as long as the Peer is configured, their
//! keys are among its pins, and each holds nothing but the Peer's own trust domain. All are kept on disk: a restart must
//! not take from sidecars what they have (invariant I5).

mod kept;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use eastway_identity::{Anchor, AnchorDer, AnchorError, CertificateDer, SpkiPin, certificates_to_pem, crls_to_pem};
use eastway_tunnel::{HeardAnchors, Tunnel};
use eastway_xds::resources::{Bundle, Trust};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::app::Gateway;
use crate::config::Loaded;
use crate::roles::enroll::CaClient;
use crate::telemetry::Refusal;
use kept::Kept;

/// Most anchors of one peer that are looked at.
const MAX_ANCHORS: usize = 4;
/// All are judged again after this long: a list may have ended.
const AGAIN: Duration = Duration::from_secs(60);

/// What sidecars are told of trust domains; `None` until it is known.
pub type Published = watch::Sender<Option<Arc<Trust>>>;

/// The one owner of what is known of anchors.
struct Anchors {
    gateway: Arc<Gateway>,
    tunnel: Arc<Tunnel>,
    kept: Kept,
    /// The ca role has said something, or had in an earlier life of this gateway.
    known: bool,
    /// What counted last: by trust domain and key.
    counted: Counted,
    /// What was last refused of each peer.
    refused: BTreeMap<Arc<str>, AnchorError>,
}

/// Anchors that passed all checks, by trust domain and key.
type Counted = BTreeMap<(Arc<str>, SpkiPin), Anchor>;

/// Follows the ca role, peers and configuration until `end`.
pub(super) async fn run(gateway: Arc<Gateway>, tunnel: Arc<Tunnel>, client: CaClient, end: CancellationToken) {
    let (own, latest) = watch::channel(None);
    let ask = ask(client, gateway.clone(), own);
    let kept = Kept::open(&gateway.settings.state);
    let known = !kept.own.is_empty();
    let anchors = Anchors { gateway, tunnel, kept, known, counted: Counted::new(), refused: BTreeMap::new() };
    let follow = async {
        tokio::join!(ask, anchors.follow(latest));
    };
    let _ended = end.run_until_cancelled(follow).await;
}

/// Asks the ca role again and again.
async fn ask(client: CaClient, gateway: Arc<Gateway>, own: watch::Sender<Option<Vec<AnchorDer>>>) {
    let mut ticks = interval(client.anchors_interval());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // That the CA does not answer is said by who renews the certificate.
        let Ok(anchors) = client.anchors(gateway.identity.get()).await else { continue };
        own.send_if_modified(|before| {
            let changed = before.as_ref() != Some(&anchors);
            *before = Some(anchors);
            changed
        });
    }
}

impl Anchors {
    async fn follow(mut self, mut own: watch::Receiver<Option<Vec<AnchorDer>>>) {
        let mut heard = self.tunnel.heard_anchors();
        let mut configuration = self.gateway.configuration.loaded.clone();
        let mut ticks = interval(AGAIN);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if let Some(own) = own.borrow_and_update().clone() {
                self.kept.own = own;
                self.known = true;
            }
            let loaded = configuration.borrow_and_update().clone();
            let said = heard.borrow_and_update().clone();
            self.hear(&said, &loaded);
            self.judge(&loaded);
            tokio::select! {
                _ = ticks.tick() => {}
                changed = own.changed() => if changed.is_err() { return },
                changed = heard.changed() => if changed.is_err() { return },
                changed = configuration.changed() => if changed.is_err() { return },
            }
        }
    }

    /// The last word of each peer; what was kept of others stays as long as they are configured.
    fn hear(&mut self, said: &HeardAnchors, loaded: &Loaded) {
        for (peer, anchors) in said {
            let anchors = anchors.iter().take(MAX_ANCHORS).cloned().collect();
            self.kept.peers.insert(Arc::clone(peer), anchors);
        }
        // Until all are known, one that is missing may only not have been read yet (invariant I4).
        if loaded.complete {
            self.kept.peers.retain(|peer, _| loaded.peers.keys().any(|name| name.as_str() == &**peer));
        }
    }

    /// Judges all that is known, and publishes what counts.
    fn judge(&mut self, loaded: &Loaded) {
        let now = SystemTime::now();
        let domain = &self.gateway.settings.trust.domain;
        let (counted, refused) = judge(&self.kept, &self.counted, domain, loaded, now);
        self.tell_refused(refused);
        self.kept.note_cuts(&self.counted, &counted, now);
        self.counted = counted;
        self.kept.save();
        // Before the CA has answered, and with nothing on disk, nobody knows what sidecars have.
        if !self.known {
            return;
        }
        self.tunnel.set_anchors(self.kept.own.clone().into());
        let revoked = self.revoked_here();
        self.gateway.revoked.send_if_modified(|before| {
            let changed = **before != revoked;
            *before = Arc::new(revoked);
            changed
        });
        let trust = self.trust();
        self.gateway.anchors.send_if_modified(|before| {
            let changed = before.as_deref() != Some(&trust);
            if changed {
                info!(domains = trust.bundles.len(), cut = %trust.cut, "what trust domains are known by changed");
                *before = Some(Arc::new(trust));
            }
            changed
        });
    }

    /// Each refusal is counted and said once, not at every look.
    fn tell_refused(&mut self, refused: BTreeMap<Arc<str>, AnchorError>) {
        let cluster: Arc<str> = Arc::from(self.gateway.settings.cluster.as_str());
        for (peer, error) in &refused {
            if self.refused.get(peer) == Some(error) {
                continue;
            }
            if *peer == cluster {
                warn!(%error, "an anchor of this cluster's own CA is not used");
                continue;
            }
            let detail = format_args!("an anchor is given to no sidecar: {error}");
            self.gateway.telemetry.refusals.refused(Refusal::Anchor, Some(peer), detail);
        }
        self.refused = refused;
    }

    /// Certificates of this cluster's own CA.
    fn revoked_here(&self) -> BTreeSet<String> {
        let own = &self.gateway.settings.trust.domain;
        let anchors = self.counted.iter().filter(|((domain, _), _)| domain == own);
        anchors.flat_map(|(_, anchor)| anchor.revoked().iter().map(|serial| hex(serial))).collect()
    }

    fn trust(&self) -> Trust {
        let mut bundles: BTreeMap<Arc<str>, Bundle> = BTreeMap::new();
        for ((domain, _), anchor) in &self.counted {
            let bundle = bundles.entry(Arc::clone(domain)).or_default();
            bundle.anchors.push_str(&certificates_to_pem(std::slice::from_ref(anchor.certificate())));
            bundle.crls.push_str(&crls_to_pem(std::slice::from_ref(anchor.crl())));
        }
        let mut digest = Sha256::new();
        for cut in self.kept.cuts.keys() {
            digest.update(cut.as_bytes());
            digest.update(b"\n");
        }
        let digest = digest.finalize();
        let cut: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Trust { bundles, cut: cut.into() }
    }
}

/// Which anchors count, and what is wrong with the others. Of two of one key that which comes with the later list counts:
/// replicas of a peer may not all have heard of it yet.
fn judge(
    kept: &Kept,
    before: &Counted,
    own_domain: &Arc<str>,
    loaded: &Loaded,
    now: SystemTime,
) -> (Counted, BTreeMap<Arc<str>, AnchorError>) {
    let own_pins: Vec<_> = kept.own.iter().filter_map(pin).collect();
    let own = (Arc::from(loaded.settings.cluster.as_str()), own_domain, own_pins.as_slice(), kept.own.as_slice());
    let peers = loaded.peers.iter().filter_map(|(name, peer)| {
        let (name, told) = kept.peers.get_key_value(name.as_str())?;
        Some((Arc::clone(name), &peer.trust_domain, peer.pins.as_slice(), told.as_slice()))
    });
    let (mut counted, mut refused) = (Counted::new(), BTreeMap::new());
    for (who, domain, pins, told) in std::iter::once(own).chain(peers) {
        for der in told {
            let anchor = match Anchor::check(der, domain, pins, now) {
                Ok(anchor) => anchor,
                Err(error) => {
                    refused.insert(Arc::clone(&who), error);
                    continue;
                }
            };
            let key = (Arc::clone(domain), anchor.pin());
            let newest = |one: Anchor, other: Option<&Anchor>| match other {
                Some(other) if other.made() > one.made() => other.clone(),
                Some(_) | None => one,
            };
            let anchor = newest(anchor, before.get(&key));
            let anchor = newest(anchor, counted.get(&key));
            counted.insert(key, anchor);
        }
    }
    (counted, refused)
}

/// As `eastway_identity::crl::serial` spells it.
fn hex(serial: &[u8]) -> String {
    serial.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn pin(der: &AnchorDer) -> Option<SpkiPin> {
    SpkiPin::of_certificate(&CertificateDer::from(der.certificate.as_slice())).ok()
}

#[cfg(test)]
mod tests;
