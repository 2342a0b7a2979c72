//! A plain tunnel on quinn: what one has after an afternoon, with the stock settings of quinn, its runtime and the kernel.
//!
//! One QUIC connection with mutual TLS between the two ends; a stream for each TCP connection; `copy_bidirectional` on
//! either side, as tokio has it. It is the baseline of what our own driver gains, so it stays plain, and on quinn, whatever
//! the product does. With `--chunks` its copies are others, by which the goals were once set: one write for each
//! datagram that came, and a buffer of 256 KiB the other way.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, Endpoint};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional, join};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// Arguments of `eastway-bench pump`.
#[derive(Debug, Parser)]
pub struct Args {
    /// Folder of the certificates
    #[arg(long)]
    tls: PathBuf,
    /// The far end of the tunnel, at which this one takes connections by --forward
    #[arg(long, requires = "forward")]
    connect: Option<SocketAddr>,
    /// ADDRESS=TARGET: what connects to ADDRESS is connected to TARGET by the far end
    #[arg(long, value_parser = forward)]
    forward: Vec<(SocketAddr, SocketAddr)>,
    /// Where the far end takes the tunnel
    #[arg(long, conflicts_with = "connect")]
    listen: Option<SocketAddr>,
    /// One write for each datagram
    #[arg(long)]
    chunks: bool,
}

fn forward(text: &str) -> Result<(SocketAddr, SocketAddr)> {
    let (from, to) = text.split_once('=').context("it is ADDRESS=TARGET")?;
    Ok((from.parse()?, to.parse()?))
}

/// Runs one end until it is killed.
///
/// # Errors
/// The certificates cannot be used, an address is taken, or the tunnel ends.
#[tokio::main]
pub async fn run(args: &Args) -> Result<()> {
    match (args.listen, args.connect) {
        (Some(listen), _) => serve(args, listen).await,
        (None, Some(connect)) => dial(args, connect).await,
        (None, None) => anyhow::bail!("--listen or --connect"),
    }
}

async fn serve(args: &Args, listen: SocketAddr) -> Result<()> {
    let (certificates, key, roots) = load(&args.tls, "gw-b")?;
    let chunks = args.chunks;
    let provider = provider();
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).build()?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates, key)?;
    let config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(config)?));
    let endpoint = Endpoint::server(config, listen)?;
    while let Some(incoming) = endpoint.accept().await {
        let connection = incoming.await?;
        tokio::spawn(async move {
            while let Ok((send, receive)) = connection.accept_bi().await {
                tokio::spawn(answer(send, receive, chunks));
            }
        });
    }
    Ok(())
}

/// The far end of a stream: its first bytes are the target.
async fn answer(send: quinn::SendStream, mut receive: quinn::RecvStream, chunks: bool) -> Result<()> {
    let length = receive.read_u8().await?;
    let mut target = vec![0; usize::from(length)];
    receive.read_exact(&mut target).await?;
    let target = TcpStream::connect(String::from_utf8(target)?).await?;
    copy(target, send, receive, chunks).await
}

async fn dial(args: &Args, connect: SocketAddr) -> Result<()> {
    let (certificates, key, roots) = load(&args.tls, "gw-a")?;
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates, key)?;
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config)?));
    let endpoint = Endpoint::client((if connect.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).parse()?)?;
    let mut transport = quinn::TransportConfig::default();
    // The one setting that is not stock: without it the tunnel ends when nothing goes through for 30 s.
    transport.keep_alive_interval(Some(Duration::from_secs(5)));
    config.transport_config(Arc::new(transport));
    let connection = endpoint.connect_with(config, connect, "gw-b")?.await?;
    let mut listeners = tokio::task::JoinSet::new();
    for (from, to) in &args.forward {
        let listener = TcpListener::bind(from).await?;
        listeners.spawn(take(listener, connection.clone(), to.to_string(), args.chunks));
    }
    tokio::select! {
        reason = connection.closed() => Err(reason).context("the tunnel ended"),
        Some(ended) = listeners.join_next() => ended?,
    }
}

async fn take(listener: TcpListener, connection: Connection, target: String, chunks: bool) -> Result<()> {
    loop {
        let (client, _) = listener.accept().await?;
        let (connection, target) = (connection.clone(), target.clone());
        tokio::spawn(async move {
            let (mut send, receive) = connection.open_bi().await?;
            send.write_u8(u8::try_from(target.len())?).await?;
            send.write_all(target.as_bytes()).await?;
            copy(client, send, receive, chunks).await
        });
    }
}

async fn copy(mut tcp: TcpStream, send: quinn::SendStream, receive: quinn::RecvStream, chunks: bool) -> Result<()> {
    tcp.set_nodelay(true)?;
    if chunks {
        let (from, to) = tcp.into_split();
        tokio::try_join!(read_into(from, send), write_chunks(receive, to))?;
    } else {
        copy_bidirectional(&mut tcp, &mut join(receive, send)).await?;
    }
    Ok(())
}

async fn read_into(mut from: OwnedReadHalf, mut send: quinn::SendStream) -> Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            send.finish()?;
            return Ok(());
        }
        send.write_all(&buffer[..length]).await?;
    }
}

async fn write_chunks(mut receive: quinn::RecvStream, mut to: OwnedWriteHalf) -> Result<()> {
    while let Some(chunk) = receive.read_chunk(usize::MAX, true).await? {
        to.write_all(&chunk.bytes).await?;
    }
    to.shutdown().await?;
    Ok(())
}

/// AES-128-GCM alone, as all tunnels have here.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider { cipher_suites: vec![cipher_suite::TLS13_AES_128_GCM_SHA256], ..default_provider() })
}

type Loaded = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>, Arc<RootCertStore>);

fn load(folder: &Path, name: &str) -> Result<Loaded> {
    let file = |name: String| folder.join(name);
    let certificates = CertificateDer::pem_file_iter(file(format!("{name}.pem")))?.collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_file(file(format!("{name}.key")))?;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(file("root.pem".to_owned()))?)?;
    Ok((certificates, key, Arc::new(roots)))
}
