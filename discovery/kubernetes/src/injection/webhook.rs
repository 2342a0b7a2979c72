//! The object by which API servers know the webhook, as far as it is ours to write: whom they trust there.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::admissionregistration::v1;
use kube::api::{DynamicObject, PostParams};
use kube::core::ApiResource;
use kube::{Api, Client};
use serde_json::Value;
use tokio::time::timeout;

use crate::lease::REQUEST;

/// Why nothing is published.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The object is not there.
    #[error("there is no MutatingWebhookConfiguration {0}: pods get no sidecars until there is")]
    Missing(String),
    /// Another replica wrote at the same time.
    #[error("another replica was faster")]
    Conflict,
    /// The API server refuses, or does not answer.
    #[error("{0}")]
    Request(String),
}

/// A MutatingWebhookConfiguration.
#[derive(Clone)]
pub struct Webhook {
    api: Api<DynamicObject>,
    name: String,
}

impl Webhook {
    /// The one of this name.
    #[must_use]
    pub fn new(client: &Client, name: &str) -> Self {
        let kind = ApiResource::erase::<v1::MutatingWebhookConfiguration>(&());
        Self { api: Api::all_with(client.clone(), &kind), name: name.to_owned() }
    }

    /// Has API servers trust what `bundle` makes of the certificates (PEM) that they trust now. `false`: they did already.
    ///
    /// # Errors
    /// [`PublishError`]; nothing has changed.
    pub async fn publish(&self, bundle: impl Fn(&[u8]) -> String) -> Result<bool, PublishError> {
        let found = request(self.api.get_opt(&self.name)).await?;
        let mut object = found.ok_or_else(|| PublishError::Missing(self.name.clone()))?;
        if !trust(&mut object.data, bundle) {
            return Ok(false);
        }
        // With the version that was read: who wrote meanwhile is not overwritten.
        request(self.api.replace(&self.name, &PostParams::default(), &object)).await.map(|_| true)
    }
}

async fn request<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, PublishError> {
    match timeout(REQUEST, request).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(kube::Error::Api(status))) if status.code == 409 => Err(PublishError::Conflict),
        Ok(Err(error)) => Err(PublishError::Request(error.to_string())),
        Err(_) => Err(PublishError::Request("no answer in time".to_owned())),
    }
}

/// Changes the bundles of all webhooks in the object; whether any was another one.
fn trust(object: &mut Value, bundle: impl Fn(&[u8]) -> String) -> bool {
    let webhooks = object.get_mut("webhooks").and_then(Value::as_array_mut);
    let mut changed = false;
    for config in webhooks.into_iter().flatten().filter_map(|webhook| webhook.get_mut("clientConfig")?.as_object_mut())
    {
        let before = config.get("caBundle").and_then(Value::as_str).unwrap_or_default();
        let text = STANDARD.encode(bundle(&STANDARD.decode(before).unwrap_or_default()));
        if text != before {
            config.insert("caBundle".to_owned(), text.into());
            changed = true;
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    use serde_json::json;

    use super::*;
    use crate::testing::{Reply, client};

    fn object(bundle: &str) -> Value {
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": "eastway-injector", "resourceVersion": "7", "labels": {"a": "b"}},
            "webhooks": [{
                "name": "pods.eastway.dev", "failurePolicy": "Ignore", "somethingNew": [1, 2],
                "clientConfig": {"service": {"name": "eastway-injector"}, "caBundle": bundle},
            }],
        })
    }

    #[tokio::test]
    async fn what_is_trusted_changes_and_nothing_else() {
        let written: Arc<Mutex<Vec<Value>>> = Arc::default();
        let seen = Arc::clone(&written);
        let (client, requests) = client(move |request| {
            if request.method() == "PUT" {
                seen.lock().unwrap().push(serde_json::from_slice(request.body()).unwrap());
            }
            Reply::Whole(200, object(&STANDARD.encode("old")))
        });
        let webhook = Webhook::new(&client, "eastway-injector");
        assert_eq!(webhook.publish(|before| String::from_utf8_lossy(before).into_owned()).await, Ok(false));
        assert_eq!(requests.lock().unwrap().len(), 1, "nothing to write");
        assert_eq!(webhook.publish(|before| format!("{}+new", String::from_utf8_lossy(before))).await, Ok(true));
        let wanted = object(&STANDARD.encode("old+new"));
        assert_eq!(*written.lock().unwrap(), [wanted], "all other fields as they were, and the version");
    }

    #[tokio::test]
    async fn a_conflict_and_an_object_that_is_gone_are_told() {
        let asked = AtomicUsize::new(0);
        let (conflicting, _) = client(move |_| match asked.fetch_add(1, Ordering::Relaxed) {
            0 => Reply::Whole(200, object("")),
            _ => Reply::status(409, "Conflict", "the object has been modified"),
        });
        let publish = |client| async move { Webhook::new(&client, "eastway-injector").publish(|_| "x".into()).await };
        assert_eq!(publish(conflicting).await, Err(PublishError::Conflict));
        let (missing, _) = client(|_| Reply::status(404, "NotFound", "not found"));
        assert_eq!(publish(missing).await, Err(PublishError::Missing("eastway-injector".to_owned())));
        let (forbidden, _) = client(|_| Reply::status(403, "Forbidden", "may not"));
        assert!(matches!(publish(forbidden).await, Err(PublishError::Request(_))));
    }
}
