//! What the other side opens and sends, given to whoever serves it.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::time::Instant;

use super::Environment;
use crate::header::StreamHeader;
use crate::link::LinkShared;
use crate::stream;
use crate::transport::Halves;

/// Lets the streams of the other side in, each into a task of its own, where it is carried.
pub(super) async fn accept_streams(link: Arc<LinkShared>, environment: Arc<Environment>) {
    let here = Handle::current();
    while let Ok(halves) = link.connection.accept().await {
        let (home, _) = &halves;
        let home = home.home().unwrap_or_else(|| here.clone());
        let let_in = let_in(Arc::clone(&link), halves, Arc::clone(&environment), here.clone());
        environment.tasks.spawn_on(let_in, &home);
    }
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
    if let Some((header, stream)) = stream::admit(&link, halves).await {
        let home = if matches!(header, StreamHeader::Service(_)) { Handle::current() } else { here };
        // A task anew: this one has room for the header's reader, which the stream is done with.
        environment.tasks.spawn_on(environment.handler.handle(link.info(), header, stream), &home);
    }
}
