//! Streams inside a link: what is promised to the proxy, whatever carries the link.

use std::sync::Arc;
use std::task::{Context, Wake, Waker};

use bytes::Bytes;
use eastway_tunnel::{OpenError, ResetCode, StreamError};
use tokio::task::JoinSet;

use crate::over::tests_over;
use crate::relay::Relay;
use crate::support::{Over, PATIENCE, federation, header, pair, read_all, soon, until};

async fn a_stream_carries_bytes_both_ways_from_either_side(over: Over) {
    let (a, b) = over.linked_pair().await;
    for (from, to) in [(&a, "b"), (&b, "a")] {
        let mut stream = from.open(to, "echo").await;
        stream.send.write(Bytes::from_static(b"hello")).await.unwrap();
        stream.send.finish();
        assert_eq!(soon("echo", read_all(&mut stream.recv)).await.unwrap(), b"hello");
    }
}

async fn a_server_that_speaks_first_is_heard_by_a_silent_client(over: Over) {
    let (a, _b) = over.linked_pair().await;
    let mut stream = a.open("b", "greet").await;
    assert_eq!(soon("greeting", read_all(&mut stream.recv)).await.unwrap(), b"220 ready\r\n");
}

async fn who_is_told_with_the_answer_hears_a_moment_later_if_there_is_none(over: Over) {
    let (a, _b) = over.linked_pair().await;
    let mut stream = a.open("b", "soon").await;
    stream.send.write(Bytes::from_static(b"hello")).await.unwrap();
    assert_eq!(soon("answer", read_all(&mut stream.recv)).await.unwrap(), b"hello");
    let mut stream = a.open("b", "soon-quiet").await;
    soon("told without an answer", stream.accepted()).await.unwrap();
    let mut stream = a.open("b", "soon-ends").await;
    soon("told with the end", stream.accepted()).await.unwrap();
    assert_eq!(soon("end", read_all(&mut stream.recv)).await.unwrap(), b"");
}

async fn federation_streams_have_the_same_framing(over: Over) {
    let (a, _b) = over.linked_pair().await;
    let mut stream = a.link_to("b").await.open(&federation()).await.unwrap();
    soon("accepted", stream.accepted()).await.unwrap();
    stream.send.write(Bytes::from_static(b"records")).await.unwrap();
    stream.send.finish();
    assert_eq!(soon("echo", read_all(&mut stream.recv)).await.unwrap(), b"records");
}

#[tokio::test]
async fn first_bytes_travel_with_the_header_in_one_datagram() {
    let (a, b) = pair();
    let (a, b) = (a.gateway(), b.gateway());
    let relay = Relay::to(b.tunnel.local_addr()).await;
    b.knows(&[("a", &[])]);
    a.knows(&[("b", &[relay.address])]);
    let link = a.link_to("b").await;
    let first = Bytes::from(vec![b'x'; 600]);
    let encoded = header("echo").encode().unwrap().len();
    // Path MTU probes and the like are no smaller.
    let mut together = 0;
    for _ in 0..10 {
        relay.take_sizes();
        let mut stream = link.open_with(&header("echo"), first.clone()).await.unwrap();
        let mut got = 0;
        while got < first.len() {
            got += soon("echo", stream.recv.read()).await.unwrap().unwrap().len();
        }
        let whole = encoded + first.len();
        together += usize::from(relay.take_sizes().iter().any(|size| (whole..whole + 100).contains(size)));
    }
    assert_eq!(together, 10, "header and first bytes in one datagram");
}

async fn refusals_arrive_as_codes_in_both_directions(over: Over) {
    let (a, b) = over.linked_pair().await;
    let table =
        [("refused", ResetCode::UpstreamRefused), ("dropped", ResetCode::Internal), ("panics", ResetCode::Internal)];
    for (service, code) in table {
        let mut stream = a.open("b", service).await;
        assert_eq!(soon(service, stream.accepted()).await, Err(StreamError::Reset(code)), "{service}");
        assert_eq!(soon(service, stream.send.stopped()).await, Ok(Some(code)), "{service}");
        assert_eq!(soon(service, stream.recv.read()).await, Err(StreamError::Reset(code)), "{service}: again");
    }
    until("all are counted", || {
        let counted = b.tunnel.counters().resets_sent;
        (counted.get("UPSTREAM_REFUSED") == Some(&1) && counted.get("INTERNAL") == Some(&2)).then_some(())
    })
    .await;
}

async fn half_closes_and_resets_stay_in_their_direction(over: Over) {
    let (a, b) = over.linked_pair().await;

    // The client ends first; the answer comes after.
    let mut stream = a.open("b", "count").await;
    stream.send.write(vec![1; 100_000].into()).await.unwrap();
    stream.send.finish();
    assert_eq!(soon("count", read_all(&mut stream.recv)).await.unwrap(), b"100000");

    // The server ends first; the client goes on and everything is read.
    let mut stream = a.open("b", "ends-first").await;
    assert_eq!(soon("the server's end", read_all(&mut stream.recv)).await.unwrap(), b"");
    stream.send.write(vec![1; 100_000].into()).await.unwrap();
    stream.send.finish();
    assert_eq!(soon("all read", stream.send.stopped()).await, Ok(None));

    // The server resets its direction.
    let mut stream = a.open("b", "resets").await;
    let reset = Err(StreamError::Reset(ResetCode::UpstreamReset));
    assert_eq!(soon("reset", read_all(&mut stream.recv)).await, reset);

    // The server stops reading, yet its last words arrive.
    let mut stream = a.open("b", "stops").await;
    assert_eq!(soon("stop", stream.send.stopped()).await, Ok(Some(ResetCode::UpstreamReset)));
    assert_eq!(soon("last words", read_all(&mut stream.recv)).await.unwrap(), b"last words");

    // The client drops its stream half-way: the server never takes a part for the whole.
    let mut half = a.open("b", "stalls").await;
    half.send.write(Bytes::from_static(b"a part")).await.unwrap();
    soon("accepted", half.accepted()).await.unwrap();
    drop((half, stream));
    until("the server is told", || (b.tunnel.status()[0].links[0].streams_served == 0).then_some(())).await;
}

async fn a_reset_is_seen_while_nothing_is_read(over: Over) {
    let (a, b) = over.linked_pair().await;
    let mut stream = a.open("b", "stalls").await;
    soon("accepted", stream.accepted()).await.unwrap();
    // The handler awaits `aborted` and ends by it; that ends the stream for us.
    stream.send.reset(ResetCode::Cancelled);
    assert_eq!(soon("answer", stream.recv.aborted()).await, StreamError::Reset(ResetCode::Cancelled));
    until("served streams end", || (b.tunnel.status()[0].links[0].streams_served == 0).then_some(())).await;
}

/// Every large answer that a slow client takes is such a stream.
async fn who_waited_for_a_reset_is_let_go_when_the_end_has_been_read(over: Over) {
    struct Task;
    impl Wake for Task {
        fn wake(self: Arc<Self>) {}
    }
    let (a, b) = over.linked_pair().await;
    let mut stream = a.open("b", "page").await;
    stream.send.finish();
    soon("accepted", stream.accepted()).await.unwrap();
    // The server has heard that all has arrived.
    until("the server is done", || (b.tunnel.status()[0].links[0].streams_served == 0).then_some(())).await;
    let task = Arc::new(Task);
    let waker = Waker::from(Arc::clone(&task));
    assert!(stream.recv.poll_aborted(&mut Context::from_waker(&waker)).is_pending());
    drop(waker);
    assert_eq!(soon("page", read_all(&mut stream.recv)).await.unwrap().len(), 3_000);
    drop(stream);
    until("nobody keeps the task", || (Arc::strong_count(&task) == 1).then_some(())).await;
}

async fn large_transfers_arrive_whole_and_in_chunks(over: Over) {
    let (a, _b) = over.linked_pair().await;
    let stream = a.open("b", "echo").await;
    let (mut send, mut recv) = stream.split();
    let block = Bytes::from((0..=255).cycle().take(1 << 20).collect::<Vec<u8>>());
    let sent = block.clone();
    let writer = tokio::spawn(async move {
        for _ in 0..4 {
            send.write_chunks(&mut [sent.slice(..300_000), sent.slice(300_000..)]).await.unwrap();
        }
        send.finish();
        send
    });
    let (mut received, mut chunks) = (0, vec![Bytes::new(); 64]);
    while let Some(count) = soon("chunks", recv.read_chunks(&mut chunks)).await.unwrap() {
        for chunk in &chunks[..count] {
            for byte in chunk.iter() {
                assert_eq!(*byte, block[received % block.len()], "byte {received}");
                received += 1;
            }
        }
    }
    assert_eq!(received, 4 << 20);
    writer.await.unwrap();
}

async fn p9_streams_over_the_limit_are_told_so(over: Over) {
    let (a, mut b) = pair();
    b.limits.streams_per_peer = 3;
    let (a, b) = over.linked(&a, &b).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut stream = a.open("b", "never").await;
        stream.send.write(Bytes::from_static(b"x")).await.unwrap();
        held.push(stream);
    }
    until("all are served", || (b.tunnel.status()[0].links.first()?.streams_served == 3).then_some(())).await;
    let mut stream = a.open("b", "echo").await;
    assert_eq!(soon("refusal", stream.accepted()).await, Err(StreamError::Reset(ResetCode::Overloaded)));
    drop(held);
    until("room again", || (b.tunnel.status()[0].links.first()?.streams_served == 0).then_some(())).await;
    let mut stream = a.open("b", "greet").await;
    soon("room again", stream.accepted()).await.unwrap();
}

/// More than a link admits at first (or has connections ready, where each stream is one), all at once, each with something to say, to endpoints that take their time.
async fn a_burst_waits_for_room_and_nobody_is_cut_while_endpoints_are_dialled(over: Over) {
    let burst = match over {
        Over::Tcp => 300,
        // All by the tasks of two connections.
        Over::Shared => 150,
        Over::Quic | Over::Memory => 1_100,
    };
    let (mut a, b) = pair();
    // A busy machine admits streams late.
    a.timing.open = PATIENCE;
    let (a, b) = over.linked(&a, &b).await;
    let link = a.link_to("b").await;
    let mut streams = JoinSet::new();
    for number in 0..burst {
        let link = link.clone();
        streams.spawn(async move {
            let first = Bytes::from(format!("{number:04}").repeat(512));
            let mut stream = link.open_with(&header("late"), first.clone()).await.map_err(|error| error.to_string())?;
            stream.accepted().await.map_err(|error| error.to_string())?;
            stream.send.finish();
            let came = read_all(&mut stream.recv).await.map_err(|error| error.to_string())?;
            if came == first { Ok(()) } else { Err("altered".to_owned()) }
        });
    }
    let results = soon("all of them", streams.join_all()).await;
    let failed: Vec<_> = results.into_iter().filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{} of {burst} failed: {:?}", failed.len(), failed.first());
    assert_eq!(b.tunnel.counters().resets_sent.get("OVERLOADED"), None);
}

async fn more_streams_than_admitted_at_first_are_admitted_on_demand(over: Over) {
    let (a, mut b) = pair();
    b.limits.initial_streams = 8;
    let (a, _b) = over.linked(&a, &b).await;
    let mut held = Vec::new();
    for index in 0..200 {
        let stream = a.link_to("b").await.open(&header("never")).await;
        held.push(stream.unwrap_or_else(|error| panic!("stream {index}: {error}")));
    }
    assert_eq!(a.links_to("b")[0].in_flight(), 200);
}

async fn a_link_that_is_gone_opens_nothing(over: Over) {
    let (a, b) = over.linked_pair().await;
    let link = a.link_to("b").await;
    let mut stream = a.open("b", "never").await;
    b.tunnel.close().await;
    // Where each stream has a connection, its end may come before the link's.
    let ended = soon("the stream ends", stream.accepted()).await;
    assert!(matches!(ended, Err(StreamError::LinkLost | StreamError::Reset(ResetCode::Cancelled))), "{ended:?}");
    a.no_link_to("b").await;
    assert_eq!(link.open(&header("echo")).await.err(), Some(OpenError::LinkLost));
}

tests_over! {
    Quic in quic: a_stream_carries_bytes_both_ways_from_either_side, a_server_that_speaks_first_is_heard_by_a_silent_client, who_is_told_with_the_answer_hears_a_moment_later_if_there_is_none, federation_streams_have_the_same_framing, refusals_arrive_as_codes_in_both_directions, half_closes_and_resets_stay_in_their_direction, a_reset_is_seen_while_nothing_is_read, who_waited_for_a_reset_is_let_go_when_the_end_has_been_read, large_transfers_arrive_whole_and_in_chunks, p9_streams_over_the_limit_are_told_so, a_burst_waits_for_room_and_nobody_is_cut_while_endpoints_are_dialled, more_streams_than_admitted_at_first_are_admitted_on_demand, a_link_that_is_gone_opens_nothing;
    Tcp in tcp: a_stream_carries_bytes_both_ways_from_either_side, a_server_that_speaks_first_is_heard_by_a_silent_client, who_is_told_with_the_answer_hears_a_moment_later_if_there_is_none, federation_streams_have_the_same_framing, refusals_arrive_as_codes_in_both_directions, half_closes_and_resets_stay_in_their_direction, a_reset_is_seen_while_nothing_is_read, who_waited_for_a_reset_is_let_go_when_the_end_has_been_read, large_transfers_arrive_whole_and_in_chunks, p9_streams_over_the_limit_are_told_so, a_burst_waits_for_room_and_nobody_is_cut_while_endpoints_are_dialled, more_streams_than_admitted_at_first_are_admitted_on_demand, a_link_that_is_gone_opens_nothing;
    Shared in shared: a_stream_carries_bytes_both_ways_from_either_side, a_server_that_speaks_first_is_heard_by_a_silent_client, who_is_told_with_the_answer_hears_a_moment_later_if_there_is_none, federation_streams_have_the_same_framing, refusals_arrive_as_codes_in_both_directions, half_closes_and_resets_stay_in_their_direction, a_reset_is_seen_while_nothing_is_read, who_waited_for_a_reset_is_let_go_when_the_end_has_been_read, large_transfers_arrive_whole_and_in_chunks, p9_streams_over_the_limit_are_told_so, a_burst_waits_for_room_and_nobody_is_cut_while_endpoints_are_dialled, more_streams_than_admitted_at_first_are_admitted_on_demand, a_link_that_is_gone_opens_nothing;
    Memory in memory: a_stream_carries_bytes_both_ways_from_either_side, a_server_that_speaks_first_is_heard_by_a_silent_client, who_is_told_with_the_answer_hears_a_moment_later_if_there_is_none, federation_streams_have_the_same_framing, refusals_arrive_as_codes_in_both_directions, half_closes_and_resets_stay_in_their_direction, a_reset_is_seen_while_nothing_is_read, who_waited_for_a_reset_is_let_go_when_the_end_has_been_read, large_transfers_arrive_whole_and_in_chunks, p9_streams_over_the_limit_are_told_so, a_burst_waits_for_room_and_nobody_is_cut_while_endpoints_are_dialled, more_streams_than_admitted_at_first_are_admitted_on_demand, a_link_that_is_gone_opens_nothing;
}
