//! Streams inside a link: what is promised to the proxy.

use bytes::Bytes;
use eastway_tunnel::{ResetCode, StreamError};

use crate::support::{header, linked_pair, read_all, soon};

#[tokio::test]
async fn a_stream_carries_bytes_both_ways_from_either_side() {
    let (a, b) = linked_pair().await;
    for (from, to) in [(&a, "b"), (&b, "a")] {
        let mut stream = from.open(to, "echo").await;
        stream.send.write(Bytes::from_static(b"hello")).await.unwrap();
        stream.send.finish();
        assert_eq!(soon("echo", read_all(&mut stream.recv)).await.unwrap(), b"hello");
    }
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_by_a_silent_client() {
    let (a, _b) = linked_pair().await;
    let mut stream = a.open("b", "greet").await;
    assert_eq!(soon("greeting", read_all(&mut stream.recv)).await.unwrap(), b"220 ready\r\n");
}

#[tokio::test]
async fn refusals_arrive_as_codes_in_both_directions() {
    let (a, _b) = linked_pair().await;
    let table =
        [("refused", ResetCode::UpstreamRefused), ("dropped", ResetCode::Internal), ("panics", ResetCode::Internal)];
    for (service, code) in table {
        let mut stream = a.open("b", service).await;
        assert_eq!(soon(service, stream.accepted()).await, Err(StreamError::Reset(code)), "{service}");
        assert_eq!(soon(service, stream.send.stopped()).await, Ok(Some(code)), "{service}");
    }
}

#[tokio::test]
async fn first_bytes_may_travel_with_the_header() {
    let (a, _b) = linked_pair().await;
    let link = a.link_to("b").await;
    let mut stream = link.open_with(&header("echo"), Bytes::from_static(b"early")).await.unwrap();
    stream.send.finish();
    assert_eq!(soon("echo", read_all(&mut stream.recv)).await.unwrap(), b"early");
}
