//! Alone in its process, for it looks at the memory of the whole of it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use common::{Ask, corpus, sample};
use eastway_dns::Transport;

#[test]
fn d1_a_hundred_thousand_bad_packets_leave_memory_alone() {
    let ask = Ask::new(sample());
    let corpus = corpus();
    let mut random = fastrand::Rng::with_seed(7);
    let mut round = |packets: usize| {
        for _ in 0..packets {
            let mut packet = corpus[random.usize(..corpus.len())].1.clone();
            for _ in 0..random.usize(..8) {
                if !packet.is_empty() {
                    let at = random.usize(..packet.len());
                    packet[at] = random.u8(..);
                }
            }
            for transport in [Transport::Udp, Transport::Tcp] {
                drop(ask.raw(&packet, transport));
            }
        }
    };
    round(10_000);
    let before = resident_kib();
    round(100_000);
    let grown = resident_kib().saturating_sub(before);
    assert!(grown < 1024, "{grown} KiB more than before");
}

/// Resident memory of this process.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
