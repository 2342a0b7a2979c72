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

/// Size of a tar's blocks.
const BLOCK: usize = 512;
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
    let mut tar = Tar::default();
    tar.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    tar.file("index.json", 0o644, &serde_json::to_vec(&index)?)?;
    tar.file("manifest.json", 0o644, &serde_json::to_vec(&docker)?)?;
    for folder in ["blobs/", "blobs/sha256/"] {
        tar.folder(folder, 0o755)?;
    }
    for bytes in [&config, &manifest, &layer] {
        tar.file(&blob(bytes), 0o644, bytes)?;
    }
    let bytes = tar.finish();
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
    let mut folders = std::collections::BTreeSet::from(["tmp/".to_owned()]);
    for path in files.keys() {
        folders.extend(path.match_indices('/').filter_map(|(at, _)| path.get(..=at)).map(str::to_owned));
    }
    let mut tar = Tar::default();
    for folder in &folders {
        tar.folder(folder, if folder == "tmp/" { 0o1777 } else { 0o755 })?;
    }
    for (path, (mode, bytes)) in &files {
        tar.file(path, *mode, bytes)?;
    }
    Ok(tar.finish())
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

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
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

/// A POSIX archive (ustar) of root's files, all of 1970.
#[derive(Default)]
struct Tar {
    bytes: Vec<u8>,
}

impl Tar {
    fn folder(&mut self, path: &str, mode: u32) -> Result<()> {
        self.entry(path, mode, b'5', &[])
    }

    fn file(&mut self, path: &str, mode: u32, contents: &[u8]) -> Result<()> {
        self.entry(path, mode, b'0', contents)
    }

    fn entry(&mut self, path: &str, mode: u32, kind: u8, contents: &[u8]) -> Result<()> {
        ensure!(path.len() <= 100, "{path} is too long for a tar");
        let mut header = [0_u8; BLOCK];
        let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
        put(0, path);
        put(100, &format!("{mode:07o}"));
        put(108, "0000000");
        put(116, "0000000");
        put(124, &format!("{:011o}", contents.len()));
        put(136, "00000000000");
        put(148, "        ");
        put(257, "ustar");
        put(263, "00");
        put(329, "0000000");
        put(337, "0000000");
        header[156] = kind;
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend_from_slice(&header);
        self.bytes.extend_from_slice(contents);
        let padded = self.bytes.len().next_multiple_of(BLOCK);
        self.bytes.resize(padded, 0);
        Ok(())
    }

    fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 2 * BLOCK, 0);
        self.bytes
    }
}
