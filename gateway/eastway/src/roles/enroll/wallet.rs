//! Who has a certificate that is renewed.

use std::sync::Arc;

use eastway_identity::IdentityStore;
use rustls_pki_types::CertificateDer;

use super::Enrolled;

/// Where a renewed certificate goes.
pub trait Wallet: Send + Sync {
    /// The certificate of now.
    fn store(&self) -> &Arc<IdentityStore>;

    /// A new one came.
    fn renewed(&self, enrolled: Enrolled);

    /// The CA said whose certificates count: that of the key which signs now, and what a rotation announced.
    fn heard(&self, issuer: &CertificateDer<'static>, next: &[CertificateDer<'static>]);
}

impl Wallet for Arc<IdentityStore> {
    fn store(&self) -> &Arc<IdentityStore> {
        self
    }

    fn renewed(&self, enrolled: Enrolled) {
        self.replace(enrolled.identity);
    }

    fn heard(&self, _issuer: &CertificateDer<'static>, _next: &[CertificateDer<'static>]) {}
}
