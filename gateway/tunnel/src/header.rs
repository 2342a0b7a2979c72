//! The header that begins every stream but the control stream: what the stream is for.
//!
//! On the wire: the magic `EWS1`, a big-endian `u16` length from 1 to [`MAX_HEADER`], one
//! `eastway.tunnel.v1.StreamHeader`, then the bytes of the connection with no framing. Here it
//! becomes a [`StreamHeader`] that can name services and nothing else: there is no way to express
//! where to connect (invariant I1). Nothing is read beyond the header's last byte.

mod client;
mod names;
mod relay;
mod wire;

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use eastway_proto::tunnel::v1 as proto;
use prost::Message;

use crate::code::ResetCode;
use crate::flow::FlowId;
pub use client::ClientAddress;
pub use names::{EndpointRef, Label, NameError, Traceparent};
pub use relay::RelayHeader;

/// First bytes of every header; the last one is the version.
pub const MAGIC: [u8; 4] = *b"EWS1";
/// Longest protobuf message in a header, bytes.
pub const MAX_HEADER: usize = 1024;
/// Magic and length.
pub(crate) const PREFIX: usize = 6;
/// Longest measurement.
pub const MAX_BENCH_SECONDS: u8 = 10;
/// Labels that a subset may consist of.
const MAX_SUBSET: usize = 16;

/// What a stream is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamHeader {
    /// One TCP connection to an exported service, or one UDP flow.
    Service(ServiceHeader),
    /// The federation session of the importer that opened it.
    Federation(FederationHeader),
    /// An echo of at most 64 KiB, by which `eastway check` measures a path.
    Probe,
    /// A measurement, for `eastway bench`.
    Bench(BenchHeader),
    /// A pipe to another cluster by way of a third.
    Relay(RelayHeader),
}

impl StreamHeader {
    /// The kind as it appears in logs and metrics.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Service(_) => "service",
            Self::Federation(_) => "federation",
            Self::Probe => "probe",
            Self::Relay(_) => "relay",
            Self::Bench(_) => "bench",
        }
    }

    /// The flow that the stream stands for, if it is one of UDP.
    #[must_use]
    pub const fn flow(&self) -> Option<FlowId> {
        match self {
            Self::Service(service) => service.flow,
            Self::Federation(_) | Self::Probe | Self::Relay(_) | Self::Bench(_) => None,
        }
    }

    /// The bytes to begin a stream with.
    ///
    /// # Errors
    /// [`HeaderTooLong`] if a subset or an identity makes it longer than [`MAX_HEADER`].
    pub fn encode(&self) -> Result<Bytes, HeaderTooLong> {
        let message = self.to_proto();
        let length = message.encoded_len();
        let short = u16::try_from(length).ok().filter(|_| length <= MAX_HEADER).ok_or(HeaderTooLong(length))?;
        let mut out = BytesMut::with_capacity(PREFIX + length);
        out.put_slice(&MAGIC);
        out.put_u16(short);
        message.encode_raw(&mut out);
        Ok(out.freeze())
    }

    fn to_proto(&self) -> proto::StreamHeader {
        use proto::stream_header::Kind;
        let kind = match self {
            Self::Service(service) => Kind::Service(service.to_proto()),
            Self::Federation(FederationHeader { min_version, max_version }) => {
                Kind::Federation(proto::FederationStream { min_version: *min_version, max_version: *max_version })
            }
            Self::Probe => Kind::Probe(proto::ProbeStream {}),
            Self::Bench(BenchHeader { download, seconds }) => {
                Kind::Bench(proto::BenchStream { download: *download, seconds: u32::from(*seconds) })
            }
            Self::Relay(relay) => Kind::Relay(relay.to_proto()),
        };
        proto::StreamHeader { kind: Some(kind) }
    }
}

/// One TCP connection to an exported service, or one UDP flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceHeader {
    /// Namespace of the service.
    pub namespace: Label,
    /// Its name.
    pub service: Label,
    /// The service's own port.
    pub port: NonZeroU16,
    /// Labels that the endpoint must carry, at most 16; empty: any endpoint.
    pub subset: BTreeMap<Arc<str>, Arc<str>>,
    /// One endpoint by the name that its owner gave it; none: the owner chooses.
    pub endpoint: Option<EndpointRef>,
    /// Who connects, as the sending gateway attests it.
    pub source: Source,
    /// W3C trace context, if the sender has one.
    pub traceparent: Option<Traceparent>,
    /// Stands for the client of a sticky service: the same value leads to the same endpoint.
    pub affinity: Option<u64>,
    /// The client speaks TLS to the endpoint, whoever it is.
    pub tls: bool,
    /// Whom the sending gateway saw connect, for services that ask for it.
    pub client: Option<ClientAddress>,
    /// The port is one of UDP, and this is the flow's name on its link; `None`: of TCP.
    pub flow: Option<FlowId>,
}

impl ServiceHeader {
    fn to_proto(&self) -> proto::ServiceStream {
        let text = |label: &Option<Label>| label.as_ref().map_or_else(String::new, |label| label.as_str().to_owned());
        let Source { namespace, service_account, identity } = &self.source;
        let source = proto::Source {
            namespace: text(namespace),
            service_account: text(service_account),
            identity: identity.as_deref().unwrap_or_default().to_owned(),
        };
        proto::ServiceStream {
            namespace: self.namespace.as_str().to_owned(),
            service: self.service.as_str().to_owned(),
            port: u32::from(self.port.get()),
            subset: self.subset.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
            endpoint_id: self.endpoint.as_ref().map_or_else(String::new, |id| id.as_str().to_owned()),
            source: (self.source != Source::default()).then_some(source),
            traceparent: self.traceparent.as_ref().map_or_else(String::new, |trace| trace.as_str().to_owned()),
            affinity: self.affinity,
            protocol: self.flow.map_or(proto::Protocol::Tcp, |_| proto::Protocol::Udp).into(),
            flow_id: self.flow.map(FlowId::get),
            tls: self.tls,
            client_address: self.client.map(ClientAddress::to_proto),
        }
    }
}

/// Who connects. Empty fields: the sending gateway does not know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// Namespace of the workload.
    pub namespace: Option<Label>,
    /// Its service account.
    pub service_account: Option<Label>,
    /// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`, if the workload proved one.
    pub identity: Option<Arc<str>>,
}

/// A federation session, opened by the importer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FederationHeader {
    /// Lowest version of the federation protocol that the importer speaks.
    pub min_version: u32,
    /// Highest one.
    pub max_version: u32,
}

/// A measurement of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BenchHeader {
    /// Who is sent this header sends bytes, else who sent it.
    pub download: bool,
    /// For so long, 1 to [`MAX_BENCH_SECONDS`].
    pub seconds: u8,
}

/// The header of a stream is longer than [`MAX_HEADER`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream header would be {0} bytes long; at most {MAX_HEADER} are allowed")]
pub struct HeaderTooLong(pub usize);

/// What is wrong with a header that was received.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The stream does not begin with [`MAGIC`]: another protocol.
    #[error("the stream does not begin with a stream header")]
    Magic,
    /// The magic of another version.
    #[error("stream header version {:?} is not supported (we speak 1)", char::from(*.0))]
    Version(u8),
    /// A length of 0 or over [`MAX_HEADER`].
    #[error("the stream header claims {0} bytes; 1 to {MAX_HEADER} are allowed")]
    Length(u16),
    /// The stream ended inside the header.
    #[error("the stream ended inside its header")]
    Truncated,
    /// The header was not complete in time.
    #[error("no complete stream header within the deadline")]
    Deadline,
    /// Not protobuf, or a field of the wrong type.
    #[error("the stream header cannot be decoded")]
    Malformed,
    /// A field or a kind that may come once came twice.
    #[error("{0} comes twice in the stream header")]
    Duplicate(&'static str),
    /// A field that must not be ignored is not known.
    #[error("field {0} of the stream header is not known to this version")]
    Unsupported(u32),
    /// A name breaks the grammar of names.
    #[error("{field} in the stream header {source}")]
    Name {
        /// Which name.
        field: &'static str,
        /// Which rule.
        source: NameError,
    },
    /// A port outside 1 to 65535.
    #[error("port {0} in the stream header is not between 1 and 65535")]
    Port(u32),
    /// More labels than a subset may have.
    #[error("{0} subset labels in the stream header; at most {MAX_SUBSET} are allowed")]
    Subset(usize),
    /// The client's address is none, or none that a client has.
    #[error("client_address in the stream header is no address of a client")]
    ClientAddress,
    /// A transport that is neither TCP nor UDP.
    #[error("protocol {0} in the stream header is not known to this version")]
    Protocol(i32),
    /// A UDP flow without a name, a TCP connection with one, or a name that cannot be.
    #[error("the flow id in the stream header is missing, out of place, or not one of the opener's")]
    Flow,
    /// The versions of a federation stream are no range.
    #[error("federation versions {0} to {1} in the stream header are no range")]
    VersionRange(u32, u32),
    /// A measurement that is too long or takes no time.
    #[error("a measurement of {0} s in the stream header; 1 to {MAX_BENCH_SECONDS} are allowed")]
    Seconds(u32),
}

impl HeaderError {
    /// What the sender is told.
    #[must_use]
    pub const fn code(&self) -> ResetCode {
        match self {
            Self::Magic
            | Self::Length(_)
            | Self::Truncated
            | Self::Deadline
            | Self::Malformed
            | Self::Duplicate(_)
            | Self::Port(_)
            | Self::Subset(_)
            | Self::ClientAddress
            | Self::Flow
            | Self::VersionRange(..)
            | Self::Seconds(_) => ResetCode::BadHeader,
            Self::Version(_) => ResetCode::Version,
            Self::Unsupported(_) | Self::Protocol(_) => ResetCode::Unsupported,
            Self::Name { .. } => ResetCode::BadName,
        }
    }
}

/// How far a decoder got.
#[expect(clippy::large_enum_variant, reason = "it is taken apart at once, and a header is read once a stream")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// The first `used` bytes are this header; the rest belongs to the connection.
    Complete {
        /// The header.
        header: StreamHeader,
        /// Its length on the wire, prefix included.
        used: usize,
    },
    /// At least this many bytes more are needed, from 1 to [`MAX_HEADER`] + 6.
    Incomplete(usize),
}

/// Decodes a header from the first bytes of a stream. A wrong prefix is found at its first wrong byte.
///
/// # Errors
/// [`HeaderError`]; its [`code`](HeaderError::code) is what the stream is reset with.
pub fn decode(bytes: &[u8]) -> Result<Decoded, HeaderError> {
    let Some(length) = decode_prefix(bytes)? else {
        return Ok(Decoded::Incomplete(PREFIX - bytes.len()));
    };
    let used = PREFIX + length;
    match bytes.get(PREFIX..used) {
        Some(message) => Ok(Decoded::Complete { header: decode_message(message)?, used }),
        None => Ok(Decoded::Incomplete(used - bytes.len())),
    }
}

/// The length of the message, once the prefix is complete.
pub(crate) fn decode_prefix(bytes: &[u8]) -> Result<Option<usize>, HeaderError> {
    if let Some(version) = bytes.get(3).filter(|_| bytes.starts_with(b"EWS"))
        && *version != b'1'
    {
        return Err(HeaderError::Version(*version));
    }
    if bytes.iter().zip(MAGIC).any(|(have, want)| *have != want) {
        return Err(HeaderError::Magic);
    }
    let (Some(high), Some(low)) = (bytes.get(4), bytes.get(5)) else { return Ok(None) };
    match u16::from_be_bytes([*high, *low]) {
        length if length == 0 || usize::from(length) > MAX_HEADER => Err(HeaderError::Length(length)),
        length => Ok(Some(usize::from(length))),
    }
}

/// The message that follows the prefix.
pub(crate) fn decode_message(message: &[u8]) -> Result<StreamHeader, HeaderError> {
    use proto::stream_header::Kind;
    wire::check(message, &wire::STREAM_HEADER)?;
    let decoded = proto::StreamHeader::decode(message).map_err(|_| HeaderError::Malformed)?;
    match decoded.kind.ok_or(HeaderError::Malformed)? {
        Kind::Service(service) => service_header(service).map(StreamHeader::Service),
        Kind::Federation(proto::FederationStream { min_version, max_version }) => {
            if min_version == 0 || max_version < min_version {
                return Err(HeaderError::VersionRange(min_version, max_version));
            }
            Ok(StreamHeader::Federation(FederationHeader { min_version, max_version }))
        }
        Kind::Probe(proto::ProbeStream {}) => Ok(StreamHeader::Probe),
        Kind::Bench(proto::BenchStream { download, seconds }) => {
            let short = u8::try_from(seconds).ok().filter(|short| (1..=MAX_BENCH_SECONDS).contains(short));
            let seconds = short.ok_or(HeaderError::Seconds(seconds))?;
            Ok(StreamHeader::Bench(BenchHeader { download, seconds }))
        }
        Kind::Relay(relay) => RelayHeader::from_proto(&relay).map(StreamHeader::Relay),
    }
}

fn service_header(wire: proto::ServiceStream) -> Result<ServiceHeader, HeaderError> {
    let flow = flow_of(&wire)?;
    let proto::ServiceStream {
        namespace, service, port, subset, endpoint_id, source, traceparent, client_address, ..
    } = wire;
    let named = |field, result: Result<_, NameError>| result.map_err(|source| HeaderError::Name { field, source });
    let port = u16::try_from(port).ok().and_then(NonZeroU16::new).ok_or(HeaderError::Port(port))?;
    if subset.len() > MAX_SUBSET {
        return Err(HeaderError::Subset(subset.len()));
    }
    let subset = subset
        .into_iter()
        .map(|(key, value)| {
            names::check_label_pair(&key, &value).map_err(|source| HeaderError::Name { field: "subset", source })?;
            Ok((key.into(), value.into()))
        })
        .collect::<Result<_, HeaderError>>()?;
    let endpoint = match endpoint_id.as_str() {
        "" => None,
        id => Some(EndpointRef::parse(id).map_err(|source| HeaderError::Name { field: "endpoint_id", source })?),
    };
    Ok(ServiceHeader {
        namespace: named("namespace", Label::parse(&namespace))?,
        service: named("service", Label::parse(&service).and_then(Label::no_address))?,
        port,
        subset,
        endpoint,
        source: source.map(source_of).transpose()?.unwrap_or_default(),
        // W3C Trace Context §3.2: what cannot be parsed starts a new trace and harms nothing else.
        traceparent: Traceparent::parse(&traceparent),
        affinity: wire.affinity,
        tls: wire.tls,
        flow,
        client: client_address.map(|wire| ClientAddress::from_proto(&wire)).transpose()?,
    })
}

fn flow_of(wire: &proto::ServiceStream) -> Result<Option<FlowId>, HeaderError> {
    let protocol = proto::Protocol::try_from(wire.protocol).map_err(|_| HeaderError::Protocol(wire.protocol))?;
    match (protocol, wire.flow_id) {
        (proto::Protocol::Tcp, None) => Ok(None),
        (proto::Protocol::Udp, Some(id)) => FlowId::new(id).map(Some).ok_or(HeaderError::Flow),
        (proto::Protocol::Tcp, Some(_)) | (proto::Protocol::Udp, None) => Err(HeaderError::Flow),
    }
}

fn source_of(wire: proto::Source) -> Result<Source, HeaderError> {
    let proto::Source { namespace, service_account, identity } = wire;
    let label = |field, text: String| match text.as_str() {
        "" => Ok(None),
        text => Label::parse(text).map(Some).map_err(|source| HeaderError::Name { field, source }),
    };
    let identity = match identity.as_str() {
        "" => None,
        uri => {
            names::check_workload_uri(uri).map_err(|source| HeaderError::Name { field: "source.identity", source })?;
            Some(Arc::from(uri))
        }
    };
    Ok(Source {
        namespace: label("source.namespace", namespace)?,
        service_account: label("source.service_account", service_account)?,
        identity,
    })
}

#[cfg(test)]
mod tests;
