//! What the other side opens and sends, given to whoever serves it.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::time::Instant;

use super::Environment;
use crate::header::StreamHeader;
use crate::link::LinkShared;
use crate::stream;
use crate::transport::{Halves, Take};

/// Lets the streams of the other side in, each into a task of its own, where it is carried.
pub(super) fn take_streams(link: &Arc<LinkShared>, environment: Arc<Environment>) -> Take {
    let (link, here) = (Arc::downgrade(link), Handle::current());
    Arc::new(move |halves: Halves| {
        let Some(link) = link.upgrade() else { return };
        let (home, _) = &halves;
        let home = home.home().unwrap_or_else(|| here.clone());
        environment.tasks.spawn_on(let_in(link, halves, Arc::clone(&environment), here.clone()), &home);
    })
}

/// Gives datagrams to their flows.
pub(super) async fn take_datagrams(link: Arc<LinkShared>) {
    let mut datagrams = Vec::new();
    while link.connection.read_datagrams(&mut datagrams).await.is_ok() {
        link.flows.deliver(&link, &mut datagrams, Instant::now());
        // Others have their turn, however many more there are.
        tokio::task::yield_now().await;
    }
}

/// `here`: where everything is done but copying. Work that takes long must not keep links waiting.
async fn let_in(link: Arc<LinkShared>, halves: Halves, environment: Arc<Environment>, here: Handle) {
    // On the heap, as it is of no use once the header is read.
    let Some((header, stream)) = Box::pin(stream::admit(&link, halves)).await else { return };
    let is_service = matches!(header, StreamHeader::Service(_));
    let serving = environment.handler.handle(link.info(), header, stream);
    drop(link);
    if is_service {
        drop((environment, here));
        serving.await;
    } else {
        environment.tasks.spawn_on(serving, &here);
    }
}
