//! Whom a service-account token belongs to, by the API server's word (TokenReview, `authentication.k8s.io/v1`).
//!
//! A token is always reviewed *for an audience*, and the audience is looked for in the answer: a token that was made for
//! somebody else, and handed on by them, proves nothing here.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::TokenReview;
use kube::api::{DynamicObject, ObjectMeta, PostParams};
use kube::core::{ApiResource, TypeMeta};
use kube::{Api, Client};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::client::{self, Access, ClientError};

/// Longest token that is sent to the API server, bytes; projected ones have about 1,200.
pub const MAX_TOKEN: usize = 8 << 10;
/// Longest wait for the API server.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest excerpt of the API server's reason.
const MAX_REASON: usize = 256;
/// Keys of `user.extra`.
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Whom a token belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Namespace of the service account.
    pub namespace: String,
    /// Its name.
    pub service_account: String,
    /// Name and UID of the pod that the token is bound to, as far as the server says.
    pub pod: Option<(String, String)>,
}

/// Why a token proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    /// It cannot be one.
    #[error("this is no service-account token")]
    NotAToken,
    /// The API server does not know it: expired, of another cluster, of another audience, of an account or a pod that
    /// is gone.
    #[error("the API server does not accept the token: {0}")]
    Refused(String),
    /// It is good, but not for us.
    #[error("the token is not for the audience {wanted:?}, but for {found:?}")]
    Audience {
        /// Ours.
        wanted: String,
        /// Those in the answer.
        found: Vec<String>,
    },
    /// It belongs to a user or a node.
    #[error("the token is not of a service account")]
    NotAServiceAccount,
    /// Nothing is known: the API server does not answer, or does not let us ask.
    #[error("the API server cannot be asked: {0}")]
    Unavailable(String),
}

impl ReviewError {
    /// Whether the token itself is at fault.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        !matches!(self, Self::Unavailable(_))
    }
}

/// Asks one API server about tokens for one audience.
#[derive(Clone)]
pub struct Reviewer {
    client: Client,
    audience: String,
}

impl Reviewer {
    /// By the API server that `access` leads to. Nothing is sent yet.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn connect(access: &Access, audience: &str) -> Result<Self, ClientError> {
        Ok(Self { client: client::connect(access).await?, audience: audience.to_owned() })
    }

    /// Whom `token` belongs to.
    ///
    /// # Errors
    /// [`ReviewError`]
    pub async fn review(&self, token: &str) -> Result<Caller, ReviewError> {
        review(&self.client, token, &self.audience).await
    }
}

impl std::fmt::Debug for Reviewer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reviewer").field("audience", &self.audience).finish_non_exhaustive()
    }
}

/// Asks whom `token` belongs to, if it is for `audience`.
///
/// # Errors
/// [`ReviewError`]
pub async fn review(client: &Client, token: &str, audience: &str) -> Result<Caller, ReviewError> {
    // Three parts of base64url (RFC 7519): what else there is needs no question.
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if token.is_empty() || token.len() > MAX_TOKEN || !token.bytes().all(good) {
        return Err(ReviewError::NotAToken);
    }
    let question = DynamicObject {
        types: Some(TypeMeta::resource::<TokenReview>()),
        metadata: ObjectMeta::default(),
        data: json!({ "spec": { "audiences": [audience], "token": token } }),
    };
    let reviews: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::erase::<TokenReview>(&()));
    let answer = match timeout(TIMEOUT, reviews.create(&PostParams::default(), &question)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(ReviewError::Unavailable(excerpt(&error.to_string()))),
        Err(_) => return Err(ReviewError::Unavailable("no answer within 5 s".to_owned())),
    };
    let status = Option::<Verdict>::deserialize(answer.data.get("status").unwrap_or(&Value::Null));
    let status = status.map_err(|error| ReviewError::Unavailable(excerpt(&error.to_string())))?;
    judge(status.unwrap_or_default(), audience)
}

/// `status` of a TokenReview.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Verdict {
    audiences: Option<Vec<String>>,
    authenticated: Option<bool>,
    error: Option<String>,
    user: Option<User>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct User {
    username: Option<String>,
    extra: Option<BTreeMap<String, Vec<String>>>,
}

fn judge(status: Verdict, audience: &str) -> Result<Caller, ReviewError> {
    let Verdict { audiences, authenticated, error, user } = status;
    if authenticated != Some(true) {
        return Err(ReviewError::Refused(excerpt(error.as_deref().unwrap_or("not authenticated"))));
    }
    // A server that knows no audiences answers without any, and would accept a token of whatever audience.
    let found = audiences.unwrap_or_default();
    if !found.iter().any(|one| one == audience) {
        let found = found.iter().take(8).map(|one| excerpt(one)).collect();
        return Err(ReviewError::Audience { wanted: audience.to_owned(), found });
    }
    let user = user.unwrap_or_default();
    let name = user.username.unwrap_or_default();
    let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    let (namespace, service_account) = account.ok_or(ReviewError::NotAServiceAccount)?;
    if namespace.is_empty() || service_account.is_empty() || service_account.contains(':') {
        return Err(ReviewError::NotAServiceAccount);
    }
    let extra = user.extra.unwrap_or_default();
    let first = |key: &str| extra.get(key).and_then(|values| values.first()).cloned();
    Ok(Caller {
        namespace: namespace.to_owned(),
        service_account: service_account.to_owned(),
        pod: first(POD_NAME).zip(first(POD_UID)),
    })
}

fn excerpt(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_REASON).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Verdict {
        let extra = BTreeMap::from([
            (POD_NAME.to_owned(), vec!["gateway-0".to_owned()]),
            (POD_UID.to_owned(), vec!["1-2-3".to_owned()]),
        ]);
        let username = Some("system:serviceaccount:eastway-system:eastway-gateway".to_owned());
        Verdict {
            audiences: Some(vec!["eastway-ca".to_owned()]),
            authenticated: Some(true),
            error: None,
            user: Some(User { username, extra: Some(extra) }),
        }
    }

    #[test]
    fn c4_a_caller_is_who_the_server_says_it_is() {
        let caller = judge(good(), "eastway-ca").unwrap();
        assert_eq!((&*caller.namespace, &*caller.service_account), ("eastway-system", "eastway-gateway"));
        assert_eq!(caller.pod, Some(("gateway-0".to_owned(), "1-2-3".to_owned())));
    }

    #[test]
    fn c4_an_answer_without_our_audience_proves_nothing() {
        for audiences in [None, Some(vec![]), Some(vec!["https://kubernetes.default.svc".to_owned()])] {
            let error = judge(Verdict { audiences, ..good() }, "eastway-ca").unwrap_err();
            assert!(matches!(error, ReviewError::Audience { .. }) && error.is_refusal(), "{error}");
        }
    }

    #[test]
    fn c4_neither_users_nor_nodes_nor_broken_names_are_service_accounts() {
        let named = |name: &str| {
            let user = Some(User { username: Some(name.to_owned()), ..User::default() });
            judge(Verdict { user, ..good() }, "eastway-ca")
        };
        for name in [
            "admin",
            "system:node:a",
            "system:serviceaccount:",
            "system:serviceaccount:a:",
            "system:serviceaccount:a:b:c",
            "",
        ] {
            assert!(matches!(named(name), Err(ReviewError::NotAServiceAccount)), "{name}");
        }
        let unknown = Verdict { authenticated: None, ..good() };
        assert!(matches!(judge(unknown, "eastway-ca"), Err(ReviewError::Refused(_))));
    }
}
