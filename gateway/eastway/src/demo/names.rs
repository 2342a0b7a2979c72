//! Names to addresses, by our own DNS servers and nothing else.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::net::UdpSocket;

/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// The first IPv4 address of `name` according to `server`.
///
/// # Errors
/// No answer in time, or an answer without an address; the message has the response code.
pub async fn address_of(server: SocketAddr, name: &str) -> Result<IpAddr> {
    let asked = tokio::time::timeout(PATIENCE, ask(server, name)).await;
    asked
        .unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {PATIENCE:?}")))
        .with_context(|| format!("look up {name} at {server}"))
}

async fn ask(server: SocketAddr, name: &str) -> Result<IpAddr> {
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len())?);
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect(server).await?;
    socket.send(&query).await?;
    let mut buffer = [0; 1500];
    let length = socket.recv(&mut buffer).await?;
    let answer = buffer.get(query.len()..length).context("short answer")?;
    let rcode = buffer.get(3).map_or(0, |byte| byte & 15);
    ensure!(rcode == 0, "rcode {rcode}");
    match answer {
        [0xc0, 12, 0, 1, 0, 1, _, _, _, _, 0, 4, a, b, c, d, ..] => Ok(IpAddr::V4(Ipv4Addr::new(*a, *b, *c, *d))),
        _ => bail!("no address"),
    }
}
