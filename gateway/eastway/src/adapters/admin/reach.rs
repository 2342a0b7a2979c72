//! Whether packets to an address come back, found out without a certificate.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::net::{UdpSocket, lookup_host};
use tokio::time::{interval, timeout};

use crate::admin::check::Reach;

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_millis(2500);
/// A packet may be lost, and so may an answer: systems send few ICMP messages (Linux one per second and host).
const RESEND: Duration = Duration::from_millis(250);
/// Smallest datagram that a QUIC server answers (RFC 9000 §14.1).
const INITIAL: usize = 1200;
/// A version that nobody speaks (RFC 9000 §15: reserved to exercise version negotiation).
const GREASE_VERSION: [u8; 4] = [0x1a, 0x2a, 0x3a, 0x4a];

/// Asks an address for version negotiation: any QUIC server answers it without keeping state.
pub(super) async fn probe(address: &str) -> Reach {
    let addresses: Vec<SocketAddr> = match lookup_host(address).await {
        Ok(addresses) => addresses.collect(),
        Err(error) => return Reach::Unresolved(error.to_string()),
    };
    let Some(first) = addresses.first() else { return Reach::Unresolved("no address".to_owned()) };
    match timeout(PATIENCE, ask(*first)).await {
        Err(_elapsed) => Reach::Silent,
        Ok(Ok(after)) => Reach::Answered(after),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Reach::Refused,
        Ok(Err(error)) => Reach::Unroutable(error.to_string()),
    }
}

async fn ask(to: SocketAddr) -> io::Result<Duration> {
    let any: SocketAddr = if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(to).await?;
    let began = Instant::now();
    let packet = initial();
    let mut reply = [0; 1500];
    let mut sends = interval(RESEND);
    loop {
        let received = tokio::select! {
            received = socket.recv(&mut reply) => received,
            _ = sends.tick() => {
                socket.send(&packet).await?;
                continue;
            }
        };
        let length = received?;
        // A version negotiation packet: long header, version 0.
        if let [first, 0, 0, 0, 0, ..] = reply.get(..length).unwrap_or_default()
            && first & 0x80 != 0
        {
            return Ok(began.elapsed());
        }
    }
}

/// A long header of an unknown version with two connection ids of eight bytes, padded.
fn initial() -> Vec<u8> {
    let mut packet = vec![0xc0];
    packet.extend_from_slice(&GREASE_VERSION);
    for _ in 0..2 {
        packet.push(8);
        packet.extend(std::iter::repeat_with(|| fastrand::u8(..)).take(8));
    }
    packet.resize(INITIAL, 0);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_where_nobody_listens_is_refused_and_a_silent_one_is_silent() {
        let closed = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        assert_eq!(probe(&closed.to_string()).await, Reach::Refused);
        let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        assert_eq!(probe(&silent.local_addr().unwrap().to_string()).await, Reach::Silent);
    }
}
