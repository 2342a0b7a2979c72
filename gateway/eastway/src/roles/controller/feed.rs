//! From the feed of a gateway into the controller's own store.

use std::sync::Arc;

use eastway_kubernetes::controller::peers::{AllLinks, Links};
use eastway_kubernetes::controller::reconcile::Feed;
use eastway_model::rules::Rules;
use eastway_model::store::Reader;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::app::store::{Input, StoreSender};
use crate::local::client::{FeedClient, FeedStatus, FeedUpdate, QUEUE};
use crate::local::links::{LinkFacts, LinkPath};

/// Where the feed goes.
pub(super) struct Outputs {
    /// The store, and what it holds.
    pub(super) store: StoreSender,
    pub(super) reader: Reader,
    /// How the feed is doing.
    pub(super) told: watch::Sender<Feed>,
    /// What is known of links.
    pub(super) links: watch::Sender<AllLinks>,
}

/// Follows a gateway until `end`.
pub(super) async fn follow(client: FeedClient, outputs: Outputs, end: CancellationToken) {
    let (updates, received) = mpsc::channel(QUEUE);
    let (status, follow) = client.follow(updates, end.clone());
    let take = take(received, status, outputs);
    end.run_until_cancelled(async { tokio::join!(follow, take) }).await;
}

async fn take(
    mut updates: mpsc::Receiver<FeedUpdate>,
    mut status: watch::Receiver<FeedStatus>,
    Outputs { store, mut reader, told, links }: Outputs,
) {
    loop {
        tokio::select! {
            update = updates.recv() => match update {
                Some(FeedUpdate::Peers(peers)) => {
                    let rules = Arc::new(Rules { peers, ..Rules::default() });
                    if !store.send(Input::Rules(rules.clone())).await || !published(&mut reader, &rules).await {
                        return;
                    }
                    told.send_modify(|feed| feed.peers_known = true);
                }
                Some(FeedUpdate::Links(facts)) => {
                    let facts = facts.into_iter().map(|(peer, facts)| (peer, as_status_has_it(facts))).collect();
                    links.send_replace(Arc::new(facts));
                }
                Some(FeedUpdate::Changes(changes)) => if !store.changes(changes).await { return },
                None => return,
            },
            changed = status.changed() => {
                if changed.is_err() { return }
                let connected = status.borrow_and_update().connected;
                told.send_if_modified(|feed| std::mem::replace(&mut feed.connected, connected) != connected);
            }
        }
    }
}

fn as_status_has_it(LinkFacts { since, path, rtt, exported }: LinkFacts) -> Links {
    let path = path.map(|path| match path {
        LinkPath::Udp => "udp",
        LinkPath::Tcp => "tcp",
        LinkPath::Relay => "relay",
    });
    Links { since, path, rtt, exported }
}

/// Waits until the store has these rules. Only then may it be said that the peers are known: a peer that is not in a
/// snapshot counts as removed from then on (invariant I4).
async fn published(reader: &mut Reader, rules: &Arc<Rules>) -> bool {
    loop {
        if **reader.load().rules() == **rules {
            return true;
        }
        if reader.changed().await.is_err() {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use eastway_model::rules::PeerRules;
    use eastway_model::store::Writer;
    use eastway_model::{Label, UnixMillis};

    use super::*;
    use crate::app::clock::Clock;
    use crate::app::store;

    #[tokio::test]
    async fn i4_peers_are_known_when_the_store_knows_them() {
        let label = |text: &str| Label::parse(text).unwrap();
        let (writer, reader) = Writer::new(label("eks"));
        let (sender, inputs) = store::queue();
        let (updates, received) = mpsc::channel(QUEUE);
        let (_status, status) = watch::channel(FeedStatus::default());
        let (told, mut feed) = watch::channel(Feed::default());
        let outputs = Outputs { store: sender, reader: reader.clone(), told, links: watch::Sender::default() };
        let taking = tokio::spawn(take(received, status, outputs));
        let rules = Arc::new(PeerRules::new(label("gke"), "gke.example", UnixMillis(0)));
        updates.send(FeedUpdate::Peers(BTreeMap::from([(label("gke"), rules)]))).await.unwrap();
        // The store does not take it in yet.
        tokio::task::yield_now().await;
        assert!(!feed.borrow().peers_known);
        let end = CancellationToken::new();
        let storing = tokio::spawn(store::run(writer, inputs, Clock::start(), end.clone()));
        feed.wait_for(|feed| feed.peers_known).await.unwrap();
        assert!(reader.load().peer("gke").unwrap().configured);
        end.cancel();
        storing.await.unwrap();
        drop(updates);
        taking.await.unwrap();
    }
}
