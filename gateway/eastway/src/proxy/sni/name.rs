//! What Istio's sidecars ask another network's gateway for: `outbound_.<port>_.<subset>_.<host>` as the name of TLS.

use std::sync::Arc;

use eastway_model::rules::route::Subsets;
use eastway_model::rules::{NameRule, Rules};
use eastway_model::{ClusterName, PortNumber, ServiceKey, Subset};

use crate::proxy::outbound::Target;

/// Domains of services: that of the clusterset, and the one that clusters give their own.
const DOMAINS: [&str; 2] = [".svc.clusterset.local", ".svc.cluster.local"];
/// The label that a subset is a value of, unless a DestinationRule says what its labels are.
const LABEL: &str = "version";

/// Why a name is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It is not of this form.
    #[error("is not outbound_.<port>_.<subset>_.<host>")]
    Form,
    /// Its host is no service's.
    #[error("is of no service")]
    Host,
}

/// What `name`, in lower case, asks `cluster` for. `rules` know names of our own, and the labels of subsets; `read` are
/// further subsets, which come first.
///
/// # Errors
/// [`NameError`]
pub fn target(name: &str, cluster: &ClusterName, rules: &Rules, read: &Subsets) -> Result<Target, NameError> {
    let mut parts = name.splitn(4, "_.");
    let (Some("outbound"), Some(port), Some(subset), Some(host)) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(NameError::Form);
    };
    // As it is written, and in no other way: no sign, no leading zero.
    let number = port.parse::<PortNumber>().ok().filter(|number| number.to_string() == port);
    let port = number.ok_or(NameError::Form)?;
    let service = service(host, cluster, &rules.names).ok_or(NameError::Host)?;
    let subset = (!subset.is_empty()).then(|| labels(&service, subset, rules, read));
    Ok(Target { service, port, cluster: Some(cluster.clone()), subset, endpoint: None })
}

fn labels(service: &ServiceKey, subset: &str, rules: &Rules, read: &Subsets) -> Arc<Subset> {
    let known =
        read.get(service).and_then(|subsets| subsets.get(subset)).or_else(|| rules.routes.subset(service, subset));
    known.cloned().unwrap_or_else(|| Arc::new(Subset::from_iter([(Arc::from(LABEL), Arc::from(subset))])))
}

fn service(host: &str, cluster: &ClusterName, names: &[NameRule]) -> Option<ServiceKey> {
    let own = names.iter().find(|rule| *rule.fqdn == *host);
    if let Some(rule) = own {
        let fits = rule.cluster.as_ref().is_none_or(|only| only == cluster);
        return fits.then(|| rule.service.clone());
    }
    let short = DOMAINS.into_iter().find_map(|domain| host.strip_suffix(domain))?;
    let (name, namespace) = short.split_once('.')?;
    ServiceKey::parse(namespace, name).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use eastway_model::rules::RouteBook;

    use super::*;

    #[test]
    fn istios_names_are_read_and_no_others() {
        let gke = ClusterName::parse("gke").unwrap();
        let reviews = ServiceKey::parse("bookinfo", "reviews").unwrap();
        let rule = |fqdn: &str, cluster: Option<&str>| NameRule {
            fqdn: fqdn.into(),
            service: reviews.clone(),
            cluster: cluster.map(|cluster| ClusterName::parse(cluster).unwrap()),
        };
        let canary =
            Subset::from_iter([("track", "canary"), ("version", "v3")].map(|(k, v)| (Arc::from(k), Arc::from(v))));
        let subsets = BTreeMap::from([(Arc::from("canary"), Arc::new(canary.clone()))]);
        let rules = Rules {
            names: vec![rule("reviews.shop.example", None), rule("there.shop.example", Some("aws"))],
            routes: Arc::new(RouteBook::new(Vec::new(), BTreeMap::new(), [(reviews.clone(), subsets)].into())),
            ..Rules::default()
        };
        let none = Subsets::new();
        let read = |name: &str| target(name, &gke, &rules, &none);
        let whole = read("outbound_.9080_._.reviews.bookinfo.svc.cluster.local").unwrap();
        assert_eq!((&whole.service, whole.port.get(), &whole.subset), (&reviews, 9080, &None));
        assert_eq!(whole.cluster, Some(gke.clone()));
        let version = read("outbound_.80_.v2_.reviews.bookinfo.svc.clusterset.local").unwrap();
        let labels: Vec<_> = version.subset.iter().flat_map(|subset| subset.iter()).collect();
        assert_eq!(labels, [(&Arc::from("version"), &Arc::from("v2"))]);
        let told = read("outbound_.80_.canary_.reviews.bookinfo.svc.cluster.local").unwrap();
        assert_eq!(told.subset.as_deref(), Some(&canary), "as its DestinationRule has it");
        let nearer = Arc::new(Subset::from_iter([(Arc::from("version"), Arc::from("v9"))]));
        let known = Subsets::from([(reviews.clone(), BTreeMap::from([(Arc::from("canary"), nearer.clone())]))]);
        let told = target("outbound_.80_.canary_.reviews.bookinfo.svc.cluster.local", &gke, &rules, &known).unwrap();
        assert_eq!(told.subset, Some(nearer), "as one of Istio's own has it");
        assert_eq!(read("outbound_.80_._.reviews.shop.example").unwrap().service, reviews);
        assert_eq!(read("outbound_.80_._.there.shop.example"), Err(NameError::Host), "it is of another cluster");
        for bad in [
            "",
            "reviews.bookinfo.svc.cluster.local",
            "outbound_.80_.reviews",
            "inbound_.80_._.a.b.svc.cluster.local",
            "outbound_.0_._.a.b.svc.cluster.local",
            "outbound_.080_._.a.b.svc.cluster.local",
            "outbound_.+80_._.a.b.svc.cluster.local",
            "outbound_.70000_._.a.b.svc.cluster.local",
        ] {
            assert_eq!(read(bad), Err(NameError::Form), "{bad}");
        }
        for bad in [
            "a.b.c.svc.cluster.local",
            "a.svc.cluster.local",
            ".b.svc.cluster.local",
            "10.0.0.1",
            "a.b.example",
            "a_b.c.svc.cluster.local",
        ] {
            assert_eq!(read(&format!("outbound_.80_._.{bad}")), Err(NameError::Host), "{bad}");
        }
    }
}
