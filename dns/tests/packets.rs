//! Bad and unusual packets, each with the answer it must get: what reliability demands of hostile
//! input, and the cases by which RFC 8906 tells a well-behaved server.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use common::{Ask, clusterset, headless, headless_endpoint, line, query, rcode, store};
use eastway_dns::{DropReason, Outcome, Protocol, Transport};
use hickory_proto::op::Message;

const WEB: &[u8] = b"\x03web\x04demo\x03svc\x0aclusterset\x05local\x00";
const A_IN: &[u8] = b"\x00\x01\x00\x01";

fn ask() -> Ask {
    let store = store(&["shop.example"]);
    store.upsert_service(&clusterset("demo", "web", &["242.0.0.1"], &[(Some("http"), Protocol::Tcp, 80)])).unwrap();
    let pods = (0..100).map(|i| headless_endpoint(Some(&format!("pod-{i}")), "c-a", &[&format!("10.0.0.{i}")]));
    store.upsert_service(&headless("demo", "big", pods.collect(), &[(Some("sql"), Protocol::Tcp, 5432)])).unwrap();
    Ask::new(store)
}

/// A message with RD set: id 0x1234, these flag bytes and section counts, and a body.
fn packet(flags: [u8; 2], counts: [u16; 4], body: &[&[u8]]) -> Vec<u8> {
    let mut packet = vec![0x12, 0x34, flags[0], flags[1]];
    packet.extend(counts.iter().flat_map(|count| count.to_be_bytes()));
    packet.extend(body.concat());
    packet
}

/// An ordinary query for `web` with something behind the question.
fn with_additional(count: u16, additional: &[u8]) -> Vec<u8> {
    packet([1, 0], [1, 0, 0, count], &[WEB, A_IN, additional])
}

/// An OPT record.
fn opt(payload: u16, version: u8, flags: u16, options: &[u8]) -> Vec<u8> {
    let mut opt = vec![0, 0, 41];
    opt.extend(payload.to_be_bytes());
    opt.extend([0, version]);
    opt.extend(flags.to_be_bytes());
    opt.extend(u16::try_from(options.len()).unwrap().to_be_bytes());
    opt.extend(options);
    opt
}

/// What came back, over either transport alike.
fn both(ask: &Ask, packet: &[u8]) -> Message {
    let udp = ask.raw(packet, Transport::Udp).unwrap();
    assert_eq!(udp, ask.raw(packet, Transport::Tcp).unwrap());
    assert_eq!(udp[..2], packet[..2], "the id comes back");
    Message::from_vec(&udp).unwrap()
}

#[test]
fn d3_what_must_not_be_answered_is_dropped() {
    let mut ask = ask();
    let good = query("web.demo.svc.clusterset.local", "A");
    for length in 0..12 {
        assert_eq!(ask.raw(&good[..length], Transport::Udp), Err(Outcome::Drop(DropReason::Short)));
        assert_eq!(ask.raw(&good[..length], Transport::Tcp), Err(Outcome::Drop(DropReason::Short)));
    }
    let mut response = good.clone();
    response[2] |= 0x80;
    assert_eq!(ask.raw(&response, Transport::Udp), Err(Outcome::Drop(DropReason::Response)));
    let reply = ask.raw(&good, Transport::Udp).unwrap();
    assert_eq!(ask.raw(&reply, Transport::Udp), Err(Outcome::Drop(DropReason::Response)), "our own reply");
    for source in ["192.0.2.1:0", "255.255.255.255:53", "224.0.0.251:5353", "0.0.0.0:53", "[ff02::fb]:5353", "[::]:53"]
    {
        ask.source = source.parse().unwrap();
        assert_eq!(ask.raw(&good, Transport::Udp), Err(Outcome::Drop(DropReason::Source)), "{source}");
    }
}

#[test]
fn d1_malformed_messages_are_format_errors() {
    let ask = ask();
    let long_name: Vec<u8> = [3, b'a', b'b', b'c'].repeat(64).into_iter().chain([0]).collect();
    let label_64 = [&[64][..], &[b'a'; 64], &[0]].concat();
    let one = [1, 0, 0, 0];
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("no question", packet([1, 0], [0, 0, 0, 0], &[])),
        ("no question but bytes", packet([1, 0], [0, 0, 0, 0], &[WEB, A_IN])),
        ("two questions", packet([1, 0], [2, 0, 0, 0], &[WEB, A_IN, WEB, A_IN])),
        ("a count of 65,535 questions", packet([1, 0], [65535, 0, 0, 0], &[WEB, A_IN])),
        ("counts of 65,535 answers", packet([1, 0], [1, 65535, 0, 0], &[WEB, A_IN])),
        ("counts of 65,535 authorities", packet([1, 0], [1, 0, 65535, 0], &[WEB, A_IN])),
        ("counts of 65,535 everywhere", packet([1, 0], [65535; 4], &[WEB, A_IN])),
        ("a pointer to itself", packet([1, 0], one, &[b"\xc0\x0c", A_IN])),
        ("a pointer loop", packet([1, 0], one, &[b"\x01a\xc0\x0c", A_IN])),
        ("a forward pointer", packet([1, 0], one, &[b"\xc0\x20", A_IN, WEB])),
        ("a pointer into the header", packet([1, 0], one, &[b"\xc0\x02", A_IN])),
        ("a label of 64 bytes", packet([1, 0], one, &[&label_64, A_IN])),
        ("a name of more than 255 bytes", packet([1, 0], one, &[&long_name, A_IN])),
        ("a name cut short", packet([1, 0], one, &[b"\x03web\x04de"])),
        ("no type and class", packet([1, 0], one, &[WEB])),
        ("half a class", packet([1, 0], one, &[WEB, b"\x00\x01\x00"])),
        ("trailing garbage", packet([1, 0], one, &[WEB, A_IN, b"garbage"])),
        ("an announced record that is not there", with_additional(1, b"")),
        ("half an OPT record", with_additional(1, &opt(1232, 0, 0, b"")[..8])),
        ("trailing garbage after OPT", with_additional(1, &[opt(1232, 0, 0, b""), b"x".to_vec()].concat())),
        ("two OPT records", with_additional(2, &[opt(1232, 0, 0, b""), opt(1232, 0, 0, b"")].concat())),
        ("an option longer than its record", with_additional(1, &opt(1232, 0, 0, b"\x00\x0a\x00\xff12345678"))),
        ("an OPT record in the answer section", packet([1, 0], [1, 1, 0, 0], &[WEB, A_IN, &opt(1232, 0, 0, b"")])),
        ("an OPT record of another name", with_additional(1, &[b"\x01a".to_vec(), opt(1232, 0, 0, b"")].concat())),
    ];
    for (what, packet) in cases {
        let reply = both(&ask, &packet);
        assert_eq!(rcode(&reply), "FORMERR", "{what}");
        assert!(reply.queries.is_empty() && reply.answers.is_empty() && reply.authorities.is_empty(), "{what}");
    }
}

#[test]
fn other_opcodes_are_not_implemented() {
    let ask = ask();
    // IQUERY, STATUS, 3, NOTIFY, UPDATE, DSO, and one that is not assigned; with and without a body.
    for opcode in [1, 2, 3, 4, 5, 6, 15] {
        for body in [&[][..], &[WEB, A_IN]] {
            let questions = u16::from(!body.is_empty());
            let reply = ask.raw(&packet([opcode << 3, 0], [questions, 0, 0, 0], body), Transport::Udp).unwrap();
            assert_eq!(reply, packet([0x80 | opcode << 3, 4], [0; 4], &[]), "opcode {opcode}");
        }
    }
}

#[test]
fn d3_what_is_not_served_is_refused() {
    let ask = ask();
    let version = b"\x07version\x04bind\x00";
    let cases: [(&str, Vec<u8>); 9] = [
        ("AXFR", packet([1, 0], [1, 0, 0, 0], &[b"\x0aclusterset\x05local\x00", b"\x00\xfc\x00\x01"])),
        ("IXFR", packet([1, 0], [1, 0, 0, 0], &[b"\x0aclusterset\x05local\x00", b"\x00\xfb\x00\x01"])),
        ("TKEY", packet([1, 0], [1, 0, 0, 0], &[WEB, b"\x00\xf9\x00\x01"])),
        ("MAILB", packet([1, 0], [1, 0, 0, 0], &[WEB, b"\x00\xfd\x00\x01"])),
        ("class CH", packet([1, 0], [1, 0, 0, 0], &[WEB, b"\x00\x01\x00\x03"])),
        ("class ANY", packet([1, 0], [1, 0, 0, 0], &[WEB, b"\x00\x01\x00\xff"])),
        ("class NONE", packet([1, 0], [1, 0, 0, 0], &[WEB, b"\x00\x01\x00\xfe"])),
        ("version.bind", packet([1, 0], [1, 0, 0, 0], &[version, b"\x00\x10\x00\x03"])),
        ("the root's name servers", packet([1, 0], [1, 0, 0, 0], &[b"\x00", b"\x00\x02\x00\x01"])),
    ];
    for (what, packet) in cases {
        let reply = both(&ask, &packet);
        assert_eq!((rcode(&reply), reply.metadata.authoritative), ("REFUSED", false), "{what}");
        assert_eq!((reply.queries.len(), reply.answers.len(), reply.authorities.len()), (1, 0, 0), "{what}");
    }
    // IXFR as it really is, with the SOA record of what the client has.
    let soa = b"\xc0\x0c\x00\x06\x00\x01\x00\x00\x00\x00\x00\x16\x00\x00\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00\x01";
    let ixfr = packet([0, 0], [1, 0, 1, 0], &[b"\x0aclusterset\x05local\x00", b"\x00\xfb\x00\x01", soa]);
    assert_eq!(rcode(&both(&ask, &ixfr)), "REFUSED");
}

/// Threat D4: what nobody asks others for, nobody can poison. Neither the recursion bit nor a name that lies next to,
/// above or around our zones gets anything but a refusal without records.
#[test]
fn d4_nothing_outside_our_zones_is_answered_and_nothing_is_asked_of_others() {
    let ask = ask();
    let names = [
        "example.com",
        "local",
        "com",
        "evil-clusterset.local",
        "clusterset.local.evil.example",
        "web.demo.svc.cluster.local",
        "xclusterset.local",
    ];
    for name in names {
        for qtype in ["A", "AAAA", "NS", "SOA", "TXT"] {
            let answer = ask.message(name, qtype);
            assert_eq!(rcode(&answer), "REFUSED", "{name} {qtype}");
            assert!(!answer.metadata.recursion_available, "{name}");
            assert!(answer.answers.is_empty() && answer.authorities.is_empty(), "{name} {qtype}: {answer}");
        }
    }
}

#[test]
fn d3_any_gets_one_small_record() {
    let ask = ask();
    assert_eq!(ask.line("web.demo.svc.clusterset.local", "ANY"), "NOERROR HINFO RFC8482 ");
    assert_eq!(ask.line("none.demo.svc.clusterset.local", "ANY"), "NXDOMAIN SOA");
    assert!(ask.raw(&query("big.demo.svc.clusterset.local", "ANY"), Transport::Udp).unwrap().len() < 100);
}

#[test]
fn edns_is_answered_as_it_is_asked() {
    let ask = ask();
    let plain = both(&ask, &with_additional(0, b""));
    assert_eq!((line(&plain).as_str(), plain.edns.is_none()), ("NOERROR A 242.0.0.1", true));

    let cookie = b"\x00\x0a\x00\x0812345678";
    let unknown = b"\x12\x34\x00\x00\x56\x78\x00\x03abc";
    let client_subnet = b"\x00\x08\x00\x07\x00\x01\x18\x00\xc0\x00\x02";
    let cases = [
        ("bufsize 0", opt(0, 0, 0, b""), false),
        ("bufsize 65,535", opt(65535, 0, 0, b""), false),
        ("DO", opt(1232, 0, 0x8000, b""), true),
        ("unknown flags", opt(1232, 0, 0x7fff, b""), false),
        ("unknown options", opt(1232, 0, 0, unknown), false),
        ("a cookie", opt(1232, 0, 0, cookie), false),
        ("a client subnet", opt(1232, 0, 0, client_subnet), false),
        ("NSID", opt(1232, 0, 0, b"\x00\x03\x00\x00"), false),
        ("padding", opt(1232, 0, 0, &[&b"\x00\x0c\x00\x80"[..], &[0; 128]].concat()), false),
    ];
    for (what, opt, dnssec_ok) in cases {
        let reply = both(&ask, &with_additional(1, &opt));
        assert_eq!(line(&reply), "NOERROR A 242.0.0.1", "{what}");
        let edns = reply.edns.unwrap();
        assert_eq!((edns.version(), edns.max_payload(), edns.flags().dnssec_ok), (0, 1232, dnssec_ok), "{what}");
        assert_eq!((edns.flags().z, edns.options().as_ref().len()), (0, 0), "{what}");
    }
    for version in [1, 2, 255] {
        let reply = both(&ask, &with_additional(1, &opt(1232, version, 0x8000, unknown)));
        assert_eq!((rcode(&reply), reply.edns.unwrap().version()), ("BADVERS", 0), "version {version}");
    }
}

#[test]
fn other_records_in_a_query_are_not_looked_at() {
    let ask = ask();
    // A TSIG record, as a client with a key sends it; a KEY of nobody; a record in each section.
    let tsig = b"\x03key\x00\x00\xfa\x00\xff\x00\x00\x00\x00\x00\x3a\x08hmac-md5\x07sig-alg\x03reg\x03int\x00\
                 \x00\x00\x65\x00\x00\x00\x01\x2c\x00\x100123456789abcdef\x12\x34\x00\x00\x00\x00";
    assert_eq!(line(&both(&ask, &with_additional(1, tsig))), "NOERROR A 242.0.0.1");
    let address = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x05\x00\x04\x01\x02\x03\x04";
    let everywhere = packet([1, 0], [1, 1, 1, 1], &[WEB, A_IN, address, address, address]);
    assert_eq!(line(&both(&ask, &everywhere)), "NOERROR A 242.0.0.1");
}

#[test]
fn header_bits_come_back_as_rfc_8906_wants_them() {
    let ask = ask();
    // (bits of the query, bits of the reply): AA set, RD and CD copied; TC, AA, AD, Z and RCODE not.
    for (sent, expected) in [
        ([0x00, 0x00], [0x84, 0x00]),
        ([0x01, 0x00], [0x85, 0x00]),
        ([0x00, 0x10], [0x84, 0x10]),
        ([0x06, 0x00], [0x84, 0x00]),
        ([0x00, 0x60], [0x84, 0x00]),
        ([0x00, 0x80], [0x84, 0x00]),
        ([0x00, 0x0f], [0x84, 0x00]),
    ] {
        let reply = ask.raw(&packet(sent, [1, 0, 0, 0], &[WEB, A_IN]), Transport::Udp).unwrap();
        assert_eq!(reply[2..4], expected, "{sent:02x?}");
    }
}

#[test]
fn unknown_types_of_known_names_have_no_data() {
    let ask = ask();
    for qtype in [0_u16, 5, 15, 65, 99, 257, 1000, 65280, 65535] {
        let packet = packet([1, 0], [1, 0, 0, 0], &[WEB, &qtype.to_be_bytes(), b"\x00\x01"]);
        assert_eq!(line(&both(&ask, &packet)), "NOERROR SOA", "type {qtype}");
    }
}

#[test]
fn large_answers_are_cut_at_whole_records() {
    let ask = ask();
    for (what, packet, limit) in [
        ("no EDNS", query_without_edns("big.demo.svc.clusterset.local"), 512),
        ("bufsize 0", with_bufsize("big.demo.svc.clusterset.local", 0), 512),
        ("bufsize 700", with_bufsize("big.demo.svc.clusterset.local", 700), 700),
        ("bufsize 1232", with_bufsize("big.demo.svc.clusterset.local", 1232), 1232),
        ("bufsize 65,535", with_bufsize("big.demo.svc.clusterset.local", 65535), 1232),
    ] {
        let bytes = ask.raw(&packet, Transport::Udp).unwrap();
        let reply = Message::from_vec(&bytes).unwrap();
        assert!(reply.metadata.truncation, "{what}");
        assert!(bytes.len() <= limit && bytes.len() > limit - 40, "{what}: {}", bytes.len());
        let tcp = Message::from_vec(&ask.raw(&packet, Transport::Tcp).unwrap()).unwrap();
        assert_eq!((tcp.metadata.truncation, tcp.answers.len()), (false, 100), "{what}");
    }
}

#[test]
fn d3_over_the_rate_a_client_is_sent_to_tcp_or_not_answered() {
    let mut ask = ask();
    ask.responder = eastway_dns::Responder::new(
        {
            let store = store(&[]);
            store.upsert_service(&clusterset("demo", "web", &["242.0.0.1"], &[])).unwrap();
            store
        },
        std::sync::Arc::new(eastway_dns::RateLimiter::new(10, ask.now)),
    );
    let packet = query("web.demo.svc.clusterset.local", "A");
    let mut answered = 0;
    let mut slipped = 0;
    let mut dropped = 0;
    for _ in 0..100 {
        match ask.raw(&packet, Transport::Udp) {
            Ok(reply) if Message::from_vec(&reply).unwrap().metadata.truncation => {
                assert!(reply.len() <= packet.len(), "no amplification");
                slipped += 1;
            }
            Ok(_) => answered += 1,
            Err(outcome) => {
                assert_eq!(outcome, Outcome::Drop(DropReason::RateLimited));
                dropped += 1;
            }
        }
    }
    assert_eq!((answered, slipped, dropped), (20, 40, 40));
    assert_eq!(line(&Message::from_vec(&ask.raw(&packet, Transport::Tcp).unwrap()).unwrap()), "NOERROR A 242.0.0.1");
    ask.source = "203.0.113.9:1".parse().unwrap();
    assert!(ask.raw(&packet, Transport::Udp).is_ok(), "other networks are not touched");
}

fn query_without_edns(name: &str) -> Vec<u8> {
    let mut packet = query(name, "A");
    packet.truncate(packet.len() - 11);
    packet[11] = 0;
    packet
}

fn with_bufsize(name: &str, bufsize: u16) -> Vec<u8> {
    let mut packet = query_without_edns(name);
    packet[11] = 1;
    packet.extend(opt(bufsize, 0, 0, b""));
    packet
}
