//! Two clouds in memory: CAs in temporary folders, and handshakes without a network.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use eastway_identity::ca::{Ca, InitOptions, Root};
use eastway_identity::{CertificateDer, Clock, Identity, IdentityStore, PeerTrust, SpiffeId, TrustStore, tls};
use rustls::{ClientConnection, ServerConnection};

pub(crate) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The moment tests take place at: whole seconds, far from now, so that a forgotten system clock shows.
pub(crate) fn noon() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000)
}

pub(crate) fn at(now: SystemTime) -> Clock {
    Arc::new(move || now)
}

/// A cluster with a CA of its own.
pub(crate) struct Cloud {
    pub(crate) name: Arc<str>,
    pub(crate) gateway: SpiffeId,
    pub(crate) ca: Ca,
    pub(crate) dir: tempfile::TempDir,
}

impl Cloud {
    pub(crate) fn new(name: &str) -> Self {
        Self::with_root(name, Root::Own)
    }

    pub(crate) fn under(name: &str, root: &Path) -> Self {
        Self::with_root(name, Root::Shared(root.to_owned()))
    }

    fn with_root(name: &str, root: Root) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let trust_domain = format!("{name}.example");
        let options = InitOptions { root, now: noon() - DAY, ..InitOptions::new(&trust_domain) };
        let ca = Ca::init(dir.path(), &options).unwrap();
        Self { name: Arc::from(name), gateway: SpiffeId::gateway(&trust_domain).unwrap(), ca, dir }
    }

    pub(crate) fn identity(&self) -> Identity {
        self.ca.issue_identity(&self.gateway, DAY, noon()).unwrap()
    }

    pub(crate) fn store(&self) -> Arc<IdentityStore> {
        IdentityStore::new(self.identity())
    }

    /// How others configure this cluster: pins only.
    pub(crate) fn peer(&self) -> PeerTrust {
        PeerTrust {
            name: Arc::clone(&self.name),
            gateway: self.gateway.clone(),
            pins: self.ca.pins(),
            bundle: Vec::new(),
            crls: Vec::new(),
        }
    }
}

pub(crate) fn trusting(peers: &[&Cloud]) -> Arc<TrustStore> {
    TrustStore::new(peers.iter().map(|cloud| cloud.peer()).collect()).unwrap()
}

/// Both ends of a finished or failed handshake.
pub(crate) struct Outcome {
    pub(crate) client: ClientConnection,
    pub(crate) server: ServerConnection,
    pub(crate) client_error: Option<rustls::Error>,
    pub(crate) server_error: Option<rustls::Error>,
}

impl Outcome {
    pub(crate) fn is_up(&self) -> bool {
        self.client_error.is_none()
            && self.server_error.is_none()
            && !self.client.is_handshaking()
            && !self.server.is_handshaking()
    }
}

/// Runs a handshake in memory until nothing moves any more.
pub(crate) fn handshake(client: Arc<rustls::ClientConfig>, server: Arc<rustls::ServerConfig>) -> Outcome {
    let name = tls::SERVER_NAME.try_into().unwrap();
    let mut outcome = Outcome {
        client: ClientConnection::new(client, name).unwrap(),
        server: ServerConnection::new(server).unwrap(),
        client_error: None,
        server_error: None,
    };
    for _ in 0..10 {
        let mut bytes = Vec::new();
        while outcome.client.wants_write() {
            outcome.client.write_tls(&mut bytes).unwrap();
        }
        let mut input = bytes.as_slice();
        while !input.is_empty() && outcome.server_error.is_none() {
            outcome.server.read_tls(&mut input).unwrap();
            outcome.server_error = outcome.server.process_new_packets().err();
        }
        let mut bytes = Vec::new();
        while outcome.server.wants_write() {
            outcome.server.write_tls(&mut bytes).unwrap();
        }
        let mut input = bytes.as_slice();
        while !input.is_empty() && outcome.client_error.is_none() {
            outcome.client.read_tls(&mut input).unwrap();
            outcome.client_error = outcome.client.process_new_packets().err();
        }
    }
    outcome
}

/// A handshake in which `client` dials `server`, each trusting what is given.
pub(crate) fn dial(
    client: (&Arc<IdentityStore>, &Arc<TrustStore>),
    server: (&Arc<IdentityStore>, &Arc<TrustStore>),
    expected: &str,
) -> Outcome {
    let client_config =
        tls::client_config(Arc::clone(client.0), Arc::clone(client.1), at(noon()), Arc::from(expected)).unwrap();
    let server_config = tls::server_config(Arc::clone(server.0), Arc::clone(server.1), at(noon())).unwrap();
    handshake(client_config, server_config)
}

pub(crate) fn owned(chain: &[CertificateDer<'_>]) -> Vec<CertificateDer<'static>> {
    chain.iter().map(|der| der.clone().into_owned()).collect()
}
