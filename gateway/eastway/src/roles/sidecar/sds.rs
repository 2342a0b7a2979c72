//! Secrets for Envoy: the discovery service on the agent's socket, state of the world and delta.
//!
//! What one stream has asked for and been sent is a state machine without I/O ([`Delta`], [`Whole`]); the rest joins it to
//! a gRPC stream.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;

use eastway_proto::envoy::extensions::transport_sockets::tls::v3::Secret as SecretMessage;
use eastway_proto::envoy::google::rpc;
use eastway_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use eastway_proto::envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryService;
use futures_util::Stream;
use futures_util::stream::unfold;
use prost::Name as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, warn};

use super::secrets::Snapshot;
use crate::telemetry::Escaped;

/// Most names of one stream. Envoy opens one stream for each secret.
const MAX_NAMES: usize = 64;
/// Longest name, bytes.
const MAX_NAME: usize = 512;

/// The service.
#[derive(Clone, Debug)]
pub(super) struct SecretService {
    pub(super) secrets: watch::Receiver<Snapshot>,
    pub(super) stop: CancellationToken,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl SecretDiscoveryService for SecretService {
    type DeltaSecretsStream = Answers<DeltaDiscoveryResponse>;
    type StreamSecretsStream = Answers<DiscoveryResponse>;

    async fn delta_secrets(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Ok(Response::new(self.answers(request.into_inner(), Delta::default())))
    }

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        Ok(Response::new(self.answers(request.into_inner(), Whole::default())))
    }

    async fn fetch_secrets(&self, request: Request<DiscoveryRequest>) -> Result<Response<DiscoveryResponse>, Status> {
        let mut session = Whole::default();
        let snapshot = self.secrets.borrow().clone();
        let answer = session.request(request.into_inner(), &snapshot)?;
        answer.map(Response::new).ok_or_else(|| Status::not_found("no such secret"))
    }
}

/// What one stream has asked for and been sent.
trait Session: Send + 'static {
    type Request: prost::Message + Default + 'static;
    type Answer: Send + 'static;

    /// What to answer to a message; `None`: nothing.
    fn request(&mut self, request: Self::Request, secrets: &Snapshot) -> Result<Option<Self::Answer>, Status>;

    /// What to send because secrets changed; `None`: nothing.
    fn changed(&mut self, secrets: &Snapshot) -> Option<Self::Answer>;
}

impl SecretService {
    fn answers<S: Session>(&self, requests: Streaming<S::Request>, session: S) -> Answers<S::Answer> {
        let state = (requests, session, self.secrets.clone(), self.stop.clone());
        Box::pin(unfold(Some(state), |state| async {
            let (mut requests, mut session, mut secrets, stop) = state?;
            loop {
                let answer = tokio::select! {
                    () = stop.cancelled() => return None,
                    request = requests.message() => match request {
                        Ok(Some(request)) => {
                            let snapshot = secrets.borrow().clone();
                            session.request(request, &snapshot)
                        }
                        Ok(None) | Err(_) => return None,
                    },
                    changed = secrets.changed() => {
                        changed.ok()?;
                        let snapshot = secrets.borrow_and_update().clone();
                        Ok(session.changed(&snapshot))
                    }
                };
                match answer {
                    Ok(Some(answer)) => return Some((Ok(answer), Some((requests, session, secrets, stop)))),
                    Ok(None) => {}
                    Err(status) => return Some((Err(status), None)),
                }
            }
        }))
    }
}

/// A stream of differences.
#[derive(Debug, Default)]
struct Delta {
    /// Version of each secret that was asked for; `None`: Envoy knows that there is none.
    sent: BTreeMap<String, Option<String>>,
    nonce: u64,
}

impl Delta {
    /// The secrets of these names, and which there are none of.
    fn answer<'n>(
        &mut self,
        names: impl Iterator<Item = &'n String>,
        secrets: &Snapshot,
    ) -> Option<DeltaDiscoveryResponse> {
        let (mut resources, mut removed) = (Vec::new(), Vec::new());
        for name in names {
            let secret = secrets.get(name);
            match secret {
                Some(secret) => resources.push(Resource {
                    name: name.clone(),
                    version: secret.version.clone(),
                    resource: Some(secret.resource.clone()),
                    ..Resource::default()
                }),
                // Said at once: Envoy would wait for it, and hold back what needs it.
                None => removed.push(name.clone()),
            }
            self.sent.insert(name.clone(), secret.map(|secret| secret.version.clone()));
        }
        if resources.is_empty() && removed.is_empty() {
            return None;
        }
        self.nonce += 1;
        Some(DeltaDiscoveryResponse {
            resources,
            removed_resources: removed,
            type_url: SecretMessage::type_url(),
            nonce: self.nonce.to_string(),
            ..DeltaDiscoveryResponse::default()
        })
    }
}

impl Session for Delta {
    type Request = DeltaDiscoveryRequest;
    type Answer = DeltaDiscoveryResponse;

    fn request(
        &mut self,
        request: DeltaDiscoveryRequest,
        secrets: &Snapshot,
    ) -> Result<Option<DeltaDiscoveryResponse>, Status> {
        check_type(&request.type_url)?;
        note_refusal(request.error_detail.as_ref());
        for name in &request.resource_names_unsubscribe {
            self.sent.remove(name);
        }
        let asked: BTreeSet<String> = request.resource_names_subscribe.into_iter().collect();
        let known = asked.iter().filter(|name| !self.sent.contains_key(*name)).count() + self.sent.len();
        check_names(known, asked.iter())?;
        // What Envoy has from an earlier stream is not sent again; what it asks for again is (xDS, "subscribing").
        let mut wanted = Vec::new();
        for name in asked {
            let has = request.initial_resource_versions.get(&name);
            match secrets.get(&name) {
                Some(secret) if has == Some(&secret.version) => {
                    self.sent.insert(name, Some(secret.version.clone()));
                }
                _ => wanted.push(name),
            }
        }
        Ok(self.answer(wanted.iter(), secrets))
    }

    fn changed(&mut self, secrets: &Snapshot) -> Option<DeltaDiscoveryResponse> {
        let version = |name: &String| secrets.get(name).map(|secret| &secret.version);
        let changed: Vec<String> = self
            .sent
            .iter()
            .filter(|(name, sent)| version(name) != sent.as_ref())
            .map(|(name, _)| name.clone())
            .collect();
        self.answer(changed.iter(), secrets)
    }
}

/// A stream of whole states.
#[derive(Debug, Default)]
struct Whole {
    names: BTreeSet<String>,
    /// Version of what was sent last.
    sent: String,
    nonce: u64,
}

impl Whole {
    fn answer(&mut self, secrets: &Snapshot) -> Option<DiscoveryResponse> {
        let found: Vec<_> = self.names.iter().filter_map(|name| Some((name, secrets.get(name)?))).collect();
        let version: Vec<String> = found.iter().map(|(name, secret)| format!("{name}@{}", secret.version)).collect();
        let version = version.join(",");
        if version == self.sent {
            return None;
        }
        let resources = found.into_iter().map(|(_, secret)| secret.resource.clone()).collect();
        self.nonce += 1;
        self.sent.clone_from(&version);
        Some(DiscoveryResponse {
            version_info: version,
            resources,
            type_url: SecretMessage::type_url(),
            nonce: self.nonce.to_string(),
            ..DiscoveryResponse::default()
        })
    }
}

impl Session for Whole {
    type Request = DiscoveryRequest;
    type Answer = DiscoveryResponse;

    fn request(&mut self, request: DiscoveryRequest, secrets: &Snapshot) -> Result<Option<DiscoveryResponse>, Status> {
        check_type(&request.type_url)?;
        note_refusal(request.error_detail.as_ref());
        // It answers an earlier message, and the names that count are still to come.
        if !request.response_nonce.is_empty() && request.response_nonce != self.nonce.to_string() {
            return Ok(None);
        }
        let names: BTreeSet<String> = request.resource_names.into_iter().collect();
        check_names(names.len(), names.iter())?;
        self.names = names;
        Ok(self.answer(secrets))
    }

    fn changed(&mut self, secrets: &Snapshot) -> Option<DiscoveryResponse> {
        self.answer(secrets)
    }
}

fn check_type(type_url: &str) -> Result<(), Status> {
    if type_url.is_empty() || type_url == SecretMessage::type_url() {
        return Ok(());
    }
    Err(Status::invalid_argument("only secrets are served here"))
}

fn check_names<'n>(count: usize, names: impl Iterator<Item = &'n String>) -> Result<(), Status> {
    if count > MAX_NAMES {
        return Err(Status::resource_exhausted(format!("more than {MAX_NAMES} secrets on one stream")));
    }
    for name in names {
        if name.len() > MAX_NAME {
            return Err(Status::invalid_argument("the name of a secret is too long"));
        }
        debug!(name = %Escaped(name), "a secret is asked for");
    }
    Ok(())
}

fn note_refusal(error: Option<&rpc::Status>) {
    if let Some(error) = error {
        warn!(reason = %Escaped(&error.message), "Envoy refuses a secret, and goes on with the one it has");
    }
}

#[cfg(test)]
mod tests;
