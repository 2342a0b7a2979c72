//! What replicas of one cluster send each other, before any key has looked at it.

use eastway_tunnel::replicas::envelope::{Envelope, Flow, HEADER, MAX_ENVELOPE, MAX_PACKET, SIGNED, decode, header};

/// Any bytes at all on the port between replicas; and as what was sealed, by somebody who has the keys.
pub fn envelope(bytes: &[u8]) {
    match decode(bytes) {
        Ok(Envelope::Beat(beat)) => {
            let mut again = beat.encode();
            assert_eq!(again.len(), SIGNED);
            again.extend([0; 32]);
            assert_eq!(decode(&again), Ok(Envelope::Beat(beat)));
        }
        Ok(Envelope::Sealed { direction, sender, number }) => {
            assert!(bytes.len() <= MAX_ENVELOPE);
            assert_eq!(bytes.get(..HEADER), Some(header(direction, sender, number).as_slice()));
        }
        Err(_) => {}
    }
    if let Some((flow, ecn, packet)) = Flow::decode(bytes) {
        assert!(flow.client.port() != 0 && (1..=MAX_PACKET).contains(&packet.len()));
        let mut again = Vec::new();
        flow.encode(ecn, &mut again);
        again.extend_from_slice(packet);
        assert_eq!(again, bytes);
    }
}
