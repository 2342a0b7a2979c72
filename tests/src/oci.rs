//! A container image without Docker: an OCI image layout in one archive, the same bytes for the same binary.
//!
//! The image has the binary, the shared libraries it names and a user, and nothing else: no shell, no package
//! manager. That of sidecars has Envoy and `nft` beside it. `docker load`, `podman load`, `ctr images import` and
//! `skopeo copy oci-archive:` all take them.

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
const USER: u32 = 65532;
/// Who the sidecar's is: whose connections are not led to Envoy once more.
const SIDECAR_USER: u32 = 1337;
/// Where the binary is.
const BINARY: &str = "usr/bin/eastway";

/// Writes the image of `binary` to `archive`, tagged `name` (`repository:tag`); gives its size in bytes.
///
/// # Errors
/// A file cannot be read or written, or a library that the binary names is missing.
pub fn write(binary: &Path, archive: &Path, name: &str) -> Result<u64> {
    write_with(&[(BINARY, binary)], USER, archive, name)
}

/// As [`write()`], the image of sidecars: with this Envoy and this `nft`.
///
/// # Errors
/// As there.
pub fn write_sidecar(binary: &Path, envoy: &Path, nft: &Path, archive: &Path, name: &str) -> Result<u64> {
    let programs = [(BINARY, binary), ("usr/bin/envoy", envoy), ("usr/sbin/nft", nft)];
    write_with(&programs, SIDECAR_USER, archive, name)
}

/// Programs by their places in the image; the first is the one that is run.
fn write_with(programs: &[(&str, &Path)], user: u32, archive: &Path, name: &str) -> Result<u64> {
    let layer = layer(programs, user)?;
    let title = name.rsplit('/').next().and_then(|name| name.split(':').next()).unwrap_or(name);
    let config = serde_json::to_vec(&json!({
        "architecture": architecture(),
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "User": format!("{user}:{user}"),
            "Env": ["PATH=/usr/sbin:/usr/bin"],
            "Entrypoint": [format!("/{BINARY}")],
            "WorkingDir": "/",
            "Labels": {
                "org.opencontainers.image.title": title,
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

/// The contents: the same for the same programs and libraries, whenever and wherever it is made.
fn layer(programs: &[(&str, &Path)], user: u32) -> Result<Vec<u8>> {
    let read = |path: &Path| fs::read(path).with_context(|| path.display().to_string());
    let (passwd, group) =
        (format!("nonroot:x:{user}:{user}:nonroot:/:/sbin/nologin\n"), format!("nonroot:x:{user}:\n"));
    let mut files = BTreeMap::from([
        ("etc/passwd".to_owned(), (0o644, passwd.into_bytes())),
        ("etc/group".to_owned(), (0o644, group.into_bytes())),
        // glibc asks files and DNS without it, too; said plainly for other libraries.
        ("etc/nsswitch.conf".to_owned(), (0o644, b"hosts: files dns\n".to_vec())),
    ]);
    for (inside, program) in programs {
        files.insert((*inside).to_owned(), (0o755, read(program)?));
        for library in libraries(program)? {
            let inside = library.to_string_lossy().trim_start_matches('/').to_owned();
            files.insert(inside, (0o755, read(&library)?));
        }
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
