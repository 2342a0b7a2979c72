//! `eastway check` about trust: rotations to come, certificates that are revoked, and whoever else answers at a
//! peer's address.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use eastway_identity::ca::Ca;
use eastway_identity::{IdentityStore, PeerTrust, SpiffeId, SpkiPin, TrustStore, system_clock, tls};
use eastway_proto::control::v1::{ControlMessage, Hello, control_message::Body};
use eastway_tests::lab::files::{self, LINK_PORT};
use eastway_tests::mesh::{Mesh, MeshBuilder};
use eastway_tests::servers::Habit;
use eastway_tests::{lab_test, within};
use eastway_tunnel::ReplicaId;
use eastway_tunnel::control::codec;
use quinn_proto::crypto::rustls::QuicServerConfig;
use serde_json::json;

use crate::certificates::{pin, pins, rotate};
use crate::check::{complains, gateway_of_b};
use crate::revocation::{issued, list};

const HOUR: Duration = Duration::from_secs(3_600);

/// Two clouds of which only the first runs, with something to export.
async fn alone() -> Result<Mesh> {
    let mut mesh = MeshBuilder::of(&["a", "b"]).prepare().await?;
    mesh.cloud_mut("a").start_gateway(0).await?;
    mesh.cloud_mut("a").wait_ready(0).await?;
    mesh.serve("a", "in-a", 12, Habit::Http).await?;
    Ok(mesh)
}

/// Answers QUIC in the place of b's gateway, with a certificate of b's CA and this application protocol. Whoever
/// opens a stream is told `hello`.
async fn somebody_at_b(mesh: &Mesh, protocol: &'static [u8], hello: Hello) -> Result<quinn::Endpoint> {
    let (a, b) = (mesh.cloud("a"), mesh.cloud("b"));
    let ca = Ca::load(&b.folder().join("cacerts"))?;
    let id = SpiffeId::gateway(&files::trust_domain("b"))?;
    let identity = IdentityStore::new(ca.issue_identity(&id, HOUR, SystemTime::now())?);
    let trust = TrustStore::new(vec![PeerTrust {
        name: "a".into(),
        gateway: SpiffeId::gateway(&files::trust_domain("a"))?,
        pins: vec![SpkiPin::parse(a.pin())?],
        bundle: Vec::new(),
        crls: Vec::new(),
    }])?;
    let mut tls = rustls::ServerConfig::clone(&*tls::server_config(identity, trust, system_clock())?);
    tls.alpn_protocols = vec![protocol.to_vec()];
    let config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    let net = &b.net().gateways()[0];
    let listen = SocketAddr::new(net.wan, LINK_PORT);
    net.place
        .run(async move {
            let endpoint = quinn::Endpoint::server(config, listen)?;
            tokio::spawn(greet(endpoint.clone(), hello));
            Ok(endpoint)
        })
        .await
}

async fn greet(endpoint: quinn::Endpoint, hello: Hello) {
    while let Some(incoming) = endpoint.accept().await {
        let hello = codec::encode(&ControlMessage { body: Some(Body::Hello(hello.clone())) });
        tokio::spawn(async move {
            let connection = incoming.await.ok()?;
            let (mut send, _recv) = connection.accept_bi().await.ok()?;
            send.write_chunk(hello).await.ok()?;
            connection.closed().await;
            Some(())
        });
    }
}

lab_test! {
    /// Before the next step of a rotation would cut a peer's links, `check` says so; when it would not, it does not.
    async fn f27_check_warns_before_a_rotation_cuts_a_peer() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).start().await?;
        mesh.serve("a", "in-a", 12, Habit::Http).await?;
        mesh.serve("b", "in-b", 11, Habit::Http).await?;
        mesh.target("a", "in-b").await?;
        mesh.target("b", "in-a").await?;
        complains(&mesh, "a", &[], &[]).await?;
        rotate(&mesh, "a", &["begin"]).await?;
        // At once: an operator may be as quick.
        let (_, said) = mesh.cloud("a").command(0, &["check", "b"]).await?;
        ensure!(said.contains("EW411"), "{said}");
        let both = pins(&mesh, "a").await?;
        let new = both.get(1).context("no second pin")?.clone();
        complains(&mesh, "a", &["EW411"], &["peer b", &new, "eastway peer export", "activate"]).await?;
        complains(&mesh, "b", &[], &[]).await?;
        pin(&mesh, "b", "a", &both)?;
        complains(&mesh, "a", &[], &[]).await?;
        // Who has no link says nothing.
        mesh.cloud_mut("b").kill_gateway(0).await?;
        mesh.wait_down("a", "b", Duration::from_secs(10)).await?;
        complains(&mesh, "a", &["EW303", "EW415", "EW507"], &[]).await?;
        mesh.cloud_mut("b").start_gateway(0).await?;
        mesh.wait_up("a", "b", Duration::from_secs(15)).await?;
        complains(&mesh, "a", &[], &[]).await?;
        rotate(&mesh, "a", &["activate"]).await?;
        complains(&mesh, "a", &[], &[]).await?;
        mesh.stop().await
    }

    /// A revoked certificate is told from a peer that is away.
    async fn check_names_a_revoked_certificate() {
        let crl = json!({"trust": {"crl": "./crl.pem"}});
        let mut mesh = MeshBuilder::of(&["a", "b"]).settings("a", &crl).prepare().await?;
        let (file, ca) = (mesh.cloud("a").folder().join("crl.pem"), mesh.cloud("b").folder().join("cacerts"));
        files::replace(&file, list(&ca, None)?.as_bytes())?;
        mesh.start_gateways().await?;
        mesh.serve("a", "in-a", 12, Habit::Http).await?;
        mesh.wait_up("a", "b", Duration::from_secs(15)).await?;
        files::replace(&file, list(&ca, Some(&issued(&mesh, "b")?))?.as_bytes())?;
        within(Duration::from_secs(15), "a says that b's certificate is revoked", async || {
            let (_, said) = mesh.cloud("a").command(0, &["check", "b"]).await?;
            Ok(said.contains("EW405"))
        }).await?;
        complains(&mesh, "a", &["EW117", "EW405", "EW507"], &[]).await?;
        mesh.stop().await
    }

    /// Two clusters of one name, or a Peer file with the wrong one.
    async fn check_names_a_peer_that_calls_itself_otherwise() {
        let mesh = alone().await?;
        let other = gateway_of_b(&mesh, "b-2", HOUR, SystemTime::now).await?;
        complains(&mesh, "a", &["EW406"], &["calls itself b-2", "metadata.name"]).await?;
        other.close().await;
        mesh.stop().await
    }

    /// Another service answers QUIC at the address of a peer.
    async fn check_names_another_service_at_the_address_of_a_peer() {
        let mesh = alone().await?;
        let other = somebody_at_b(&mesh, b"h3", Hello::default()).await?;
        complains(&mesh, "a", &["EW408"], &["eastway/1", "another service"]).await?;
        other.close(0_u8.into(), b"");
        mesh.stop().await
    }

    /// A peer whose software is of another age.
    async fn check_names_a_peer_of_another_age() {
        let mesh = alone().await?;
        let hello = Hello {
            min_version: 7,
            max_version: 9,
            cluster: "b".to_owned(),
            replica_id: ReplicaId::random()?.0.to_vec().into(),
            ..Hello::default()
        };
        let other = somebody_at_b(&mesh, tls::ALPN, hello).await?;
        complains(&mesh, "a", &["EW509"], &["7 to 9", "1 to 1", "upgrade"]).await?;
        other.close(0_u8.into(), b"");
        mesh.stop().await
    }
}
