//! What sidecars ask for.

use eastway::proxy::hbone::authority::Authority;

/// The authority of a CONNECT request.
pub fn authority(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match text.parse::<Authority>() {
        Ok(authority) => assert_eq!(authority.to_string(), text, "one authority has one spelling"),
        Err(error) => assert!(error.to_string().len() < 300, "the refusal quotes what it was given"),
    }
}
