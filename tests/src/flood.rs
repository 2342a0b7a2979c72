//! Datagrams of strangers, as fast as one core sends them: a process that a gateway knows nothing of.

use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, sendmmsg};

use crate::lab::Lab;
use crate::lab::cloud::Cloud;
use crate::lab::files::LINK_PORT;

/// Where strangers come from: a network of documentation (RFC 5737) behind the WAN's bridge.
const STRANGERS: &str = "203.0.113.0/24";
/// Different addresses and ports that packets come from.
const SOURCES: u8 = 250;
/// Packets of one system call.
const BATCH: usize = 64;

/// What the packets are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Junk {
    /// First packets of QUIC version 1, as good as a server can see before it answers.
    Initials,
    /// Packets that look as if they belonged to a connection.
    Short,
}

/// Packets that are sent until it is stopped.
#[derive(Debug)]
pub struct Flood {
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
    begun: Instant,
}

/// How much was sent.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// Packets.
    pub packets: u64,
    /// In this time.
    pub took: Duration,
}

impl Sent {
    /// Packets per second.
    #[must_use]
    pub fn rate(&self) -> u64 {
        self.packets * 1_000 / u64::try_from(self.took.as_millis()).unwrap_or(u64::MAX).max(1)
    }
}

impl Flood {
    /// Begins to send `junk` to the link port of the first gateway of `target`, at most `rate` packets per second.
    ///
    /// # Errors
    /// The sources cannot be made.
    pub async fn start(lab: &Lab, target: &Cloud, junk: Junk, rate: u64) -> Result<Self> {
        let gateway = target.net().gateways().first().context("a gateway")?;
        let IpAddr::V4(address) = gateway.wan else { bail!("{} is no IPv4 address", gateway.wan) };
        let target = SocketAddrV4::new(address, LINK_PORT);
        // All of the network is the WAN's own, so that it can send from each address; and answers find the way there.
        lab.wan().ip(&format!("route replace local {STRANGERS} dev lo")).await?;
        gateway.place.ip(&format!("route replace {STRANGERS} via 198.51.100.1")).await?;
        let sockets = async {
            let bind = |last| UdpSocket::bind(SocketAddr::from((Ipv4Addr::new(203, 0, 113, last), 0)));
            Ok((1..=SOURCES).map(bind).collect::<std::io::Result<Vec<_>>>()?)
        };
        let sockets = lab.wan().run(sockets).await?;
        let (sent, stop) = (Arc::default(), Arc::default());
        let (counter, stopped) = (Arc::clone(&sent), Arc::clone(&stop));
        let thread = std::thread::Builder::new().name("flood".into());
        let thread = thread.spawn(move || send(&sockets, target, junk, rate, &counter, &stopped))?;
        Ok(Self { sent, stop, thread, begun: Instant::now() })
    }

    /// Sends no more.
    ///
    /// # Errors
    /// It ended before.
    pub fn stop(self) -> Result<Sent> {
        self.stop.store(true, Ordering::Relaxed);
        let took = self.begun.elapsed();
        match self.thread.join() {
            Ok(result) => result.context("the flood ended")?,
            Err(_panic) => bail!("the flood panicked"),
        }
        let sent = Sent { packets: self.sent.load(Ordering::Relaxed), took };
        ensure!(sent.packets > 0, "nothing was sent");
        Ok(sent)
    }
}

fn send(
    sockets: &[UdpSocket],
    target: SocketAddrV4,
    junk: Junk,
    rate: u64,
    sent: &AtomicU64,
    stop: &AtomicBool,
) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(u64::from(target.port()));
    let mut packets: Vec<Vec<u8>> = (0..BATCH).map(|_| packet(junk, &mut random)).collect();
    let target = [Some(SockaddrIn::from(target)); BATCH];
    let mut headers = MultiHeaders::preallocate(BATCH, None);
    let begun = Instant::now();
    for socket in sockets.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        // Other connection ids than the last time; the rest need not differ.
        for packet in &mut packets {
            if let Some(ids) = packet.get_mut(6..14) {
                random.fill(ids);
            }
        }
        let slices: Vec<[IoSlice<'_>; 1]> = packets.iter().map(|packet| [IoSlice::new(packet)]).collect();
        match sendmmsg(socket.as_raw_fd(), &mut headers, &slices, target, [], MsgFlags::empty()) {
            Ok(results) => {
                let count = sent.fetch_add(results.count() as u64, Ordering::Relaxed);
                let due = Duration::from_secs_f64(count as f64 / rate as f64);
                if let Some(early) = due.checked_sub(begun.elapsed()) {
                    std::thread::sleep(early);
                }
            }
            // A queue on the way is full, or an answer to an earlier packet says that nobody listens.
            Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::ECONNREFUSED) => {}
            Err(error) => return Err(error).context("send"),
        }
    }
    Ok(())
}

fn packet(junk: Junk, random: &mut fastrand::Rng) -> Vec<u8> {
    let mut packet = vec![0; if junk == Junk::Initials { 1_200 } else { 60 }];
    random.fill(&mut packet);
    let begin: &[(usize, &[u8])] = match junk {
        // Long header, Initial; version 1; both connection ids of 8 bytes; no token; the length of the rest.
        Junk::Initials => &[(0, &[0xc3, 0, 0, 0, 1, 8]), (14, &[8]), (23, &[0, 0x44, 0x96])],
        Junk::Short => &[(0, &[0x43])],
    };
    for (at, bytes) in begin {
        packet.iter_mut().skip(*at).zip(*bytes).for_each(|(byte, value)| *byte = *value);
    }
    packet
}
