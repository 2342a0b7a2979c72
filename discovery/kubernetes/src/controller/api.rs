//! Requests to the API server, and what their answers mean.

use std::time::Duration;

use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::difference::Action;
use super::names;
use super::object::{Kind, Object, Observed};
use crate::lease::REQUEST;
use eastway_model::ServiceKey;

/// What a request did.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The object as it is now.
    Written {
        /// Its kind.
        kind: Kind,
        /// All of it.
        object: Value,
    },
    /// The object is gone, or on its way out.
    Deleted {
        /// Its kind.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// Somebody else has the name.
    Foreign {
        /// The name.
        name: String,
    },
}

/// Why a request did nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Somebody else was faster, or what we know is old: look again.
    #[error("conflict: {0}")]
    Conflict(String),
    /// The API server is busy, or cannot be reached.
    #[error("{reason}")]
    Unavailable {
        /// What it said.
        reason: String,
        /// How long to wait at least, if it said so.
        after: Option<Duration>,
    },
    /// It will not do it: our rights do not reach, or it does not like the object.
    #[error("refused: {0}")]
    Refused(String),
}

/// Writes objects of the controller.
#[derive(Clone)]
pub struct Requests {
    client: Client,
}

impl Requests {
    /// Writes with this client.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// Does it, for the service `key`.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn perform(&self, key: &ServiceKey, action: &Action) -> Result<Outcome, Failure> {
        let (kind, name) = action.target();
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), key.namespace.as_str(), &resource(kind));
        let request = async {
            match action {
                Action::Create(object) => create(&api, key, object).await,
                Action::Apply(object) => {
                    let params = PatchParams::apply(names::MANAGER).force();
                    written(kind, api.patch(name, &params, &Patch::Apply(&object.body)).await?)
                }
                Action::Status(object) => written(kind, write_status(&api, object).await?),
                Action::Delete { uid, .. } => {
                    let preconditions = Preconditions { uid: Some(uid.clone()), resource_version: None };
                    let params = DeleteParams::background().preconditions(preconditions);
                    match api.delete(name, &params).await {
                        Ok(_) => {}
                        Err(kube::Error::Api(status)) if status.code == 404 => {}
                        Err(error) => return Err(error.into()),
                    }
                    Ok(Outcome::Deleted { kind, name: name.to_owned() })
                }
            }
        };
        match timeout(REQUEST, request).await {
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(error)) => Err(judge(&error)),
            Err(_) => Err(Failure::Unavailable { reason: "no answer in time".to_owned(), after: None }),
        }
    }
}

/// The resource of a kind.
#[must_use]
pub fn resource(kind: Kind) -> ApiResource {
    let (group, version, kind, plural) = match kind {
        Kind::Service => ("", "v1", "Service", "services"),
        Kind::EndpointSlice => ("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices"),
        Kind::ServiceImport => ("multicluster.x-k8s.io", "v1beta1", "ServiceImport", "serviceimports"),
        Kind::ServiceExport => ("multicluster.x-k8s.io", "v1beta1", "ServiceExport", "serviceexports"),
        Kind::WorkloadEntry => ("networking.istio.io", "v1", "WorkloadEntry", "workloadentries"),
        Kind::ServiceEntry => ("networking.istio.io", "v1", "ServiceEntry", "serviceentries"),
    };
    let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version,
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}

/// A version that no object has: etcd counts from 1 and writes nothing with it.
const NEVER: &str = "1";

/// Makes an object, unless somebody else has its name. Server-side apply has no "only if there is none": a version that
/// no object has is a conflict with whatever there is, and nothing to an object that is made. Whose it is that was in
/// the way is looked at afterwards, so that what is new costs one request.
async fn create(api: &Api<DynamicObject>, key: &ServiceKey, object: &Object) -> Result<Outcome, RequestError> {
    let params = PatchParams::apply(names::MANAGER);
    let mut body = object.body.clone();
    if let Some(metadata) = body.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("resourceVersion".to_owned(), json!(NEVER));
    }
    let conflict = match api.patch(&object.name, &params, &Patch::Apply(&body)).await {
        Err(kube::Error::Api(status)) if status.code == 409 => status,
        result => return written(object.kind, result?),
    };
    let Some(found) = api.get_opt(&object.name).await? else {
        // It went again, and is made at the next try.
        return Err(kube::Error::Api(conflict).into());
    };
    let observed = Observed::new(to_value(found)?);
    let is_of = |label: &str| observed.is_of_import(key.name.as_str()) && observed.label(label) == key.name.as_str();
    let ours = match object.kind {
        Kind::Service => is_of(names::SERVICE),
        Kind::EndpointSlice | Kind::WorkloadEntry | Kind::ServiceEntry => is_of(names::IMPORT),
        // If it is somebody else's, the watch will tell.
        Kind::ServiceImport | Kind::ServiceExport => true,
    };
    // Ours, and the watch has not told yet.
    if ours {
        return Ok(Outcome::Written { kind: object.kind, object: observed.body().clone() });
    }
    Ok(Outcome::Foreign { name: object.name.clone() })
}

/// Writes a status. An object that is not as its definition wants it, since that was changed after it or was got
/// around, takes no server-side apply, not even of its status; its owner has to be told all the same.
async fn write_status(api: &Api<DynamicObject>, object: &Object) -> Result<DynamicObject, kube::Error> {
    let params = PatchParams::apply(names::MANAGER).force();
    match api.patch_status(&object.name, &params, &Patch::Apply(&object.body)).await {
        Err(kube::Error::Api(error)) if error.message.contains("failed to create typed live object") => {
            let status = json!({ "status": object.body.get("status") });
            let params = PatchParams { field_manager: Some(names::MANAGER.to_owned()), ..PatchParams::default() };
            api.patch_status(&object.name, &params, &Patch::Merge(&status)).await
        }
        result => result,
    }
}

fn written(kind: Kind, object: DynamicObject) -> Result<Outcome, RequestError> {
    Ok(Outcome::Written { kind, object: to_value(object)? })
}

fn to_value(object: DynamicObject) -> Result<Value, RequestError> {
    serde_json::to_value(object).map_err(RequestError::Json)
}

#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error(transparent)]
    Kube(#[from] kube::Error),
    #[error(transparent)]
    Json(serde_json::Error),
}

fn judge(error: &RequestError) -> Failure {
    let RequestError::Kube(kube::Error::Api(status)) = error else {
        return Failure::Unavailable { reason: error.to_string(), after: None };
    };
    let reason = status.message.clone();
    match status.code {
        // What is not there any more was changed, too.
        404 | 409 => Failure::Conflict(reason),
        400..=499 if status.code != 408 && status.code != 429 => Failure::Refused(reason),
        _ => {
            let after = status.details.as_ref().map(|details| u64::from(details.retry_after_seconds));
            Failure::Unavailable { reason, after: after.filter(|seconds| *seconds > 0).map(Duration::from_secs) }
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;
    use crate::testing::{Reply, client};

    fn api_error(code: u16) -> RequestError {
        let mut status = Status::failure("told so", "Reason");
        status.code = code;
        RequestError::Kube(kube::Error::Api(Box::new(status)))
    }

    #[test]
    fn answers_are_told_apart() {
        for code in [404, 409] {
            assert_eq!(judge(&api_error(code)), Failure::Conflict("told so".to_owned()), "{code}");
        }
        for code in [400, 403, 422] {
            assert_eq!(judge(&api_error(code)), Failure::Refused("told so".to_owned()), "{code}");
        }
        for code in [408, 429, 500, 503, 504] {
            assert!(matches!(judge(&api_error(code)), Failure::Unavailable { .. }), "{code}");
        }
    }

    const SERVICE: &str = "derived-x";

    fn service(labels: &Value, owners: &Value) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": SERVICE, "namespace": "shop", "labels": labels, "ownerReferences": owners },
        })
    }

    async fn create_beside(found: Option<Value>) -> (Result<Outcome, Failure>, usize) {
        let written = service(&json!({}), &json!([]));
        let (client, requests) = client(move |request| match (request.method().as_str(), &found) {
            ("GET", Some(found)) => Reply::Whole(200, found.clone()),
            ("PATCH", None) => Reply::Whole(201, written.clone()),
            ("PATCH", Some(_)) => {
                let body: Value = serde_json::from_slice(request.body()).unwrap();
                assert_eq!(body["metadata"]["resourceVersion"], "1");
                assert!(!request.uri().to_string().contains("force"));
                Reply::status(409, "Conflict", "the object has been modified")
            }
            (method, _) => panic!("{method}"),
        });
        let key = ServiceKey::parse("shop", "cart").unwrap();
        let object = Object::new(Kind::Service, "shop", SERVICE, json!({}), json!({}));
        let result = Requests::new(client).perform(&key, &Action::Create(object)).await;
        let count = requests.lock().unwrap().len();
        (result, count)
    }

    #[tokio::test]
    async fn an_object_of_somebody_else_is_never_written_over() {
        let (result, requests) = create_beside(None).await;
        assert!(matches!(result, Ok(Outcome::Written { .. })) && requests == 1, "{result:?}");
        let marked = json!({ names::MANAGED_BY: names::EASTWAY, names::SERVICE: "cart" });
        let owner = json!([{ "kind": "ServiceImport", "name": "cart" }]);
        // Ours, and the watch lags behind.
        let (result, requests) = create_beside(Some(service(&marked, &owner))).await;
        assert!(matches!(result, Ok(Outcome::Written { .. })) && requests == 2, "{result:?}");
        let others = [
            service(&json!({}), &json!([])),
            service(&marked, &json!([])),
            service(&json!({ names::MANAGED_BY: names::EASTWAY, names::SERVICE: "mail" }), &owner),
        ];
        for theirs in others {
            let (result, requests) = create_beside(Some(theirs)).await;
            assert_eq!(result, Ok(Outcome::Foreign { name: SERVICE.to_owned() }));
            assert_eq!(requests, 2);
        }
    }

    #[tokio::test]
    async fn f19_an_object_that_its_definition_does_not_allow_gets_its_status() {
        let (client, requests) = client(|request| match request.headers()["content-type"].to_str().unwrap() {
            "application/merge-patch+json" => Reply::Whole(200, service(&json!({}), &json!([]))),
            _ => Reply::status(500, "InternalError", "failed to create typed live object (shop/cart): expected map"),
        });
        let key = ServiceKey::parse("shop", "cart").unwrap();
        let status = Object::new(Kind::ServiceExport, "shop", "cart", json!({}), json!({ "status": {} }));
        let result = Requests::new(client).perform(&key, &Action::Status(status)).await;
        assert!(matches!(result, Ok(Outcome::Written { .. })), "{result:?}");
        assert!(requests.lock().unwrap().iter().all(|path| path.contains("/serviceexports/cart/status")));
    }

    #[tokio::test]
    async fn a_delete_names_the_one_object_that_is_meant_and_none_is_fine() {
        let (client, requests) = client(|_| Reply::status(404, "NotFound", "no such thing"));
        let key = ServiceKey::parse("shop", "cart").unwrap();
        let delete = Action::Delete { kind: Kind::Service, name: SERVICE.to_owned(), uid: "u".to_owned() };
        let result = Requests::new(client).perform(&key, &delete).await;
        assert_eq!(result, Ok(Outcome::Deleted { kind: Kind::Service, name: SERVICE.to_owned() }));
        assert!(requests.lock().unwrap()[0].contains("/namespaces/shop/services/derived-x"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_answer_costs_a_bounded_wait() {
        let (client, _) = client(|_| Reply::Silence);
        let key = ServiceKey::parse("shop", "cart").unwrap();
        let object = Object::new(Kind::Service, "shop", SERVICE, json!({}), json!({}));
        let began = tokio::time::Instant::now();
        let result = Requests::new(client).perform(&key, &Action::Apply(object)).await;
        assert!(matches!(result, Err(Failure::Unavailable { after: None, .. })));
        assert_eq!(began.elapsed(), REQUEST);
    }
}
