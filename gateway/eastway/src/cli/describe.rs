//! `eastway describe`: where a connection would go, and why not elsewhere.

use clap::Args;

use super::client::{self, Target, encode};
use super::exit::Failure;
use super::output::{Output, Table};
use super::show::labels;
use crate::admin::rules::{self, RulesView};
use crate::admin::views::{CandidateView, Description, EndpointChoice};
use crate::telemetry::Escaped;

/// Arguments of `eastway describe`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eastway describe bookinfo/reviews                  by namespace and name
  eastway describe reviews.shop.example --port 9080  by a name that our DNS answers
  eastway describe 242.0.13.7                        by a virtual address
  eastway describe bookinfo/ratings --from bookinfo/bookinfo-reviews --zone a
  eastway describe bookinfo/ratings --from bookinfo/productpage --from-cluster gke   may it?
  eastway describe bookinfo/reviews --header end-user=jason --path /   a request's way through the rules

It uses the same rules as connections do, on what the gateway knows now.")]
pub(super) struct DescribeArgs {
    /// NAMESPACE/NAME, a DNS name or a virtual address
    #[arg(value_name = "SERVICE")]
    service: String,
    /// Port of the service [default: its first]
    #[arg(long)]
    port: Option<u16>,
    /// The client: NAMESPACE or NAMESPACE/SERVICEACCOUNT
    #[arg(long, value_name = "CLIENT")]
    from: Option<String>,
    /// The client's cluster, for the access rules of our own services [default: this one]
    #[arg(long, value_name = "CLUSTER")]
    from_cluster: Option<String>,
    /// The client's topology zone
    #[arg(long)]
    zone: Option<String>,
    /// A request's header, to follow it through the rules; may be given several times
    #[arg(long, value_name = "NAME=VALUE")]
    header: Vec<String>,
    /// Its path, with its query
    #[arg(long)]
    path: Option<String>,
    /// Its method
    #[arg(long)]
    method: Option<String>,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

pub(super) fn describe(args: &DescribeArgs) -> Result<(), Failure> {
    let headers = (!args.header.is_empty()).then(|| args.header.join("\n"));
    // The gateway would say the same; a mistake of whoever asks is told before anything is asked.
    rules::request(args.method.as_deref(), args.path.as_deref(), headers.as_deref())
        .map_err(|error| Failure::usage(error.to_string()))?;
    let mut path = format!("/describe?service={}", encode(&args.service));
    let mut add = |key: &str, value: &str| path.push_str(&format!("&{key}={}", encode(value)));
    if let Some(port) = args.port {
        add("port", &port.to_string());
    }
    if let Some(from) = &args.from {
        match from.split_once('/') {
            Some((namespace, account)) => {
                add("namespace", namespace);
                add("serviceAccount", account);
            }
            None => add("namespace", from),
        }
    }
    if let Some(cluster) = &args.from_cluster {
        add("cluster", cluster);
    }
    if let Some(zone) = &args.zone {
        add("zone", zone);
    }
    for (key, value) in [("path", &args.path), ("method", &args.method), ("headers", &headers)] {
        if let Some(value) = value {
            add(key, value);
        }
    }
    let answer = args.target.get(&path)?;
    args.output.print(&answer, || Ok(explain(&client::view(&answer)?)))
}

fn explain(view: &Description) -> String {
    let mut text = format!("{}, port {}, from {}\n", Escaped(&view.service), view.port, Escaped(&view.source));
    let mut line = |name: &str, values: &[String]| {
        if !values.is_empty() {
            text.push_str(&format!("{name:<10} {}\n", Escaped(&values.join(", "))));
        }
    };
    line("names", &view.dns_names);
    line("addresses", &view.vips.iter().map(ToString::to_string).collect::<Vec<_>>());
    line("rule", std::slice::from_ref(&view.policy));
    line("access", view.access.as_slice());
    line("sidecars", view.sidecars.as_slice());
    view.istio.iter().for_each(|told| line("istio", std::slice::from_ref(told)));
    if view.candidates.is_empty() {
        text.push_str("\nNo endpoint: connections are refused.\n");
    } else {
        let mut table = Table::new(&["SHARE", "CLUSTER", "LABELS", "READY", "PATH", "WHY"]);
        for candidate in &view.candidates {
            table.row(candidate_row(candidate));
        }
        text.push_str(&format!("\nConnections go to\n{table}"));
    }
    if view.candidates.iter().any(|candidate| !candidate.endpoints.is_empty()) {
        let mut table = Table::new(&["SHARE", "CLUSTER", "ENDPOINT", "ADDRESS", "WHY NOT"]);
        for candidate in &view.candidates {
            candidate.endpoints.iter().for_each(|endpoint| table.row(endpoint_row(candidate, endpoint)));
        }
        text.push_str(&format!("\nby their endpoints\n{table}"));
    }
    if !view.rejected.is_empty() {
        let mut table = Table::new(&["CLUSTER", "WHAT", "WHY NOT"]);
        for rejected in &view.rejected {
            let what = if rejected.what.is_empty() { "all endpoints".to_owned() } else { rejected.what.clone() };
            table.row([rejected.cluster.clone(), what, rejected.reason.clone()]);
        }
        text.push_str(&format!("\nand not to\n{table}"));
    }
    if let Some(rules) = &view.rules {
        text.push_str(&explain_rules(rules));
    }
    for warning in &view.warnings {
        text.push_str(&format!("\nwarning: {}\n", Escaped(warning)));
    }
    text
}

/// All rules in their order, with a request's way through them if one was asked about.
fn explain_rules(view: &RulesView) -> String {
    let mut text = String::new();
    if !view.rules.is_empty() {
        let mut table = Table::new(&["RULE", "OF", "DOES", if view.outcome.is_some() { "WHY NOT" } else { "" }]);
        for rule in &view.rules {
            let verdict = rule.why_not.clone().unwrap_or_else(|| if rule.chosen { "this one" } else { "" }.to_owned());
            table.row([rule.rule.clone(), rule.matches.clone(), rule.does.clone(), verdict]);
        }
        text.push_str(&format!("\nSidecars try these rules in this order\n{table}"));
    }
    if let Some(outcome) = &view.outcome {
        text.push_str(&format!("\nThe request: {}\n", Escaped(outcome)));
    }
    for status in &view.statuses {
        text.push_str(&format!("{}\n", Escaped(status)));
    }
    text
}

fn candidate_row(candidate: &CandidateView) -> [String; 6] {
    let cluster = if candidate.local { format!("{} (here)", candidate.cluster) } else { candidate.cluster.clone() };
    [
        format!("{:.1} %", candidate.share),
        cluster,
        labels(&candidate.subset),
        candidate.ready.to_string(),
        candidate.path.clone(),
        candidate.reason.clone(),
    ]
}

fn endpoint_row(candidate: &CandidateView, endpoint: &EndpointChoice) -> [String; 5] {
    let share = match (endpoint.share, &endpoint.reason) {
        (Some(share), _) => format!("{share:.1} %"),
        (None, Some(_)) => "none".to_owned(),
        (None, None) => format!("{} decides", candidate.cluster),
    };
    [
        share,
        candidate.cluster.clone(),
        endpoint.id.clone(),
        endpoint.address.map_or_else(String::new, |address| address.to_string()),
        endpoint.reason.clone().unwrap_or_default(),
    ]
}
