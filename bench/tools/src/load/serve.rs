//! What answers: questions over TCP, and counts of what came over UDP.

use std::io::IoSliceMut;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use clap::Parser;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Longest question and answer.
const LARGEST: u32 = 1 << 20;
/// Asked for this many bytes, it answers with what came over UDP until then: packets and bytes, 8 bytes each.
pub(super) const COUNTS: u32 = 16;
/// A question of this many bytes is one for the counts.
pub(super) const ASK_COUNTS: u32 = 7;
/// After the answer to a question of this many bytes it closes the connection.
pub(super) const ASK_AND_CLOSE: u32 = 5;
/// Receive buffer of the UDP socket, as far as the kernel gives it.
const BUFFER: usize = 8 << 20;

/// Arguments of `eastway-bench load serve`.
#[derive(Debug, Parser)]
pub(super) struct Args {
    /// TCP here, UDP on the port after it
    listen: SocketAddr,
}

#[derive(Debug, Default)]
struct Counts {
    packets: AtomicU64,
    bytes: AtomicU64,
}

/// On one thread: several would wake each other for each connection, which takes as long as a gateway does for it.
#[tokio::main(flavor = "current_thread")]
pub(super) async fn run(args: &Args) -> Result<()> {
    let counts = Arc::new(Counts::default());
    let udp = std::net::UdpSocket::bind((args.listen.ip(), args.listen.port() + 1))?;
    std::thread::spawn({
        let counts = Arc::clone(&counts);
        move || count(&udp, &counts)
    });
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&args.listen.into())?;
    // All connections of a burst wait here.
    socket.listen(16_384)?;
    socket.set_nonblocking(true)?;
    let listener = TcpListener::from_std(socket.into())?;
    loop {
        let (client, _) = listener.accept().await?;
        tokio::spawn(answer(client, Arc::clone(&counts)));
    }
}

async fn answer(mut client: TcpStream, counts: Arc<Counts>) -> Result<()> {
    client.set_nodelay(true)?;
    let mut bytes = Vec::new();
    loop {
        let (question, answer) = (client.read_u32().await?.min(LARGEST), client.read_u32().await?.min(LARGEST));
        bytes.resize(usize::try_from(question)?, 0);
        client.read_exact(&mut bytes).await?;
        if (question, answer) == (ASK_COUNTS, COUNTS) {
            client.write_u64(counts.packets.load(Ordering::Relaxed)).await?;
            client.write_u64(counts.bytes.load(Ordering::Relaxed)).await?;
            continue;
        }
        bytes.resize(usize::try_from(answer)?, b'a');
        client.write_all(&bytes).await?;
        if question == ASK_AND_CLOSE {
            return Ok(());
        }
    }
}

/// Takes packets in the kernel's batches, so that what is measured is not this.
fn count(socket: &std::net::UdpSocket, counts: &Counts) -> Result<()> {
    setsockopt(socket, sockopt::UdpGroSegment, &true)?;
    let _as_far_as_it_goes = setsockopt(socket, sockopt::RcvBufForce, &BUFFER);
    let mut buffer = vec![0; 65_536];
    loop {
        let mut control = nix::cmsg_space!(i32);
        let mut into = [IoSliceMut::new(&mut buffer)];
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut into, Some(&mut control), MsgFlags::empty())?;
        let length = u64::try_from(message.bytes)?;
        let segment = message.cmsgs()?.find_map(|control| {
            let ControlMessageOwned::UdpGroSegments(size) = control else { return None };
            u64::try_from(size).ok()
        });
        let packets = segment.map_or(1, |size| length.div_ceil(size.max(1)));
        counts.packets.fetch_add(packets, Ordering::Relaxed);
        counts.bytes.fetch_add(length, Ordering::Relaxed);
    }
}
