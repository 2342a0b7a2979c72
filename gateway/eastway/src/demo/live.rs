//! What people see: a table that moves, and the summary of a scripted run.

use std::collections::{BTreeMap, VecDeque};
use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::Result;
use comfy_table::{ContentArrangement, Table, presets};

use super::bookinfo::{Call, Hop, Service};
use super::inside;
use super::report::{Report, Request};
use super::script::Script;
use super::story::{EDGE, ONPREM, Story};

/// Pause between two rounds of requests.
const ROUND: Duration = Duration::from_secs(1);
/// Answers that the table shows.
const SHOWN: usize = 12;
/// Clears the screen and goes to its top left corner.
const HOME: &str = "\x1b[2J\x1b[H";

/// Asks and shows until the task is dropped.
pub(super) async fn run(story: &Story, script: &Script<'_>) -> Result<()> {
    let terminal = std::io::stdout().is_terminal();
    let mut shown: VecDeque<Vec<String>> = VecDeque::new();
    let mut versions: BTreeMap<String, u64> = BTreeMap::new();
    let mut clock = tokio::time::interval(ROUND);
    for round in 1.. {
        clock.tick().await;
        let rows = ask(story, script, &mut versions).await?;
        if terminal {
            shown.extend(rows);
            while shown.len() > SHOWN {
                shown.pop_front();
            }
            write(&format!("{HOME}{}", screen(story, round, &shown, &versions)))?;
        } else {
            for row in rows {
                write(&format!("{}\n", row.join("  ").replace('\n', ", ")))?;
            }
        }
    }
    Ok(())
}

/// One round: the page from on-prem and from the edge.
async fn ask(story: &Story, script: &Script<'_>, versions: &mut BTreeMap<String, u64>) -> Result<Vec<Vec<String>>> {
    let mut links = BTreeMap::new();
    for cloud in &story.clouds {
        // A gateway that does not answer shows no links.
        for link in inside::links(cloud).await.unwrap_or_default() {
            let text = format!("{} {}", link.transport, link.remote);
            links.entry((cloud.name().to_owned(), link.peer)).or_insert(text);
        }
    }
    let mut rows = Vec::new();
    for (from, service) in [(ONPREM, Service::Productpage), (EDGE, Service::Kiosk)] {
        let call = script.call_beside("live", from, service).await?;
        if let Some(reviews) = call.answer().and_then(|answer| answer.find(Service::Reviews)) {
            *versions.entry(format!("{} from {}", reviews.by.version, reviews.by.cloud)).or_default() += 1;
        }
        rows.push(row(from, service, &call, &links));
    }
    script.forget_requests();
    Ok(rows)
}

fn row(from: &str, service: Service, call: &Call, links: &BTreeMap<(String, String), String>) -> Vec<String> {
    let request = Request::new(0.0, "live", from, call);
    let through = request.crossed.iter().map(|(from, to)| {
        let link = links.get(&(from.clone(), to.clone())).map_or("no link", String::as_str);
        format!("{from} to {to}: {link}")
    });
    let answered = request.error.unwrap_or_else(|| chain(&request.chain));
    let through = through.collect::<Vec<_>>().join("\n");
    vec![format!("{from} {}", service.name()), answered, through, format!("{:.1} ms", call.ms)]
}

fn chain(hops: &[Hop]) -> String {
    let names = hops.iter().map(|hop| format!("{} {} ({})", hop.service.name(), hop.version, hop.cloud));
    names.collect::<Vec<_>>().join(" > ")
}

fn screen(story: &Story, round: u64, rows: &VecDeque<Vec<String>>, versions: &BTreeMap<String, u64>) -> String {
    let mut table = new_table(&["request", "answered by", "through", "latency"]);
    for row in rows {
        table.add_row(row);
    }
    let total: u64 = versions.values().sum();
    let shares = versions.iter().map(|(name, count)| format!("{name}: {}%", count * 100 / total.max(1)));
    let memory = story.clouds.iter().map(|cloud| {
        let rss = cloud.gateway(0).and_then(super::lab::process::Process::rss).unwrap_or(0);
        format!("{}: {:.1} MB", cloud.name(), megabytes(rss))
    });
    format!(
        "Eastway: three clouds, the same private addresses, no route between them. Round {round}.\n{table}\nreviews   {}\ngateways  {}\n",
        shares.collect::<Vec<_>>().join("   "),
        memory.collect::<Vec<_>>().join("   "),
    )
}

fn megabytes(bytes: u64) -> f64 {
    f64::from(u32::try_from(bytes / 1024).unwrap_or(u32::MAX)) / 1024.0
}

fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header);
    table
}

/// A scripted run for people.
pub(super) fn summary(report: &Report) -> String {
    let mut steps = new_table(&["step", "", "measured"]);
    for step in &report.steps {
        steps.add_row([step.name, if step.ok { "ok" } else { "FAILED" }, &step.detail.to_string()]);
    }
    let mut clouds = new_table(&["cloud", "inbound", "routes of its pods", "links", "gateway memory"]);
    for cloud in &report.clouds {
        let links = cloud.gateway.links.iter().map(|link| format!("{} {} {}", link.peer, link.transport, link.remote));
        clouds.add_row([
            cloud.name.clone(),
            cloud.inbound.clone().unwrap_or_else(|| "none".to_owned()),
            cloud.routes.join("\n"),
            links.collect::<Vec<_>>().join("\n"),
            format!("{:.1} MB", megabytes(cloud.gateway.rss_bytes)),
        ]);
    }
    let failed = report.requests.iter().filter(|request| !request.is_ok()).count();
    format!(
        "{clouds}\n{steps}\n{} requests, {failed} failed while links were cut; first answer across clouds after {:.0} ms",
        report.requests.len(),
        report.first_cross_cloud_answer_ms,
    )
}

fn write(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}
