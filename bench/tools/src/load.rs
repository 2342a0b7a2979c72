//! Both ends of the load that iperf3 does not make. Each prints one JSON object of figures when it has ended.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use serde_json::json;
use socket2::{Domain, Socket, Type};

use crate::measure::Metrics;
use crate::statistics::quantile;

mod connect;
mod icmp;
pub mod idle;
mod ping;
mod rpc;
mod serve;
mod udp;

/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Arguments of `eastway-bench load`.
#[derive(Debug, Parser)]
pub struct Args {
    #[command(subcommand)]
    kind: Kind,
}

#[derive(Debug, Subcommand)]
enum Kind {
    /// Answers all others, until it is killed
    Serve(serve::Args),
    /// One question after the other on one connection
    Ping(ping::Args),
    /// Questions at a constant rate on several connections
    Rpc(rpc::Args),
    /// New connections, one question on each
    Connect(connect::Args),
    /// Echo requests to a kernel; as root
    Icmp(icmp::Args),
    /// Connections that are opened and kept
    Idle(idle::Args),
    /// Packets of one size, at rising rates
    Udp(udp::Args),
}

/// Runs it to its end.
///
/// # Errors
/// The other side cannot be reached or answers wrongly.
pub fn run(args: &Args) -> Result<()> {
    let metrics = match &args.kind {
        Kind::Serve(args) => return serve::run(args),
        Kind::Ping(args) => ping::run(args)?,
        Kind::Rpc(args) => rpc::run(args)?,
        Kind::Connect(args) => connect::run(args)?,
        Kind::Icmp(args) => icmp::run(args)?,
        Kind::Idle(args) => match idle::run(args)? {},
        Kind::Udp(args) => udp::run(args)?,
    };
    println!("{}", json!(metrics));
    Ok(())
}

/// A connection that asks `serve`: the length of the question, the length of the answer, the question.
#[derive(Debug)]
struct Asker {
    stream: TcpStream,
    question: Vec<u8>,
    answer: Vec<u8>,
}

impl Asker {
    /// From this address, or whichever the kernel takes.
    fn connect(source: Option<IpAddr>, target: SocketAddr, question: u32, answer: u32) -> Result<Self> {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
        if let Some(source) = source {
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        socket.connect_timeout(&target.into(), PATIENCE)?;
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut bytes = [question.to_be_bytes(), answer.to_be_bytes()].concat();
        bytes.resize(bytes.len() + usize::try_from(question)?, b'q');
        Ok(Self { stream, question: bytes, answer: vec![0; usize::try_from(answer)?] })
    }

    fn ask(&mut self) -> Result<()> {
        self.stream.write_all(&self.question)?;
        self.stream.read_exact(&mut self.answer)?;
        Ok(())
    }
}

/// How long things took, of microseconds.
fn latencies(mut microseconds: Vec<f64>) -> Metrics {
    microseconds.sort_by(f64::total_cmp);
    let at = |share| quantile(&microseconds, share).unwrap_or_default();
    let shares = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999)];
    let both = shares
        .iter()
        .flat_map(|(name, share)| [(format!("{name}_us"), at(*share)), (format!("{name}_ms"), at(*share) / 1e3)]);
    both.collect()
}

fn microseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
