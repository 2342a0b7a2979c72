//! DNS over TCP (RFC 7766): few connections, short patience, queries in any number on each.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::counters::DropReason;
use crate::respond::{Outcome, Responder, Transport};
use crate::server::{Limits, REST};

/// Longest query read: no question with ordinary options comes near.
const MAX_QUERY: usize = 4096;

/// Accepts connections until `cancel` is cancelled; connections then end at their next query.
/// Errors of the listener do not end it (U6).
pub(super) async fn serve(listener: Arc<TcpListener>, responder: Responder, limits: Limits, cancel: CancellationToken) {
    let mut connections = JoinSet::new();
    let mut open: Vec<Open> = Vec::new();
    let start = Instant::now();
    while let Some(accepted) = cancel.run_until_cancelled(accept(&listener, &mut connections)).await {
        responder.counters().set_connections(connections.len());
        match accepted {
            Some(Ok((stream, peer))) => {
                open.retain(|connection| !connection.task.is_finished());
                if open.len() >= limits.tcp_connections {
                    responder.counters().dropped(DropReason::Connections);
                    // Waiting would only move the queue to where nobody counts it.
                    if !close_one(&mut open) {
                        continue;
                    }
                }
                let clock = Arc::new(Activity { start, silent_since: AtomicU64::new(0) });
                clock.waits();
                let serving = connection(stream, peer, responder.clone(), limits.tcp_idle, clock.clone());
                open.push(Open { task: connections.spawn(serving), clock });
                responder.counters().set_connections(open.len());
            }
            Some(Err(error)) => {
                responder.counters().socket_error();
                debug!(%error, "Accepting a DNS connection failed");
                // EMFILE and its like stay for a while; ECONNABORTED was one connection's affair.
                tokio::time::sleep(REST).await;
            }
            None => {}
        }
    }
    // Dropping the set ends what is left: every reply is one write, so none is cut in two by it.
}

/// A connection that is served.
struct Open {
    task: AbortHandle,
    clock: Arc<Activity>,
}

/// Since when a connection says nothing.
struct Activity {
    start: Instant,
    /// Microseconds after `start`; the largest number while a query is answered.
    silent_since: AtomicU64,
}

impl Activity {
    fn waits(&self) {
        let now = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX - 1);
        self.silent_since.store(now, Ordering::Relaxed);
    }

    fn answers(&self) {
        self.silent_since.store(u64::MAX, Ordering::Relaxed);
    }
}

/// Closes the connection that said nothing for the longest: who holds connections and asks nothing must not keep out
/// those who do. Whether there was one that is not being answered.
fn close_one(open: &mut Vec<Open>) -> bool {
    let silent = open.iter().map(|connection| connection.clock.silent_since.load(Ordering::Relaxed)).enumerate();
    let Some((index, since)) = silent.min_by_key(|(_, since)| *since) else { return false };
    if since == u64::MAX {
        return false;
    }
    open.swap_remove(index).task.abort();
    true
}

/// The next connection, or `None` when one ended.
async fn accept(
    listener: &TcpListener,
    connections: &mut JoinSet<()>,
) -> Option<std::io::Result<(TcpStream, SocketAddr)>> {
    tokio::select! {
        accepted = listener.accept() => Some(accepted),
        Some(_) = connections.join_next() => None,
    }
}

async fn connection(
    mut stream: TcpStream,
    peer: SocketAddr,
    responder: Responder,
    idle: Duration,
    clock: Arc<Activity>,
) {
    let mut query = Vec::new();
    let mut reply = Vec::new();
    let mut framed = Vec::new();
    loop {
        let reason = match timeout(idle, read_query(&mut stream, &mut query)).await {
            Ok(Ok(Query::Whole)) => None,
            Ok(Ok(Query::TooLarge)) => Some(DropReason::TooLarge),
            Ok(Err(_)) => return,
            Err(_) => Some(DropReason::Idle),
        };
        if let Some(reason) = reason {
            responder.counters().dropped(reason);
            return;
        }
        clock.answers();
        let outcome = responder.respond(&query, peer, Transport::Tcp, Instant::now(), &mut reply);
        let Ok(length) = u16::try_from(reply.len()) else { return };
        if outcome != Outcome::Reply {
            return;
        }
        framed.clear();
        framed.extend_from_slice(&length.to_be_bytes());
        framed.extend_from_slice(&reply);
        match timeout(idle, stream.write_all(&framed)).await {
            Ok(Ok(())) => clock.waits(),
            Ok(Err(_)) => return,
            Err(_) => return responder.counters().dropped(DropReason::Idle),
        }
    }
}

enum Query {
    Whole,
    TooLarge,
}

async fn read_query(stream: &mut TcpStream, query: &mut Vec<u8>) -> std::io::Result<Query> {
    let length = usize::from(stream.read_u16().await?);
    if length > MAX_QUERY {
        return Ok(Query::TooLarge);
    }
    query.clear();
    query.resize(length, 0);
    stream.read_exact(query).await?;
    Ok(Query::Whole)
}
