//! What goes through two sidecars and their TLS: HTTP/2 with trailers in both directions at once, as gRPC does it, and
//! WebSocket; and what a gateway between them can read of it.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use eastway_tests::lab::place::Place;
use eastway_tests::sniffer::Sniffer;
use eastway_tests::{lab_test, load};
use h2::{RecvStream, SendStream};
use hyper::{HeaderMap, Request, Response};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::mutual::{PATIENCE, World};

/// Messages of a call.
const MESSAGES: u32 = 50;
/// A part of every request that [`World::head`] sends.
const MARK: &[u8] = b"/marked-path";

/// Answers each call with whom its client is, sends back what comes as it comes, and says how many bytes in trailers.
pub(crate) async fn serve_http2(place: &Place, at: SocketAddr) -> Result<()> {
    let listener = place.run(async move { Ok(TcpListener::bind(at).await?) }).await?;
    place.spawn(async move {
        while let Ok((tcp, _from)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(tcp).await?;
                while let Some(call) = connection.accept().await {
                    let (request, mut respond) = call?;
                    let client = request.headers().get("x-forwarded-client-cert").cloned();
                    let mut response = Response::builder().header("content-type", "application/grpc");
                    if let Some(client) = client {
                        response = response.header("client", client);
                    }
                    let send = respond.send_response(response.body(())?, false)?;
                    tokio::spawn(echo(request.into_body(), send));
                }
                Ok::<_, anyhow::Error>(())
            });
        }
    });
    Ok(())
}

async fn echo(mut body: RecvStream, mut send: SendStream<Bytes>) -> Result<()> {
    let mut length = 0;
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        length += chunk.len();
        send.send_data(chunk, false)?;
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse()?);
    trailers.insert("length", length.to_string().parse()?);
    Ok(send.send_trailers(trailers)?)
}

/// Agrees to every upgrade, and sends back what comes.
pub(crate) async fn serve_websocket(place: &Place, at: SocketAddr) -> Result<()> {
    let listener = place.run(async move { Ok(TcpListener::bind(at).await?) }).await?;
    place.spawn(async move {
        while let Ok((tcp, _from)) = listener.accept().await {
            tokio::spawn(async move {
                let mut stream = BufReader::new(tcp);
                let mut line = String::new();
                while stream.read_line(&mut line).await? > 2 {
                    line.clear();
                }
                let agreed = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n";
                stream.write_all(agreed.as_bytes()).await?;
                let (mut read, mut write) = tokio::io::split(stream);
                tokio::io::copy(&mut read, &mut write).await?;
                Ok::<_, anyhow::Error>(())
            });
        }
    });
    Ok(())
}

/// One call in both directions at once; whom the server took the client for, and how many bytes it counted.
async fn call(mut stream: TcpStream) -> Result<(String, u64)> {
    stream.set_nodelay(true)?;
    stream.flush().await?;
    let (requests, connection) = h2::client::handshake(stream).await?;
    let driver = tokio::spawn(connection);
    let request = Request::post("http://duplex/echo").header("te", "trailers").body(())?;
    let (response, mut send) = requests.ready().await?.send_request(request, false)?;
    let response = response.await?;
    let client = response.headers().get("client").context("the server knows no client")?.to_str()?.to_owned();
    let mut body = response.into_body();
    for number in 0..MESSAGES {
        // The next message goes only when this one is back.
        let message = Bytes::from(format!("message {number:04}"));
        send.send_data(message.clone(), false)?;
        let mut back = Vec::new();
        while back.len() < message.len() {
            let chunk = body.data().await.context("the stream ended")??;
            body.flow_control().release_capacity(chunk.len())?;
            back.extend_from_slice(&chunk);
        }
        ensure!(back == message, "{back:?}");
    }
    send.send_data(Bytes::new(), true)?;
    ensure!(body.data().await.is_none(), "more than was sent");
    let trailers = body.trailers().await?.context("no trailers")?;
    ensure!(trailers.get("grpc-status").is_some_and(|status| status == "0"), "{trailers:?}");
    driver.abort();
    Ok((client, trailers.get("length").context("no length")?.to_str()?.parse()?))
}

async fn websocket(mut stream: TcpStream) -> Result<String> {
    let request = "GET /chat HTTP/1.1\r\nhost: any\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
        sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    ensure!(line.starts_with("HTTP/1.1 101"), "{line}");
    while stream.read_line(&mut line).await? > 2 {
        line.clear();
    }
    stream.write_all(b"both ways").await?;
    let mut back = [0; 9];
    stream.read_exact(&mut back).await?;
    Ok(String::from_utf8(back.to_vec())?)
}

async fn all_of_them(version: &'static str) -> Result<()> {
    let mut world = World::start(version).await?;
    world.client().await?;
    let (place, source) = world.mesh.client("a");

    let target = world.mesh.target("a", "duplex").await?;
    let (client, length) = place
        .run(async move {
            let stream = load::connect(source, target).await?;
            tokio::time::timeout(PATIENCE, call(stream)).await?
        })
        .await?;
    ensure!(client.contains("URI=spiffe://a.example/ns/shop/sa/shopper"), "{client}");
    ensure!(length == u64::from(MESSAGES) * 12, "{length}");

    let target = world.mesh.target("a", "chat").await?;
    let back = place
        .run(async move {
            let stream = load::connect(source, target).await?;
            tokio::time::timeout(PATIENCE, websocket(stream)).await?
        })
        .await?;
    ensure!(back == "both ways", "{back}");

    // At the gateway of the server's cloud, on all its wires.
    let gateway = world.mesh.cloud("b").net().gateways()[0].place.clone();
    let sniffer = Sniffer::start(&gateway, MARK).await?;
    world.head("plain").await?;
    eastway_tests::within(PATIENCE, "plain text is read on its way", async || Ok(sniffer.seen().0 > 0)).await?;
    drop(sniffer);
    let sniffer = Sniffer::start(&gateway, MARK).await?;
    for _ in 0..20 {
        world.head("strict").await?;
        world.head("permissive").await?;
    }
    let (seen, packets) = sniffer.seen();
    println!("{version}: {packets} packets at the gateway, {seen} of them readable");
    ensure!(packets > 20 && seen == 0, "{seen} of {packets} packets can be read");
    world.mesh.stop().await
}

lab_test! {
    async fn http2_websocket_and_nothing_readable_with_envoy_1_40_0() { all_of_them("1.40.0").await }
    async fn http2_websocket_and_nothing_readable_with_envoy_1_36_2() { all_of_them("1.36.2").await }
}
