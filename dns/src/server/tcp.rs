//! DNS over TCP (RFC 7766): few connections, short patience, queries in any number on each.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
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
    while let Some(accepted) = cancel.run_until_cancelled(accept(&listener, &mut connections)).await {
        responder.counters().set_connections(connections.len());
        match accepted {
            Some(Ok((stream, peer))) if connections.len() < limits.tcp_connections => {
                connections.spawn(connection(stream, peer, responder.clone(), limits.tcp_idle));
                responder.counters().set_connections(connections.len());
            }
            // Closed at once: waiting would only move the queue to where nobody counts it.
            Some(Ok(_)) => responder.counters().dropped(DropReason::Connections),
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

async fn connection(mut stream: TcpStream, peer: SocketAddr, responder: Responder, idle: Duration) {
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
        let outcome = responder.respond(&query, peer, Transport::Tcp, Instant::now(), &mut reply);
        let Ok(length) = u16::try_from(reply.len()) else { return };
        if outcome != Outcome::Reply {
            return;
        }
        framed.clear();
        framed.extend_from_slice(&length.to_be_bytes());
        framed.extend_from_slice(&reply);
        match timeout(idle, stream.write_all(&framed)).await {
            Ok(Ok(())) => {}
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
