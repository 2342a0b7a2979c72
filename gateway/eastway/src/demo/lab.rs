//! A machine full of clouds: network namespaces with no route between them, and the processes in them.
//!
//! The demo and the system tests are built on it. A lab runs in one process, which in namespaces is
//! process 1 of its PID namespace ([`super::stage`]). Nothing here knows what the clouds are for:
//! [`net`] has cables and addresses, [`cloud`] configuration folders and gateways, [`process`] the
//! children.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

pub mod cloud;
pub mod files;
pub mod http;
pub mod net;
pub mod place;
pub mod process;

use super::stage::LAB_FOLDER;
use place::Place;
use process::Leash;

/// How the clouds of a lab are kept apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// Network namespaces: the same private addresses in each cloud, and no route between them.
    Namespaces,
    /// Distinct loopback addresses, where user namespaces are forbidden. Keeps nothing apart.
    Loopback,
}

/// What all clouds of one lab share. Dropping it removes its files.
#[derive(Debug)]
pub struct Lab {
    isolation: Isolation,
    folder: Folder,
    binary: PathBuf,
    wan: Place,
}

#[derive(Debug)]
enum Folder {
    /// A tmpfs that goes with the mount namespace.
    Mounted(PathBuf),
    /// A temporary folder of the host.
    Host(PathBuf),
}

impl Lab {
    /// A lab of this process, which must have come through [`super::stage::in_namespaces`].
    ///
    /// # Errors
    /// It has not, or the network between the clouds cannot be made.
    pub async fn in_namespaces(binary: &Path) -> Result<Self> {
        let folder = std::env::var_os(LAB_FOLDER).map(PathBuf::from);
        let folder = folder.with_context(|| format!("not in the lab's namespaces ({LAB_FOLDER} is not set)"))?;
        let wan = Place::namespace("wan").await?;
        net::lay_wan(&wan).await?;
        Ok(Self { isolation: Isolation::Namespaces, folder: Folder::Mounted(folder), binary: binary.to_owned(), wan })
    }

    /// A lab on the host's loopback interface.
    ///
    /// # Errors
    /// No temporary folder can be made.
    pub async fn on_loopback(binary: &Path) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("eastway-lab-{}", std::process::id()));
        std::fs::create_dir(&folder).with_context(|| format!("make {}", folder.display()))?;
        let folder = Folder::Host(folder);
        let wan = Place::host("wan").await?;
        Ok(Self { isolation: Isolation::Loopback, folder, binary: binary.to_owned(), wan })
    }

    /// How its clouds are kept apart.
    #[must_use]
    pub fn isolation(&self) -> Isolation {
        self.isolation
    }

    /// Where its files are.
    #[must_use]
    pub fn folder(&self) -> &Path {
        match &self.folder {
            Folder::Mounted(path) | Folder::Host(path) => path,
        }
    }

    /// The binary its gateways run.
    #[must_use]
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Between the clouds.
    #[must_use]
    pub fn wan(&self) -> &Place {
        &self.wan
    }

    /// How its children are kept from outliving it.
    #[must_use]
    pub fn leash(&self) -> Leash {
        match self.isolation {
            Isolation::Namespaces => Leash::PidNamespace,
            Isolation::Loopback => Leash::ParentDeath,
        }
    }

    /// Points the host names of the WAN somewhere: what a DNS zone on the internet would say. Seen by
    /// every process of the lab.
    ///
    /// # Errors
    /// Not in namespaces: the host's own file is never touched.
    pub fn set_hosts(&self, names: &[(&str, std::net::IpAddr)]) -> Result<()> {
        use nix::mount::{MsFlags, mount};
        ensure!(self.isolation == Isolation::Namespaces, "names of the WAN need namespaces");
        let lines = names.iter().map(|(name, address)| format!("{address} {name}\n"));
        let hosts = self.folder().join("hosts");
        let first = !hosts.exists();
        // Written in place: a mount shows one inode.
        std::fs::write(&hosts, format!("127.0.0.1 localhost\n{}", lines.collect::<String>()))?;
        if first {
            let nothing = None::<&str>;
            mount(Some(&hosts), "/etc/hosts", nothing, MsFlags::MS_BIND, nothing).context("mount a hosts file")?;
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Folder::Host(path) = &self.folder
            && let Err(error) = std::fs::remove_dir_all(path)
        {
            tracing::warn!(folder = %path.display(), %error, "temporary folder stays");
        }
    }
}
