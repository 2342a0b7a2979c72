//! `sidecars.injection` of a gateway's file.

use std::collections::BTreeMap;

use eastway_model::vip::VipRange;
use eastway_registry::diagnostic::Code;
use eastway_registry::yaml::{At, Context, Field};
use serde::Serialize;

use crate::config::file::{InjectionSection, PullPolicyWord, QuantitiesSection};

/// Longest image name with its registry, tag and digest.
const MAX_IMAGE: usize = 512;

/// Sidecars in pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InjectionSettings {
    /// Their image.
    pub image: String,
    /// When it is pulled.
    pub pull_policy: PullPolicyWord,
    /// Addresses that are led to them, none twice; empty: all.
    pub ranges: Vec<VipRange>,
    /// `cpu` and `memory` that they ask for.
    pub requests: BTreeMap<&'static str, String>,
    /// `cpu` and `memory` that they may use.
    pub limits: BTreeMap<&'static str, String>,
}

/// What the section says.
pub(super) fn settings(section: &At<InjectionSection>, cx: &mut Context<'_>) -> Option<InjectionSettings> {
    let InjectionSection { image, pull_policy, ranges, requests, limits } = &section.value;
    let image = cx.required_parse(section.at, "image", image, "the image of sidecars", |text| {
        let good = |byte: u8| byte.is_ascii_graphic();
        match !text.is_empty() && text.len() <= MAX_IMAGE && text.bytes().all(good) {
            true => Ok(text.to_owned()),
            false => Err(format!("must be the name of an image, 1 to {MAX_IMAGE} characters without blanks")),
        }
    });
    let mut all: Vec<VipRange> = Vec::new();
    for range in cx.parse_items(ranges, str::parse::<VipRange>) {
        match all.iter().find(|other| other.overlaps(&range.value)) {
            Some(other) => cx.error(range.at, Code::Duplicate, format!("overlaps with {other}")),
            None => all.push(range.value),
        }
    }
    let (requests, limits) = (quantities(requests, cx), quantities(limits, cx));
    let pull_policy = pull_policy.value().copied().unwrap_or_default();
    Some(InjectionSettings { image: image?, pull_policy, ranges: all, requests, limits })
}

fn quantities(field: &Field<QuantitiesSection>, cx: &mut Context<'_>) -> BTreeMap<&'static str, String> {
    let Some(section) = field.value() else { return BTreeMap::new() };
    let named = [("cpu", &section.cpu), ("memory", &section.memory)];
    let read = named.into_iter().filter_map(|(name, field)| Some((name, cx.parse(field.get()?, quantity)?)));
    read.collect()
}

/// Digits, perhaps a fraction, and a unit: the API server knows the rest.
fn quantity(text: &str) -> Result<String, String> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text.get(number.len()..).unwrap_or_default();
    let good = number.parse::<f64>().is_ok_and(|value| value.is_finite() && value > 0.0)
        && number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
        && ["", "m", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti"].contains(&unit);
    if good { Ok(text.to_owned()) } else { Err("must be a quantity as Kubernetes has it, e.g. 50m or 64Mi".to_owned()) }
}
