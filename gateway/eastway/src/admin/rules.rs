//! A request's way through the rules of a service, as the API shows it.

use eastway_model::rules::route::Request;
use serde::{Deserialize, Serialize};

/// The rules of one port, in the order in which they are tried.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RulesView {
    /// What they look at, e.g. `HTTPRoute`.
    pub kind: String,
    /// All of them.
    pub rules: Vec<RuleView>,
    /// What becomes of the request that was asked about.
    pub outcome: Option<String>,
    /// What became of the routes of the service, a line for each statement.
    pub statuses: Vec<String>,
}

/// One match of one rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RuleView {
    /// E.g. `HTTPRoute shop/web rules[0]`.
    pub rule: String,
    /// What a request has to be.
    pub matches: String,
    /// What happens then.
    pub does: String,
    /// It is the one for the request that was asked about.
    pub chosen: bool,
    /// Why it is not.
    pub why_not: Option<String>,
}

/// A request of which the parts that are not given are as plain as can be; `None`: nothing is asked about one.
///
/// # Errors
/// What is wrong with it.
pub fn request(
    method: Option<&str>,
    path: Option<&str>,
    headers: Option<&str>,
) -> Result<Option<Request>, &'static str> {
    if method.is_none() && path.is_none() && headers.is_none() {
        return Ok(None);
    }
    let whole = path.unwrap_or("/");
    if !whole.starts_with('/') {
        return Err("a path begins with /");
    }
    let (path, query) = whole.split_once('?').unwrap_or((whole, ""));
    let parameters = query.split('&').filter(|pair| !pair.is_empty());
    let query = parameters.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let mut found = Vec::new();
    for line in headers.unwrap_or_default().lines() {
        let (name, value) = line.split_once([':', '=']).ok_or("a header is NAME=VALUE or NAME: VALUE")?;
        found.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
    }
    Ok(Some(Request {
        method: method.unwrap_or("GET").to_owned(),
        path: path.to_owned(),
        headers: found,
        query: query.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_from_what_is_given() {
        assert_eq!(request(None, None, None), Ok(None));
        let one = request(None, Some("/a/b?x=1&y"), Some("End-User=jason\nhost: web:80")).unwrap().unwrap();
        assert_eq!((one.method.as_str(), one.path.as_str()), ("GET", "/a/b"));
        assert_eq!(one.query, [("x".to_owned(), "1".to_owned()), ("y".to_owned(), String::new())]);
        assert_eq!(one.headers[0], ("end-user".to_owned(), "jason".to_owned()));
        assert_eq!(one.headers[1], ("host".to_owned(), "web:80".to_owned()));
        assert!(request(None, Some("a"), None).is_err());
        assert!(request(None, None, Some("x")).is_err());
    }
}
