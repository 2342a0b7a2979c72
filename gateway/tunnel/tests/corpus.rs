//! The fuzz corpora as plain tests, with every cut and many changes of each file: a crash once found stays found.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::time::Duration;

use bytes::BytesMut;
use eastway_tunnel::ReplicaId;
use eastway_tunnel::control::{ControlConfig, ControlSession, Now, codec};
use eastway_tunnel::header::{Decoded, MAX_HEADER, StreamHeader, decode};

/// The files of a corpus and what is near them.
fn inputs(corpus: &str, least: usize) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(corpus);
    let files: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect();
    assert!(files.len() >= least, "the corpus is not whole: {} files", files.len());
    let mut random = fastrand::Rng::with_seed(3);
    let mut inputs = Vec::new();
    for file in files {
        inputs.extend((0..file.len()).map(|cut| file.get(..cut).unwrap_or_default().to_vec()));
        for position in 0..file.len() {
            let mut changed = file.clone();
            changed.iter_mut().skip(position).take(1).for_each(|byte| *byte = random.u8(..));
            inputs.push(changed);
        }
        inputs.push(file);
    }
    inputs
}

#[test]
fn u5_stream_headers() {
    for bytes in inputs("stream_header", 50) {
        match decode(&bytes) {
            Ok(Decoded::Complete { header, used }) => {
                assert!(used <= bytes.len());
                if let StreamHeader::Service(service) = &header {
                    assert!(service.service.as_str().parse::<std::net::IpAddr>().is_err(), "{header:?}");
                }
                let again = header.encode().unwrap();
                assert_eq!(decode(&again), Ok(Decoded::Complete { header, used: again.len() }));
            }
            Ok(Decoded::Incomplete(missing)) => assert!((1..=MAX_HEADER + 6).contains(&missing), "{bytes:?}"),
            Err(_) => {}
        }
    }
}

#[test]
fn u5_control_messages() {
    for bytes in inputs("control_message", 20) {
        let replica = ReplicaId([1; 16]);
        let config = ControlConfig {
            cluster: "a".into(),
            replica,
            live: [replica].into(),
            peer: "b".into(),
            software_version: "1".into(),
            heartbeat: Duration::from_secs(1),
            acknowledge: Duration::from_secs(4),
            handshake: Duration::from_secs(5),
        };
        let mut now = Now { mono: Duration::ZERO, wall_ms: 0 };
        let (mut session, _) = ControlSession::new(config, now);
        let mut buffer = BytesMut::from(&bytes[..]);
        while let Ok(Some(message)) = codec::decode(&mut buffer) {
            now.mono += Duration::from_millis(100);
            assert!(session.handle(message, now).len() <= 3, "{bytes:?}");
            session.handle_timeout(now);
        }
    }
}
