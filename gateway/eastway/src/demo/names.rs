//! Names to addresses, by our own DNS servers and nothing else.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use eastway_dns::client::{self, QueryType};

/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// The first IPv4 address of `name` according to `server`.
///
/// # Errors
/// No answer in time, or an answer without an address; the message has the response code.
pub async fn address_of(server: SocketAddr, name: &str) -> Result<IpAddr> {
    let answer = client::query(server, name, QueryType::A, PATIENCE).await;
    let answer = answer.with_context(|| format!("look up {name} at {server}"))?;
    ensure!(answer.rcode == "NOERROR", "look up {name} at {server}: {}", answer.rcode);
    answer.addresses().next().with_context(|| format!("{name} has no IPv4 address at {server}"))
}
