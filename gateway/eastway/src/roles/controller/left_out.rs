//! What the registries leave out of exported services, for the status of their ServiceExports.

use std::collections::BTreeMap;
use std::sync::Arc;

use eastway_kubernetes::controller::reconcile::LeftOut;
use eastway_kubernetes::source;
use futures_util::future::{pending, select_all};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::app::registries::{RegistryStatus, RegistryStatuses};

/// Tells `told` what the API servers' registries leave out, until `end`. Of two that speak of one service the first
/// by name counts, as everywhere.
pub(super) async fn follow(
    mut registries: watch::Receiver<Arc<RegistryStatuses>>,
    told: watch::Sender<LeftOut>,
    end: CancellationToken,
) {
    let mut servers: Vec<watch::Receiver<source::RegistryStatus>> = Vec::new();
    loop {
        let mut all = BTreeMap::new();
        for server in &mut servers {
            for (key, text) in server.borrow_and_update().left_out_of.iter() {
                all.entry(key.clone()).or_insert_with(|| text.clone());
            }
        }
        told.send_if_modified(|before| {
            let changed = **before != all;
            *before = Arc::new(all);
            changed
        });
        let mut ended = None;
        let news = async {
            if servers.is_empty() {
                pending::<()>().await;
            }
            let changes = servers.iter_mut().map(|server| Box::pin(server.changed()));
            if let (Err(_), index, _) = select_all(changes).await {
                ended = Some(index);
            }
        };
        tokio::select! {
            () = end.cancelled() => return,
            changed = registries.changed() => {
                if changed.is_err() {
                    return end.cancelled().await;
                }
                let kubernetes = |status: &RegistryStatus| match status {
                    RegistryStatus::Kubernetes(status) => Some(status.clone()),
                    // Those of a list are in the map by themselves.
                    RegistryStatus::File(_) | RegistryStatus::Clusters(_) => None,
                };
                servers = registries.borrow_and_update().values().filter_map(kubernetes).collect();
                continue;
            }
            () = news => {}
        }
        if let Some(index) = ended {
            servers.remove(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use eastway_model::Label;

    use super::*;

    #[tokio::test]
    async fn what_one_server_leaves_out_is_told_until_it_is_gone() {
        let (registries, latest) = watch::channel(Arc::default());
        let (told, mut left_out) = watch::channel(LeftOut::default());
        let end = CancellationToken::new();
        let task = tokio::spawn(follow(latest, told, end.clone()));
        let (server, status) = watch::channel(source::RegistryStatus::default());
        let name = Label::parse("cluster").unwrap();
        registries.send_replace(Arc::new(BTreeMap::from([(name, RegistryStatus::Kubernetes(status))])));
        let words = LeftOut::new(BTreeMap::from([("shop/cart".parse().unwrap(), "left out: x".to_owned())]));
        server.send_modify(|status| status.left_out_of = words.clone());
        left_out.wait_for(|all| *all == words).await.unwrap();
        server.send_modify(|status| status.left_out_of = Arc::default());
        left_out.wait_for(|all| all.is_empty()).await.unwrap();
        drop(server);
        end.cancel();
        task.await.unwrap();
    }
}
