//! A person with a shell for each cluster, on a computer outside both, with kubectl, helm and eastway.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use eastway_tests::documents::blocks::Block;
use eastway_tests::documents::shell::{self, Shell};
use eastway_tests::kube::{Bed, stage, tools};
use futures_util::future::try_join_all;

use crate::{checkout, credentials};

/// Longest run of one block.
const PATIENCE: Duration = Duration::from_secs(240);
/// The host whose blocks are for every cluster, written for the first of these.
const EACH: &str = "kube-each";
const NAMES: [&str; 2] = ["onprem", "gke"];

/// The shells, by host. They are in one folder, where the person keeps files.
pub(crate) struct People(BTreeMap<String, Shell>);

impl People {
    pub(crate) fn come(bed: &Bed) -> Result<Self> {
        let folder = stage::folder()?.join("person");
        let bin = folder.join("bin");
        std::fs::create_dir_all(&bin)?;
        std::os::unix::fs::symlink(eastway_tests::binary(), bin.join("eastway"))?;
        for program in ["kubectl", "helm"] {
            std::os::unix::fs::symlink(tools::built(program)?, bin.join(program))?;
        }
        std::os::unix::fs::symlink(checkout()?.join("helm"), folder.join("helm"))?;
        let mut shells = BTreeMap::new();
        for cluster in bed.clusters() {
            let host = format!("kube-{}", cluster.name());
            let home = folder.join(&host);
            std::fs::create_dir(&home)?;
            let mut command = shell::command(&home, &folder, std::slice::from_ref(&bin));
            let child = command.env("KUBECONFIG", credentials(cluster)).spawn()?;
            shells.insert(host, Shell::new(child, &home, PATIENCE)?);
        }
        Ok(Self(shells))
    }

    /// Runs a block in the shells that it is for, at once, and gives what its last step printed.
    pub(crate) async fn run(&mut self, document: &str, block: &Block) -> Result<String> {
        let mut printed = String::new();
        for step in block.steps() {
            let at = || format!("{document}:{}", block.line);
            printed = self.say(block.host(), &step.command).await.with_context(at)?;
            ensure!(step.expects(&printed), "{}: {}\nprints\n{printed}\nnot\n{}", at(), step.command, step.output);
        }
        Ok(printed)
    }

    /// Runs commands on a host and gives what they printed.
    pub(crate) async fn say(&mut self, host: &str, commands: &str) -> Result<String> {
        let exchanged = exchange(commands, NAMES);
        let is_for = |shell: &String| host == EACH || host == shell;
        let runs = self.0.iter_mut().filter(|(shell, _)| is_for(shell)).map(|(name, shell)| {
            let commands = if host == EACH && !name.ends_with(NAMES[0]) { &exchanged } else { commands };
            async move {
                let printed = shell.run(commands).await.with_context(|| format!("{name}$ {}", commands.trim_end()))?;
                println!("{name}$ {}\n{printed}", commands.trim_end());
                anyhow::Ok(printed)
            }
        });
        let printed = try_join_all(runs).await?;
        ensure!(!printed.is_empty(), "there is no host {host}");
        Ok(printed.concat())
    }
}

/// The commands for the other cluster.
fn exchange(text: &str, [one, other]: [&str; 2]) -> String {
    text.replace(one, "\0").replace(other, one).replace('\0', other)
}
