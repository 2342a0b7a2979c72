//! What a peer, or a proxy on the way to it, says below the messages of a link: packets of flows, frames and first words
//! on connections of TCP.

use eastway_tunnel::flow::{FlowId, decoders as flow};
use eastway_tunnel::transport::tcp_decoders::{self as tcp, Reread};

/// Longest body of a frame, with what goes before it.
const MAX_FRAME: usize = 3 + (16 << 10);
/// Longest head of an answer of a proxy that is waited for.
const MAX_HEAD: usize = 16 << 10;

/// The stream of a flow: packets come out whole and as they were put in, wherever the stream is cut.
pub fn flow_stream(bytes: &[u8]) {
    let read = |size: usize| {
        let mut stream = flow::Stream::default();
        let mut packets = Vec::new();
        for piece in bytes.chunks(size) {
            packets.extend(stream.push(piece));
            assert!(stream.kept() <= 2 + usize::from(u16::MAX), "what is kept is bounded");
        }
        (packets, stream.kept())
    };
    let (packets, kept) = read(bytes.len().max(1));
    let again: Vec<u8> = packets.iter().flat_map(flow::framed).collect();
    assert!(bytes.starts_with(&again) && again.len() + kept == bytes.len(), "not a byte is lost or added");
    for size in [1, 3, 1_000] {
        assert!(read(size) == (packets.clone(), kept), "cut every {size} bytes");
    }
}

/// A datagram of a link: whose it is, and the packet.
pub fn flow_datagram(bytes: &[u8]) {
    let Some((id, packet)) = flow::datagram(bytes) else { return };
    assert!(FlowId::new(id.get()) == Some(id) && bytes.ends_with(packet));
    let shortest = [flow::prefix(id), packet.to_vec()].concat();
    assert!(shortest.len() <= bytes.len(), "there is no shorter form");
    assert_eq!(flow::datagram(&shortest), Some((id, packet)));
}

/// A control connection: frames are the same in whatever pieces they come, and whoever repeats what was read is understood alike.
pub fn tcp_frames(bytes: &[u8]) {
    let whole = tcp::frames([bytes]);
    let Reread { frames, refused, kept } = &whole;
    assert!(refused.is_some() || *kept < MAX_FRAME, "what is kept is bounded");
    assert!(frames.iter().all(|frame| frame.len() <= MAX_FRAME));
    for size in [1, 5, 1_000] {
        let pieces = tcp::frames(bytes.chunks(size));
        // What comes after it is not looked at.
        assert_eq!((&pieces.frames, &pieces.refused), (frames, refused), "cut every {size} bytes");
    }
    let again = tcp::frames(frames.iter().map(|frame| &frame[..]));
    assert_eq!(again, Reread { frames: frames.clone(), refused: None, kept: 0 });
}

/// What a connection says first.
pub fn tcp_preface(bytes: &[u8]) {
    let whole = tcp::preface(bytes);
    for end in 0..bytes.len().min(64) {
        let begun = tcp::preface(&bytes[..end]);
        assert!(begun == Ok(None) || begun == whole, "{begun:?} becomes {whole:?}");
    }
    match whole {
        Ok(Some(again)) => assert!(bytes.starts_with(&again)),
        Ok(None) => assert!(bytes.len() < 57, "nothing is waited for beyond the longest"),
        Err(why) => assert!(why.len() < 100),
    }
}

/// What an HTTP proxy answers to a CONNECT.
pub fn proxy_answer(bytes: &[u8]) {
    let whole = tcp::proxy_answer(bytes);
    let step = bytes.len() / 64 + 1;
    for end in (0..bytes.len()).step_by(step) {
        let begun = tcp::proxy_answer(&bytes[..end]);
        assert!(begun == Ok(None) || begun == whole, "{begun:?} becomes {whole:?}");
    }
    match whole {
        Ok(Some((code, line))) => {
            assert!(code <= 999 && line.chars().all(|c| c == ' ' || c.is_ascii_graphic()), "{line:?}");
            assert!(line.len() <= MAX_HEAD);
        }
        Ok(None) => assert!(bytes.len() < MAX_HEAD, "nothing is waited for for ever"),
        Err(why) => assert!(why.len() < 100),
    }
}
