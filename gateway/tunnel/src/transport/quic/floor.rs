//! A floor under what the other side may negotiate.
//!
//! The idle timeout of a QUIC connection is the smaller of what both sides offer (RFC 9000 §10.1), so a
//! peer could make every link to it flap (threat P12). quinn does not show what the other side offered;
//! here is where it passes by: the TLS session hands the transport parameters over.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use bytes::Buf;
use quinn_proto::crypto::{
    ClientConfig, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, ServerConfig, Session,
    UnsupportedVersion,
};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectError, ConnectionId, Side, TransportError, TransportErrorCode};

/// `max_idle_timeout`, milliseconds (RFC 9000 §18.2).
const MAX_IDLE_TIMEOUT: u64 = 0x01;
/// Words in the error, by which the other side's operator finds the cause.
pub(super) const REFUSED: &str = "max_idle_timeout is below what this gateway accepts";

/// A TLS configuration whose sessions refuse transport parameters below the floor.
pub(super) struct Floored<C> {
    pub(super) inner: Arc<C>,
    pub(super) idle: Duration,
}

impl<C: ClientConfig + 'static> ClientConfig for Floored<C> {
    fn start_session(
        self: Arc<Self>,
        version: u32,
        server_name: &str,
        params: &TransportParameters,
    ) -> Result<Box<dyn Session>, ConnectError> {
        let inner = Arc::clone(&self.inner).start_session(version, server_name, params)?;
        Ok(Box::new(FlooredSession { inner, idle: self.idle }))
    }
}

impl<C: ServerConfig + 'static> ServerConfig for Floored<C> {
    fn initial_keys(&self, version: u32, dst_cid: &ConnectionId) -> Result<Keys, UnsupportedVersion> {
        self.inner.initial_keys(version, dst_cid)
    }

    fn retry_tag(&self, version: u32, orig_dst_cid: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.inner.retry_tag(version, orig_dst_cid, packet)
    }

    fn start_session(self: Arc<Self>, version: u32, params: &TransportParameters) -> Box<dyn Session> {
        let inner = Arc::clone(&self.inner).start_session(version, params);
        Box::new(FlooredSession { inner, idle: self.idle })
    }
}

struct FlooredSession {
    inner: Box<dyn Session>,
    idle: Duration,
}

impl Session for FlooredSession {
    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        let params = self.inner.transport_parameters()?;
        let offered = params.as_ref().and_then(idle_timeout);
        if offered.is_some_and(|offered| offered < self.idle) {
            return Err(TransportError {
                code: TransportErrorCode::TRANSPORT_PARAMETER_ERROR,
                frame: None,
                reason: REFUSED.to_owned(),
            });
        }
        Ok(params)
    }

    fn initial_keys(&self, dst_cid: &ConnectionId, side: Side) -> Keys {
        self.inner.initial_keys(dst_cid, side)
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        self.inner.handshake_data()
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        self.inner.peer_identity()
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        None
    }

    fn early_data_accepted(&self) -> Option<bool> {
        self.inner.early_data_accepted()
    }

    fn is_handshaking(&self) -> bool {
        self.inner.is_handshaking()
    }

    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        self.inner.read_handshake(buf)
    }

    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        self.inner.write_handshake(buf)
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        self.inner.next_1rtt_keys()
    }

    fn is_valid_retry(&self, orig_dst_cid: &ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        self.inner.is_valid_retry(orig_dst_cid, header, payload)
    }

    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        self.inner.export_keying_material(output, label, context)
    }
}

/// The idle timeout that the other side offers. `None`: it has none, which is no less than ours.
fn idle_timeout(params: &TransportParameters) -> Option<Duration> {
    // The fields are private; the encoding is not.
    let mut encoded = Vec::with_capacity(256);
    params.write(&mut encoded);
    let mut rest = encoded.as_slice();
    while rest.has_remaining() {
        let id = varint(&mut rest)?;
        let length = usize::try_from(varint(&mut rest)?).ok()?;
        let (mut value, after) = rest.split_at_checked(length)?;
        if id == MAX_IDLE_TIMEOUT {
            return varint(&mut value).filter(|millis| *millis > 0).map(Duration::from_millis);
        }
        rest = after;
    }
    None
}

/// A variable-length integer (RFC 9000 §16).
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let (first, _) = bytes.split_first()?;
    let length = 1_usize << (first >> 6);
    let (value, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    let value = value.iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
    let bits = u32::try_from(length).ok()? * 8 - 2;
    Some(value & ((1 << bits) - 1))
}
