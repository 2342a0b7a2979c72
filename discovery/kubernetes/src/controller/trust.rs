//! What pods with a sidecar know the cluster's CA by: a ConfigMap with its public half in each namespace with injection.
//!
//! It has the same contents everywhere and nothing that is secret. A namespace that loses its label keeps it, since its pods may
//! go on for long.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1;
use kube::Client;
use kube::api::{Patch, PatchParams};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::names;
use crate::client::objects;
use crate::injection::{NAMESPACE_LABEL, TRUST};
use crate::lease::REQUEST;
use crate::watch::{Difference, Selection, Watch};

/// Key of the ConfigMap; a file of Istio's `cacerts` layout.
const FILE: &str = "root-cert.pem";
/// When what could not be written is tried again.
const AGAIN: Duration = Duration::from_secs(5);
/// When everything is written once more: somebody may have changed it.
const REFRESH: Duration = Duration::from_secs(300);

/// What is written.
pub struct Inputs {
    /// Certificates that issue this cluster's leaves, PEM; `None`: not known yet.
    pub issuers: watch::Receiver<Option<Arc<str>>>,
    /// Whether this replica writes.
    pub leading: watch::Receiver<bool>,
}

#[derive(Deserialize)]
struct Namespace {}

/// Writes until `stop`.
pub async fn run(client: Client, mut inputs: Inputs, stop: CancellationToken) {
    let labelled = format!("{}={}", NAMESPACE_LABEL.0, NAMESPACE_LABEL.1);
    let mut watch = Watch::<Namespace>::new(client.clone(), Selection::all::<v1::Namespace>().labelled(&labelled));
    // What each namespace has, as far as this replica wrote it.
    let mut known: BTreeMap<Arc<str>, Option<Arc<str>>> = BTreeMap::new();
    let mut refresh = Instant::now() + REFRESH;
    let follow = async {
        loop {
            let mut again = refresh;
            let (issuers, leads) = (inputs.issuers.borrow_and_update().clone(), *inputs.leading.borrow_and_update());
            if let Some(issuers) = issuers.filter(|_| leads)
                && !write_all(&client, &issuers, &mut known).await
            {
                again = refresh.min(Instant::now() + AGAIN);
            }
            tokio::select! {
                differences = watch.next() => for difference in differences {
                    match difference {
                        Difference::Set(name, _) => drop(known.entry(name.name).or_default()),
                        Difference::Gone(name) => drop(known.remove(&name.name)),
                    }
                },
                Ok(()) = inputs.issuers.changed() => {}
                Ok(()) = inputs.leading.changed() => known.values_mut().for_each(|written| *written = None),
                () = sleep_until(again) => if again == refresh {
                    refresh = Instant::now() + REFRESH;
                    known.values_mut().for_each(|written| *written = None);
                },
            }
        }
    };
    let _ended: Option<()> = stop.run_until_cancelled(follow).await;
}

/// Whether every namespace has it now.
async fn write_all(client: &Client, issuers: &Arc<str>, known: &mut BTreeMap<Arc<str>, Option<Arc<str>>>) -> bool {
    let mut all = true;
    for (namespace, written) in known.iter_mut().filter(|(_, written)| written.as_ref() != Some(issuers)) {
        match write(client, namespace, issuers).await {
            Ok(()) => *written = Some(Arc::clone(issuers)),
            Err(reason) => {
                warn!(%namespace, %reason, "the ConfigMap {TRUST} cannot be written: pods with sidecars wait for it");
                all = false;
            }
        }
    }
    all
}

async fn write(client: &Client, namespace: &str, issuers: &str) -> Result<(), String> {
    let api = objects::<v1::ConfigMap>(client, namespace);
    let params = PatchParams::apply(names::MANAGER).force();
    match timeout(REQUEST, api.patch(TRUST, &params, &Patch::Apply(&body(namespace, issuers)))).await {
        Ok(Ok(_)) => Ok(()),
        // It is on its way out: nothing can be made in it any more.
        Ok(Err(kube::Error::Api(status))) if status.code == 404 || is_terminating(&status.message) => {
            debug!(namespace, "the namespace goes");
            Ok(())
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer in time".to_owned()),
    }
}

fn is_terminating(message: &str) -> bool {
    message.contains("is being terminated")
}

fn body(namespace: &str, issuers: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": TRUST, "namespace": namespace, "labels": {"app.kubernetes.io/managed-by": "eastway"},
        },
        "data": {FILE: issuers},
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::testing::{Reply, client, event};

    /// (namespace, contents) of what was written.
    type Writes = Arc<Mutex<Vec<(String, String)>>>;

    /// An API server with two such namespaces, which refuses to write while `fails`.
    fn server(fails: &Arc<AtomicBool>) -> (Client, Writes) {
        let writes = Writes::default();
        let (seen, fails) = (Arc::clone(&writes), Arc::clone(fails));
        let (client, _) = client(move |request| {
            if request.method() == "PATCH" {
                if fails.load(Ordering::Relaxed) {
                    return Reply::status(500, "InternalError", "not now");
                }
                let body: Value = serde_json::from_slice(request.body()).unwrap();
                let namespace = request.uri().path().split('/').nth(4).unwrap().to_owned();
                seen.lock().unwrap().push((namespace, body["data"][FILE].as_str().unwrap().to_owned()));
                return Reply::Whole(200, body);
            }
            assert!(request.uri().query().unwrap().contains("eastway.dev%2Finjection%3Denabled"), "{}", request.uri());
            let object = |metadata: Value| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata});
            let namespace = |name: &str| object(json!({"name": name, "uid": name, "resourceVersion": "3"}));
            let end = json!({"k8s.io/initial-events-end": "true"});
            let bookmark = object(json!({"resourceVersion": "3", "annotations": end}));
            let lines =
                [event("ADDED", &namespace("a")), event("ADDED", &namespace("b")), event("BOOKMARK", &bookmark)];
            Reply::Made(Box::new(lines.into_iter()))
        });
        (client, writes)
    }

    async fn until(writes: &Writes, wanted: &[(&str, &str)]) {
        let deadline = Instant::now() + Duration::from_secs(200);
        loop {
            let mut now = writes.lock().unwrap().clone();
            now.sort();
            if now.iter().map(|(a, b)| (a.as_str(), b.as_str())).eq(wanted.iter().copied()) {
                return;
            }
            assert!(Instant::now() < deadline, "{now:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_namespace_with_injection_gets_it_from_who_leads() {
        let fails = Arc::new(AtomicBool::new(false));
        let (client, writes) = server(&fails);
        let (issuers, latest) = watch::channel(None);
        let (leading, leads) = watch::channel(false);
        let stop = CancellationToken::new();
        let task = tokio::spawn(run(client, Inputs { issuers: latest, leading: leads }, stop.clone()));
        issuers.send_replace(Some("one".into()));
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert!(writes.lock().unwrap().is_empty(), "another replica leads");
        leading.send_replace(true);
        until(&writes, &[("a", "one"), ("b", "one")]).await;
        // The CA's key is rotated while the API server has a bad moment.
        fails.store(true, Ordering::Relaxed);
        issuers.send_replace(Some("two".into()));
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert_eq!(writes.lock().unwrap().len(), 2);
        fails.store(false, Ordering::Relaxed);
        until(&writes, &[("a", "one"), ("a", "two"), ("b", "one"), ("b", "two")]).await;
        stop.cancel();
        task.await.unwrap();
    }
}
