//! Sidecars that have renewed their certificate. A tunnel may be older than a certificate lives, and the connection that
//! carries it cannot show another one; but its sidecar shows the new one with its next connection, here or for its
//! configuration. A connection goes on for as long as the same identity has shown a certificate from the same address.
//! One that is not renewed ends with its own (invariant I9), and all of them when the
//! newest one is revoked.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// Entries at which those that have ended are looked for first.
const FIRST_LOOK: usize = 1_024;

/// The newest certificates, by identity and address.
#[derive(Debug, Default)]
pub struct Renewals {
    shown: Mutex<Shown>,
}

/// A certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// When it ends.
    pub end: SystemTime,
    /// Its serial number, as lists of revoked ones have it.
    pub serial: Arc<str>,
}

#[derive(Debug, Default)]
struct Shown {
    newest: HashMap<(Arc<str>, IpAddr), Certificate>,
    next_look: usize,
}

impl Renewals {
    /// `identity` has shown this certificate. Those in `revoked` renew nothing and give way to any other.
    pub fn show(
        &self,
        identity: &str,
        address: IpAddr,
        certificate: Certificate,
        now: SystemTime,
        revoked: &BTreeSet<String>,
    ) {
        if revoked.contains(&*certificate.serial) {
            return;
        }
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if shown.newest.len() >= shown.next_look.max(FIRST_LOOK) {
            shown.newest.retain(|_, certificate| certificate.end > now);
            shown.next_look = shown.newest.len() * 2;
        }
        let newest = shown.newest.entry((Arc::from(identity), address)).or_insert_with(|| certificate.clone());
        if certificate.end > newest.end || revoked.contains(&*newest.serial) {
            *newest = certificate;
        }
    }

    /// The newest one.
    #[must_use]
    pub fn newest(&self, identity: &str, address: IpAddr) -> Option<Certificate> {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.newest.get(&(Arc::from(identity), address)).cloned()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_newest_counts_for_its_identity_and_address_alone_and_what_ended_is_forgotten() {
        let renewals = Renewals::default();
        let (here, there) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let certificate = |end| Certificate { end: at(end), serial: end.to_string().into() };
        for end in [100, 200, 150] {
            renewals.show("web", here, certificate(end), at(0), &BTreeSet::new());
        }
        assert_eq!(renewals.newest("web", here), Some(certificate(200)), "an older one takes nothing back");
        assert_eq!((renewals.newest("web", there), renewals.newest("api", here)), (None, None));
        for number in 0..3_000 {
            renewals.show(&number.to_string(), here, certificate(300 + number), at(number), &BTreeSet::new());
        }
        assert!(renewals.shown.lock().unwrap().newest.len() < 2_000);
        assert_eq!(renewals.newest("2999", here), Some(certificate(3_299)));
    }

    #[test]
    fn i9_one_that_is_revoked_renews_nothing_and_keeps_no_other_out() {
        let renewals = Renewals::default();
        let here = IpAddr::from([10, 0, 0, 1]);
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let certificate = |end| Certificate { end: at(end), serial: end.to_string().into() };
        let revoked = BTreeSet::from(["200".to_owned()]);
        renewals.show("web", here, certificate(100), at(0), &revoked);
        renewals.show("web", here, certificate(200), at(0), &revoked);
        assert_eq!(renewals.newest("web", here), Some(certificate(100)));
        // It was shown before it was revoked, and the next one ends sooner.
        renewals.show("web", here, certificate(200), at(0), &BTreeSet::new());
        assert_eq!(renewals.newest("web", here), Some(certificate(200)));
        renewals.show("web", here, certificate(150), at(0), &revoked);
        assert_eq!(renewals.newest("web", here), Some(certificate(150)));
    }
}
