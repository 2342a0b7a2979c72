//! What a handshake's identity work costs: judging a chain, a chain under a revocation list, issuing a leaf, a whole
//! TLS handshake in memory, and a proof of re-authentication.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a benchmark that cannot be set up must fail")]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use divan::Bencher;
use eastway_identity::ca::{Ca, InitOptions};
use eastway_identity::reauth::{self, Exporter, Role};
use eastway_identity::{Identity, IdentityStore, PeerTrust, SpiffeId, TrustStore, csr, system_clock, tls};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn main() {
    divan::main();
}

struct Cloud {
    ca: Ca,
    gateway: SpiffeId,
    _dir: tempfile::TempDir,
}

impl Cloud {
    fn new(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let domain = format!("{name}.example");
        let ca = Ca::init(dir.path(), &InitOptions::new(&domain)).unwrap();
        Self { ca, gateway: SpiffeId::gateway(&domain).unwrap(), _dir: dir }
    }

    fn identity(&self) -> Identity {
        self.ca.issue_identity(&self.gateway, DAY, SystemTime::now()).unwrap()
    }

    fn peer(&self, name: &str) -> PeerTrust {
        PeerTrust {
            name: name.into(),
            gateway: self.gateway.clone(),
            pins: self.ca.pins(),
            bundle: Vec::new(),
            crls: Vec::new(),
        }
    }
}

/// One chain among `peers` configured Peers.
#[divan::bench(args = [1, 100])]
fn verify(bencher: Bencher<'_, '_>, peers: usize) {
    let clouds: Vec<_> = (0..peers).map(|n| Cloud::new(&format!("c{n}"))).collect();
    let list = clouds.iter().enumerate().map(|(n, cloud)| cloud.peer(&format!("c{n}"))).collect();
    let trust = TrustStore::new(list).unwrap();
    let identity = clouds[peers - 1].identity();
    bencher.bench(|| trust.verify(identity.chain(), SystemTime::now(), None).unwrap());
}

#[divan::bench]
fn issue(bencher: Bencher<'_, '_>) {
    let cloud = Cloud::new("onprem");
    let (_, request) = csr::new_key_and_csr().unwrap();
    bencher.bench(|| cloud.ca.issue(&request, &cloud.gateway, DAY, SystemTime::now()).unwrap());
}

#[divan::bench]
fn handshake(bencher: Bencher<'_, '_>) {
    let (onprem, gke) = (Cloud::new("onprem"), Cloud::new("gke"));
    let trust = TrustStore::new(vec![onprem.peer("onprem"), gke.peer("gke")]).unwrap();
    let store = |cloud: &Cloud| IdentityStore::new(cloud.identity());
    let client = tls::client_config(store(&onprem), Arc::clone(&trust), system_clock(), "gke".into()).unwrap();
    let server = tls::server_config(store(&gke), trust, system_clock()).unwrap();
    bencher.bench(|| {
        let name = tls::SERVER_NAME.try_into().unwrap();
        let mut client = rustls::ClientConnection::new(Arc::clone(&client), name).unwrap();
        let mut server = rustls::ServerConnection::new(Arc::clone(&server)).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut bytes = Vec::new();
            client.write_tls(&mut bytes).unwrap();
            server.read_tls(&mut bytes.as_slice()).unwrap();
            server.process_new_packets().unwrap();
            let mut bytes = Vec::new();
            server.write_tls(&mut bytes).unwrap();
            client.read_tls(&mut bytes.as_slice()).unwrap();
            client.process_new_packets().unwrap();
        }
    });
}

#[divan::bench]
fn reauthenticate(bencher: Bencher<'_, '_>) {
    let cloud = Cloud::new("onprem");
    let trust = TrustStore::new(vec![cloud.peer("onprem")]).unwrap();
    let (link, identity) = (Exporter([7; 32]), cloud.identity());
    bencher.bench(|| {
        let proof = reauth::sign(&identity, &link, Role::Dialler, [0; 32]).unwrap();
        reauth::verify(&trust, &proof, &link, Role::Dialler, [0; 32], "onprem", SystemTime::now()).unwrap()
    });
}
