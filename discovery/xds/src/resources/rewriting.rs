//! Other hosts and paths: for the client, by a redirect, and for the backend.

use eastway_model::ServicePort;
use eastway_model::rules::route::{PathEdit, PathMatch, Redirect, RequestMatch, Rewrite, Scheme};
use eastway_proto::envoy::config::route::v3 as route;
use eastway_proto::envoy::r#type::matcher::v3 as matcher;
use route::redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier};

use super::matching::{quoted, regex};

/// An answer that sends the client elsewhere. A port that its scheme has by itself is not told (Gateway API,
/// `HTTPRequestRedirectFilter.port`).
pub(super) fn redirect(to: &Redirect, wanted: Option<&RequestMatch>, port: &ServicePort) -> route::RedirectAction {
    let scheme = to.scheme.unwrap_or(Scheme::Http);
    let told = match (to.port, to.scheme, &to.hostname) {
        (Some(port), _, _) => Some(port.get()),
        // What stands in the request's host would stay.
        (None, Some(scheme), None) => Some(scheme.port()),
        (None, None, Some(_)) => Some(port.number.get()),
        (None, _, _) => None,
    };
    let told = told.filter(|told| *told != scheme.port() || to.hostname.is_none());
    let code = match to.status {
        301 => RedirectResponseCode::MovedPermanently,
        303 => RedirectResponseCode::SeeOther,
        307 => RedirectResponseCode::TemporaryRedirect,
        308 => RedirectResponseCode::PermanentRedirect,
        _ => RedirectResponseCode::Found,
    };
    let path = to.path.as_ref().map(|path| match path {
        PathEdit::Full(path) => PathRewriteSpecifier::PathRedirect(path.to_string()),
        PathEdit::Matched(path) => PathRewriteSpecifier::PrefixRewrite(path.to_string()),
        PathEdit::Prefix(path) => match prefix(wanted, path) {
            Edit::Prefix(prefix) => PathRewriteSpecifier::PrefixRewrite(prefix),
            Edit::Regex(edit) => PathRewriteSpecifier::RegexRewrite(edit),
        },
    });
    route::RedirectAction {
        host_redirect: to.hostname.as_deref().unwrap_or_default().to_owned(),
        port_redirect: told.map_or(0, u32::from),
        response_code: code.into(),
        scheme_rewrite_specifier: to.scheme.map(|scheme| {
            let text = if scheme == Scheme::Https { "https" } else { "http" };
            SchemeRewriteSpecifier::SchemeRedirect(text.to_owned())
        }),
        path_rewrite_specifier: path,
        ..route::RedirectAction::default()
    }
}

/// Changes what the backend is asked for.
pub(super) fn rewrite(to: &Rewrite, wanted: Option<&RequestMatch>, action: &mut route::RouteAction) {
    use route::route_action::HostRewriteSpecifier;
    action.host_rewrite_specifier =
        to.hostname.as_ref().map(|name| HostRewriteSpecifier::HostRewriteLiteral(name.to_string()));
    match &to.path {
        None => {}
        Some(PathEdit::Full(path)) => {
            action.regex_rewrite = Some(substitute(r"^/.*$".to_owned(), path.replace('\\', r"\\")));
        }
        // Envoy exchanges what its matcher matched, of an exact path or an expression all.
        Some(PathEdit::Matched(path)) => action.prefix_rewrite = path.to_string(),
        Some(PathEdit::Prefix(path)) => match prefix(wanted, path) {
            Edit::Prefix(prefix) => action.prefix_rewrite = prefix,
            Edit::Regex(edit) => action.regex_rewrite = Some(edit),
        },
    }
}

enum Edit {
    Prefix(String),
    Regex(matcher::RegexMatchAndSubstitute),
}

/// Another prefix. Envoy only exchanges the matched bytes; so the slash between a prefix that goes away and what follows
/// needs a regular expression.
fn prefix(wanted: Option<&RequestMatch>, new: &str) -> Edit {
    let old = match wanted.and_then(|wanted| wanted.path.as_ref()) {
        Some(PathMatch::Prefix(prefix)) => prefix,
        _ => "/",
    };
    let new = new.trim_end_matches('/');
    if old == "/" {
        // The matched slash belongs to what follows.
        Edit::Prefix(format!("{new}/"))
    } else if new.is_empty() {
        Edit::Regex(substitute(format!("^{}/*", quoted(old)), "/".to_owned()))
    } else {
        Edit::Prefix(new.to_owned())
    }
}

fn substitute(pattern: String, substitution: String) -> matcher::RegexMatchAndSubstitute {
    matcher::RegexMatchAndSubstitute { pattern: Some(regex(pattern)), substitution }
}
