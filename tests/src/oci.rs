//! A container image without Docker: an OCI image layout in one archive, the same bytes for the same binary.
//!
//! The image has the binary, the shared libraries it names and a user, and nothing else: no shell, no package
//! manager. `docker load`, `podman load`, `ctr images import` and `skopeo copy oci-archive:` all take it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use aws_lc_rs::digest;
use serde_json::{Value, json};

use crate::archive::{Archive, architecture};

/// Who the image's process is: `nonroot` of distroless images, too.
const USER: &str = "65532:65532";
/// Where the binary is.
const BINARY: &str = "usr/bin/eastway";

/// Writes the image of `binary` to `archive`, tagged `name` (`repository:tag`); gives its size in bytes.
///
/// # Errors
/// A file cannot be read or written, or a library that the binary names is missing.
pub fn write(binary: &Path, archive: &Path, name: &str) -> Result<u64> {
    let layer = layer(binary)?;
    let config = serde_json::to_vec(&json!({
        "architecture": architecture(),
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "User": USER,
            "Entrypoint": [format!("/{BINARY}")],
            "WorkingDir": "/",
            "Labels": {
                "org.opencontainers.image.title": "eastway",
                "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
                "org.opencontainers.image.source": "https://github.com/eastway-dev/eastway",
                "org.opencontainers.image.licenses": "Apache-2.0",
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [sha256(&layer)]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "make image"}],
    }))?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
    }))?;
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["annotations"] = json!({
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": name.rsplit(':').next().unwrap_or(name),
    });
    let index =
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]});
    // What `docker load` reads.
    let docker = json!([{"Config": blob(&config), "RepoTags": [name], "Layers": [blob(&layer)]}]);
    let mut tar = Archive::new(Vec::new());
    tar.bytes("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    tar.bytes("index.json", 0o644, &serde_json::to_vec(&index)?)?;
    tar.bytes("manifest.json", 0o644, &serde_json::to_vec(&docker)?)?;
    tar.parents("blobs/sha256/")?;
    for bytes in [&config, &manifest, &layer] {
        tar.bytes(&blob(bytes), 0o644, bytes)?;
    }
    let bytes = tar.finish()?;
    File::create(archive).and_then(|mut file| file.write_all(&bytes)).with_context(|| archive.display().to_string())?;
    Ok(bytes.len() as u64)
}

/// The contents: the same for the same binary and libraries, whenever and wherever it is made.
fn layer(binary: &Path) -> Result<Vec<u8>> {
    let read = |path: &Path| fs::read(path).with_context(|| path.display().to_string());
    let mut files = BTreeMap::from([
        (BINARY.to_owned(), (0o755, read(binary)?)),
        ("etc/passwd".to_owned(), (0o644, b"nonroot:x:65532:65532:nonroot:/:/sbin/nologin\n".to_vec())),
        ("etc/group".to_owned(), (0o644, b"nonroot:x:65532:\n".to_vec())),
        // glibc asks files and DNS without it, too; said plainly for other libraries.
        ("etc/nsswitch.conf".to_owned(), (0o644, b"hosts: files dns\n".to_vec())),
    ]);
    for library in libraries(binary)? {
        let inside = library.to_string_lossy().trim_start_matches('/').to_owned();
        files.insert(inside, (0o755, read(&library)?));
    }
    let mut tar = Archive::new(Vec::new());
    tar.folder("tmp", 0o1777)?;
    for (path, (mode, bytes)) in &files {
        tar.parents(path)?;
        tar.bytes(path, *mode, bytes)?;
    }
    tar.finish()
}

/// The shared libraries that a program names, where it looks for them; none for a static one.
fn libraries(binary: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(binary).env("LC_ALL", "C").output().context("ldd")?;
    let listed = String::from_utf8_lossy(&output.stdout);
    ensure!(!listed.contains("not found"), "{} lacks a library:\n{listed}", binary.display());
    // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, `/lib64/ld-linux-x86-64.so.2 (0x…)`
    let paths = listed.lines().filter_map(|line| line.split_ascii_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(PathBuf::from).collect())
}

fn sha256(bytes: &[u8]) -> String {
    let hash = digest::digest(&digest::SHA256, bytes);
    let hex: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn blob(bytes: &[u8]) -> String {
    format!("blobs/{}", sha256(bytes).replace(':', "/"))
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": sha256(bytes), "size": bytes.len()})
}
