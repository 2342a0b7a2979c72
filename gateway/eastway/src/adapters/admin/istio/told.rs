//! What `eastway describe` says of Istio: the objects that it reads, and why there are none.

use std::time::Duration;

use eastway_kubernetes::istio::{self, Told};
use eastway_model::store::Snapshot;
use eastway_model::{Import, ImportPart, ServiceKey, ServiceKind};
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::is_untold;
use crate::adapters;
use crate::app::Gateway;
use crate::config::Settings;

/// Longest wait for the API server.
const PATIENCE: Duration = Duration::from_secs(3);

/// Lines, none if there is no Istio here. Waits for the API server: not to be called where others wait for this thread.
pub(in crate::adapters::admin) fn told(gateway: &Gateway, snapshot: &Snapshot, key: &ServiceKey) -> Vec<String> {
    let settings = &gateway.settings;
    if settings.istio().is_none() || settings.listen.sni.is_empty() {
        return Vec::new();
    }
    let access = adapters::kubernetes_access(settings.kubernetes.as_ref().map(|kubernetes| &kubernetes.access));
    let asking = timeout(PATIENCE, istio::told(&access, key));
    match Handle::current().block_on(asking).unwrap_or_else(|_| Err("no answer in time".to_owned())) {
        Ok(found) => lines(&found, || nothing(settings, snapshot, key)),
        Err(error) => vec![format!("cannot be read: {error}")],
    }
}

fn lines(found: &Told, nothing: impl FnOnce() -> String) -> Vec<String> {
    let Told { stretched, hosts, remote, withheld } = found;
    let count =
        |endpoints: u64| if endpoints == 1 { "1 endpoint".to_owned() } else { format!("{endpoints} endpoints") };
    let entry = |(cluster, labels, endpoints): &(String, String, u64)| {
        format!("stretched: its Service here has {} of {cluster} with {labels}", count(*endpoints))
    };
    let mut lines: Vec<String> = stretched.iter().map(entry).collect();
    if !hosts.is_empty() {
        let behind: Vec<String> =
            remote.iter().map(|(network, many)| format!("{} of {network}", count(*many))).collect();
        let what = if behind.is_empty() { "all that its Service has".to_owned() } else { behind.join(" and ") };
        lines.push(format!("{} lead to {what}", hosts.join(" and ")));
    }
    lines.extend(withheld.iter().map(|why| format!("withheld: {why}")));
    if lines.is_empty() {
        lines.push(format!("told nothing: {}", nothing()));
    }
    lines
}

/// Why there is nothing to be told, as far as the gateway knows.
fn nothing(settings: &Settings, snapshot: &Snapshot, key: &ServiceKey) -> String {
    let Some(import) = snapshot.import(key) else { return "no cluster exports it".to_owned() };
    if import.kind == ServiceKind::Headless {
        return "it is headless".to_owned();
    }
    let is_network = |part: &&ImportPart| {
        part.cluster.as_ref().is_some_and(|cluster| settings.listen.sni.iter().any(|port| port.cluster == *cluster))
    };
    let networks: Vec<&ImportPart> = import.parts.iter().filter(is_network).collect();
    if networks.is_empty() {
        return "no peer that exports it is a network of Istio's".to_owned();
    }
    if import.part(None).is_none() && snapshot.local(key).is_some() {
        return "this cluster has a Service of its name and does not export it: the name is its own".to_owned();
    }
    let ready = networks.iter().any(|part| part.record.groups.iter().any(|group| group.ready > 0));
    if !ready {
        return "no endpoint of a peer takes connections".to_owned();
    }
    mixed(import, networks.len()).unwrap_or_else(|| "the controller has not written it yet".to_owned())
}

/// What is reached by its address as a whole since a part of it cannot be told of.
fn mixed(import: &Import, networks: usize) -> Option<String> {
    let remote = import.parts.iter().filter(|part| part.cluster.is_some());
    if remote.clone().count() > networks {
        return Some(
            "some of the peers that export it are no networks of Istio's: all of it is reached by its address"
                .to_owned(),
        );
    }
    let mut plain =
        remote.filter(|part| part.record.groups.iter().any(is_untold)).filter_map(|part| part.cluster.as_ref());
    let first = plain.next()?;
    Some(format!(
        "some of its endpoints at {first} have no sidecar of Istio, or no service account: all of it is reached by its address, in plain text inside the link"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_one_line_each_and_nothing_has_a_reason() {
        let found = Told {
            stretched: vec![("gke".to_owned(), "version=v2".to_owned(), 1)],
            hosts: vec!["x.example".to_owned()],
            remote: vec![("gke".to_owned(), 3), ("aws".to_owned(), 1)],
            withheld: Some("a rival".to_owned()),
        };
        let expected = [
            "stretched: its Service here has 1 endpoint of gke with version=v2",
            "x.example lead to 3 endpoints of gke and 1 endpoint of aws",
            "withheld: a rival",
        ];
        assert_eq!(lines(&found, String::new), expected);
        let named = Told { hosts: vec!["x.example".to_owned()], ..Told::default() };
        assert_eq!(lines(&named, String::new), ["x.example lead to all that its Service has"]);
        assert_eq!(lines(&Told::default(), || "why".to_owned()), ["told nothing: why"]);
    }
}
