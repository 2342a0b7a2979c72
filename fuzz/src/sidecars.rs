//! What sidecars ask for.

use eastway::proxy::hbone::authority::Authority;
use eastway::proxy::sni::{hello, name};
use eastway_model::ClusterName;
use eastway_model::rules::Rules;
use eastway_model::rules::route::Subsets;

/// The authority of a CONNECT request.
pub fn authority(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match text.parse::<Authority>() {
        Ok(authority) => assert_eq!(authority.to_string(), text, "one authority has one spelling"),
        Err(error) => assert!(error.to_string().len() < 300, "the refusal quotes what it was given"),
    }
}

/// What a connection of an Istio sidecar begins with, in one piece and in all beginnings of it.
pub fn client_hello(bytes: &[u8]) {
    let whole = hello::server_name(bytes);
    // What is known of a beginning stays so, whatever follows. Not of each of the long ones: they take the square of it.
    let step = bytes.len() / 64 + 1;
    let mut reading = Some(hello::Hello::default());
    for end in (0..bytes.len().min(hello::MAX_BYTES)).step_by(step) {
        let begun = hello::server_name(&bytes[..end]);
        assert!(begun == Ok(None) || begun == whole, "{begun:?} becomes {whole:?}");
        // Who reads on says the same, until something is said.
        let said = reading.as_mut().map_or(begun.clone(), |reading| reading.server_name(&bytes[..end]));
        assert_eq!(said, begun);
        reading = reading.filter(|_| said == Ok(None));
    }
    let Ok(Some(said)) = whole else { return };
    assert!(said.len() <= 255 && said.is_ascii() && bytes.len() <= hello::MAX_BYTES + (1 << 14) + 5);
    let cluster = ClusterName::parse("b").unwrap();
    if let Ok(target) = name::target(&said, &cluster, &Rules::default(), &Subsets::new()) {
        assert_eq!(target.cluster, Some(cluster), "it is of this peer alone");
        assert!(said.contains(&format!("_.{}.{}.svc.", target.service.name, target.service.namespace)), "{said}");
    }
}
