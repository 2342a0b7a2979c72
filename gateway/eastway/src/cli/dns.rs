//! `eastway dns`: what the gateway's DNS server does, and one question to it.

mod hookup;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use clap::{Args, Subcommand};
use eastway_dns::Transport;
use eastway_dns::client::{self as resolver, Answer, QueryType};
use serde::Serialize;

use super::client::{self, Target};
use super::exit::{self, Failure};
use super::output::{Output, Table};
use crate::admin::views::{DnsView, View};
use crate::human;

/// `eastway dns …`
#[derive(Debug, Subcommand)]
pub(super) enum DnsCommand {
    /// Ask for a name, as a client would
    #[command(after_help = "\
Examples:
  eastway dns query bookinfo/reviews                 the name of that service below clusterset.local
  eastway dns query reviews.shop.example             a name of your own
  eastway dns query _http._tcp.reviews.bookinfo.svc.clusterset.local SRV
  eastway dns query bookinfo/reviews --server 10.96.0.10:53   through the cluster's DNS

Exit codes: 0 there are records, 1 there are none.")]
    Query(QueryArgs),
    /// Show zones, what is answered and what is dropped; with --cluster, whether the cluster's resolver forwards to it
    Status(StatusArgs),
    /// Let a Kubernetes cluster's resolver forward our zones: CoreDNS (kubeadm, EKS, AKS, k3s), kube-dns, NodeLocal
    #[command(after_help = "\
Examples:
  eastway dns install --dry-run            see the change as a diff
  eastway dns install                      make it, and wait until names are answered
  eastway dns install --zone shop.example  with a zone of `dns.zones`

What is written stands between two markers; `eastway dns uninstall` takes exactly it out again. What was changed
by hand between them is never touched. Needs the right to change ConfigMaps in kube-system.")]
    Install(hookup::ChangeArgs),
    /// Take out what `eastway dns install` wrote
    Uninstall(hookup::ChangeArgs),
}

/// Arguments of `eastway dns query`.
#[derive(Debug, Args)]
pub(super) struct QueryArgs {
    /// A DNS name, or NAMESPACE/NAME of a service
    name: String,
    /// A, AAAA, SRV, TXT, SOA, … [default: A and AAAA]
    #[arg(value_name = "TYPE")]
    record: Option<QueryType>,
    /// Ask this server instead of the gateway's
    #[arg(long, value_name = "ADDRESS")]
    server: Option<SocketAddr>,
    /// Ask over TCP
    #[arg(long)]
    tcp: bool,
    /// How long to wait for an answer
    #[arg(long, default_value = "3s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    timeout: Duration,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

/// Arguments of `eastway dns status`.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Look at the resolver of a Kubernetes cluster instead
    #[arg(long)]
    cluster: bool,
    #[command(flatten)]
    resolver: hookup::ResolverArgs,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(command: &DnsCommand) -> Result<(), Failure> {
    match command {
        DnsCommand::Query(args) => query(args),
        DnsCommand::Status(args) if args.cluster => hookup::status(&args.resolver),
        DnsCommand::Status(args) => status(args),
        DnsCommand::Install(args) => hookup::install(args),
        DnsCommand::Uninstall(args) => hookup::uninstall(args),
    }
}

/// The answers as JSON shows them.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answers {
    name: String,
    server: SocketAddr,
    answers: Vec<AnswerView>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AnswerView {
    rcode: String,
    authoritative: bool,
    truncated: bool,
    transport: &'static str,
    elapsed_us: u64,
    /// RFC 8914.
    extended_errors: Vec<u16>,
    records: Vec<RecordView>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RecordView {
    name: String,
    ttl: u32,
    #[serde(rename = "type")]
    kind: String,
    data: String,
}

fn query(args: &QueryArgs) -> Result<(), Failure> {
    let server = match args.server {
        Some(server) => server,
        None => own_server(&args.target)?,
    };
    let name = match args.name.split_once('/') {
        Some((namespace, service)) => format!("{service}.{namespace}.svc.clusterset.local."),
        None => args.name.clone(),
    };
    let types = args.record.map_or_else(|| vec![QueryType::A, QueryType::Aaaa], |one| vec![one]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::failed(&error))?;
    let mut answers = Vec::new();
    for record in types {
        let question = async {
            if args.tcp {
                resolver::query_tcp(server, &name, record, args.timeout).await
            } else {
                resolver::query(server, &name, record, args.timeout).await
            }
        };
        answers.push(runtime.block_on(question).map_err(|error| Failure::failed(&error))?);
    }
    let views = answers.iter().map(answer_view).collect();
    let view = View::new("DnsAnswers", Answers { name: name.clone(), server, answers: views });
    let value = serde_json::to_value(&view).map_err(|error| Failure::failed(&error))?;
    args.output.print(&value, || Ok(table(&view.contents)))?;
    if answers.iter().any(|answer| !answer.records.is_empty()) { Ok(()) } else { Err(Failure::silent(exit::FAILED)) }
}

/// The gateway's own DNS address, as a client of this machine reaches it.
fn own_server(target: &Target) -> Result<SocketAddr, Failure> {
    let view: DnsView = client::view(&target.get("/dns")?)?;
    let Some(address) = view.listeners.first() else {
        return Err(Failure::because("the gateway runs no DNS server; name one with --server"));
    };
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => ip,
    };
    Ok(SocketAddr::new(ip, address.port()))
}

fn answer_view(answer: &Answer) -> AnswerView {
    let records = answer.records.iter().map(|record| {
        // The data says its type first.
        let text = record.data.to_string();
        let (kind, data) = text.split_once(' ').unwrap_or((&text, ""));
        RecordView { name: record.name.clone(), ttl: record.ttl, kind: kind.to_owned(), data: data.to_owned() }
    });
    AnswerView {
        rcode: answer.rcode.clone(),
        authoritative: answer.is_authoritative,
        truncated: answer.is_truncated,
        transport: match answer.transport {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
        },
        elapsed_us: u64::try_from(answer.elapsed.as_micros()).unwrap_or(u64::MAX),
        extended_errors: answer.extended_errors.clone(),
        records: records.collect(),
    }
}

fn table(answers: &Answers) -> String {
    let mut table = Table::new(&["NAME", "TTL", "TYPE", "DATA"]);
    for record in answers.answers.iter().flat_map(|answer| &answer.records) {
        table.row([record.name.clone(), record.ttl.to_string(), record.kind.clone(), record.data.clone()]);
    }
    let mut text = if table.is_empty() { String::new() } else { table.to_string() };
    let Some(first) = answers.answers.first() else { return text };
    let worst = answers.answers.iter().find(|answer| answer.rcode != "NOERROR").unwrap_or(first);
    let hint = match worst.rcode.as_str() {
        "NOERROR" if table.is_empty() => ": the name exists, but has no record of this type",
        "NOERROR" => "",
        "NXDOMAIN" => ": there is no such name; `eastway services` lists what there is",
        "SERVFAIL" if worst.extended_errors.contains(&14) => ": the server does not know yet; see `eastway status`",
        "REFUSED" => ": the name is in none of the server's zones",
        _ => "",
    };
    let elapsed = human::millis(Duration::from_micros(worst.elapsed_us));
    text.push_str(&format!("{} from {} over {} in {elapsed}{hint}\n", worst.rcode, answers.server, worst.transport));
    text
}

fn status(args: &StatusArgs) -> Result<(), Failure> {
    let answer = args.target.get("/dns")?;
    args.output.print(&answer, || Ok(status_table(&client::view(&answer)?)))
}

fn status_table(view: &DnsView) -> String {
    let mut text = String::new();
    let mut line =
        |name: &str, value: String| text.push_str(&format!("{name:<10} {}\n", crate::telemetry::Escaped(&value)));
    line("listeners", view.listeners.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
    line("zones", view.zones.join(", "));
    line("names", view.names.to_string());
    line("synced", if view.synced { "yes" } else { "no: every name is answered SERVFAIL" }.to_owned());
    if !view.waiting_for.is_empty() {
        line(
            "waiting",
            format!("for {}: names they might own are SERVFAIL, for 30 s at most", view.waiting_for.join(", ")),
        );
    }
    let counts = |map: &std::collections::BTreeMap<String, u64>| {
        map.iter().map(|(key, count)| format!("{key} {count}")).collect::<Vec<_>>().join(", ")
    };
    line("answers", counts(&view.answers));
    line("dropped", counts(&view.dropped));
    text
}
