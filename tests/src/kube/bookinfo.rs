//! Bookinfo as pods, by the binary under test, spread over two clusters as the demo spreads it over clouds.
//!
//! The first cluster has the page, the details and reviews without stars; the second has reviews with black and red
//! stars, the ratings they need, and a kiosk that reads the page from afar. Every call is by the service's
//! clusterset name, so nothing but the page's own cluster works before services are exported.

use eastway::demo::bookinfo::{NAMESPACE, PORT, Service, Version};
use serde_json::{Value, json};

use super::image;
use super::node::CLUSTER_DNS;

/// What the first cluster runs.
pub const FIRST: [(Service, Version); 3] =
    [(Service::Productpage, Version(1)), (Service::Details, Version(1)), (Service::Reviews, Version(1))];
/// What the second cluster runs.
pub const SECOND: [(Service, Version); 4] = [
    (Service::Reviews, Version(2)),
    (Service::Reviews, Version(3)),
    (Service::Ratings, Version(1)),
    (Service::Kiosk, Version(1)),
];

/// Namespace, service accounts, Services and Deployments of these workloads in a cluster of this name.
///
/// A Deployment is called `reviews-v2`; its pods carry `app` and `version`, and run as `bookinfo-reviews`.
#[must_use]
pub fn manifests(cluster: &str, workloads: &[(Service, Version)]) -> String {
    let mut items = vec![json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})];
    for service in services(workloads) {
        items.push(json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": account(service), "namespace": NAMESPACE},
        }));
        items.push(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": service.name(), "namespace": NAMESPACE, "labels": {"app": service.name()}},
            "spec": {
                "selector": {"app": service.name()},
                "ports": [{"name": "http", "port": PORT, "appProtocol": "http"}],
            },
        }));
    }
    items.extend(workloads.iter().map(|(service, version)| deployment(cluster, *service, *version)));
    list(&items)
}

/// ServiceExports of these workloads' services, in the API version given (`v1beta1`, `v1alpha1`).
#[must_use]
pub fn exports(workloads: &[(Service, Version)], version: &str) -> String {
    let export = |service: Service| {
        json!({
            "apiVersion": format!("multicluster.x-k8s.io/{version}"), "kind": "ServiceExport",
            "metadata": {"name": service.name(), "namespace": NAMESPACE},
        })
    };
    list(&services(workloads).into_iter().map(export).collect::<Vec<_>>())
}

/// Each service once, in order.
fn services(workloads: &[(Service, Version)]) -> Vec<Service> {
    let mut services: Vec<Service> = workloads.iter().map(|(service, _)| *service).collect();
    services.dedup();
    services
}

fn account(service: Service) -> String {
    format!("bookinfo-{}", service.name())
}

fn deployment(cluster: &str, service: Service, version: Version) -> Value {
    let labels = json!({"app": service.name(), "version": version});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": format!("{}-{version}", service.name()), "namespace": NAMESPACE},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "serviceAccountName": account(service),
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{
                        "name": service.name(), "image": image::EASTWAY, "imagePullPolicy": "IfNotPresent",
                        "args": [
                            "demo-app", "--service", service.name(), "--version", version, "--cloud", cluster,
                            "--listen", format!("0.0.0.0:{PORT}"), "--dns", format!("{CLUSTER_DNS}:53"),
                        ],
                        "ports": [{"containerPort": PORT}],
                        "readinessProbe": {"httpGet": {"path": "/health", "port": PORT}, "periodSeconds": 1},
                    }],
                },
            },
        },
    })
}

fn list(items: &[Value]) -> String {
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}
