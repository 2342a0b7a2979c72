//! Echo requests to the kernel of a host, as the tool `ping` sends them: what the way takes without any program.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Parser;
use socket2::{Domain, Protocol, Socket, Type};

use super::{PATIENCE, latencies, microseconds};
use crate::measure::Metrics;

/// Between two of them.
const PAUSE: Duration = Duration::from_millis(20);
/// Of an IPv4 header without options.
const IP_HEADER: usize = 20;

/// Arguments of `eastway-bench load icmp`.
#[derive(Debug, Parser)]
pub(super) struct Args {
    target: Ipv4Addr,
    /// How many
    #[arg(long, default_value_t = 50)]
    count: u16,
}

pub(super) fn run(args: &Args) -> Result<Metrics> {
    let mut socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(&SocketAddr::from((args.target, 0)).into())?;
    let mut took = Vec::new();
    for number in 0..args.count {
        let started = Instant::now();
        socket.send(&request(number))?;
        loop {
            let mut answer = [0; 128];
            let length = socket.read(&mut answer)?;
            // Type 0 is an echo reply; its number is that of the request.
            if length >= IP_HEADER + 8 && answer[IP_HEADER] == 0 && answer[IP_HEADER + 6..][..2] == number.to_be_bytes()
            {
                break;
            }
            ensure!(started.elapsed() < PATIENCE, "no answer");
        }
        took.push(microseconds(started.elapsed()));
        std::thread::sleep(PAUSE);
    }
    Ok(latencies(took))
}

/// RFC 792: type 8, code 0, checksum, identifier, number.
fn request(number: u16) -> [u8; 8] {
    let words = [0x0800_u16, 0, 0x4557, number];
    let sum: u32 = words.iter().map(|word| u32::from(*word)).sum();
    #[allow(clippy::cast_possible_truncation, reason = "the carry is folded in")]
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    let mut packet = [0; 8];
    for (bytes, word) in packet.chunks_exact_mut(2).zip([words[0], checksum, words[2], words[3]]) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_add_up() {
        for number in [0, 1, 0x1234, 0xffff] {
            let packet = request(number);
            let sum: u32 = packet.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
            assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "{packet:?}");
        }
    }
}
