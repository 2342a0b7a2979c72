//! Packets of one size at rising rates: the most that arrives. They are handed to the kernel in batches that it cuts
//! up (`UDP_SEGMENT`), so that what is measured is not this.

use std::io::IoSlice;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use super::Asker;
use super::serve::{ASK_COUNTS, COUNTS};
use crate::measure::Metrics;

/// After which nothing comes any more.
const LAST: Duration = Duration::from_millis(300);
/// Of a batch.
const PACKETS: u16 = 32;

/// Arguments of `eastway-bench load udp`.
#[derive(Debug, Parser)]
pub(super) struct Args {
    /// Where packets go
    target: SocketAddr,
    /// Where the counts are asked for, over TCP and without a tunnel
    counts: SocketAddr,
    /// Bytes of a packet
    #[arg(long, default_value_t = 1200)]
    size: u16,
    /// Mbit/s offered, one after the other
    #[arg(long, value_delimiter = ',', default_value = "500,1000,2000,3000,4000,6000")]
    rates: Vec<u32>,
    /// Seconds of each rate
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
}

pub(super) fn run(args: &Args) -> Result<Metrics> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(args.target)?;
    let mut asker = Asker::connect(None, args.counts, ASK_COUNTS, COUNTS)?;
    let (mut best, mut clean) = (0.0_f64, 0.0_f64);
    for rate in &args.rates {
        let before = arrived(&mut asker)?;
        let (sent, took) = send(&socket, *rate, args.size, Duration::try_from_secs_f64(args.seconds)?)?;
        std::thread::sleep(LAST);
        let came = arrived(&mut asker)? - before;
        let mbit = came * 8.0 / 1e6 / took.as_secs_f64();
        best = best.max(mbit);
        if came >= sent * 0.99 {
            clean = clean.max(mbit);
        }
    }
    Ok(Metrics::from([("mbit".to_owned(), best), ("mbit_below_1_percent_loss".to_owned(), clean)]))
}

/// Sends at a rate; gives the bytes that left, and for how long.
fn send(socket: &UdpSocket, mbit: u32, size: u16, duration: Duration) -> Result<(f64, Duration)> {
    let batch = vec![b'u'; usize::from(size) * usize::from(PACKETS)];
    let pause = Duration::from_secs_f64(f64::from(size) * f64::from(PACKETS) * 8.0 / (f64::from(mbit) * 1e6));
    let started = Instant::now();
    let (mut due, mut sent) = (started, 0.0);
    while started.elapsed() < duration {
        let now = Instant::now();
        if due > now {
            std::thread::sleep(due - now);
        } else if now - due > Duration::from_millis(5) {
            // It cannot keep up: what it is behind is not caught up in a burst.
            due = now;
        }
        due += pause;
        let segments = [ControlMessage::UdpGsoSegments(&size)];
        let flags = MsgFlags::empty();
        match sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&batch)], &segments, flags, None) {
            Ok(bytes) => sent += f64::from(u32::try_from(bytes)?),
            Err(nix::errno::Errno::ENOBUFS | nix::errno::Errno::EAGAIN) => {}
            Err(error) => return Err(error).context("send packets"),
        }
    }
    Ok((sent, started.elapsed()))
}

/// Bytes that have come to the server until now.
fn arrived(asker: &mut Asker) -> Result<f64> {
    asker.ask()?;
    let bytes = asker.answer.get(8..16).context("counts")?.try_into()?;
    #[allow(clippy::cast_precision_loss, reason = "below 2^53")]
    Ok(u64::from_be_bytes(bytes) as f64)
}
