//! One HTTP request on one new connection, without retries.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper::header::{ACCEPT, HOST};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpSocket, TcpStream};

use super::{Answer, Call, Outcome, PORT, Service};
use crate::demo::names;

/// Longest a call may take, the lookup included.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest answer, bytes.
const MAX_ANSWER: usize = 256 * 1024;

/// A header of a request.
pub type Header = (&'static str, String);

/// Calls services by name.
#[derive(Clone, Debug)]
pub struct Client {
    /// Where names are looked up.
    pub dns: SocketAddr,
    /// Where calls come from: the pod's own address.
    pub source: IpAddr,
    /// What goes along with each call.
    pub headers: Vec<Header>,
}

impl Client {
    /// One that says nothing about itself.
    #[must_use]
    pub fn new(dns: SocketAddr, source: IpAddr) -> Self {
        Self { dns, source, headers: Vec::new() }
    }

    /// The same, saying this in addition.
    #[must_use]
    pub fn saying(mut self, header: Option<Header>) -> Self {
        self.headers.extend(header);
        self
    }

    /// Calls `service` by its name and says how it went.
    pub async fn call(&self, service: Service) -> Call {
        self.call_as(&service.fqdn(), service).await
    }

    /// Calls `service` by another name that leads to it.
    pub async fn call_as(&self, name: &str, service: Service) -> Call {
        let started = Instant::now();
        let mut address = None;
        let attempt = async {
            let found = names::address_of(self.dns, name).await?;
            address = Some(found);
            self.get(SocketAddr::new(found, PORT), name, service.path()).await
        };
        let outcome = settle(attempt).await;
        Call { name: name.to_owned(), address, ms: milliseconds(started), outcome }
    }

    /// Calls `service` at the address of its pod, as those do who are beside it.
    pub async fn call_at(&self, address: SocketAddr, service: Service) -> Call {
        let started = Instant::now();
        let outcome = settle(self.get(address, service.name(), service.path())).await;
        Call { name: service.name().to_owned(), address: Some(address.ip()), ms: milliseconds(started), outcome }
    }

    /// Asks the service at `to` for `path`.
    ///
    /// # Errors
    /// No connection, no answer, an error status or an answer that is not [`Answer`].
    pub async fn get(&self, to: SocketAddr, host: &str, path: &str) -> Result<Answer> {
        let stream = connect(self.source, to).await.with_context(|| format!("connect to {to}"))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await?;
        let mut request = Request::get(path).header(HOST, host).header(ACCEPT, "application/json");
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let request = request.body(Empty::new())?;
        let exchange = async {
            let response = sender.send_request(request).await.context("request")?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
            let body = body.map_err(|error| anyhow::anyhow!("answer cut short: {error}"))?.to_bytes();
            let answer = serde_json::from_slice::<Answer>(&body);
            if !status.is_success() {
                let cause = answer.ok().and_then(|answer| answer.first_error());
                bail!("status {}: {}", status.as_u16(), cause.as_deref().unwrap_or("no reason given"));
            }
            answer.context("answer is not ours")
        };
        // The connection has to be polled for the exchange to move; its own end is no news.
        let mut connection = std::pin::pin!(connection);
        let mut exchange = std::pin::pin!(exchange);
        tokio::select! {
            answer = &mut exchange => answer,
            ended = &mut connection => {
                if let Err(error) = ended {
                    return Err(error).context("connection");
                }
                exchange.await
            }
        }
    }
}

async fn settle(attempt: impl Future<Output = Result<Answer>>) -> Outcome {
    let ended = tokio::time::timeout(PATIENCE, attempt).await;
    match ended.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {PATIENCE:?}"))) {
        Ok(answer) => Outcome::Answer(Box::new(answer)),
        Err(error) => Outcome::Error(format!("{error:#}")),
    }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

async fn connect(source: IpAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if source.is_ipv4() == to.is_ipv4() {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
