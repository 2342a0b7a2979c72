//! Asks the admin port of a running gateway.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::Request;
use hyper::header::HOST;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::TcpStream;

use super::exit::{self, Failure};

/// Longest wait for an answer: `/check` probes peers for up to 8 s, `/bench` measures for up to 16.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Largest answer. 100,000 endpoints take about 40 MB.
const MAX_ANSWER: usize = 256 << 20;
/// Where gateways listen unless configured otherwise.
const DEFAULT_ADMIN: &str = "127.0.0.1:15000";

/// Which gateway to ask.
#[derive(Clone, Debug, Args)]
#[group(multiple = false)]
pub(super) struct Target {
    /// Admin address of the gateway to ask [default: 127.0.0.1:15000]
    #[arg(long, value_name = "ADDRESS", env = "EASTWAY_ADMIN")]
    admin: Option<SocketAddr>,
    /// Take the admin address from this GatewayConfig file
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Target {
    /// A gateway at a known address.
    pub(super) fn at(address: SocketAddr) -> Self {
        Self { admin: Some(address), config: None }
    }

    /// The address to ask.
    pub(super) fn address(&self) -> Result<SocketAddr, Failure> {
        if let Some(file) = &self.config {
            return super::config::admin_address(file);
        }
        match self.admin {
            Some(address) => Ok(address),
            None => DEFAULT_ADMIN.parse().map_err(|error| Failure::failed(&error)),
        }
    }

    /// The answer to GET `path`, which begins with `/` and whose query is encoded.
    pub(super) fn get(&self, path: &str) -> Result<Value, Failure> {
        let address = self.address()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::failed(&error))?;
        let exchange =
            async { tokio::time::timeout(TIMEOUT, request(address, path)).await.unwrap_or(Err(Problem::Timeout)) };
        runtime.block_on(exchange).map_err(|problem| problem.explain(address))
    }
}

/// Turns an answer into the view it should be.
pub(super) fn view<T: DeserializeOwned>(value: &Value) -> Result<T, Failure> {
    serde_json::from_value(value.clone()).map_err(|error| {
        Failure::because(format!(
            "the gateway's answer is not understood: {error}; compare `eastway version` on both sides"
        ))
    })
}

/// Encodes one value of a query.
pub(super) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'/') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("{0}")]
    Connect(std::io::Error),
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    #[error("it does not answer as a gateway: {0}")]
    Http(String),
    /// The gateway refuses the question; its words are enough.
    #[error("{0}")]
    Refused(String),
}

impl Problem {
    fn explain(self, address: SocketAddr) -> Failure {
        match self {
            Self::Connect(error) => Failure::because(format!(
                "no gateway at {address}: {error}; start one with `eastway run --config FILE`, or name its admin port with --admin or --config"
            )),
            Self::Refused(message) => Failure::because(message),
            Self::Timeout | Self::Http(_) => {
                Failure::because(format!("gateway at {address}: {self}; is this its admin port (`listen.admin`)?"))
            }
        }
    }
}

async fn request(address: SocketAddr, path: &str) -> Result<Value, Problem> {
    let http = |error: &dyn std::error::Error| Problem::Http(exit::chain(error));
    let stream = TcpStream::connect(address).await.map_err(Problem::Connect)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| http(&error))?;
    let request = Request::get(path)
        .header(HOST, address.to_string())
        .body(Empty::<Bytes>::new())
        .map_err(|error| http(&error))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|error| http(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| Problem::Http(error.to_string()))?.to_bytes();
        Ok((status, body))
    };
    // The connection is driven by whoever waits for the answer, and ends with it.
    let (status, body) = tokio::select! {
        result = exchange => result?,
        ended = drive(connection) => return Err(Problem::Http(ended)),
    };
    let value: Option<Value> = serde_json::from_slice(&body).ok();
    match value {
        Some(value) if status.is_success() => Ok(value),
        Some(Value::Object(fields)) if fields.contains_key("message") => {
            let message = fields.get("message").and_then(Value::as_str).unwrap_or_default();
            Err(Problem::Refused(message.to_owned()))
        }
        _ => Err(Problem::Http(format!("HTTP status {}", status.as_u16()))),
    }
}

/// Runs the connection. When it ends without an error the answer is on its way to the other branch: wait for it.
async fn drive(connection: impl Future<Output = hyper::Result<()>>) -> String {
    match connection.await {
        Ok(()) => std::future::pending().await,
        Err(error) => exit::chain(&error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_encoded() {
        assert_eq!(encode("bookinfo/reviews"), "bookinfo/reviews");
        assert_eq!(encode("a b&c=ü#?"), "a%20b%26c%3D%C3%BC%23%3F");
    }
}
