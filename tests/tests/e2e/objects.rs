//! What people write into the API by mistake or to do harm: each is refused or left out with words that the one who
//! wrote it sees, and nothing else is disturbed (reliability: bad inputs; threats P6 and S1; faults F19 and F36).

mod deputies;
mod exports;
mod foreign;
mod peers;
mod rights;
mod unreadable;

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use eastway_tests::kube::{Bed, Cluster};
use eastway_tests::{bed_tests, within};
use serde_json::{Value, json};

const SPACE: &str = "e2e-objects";
/// A namespace of somebody else in the same cluster.
const ELSEWHERE: &str = "e2e-elsewhere";
/// One that is not there in the importing cluster at first.
const MISSING: &str = "e2e-missing";
const PATIENCE: Duration = Duration::from_secs(30);
/// A good object has to be seen on the other side as soon as ever, whatever else there is.
const UNDISTURBED: Duration = Duration::from_secs(5);
const PORT: u16 = 8080;

bed_tests! {
    /// P6: whatever an EndpointSlice says, only pods of its own namespace are dialled.
    async fn p6_an_export_leads_to_pods_of_its_namespace_alone(bed) {
        deputies::deputies(bed).await
    }

    /// Exports that cannot be, and such that can in part, say so in their status.
    async fn exports_say_what_is_wrong_with_them(bed) {
        exports::exports(bed).await
    }

    /// F19: an object that cannot be read costs nobody anything but its owner, who is told.
    async fn f19_an_object_that_cannot_be_read_is_left_out(bed) {
        unreadable::unreadable(bed).await
    }

    /// Names that are taken, namespaces that are missing and quotas that are used up.
    async fn what_others_made_is_left_alone(bed) {
        foreign::foreign(bed).await
    }

    /// F36 and a Peer's bad inputs: refused at once in words, or by a condition; the good one keeps its links.
    async fn f36_bad_peers_are_told_and_harm_no_other(bed) {
        peers::peers(bed).await
    }

    /// S1: asked of the API server itself, no role may do more than its task.
    async fn s1_no_role_may_do_more_than_its_task(bed) {
        rights::rights(bed).await
    }
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

/// A Service without a selector: whoever may write slices decides where it leads.
fn by_hand(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": SPACE},
        "spec": {"ports": [{"name": "http", "port": 80, "targetPort": PORT}]},
    })
}

#[expect(clippy::needless_pass_by_value, reason = "it is written where it is given")]
fn service(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": SPACE}, "spec": spec})
}

fn export(name: &str) -> Value {
    export_in(SPACE, name)
}

fn export_in(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
        "metadata": {"name": name, "namespace": namespace},
    })
}

fn slice(name: &str, service: &str, kind: &str, port: u16, endpoints: &Value) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": SPACE, "labels": {"kubernetes.io/service-name": service}},
        "addressType": kind, "ports": [{"name": "http", "port": port, "protocol": "TCP"}], "endpoints": endpoints,
    })
}

fn access(other: &str) -> Value {
    json!({
        "apiVersion": "eastway.dev/v1alpha1", "kind": "AccessPolicy", "metadata": {"name": "all", "namespace": SPACE},
        "spec": {
            "services": ["*"], "allow": [{"cluster": other, "namespace": SPACE, "serviceAccounts": ["*"]}],
        },
    })
}

/// Applies, and expects a refusal with these words.
async fn refused(cluster: &Cluster, object: &Value, words: &str) -> Result<()> {
    match cluster.apply(&object.to_string()).await {
        Ok(_) => bail!("taken, instead of refused with {words:?}: {object}"),
        Err(error) => {
            let said = format!("{error:#}");
            ensure!(said.contains(words), "refused without {words:?}: {said}");
            Ok(())
        }
    }
}

/// Waits until a condition of an object is like this: `Valid=False/NoService`, and its message has these words.
async fn told(cluster: &Cluster, what: &[&str], condition: &str, words: &str) -> Result<()> {
    within(PATIENCE, format!("{what:?} says {condition} with {words:?}"), async || {
        let object = cluster.get(what).await?;
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let text = |it: &Value, key: &str| it[key].as_str().unwrap_or_default().to_owned();
        let shown = |it: &Value| format!("{}={}/{}", text(it, "type"), text(it, "status"), text(it, "reason"));
        let fits = |it: &Value| shown(it) == condition && text(it, "message").contains(words);
        ensure!(conditions.iter().any(fits), "it says {conditions:?}");
        Ok(true)
    })
    .await
    .map(drop)
}

async fn clear(bed: &Bed, namespaces: &[&str]) -> Result<()> {
    for cluster in bed.clusters() {
        for namespace in namespaces {
            cluster.kubectl(&["delete", "namespace", namespace, "--ignore-not-found"]).await?;
        }
    }
    Ok(())
}
