//! A request's way through the rules of a service, as the API shows it.

use eastway_model::rules::route::Request;
use hyper::Method;
use hyper::header::{HeaderName, HeaderValue};
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

/// Why there can be no such request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// RFC 9110, section 9.1.
    #[error("method {0:?} is not a method: it is one word, e.g. GET")]
    Method(String),
    /// RFC 9110, section 4.2.
    #[error("path {0:?} is not a path: it begins with / and has no spaces")]
    Path(String),
    /// RFC 9110, section 5.
    #[error("header {0:?} is not a header: it is NAME=VALUE or NAME: VALUE, e.g. end-user=jason")]
    Header(String),
}

/// A request of which the parts that are not given are as plain as can be; `None`: nothing is asked about one.
///
/// # Errors
/// [`RequestError`].
pub fn request(
    method: Option<&str>,
    path: Option<&str>,
    headers: Option<&str>,
) -> Result<Option<Request>, RequestError> {
    if method.is_none() && path.is_none() && headers.is_none() {
        return Ok(None);
    }
    let method = method.unwrap_or("GET");
    if Method::from_bytes(method.as_bytes()).is_err() {
        return Err(RequestError::Method(method.to_owned()));
    }
    let whole = path.unwrap_or("/");
    if !whole.starts_with('/') || whole.contains(|each: char| each.is_whitespace() || each.is_control()) {
        return Err(RequestError::Path(whole.to_owned()));
    }
    let (path, query) = whole.split_once('?').unwrap_or((whole, ""));
    let parameters = query.split('&').filter(|pair| !pair.is_empty());
    let query = parameters.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let mut found = Vec::new();
    for line in headers.into_iter().flat_map(|text| text.strip_suffix('\n').unwrap_or(text).split('\n')) {
        found.push(header(line).ok_or_else(|| RequestError::Header(line.to_owned()))?);
    }
    Ok(Some(Request {
        method: method.to_owned(),
        path: path.to_owned(),
        headers: found,
        query: query.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
    }))
}

/// Its name in lower case, and its value.
fn header(line: &str) -> Option<(String, String)> {
    let (name, value) = line.split_once([':', '='])?;
    let (name, value) = (HeaderName::from_bytes(name.trim().as_bytes()).ok()?, value.trim());
    HeaderValue::from_bytes(value.as_bytes()).ok()?;
    Some((name.as_str().to_owned(), value.to_owned()))
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
        let empty = request(None, None, Some("x=")).unwrap().unwrap();
        assert_eq!(empty.headers, [("x".to_owned(), String::new())]);
    }

    #[test]
    fn what_no_request_can_be_is_refused_by_its_part() {
        for path in ["a", "", "/a b", "/a\n"] {
            assert_eq!(request(None, Some(path), None), Err(RequestError::Path(path.to_owned())));
        }
        for method in ["", "a b", "GET\t"] {
            assert_eq!(request(Some(method), None, None), Err(RequestError::Method(method.to_owned())));
        }
        for header in ["x", "=x", ": x", "a b=c", "a=\u{7}", ""] {
            let error = request(None, None, Some(&format!("good=1\n{header}\n"))).unwrap_err();
            assert_eq!(error, RequestError::Header(header.to_owned()));
        }
    }
}
