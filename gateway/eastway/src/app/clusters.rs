//! Follows a list of API servers, files or objects, and runs a registry for each (ADR 0012).
//!
//! Each is a registry of its own in the store, so one that cannot be reached delays no other, and one that goes takes
//! exactly its share with it. The list itself is a registry without services: the start waits for it, and it says that
//! it is complete once every API server has answered, or after a while without those that have not (invariants I5, I12).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use eastway_kubernetes::client::Access;
use eastway_kubernetes::cluster_objects;
use eastway_kubernetes::credentials::{Credentials, Origin};
use eastway_kubernetes::source::{KubernetesRegistryConfig, RegistryStatus, Rules};
use eastway_model::{Change, Label, LocalChange};
use eastway_registry::clusters::{self as files, Opened, Reference, Refusal};
use eastway_registry::diagnostic::Diagnostic;
use eastway_registry::yaml::{self, MAX_CONFIG_BYTES};
use futures_util::future::{BoxFuture, FutureExt as _, join_all};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::app::clock;
use crate::app::disk::write_atomically;
use crate::app::registries::{self, Host, Running};
use crate::config::settings::{ClusterPlace, ReadSettings};

/// How long the start of the process waits for API servers that do not answer. A peer that keeps this cluster's services
/// meanwhile serves them; longer, and one that is gone for good would keep all others from starting.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long it waits for a list that was empty in the last run: what an API server that is away says then (invariant I12).
const SHORT_PATIENCE: Duration = Duration::from_secs(2);
/// Pause before a client that could not be made is tried again.
const CLIENT_PAUSE: Duration = Duration::from_secs(5);
/// Longest name of a registry, as [`Label`] limits it.
const MAX_NAME: usize = 63;

/// How a list is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListStatus {
    /// Whether the start waits for it no longer.
    pub synced: bool,
    /// API servers on it.
    pub servers: usize,
    /// What is wrong with the list, and what to do.
    pub errors: Vec<String>,
}

/// API servers of a list that are read.
#[derive(Debug, Default)]
pub struct Members(BTreeMap<Label, Member>);

#[derive(Debug)]
struct Member {
    credentials: Credentials,
    rules: Rules,
    running: Running,
    status: watch::Receiver<RegistryStatus>,
}

impl Members {
    pub(super) fn into_running(self) -> impl Iterator<Item = (Label, Running)> {
        self.0.into_iter().map(|(name, member)| (name, member.running))
    }
}

/// What a list says.
struct Wanted {
    /// `None`: not known yet.
    clusters: Option<BTreeMap<Arc<str>, Credentials>>,
    errors: Vec<String>,
}

/// A list that is followed.
pub(super) struct Clusters {
    name: Label,
    place: ClusterPlace,
    read: ReadSettings,
    host: Host,
    own: Access,
    /// How all API servers are read.
    base: Rules,
    members: Members,
    /// How long the process waits for it.
    patience: Duration,
    status: watch::Sender<ListStatus>,
}

impl Clusters {
    /// A list that is not read yet.
    pub(super) fn new(
        name: Label,
        place: ClusterPlace,
        read: ReadSettings,
        host: Host,
    ) -> (Self, watch::Receiver<ListStatus>) {
        let (status, receiver) = watch::channel(ListStatus::default());
        let (own, members) = (Access::InCluster, Members::default());
        let list = Self { name, place, read, host, own, base: Rules::default(), members, patience: PATIENCE, status };
        (list, receiver)
    }

    /// With `members` of an earlier version of itself that run. `own` has the objects; `at_start`: the process waits.
    pub(super) fn with(mut self, own: Access, base: Rules, members: Members, at_start: bool) -> Self {
        (self.own, self.base, self.members) = (own, base, members);
        self.patience = if !at_start {
            // What serves already does not stop for a new list.
            Duration::ZERO
        } else if self.was_empty() {
            SHORT_PATIENCE
        } else {
            PATIENCE
        };
        self
    }

    /// Follows the list until `stop`, and gives back what runs on.
    pub(super) async fn run(mut self, stop: CancellationToken) -> Members {
        let mut list = self.follow(&stop);
        let deadline = Instant::now() + self.patience;
        // Until the list is known nothing can be complete.
        let mut complete: BoxFuture<'static, ()> = std::future::pending().boxed();
        loop {
            let settled = self.status.borrow().synced;
            tokio::select! {
                () = stop.cancelled() => return self.members,
                changed = list.changed() => {
                    if !changed {
                        return self.members;
                    }
                    let Some(wanted) = list.latest() else { continue };
                    let known = wanted.clusters.is_some();
                    self.apply(wanted).await;
                    if known {
                        complete = self.all_answered();
                    }
                }
                () = &mut complete => {
                    complete = std::future::pending().boxed();
                    self.settle().await;
                }
                () = sleep_until(deadline), if !settled => self.settle().await,
            }
        }
    }

    fn follow(&self, stop: &CancellationToken) -> List {
        match &self.place {
            ClusterPlace::Folder(folder) => {
                let (latest, list) = watch::channel(None);
                self.host.spawn(files::follow(folder.clone(), open, latest, stop.clone()));
                List::Files(list)
            }
            ClusterPlace::Namespace(namespace) => {
                let (latest, list) = watch::channel(None);
                self.host.spawn(watch_objects(self.own.clone(), namespace.to_string(), latest, stop.clone()));
                List::Objects(list)
            }
        }
    }

    /// Starts what is new, ends what is gone, and starts anew what is reached in another way.
    async fn apply(&mut self, wanted: Wanted) {
        let Wanted { clusters, mut errors } = wanted;
        let Some(clusters) = clusters else {
            self.status.send_modify(|status| status.errors = errors);
            return;
        };
        let mut servers: BTreeMap<String, Arc<str>> = BTreeMap::new();
        let mut named: BTreeMap<Label, Credentials> = BTreeMap::new();
        for (cluster, credentials) in clusters {
            let server = credentials.server().trim_end_matches('/').to_owned();
            if let Some(first) = servers.get(&server) {
                errors.push(format!(
                    "{cluster} is {server}, as {first} is: its services would count twice; it is left out"
                ));
                continue;
            }
            servers.insert(server, Arc::clone(&cluster));
            named.extend(member_name(&self.name, &cluster).map(|name| (name, credentials)));
        }
        let gone: BTreeSet<Label> = self.members.0.keys().filter(|name| !named.contains_key(*name)).cloned().collect();
        for name in gone {
            if let Some(member) = self.members.0.remove(&name) {
                self.host.remove(&name, member.running).await;
            }
        }
        for (name, credentials) in named {
            let rules = registries::rules(&self.read, &self.base, name.as_str().into());
            let same = |member: &Member| member.credentials == credentials && member.rules == rules;
            if self.members.0.get(&name).is_some_and(same) {
                continue;
            }
            let known = self.members.0.remove(&name);
            match known {
                // What it told stays until the new one has told all.
                Some(member) => drop(self.host.stop(&name, member.running).await),
                None => info!(registry = %name, server = credentials.server(), "API server added"),
            }
            let access = Access::Checked(credentials.clone());
            let config = KubernetesRegistryConfig {
                name: name.clone(),
                access,
                rules: rules.clone(),
                copy: None,
                clock: Arc::new(clock::wall),
            };
            let (running, status) = self.host.start_kubernetes(config);
            self.members.0.insert(name, Member { credentials, rules, running, status });
        }
        let servers = self.members.0.len();
        self.remember(servers);
        self.status.send_modify(|status| (status.servers, status.errors) = (servers, errors));
    }

    /// Keeps the number of API servers for the next start.
    fn remember(&self, servers: usize) {
        let Some(file) = self.host.members_of(&self.name) else { return };
        let text = servers.to_string();
        if fs::read_to_string(&file).is_ok_and(|kept| kept == text) {
            return;
        }
        let folder = file.parent().map_or(Ok(()), fs::create_dir_all);
        if let Err(error) = folder.and_then(|()| write_atomically(&file, text.as_bytes())) {
            warn!(%error, file = %file.display(), "how many API servers a list has is not kept on disk: a start without it takes longer");
        }
    }

    /// Whether the list had no API server when it was read last.
    fn was_empty(&self) -> bool {
        let kept = self.host.members_of(&self.name).and_then(|file| fs::read_to_string(file).ok());
        kept.is_some_and(|kept| kept.trim() == "0")
    }

    /// Done when every API server has answered, or has been taken off the list.
    fn all_answered(&self) -> BoxFuture<'static, ()> {
        let waits = self.members.0.values().map(|member| {
            let mut status = member.status.clone();
            async move { drop(status.wait_for(|status| status.synced).await) }
        });
        join_all(waits.collect::<Vec<_>>()).map(drop).boxed()
    }

    /// Lets the process serve.
    async fn settle(&self) {
        if !self.status.send_if_modified(|status| !std::mem::replace(&mut status.synced, true)) {
            return;
        }
        for (name, _) in self.members.0.iter().filter(|(_, member)| !member.status.borrow().synced) {
            warn!(registry = %name, "the API server has not answered: serving without its services until it does");
        }
        let change = Change::Local { registry: self.name.clone(), change: LocalChange::Replace(Vec::new()) };
        self.host.store.changes(vec![change]).await;
    }
}

/// Where a list comes from.
enum List {
    Files(watch::Receiver<Option<Arc<files::Listed<Credentials>>>>),
    Objects(watch::Receiver<Option<Arc<cluster_objects::Listed>>>),
}

impl List {
    /// Waits for another version; `false`: there will be none.
    async fn changed(&mut self) -> bool {
        match self {
            Self::Files(list) => list.changed().await.is_ok(),
            Self::Objects(list) => list.changed().await.is_ok(),
        }
    }

    fn latest(&mut self) -> Option<Wanted> {
        match self {
            Self::Files(list) => {
                let listed = list.borrow_and_update().clone()?;
                let files::Listed { clusters, errors } = &*listed;
                let errors = errors.iter().map(Diagnostic::headline).collect();
                Some(Wanted { clusters: Some(clusters.clone()), errors })
            }
            Self::Objects(list) => {
                let listed = list.borrow_and_update().clone()?;
                let cluster_objects::Listed { clusters, errors } = &*listed;
                Some(Wanted { clusters: clusters.clone(), errors: errors.clone() })
            }
        }
    }
}

/// Reads the kubeconfig of a Cluster file.
pub(crate) fn open(reference: &Reference) -> Result<Opened<Credentials>, Refusal> {
    let path = &reference.kubeconfig;
    let refused = |message: String, help: Option<&str>| Refusal {
        message: format!("kubeconfig {}: {message}", path.display()),
        help: help.map(str::to_owned),
    };
    let help = "put the kubeconfig there, or mend the path: it starts at the folder of this file";
    let bytes = yaml::read_bytes(path, MAX_CONFIG_BYTES).map_err(|reason| refused(reason, Some(help)))?;
    let text = String::from_utf8(bytes).map_err(|_| refused("is no text".to_owned(), None))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let origin = Origin::File { folder, allow_exec: reference.allow_exec };
    let value = Credentials::parse(&text, reference.context.as_deref(), origin)
        .map_err(|error| refused(error.to_string(), None))?;
    let files = std::iter::once(path).chain(value.files()).cloned().collect();
    Ok(Opened { value, files })
}

/// Reads the objects of the API server until `end`.
async fn watch_objects(
    access: Access,
    namespace: String,
    latest: watch::Sender<Option<Arc<cluster_objects::Listed>>>,
    end: CancellationToken,
) {
    loop {
        match cluster_objects::run(&access, &namespace, latest.clone(), end.clone()).await {
            Ok(()) => return,
            Err(error) => error!(namespace, %error, "Cluster objects cannot be read from the API server; trying again"),
        }
        if end.run_until_cancelled(tokio::time::sleep(CLIENT_PAUSE)).await.is_none() {
            return;
        }
    }
}

/// The registry of a cluster: both names, or a hash where that is no name of a registry.
fn member_name(list: &Label, cluster: &str) -> Option<Label> {
    if let Ok(name) = Label::parse(&format!("{list}-{cluster}")) {
        return Some(name);
    }
    let hash = Sha256::digest(cluster);
    let hash: String = hash.iter().take(5).map(|byte| format!("{byte:02x}")).collect();
    let list: String = list.as_str().chars().take(MAX_NAME - 1 - hash.len()).collect();
    Label::parse(&format!("{}-{hash}", list.trim_end_matches('-'))).ok()
}

#[cfg(test)]
mod tests;
