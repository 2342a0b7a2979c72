//! Garbage in every shape: the fuzz corpus, cuts and mutations of it, and random bytes. No packet
//! panics, every reply is a well-formed message within its limits.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::sync::LazyLock;

use common::{Ask, corpus, sample};
use eastway_dns::Transport;
use hickory_proto::op::{Message, MessageType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use proptest::prelude::*;

static ASK: LazyLock<Ask> = LazyLock::new(|| Ask::new(sample()));

/// What holds for every packet.
fn check(ask: &Ask, packet: &[u8], what: &str) {
    for transport in [Transport::Udp, Transport::Tcp] {
        let Ok(reply) = ask.raw(packet, transport) else { continue };
        let limit = if transport == Transport::Udp { 1232 } else { 65535 };
        assert!(reply.len() <= limit, "{what}: {} bytes", reply.len());
        assert_eq!(reply[..2], packet[..2], "{what}");
        let mut decoder = BinDecoder::new(&reply);
        let message = Message::read(&mut decoder).unwrap_or_else(|error| panic!("{what}: {error}: {reply:02x?}"));
        assert!(decoder.is_empty(), "{what}: bytes behind the reply");
        assert_eq!(message.metadata.message_type, MessageType::Response, "{what}");
        assert!(message.queries.len() <= 1, "{what}");
    }
}

#[test]
fn u5_the_corpus_and_all_its_cuts_and_single_byte_changes() {
    for (name, packet) in corpus() {
        check(&ASK, &packet, &name);
        for end in 0..packet.len() {
            check(&ASK, &packet[..end], &format!("{name} cut at {end}"));
        }
        for at in 0..packet.len() {
            for value in [0, 1, 0x3f, 0x40, 0x7f, 0x80, 0xc0, 0xff] {
                let mut changed = packet.clone();
                changed[at] = value;
                check(&ASK, &changed, &format!("{name} with {value:#04x} at {at}"));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn u5_any_bytes(packet in proptest::collection::vec(any::<u8>(), 0..600)) {
        check(&ASK, &packet, "random bytes");
    }

    #[test]
    fn u5_any_name_and_tail(
        labels in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..70), 0..6),
        zone in any::<bool>(),
        tail in proptest::collection::vec(any::<u8>(), 0..40),
        additional in 0..3_u8,
    ) {
        let mut packet = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, additional];
        for label in labels {
            packet.push(u8::try_from(label.len()).unwrap());
            packet.extend(label);
        }
        packet.extend(if zone { &b"\x03svc\x0aclusterset\x05local\x00"[..] } else { b"\x00" });
        packet.extend([0, 1, 0, 1]);
        packet.extend(tail);
        check(&ASK, &packet, "any name");
    }
}
