//! What the feed says about the links to peers: few facts, and told anew only when they are worth a write to an API.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use eastway_model::{ClusterName, Label};
use eastway_proto::local::v1 as wire;
use eastway_tunnel::{PeerStatus, TransportKind};
use tokio::sync::watch;
use tokio::time::{Instant, interval};
use tokio_util::sync::CancellationToken;

use crate::app::Gateway;

/// How often links are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// A round trip time is told again after this long at the earliest.
const SETTLED: Duration = Duration::from_secs(60);

/// The facts of all peers.
pub type AllFacts = Arc<BTreeMap<ClusterName, LinkFacts>>;

/// How the links to one peer are, all together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkFacts {
    /// Since when it is up, or not.
    pub since: SystemTime,
    /// What carries the best link; `None`: there is none.
    pub path: Option<LinkPath>,
    /// Smoothed round trip time of the best link; zero without one.
    pub rtt: Duration,
    /// Services of this cluster that the peer may see.
    pub exported: u64,
}

/// What carries a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkPath {
    /// QUIC.
    Udp,
    /// TLS over TCP.
    Tcp,
    /// By way of a third cluster.
    Relay,
}

impl From<TransportKind> for LinkPath {
    fn from(carrier: TransportKind) -> Self {
        match carrier {
            TransportKind::Quic => Self::Udp,
            TransportKind::Tcp | TransportKind::Memory => Self::Tcp,
            TransportKind::Relay => Self::Relay,
        }
    }
}

impl LinkFacts {
    fn of(status: &PeerStatus, exported: usize) -> Self {
        let best = status.links.iter().filter(|_| status.up).min_by_key(|link| link.rtt_us);
        Self {
            since: status.since,
            path: best.map(|link| link.transport.into()),
            rtt: best.map(|link| Duration::from_micros(link.rtt_us)).unwrap_or_default(),
            exported: exported as u64,
        }
    }

    /// As the feed says it; `now` is of the wall clock.
    pub(super) fn to_wire(self, now: SystemTime) -> wire::Links {
        let since = now.duration_since(self.since).unwrap_or_default();
        let path = match self.path {
            None => wire::Path::Unspecified,
            Some(LinkPath::Udp) => wire::Path::Udp,
            Some(LinkPath::Tcp) => wire::Path::Tcp,
            Some(LinkPath::Relay) => wire::Path::Relay,
        };
        wire::Links {
            since_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            path: path.into(),
            rtt_us: u64::try_from(self.rtt.as_micros()).unwrap_or(u64::MAX),
            exported_services: self.exported,
        }
    }

    /// What the feed said; `now` is of the wall clock.
    pub(super) fn from_wire(links: &wire::Links, now: SystemTime) -> Self {
        let path = match links.path() {
            wire::Path::Unspecified => None,
            wire::Path::Udp => Some(LinkPath::Udp),
            wire::Path::Tcp => Some(LinkPath::Tcp),
            wire::Path::Relay => Some(LinkPath::Relay),
        };
        let since = now.checked_sub(Duration::from_millis(links.since_ms)).unwrap_or(SystemTime::UNIX_EPOCH);
        Self { since, path, rtt: Duration::from_micros(links.rtt_us), exported: links.exported_services }
    }
}

/// Looks at the links until `end` and tells what is new.
pub async fn follow(gateway: Arc<Gateway>, facts: watch::Sender<AllFacts>, end: CancellationToken) {
    let mut look = interval(LOOK);
    let mut told = Told::default();
    while end.run_until_cancelled(look.tick()).await.is_some() {
        let Some(tunnel) = gateway.tunnel.get() else { continue };
        let snapshot = gateway.reader.load_full();
        let seen = tunnel.status().into_iter().filter_map(|status| {
            let name = Label::parse(&status.name).ok()?;
            let exported = snapshot.exports_to(&name).count();
            Some((name, LinkFacts::of(&status, exported)))
        });
        if let Some(new) = told.update(seen, Instant::now()) {
            facts.send_replace(Arc::new(new));
        }
    }
}

/// What was told, and since when.
#[derive(Debug, Default)]
struct Told(BTreeMap<ClusterName, (LinkFacts, Instant)>);

impl Told {
    /// All facts, if one of them is news.
    fn update(
        &mut self,
        seen: impl Iterator<Item = (ClusterName, LinkFacts)>,
        now: Instant,
    ) -> Option<BTreeMap<ClusterName, LinkFacts>> {
        let mut all = BTreeMap::new();
        let mut news = false;
        for (name, facts) in seen {
            let before = self.0.remove(&name);
            let told = before.filter(|(before, at)| !is_news(before, &facts, now.duration_since(*at)));
            news |= told.is_none();
            all.insert(name, told.unwrap_or((facts, now)));
        }
        news |= !self.0.is_empty();
        self.0 = all;
        news.then(|| self.0.iter().map(|(name, (facts, _))| (name.clone(), *facts)).collect())
    }
}

/// A round trip time is never twice the same: half more or less is news, and only after a while.
fn is_news(before: &LinkFacts, facts: &LinkFacts, after: Duration) -> bool {
    let (low, high) = (before.rtt.min(facts.rtt), before.rtt.max(facts.rtt));
    let moved = after >= SETTLED && high > low + low / 2;
    moved || *before != LinkFacts { rtt: before.rtt, ..*facts }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_all_the_time_is_told_once_a_minute_at_most() {
        let name = || Label::parse("gke").unwrap();
        let facts = |rtt: u64, exported| LinkFacts {
            since: SystemTime::UNIX_EPOCH,
            path: Some(LinkPath::Udp),
            rtt: Duration::from_micros(rtt),
            exported,
        };
        let (mut told, began) = (Told::default(), Instant::now());
        let mut look = |second: u64, facts| {
            told.update([(name(), facts)].into_iter(), began + Duration::from_secs(second)).is_some()
        };
        assert!(look(0, facts(400, 1)));
        assert!(!look(2, facts(900, 1)), "a jump of a moment");
        assert!(look(4, facts(900, 2)), "a service more");
        assert!(!look(70, facts(1_000, 2)), "nearly the same");
        assert!(look(72, facts(2_000, 2)));
        assert!(!look(74, facts(400, 2)));
        assert!(told.update(std::iter::empty(), began).is_some(), "it is no peer any more");
    }

    #[test]
    fn facts_survive_the_wire() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        for path in [None, Some(LinkPath::Udp), Some(LinkPath::Tcp), Some(LinkPath::Relay)] {
            let facts =
                LinkFacts { since: now - Duration::from_millis(7), path, rtt: Duration::from_micros(3), exported: 9 };
            assert_eq!(LinkFacts::from_wire(&facts.to_wire(now), now), facts);
        }
    }
}
