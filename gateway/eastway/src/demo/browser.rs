//! The productpage for a browser on the host.
//!
//! The listener belongs to the host's network namespace, the connections that it accepts too; the
//! productpage is among on-prem's pods. Bytes are copied between the two: the process that holds both
//! sockets is the only way in.

use std::net::TcpListener;

use anyhow::{Context, Result};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::bookinfo::Service;
use super::story::{ONPREM, Story};

/// Browser connections served at once.
const MAX_CONNECTIONS: usize = 64;

/// Serves until the demo ends; gives the page's URL.
pub(super) fn serve(story: &Story, listener: TcpListener) -> Result<String> {
    let address = listener.local_addr()?;
    let page = story.local_address(ONPREM, Service::Productpage)?;
    let pods = story.cloud(ONPREM)?.net().pods().clone();
    listener.set_nonblocking(true)?;
    // Connections to the page are opened by tasks among the pods.
    pods.spawn(async move {
        let listener = match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => return tracing::warn!(%error, "no page for browsers"),
        };
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            if connections.len() >= MAX_CONNECTIONS {
                connections.join_next().await;
            }
            let Ok((browser, _from)) = listener.accept().await else { continue };
            connections.spawn(async move {
                if let Err(error) = relay(browser, page).await {
                    tracing::debug!(%error, "browser connection");
                }
            });
        }
    });
    Ok(format!("http://{address}/productpage"))
}

async fn relay(mut browser: TcpStream, page: std::net::SocketAddr) -> Result<()> {
    let mut upstream = TcpStream::connect(page).await.with_context(|| format!("connect to {page}"))?;
    tokio::io::copy_bidirectional(&mut browser, &mut upstream).await?;
    Ok(())
}
