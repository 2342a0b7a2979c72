//! The control session, message by message.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn at(mono: Duration) -> Now {
    Now { mono, wall_ms: 1_000_000 + u64::try_from(mono.as_millis()).unwrap() }
}

fn config(cluster: &str, own: u8, peer: &str) -> ControlConfig {
    ControlConfig {
        cluster: cluster.into(),
        replica: ReplicaId([own; 16]),
        live: [ReplicaId([own; 16])].into(),
        peer: peer.into(),
        software_version: "1".into(),
        heartbeat: SECOND,
        acknowledge: 4 * SECOND,
        handshake: 5 * SECOND,
    }
}

fn sent(actions: Vec<ControlAction>) -> Vec<ControlMessage> {
    let send = |action| if let ControlAction::Send(message) = action { Some(message) } else { None };
    actions.into_iter().filter_map(send).collect()
}

fn closed(actions: &[ControlAction]) -> Option<CloseCode> {
    actions.iter().find_map(|action| if let ControlAction::Close(code, _) = action { Some(*code) } else { None })
}

fn hello() -> Hello {
    let (_, actions) = ControlSession::new(config("b", 2, "a"), at(Duration::ZERO));
    let [ControlMessage { body: Some(Body::Hello(hello)) }] = &*sent(actions) else { panic!("no Hello") };
    hello.clone()
}

fn message(body: Body) -> ControlMessage {
    ControlMessage { body: Some(body) }
}

/// A session of "a" that has greeted "b".
fn established() -> (ControlSession, Vec<ControlAction>) {
    let (mut session, _) = ControlSession::new(config("a", 1, "b"), at(Duration::ZERO));
    let actions = session.handle(message(Body::Hello(hello())), at(Duration::ZERO));
    (session, actions)
}

fn ack(session: &mut ControlSession, sequence: u64, now: Duration) -> Vec<ControlAction> {
    let ack = HeartbeatAck { sequence, wall_clock_ms: at(now).wall_ms };
    session.handle(message(Body::HeartbeatAck(ack)), at(now))
}

#[test]
fn hello_comes_first_and_a_heartbeat_follows_it() {
    let (_, actions) = established();
    let ControlAction::Established(peer) = &actions[0] else { panic!("{actions:?}") };
    assert_eq!((peer.replica, peer.version), (ReplicaId([2; 16]), 1));
    assert_eq!(peer.live, [ReplicaId([2; 16])]);
    assert!(matches!(sent(actions)[..], [ControlMessage { body: Some(Body::Heartbeat(_)) }]));
}

#[test]
fn i2_p3_a_hello_that_does_not_fit_closes_the_link() {
    let table: [(&str, Hello, CloseCode); 8] = [
        ("another cluster", Hello { cluster: "c".into(), ..hello() }, CloseCode::ClusterMismatch),
        ("no cluster", Hello { cluster: String::new(), ..hello() }, CloseCode::ClusterMismatch),
        ("version 0", Hello { min_version: 0, max_version: 0, ..hello() }, CloseCode::VersionUnsupported),
        ("version 999", Hello { min_version: 999, max_version: 999, ..hello() }, CloseCode::VersionUnsupported),
        ("no replica", Hello { replica_id: Bytes::new(), ..hello() }, CloseCode::Protocol),
        ("a long replica", Hello { replica_id: vec![0; 17].into(), ..hello() }, CloseCode::Protocol),
        ("our replica", Hello { replica_id: vec![1; 16].into(), ..hello() }, CloseCode::Protocol),
        ("replicas", Hello { live_replicas: vec![vec![3; 16].into(); 257], ..hello() }, CloseCode::Protocol),
    ];
    for (what, hello, code) in table {
        let (mut session, _) = ControlSession::new(config("a", 1, "b"), at(Duration::ZERO));
        let actions = session.handle(message(Body::Hello(hello)), at(Duration::ZERO));
        assert_eq!(closed(&actions), Some(code), "{what}");
        assert!(!actions.iter().any(|action| matches!(action, ControlAction::Established(_))), "{what}");
        assert_eq!(session.next_timeout(), None, "{what}");
    }
}

#[test]
fn versions_that_overlap_are_enough() {
    let (mut session, _) = ControlSession::new(config("a", 1, "b"), at(Duration::ZERO));
    let newer = Hello { max_version: 7, ..hello() };
    assert_eq!(closed(&session.handle(message(Body::Hello(newer)), at(Duration::ZERO))), None);
}

#[test]
fn messages_out_of_order_close_the_link() {
    let first = [
        Body::Heartbeat(Heartbeat::default()),
        Body::HeartbeatAck(HeartbeatAck::default()),
        Body::GoAway(GoAway::default()),
        Body::Reauthenticate(Reauthenticate::default()),
        Body::Accepts(Accepts::default()),
    ];
    for body in first {
        let (mut session, _) = ControlSession::new(config("a", 1, "b"), at(Duration::ZERO));
        assert_eq!(closed(&session.handle(message(body.clone()), at(SECOND))), Some(CloseCode::Protocol), "{body:?}");
    }
    let (mut session, _) = established();
    assert_eq!(closed(&session.handle(message(Body::Hello(hello())), at(SECOND))), Some(CloseCode::Protocol));
    let (mut session, _) = established();
    assert_eq!(closed(&ack(&mut session, 99, SECOND)), Some(CloseCode::Protocol), "an ack of the future");
    let (mut session, _) = established();
    let unknown = session.handle(ControlMessage { body: None }, at(SECOND));
    assert_eq!(unknown, [], "messages of later versions are ignored");
}

#[test]
fn i13_without_acknowledgements_the_link_is_stale_then_closed() {
    let (mut session, _) = established();
    assert!(matches!(ack(&mut session, 1, SECOND)[..], [ControlAction::Acknowledged { .. }]));
    assert_eq!(ack(&mut session, 1, 2 * SECOND), [], "a repeated acknowledgement is no sign of life");
    let mut seen = Vec::new();
    while let Some(next) = session.next_timeout() {
        let actions = session.handle_timeout(at(next));
        if actions.contains(&ControlAction::Stale) {
            seen.push(("stale", next));
        }
        if let Some(code) = closed(&actions) {
            assert_eq!(code, CloseCode::Timeout);
            seen.push(("closed", next));
        }
    }
    assert_eq!(seen, [("stale", SECOND * 7 / 2), ("closed", 5 * SECOND)]);
}

#[test]
fn a_peer_that_never_says_hello_is_given_up() {
    let (mut session, _) = ControlSession::new(config("a", 1, "b"), at(Duration::ZERO));
    let next = session.next_timeout().unwrap();
    assert_eq!(next, 5 * SECOND);
    assert_eq!(closed(&session.handle_timeout(at(next))), Some(CloseCode::Timeout));
}

#[test]
fn heartbeats_are_sent_each_second_answered_and_tell_of_new_replicas() {
    let (mut session, _) = established();
    session.set_live([ReplicaId([1; 16]), ReplicaId([9; 16])].into(), at(SECOND / 2));
    assert_eq!(session.next_timeout(), Some(SECOND / 2), "news does not wait");
    let beats = sent(session.handle_timeout(at(SECOND / 2)));
    let [ControlMessage { body: Some(Body::Heartbeat(beat)) }] = &beats[..] else { panic!("{beats:?}") };
    assert_eq!(beat.live_replicas.len(), 2);
    let mut other = ControlSession::new(config("b", 2, "a"), at(Duration::ZERO)).0;
    let (_, actions) = ControlSession::new(config("a", 1, "b"), at(Duration::ZERO));
    other.handle(sent(actions).remove(0), at(Duration::ZERO));
    let actions = other.handle(beats[0].clone(), at(SECOND));
    assert_eq!(actions.get(1), Some(&ControlAction::Replicas(vec![ReplicaId([1; 16]), ReplicaId([9; 16])])));
    let [ControlMessage { body: Some(Body::HeartbeatAck(ack)) }] = &sent(actions)[..] else { panic!() };
    assert_eq!(ack.sequence, beat.sequence);
}

#[test]
fn clock_skew_is_shown_and_decides_nothing() {
    for (theirs, skew) in [(u64::MAX, i64::MAX), (0, -1_001_000), (1_004_000, 3_000)] {
        let (mut session, _) = established();
        let ack = HeartbeatAck { sequence: 1, wall_clock_ms: theirs };
        let actions = session.handle(message(Body::HeartbeatAck(ack)), at(SECOND));
        let [ControlAction::Acknowledged { clock_skew_ms }] = actions[..] else { panic!("{actions:?}") };
        assert!(clock_skew_ms.abs_diff(skew) <= 500, "{theirs}: {clock_skew_ms}");
    }
}

#[test]
fn re_authentications_are_checked_outside_and_limited() {
    let (mut session, _) = established();
    for _ in 0..MAX_REAUTHS {
        let actions = session.handle(message(Body::Reauthenticate(Reauthenticate::default())), at(SECOND));
        assert!(matches!(actions[..], [ControlAction::Verify(_)]));
        assert_eq!(session.reauthenticated(Ok(())), []);
    }
    let actions = session.handle(message(Body::Reauthenticate(Reauthenticate::default())), at(SECOND));
    assert_eq!(closed(&actions), Some(CloseCode::Protocol));
    let (mut session, _) = established();
    let refused = session.reauthenticated(Err((CloseCode::Revoked, "wrong key".to_owned())));
    assert_eq!(closed(&refused), Some(CloseCode::Revoked));
}

#[test]
fn a_flood_of_messages_closes_the_link() {
    let (mut session, _) = established();
    let beat = |sequence| message(Body::Heartbeat(Heartbeat { sequence, ..Heartbeat::default() }));
    let flood: Vec<_> = (0..=u64::from(MAX_MESSAGES)).map(|n| closed(&session.handle(beat(n), at(SECOND)))).collect();
    assert_eq!(flood.iter().flatten().next(), Some(&CloseCode::Protocol));
    let (mut session, _) = established();
    for n in 0..1_000 {
        let now = at(SECOND / 50 * u32::try_from(n).unwrap());
        assert_eq!(closed(&session.handle(beat(n), now)), None, "fifty a second are fine");
    }
}

#[test]
fn p11_words_of_the_other_side_are_made_harmless() {
    let (mut session, _) = established();
    let reason = format!("bye\u{1b}[31m\n{}", "x".repeat(500));
    let actions = session.handle(message(Body::GoAway(GoAway { reason, deadline_ms: 30_000 })), at(SECOND));
    let [ControlAction::GoAway { reason, deadline }] = &actions[..] else { panic!("{actions:?}") };
    assert!(reason.starts_with("bye?[31m?x") && reason.len() == 200, "{reason}");
    assert_eq!(*deadline, 31 * SECOND);
    let error = LinkError { code: 4, message: "no\n".to_owned() };
    let actions = session.handle(message(Body::Error(error)), at(SECOND));
    assert_eq!(actions, [ControlAction::Close(CloseCode::ClusterMismatch, "the peer says: no?".to_owned())]);
}

proptest::proptest! {
    #[test]
    fn u5_no_bytes_make_the_codec_panic_or_hoard(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..600)) {
        let mut buffer = bytes::BytesMut::from(&bytes[..]);
        let (mut session, _) = established();
        while let Ok(Some(message)) = codec::decode(&mut buffer) {
            session.handle(message, at(SECOND));
        }
        proptest::prop_assert!(buffer.len() <= bytes.len());
    }
}

#[test]
fn messages_beyond_the_limit_are_refused_by_their_length_alone() {
    let mut buffer = bytes::BytesMut::from(&(64_u32 * 1024 + 1).to_be_bytes()[..]);
    assert_eq!(codec::decode(&mut buffer), Err(codec::ControlDecodeError::TooLong(65_537)));
    let mut whole = bytes::BytesMut::from(&codec::encode(&message(Body::Hello(hello())))[..]);
    let mut partial = bytes::BytesMut::from(&whole[..whole.len() - 1]);
    assert_eq!(codec::decode(&mut partial), Ok(None));
    assert_eq!(codec::decode(&mut whole), Ok(Some(message(Body::Hello(hello())))));
}

#[test]
fn what_the_other_side_accepts_is_told_and_bounded() {
    let (mut ours, _) = established();
    let (mut theirs, _) = established();
    let pins = [SpkiPin::of_spki(b"old"), SpkiPin::of_spki(b"new")];
    let told = sent(theirs.accepts(&pins));
    assert_eq!(ours.handle(told[0].clone(), at(SECOND)), [ControlAction::Accepts(pins.to_vec())]);
    for pins in [vec![Bytes::from_static(&[1; 31])], vec![Bytes::from_static(&[1; 32]); MAX_PINS + 1]] {
        let (mut session, _) = established();
        let actions = session.handle(message(Body::Accepts(Accepts { pins })), at(SECOND));
        assert_eq!(closed(&actions), Some(CloseCode::Protocol));
        assert_eq!(session.accepts(&[]), [], "a closed session says nothing");
    }
}
