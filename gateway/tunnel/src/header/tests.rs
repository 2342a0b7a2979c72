//! Every header that must be refused, with the code it must get (reliability table "tunnel stream header").

use prost::Message;

use super::*;

fn message(service: proto::ServiceStream) -> Vec<u8> {
    proto::StreamHeader { kind: Some(proto::stream_header::Kind::Service(service)) }.encode_to_vec()
}

fn framed(message: &[u8]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&u16::try_from(message.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(message);
    bytes
}

fn good() -> proto::ServiceStream {
    proto::ServiceStream {
        namespace: "bookinfo".into(),
        service: "reviews".into(),
        port: 9080,
        ..proto::ServiceStream::default()
    }
}

fn code(message: &[u8]) -> Option<ResetCode> {
    decode(&framed(message)).err().map(|error| error.code())
}

#[test]
fn measurements_are_bounded() {
    for (seconds, expected) in
        [(0, Some(ResetCode::BadHeader)), (1, None), (10, None), (11, Some(ResetCode::BadHeader))]
    {
        let kind = proto::stream_header::Kind::Bench(proto::BenchStream { download: false, seconds });
        assert_eq!(code(&proto::StreamHeader { kind: Some(kind) }.encode_to_vec()), expected, "{seconds} s");
    }
}

fn full() -> StreamHeader {
    StreamHeader::Service(ServiceHeader {
        namespace: Label::parse("bookinfo").unwrap(),
        service: Label::parse("reviews").unwrap(),
        port: NonZeroU16::new(9080).unwrap(),
        subset: [("version".into(), "v2".into()), ("example.com/tier".into(), "".into())].into(),
        endpoint: Some(EndpointRef::parse("ep-17").unwrap()),
        source: Source {
            namespace: Some(Label::parse("bookinfo").unwrap()),
            service_account: Some(Label::parse("productpage").unwrap()),
            identity: Some("spiffe://onprem.example/ns/bookinfo/sa/productpage".into()),
        },
        traceparent: Traceparent::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        affinity: Some(7),
        tls: true,
        client: ClientAddress::new("[2001:db8::7]:40000".parse().unwrap()),
        flow: None,
    })
}

#[test]
fn what_is_encoded_is_decoded_and_no_byte_more_is_taken() {
    let federation = StreamHeader::Federation(FederationHeader { min_version: 1, max_version: 3 });
    let bench = StreamHeader::Bench(BenchHeader { download: true, seconds: MAX_BENCH_SECONDS });
    let cluster = Label::parse("gke").unwrap();
    let relay = [RelayHeader::To { cluster: cluster.clone(), path: u64::MAX }, RelayHeader::From { cluster }];
    let [to, from] = relay.map(StreamHeader::Relay);
    for header in [full(), federation, StreamHeader::Probe, bench, to, from] {
        let mut bytes = header.encode().unwrap().to_vec();
        let length = bytes.len();
        bytes.extend_from_slice(b"GET / HTTP/1.1");
        assert_eq!(decode(&bytes), Ok(Decoded::Complete { header: header.clone(), used: length }));
        for cut in 0..length {
            let Ok(Decoded::Incomplete(missing)) = decode(&bytes[..cut]) else { panic!("{header:?} cut at {cut}") };
            assert!(missing > 0 && missing <= length - cut, "{cut}: {missing}");
        }
    }
}

#[test]
fn a_flow_has_an_id_and_a_connection_has_none() {
    let udp = i32::from(proto::Protocol::Udp);
    let flow = |protocol, flow_id| code(&message(proto::ServiceStream { protocol, flow_id, ..good() }));
    assert_eq!(flow(0, None), None);
    assert_eq!(flow(udp, Some(0)), None);
    assert_eq!(flow(udp, Some((1 << 62) - 1)), None);
    assert_eq!(flow(udp, None), Some(ResetCode::BadHeader));
    assert_eq!(flow(0, Some(2)), Some(ResetCode::BadHeader));
    assert_eq!(flow(udp, Some(1 << 62)), Some(ResetCode::BadHeader), "no variable-length integer");
    assert_eq!(flow(2, Some(2)), Some(ResetCode::Unsupported));
    let StreamHeader::Service(header) = full() else { unreachable!() };
    let header = StreamHeader::Service(ServiceHeader { flow: FlowId::new(77), ..header });
    let Ok(Decoded::Complete { header: decoded, .. }) = decode(&header.encode().unwrap()) else { unreachable!() };
    assert_eq!((decoded.flow(), &decoded), (FlowId::new(77), &header));
}

#[test]
fn a_header_that_does_not_fit_is_not_sent() {
    let StreamHeader::Service(mut service) = full() else { unreachable!() };
    let label = |index: usize| Arc::from(format!("{}{index:02}", "k".repeat(60)));
    service.subset = (0..10).map(|index| (label(index), label(index))).collect();
    assert!(StreamHeader::Service(service).encode().unwrap_err().0 > MAX_HEADER);
}

#[test]
fn p5_prefixes_that_are_none_are_refused_at_their_first_wrong_byte() {
    let table: [(&[u8], ResetCode); 8] = [
        (b"GET / HTTP/1.1\r\n", ResetCode::BadHeader),
        (b"G", ResetCode::BadHeader),
        (b"\x16\x03\x01", ResetCode::BadHeader),
        (b"EWS2", ResetCode::Version),
        (b"EWS\0", ResetCode::Version),
        (b"EWS1\0\0", ResetCode::BadHeader),
        (b"EWS1\x04\x01", ResetCode::BadHeader),
        (b"EWS1\xff\xff", ResetCode::BadHeader),
    ];
    for (bytes, expected) in table {
        assert_eq!(decode(bytes).map_err(|error| error.code()), Err(expected), "{bytes:?}");
    }
    assert_eq!(decode(b""), Ok(Decoded::Incomplete(PREFIX)));
}

#[test]
fn p5_p11_names_that_are_none_are_refused() {
    let long = "a".repeat(64);
    let names = [
        "",
        "Reviews",
        "reviews.",
        "re.views",
        "münchen",
        "xn--\u{fc}",
        "re\0views",
        "../reviews",
        "-reviews",
        "reviews-",
        "re views",
        "re\nviews",
        "re\u{1b}[31mviews",
        "re\u{202e}views",
        &long,
    ];
    let addresses = [
        "10.0.0.1",
        "0x7f.1",
        "::1",
        "::ffff:127.0.0.1",
        "[::1]",
        "127.1",
        "2130706433",
        "0x7f000001",
        "017700000001",
        "169.254.169.254",
        "fe80::1%eth0",
        "localhost.",
        "kubernetes.default",
    ];
    for name in names.into_iter().chain(addresses) {
        let service = proto::ServiceStream { service: name.into(), ..good() };
        assert_eq!(code(&message(service)), Some(ResetCode::BadName), "service {name:?}");
    }
    for name in names {
        let namespace = proto::ServiceStream { namespace: name.into(), ..good() };
        assert_eq!(code(&message(namespace)), Some(ResetCode::BadName), "namespace {name:?}");
    }
    for name in ["UPPER", "a.b", "1.2.3.4", "a b", &"e".repeat(65)] {
        let endpoint = proto::ServiceStream { endpoint_id: name.into(), ..good() };
        assert_eq!(code(&message(endpoint)), Some(ResetCode::BadName), "endpoint {name:?}");
    }
    for identity in
        ["spiffe://", "http://a/ns/b/sa/c", "spiffe://a/ns/b/sa/c/d", "spiffe://a/ns/b", "spiffe://A/ns/b/sa/c"]
    {
        let source = Some(proto::Source { identity: identity.into(), ..proto::Source::default() });
        let with_identity = proto::ServiceStream { source, ..good() };
        assert_eq!(code(&message(with_identity)), Some(ResetCode::BadName), "identity {identity:?}");
    }
    for (key, value) in [("", "v"), ("Bad Key", "v"), ("a/b/c", "v"), ("k", "v\n"), ("k", "-v")] {
        let subset = proto::ServiceStream { subset: [(key.into(), value.into())].into(), ..good() };
        assert_eq!(code(&message(subset)), Some(ResetCode::BadName), "subset {key:?}={value:?}");
    }
}

#[test]
fn numbers_out_of_range_are_refused() {
    for port in [0, 65_536, u32::MAX] {
        assert_eq!(code(&message(proto::ServiceStream { port, ..good() })), Some(ResetCode::BadHeader), "{port}");
    }
    let subset = (0..17).map(|index| (format!("k{index}"), String::new())).collect();
    assert_eq!(code(&message(proto::ServiceStream { subset, ..good() })), Some(ResetCode::BadHeader));
    for (min_version, max_version) in [(0, 1), (2, 1), (0, 0)] {
        let federation = proto::FederationStream { min_version, max_version };
        let header = proto::StreamHeader { kind: Some(proto::stream_header::Kind::Federation(federation)) };
        assert_eq!(code(&header.encode_to_vec()), Some(ResetCode::BadHeader), "{min_version}-{max_version}");
    }
}

/// One length-delimited field.
fn field(number: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    prost::encoding::encode_key(number, prost::encoding::WireType::LengthDelimited, &mut bytes);
    prost::encoding::encode_varint(payload.len() as u64, &mut bytes);
    bytes.extend_from_slice(payload);
    bytes
}

#[test]
fn fields_that_come_twice_or_are_not_known_are_refused() {
    let service = good().encode_to_vec();
    let twice = |extra: Vec<u8>| field(1, &[service.clone(), extra].concat());
    let table = [
        ("the service twice", [field(1, &service), field(1, &service)].concat(), ResetCode::BadHeader),
        ("two kinds", [field(1, &service), field(3, &[])].concat(), ResetCode::BadHeader),
        ("the namespace twice", twice(field(1, b"other")), ResetCode::BadHeader),
        ("the port twice", twice(vec![3 << 3, 1]), ResetCode::BadHeader),
        ("a source field twice", twice(field(6, &[field(1, b"a"), field(1, b"b")].concat())), ResetCode::BadHeader),
        ("a kind not known", field(4, &[]), ResetCode::Unsupported),
        ("a kind not known, far up", field(1_000, &[]), ResetCode::Unsupported),
        ("a critical field not known", twice(field(14, b"10.0.0.1")), ResetCode::Unsupported),
        ("a critical field not known, inside", twice(field(6, &field(15, b"x"))), ResetCode::Unsupported),
        ("no kind", vec![], ResetCode::BadHeader),
        ("field number 0", vec![0, 0], ResetCode::BadHeader),
        ("a group", vec![(1 << 3) | 3, (1 << 3) | 4], ResetCode::BadHeader),
        ("a varint without end", vec![0xff; 11], ResetCode::BadHeader),
        ("a length beyond the end", vec![(1 << 3) | 2, 100, 1], ResetCode::BadHeader),
        ("a service that is a number", vec![1 << 3, 1], ResetCode::BadHeader),
        ("no UTF-8", field(1, &field(1, &[0xff, 0xfe])), ResetCode::BadHeader),
    ];
    for (what, bytes, expected) in table {
        let result = decode(&framed(&bytes)).map_err(|error| error.code());
        if bytes.is_empty() {
            assert_eq!(result, Err(ResetCode::BadHeader), "{what}: a length of 0");
        } else {
            assert_eq!(result, Err(expected), "{what}");
        }
    }
    let later = twice(field(17, b"of a later version"));
    assert!(matches!(decode(&framed(&later)), Ok(Decoded::Complete { .. })), "fields from 16 on may be ignored");
}

#[test]
fn i1_a_client_has_an_address_and_it_is_no_name() {
    let decoded = |client: Option<proto::ClientAddress>| {
        let service = proto::ServiceStream { client_address: client, ..good() };
        match decode(&framed(&message(service))) {
            Ok(Decoded::Complete { header: StreamHeader::Service(header), .. }) => Ok(header.client),
            other => Err(other.map(|_| ()).unwrap_err().code()),
        }
    };
    let wire = |ip: &[u8], port| Some(proto::ClientAddress { ip: ip.to_vec().into(), port });
    let v6: std::net::Ipv6Addr = "2001:db8::7".parse().unwrap();
    for (ip, port, shown) in [(&[10, 1, 2, 3][..], 65_535, "10.1.2.3:65535"), (&v6.octets(), 1, "[2001:db8::7]:1")] {
        let client = decoded(wire(ip, port)).unwrap().unwrap();
        assert_eq!(client.shown().to_string(), shown);
    }
    assert_eq!(decoded(None), Ok(None));
    let mapped: std::net::Ipv6Addr = "::ffff:10.1.2.3".parse().unwrap();
    let bad = [
        wire(&[], 1),
        wire(&[10, 1, 2], 1),
        wire(&[10, 1, 2, 3, 4], 1),
        wire(&[0; 17], 1),
        wire(b"10.1.2.3", 1),
        wire(&[10, 1, 2, 3], 0),
        wire(&[10, 1, 2, 3], 65_536),
        wire(&[0, 0, 0, 0], 1),
        wire(&[255, 255, 255, 255], 1),
        wire(&[224, 0, 0, 1], 1),
        wire(&[0; 16], 1),
        wire(&mapped.octets(), 1),
    ];
    for client in bad {
        assert_eq!(decoded(client.clone()), Err(ResetCode::BadHeader), "{client:?}");
    }
    let sent = ClientAddress::new("[::ffff:10.1.2.3]:7".parse().unwrap()).unwrap();
    assert_eq!(sent.shown(), "10.1.2.3:7".parse().unwrap());
}

#[test]
fn a_relay_is_told_one_cluster() {
    let relay = |to: &str, from: &str, path| {
        let relay = proto::RelayStream { to: to.into(), from: from.into(), path };
        code(&proto::StreamHeader { kind: Some(proto::stream_header::Kind::Relay(relay)) }.encode_to_vec())
    };
    assert_eq!(relay("gke", "", 7), None);
    assert_eq!(relay("", "gke", 0), None);
    assert_eq!(relay("gke", "aks", 7), Some(ResetCode::BadHeader));
    assert_eq!(relay("", "gke", 7), Some(ResetCode::BadHeader));
    assert_eq!(relay("", "", 0), Some(ResetCode::BadName));
    for name in ["10.0.0.1:15443", "GKE", "a.b", &"a".repeat(64)] {
        assert_eq!(relay(name, "", 7), Some(ResetCode::BadName), "{name}");
        assert_eq!(relay("", name, 0), Some(ResetCode::BadName), "{name}");
    }
}

#[test]
fn a_broken_traceparent_starts_a_new_trace() {
    for broken in ["", "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "00-0-0-0", "00-x"] {
        let service = proto::ServiceStream { traceparent: broken.into(), ..good() };
        let Ok(Decoded::Complete { header: StreamHeader::Service(header), .. }) = decode(&framed(&message(service)))
        else {
            panic!("{broken:?}");
        };
        assert_eq!(header.traceparent, None);
    }
}

proptest::proptest! {
    #[test]
    fn u5_no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..1200)) {
        drop(decode(&bytes));
        drop(decode(&framed(&bytes[..bytes.len().min(MAX_HEADER)])));
    }

    #[test]
    fn i1_whatever_is_decoded_names_a_service_and_no_address(service in "[a-z0-9.:x-]{1,20}", namespace in "[a-z0-9.:-]{1,20}") {
        let bytes = message(proto::ServiceStream { service, namespace, ..good() });
        if let Ok(Decoded::Complete { header: StreamHeader::Service(header), .. }) = decode(&framed(&bytes)) {
            proptest::prop_assert!(header.service.as_str().parse::<std::net::IpAddr>().is_err());
            proptest::prop_assert!(header.service.as_str().bytes().any(|byte| byte.is_ascii_lowercase() || byte == b'-'));
        }
    }
}
