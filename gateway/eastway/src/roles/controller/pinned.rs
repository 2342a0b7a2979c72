//! Names of one's own that lead to one cluster, as the configuration has them.

use std::sync::Arc;

use eastway_kubernetes::controller::desired::Names;
use eastway_model::rules::NameRule;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::Loaded;

/// Tells `told` what the configuration says, until `end`. It should say so from the start: what is not named has no
/// address, and loses the one it has.
pub(super) async fn follow(
    mut files: watch::Receiver<Arc<Loaded>>,
    told: watch::Sender<Arc<Names>>,
    end: CancellationToken,
) {
    loop {
        let names = of(&files.borrow_and_update());
        told.send_if_modified(|before| {
            let changed = **before != names;
            *before = Arc::new(names);
            changed
        });
        if !matches!(end.run_until_cancelled(files.changed()).await, Some(Ok(()))) {
            return end.cancelled().await;
        }
    }
}

/// The names in a configuration.
pub(super) fn of(loaded: &Loaded) -> Names {
    by_service(&loaded.settings.dns.names)
}

/// Those that lead to any cluster need no address of their own.
fn by_service(rules: &[NameRule]) -> Names {
    let mut names = Names::new();
    for rule in rules {
        if let Some(cluster) = &rule.cluster {
            names.entry(rule.service.clone()).or_default().insert(rule.fqdn.clone(), cluster.clone());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use eastway_model::ClusterName;

    use super::*;

    #[test]
    fn names_of_one_cluster_are_told_by_service() {
        let rule = |fqdn: &str, service: &str, cluster: Option<&str>| NameRule {
            fqdn: fqdn.into(),
            service: service.parse().unwrap(),
            cluster: cluster.map(|cluster| ClusterName::parse(cluster).unwrap()),
        };
        let names = by_service(&[
            rule("any.shop.example", "shop/web", None),
            rule("there.shop.example", "shop/web", Some("gke")),
            rule("here.shop.example", "shop/web", Some("eks")),
        ]);
        assert_eq!(names.len(), 1);
        let web: Vec<_> = names.values().flatten().map(|(name, cluster)| (&**name, cluster.as_str())).collect();
        assert_eq!(web, [("here.shop.example", "eks"), ("there.shop.example", "gke")]);
    }
}
