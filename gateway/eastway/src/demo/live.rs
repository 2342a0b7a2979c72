//! What people see: a table that moves, and the summary of a scripted run.

use std::collections::{BTreeMap, VecDeque};
use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::Result;
use comfy_table::{ContentArrangement, Table, presets};

use super::bookinfo::{Call, END_USER, Hop, Service};
use super::inside;
use super::lab::Isolation;
use super::report::{LinkReport, Report, Request};
use super::routing::USER;
use super::scenes::Play;
use super::script::Script;
use super::story::{EDGE, ONPREM, Story, WEIGHTS};

/// Pause between two rounds of requests.
const ROUND: Duration = Duration::from_secs(1);
/// Answers that are shown; with the rest they fit 24 lines.
const SHOWN: usize = 10;
const SHOWN_WITH_ENVOY: usize = 8;
/// Clears the screen and goes to its top left corner.
const HOME: &str = "\x1b[2J\x1b[H";

/// Links as both ends see them: (cloud, peer).
type Links = BTreeMap<(String, String), LinkReport>;

/// One that was asked: who asked where, for what, and how it went.
struct Asked {
    from: &'static str,
    user: Option<&'static str>,
    service: Service,
    call: Call,
}

/// Asks and shows until the task is dropped. `page` is the address for browsers.
pub(super) async fn run(story: &Story, script: &Script<'_>, page: &str) -> Result<()> {
    let mut play = match story.envoy {
        Some(_) => Some(Play::begin(script).await?),
        None => None,
    };
    if let Some(play) = &play {
        eprintln!("{}\n{}", how_to_try(page), play.title());
    }
    let terminal = std::io::stdout().is_terminal();
    let mut shown: VecDeque<String> = VecDeque::new();
    let mut versions: BTreeMap<String, u64> = BTreeMap::new();
    let mut clock = tokio::time::interval(ROUND);
    loop {
        clock.tick().await;
        if let Some(play) = &mut play {
            if play.go_on(script).await? {
                versions.clear();
                if !terminal {
                    eprintln!("{}", play.title());
                }
            }
            play.count(script).await?;
        }
        let links = links(story).await;
        let calls = ask(script, &mut versions).await?;
        if let Some(play) = &mut play {
            calls.iter().filter(|asked| asked.user.is_none()).for_each(|asked| play.add(&asked.call));
        }
        if !terminal {
            for asked in &calls {
                write(&row(asked, &links))?;
            }
            continue;
        }
        shown.extend(calls.iter().map(answer));
        while shown.len() > if story.envoy.is_some() { SHOWN_WITH_ENVOY } else { SHOWN } {
            shown.pop_front();
        }
        write(&format!("{HOME}{}", screen(story, (page, play.as_ref()), &links, &shown, &versions)))?;
    }
}

async fn links(story: &Story) -> Links {
    let mut links = BTreeMap::new();
    for cloud in &story.clouds {
        // A gateway that does not answer shows no links.
        for link in inside::links(cloud).await.unwrap_or_default() {
            links.entry((cloud.name().to_owned(), link.peer.clone())).or_insert(link);
        }
    }
    links
}

/// How a user sees the rules.
fn how_to_try(page: &str) -> String {
    format!(
        "{USER} gets reviews v2, others what each scene says; try\n\
         curl -s -H '{END_USER}: {USER}' {page}\n\
         curl -s {page}\n\
         or {page}?user={USER} in your browser"
    )
}

/// One round: the page from on-prem and from the edge.
async fn ask(script: &Script<'_>, versions: &mut BTreeMap<String, u64>) -> Result<Vec<Asked>> {
    let his = script.story.envoy.as_ref().map(|_| (ONPREM, Some(USER), Service::Productpage));
    let others = [(ONPREM, None, Service::Productpage), (EDGE, None, Service::Kiosk)];
    let mut calls = Vec::new();
    for (from, user, service) in others.into_iter().chain(his) {
        let call = script.call_beside("live", from, service, user).await?;
        let reviews = call.answer().and_then(|answer| answer.find(Service::Reviews));
        if let Some(reviews) = reviews.filter(|_| user.is_none()) {
            *versions.entry(format!("{} {}", reviews.by.version, reviews.by.cloud)).or_default() += 1;
        }
        calls.push(Asked { from, user, service, call });
    }
    script.forget_requests();
    Ok(calls)
}

/// A line for programs: who was asked, who answered, through which links, how fast.
fn row(asked: &Asked, links: &Links) -> String {
    let Asked { from, service, call, .. } = asked;
    let request = Request::new(0.0, "live", from, call);
    let through = request.crossed.iter().map(|(from, to)| {
        let link = links.get(&(from.clone(), to.clone()));
        let link = link.map_or_else(|| "no link".to_owned(), |link| format!("{} {}", link.transport, link.remote));
        format!("{from} to {to}: {link}")
    });
    let through = through.collect::<Vec<_>>().join(", ");
    let answered = request.error.unwrap_or_else(|| {
        let names = request.chain.iter().map(|hop| format!("{} {} ({})", hop.service.name(), hop.version, hop.cloud));
        names.collect::<Vec<_>>().join(" > ")
    });
    format!("{}{from} {}  {answered}  {through}  {:.1} ms\n", reader(asked), service.name(), call.ms)
}

/// A line for people: services by cloud, an arrow wherever a request crossed to another one.
fn answer(asked: &Asked) -> String {
    let request = Request::new(0.0, "live", asked.from, &asked.call);
    let text = request.error.unwrap_or_else(|| by_cloud(&request.chain));
    format!("{:>5.1} ms {}{text}", asked.call.ms, reader(asked))
}

/// Who reads, if anybody said so.
fn reader(asked: &Asked) -> String {
    asked.user.map(|user| format!("{user}: ")).unwrap_or_default()
}

fn by_cloud(chain: &[Hop]) -> String {
    let (mut text, mut before) = (String::new(), "");
    for hop in chain {
        let separator = match before {
            "" => "",
            cloud if cloud == hop.cloud => "+",
            _ => " → ",
        };
        text.push_str(separator);
        if before != hop.cloud {
            text.push_str(&format!("{} ", hop.cloud));
        }
        text.push_str(hop.service.name());
        if hop.service == Service::Reviews {
            text.push_str(&format!(" {}", hop.version));
        }
        before = &hop.cloud;
    }
    text
}

fn screen(
    story: &Story,
    (page, play): (&str, Option<&Play>),
    links: &Links,
    shown: &VecDeque<String>,
    versions: &BTreeMap<String, u64>,
) -> String {
    let apart = match story.lab.isolation() {
        Isolation::Namespaces => "the same private addresses in each, no route between",
        Isolation::Loopback => "all on loopback: network namespaces are forbidden here",
    };
    let mut text = format!("Eastway: three clouds, {apart}\nbrowser   {page}   (Ctrl-C ends the demo)\n");
    if let Some((envoy, play)) = story.envoy.as_ref().zip(play) {
        text.push_str(&format!(
            "try       curl -s -H '{END_USER}: {USER}' {page}   (Envoy {} beside each service)\n\n\
             {}\n          {}\n",
            envoy.version,
            play.title(),
            play.counted(),
        ));
    }
    text.push('\n');
    for ((cloud, peer), link) in links.iter().filter(|(_, link)| link.dialled) {
        let rtt = link.rtt_ms.map_or_else(String::new, |rtt| format!("   round trip {rtt:.1} ms"));
        text.push_str(&format!("link      {cloud} dialled {peer} at {} ({}){rtt}\n", link.remote, link.transport));
    }
    text.push_str("\n latency who answered; → is a link to another cloud\n");
    for line in shown {
        text.push_str(line);
        text.push('\n');
    }
    let total: u64 = versions.values().sum();
    let shares = versions.iter().map(|(name, count)| format!("{name} {}%", count * 100 / total.max(1)));
    let memory = story.clouds.iter().map(|cloud| {
        let rss = cloud.gateway(0).and_then(super::lab::process::Process::rss).unwrap_or(0);
        format!("{}: {:.1} MB", cloud.name(), megabytes(rss))
    });
    let wanted = WEIGHTS.map(|(_, weight)| weight.to_string()).join("/");
    if play.is_none() {
        text.push_str(&format!("\nreviews   {}   (weights {wanted})", shares.collect::<Vec<_>>().join(", ")));
    }
    text.push_str(&format!("\ngateways  {}\n", memory.collect::<Vec<_>>().join("   ")));
    text
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
    let on_purpose = if report.envoy.is_some() { " or on purpose" } else { "" };
    format!(
        "{clouds}\n{steps}\n{} requests, {failed} failed while links were cut{on_purpose}; first answer across clouds after {:.0} ms",
        report.requests.len(),
        report.first_cross_cloud_answer_ms,
    )
}

fn write(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}
