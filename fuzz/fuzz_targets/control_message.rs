//! Any bytes at all as what a peer sends on the control stream of a link.
#![no_main]

use std::time::Duration;

use eastway_tunnel::ReplicaId;
use eastway_tunnel::control::{ControlConfig, ControlSession, Now, codec};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
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
    let mut buffer = bytes.into();
    while let Ok(Some(message)) = codec::decode(&mut buffer) {
        now.mono += Duration::from_millis(100);
        assert!(session.handle(message, now).len() <= 3);
        session.handle_timeout(now);
    }
});
