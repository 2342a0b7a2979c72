//! `eastway proxy-status` and `eastway proxy-config`: what sidecars were told, and what they think of it.

mod tables;

use clap::{Args, ValueEnum as _};

use super::client::{self, Target, encode};
use super::exit::{self, Failure};
use super::output::{Output, Table};
use super::show::now;
use crate::admin::sidecars::{
    RefusedView, ResourceKind, SidecarConfigView, SidecarKindView, SidecarState, SidecarView,
};
use crate::admin::views::Items;
use crate::human;
use crate::telemetry::Escaped;

/// Kinds that have a column.
const KINDS: [&str; 5] = ["cds", "eds", "lds", "rds", "sds"];

/// Arguments of `eastway proxy-status`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eastway proxy-status                   all sidecars of this gateway, a line each
  eastway proxy-status web-1.shop        one of them, with versions and counts

CDS are clusters, EDS endpoints, LDS listeners, RDS routes, SDS secrets. Of each a sidecar is
  SYNCED    it has taken all that it was sent
  STALE     it has not answered yet: for clusters some 100 ms are normal, it warms them first
  NOT SENT  it asked, and there is nothing to send yet
  REFUSED   it runs on with what it had before; the reason, which is the proxy's own, is below
  -         it did not ask

A sidecar is connected to one gateway: with several, ask each. Exit code 3: something is refused.")]
pub(super) struct StatusArgs {
    /// Only this sidecar: NAME.NAMESPACE
    node: Option<String>,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

/// Arguments of `eastway proxy-config`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eastway proxy-config clusters web-1.shop
  eastway proxy-config endpoints web-1.shop --match reviews
  eastway proxy-config routes web-1.shop -o json      all fields, in Envoy's JSON

It is what the gateway told the sidecar; `eastway proxy-status` says whether that was taken. What the
proxy does with it, and how often, its own administration says:
  curl --unix-socket state/envoy-admin.sock http://envoy/clusters
Keys are never shown: a workload's key is its sidecar's alone.")]
pub(super) struct ConfigArgs {
    /// What to show
    #[arg(value_enum)]
    kind: ResourceKind,
    /// The sidecar: NAME.NAMESPACE
    node: String,
    /// Only resources whose name contains this
    #[arg(long = "match", value_name = "TEXT")]
    matching: Option<String>,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

pub(super) fn status(args: &StatusArgs) -> Result<(), Failure> {
    let query = args.node.as_ref().map_or_else(String::new, |node| format!("?node={}", encode(node)));
    let answer = args.target.get(&format!("/proxy-status{query}"))?;
    let sidecars = client::view::<Items<SidecarView>>(&answer)?.items;
    args.output.print(&answer, || {
        Ok(match &args.node {
            Some(_) => sidecars.iter().map(|sidecar| details(sidecar, now())).collect::<Vec<_>>().join("\n"),
            None => overview(&sidecars, now()),
        })
    })?;
    let is_refused = |sidecar: &SidecarView| sidecar.kinds.iter().any(|kind| kind.refused.is_some());
    if sidecars.iter().any(is_refused) { Err(Failure::silent(exit::WARNINGS)) } else { Ok(()) }
}

pub(super) fn config(args: &ConfigArgs) -> Result<(), Failure> {
    let kind = args.kind.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    let mut answer = args.target.get(&format!("/proxy-config?node={}&kind={kind}", encode(&args.node)))?;
    if let (Some(text), Some(items)) =
        (&args.matching, answer.get_mut("items").and_then(serde_json::Value::as_array_mut))
    {
        let name = |item: &serde_json::Value| item.get("name").and_then(serde_json::Value::as_str).map(str::to_owned);
        items.retain(|item| name(item).is_some_and(|name| name.contains(text.as_str())));
    }
    args.output.print(&answer, || {
        let view = client::view::<SidecarConfigView>(&answer)?;
        let mut text = tables::of(args.kind, &view.items, now()).or(&format!("no {kind}"));
        if args.kind == ResourceKind::Secrets {
            text.push_str(
                "Its key, and the bundle of its own trust domain, are its agent's: the gateway has neither.\n",
            );
        }
        if let Some(refused) = &view.refused {
            text.push_str(&format!("{}\n", Escaped(&format!("refused: {}", refusal(refused)))));
        }
        Ok(text)
    })
}

fn overview(sidecars: &[SidecarView], now: u64) -> String {
    let mut table = Table::new(&["NODE", "PROXY", "CDS", "EDS", "LDS", "RDS", "SDS", "CONNECTED", "ADDRESS"]);
    let mut refused = String::new();
    for sidecar in sidecars {
        let [cds, eds, lds, rds, sds] = KINDS.map(|kind| {
            let known = sidecar.kinds.iter().find(|known| known.kind == kind);
            known.map(|known| state(known, now)).unwrap_or_default()
        });
        let connected = human::age(sidecar.since, now);
        let (proxy, address) = (sidecar.proxy.clone(), sidecar.address.clone());
        table.row([short(&sidecar.node).to_owned(), proxy, cds, eds, lds, rds, sds, connected, address]);
        for kind in &sidecar.kinds {
            let Some(what) = &kind.refused else { continue };
            let since = human::age(kind.since, now);
            let line = format!("{} refuses {} for {since}: {}", short(&sidecar.node), kind.kind, refusal(what));
            refused.push_str(&format!("{}\n", Escaped(&line)));
        }
    }
    let nobody = "no sidecar is connected to this gateway; `eastway sidecar --config FILE` runs one";
    table.or(nobody) + &refused
}

fn details(sidecar: &SidecarView, now: u64) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| text.push_str(&format!("{name:<12} {}\n", Escaped(value)));
    line("node", &sidecar.node);
    line("proxy", if sidecar.proxy.is_empty() { "it does not say" } else { &sidecar.proxy });
    line("identity", &sidecar.identity);
    line("certificate", &format!("serial {}, ends {}", sidecar.serial, human::until(sidecar.not_after, now)));
    line("connected", &format!("from {}, for {}", sidecar.address, human::age(sidecar.since, now)));
    let mut table =
        Table::new(&["KIND", "STATE", "SINCE", "RESOURCES", "SENT", "ACKNOWLEDGED", "UNANSWERED", "REFUSALS"]);
    let number = |number: Option<u64>| number.map(|number| number.to_string()).unwrap_or_default();
    for kind in &sidecar.kinds {
        table.row([
            kind.kind.clone(),
            word(kind.state).to_owned(),
            human::age(kind.since, now),
            number(kind.resources),
            number(kind.sent),
            number(kind.acknowledged),
            kind.unanswered.to_string(),
            kind.refusals.to_string(),
        ]);
    }
    text.push_str(&table.or("it has not asked for anything yet"));
    for kind in &sidecar.kinds {
        if let Some(refused) = &kind.refused {
            let line = format!("{} version {} refused: {}", kind.kind, refused.version, refusal(refused));
            text.push_str(&format!("{}\n", Escaped(&line)));
        }
    }
    text
}

/// What the proxy said, and of what.
fn refusal(refused: &RefusedView) -> String {
    let reason = if refused.reason.is_empty() { "it does not say why" } else { refused.reason.trim() };
    if refused.names.is_empty() {
        reason.to_owned()
    } else {
        format!("{reason}; sent were {}", refused.names.join(", "))
    }
}

fn state(kind: &SidecarKindView, now: u64) -> String {
    let word = word(kind.state);
    if kind.state == SidecarState::Stale { format!("{word} {}", human::age(kind.since, now)) } else { word.to_owned() }
}

fn word(state: SidecarState) -> &'static str {
    match state {
        SidecarState::NotSent => "NOT SENT",
        SidecarState::Synced => "SYNCED",
        SidecarState::Stale => "STALE",
        SidecarState::Refused => "REFUSED",
    }
}

/// A node's id without the role that all have.
fn short(node: &str) -> &str {
    node.split_once('~').map_or(node, |(_, name)| name)
}
