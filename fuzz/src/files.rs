//! Files that people write.

use std::sync::Arc;

use eastway::config::check_text;
use eastway_registry::file::parse;
use eastway_registry::yaml::from_bytes;

/// Most complaints that are told about one file.
const MAX_COMPLAINTS: usize = 1_000;

/// A file of any kind that `eastway config check` takes.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let report = check_text("file.yaml", text);
    assert_eq!(report.usable, report.errors == 0);
    assert!(report.diagnostics.len() <= MAX_COMPLAINTS);
    for complaint in &report.diagnostics {
        told(&complaint.headline());
    }
}

/// The file of a registry.
pub fn services(bytes: &[u8]) {
    let source = match from_bytes("file.yaml", bytes.to_vec(), 1 << 20) {
        Ok(source) => Arc::new(source),
        Err(complaint) => return told(&complaint.headline()),
    };
    match parse(&source, false) {
        Ok((contents, _)) => {
            for service in contents.services.values() {
                assert!(service.record.ports.len() <= 250);
                for endpoint in &service.endpoints {
                    let address = endpoint.address;
                    assert!(!address.is_loopback() && !address.is_unspecified() && !address.is_multicast());
                }
            }
        }
        Err(errors) => {
            assert!(errors.has_errors());
            errors.iter().for_each(|complaint| told(&complaint.headline()));
        }
    }
}

/// A line for a terminal or a log: it begins with the file's name and has no text in it that a
/// terminal would obey.
fn told(line: &str) {
    assert!(line.starts_with("file.yaml"), "{line:?}");
    assert!(!line.chars().any(char::is_control), "{line:?}");
}
