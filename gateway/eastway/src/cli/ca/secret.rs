//! `eastway ca init --kubernetes`: a new CA in a Secret, made once.

use std::collections::BTreeMap;

use eastway_identity::ca::{self, InitOptions};
use eastway_identity::{SpkiPin, certificates_from_pem};
use eastway_kubernetes::client::connect;
use eastway_kubernetes::secrets::{Made, create_once};

use crate::cli::exit::Failure;
use crate::cli::kube::{KubeArgs, block_on};

/// Which Secret.
pub(super) struct Place<'a> {
    pub(super) kube: &'a KubeArgs,
    pub(super) namespace: &'a str,
    pub(super) secret: &'a str,
}

/// Makes the Secret unless there is one; says which CA is in it.
pub(super) fn init(place: &Place<'_>, options: &InitOptions) -> Result<String, Failure> {
    let files = ca::generate(options).map_err(|error| Failure::failed(&error))?;
    let new: BTreeMap<String, Vec<u8>> =
        files.iter().map(|file| (file.name.to_owned(), file.text.as_bytes().to_vec())).collect();
    let made = block_on(async {
        let client = connect(&place.kube.access()).await.map_err(|error| Failure::failed(&error))?;
        create_once(&client, place.namespace, place.secret, new.clone()).await.map_err(|error| Failure::failed(&error))
    });
    let where_ = format!("Secret {}/{}", place.namespace, place.secret);
    match made.map_err(|error| Failure::failed(&error))?? {
        Made::Created => {
            Ok(format!("made a CA for {} in {where_}\n  pin  {}\n", options.trust_domain, pin(&new, &where_)?))
        }
        Made::Found(data) => {
            let pin = pin(&data, &where_)?;
            Ok(format!("found a CA in {where_}; nothing was changed\n  pin  {pin}\n"))
        }
    }
}

/// The pin of the CA in a Secret of either layout; the key's contents are not looked at.
fn pin(data: &BTreeMap<String, Vec<u8>>, place: &str) -> Result<SpkiPin, Failure> {
    let layouts = [("ca-cert.pem", "ca-key.pem"), ("tls.crt", "tls.key")];
    let found =
        layouts.into_iter().find(|(certificate, key)| data.contains_key(*certificate) && data.contains_key(*key));
    let Some((name, _)) = found else {
        let keys: Vec<_> = data.keys().map(String::as_str).collect();
        return Err(Failure::because(format!(
            "{place} exists and holds no CA (ca-cert.pem with ca-key.pem, or tls.crt with tls.key); it has {}. \
             Name another with --secret, or delete it",
            if keys.is_empty() { "nothing".to_owned() } else { keys.join(", ") }
        )));
    };
    let bad = |reason: String| Failure::because(format!("{place}: {name}: {reason}"));
    let text = data.get(name).map(Vec::as_slice).unwrap_or_default();
    let certificates = certificates_from_pem(text).map_err(|error| bad(error.to_string()))?;
    let first = certificates.first().ok_or_else(|| bad("holds no certificate".to_owned()))?;
    SpkiPin::of_certificate(first).map_err(|error| bad(error.to_string()))
}
