//! The CA of `eastway ca … --kubernetes`: in a Secret, made once, rotated in place.
//!
//! The keys of a Secret are flat: what is `next/ca-cert.pem` in a folder is `next-ca-cert.pem` there. The chart mounts
//! them as the folder that the ca role reads, and swaps all of it at once.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use eastway_identity::ca::{self, InitOptions, rotate};
use eastway_identity::{SpkiPin, certificates_from_pem};
use eastway_kubernetes::client::connect;
use eastway_kubernetes::install::Installation;
use eastway_kubernetes::secrets::{Found, Made, create_once};

use crate::cli::exit::Failure;
use crate::cli::kube::{KubeArgs, block_on};
use crate::config;

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

/// Does something to the Secret as if it were a CA folder; the second argument of `work` is the trust domain of the
/// installation, empty if there is none. Written back, if `writes`, only if nobody else has changed it meanwhile.
pub(super) fn change(
    place: &Place<'_>,
    writes: bool,
    work: impl FnOnce(&Path, &str) -> Result<String, Failure>,
) -> Result<String, Failure> {
    let done = block_on(async {
        let client = connect(&place.kube.access()).await.map_err(|error| Failure::failed(&error))?;
        let found =
            Found::read(&client, place.namespace, place.secret).await.map_err(|error| Failure::failed(&error))?;
        let mut data = found.data();
        let scratch = Scratch::new().and_then(|scratch| scratch.write(&data).map(|()| scratch));
        let scratch = scratch.map_err(|error| Failure::failed(&error))?;
        let named = format!("Secret {}/{}", place.namespace, place.secret);
        let said = work(&scratch.0, &trust_domain(place).await);
        let shown = scratch.0.display().to_string();
        let said = said.map_err(|failure| Failure::because(failure.message().replace(&shown, &named)))?;
        if writes {
            scratch.read(&mut data).map_err(|error| Failure::failed(&error))?;
            found.replace(data).await.map_err(|error| Failure::failed(&error))?;
        }
        Ok(said)
    });
    done.map_err(|error| Failure::failed(&error))?
}

/// That of the installation there; empty if it cannot be read.
async fn trust_domain(place: &Place<'_>) -> String {
    let Ok(installation) = Installation::at(&place.kube.access(), place.namespace).await else { return String::new() };
    let Ok(text) = installation.config().await else { return String::new() };
    let settings = config::settings_of_text("ConfigMap eastway-config", text);
    settings.map(|settings| settings.trust.domain.to_string()).unwrap_or_default()
}

/// A folder in memory, if the system has one, for nobody else, that goes with this value.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> io::Result<Self> {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let folder = parent.join(format!("eastway-ca-{:016x}", fastrand::u64(..)));
        fs::DirBuilder::new().mode(0o700).create(&folder)?;
        Ok(Self(folder))
    }

    /// The files of the Secret in the places that they have in a folder.
    fn write(&self, data: &BTreeMap<String, Vec<u8>>) -> io::Result<()> {
        for place in rotate::places() {
            let Some(bytes) = data.get(&key_of(&place)) else { continue };
            let file = self.0.join(&place);
            if let Some(folder) = file.parent() {
                fs::create_dir_all(folder)?;
            }
            fs::write(file, bytes)?;
        }
        // What somebody else rotates is known by its files.
        for name in ["tls.crt", "tls.key", "ca.crt"] {
            if let Some(bytes) = data.get(name) {
                fs::write(self.0.join(name), bytes)?;
            }
        }
        Ok(())
    }

    /// Back into what the Secret is to hold; what is no part of the CA stays.
    fn read(&self, data: &mut BTreeMap<String, Vec<u8>>) -> io::Result<()> {
        for place in rotate::places() {
            match fs::read(self.0.join(&place)) {
                Ok(bytes) => drop(data.insert(key_of(&place), bytes)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => drop(data.remove(&key_of(&place))),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing is left to be done about it here.
        let _gone = fs::remove_dir_all(&self.0);
    }
}

/// The key in the Secret of a file in the folder.
fn key_of(place: &str) -> String {
    place.replace('/', "-")
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

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn a_rotation_goes_through_a_secret_as_through_a_folder() {
        let options = InitOptions::new("gke.example");
        let files = ca::generate(&options).unwrap();
        let mut secret: BTreeMap<String, Vec<u8>> =
            files.iter().map(|file| (file.name.to_owned(), file.text.as_bytes().to_vec())).collect();
        secret.insert("note".to_owned(), b"mine".to_vec());
        let first = secret.clone();
        let now = SystemTime::now();
        let mut step = |work: &dyn Fn(&Path)| {
            let scratch = Scratch::new().unwrap();
            scratch.write(&secret).unwrap();
            work(&scratch.0);
            scratch.read(&mut secret).unwrap();
            let place = scratch.0.clone();
            drop(scratch);
            assert!(!place.exists());
            secret.clone()
        };
        let begun = step(&|dir| drop(rotate::begin(dir, &options).unwrap()));
        assert_eq!(begun["ca-cert.pem"], first["ca-cert.pem"]);
        assert_ne!(begun["next-ca-cert.pem"], first["ca-cert.pem"]);
        let active = step(&|dir| drop(rotate::activate(dir, now).unwrap()));
        assert_eq!(active["ca-key.pem"], begun["next-ca-key.pem"]);
        assert_eq!(active["previous-ca-cert.pem"], first["ca-cert.pem"]);
        assert!(active.contains_key("previous-activated") && !active.contains_key("next-ca-cert.pem"));
        let done = step(&|dir| drop(rotate::finish(dir, now, true).unwrap()));
        let keys: Vec<_> = done.keys().map(String::as_str).collect();
        assert_eq!(keys, first.keys().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(done["note"], b"mine");
    }
}
