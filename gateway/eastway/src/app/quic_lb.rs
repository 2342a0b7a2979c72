//! How a load balancer reads connection ids: by the configuration, and by what AWS' controller tells a container.

use std::ffi::OsString;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use eastway_tunnel::{QuicLb, QuicLbError};
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::config::Settings;
use crate::config::settings::{QuicLbSettings, hex};

/// Where the AWS Load Balancer Controller says by which id its network load balancer knows this container.
pub(super) const VARIABLE: &str = "AWS_LBC_QUIC_SERVER_ID";
/// Bytes of such an id.
const AWS_ID: usize = 8;
/// What an AWS balancer reads.
const AWS: QuicLbSettings = QuicLbSettings { server_id: None, configuration: 0, nonce_length: 4, key_file: None };

/// Why ids cannot be made as a load balancer wants them.
#[derive(Debug, thiserror::Error)]
pub enum QuicLbUnusable {
    /// The variable says nothing that is an id.
    #[error("{VARIABLE} must be 8 bytes, in base64 or as hexadecimal digits")]
    Variable,
    /// There is a section and no id.
    #[error("link.quicLb.serverId is missing, and the environment has no {VARIABLE}")]
    NoServerId,
    /// The file with the key cannot be read.
    #[error("link.quicLb.keyFile: {}: {source}", .path.display())]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It holds no key.
    #[error("link.quicLb.keyFile: {}: must be 32 hexadecimal digits", .0.display())]
    Key(PathBuf),
    /// All together fits no connection id.
    #[error("link.quicLb: {0}")]
    Refused(#[from] QuicLbError),
}

/// What connection ids begin with; `None`: with nothing that anybody reads. `variable` is the environment's [`VARIABLE`].
///
/// # Errors
/// [`QuicLbUnusable`]
pub(super) fn of(settings: &Settings, variable: Option<OsString>) -> Result<Option<QuicLb>, QuicLbUnusable> {
    let variable = variable.filter(|text| !text.is_empty());
    let by_environment = variable.as_ref().map(|_| &AWS);
    let Some(wanted) = settings.link.quic_lb.as_ref().or(by_environment) else { return Ok(None) };
    let server_id = match (&wanted.server_id, variable) {
        (Some(id), _) => id.clone(),
        (None, Some(text)) => text.to_str().and_then(aws_id).ok_or(QuicLbUnusable::Variable)?,
        (None, None) => return Err(QuicLbUnusable::NoServerId),
    };
    let key = wanted.key_file.as_ref().map(read_key).transpose()?;
    let lb = QuicLb::new(wanted.configuration, &server_id, wanted.nonce_length, key.as_deref())?;
    info!(ids = ?lb, "connection ids are made for a load balancer that reads them");
    if !lb.names_replicas() && settings.replicas.is_some() {
        warn!("with such connection ids replicas hand no packets to each other: shorten serverId or nonceLength");
    }
    Ok(Some(lb))
}

fn aws_id(text: &str) -> Option<Vec<u8>> {
    let text = text.trim();
    let candidates = [hex(text), STANDARD.decode(text).ok()];
    candidates.into_iter().flatten().find(|bytes| bytes.len() == AWS_ID)
}

fn read_key(path: &PathBuf) -> Result<Zeroizing<[u8; 16]>, QuicLbUnusable> {
    let text = std::fs::read_to_string(path).map(Zeroizing::new);
    let text = text.map_err(|source| QuicLbUnusable::KeyFile { path: path.clone(), source })?;
    let bytes = hex(text.trim()).map(Zeroizing::new);
    let key = bytes.and_then(|bytes| <[u8; 16]>::try_from(bytes.as_slice()).ok());
    key.map(Zeroizing::new).ok_or_else(|| QuicLbUnusable::Key(path.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn made(link: &str, variable: Option<&str>) -> Result<String, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("gateway.yaml");
        let head = "apiVersion: eastway.dev/v1alpha1\nkind: GatewayConfig\ncluster: a\ntrust: {domain: a.example}\n";
        std::fs::write(&file, format!("{head}{link}\n")).unwrap();
        let made = of(&config::load(&file).unwrap().settings, variable.map(OsString::from));
        made.map(|lb| lb.map_or("none".to_owned(), |lb| format!("{lb:?}"))).map_err(|error| error.to_string())
    }

    #[test]
    fn ids_are_made_as_the_environment_or_the_file_says() {
        let aws = "configuration 0, server id 0x2d6575a16fa08ea4, nonce of 4 bytes, plain";
        assert_eq!(made("", None).unwrap(), "none");
        assert_eq!(made("", Some("")).unwrap(), "none");
        // As the controller writes it, and as its API does.
        for text in ["LWV1oW+gjqQ=", "0x2d6575a16fa08ea4", "2D6575A16FA08EA4\n"] {
            assert_eq!(made("", Some(text)).unwrap(), aws, "{text}");
        }
        for text in ["LWV1oW+gjq==", "LWV1oQ==", "0x2d65", "nonsense"] {
            assert!(made("", Some(text)).unwrap_err().contains(VARIABLE), "{text}");
        }
        let file = "link: {quicLb: {serverId: '0xabcd', configuration: 3, nonceLength: 6}}";
        let by_file = "configuration 3, server id 0xabcd, nonce of 6 bytes, plain";
        assert_eq!(made(file, Some("LWV1oW+gjqQ=")).unwrap(), by_file);
        let both = made("link: {quicLb: {nonceLength: 8}}", Some("LWV1oW+gjqQ=")).unwrap();
        assert_eq!(both, "configuration 0, server id 0x2d6575a16fa08ea4, nonce of 8 bytes, plain");
        assert!(made("link: {quicLb: {}}", None).unwrap_err().contains("serverId is missing"));
        let long = made("link: {quicLb: {nonceLength: 12}}", Some("LWV1oW+gjqQ=")).unwrap_err();
        assert!(long.contains("at most 19"), "{long}");
    }

    #[test]
    fn a_key_is_read_from_its_file_and_shown_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let link = format!("link: {{quicLb: {{serverId: '01', keyFile: {}}}}}", path.display());
        assert!(made(&link, None).unwrap_err().contains("keyFile"));
        std::fs::write(&path, "8f95f09245765f80256934e50c66207f\n").unwrap();
        assert_eq!(made(&link, None).unwrap(), "configuration 0, server id 0x01, nonce of 4 bytes, encrypted");
        std::fs::write(&path, "8f95").unwrap();
        assert!(made(&link, None).unwrap_err().contains("32 hexadecimal digits"));
    }
}
