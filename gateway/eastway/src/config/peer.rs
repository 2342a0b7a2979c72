//! Peers after all checks.

use std::num::NonZeroU8;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use eastway_identity::{
    BundleError, CertificateDer, CertificateRevocationListDer, PeerTrust, SpiffeId, SpkiPin, certificates_from_pem,
};
use eastway_model::rules::{DEFAULT_WITHDRAW_AFTER, Glob, NameFilter, NameFilterEntry, PeerRules};
use eastway_model::{ClusterName, UnixMillis};
use eastway_registry::diagnostic::{Code, quoted};
use eastway_registry::yaml::{At, Context, Field, List, Place};
use eastway_tunnel::{MAX_SHARED, Proxy, ProxyCredentials, TcpWay, TransportPolicy};

use super::file::{NameFilterSection, Peer, PeerSpec, ProxySection, TransportWord};
use super::settings::{duration_in, path};
use super::value::{HostPort, HostPortError, cluster_name, trust_domain};
use crate::adapters;

mod render;

pub use render::{PeerFile, render};

/// Most certificates of a bundle.
const MAX_BUNDLE: usize = 64;

/// What one `kind: Peer` file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSettings {
    /// The file it comes from.
    pub file: PathBuf,
    /// The peer's cluster name.
    pub name: ClusterName,
    /// Where it can be dialled; empty: it dials us.
    pub addresses: Vec<HostPort>,
    /// What carries links that are dialled from here.
    pub transport: TransportPolicy,
    /// In which way those over TCP are.
    pub tcp: TcpWay,
    /// Another peer by way of which it is reached where no direct way works.
    pub via: Option<ClusterName>,
    /// Trust domain of its identities.
    pub trust_domain: Arc<str>,
    /// Identity of its gateway, in that trust domain.
    pub gateway: SpiffeId,
    /// Keys of its CA; at least one.
    pub pins: Vec<SpkiPin>,
    /// Certificates of its CA.
    pub bundle: Vec<CertificateDer<'static>>,
    /// Which of our exported services it may see.
    pub export: NameFilter,
    /// Which of its services we take.
    pub import: NameFilter,
    /// How long its services outlive the last link.
    pub withdraw_after: Duration,
    /// Both sides accept that workloads are not isolated.
    pub shared_trust_domain: bool,
}

impl PeerSettings {
    /// As the verifier of links needs it.
    #[must_use]
    pub fn trust(&self, crls: Vec<CertificateRevocationListDer<'static>>) -> PeerTrust {
        PeerTrust {
            name: Arc::from(self.name.as_str()),
            gateway: self.gateway.clone(),
            pins: self.pins.clone(),
            bundle: self.bundle.clone(),
            crls,
        }
    }

    /// As the store needs it. `accepted_at` is when the Peer was first configured.
    #[must_use]
    pub fn rules(&self, accepted_at: UnixMillis) -> PeerRules {
        PeerRules {
            name: self.name.clone(),
            export: self.export.clone(),
            import: self.import.clone(),
            trust_domain: Arc::clone(&self.trust_domain),
            accepted_at,
            withdraw_after: self.withdraw_after,
            shared_trust_domain: self.shared_trust_domain,
        }
    }
}

/// A Peer with the places that checks over several files report about.
#[derive(Debug)]
pub(super) struct PlacedPeer {
    pub(super) settings: PeerSettings,
    pub(super) name: Place,
    pub(super) addresses: Vec<Place>,
    pub(super) via: Option<Place>,
    pub(super) pins: Vec<Place>,
    pub(super) trust_domain: Place,
    pub(super) shared: Option<Place>,
}

/// The settings of `peer`, or `None` if something that is needed is missing.
pub(super) fn convert(file: &Path, peer: &Peer, cx: &mut Context<'_>) -> Option<PlacedPeer> {
    let root = cx.root();
    cx.header(root, &peer.api_version, &peer.kind, "Peer");
    let name = cx.required(root, "metadata", &peer.metadata, "metadata.name is the peer's cluster name");
    let name = name.and_then(|metadata| {
        let name = cx.required(metadata.at, "name", &metadata.value.name, "the peer's cluster name")?;
        Some(At { value: cx.parse(name, cluster_name)?, at: name.at })
    });
    let spec = cx.required(root, "spec", &peer.spec, "addresses, trustDomain, pins, export, import")?;
    convert_spec(file, name, spec, cx)
}

fn convert_spec(
    file: &Path,
    name: Option<At<ClusterName>>,
    section: &At<PeerSpec>,
    cx: &mut Context<'_>,
) -> Option<PlacedPeer> {
    let spec = &section.value;
    let addresses = cx.parse_items(&spec.addresses, HostPort::parse);
    for (index, address) in addresses.iter().enumerate() {
        if addresses.iter().take(index).any(|earlier| earlier.value == address.value) {
            cx.error(address.at, Code::Duplicate, format!("{} is listed twice", address.value));
        }
    }
    let proxy = spec.proxy.get().and_then(|section| proxy(section, file, cx));
    if let (Some(section), Some(TransportWord::Quic)) = (spec.proxy.get(), spec.transport.value()) {
        cx.warn(section.at, Code::Conflict, "links over QUIC do not go by way of a proxy");
    }
    let max_connections = max_connections(spec, cx);
    let via = spec.via.get().and_then(|text| Some(At { value: cx.parse(text, cluster_name)?, at: text.at }));
    if let (Some(via), Some(name)) = (&via, &name)
        && via.value == name.value
    {
        cx.error(via.at, Code::Conflict, "a peer is not reached by way of itself");
    }
    let what = "the trust domain of its identities, e.g. gke.example";
    let domain = cx.required(section.at, "trustDomain", &spec.trust_domain, what);
    let domain = domain.and_then(|text| Some(At { value: cx.parse(text, trust_domain)?, at: text.at }));
    let gateway = gateway(spec, domain.as_ref(), cx);
    let pins = pins(section, cx);
    let bundle = bundle(&spec.bundle, &pins, cx);
    let export = name_filter(&spec.export, cx);
    let import = name_filter(&spec.import, cx);
    if let Some(list) = spec.import.get()
        && list.value.is_empty()
    {
        cx.warn(list.at, Code::Empty, "the list is empty: nothing will be imported");
    } else if spec.import.get().is_none() && spec.export.get().is_none() {
        cx.warn(section.at, Code::Empty, "neither import nor export is set: nothing will cross in either direction");
    }
    let second = Duration::from_secs(1);
    let withdraw_after =
        duration_in(&spec.withdraw_after, second, 366 * 24 * 3600 * second, DEFAULT_WITHDRAW_AFTER, cx);
    let shared = spec.shared_trust_domain.get();
    let (name, domain) = (name?, domain?);
    let settings = PeerSettings {
        file: file.to_owned(),
        name: name.value,
        addresses: addresses.iter().map(|address| address.value.clone()).collect(),
        transport: match spec.transport.value() {
            None | Some(TransportWord::Auto) => TransportPolicy::Auto,
            Some(TransportWord::Fallback) => TransportPolicy::Fallback,
            Some(TransportWord::Quic) => TransportPolicy::Quic,
            Some(TransportWord::Tcp) => TransportPolicy::Tcp,
        },
        tcp: TcpWay { proxy, max_connections },
        via: via.as_ref().map(|via| via.value.clone()),
        trust_domain: domain.value,
        gateway: gateway?,
        pins: pins.iter().map(|pin| pin.value).collect(),
        bundle,
        export,
        import,
        withdraw_after,
        shared_trust_domain: shared.is_some_and(|shared| shared.value),
    };
    Some(PlacedPeer {
        settings,
        name: cx.place(name.at),
        addresses: addresses.iter().map(|address| cx.place(address.at)).collect(),
        via: via.map(|via| cx.place(via.at)),
        pins: pins.iter().map(|pin| cx.place(pin.at)).collect(),
        trust_domain: cx.place(domain.at),
        shared: shared.map(|shared| cx.place(shared.at)),
    })
}

fn max_connections(spec: &PeerSpec, cx: &mut Context<'_>) -> Option<NonZeroU8> {
    let most = spec.max_connections.get()?;
    if let Some(TransportWord::Quic) = spec.transport.value() {
        cx.warn(most.at, Code::Conflict, "a link over QUIC needs no TCP connections");
    }
    let value = u8::try_from(most.value).ok().filter(|value| *value <= MAX_SHARED).and_then(NonZeroU8::new);
    if value.is_none() {
        cx.error(most.at, Code::Value, format!("must be 1 to {MAX_SHARED}"));
    }
    value
}

fn proxy(section: &At<ProxySection>, file: &Path, cx: &mut Context<'_>) -> Option<Arc<Proxy>> {
    let url =
        cx.required(section.at, "url", &section.value.url, "where the proxy is, e.g. http://proxy.example:3128")?;
    let address = cx.parse(url, |url| {
        let rest = url.strip_prefix("http://").ok_or("must be http://host:port".to_owned())?;
        let host = HostPort::parse(rest.strip_suffix('/').unwrap_or(rest)).map_err(|error| {
            let no_port = matches!(error, HostPortError::NoPort(_));
            if no_port { "must be http://host:port; the port is missing".to_owned() } else { error.to_string() }
        })?;
        adapters::host_port(&host).ok_or_else(|| "must be http://host:port".to_owned())
    })?;
    let username = section.value.username.get();
    let credentials = match (username, section.value.password_file.get()) {
        (None, None) => None,
        (Some(username), Some(password)) => {
            let base = file.parent().unwrap_or(Path::new(""));
            let username = cx.parse(username, |name| {
                let fits = !name.is_empty() && !name.contains([':', '\r', '\n']);
                fits.then(|| name.to_owned()).ok_or("must not be empty, and have neither colons nor line breaks")
            })?;
            Some(ProxyCredentials { username, password_file: path(password, base, cx)? })
        }
        (Some(_), None) => {
            cx.required(section.at, "passwordFile", &section.value.password_file, "the file with the password")?;
            None
        }
        (None, Some(_)) => {
            cx.required(section.at, "username", &section.value.username, "whose password it is")?;
            None
        }
    };
    Some(Arc::new(Proxy { address, credentials }))
}

fn gateway(spec: &PeerSpec, domain: Option<&At<Arc<str>>>, cx: &mut Context<'_>) -> Option<SpiffeId> {
    let Some(text) = spec.gateway.get() else {
        // The grammar of trust domains is that of SPIFFE ids, so this cannot fail.
        return SpiffeId::gateway(&domain?.value).ok();
    };
    let id = cx.parse(text, SpiffeId::parse)?;
    if let Some(domain) = domain
        && id.trust_domain() != &*domain.value
    {
        let message = format!("must be in the trust domain {}, as trustDomain says", domain.value);
        cx.error(text.at, Code::Conflict, message);
    }
    Some(id)
}

fn pins(section: &At<PeerSpec>, cx: &mut Context<'_>) -> Vec<At<SpkiPin>> {
    let what = "sha256 of the public key of the peer's CA; `eastway peer export` prints it there";
    let Some(list) = cx.required(section.at, "pins", &section.value.pins, what) else { return Vec::new() };
    if list.value.is_empty() {
        cx.error(list.at, Code::Missing, format!("at least one pin is required ({what})"));
    }
    let pins = cx.parse_items(&section.value.pins, SpkiPin::parse);
    for (index, pin) in pins.iter().enumerate() {
        if pins.iter().take(index).any(|earlier| earlier.value == pin.value) {
            cx.error(pin.at, Code::Duplicate, "is listed twice");
        }
    }
    pins
}

fn bundle(field: &Field<String>, pins: &[At<SpkiPin>], cx: &mut Context<'_>) -> Vec<CertificateDer<'static>> {
    let Some(text) = field.get() else { return Vec::new() };
    let bundle = match certificates_from_pem(text.value.as_bytes()) {
        Ok(bundle) => bundle,
        Err(error @ BundleError::PrivateKey) => {
            cx.error(text.at, Code::Forbidden, error.to_string());
            return Vec::new();
        }
        Err(error) => {
            cx.error(text.at, Code::Value, error.to_string());
            return Vec::new();
        }
    };
    if bundle.len() > MAX_BUNDLE {
        cx.error(text.at, Code::TooLarge, format!("holds more than {MAX_BUNDLE} certificates"));
    }
    for (number, certificate) in (1..).zip(bundle.iter().take(MAX_BUNDLE)) {
        match SpkiPin::of_certificate(certificate) {
            Ok(pin) if pins.iter().any(|known| known.value == pin) => {}
            Ok(pin) => {
                let message = format!("certificate {number} has the key {pin}, which is not among pins: not used");
                cx.warn(text.at, Code::Value, message);
            }
            Err(error) => cx.error(text.at, Code::Value, format!("certificate {number}: {error}")),
        }
    }
    bundle
}

fn name_filter(list: &List<NameFilterSection>, cx: &mut Context<'_>) -> NameFilter {
    let mut entries = Vec::new();
    for section in list.items() {
        let what = "a namespace; nothing else is taken";
        let namespace = cx.required_parse(section.at, "namespace", &section.value.namespace, what, Glob::parse);
        let services = &section.value.services;
        let patterns: Vec<Glob> = cx.parse_items(services, Glob::parse).into_iter().map(|at| at.value).collect();
        if let Some(empty) = services.get().filter(|list| list.value.is_empty()) {
            cx.error(empty.at, Code::Empty, "the list is empty; leave it out for all services");
            continue;
        }
        let Some(namespace) = namespace else { continue };
        let services = if services.get().is_some() { patterns } else { vec![Glob::any()] };
        let entry = NameFilterEntry { namespace, services };
        let at = section.value.namespace.get().map_or(section.at, |namespace| namespace.at);
        match entry.check() {
            Ok(()) => entries.push(entry),
            Err(error) if entry.namespace.as_str().contains('*') => {
                let message = format!("{} would take in what never crosses: {error}", quoted(entry.namespace.as_str()));
                cx.error_help(at, Code::Forbidden, message, "name the namespaces");
            }
            // With a wrong service already reported, an empty list of them is no news.
            Err(_) if entry.services.is_empty() => {}
            Err(error) => cx.error(at, Code::Forbidden, error.to_string()),
        }
    }
    NameFilter::new(entries).unwrap_or_default()
}
