//! The Secret that holds a cluster's CA: made once, and changed by nobody but who has read what is in it.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DynamicObject, ObjectMeta, PostParams};
use kube::core::TypeMeta;
use kube::{Api, Client};
use serde::Deserialize as _;
use serde_json::{Value, json};

use crate::client;

/// What became of a Secret that was to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Made {
    /// It was made.
    Created,
    /// There was one already, with this data; nothing was changed.
    Found(BTreeMap<String, Vec<u8>>),
}

/// Why it was not made, read or changed.
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
    /// There is none.
    #[error("there is no Secret {namespace}/{name}")]
    Missing {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// Somebody else was faster.
    #[error("Secret {namespace}/{name} was changed meanwhile; look at it, and try again")]
    Conflict {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

/// A Secret as it was read.
pub struct Found {
    secrets: Api<DynamicObject>,
    secret: DynamicObject,
}

impl Found {
    /// Reads it.
    ///
    /// # Errors
    /// [`SecretError`]
    pub async fn read(client: &Client, namespace: &str, name: &str) -> Result<Self, SecretError> {
        let secrets = client::objects::<Secret>(client, namespace);
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        match secrets.get_opt(&name).await {
            Ok(Some(secret)) => Ok(Self { secrets, secret }),
            Ok(None) => Err(SecretError::Missing { namespace, name }),
            Err(source) => Err(SecretError::Api { namespace, name, source: Box::new(source) }),
        }
    }

    /// What is in it.
    #[must_use]
    pub fn data(&self) -> BTreeMap<String, Vec<u8>> {
        contents(&self.secret)
    }

    /// Writes what is to be in it, unless somebody has changed it since it was read.
    ///
    /// # Errors
    /// [`SecretError`]; nothing has changed then.
    pub async fn replace(mut self, data: BTreeMap<String, Vec<u8>>) -> Result<(), SecretError> {
        if let Some(fields) = self.secret.data.as_object_mut() {
            fields.insert("data".to_owned(), encoded(data));
        }
        let namespace = self.secret.metadata.namespace.clone().unwrap_or_default();
        let name = self.secret.metadata.name.clone().unwrap_or_default();
        match self.secrets.replace(&name, &PostParams::default(), &self.secret).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 => Err(SecretError::Conflict { namespace, name }),
            Err(source) => Err(SecretError::Api { namespace, name, source: Box::new(source) }),
        }
    }
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
    let secret = DynamicObject {
        types: Some(TypeMeta::resource::<Secret>()),
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            labels: Some([("app.kubernetes.io/managed-by".to_owned(), "eastway".to_owned())].into()),
            ..ObjectMeta::default()
        },
        data: json!({ "type": "Opaque", "data": encoded(data) }),
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

fn encoded(data: BTreeMap<String, Vec<u8>>) -> Value {
    data.into_iter().map(|(key, value)| (key, json!(ByteString(value)))).collect()
}
