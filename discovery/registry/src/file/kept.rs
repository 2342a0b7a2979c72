//! What a registry keeps over restarts: endpoint ids, and when services were first exported.
//!
//! An id is random and given once. An endpoint that stays in the file keeps it over restarts, so
//! that peers see no change; one that goes and comes back gets another, because nothing says that
//! the same workload is at that address (ids are never reused). Without a folder, or with a torn
//! file, the ids are new: that is correct, and costs peers one update.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::Path;

use eastway_model::{EndpointId, PortKey, ServiceKey, UnixMillis};
use sha2::{Digest, Sha256};

const HEADER: &str = "eastway-registry 1 sha256:";

/// What makes an endpoint the same one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EndpointKey {
    pub(super) service: ServiceKey,
    pub(super) address: IpAddr,
    /// Several workloads may share an address and differ in ports.
    pub(super) target_ports: BTreeMap<PortKey, u16>,
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Kept {
    ids: BTreeMap<EndpointKey, EndpointId>,
    exported: BTreeMap<ServiceKey, UnixMillis>,
}

/// Why a kept file is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum KeptError {
    /// It cannot be read.
    #[error("{0}")]
    Read(String),
    /// Not one of our files, or of another version.
    #[error("header")]
    Header,
    /// Torn or altered.
    #[error("checksum")]
    Checksum,
    /// The checksum is right and a line is not: a bug, or a hand.
    #[error("line {0}")]
    Line(usize),
}

impl Kept {
    /// The id of an endpoint; a new one if it has none.
    pub(super) fn id(&mut self, key: &EndpointKey) -> EndpointId {
        if let Some(id) = self.ids.get(key) {
            return id.clone();
        }
        let id = new_id();
        self.ids.insert(key.clone(), id.clone());
        id
    }

    /// When a service was first exported: `now` if it was not before.
    pub(super) fn exported_at(&mut self, service: &ServiceKey, now: UnixMillis) -> UnixMillis {
        *self.exported.entry(service.clone()).or_insert(now)
    }

    /// Forgets what is not there any more.
    pub(super) fn retain(&mut self, endpoints: &BTreeSet<EndpointKey>, exported: &BTreeSet<ServiceKey>) {
        self.ids.retain(|key, _| endpoints.contains(key));
        self.exported.retain(|key, _| exported.contains(key));
    }

    /// Reads what [`Kept::write`] wrote. A file that does not exist is empty.
    pub(super) fn read(path: &Path) -> Result<Self, KeptError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::from_text(&text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(KeptError::Read(crate::yaml::reason(&error))),
        }
    }

    /// Replaces the file at once: a crash leaves the old or the new one.
    pub(super) fn write(&self, path: &Path) -> std::io::Result<()> {
        let temporary = path.with_extension("new");
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut file = std::fs::File::create(&temporary)?;
        file.write_all(self.to_text().as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    }

    fn to_text(&self) -> String {
        let mut body = String::new();
        for (key, id) in &self.ids {
            let ports: Vec<String> = key.target_ports.iter().map(|(from, to)| format!("{from}:{to}")).collect();
            // Writing to a String cannot fail.
            let _unused = writeln!(body, "id {id} {} {} {}", key.service, key.address, ports.join(","));
        }
        for (key, at) in &self.exported {
            let _unused = writeln!(body, "export {key} {}", at.0);
        }
        format!("{HEADER}{}\n{body}", checksum(&body))
    }

    fn from_text(text: &str) -> Result<Self, KeptError> {
        let (header, body) = text.split_once('\n').ok_or(KeptError::Header)?;
        let sum = header.strip_prefix(HEADER).ok_or(KeptError::Header)?;
        if sum != checksum(body) {
            return Err(KeptError::Checksum);
        }
        let mut kept = Self::default();
        for (index, line) in body.lines().enumerate() {
            kept.line(line).ok_or(KeptError::Line(index + 2))?;
        }
        Ok(kept)
    }

    fn line(&mut self, line: &str) -> Option<()> {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["id", id, service, address, ports] => {
                let (service, address) = (service.parse().ok()?, address.parse().ok()?);
                let mut target_ports = BTreeMap::new();
                for pair in ports.split(',').filter(|pair| !pair.is_empty()) {
                    let (from, to) = pair.split_once(':')?;
                    target_ports.insert(from.parse().ok()?, to.parse().ok()?);
                }
                self.ids.insert(EndpointKey { service, address, target_ports }, EndpointId::parse(id)?);
            }
            ["export", service, at] => {
                self.exported.insert(service.parse().ok()?, UnixMillis(at.parse().ok()?));
            }
            _ => return None,
        }
        Some(())
    }
}

/// 120 random bits: two endpoints get the same with a chance of nothing.
fn new_id() -> EndpointId {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    loop {
        let text: String = (0..24).filter_map(|_| fastrand::choice(ALPHABET)).map(|byte| char::from(*byte)).collect();
        if let Some(id) = EndpointId::parse(&text) {
            return id;
        }
    }
}

fn checksum(body: &str) -> String {
    Sha256::digest(body).iter().fold(String::new(), |mut text, byte| {
        let _unused = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(address: &str) -> EndpointKey {
        EndpointKey {
            service: "bookinfo/reviews".parse().unwrap(),
            address: address.parse().unwrap(),
            target_ports: [("80".parse().unwrap(), 9080), ("80/UDP".parse().unwrap(), 9081)].into(),
        }
    }

    fn some() -> Kept {
        let mut kept = Kept::default();
        kept.id(&key("10.0.0.1"));
        kept.id(&key("fd00::1"));
        kept.id(&EndpointKey { target_ports: BTreeMap::new(), ..key("10.0.0.2") });
        kept.exported_at(&"bookinfo/reviews".parse().unwrap(), UnixMillis(7));
        kept
    }

    #[test]
    fn ids_stay_while_the_endpoint_stays_and_are_never_reused() {
        let mut kept = some();
        let first = kept.id(&key("10.0.0.1"));
        assert_eq!(kept.id(&key("10.0.0.1")), first);
        assert_ne!(kept.id(&EndpointKey { target_ports: BTreeMap::new(), ..key("10.0.0.1") }), first);
        kept.retain(&BTreeSet::new(), &BTreeSet::new());
        assert_ne!(kept.id(&key("10.0.0.1")), first);
    }

    #[test]
    fn the_first_export_counts() {
        let mut kept = Kept::default();
        let service = "a/b".parse().unwrap();
        assert_eq!(kept.exported_at(&service, UnixMillis(5)), UnixMillis(5));
        assert_eq!(kept.exported_at(&service, UnixMillis(9)), UnixMillis(5));
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/registry-hosts");
        assert_eq!(Kept::read(&path), Ok(Kept::default()));
        let kept = some();
        kept.write(&path).unwrap();
        assert_eq!(Kept::read(&path), Ok(kept));
    }

    #[test]
    fn f20_a_torn_file_is_refused_at_every_length() {
        let text = some().to_text();
        for length in 0..text.len() {
            assert!(Kept::from_text(&text[..length]).is_err(), "{length}");
        }
        assert_eq!(Kept::from_text(&text.replace("10.0.0.1", "10.0.0.9")), Err(KeptError::Checksum));
        let body = "id x y z\n";
        assert_eq!(Kept::from_text(&format!("{HEADER}{}\n{body}", checksum(body))), Err(KeptError::Line(2)));
    }
}
