//! Beginnings for what is below the messages of a link.

use super::Seed;

pub(super) fn all(seeds: &mut Vec<Seed>) {
    let mut add = |target, name: &str, bytes: Vec<u8>| seeds.push((target, name.to_owned(), bytes));
    for (name, bytes) in flow_streams() {
        add("flow_stream", name, bytes);
    }
    for (name, bytes) in flow_datagrams() {
        add("flow_datagram", name, bytes);
    }
    for (name, bytes) in tcp_frames() {
        add("tcp_frames", name, bytes);
    }
    for (name, bytes) in tcp_prefaces() {
        add("tcp_preface", name, bytes);
    }
    for (name, bytes) in proxy_answers() {
        add("proxy_answer", name, bytes);
    }
}

fn packet(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

fn flow_streams() -> [(&'static str, Vec<u8>); 7] {
    let question = packet(b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x07example\x00\x00\x01\x00\x01");
    [
        ("question", question.clone()),
        ("three", [packet(b"one"), packet(b""), packet(&[7; 1_500])].concat()),
        ("longest", packet(&vec![9; 65_507])),
        ("longer_than_udp", packet(&vec![9; 65_535])),
        ("cut", [question, vec![0xff, 0xff, 1, 2, 3]].concat()),
        ("half_a_length", vec![0]),
        ("empty_ones", vec![0; 64]),
    ]
}

fn flow_datagrams() -> [(&'static str, Vec<u8>); 7] {
    [
        ("short_id", b"\x25a packet".to_vec()),
        ("two_bytes", b"\x7b\xbda packet".to_vec()),
        ("eight_bytes", b"\xc2\x19\x7c\x5e\xff\x14\xe8\x8ca packet".to_vec()),
        ("longer_than_need_be", b"\x40\x25a packet".to_vec()),
        ("no_packet", b"\x25".to_vec()),
        ("cut", b"\xc2\x19".to_vec()),
        ("empty", Vec::new()),
    ]
}

/// A frame of a control connection: type, length, body.
fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind][..], &packet(body)].concat()
}

fn tcp_frames() -> [(&'static str, Vec<u8>); 9] {
    let flow = 7_u64.to_be_bytes();
    let with_code = |code: u8| [&flow[..], &[code]].concat();
    let all = [
        frame(1, b"of the control stream"),
        frame(2, &with_code(5)),
        frame(3, &with_code(200)),
        frame(4, &flow),
        frame(6, &flow),
        frame(7, &flow),
        frame(8, &[1, 44]),
        frame(200, b"of a later version"),
        frame(9, b""),
        frame(5, b"\x07no longer"),
    ];
    [
        ("all", all.concat()),
        ("largest", frame(1, &vec![5; 16 << 10])),
        ("too_long", frame(1, &vec![5; (16 << 10) + 1])),
        ("cut", frame(1, b"of the control stream")[..9].to_vec()),
        ("no_code", frame(2, &flow)),
        ("no_reason", frame(5, b"\x01")),
        ("nothing", frame(5, b"")),
        ("no_text", frame(5, b"\x01\xff\x1b[2J\xe2\x80\xae")),
        ("long_reason", frame(5, &[&[1][..], "\u{e9}".repeat(2_000).as_bytes()].concat())),
    ]
}

fn tcp_prefaces() -> [(&'static str, Vec<u8>); 6] {
    let of_link = |kind: u8| [&[kind][..], &[3; 16], &9_u64.to_be_bytes(), &[7; 32]].concat();
    [
        ("control", vec![1]),
        ("flow", of_link(2)),
        ("reverse_with_more", [of_link(3), b"a header".to_vec()].concat()),
        ("cut", of_link(2)[..40].to_vec()),
        ("unknown", of_link(4)),
        ("http", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
    ]
}

fn proxy_answers() -> [(&'static str, Vec<u8>); 10] {
    let text = |text: &str| text.as_bytes().to_vec();
    [
        ("established", text("HTTP/1.1 200 Connection established\r\nVia: somebody\r\n\r\n")),
        ("credentials", text("HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n")),
        ("forbidden", text("HTTP/1.0 403 Forbidden by \u{1b}[31mpolicy\r\n\r\n")),
        ("no_reason", text("HTTP/1.1 503\r\n\r\n")),
        ("begun", text("HTTP/1.1 200 Conn")),
        ("http2", text("HTTP/2 200\r\n\r\n")),
        ("no_number", text("HTTP/1.1 ok\r\n\r\n")),
        ("ssh", text("SSH-2.0-OpenSSH_9.2\r\n")),
        ("too_long", text(&["HTTP/1.1 200 OK\r\n", &"X: y\r\n".repeat(3_000), "\r\n"].concat())),
        ("endless", text(&["HTTP/1.1 200 OK\r\n", &"X: y\r\n".repeat(3_000)].concat())),
    ]
}
