//! The Secret that holds a cluster's CA: made once, never overwritten.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::api::{DynamicObject, ObjectMeta, PostParams};
use kube::core::TypeMeta;
use serde::Deserialize as _;
use serde_json::json;

use crate::client;

/// What became of a Secret that was to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Made {
    /// It was made.
    Created,
    /// There was one already, with this data; nothing was changed.
    Found(BTreeMap<String, Vec<u8>>),
}

/// Why it was not made.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The API server refused, or does not answer.
    #[error("Secret {namespace}/{name}: {source}")]
    Api {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// What the server says.
        #[source]
        source: Box<kube::Error>,
    },
}

/// Makes the Secret unless there is one of that name. Two that try at the same time end with one Secret: the API server
/// lets one of them make it.
///
/// # Errors
/// [`SecretError`]
pub async fn create_once(
    client: &Client,
    namespace: &str,
    name: &str,
    data: BTreeMap<String, Vec<u8>>,
) -> Result<Made, SecretError> {
    let failed =
        |source| SecretError::Api { namespace: namespace.to_owned(), name: name.to_owned(), source: Box::new(source) };
    let secrets = client::objects::<Secret>(client, namespace);
    if let Some(found) = secrets.get_opt(name).await.map_err(failed)? {
        return Ok(Made::Found(contents(&found)));
    }
    let data: BTreeMap<String, ByteString> = data.into_iter().map(|(key, value)| (key, ByteString(value))).collect();
    let secret = DynamicObject {
        types: Some(TypeMeta::resource::<Secret>()),
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            labels: Some([("app.kubernetes.io/managed-by".to_owned(), "eastway".to_owned())].into()),
            ..ObjectMeta::default()
        },
        data: json!({ "type": "Opaque", "data": data }),
    };
    match secrets.create(&PostParams::default(), &secret).await {
        Ok(_) => Ok(Made::Created),
        // 409: another one was faster.
        Err(kube::Error::Api(status)) if status.code == 409 => {
            Ok(Made::Found(contents(&secrets.get(name).await.map_err(failed)?)))
        }
        Err(error) => Err(failed(error)),
    }
}

/// The data of a Secret; empty if it has none.
pub(crate) fn contents(secret: &DynamicObject) -> BTreeMap<String, Vec<u8>> {
    let data = secret.data.get("data").and_then(|data| BTreeMap::<String, ByteString>::deserialize(data).ok());
    data.unwrap_or_default().into_iter().map(|(key, ByteString(value))| (key, value)).collect()
}
