//! `/config_dump`: sorted, and without secrets even if somebody forgets.

use serde::Serialize;
use serde_json::{Map, Value};

/// What is shown instead of a secret.
pub const REDACTED: &str = "<redacted>";

/// The contents of the view.
#[derive(Serialize)]
pub struct Dump {
    /// The configuration.
    pub config: Value,
}

/// Sorts all keys and replaces what looks like a secret: values of keys that are called so, PEM private keys and
/// JSON web tokens anywhere. The configuration refers to secrets by file name only, so that this finds nothing; it stands
/// here because the next field somebody adds might.
#[must_use]
pub fn clean(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<(String, Value)> = map.into_iter().collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            let clean_entry = |(key, value): (String, Value)| {
                let value = if is_secret_name(&key) && !value.is_null() { REDACTED.into() } else { clean(value) };
                (key, value)
            };
            Value::Object(entries.into_iter().map(clean_entry).collect::<Map<_, _>>())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(clean).collect()),
        Value::String(text) if is_secret_text(&text) => REDACTED.into(),
        other @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) => other,
    }
}

fn is_secret_name(key: &str) -> bool {
    let key = key.to_ascii_lowercase().replace(['_', '-'], "");
    ["token", "secret", "password", "passphrase", "privatekey", "linkkeys", "sharedkey"]
        .iter()
        .any(|name| key.ends_with(name))
}

fn is_secret_text(text: &str) -> bool {
    text.contains("PRIVATE KEY") || (text.starts_with("eyJ") && text.matches('.').count() == 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i10_secrets_are_replaced_wherever_they_are() {
        let dirty = serde_json::json!({
            "z": {"pem": "x\n-----BEGIN RSA PRIVATE KEY-----\nMII", "bearerToken": "abc", "link_keys": [1, 2]},
            "a": ["eyJhbGciOi.eyJzdWIi.c2ln", "plain", {"password": "p"}],
            "tokenFile": "/var/run/token",
        });
        let text = serde_json::to_string(&clean(dirty)).unwrap();
        assert_eq!(
            text,
            r#"{"a":["<redacted>","plain",{"password":"<redacted>"}],"tokenFile":"/var/run/token","z":{"bearerToken":"<redacted>","link_keys":"<redacted>","pem":"<redacted>"}}"#
        );
    }
}
