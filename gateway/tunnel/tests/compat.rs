//! What gateways of earlier releases say on links is still understood, and what this one says is on record: see
//! `tests/compat/README.md` (F29).
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::num::NonZeroU16;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use eastway_proto::control::v1::control_message::Body;
use eastway_proto::control::v1::{
    Accepts, Anchor, Anchors, ControlMessage, GoAway, Heartbeat, HeartbeatAck, Hello, LinkError, Reauthenticate,
};
use eastway_tunnel::control::codec;
use eastway_tunnel::flow::{FlowId, decoders as flow};
use eastway_tunnel::header::{
    BenchHeader, ClientAddress, Decoded, EndpointRef, FederationHeader, Label, RelayHeader, ServiceHeader, Source,
    StreamHeader, Traceparent, decode,
};
use eastway_tunnel::transport::tcp_decoders as tcp;

const CONTROL: &str = "link-control.bin";
const HEADERS: &str = "link-headers.bin";
const PACKETS: &str = "link-flow.bin";
const FRAMES: &str = "link-tcp-frames.bin";

fn compat() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/compat")
}

/// One file of every release.
fn recorded(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folders = std::fs::read_dir(compat()).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    let files: Vec<_> = folders.map(|folder| folder.join(name)).filter(|file| file.exists()).collect();
    assert!(!files.is_empty(), "{name} is not recorded");
    files.into_iter().map(|file| (file.clone(), std::fs::read(file).unwrap())).collect()
}

fn messages() -> Vec<ControlMessage> {
    let id = |byte: u8| Bytes::from(vec![byte; 16]);
    let bodies = [
        Body::Hello(Hello {
            min_version: 1,
            max_version: 1,
            cluster: "onprem".to_owned(),
            replica_id: id(1),
            live_replicas: vec![id(1), id(2)],
            software_version: "0.1.0".to_owned(),
            wall_clock_ms: 1_800_000_000_000,
        }),
        Body::Accepts(Accepts { pins: vec![vec![7; 32].into()] }),
        Body::Anchors(Anchors {
            anchors: vec![Anchor { certificate: vec![0x30; 9].into(), crl: vec![0x30; 5].into() }],
        }),
        Body::Heartbeat(Heartbeat { sequence: 1, wall_clock_ms: 1_800_000_000_001, live_replicas: vec![id(1)] }),
        Body::HeartbeatAck(HeartbeatAck { sequence: 1, wall_clock_ms: 1_800_000_000_002 }),
        Body::Reauthenticate(Reauthenticate {
            chain: vec![vec![0x30; 9].into()],
            scheme: 0x0403,
            signature: vec![5; 70].into(),
        }),
        Body::GoAway(GoAway { reason: "drain".to_owned(), deadline_ms: 30_000 }),
        Body::Error(LinkError { code: 3, message: "no longer".to_owned() }),
    ];
    bodies.map(|body| ControlMessage { body: Some(body) }).to_vec()
}

fn headers() -> Vec<StreamHeader> {
    let label = |text| Label::parse(text).unwrap();
    let plain = ServiceHeader {
        namespace: label("bookinfo"),
        service: label("reviews"),
        port: NonZeroU16::new(9_080).unwrap(),
        subset: Default::default(),
        endpoint: None,
        source: Source { namespace: None, service_account: None, identity: None },
        traceparent: None,
        affinity: None,
        tls: false,
        client: None,
        flow: None,
    };
    let source = Source {
        namespace: Some(label("bookinfo")),
        service_account: Some(label("productpage")),
        identity: Some("spiffe://onprem.example/ns/bookinfo/sa/productpage".into()),
    };
    let full = ServiceHeader {
        subset: [("version".into(), "v2".into())].into(),
        endpoint: Some(EndpointRef::parse("e-1").unwrap()),
        source,
        traceparent: Traceparent::parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        affinity: Some(7),
        tls: true,
        client: ClientAddress::new("192.0.2.7:40000".parse().unwrap()),
        ..plain.clone()
    };
    vec![
        StreamHeader::Service(plain.clone()),
        StreamHeader::Service(full),
        StreamHeader::Service(ServiceHeader { flow: FlowId::new(2), ..plain }),
        StreamHeader::Federation(FederationHeader { min_version: 1, max_version: 1 }),
        StreamHeader::Probe,
        StreamHeader::Bench(BenchHeader { download: true, seconds: 3 }),
        StreamHeader::Relay(RelayHeader::To { cluster: label("edge"), path: 9 }),
        StreamHeader::Relay(RelayHeader::From { cluster: label("onprem") }),
    ]
}

fn packets() -> [Bytes; 3] {
    [Bytes::from_static(b"a question"), Bytes::new(), Bytes::from(vec![9; 1_500])]
}

/// Frames of a control connection of TCP: type, length, body.
fn frames() -> Vec<u8> {
    let flow = 7_u64.to_be_bytes();
    let bodies: [(u8, Vec<u8>); 9] = [
        (1, b"of the control stream".to_vec()),
        (2, [&flow[..], &[1]].concat()),
        (3, [&flow[..], &[1]].concat()),
        (4, flow.to_vec()),
        (6, flow.to_vec()),
        (7, flow.to_vec()),
        (8, vec![0, 16]),
        (9, Vec::new()),
        (5, b"\x01done".to_vec()),
    ];
    let frame =
        |(kind, body): &(u8, Vec<u8>)| [&[*kind][..], &u16::try_from(body.len()).unwrap().to_be_bytes(), body].concat();
    bodies.iter().flat_map(frame).collect()
}

#[test]
fn f29_what_is_said_on_links_today_is_what_is_recorded() {
    let recording: [(&str, Vec<u8>); 4] = [
        (CONTROL, messages().iter().flat_map(codec::encode).collect()),
        (HEADERS, headers().iter().flat_map(|header| header.encode().unwrap()).collect()),
        (PACKETS, packets().iter().flat_map(flow::framed).collect()),
        (FRAMES, tcp::frames([&frames()[..]]).frames.concat()),
    ];
    for (name, bytes) in recording {
        let file = compat().join("v0").join(name);
        if std::env::var_os("EASTWAY_REGENERATE").is_some() {
            std::fs::write(&file, &bytes).unwrap();
        }
        let recorded = std::fs::read(&file).unwrap_or_default();
        assert!(recorded == bytes, "{} differs from what the code says: see tests/compat/README.md", file.display());
    }
}

#[test]
fn f29_every_recorded_control_stream_is_understood() {
    for (file, bytes) in recorded(CONTROL) {
        let mut buffer = BytesMut::from(&bytes[..]);
        let mut read = Vec::new();
        while let Some(message) = codec::decode(&mut buffer).unwrap() {
            read.push(message);
        }
        assert!(read.starts_with(&messages()) && buffer.is_empty(), "{}: {read:#?}", file.display());
    }
}

#[test]
fn f29_every_recorded_header_is_understood() {
    for (file, bytes) in recorded(HEADERS) {
        let mut rest = &bytes[..];
        for wanted in headers() {
            let Ok(Decoded::Complete { header, used }) = decode(rest) else { panic!("{}", file.display()) };
            assert_eq!(header, wanted, "{}", file.display());
            rest = rest.get(used..).unwrap_or_default();
        }
    }
}

#[test]
fn f29_every_recorded_packet_and_frame_is_understood() {
    for (file, bytes) in recorded(PACKETS) {
        let mut stream = flow::Stream::default();
        assert!(stream.push(&bytes) == packets() && stream.kept() == 0, "{}", file.display());
    }
    for (file, bytes) in recorded(FRAMES) {
        let read = tcp::frames([&bytes[..]]);
        assert!(read.refused.is_none() && read.kept == 0 && read.frames.len() == 9, "{}: {read:?}", file.display());
        assert!(read.frames.concat() == bytes, "{}: what was said means something else now", file.display());
    }
}
