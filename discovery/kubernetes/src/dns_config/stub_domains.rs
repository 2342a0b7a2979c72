//! What `eastway dns install` writes into `stubDomains` of kube-dns: entries in front of all others, so that taking
//! them out leaves what was there to the byte.

use std::collections::BTreeMap;

use super::{PlanError, State, Wanted};

/// What kube-dns with these stub domains does; `None`: it has none.
///
/// # Errors
/// [`PlanError`]
pub fn state(text: Option<&str>, wanted: &Wanted) -> Result<State, PlanError> {
    let stubs = parse(text)?;
    let installed = wanted.zones.iter().filter(|zone| leads_to(&stubs, zone, wanted)).count();
    if installed == wanted.zones.len() {
        return Ok(State::Installed);
    }
    check_free(&stubs, wanted)?;
    Ok(if installed > 0 { State::Outdated } else { State::Absent })
}

/// The text that makes kube-dns do it; `None` if it does already.
///
/// # Errors
/// [`PlanError`]
pub fn install(text: Option<&str>, wanted: &Wanted) -> Result<Option<String>, PlanError> {
    let stubs = parse(text)?;
    check_free(&stubs, wanted)?;
    let missing: Vec<&String> = wanted.zones.iter().filter(|zone| !leads_to(&stubs, zone, wanted)).collect();
    if missing.is_empty() {
        return Ok(None);
    }
    let (open, rest) = split(text);
    let mut new = open.to_owned();
    for (index, zone) in missing.iter().enumerate() {
        let is_last = index + 1 == missing.len() && stubs.is_empty();
        new.push_str(&entry(zone, wanted));
        new.push_str(if is_last { "" } else { ", " });
    }
    Ok(Some(new + rest))
}

/// The text without the entries that lead to our server: `Some(None)` if nothing is left of it; `None` if there are none.
///
/// # Errors
/// [`PlanError`]
pub fn uninstall(text: Option<&str>, wanted: &Wanted) -> Result<Option<Option<String>>, PlanError> {
    let stubs = parse(text)?;
    let Some(text) = text else { return Ok(None) };
    let mut new = text.to_owned();
    for zone in wanted.zones.iter().filter(|zone| leads_to(&stubs, zone, wanted)) {
        let entry = entry(zone, wanted);
        match new.find(&entry) {
            Some(at) => {
                let after = new.get(at + entry.len()..).unwrap_or_default();
                let after = after.strip_prefix(", ").unwrap_or(after).to_owned();
                new.replace_range(at.., &after);
            }
            // The same, written by somebody else.
            None => return Err(PlanError::Edited { line: 1 }),
        }
    }
    if new == text {
        return Ok(None);
    }
    Ok(Some(if parse(Some(&new))?.is_empty() { None } else { Some(new) }))
}

type Stubs = BTreeMap<String, Vec<String>>;

fn parse(text: Option<&str>) -> Result<Stubs, PlanError> {
    match text.map(str::trim) {
        None | Some("") => Ok(Stubs::new()),
        Some(text) => serde_json::from_str(text).map_err(|error| PlanError::Json(error.to_string())),
    }
}

fn check_free(stubs: &Stubs, wanted: &Wanted) -> Result<(), PlanError> {
    for zone in &wanted.zones {
        if let Some(servers) = stubs.get(zone)
            && !leads_to(stubs, zone, wanted)
        {
            return Err(PlanError::StubTaken { zone: zone.clone(), servers: servers.join(", ") });
        }
    }
    Ok(())
}

fn leads_to(stubs: &Stubs, zone: &str, wanted: &Wanted) -> bool {
    stubs.get(zone).is_some_and(|servers| *servers == [wanted.server.to_string()])
}

fn entry(zone: &str, wanted: &Wanted) -> String {
    format!("\"{zone}\": [\"{}\"]", wanted.server)
}

/// What comes before the first entry, and the rest.
fn split(text: Option<&str>) -> (&str, &str) {
    text.and_then(|text| Some(text.split_at(text.find('{')? + 1))).unwrap_or(("{", "}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(server: &str) -> Wanted {
        Wanted { zones: vec!["clusterset.local".to_owned()], server: server.parse().unwrap() }
    }

    #[test]
    fn what_is_put_in_is_taken_out_to_the_byte() {
        let wanted = wanted("10.96.0.53");
        for (before, after) in [
            (None, "{\"clusterset.local\": [\"10.96.0.53\"]}"),
            (
                Some("{\"acme.local\" : [\"1.2.3.4\"]}\n"),
                "{\"clusterset.local\": [\"10.96.0.53\"], \"acme.local\" : [\"1.2.3.4\"]}\n",
            ),
        ] {
            assert_eq!(state(before, &wanted), Ok(State::Absent));
            assert_eq!(install(before, &wanted), Ok(Some(after.to_owned())));
            assert_eq!(state(Some(after), &wanted), Ok(State::Installed));
            assert_eq!(install(Some(after), &wanted), Ok(None));
            assert_eq!(uninstall(Some(after), &wanted), Ok(Some(before.map(str::to_owned))));
            assert_eq!(uninstall(before, &wanted), Ok(None));
        }
    }

    #[test]
    fn what_others_wrote_is_left_alone() {
        let wanted = wanted("10.96.0.53");
        let taken = "{\"clusterset.local\": [\"10.0.0.1\", \"10.0.0.2\"]}";
        assert!(matches!(install(Some(taken), &wanted), Err(PlanError::StubTaken { .. })));
        assert_eq!(uninstall(Some(taken), &wanted), Ok(None));
        let spaced = "{\"clusterset.local\":[\"10.96.0.53\"]}";
        assert_eq!(state(Some(spaced), &wanted), Ok(State::Installed));
        assert!(uninstall(Some(spaced), &wanted).is_err());
        for bad in ["[]", "{", "{\"a\": \"b\"}"] {
            assert!(matches!(install(Some(bad), &wanted), Err(PlanError::Json(_))), "{bad}");
        }
    }
}
