//! Container images without Docker: a docker-archive is two JSON files and a tar of what is in the image.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::process::Command;

use super::process::output;
use super::tools;
use crate::archive::{Archive, architecture};

/// What a pod's sandbox runs.
pub const PAUSE: &str = "eastway.test/pause:1";
/// A shell and small tools.
pub const BUSYBOX: &str = "docker.io/library/busybox:latest";
/// The servers and clients that Kubernetes tests itself with.
pub const AGNHOST: &str = "eastway.test/agnhost:1";
/// The cluster's DNS.
pub const COREDNS: &str = "eastway.test/coredns:1";
/// Servers of the MCS suite.
const SOCAT: &str = "docker.io/alpine/socat:1.7.4.4";
/// Clients: `resolve-glibc NAME…`, `resolve-musl NAME…`, `grpc-health HOST:PORT CALLS`.
pub const RESOLVE: &str = "eastway.test/resolve:1";
/// curl, as its project publishes it.
const CURL: &str = "docker.io/curlimages/curl:latest";
/// What is tested.
pub const EASTWAY: &str = "docker.io/library/eastway:e2e";

/// What is put into pods: Envoy, `nft` and what is tested.
pub const SIDECAR: &str = "docker.io/library/eastway-sidecar:e2e";

/// What is in an image.
#[derive(Debug, Default)]
pub struct Image {
    name: String,
    entrypoint: Vec<String>,
    entries: Vec<(String, Entry)>,
}

#[derive(Debug)]
enum Entry {
    Folder(u32),
    Link(String),
    Text(String),
    Copy(PathBuf, u32),
}

impl Image {
    /// An image with nothing in it.
    #[must_use]
    pub fn empty(name: &str, entrypoint: &[&str]) -> Self {
        let entrypoint = entrypoint.iter().map(|&argument| argument.to_owned()).collect();
        Self { name: name.to_owned(), entrypoint, entries: Vec::new() }
    }

    /// An image with a shell: static busybox, users, and the usual folders. `/lib` leads to `/usr/lib`, so that a pod
    /// that mounts the host's `/usr` has the host's programs.
    ///
    /// # Errors
    /// busybox is missing.
    pub fn with_shell(name: &str, entrypoint: &[&str]) -> Result<Self> {
        let mut image = Self::empty(name, entrypoint);
        for (folder, mode) in
            [("bin", 0o755), ("etc", 0o755), ("usr", 0o755), ("var", 0o755), ("root", 0o700), ("tmp", 0o1777)]
        {
            image.entries.push((folder.to_owned(), Entry::Folder(mode)));
        }
        for link in ["lib", "lib64"] {
            image.entries.push((link.to_owned(), Entry::Link(format!("usr/{link}"))));
        }
        let users = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n";
        let image = image.text("etc/passwd", users).text("etc/group", "root:x:0:\nnogroup:x:65534:\n");
        let busybox = tools::system("busybox")?;
        let listed = std::process::Command::new(&busybox).arg("--list").output().context("list busybox's tools")?;
        let mut image = image.copy("bin/busybox", &busybox)?;
        for tool in String::from_utf8_lossy(&listed.stdout).lines().filter(|tool| *tool != "busybox") {
            image.entries.push((format!("bin/{tool}"), Entry::Link("busybox".to_owned())));
        }
        Ok(image)
    }

    /// With a small file.
    #[must_use]
    pub fn text(mut self, path: &str, text: &str) -> Self {
        self.entries.push((path.to_owned(), Entry::Text(text.to_owned())));
        self
    }

    /// With a copy of a file of this machine.
    ///
    /// # Errors
    /// It is not there.
    pub fn copy(mut self, path: &str, from: &Path) -> Result<Self> {
        let mode = from.metadata().with_context(|| from.display().to_string())?.permissions().mode() & 0o7777;
        self.entries.push((path.to_owned(), Entry::Copy(from.to_owned(), mode)));
        Ok(self)
    }

    /// With a program of this machine and the shared libraries it names.
    ///
    /// # Errors
    /// It is not there, or wants a library that is not.
    pub async fn program(self, path: &str, from: &Path) -> Result<Self> {
        let mut image = self.copy(path, from)?;
        let listed = output(Command::new("ldd").arg(from)).await.unwrap_or_default();
        ensure!(!listed.contains("not found"), "{} lacks a library:\n{listed}", from.display());
        for line in listed.lines() {
            // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, `/lib64/ld-linux-x86-64.so.2 (0x…)`
            let Some(library) = line.split_ascii_whitespace().find(|word| word.starts_with('/')) else { continue };
            let inside = format!("usr/{}", library.trim_start_matches("/usr").trim_start_matches('/'));
            if !image.entries.iter().any(|(path, _)| *path == inside) {
                image = image.copy(&inside, &Path::new(library).canonicalize()?)?;
            }
        }
        Ok(image)
    }

    /// Writes it as a docker-archive.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub async fn write(&self, tar: &Path) -> Result<()> {
        let layer = tar.with_extension("layer");
        let mut writer = Archive::new(create(&layer)?);
        for (path, entry) in &self.entries {
            writer.parents(path)?;
            match entry {
                Entry::Folder(mode) => writer.folder(path, *mode)?,
                Entry::Link(target) => writer.link(path, target)?,
                Entry::Text(text) => writer.bytes(path, 0o644, text.as_bytes())?,
                Entry::Copy(from, mode) => writer.copy(path, *mode, from)?,
            }
        }
        writer.finish()?;
        // The tool: a hash by an unoptimized build of ours would take longer than everything else.
        let sum = output(Command::new("sha256sum").arg(&layer)).await?;
        let sum = sum.split_ascii_whitespace().next().context("sha256sum prints a sum")?.to_owned();
        let config = json!({
            "architecture": architecture(), "os": "linux",
            "config": {"Entrypoint": self.entrypoint, "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"], "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{sum}")]},
            "history": [{"created_by": "the tests"}],
        });
        let manifest = json!([{"Config": "config.json", "RepoTags": [self.name], "Layers": ["layer.tar"]}]);
        let mut writer = Archive::new(create(tar)?);
        writer.bytes("manifest.json", 0o644, manifest.to_string().as_bytes())?;
        writer.bytes("config.json", 0o644, config.to_string().as_bytes())?;
        writer.copy("layer.tar", 0o644, &layer)?;
        writer.finish()?;
        std::fs::remove_file(&layer)?;
        Ok(())
    }
}

/// Writes the images that every cluster has, into `folder`.
///
/// # Errors
/// A program is missing.
pub async fn base_images(folder: &Path) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(folder)?;
    let coredns = Image::empty(COREDNS, &["/coredns"]).copy("coredns", &tools::built("coredns")?)?;
    let agnhost = Image::with_shell(AGNHOST, &["/agnhost"])?.copy("agnhost", &tools::built("agnhost")?)?;
    let images = [
        ("pause", Image::with_shell(PAUSE, &["/bin/sleep", "infinity"])?),
        ("coredns", coredns),
        ("busybox", Image::with_shell(BUSYBOX, &[])?),
        ("agnhost", agnhost),
    ];
    let mut tars = Vec::new();
    for (name, image) in images {
        let tar = folder.join(format!("{name}.tar"));
        image.write(&tar).await?;
        tars.push(tar);
    }
    Ok(tars)
}

/// Writes the images that the MCS suite wants and no cluster has yet, into `folder`.
///
/// # Errors
/// A program is missing.
pub async fn conformance_images(folder: &Path) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(folder)?;
    let tar = folder.join("socat.tar");
    let image = Image::with_shell(SOCAT, &["/usr/bin/socat"])?;
    image.program("usr/bin/socat", &tools::system("socat")?).await?.write(&tar).await?;
    Ok(vec![tar])
}

/// Writes an image with a program that resolves names by glibc, one that does by musl, and a client of gRPC, as
/// [`RESOLVE`].
///
/// # Errors
/// A program is missing.
pub async fn resolve_image(tar: &Path) -> Result<()> {
    let mut image = Image::with_shell(RESOLVE, &["/bin/sleep", "infinity"])?;
    for name in ["resolve-glibc", "resolve-musl", "grpc-health"] {
        image = image.program(&format!("usr/bin/{name}"), &tools::built(name)?).await?;
    }
    image.text("etc/nsswitch.conf", "hosts: files dns\n").write(tar).await
}

/// Writes an image of the binary under test, as [`EASTWAY`], with a shell for tests to look around in.
///
/// # Errors
/// The binary is missing.
pub async fn eastway_image(binary: &Path, tar: &Path) -> Result<()> {
    let image = Image::with_shell(EASTWAY, &["/usr/bin/eastway"])?;
    image.program("usr/bin/eastway", binary).await?.write(tar).await
}

/// Writes an image of sidecars with the binary under test, under that name.
///
/// # Errors
/// The binary, Envoy or `nft` is missing.
pub async fn sidecar_image(name: &str, binary: &Path, tar: &Path) -> Result<()> {
    let envoy = crate::envoy::binary(crate::envoy::VERSIONS[0])?;
    let image = Image::with_shell(name, &["/usr/bin/eastway"])?.program("usr/bin/eastway", binary).await?;
    let image = image.program("usr/bin/envoy", &envoy).await?;
    image.program("usr/bin/nft", &tools::system("nft")?).await?.write(tar).await
}

/// Writes an image of curl under the name that people know.
///
/// # Errors
/// A library of `curl` is missing.
pub async fn curl_image(curl: &Path, tar: &Path) -> Result<()> {
    Image::with_shell(CURL, &[])?.program("usr/bin/curl", curl).await?.write(tar).await
}

fn create(path: &Path) -> Result<File> {
    File::create(path).with_context(|| path.display().to_string())
}
