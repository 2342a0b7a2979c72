//! The page a browser sees.

use super::{Answer, Call, Outcome, Service};

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem;color:#222}\
h1{margin-bottom:0}table{border-collapse:collapse}td,th{padding:.2rem .8rem;text-align:left;border-bottom:1px solid #ddd}\
blockquote{margin:.5rem 0;padding-left:1rem;border-left:3px solid #ccc}.red{color:#c00}.black{color:#000}\
.cloud{background:#eef;border-radius:.3rem;padding:0 .4rem}.error{color:#c00}footer{margin-top:2rem;color:#666}";

/// HTML of a productpage answer, with who served what at the bottom.
pub(super) fn render(answer: &Answer) -> String {
    let title = text(&answer.content, "title");
    let details = part(answer, Service::Details, details);
    let reviews = part(answer, Service::Reviews, reviews);
    let chain = chain(answer);
    format!(
        "<!doctype html><html lang=en><head><meta charset=utf-8><title>{title}</title><style>{STYLE}</style></head>\
         <body><h1>{title}</h1>{details}<h2>Reviews</h2>{reviews}<h2>Who answered</h2>{chain}\
         <footer>Reload: reviews come from v1 (no stars), v2 (black) and v3 (red) by weight.</footer></body></html>"
    )
}

fn part(answer: &Answer, service: Service, show: impl Fn(&Answer) -> String) -> String {
    let name = service.fqdn();
    match answer.calls.iter().find(|call| call.name == name).map(|call| &call.outcome) {
        Some(Outcome::Answer(answer)) => show(answer),
        Some(Outcome::Error(error)) => format!("<p class=error>{}: {}</p>", service.name(), escape(error)),
        None => String::new(),
    }
}

fn details(answer: &Answer) -> String {
    let content = &answer.content;
    format!("<p>by {}, {}, {} pages</p>", text(content, "author"), text(content, "year"), text(content, "pages"))
}

fn reviews(answer: &Answer) -> String {
    let colour = text(&answer.content, "stars");
    let ratings = answer.find(Service::Ratings).map(|ratings| &ratings.content);
    let list = answer.content.get("reviews").and_then(serde_json::Value::as_array);
    let mut html = String::new();
    for review in list.into_iter().flatten() {
        let reviewer = text(review, "reviewer");
        let stars = ratings.and_then(|ratings| ratings.get(&reviewer)).and_then(serde_json::Value::as_u64);
        let stars = stars.map(|stars| "★".repeat(usize::try_from(stars.min(5)).unwrap_or(5))).unwrap_or_default();
        let said = text(review, "text");
        html.push_str(&format!(
            "<blockquote>{said}<br><small>{reviewer}</small> <span class={colour}>{stars}</span></blockquote>"
        ));
    }
    html
}

fn chain(answer: &Answer) -> String {
    let mut rows = String::new();
    for hop in answer.chain() {
        rows.push_str(&format!(
            "<tr><td>{}</td><td>{}</td><td><span class=cloud>{}</span></td></tr>",
            hop.service.name(),
            hop.version,
            escape(&hop.cloud)
        ));
    }
    let errors = answer.calls.iter().filter_map(Call::answer).find_map(Answer::first_error);
    let errors = errors.map(|error| format!("<p class=error>{}</p>", escape(&error))).unwrap_or_default();
    format!("<table><tr><th>service</th><th>version</th><th>cloud</th></tr>{rows}</table>{errors}")
}

/// A field as escaped text, empty if it is missing.
fn text(content: &serde_json::Value, field: &str) -> String {
    match content.get(field) {
        Some(serde_json::Value::String(text)) => escape(text),
        Some(value) => escape(&value.to_string()),
        None => String::new(),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}
