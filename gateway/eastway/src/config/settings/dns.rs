//! `dns`: zones of one's own, and what their names lead to.

use eastway_model::rules::NameRule;
use eastway_model::{ClusterName, ServiceKey};
use eastway_registry::diagnostic::Code;
use eastway_registry::yaml::{At, Context};

use super::DnsSettings;
use crate::config::file::{DnsSection, NameSection};
use crate::config::value::Fqdn;

pub(super) fn dns_settings(section: Option<&DnsSection>, cx: &mut Context<'_>) -> DnsSettings {
    let Some(dns) = section else { return DnsSettings::default() };
    let mut zones: Vec<Fqdn> = Vec::new();
    for zone in cx.parse_items(&dns.zones, Fqdn::parse) {
        let reserved = ["cluster.local", "clusterset.local"].map(Fqdn::parse);
        if let Some(reserved) = reserved.iter().flatten().find(|other| zone.value.is_in(other)) {
            let help = "choose a zone of your own, e.g. shop.example";
            cx.error_help(zone.at, Code::Forbidden, format!("{reserved} has a meaning of its own"), help);
        } else if let Some(other) = zones.iter().find(|other| zone.value.is_in(other) || other.is_in(&zone.value)) {
            cx.error(zone.at, Code::Duplicate, format!("overlaps with the zone {other}"));
        } else {
            zones.push(zone.value);
        }
    }
    let mut names: Vec<NameRule> = Vec::new();
    for section in dns.names.items() {
        if let Some(name) = name_settings(section, &zones, cx) {
            if let Some(other) = names.iter().find(|other| other.fqdn == name.fqdn) {
                let help = "a name leads to one service; without `cluster` it leads to every cluster that has it";
                cx.error_help(
                    section.at,
                    Code::Duplicate,
                    format!("{} already leads to {}", other.fqdn, other.service),
                    help,
                );
            } else {
                names.push(name);
            }
        }
    }
    DnsSettings { zones, names }
}

fn name_settings(section: &At<NameSection>, zones: &[Fqdn], cx: &mut Context<'_>) -> Option<NameRule> {
    let rule = &section.value;
    let what = "the DNS name, e.g. reviews.shop.example";
    let name = cx.required_parse(section.at, "name", &rule.name, what, Fqdn::parse);
    let service = cx.required_parse(section.at, "service", &rule.service, "namespace/name", str::parse::<ServiceKey>);
    let cluster = rule.cluster.get().and_then(|text| cx.parse(text, ClusterName::parse));
    let name = name?;
    if !zones.iter().any(|zone| name.is_in(zone)) {
        let at = rule.name.get().map_or(section.at, |name| name.at);
        let parent = name.as_str().split_once('.').map_or(name.as_str(), |(_, parent)| parent);
        let help = format!("add {parent} to dns.zones");
        cx.error_help(at, Code::Conflict, format!("{name} is in none of dns.zones"), help);
    }
    Some(NameRule { fqdn: name.as_str().into(), service: service?, cluster })
}
