//! The revocation lists that the configuration names, followed on disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use eastway_identity::{CertificateRevocationListDer, crl};
use tracing::error;

/// The revocation file, as it was last read.
pub struct CrlFile {
    path: Option<PathBuf>,
    /// Time and size at the last look (within: none, it was not there).
    seen: Option<Option<(SystemTime, u64)>>,
    /// None: there is a file, and it never was usable.
    lists: Option<Vec<CertificateRevocationListDer<'static>>>,
}

impl CrlFile {
    /// Not read yet. Without a path nobody is revoked.
    #[must_use]
    pub fn new(path: Option<PathBuf>) -> Self {
        let lists = path.is_none().then(Vec::new);
        Self { path, seen: None, lists }
    }

    /// The lists in force. `None`: who is revoked is not known, and nobody may be trusted.
    #[must_use]
    pub fn lists(&self) -> Option<&[CertificateRevocationListDer<'static>]> {
        self.lists.as_deref()
    }

    /// How many lists are in force.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lists.as_ref().map_or(0, Vec::len)
    }

    /// Takes a new path over and reads the file. What was revoked stays revoked until the new file
    /// was read; without a path nobody is.
    pub fn follow(&mut self, path: Option<&Path>) {
        if self.path.as_deref() != path {
            self.path = path.map(Path::to_owned);
            self.seen = None;
            if path.is_none() {
                self.lists = Some(Vec::new());
            }
        }
        self.refresh();
    }

    /// Reads the file if it changed; whether the lists did. A file that cannot be used keeps what
    /// was revoked revoked.
    pub fn refresh(&mut self) -> bool {
        let Some(path) = &self.path else { return false };
        let now = fs::metadata(path).ok().and_then(|meta| Some((meta.modified().ok()?, meta.len())));
        if self.seen == Some(now) {
            return false;
        }
        self.seen = Some(now);
        match crl::load(path) {
            Ok(lists) => {
                let lists = Some(lists);
                let changed = lists != self.lists;
                self.lists = lists;
                changed
            }
            Err(error) => {
                let then = match self.lists {
                    Some(_) => "the lists read before stay in force",
                    None => "no peer is trusted until it is: mend it, or take trust.crl out",
                };
                error!(%error, file = %path.display(), "the revocation file is not usable: {then}");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_that_were_never_read_are_not_taken_for_empty_ones() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("crl.pem");
        assert!(CrlFile::new(None).lists().is_some_and(<[_]>::is_empty));

        let mut crl = CrlFile::new(Some(file.clone()));
        crl.follow(Some(&file));
        assert!(crl.lists().is_none(), "missing");
        fs::write(&file, "garbage").unwrap();
        assert!(!crl.refresh());
        assert!(crl.lists().is_none(), "garbage");

        let mut crl = CrlFile::new(None);
        crl.follow(Some(&file));
        assert!(crl.lists().is_some(), "what was in force stays: a bad reload cuts nobody off");
        crl.follow(None);
        assert_eq!(crl.count(), 0);
    }
}
