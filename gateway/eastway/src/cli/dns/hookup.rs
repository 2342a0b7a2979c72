//! `eastway dns install`, `uninstall` and what `dns status --cluster` shows: the resolver of a Kubernetes cluster.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use clap::Args;
use eastway_dns::client::{self as resolver, QueryType};
use eastway_kubernetes::client::connect;
use eastway_kubernetes::dns_config::ask::{AskError, Asker};
use eastway_kubernetes::dns_config::cluster::{self, Target};
use eastway_kubernetes::dns_config::diff::unified;
use eastway_kubernetes::dns_config::{PlanError, State, Wanted};

use crate::cli::exit::{self, Failure};
use crate::cli::kube::{KubeArgs, block_on};
use crate::cli::output::{Table, print};
use crate::config::settings::SYSTEM_NAMESPACE;

/// The zone of the Multi-Cluster Services API.
const CLUSTERSET: &str = "clusterset.local";
/// A name that every gateway answers (KEP-1645).
const PROBE: &str = "dns-version.clusterset.local.";
/// A name that the resolver of the cluster knows which Eastway is in.
const OWN: &str = "eastway-dns.eastway-system.svc.cluster.local.";
/// A resolver that said nothing for so long cannot be reached.
const UNREACHABLE: Duration = Duration::from_secs(5);
/// Between two questions while the resolver takes its new configuration.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(1);

/// What is to be forwarded, and in which cluster.
#[derive(Debug, Args)]
pub(in crate::cli) struct Cluster {
    /// A zone of your own (`dns.zones`) beside clusterset.local; can be given again
    #[arg(long = "zone", value_name = "ZONE")]
    zones: Vec<String>,
    /// Forward to this address instead of that of the Service eastway-system/eastway-dns
    #[arg(long, value_name = "ADDRESS")]
    server: Option<IpAddr>,
    #[command(flatten)]
    kube: KubeArgs,
}

/// Arguments of `eastway dns install` and `eastway dns uninstall`.
#[derive(Debug, Args)]
pub(in crate::cli) struct ChangeArgs {
    /// Show what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// How long to wait until the cluster's resolver answers; 0s: not at all
    #[arg(long, default_value = "3m", value_parser = humantime::parse_duration, value_name = "DURATION")]
    timeout: Duration,
    #[command(flatten)]
    cluster: Cluster,
}

/// Arguments of `eastway dns resolver`.
#[derive(Debug, Args)]
pub(in crate::cli) struct ResolverArgs {
    #[command(flatten)]
    cluster: Cluster,
}

/// A text, and what is to be in its place.
struct Step {
    target: Target,
    /// `Some(None)` takes the key out, `None` leaves all as it is.
    text: Option<Option<String>>,
}

impl Step {
    fn diff(&self) -> String {
        let Some(text) = &self.text else { return String::new() };
        let before = self.target.text.as_deref().unwrap_or_default();
        unified(&self.target.name(), before, text.as_deref().unwrap_or_default())
    }
}

pub(super) fn install(args: &ChangeArgs) -> Result<(), Failure> {
    run(async {
        let client = connect(&args.cluster.kube.access()).await.map_err(|error| Failure::failed(&error))?;
        let wanted = args.cluster.wanted(&client).await?;
        let steps = plan(&client, |target| target.install(&wanted).map(|text| text.map(Some))).await?;
        if !change(&client, &steps, args.dry_run, "nothing to do: the zones are forwarded already").await? {
            return Ok(());
        }
        print("\nwritten; `eastway dns uninstall` takes exactly this out again\n")?;
        for target in steps.iter().filter(|step| step.text.is_some()).map(|step| &step.target) {
            advise(target)?;
        }
        if args.timeout.is_zero() { Ok(()) } else { wait(&client, args.timeout).await }
    })
}

pub(super) fn uninstall(args: &ChangeArgs) -> Result<(), Failure> {
    run(async {
        let client = connect(&args.cluster.kube.access()).await.map_err(|error| Failure::failed(&error))?;
        // Entries of kube-dns are known by their address; a Corefile has markers and needs none.
        let found = cluster::targets(&client).await.map_err(|error| Failure::failed(&error))?;
        let needs_address = found.iter().any(|target| target.kind == cluster::Kind::StubDomains);
        let wanted = match args.cluster.wanted(&client).await {
            Err(error) if needs_address => return Err(error),
            Err(_) => Wanted { zones: args.cluster.all_zones(), server: IpAddr::from([0; 4]) },
            Ok(wanted) => wanted,
        };
        let steps = plan(&client, |target| target.uninstall(&wanted)).await?;
        if change(&client, &steps, args.dry_run, "nothing to do: nothing of ours is there").await? {
            print("\ntaken out\n")?;
        }
        Ok(())
    })
}

pub(super) fn status(args: &ResolverArgs) -> Result<(), Failure> {
    run(async {
        let client = connect(&args.cluster.kube.access()).await.map_err(|error| Failure::failed(&error))?;
        let wanted = args.cluster.wanted(&client).await?;
        let mut table = Table::new(&["CONFIGMAP", "STATE", "WHAT TO DO"]);
        let mut is_well = true;
        for target in cluster::targets(&client).await.map_err(|error| Failure::failed(&error))? {
            let (state, advice) = match target.state(&wanted) {
                Ok(State::Installed) => ("forwards", String::new()),
                Ok(State::BuiltIn) => ("answers imports itself", String::new()),
                Ok(State::Outdated) => ("forwards something else", "eastway dns install".to_owned()),
                Ok(State::Absent) => ("knows nothing", "eastway dns install".to_owned()),
                Err(error) => ("not as we wrote it", error.to_string()),
            };
            is_well &= advice.is_empty();
            table.row([target.name(), state.to_owned(), advice]);
        }
        print(&table.to_string())?;
        if is_well { Ok(()) } else { Err(Failure::silent(exit::FAILED)) }
    })
}

fn run(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    block_on(work).map_err(|error| Failure::failed(&error))?
}

impl Cluster {
    fn all_zones(&self) -> Vec<String> {
        let own = self.zones.iter().map(|zone| zone.trim_end_matches('.').to_ascii_lowercase());
        let mut zones = vec![CLUSTERSET.to_owned()];
        for zone in own {
            if !zone.is_empty() && !zones.contains(&zone) {
                zones.push(zone);
            }
        }
        zones
    }

    async fn wanted(&self, client: &cluster::Client) -> Result<Wanted, Failure> {
        let zones = self.all_zones();
        for zone in &zones {
            let is_name = |label: &str| {
                !label.is_empty()
                    && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
            };
            if !zone.split('.').all(is_name) {
                return Err(Failure::usage(format!("{zone:?} is no name of a zone, e.g. shop.example")));
            }
        }
        let server = match self.server {
            Some(server) => server,
            None => cluster::service_address(client, SYSTEM_NAMESPACE, "eastway-dns")
                .await
                .map_err(|error| Failure::failed(&error))?,
        };
        Ok(Wanted { zones, server })
    }
}

/// What every resolver of the cluster needs. A text that cannot be changed stops all of it before anything is written.
async fn plan(
    client: &cluster::Client,
    one: impl Fn(&Target) -> Result<Option<Option<String>>, PlanError>,
) -> Result<Vec<Step>, Failure> {
    let mut steps = Vec::new();
    for target in cluster::targets(client).await.map_err(|error| Failure::failed(&error))? {
        let text = one(&target).map_err(|error| Failure::because(format!("ConfigMap {}: {error}", target.name())))?;
        steps.push(Step { target, text });
    }
    Ok(steps)
}

/// Shows the steps, and writes them unless it is a dry run. Whether something was written.
async fn change(client: &cluster::Client, steps: &[Step], dry_run: bool, nothing: &str) -> Result<bool, Failure> {
    let diffs: String = steps.iter().map(Step::diff).collect();
    if diffs.is_empty() {
        print(&format!("{nothing}\n"))?;
        return Ok(false);
    }
    print(&diffs)?;
    if dry_run {
        print("\nnothing was changed: this was a dry run\n")?;
        return Ok(false);
    }
    for step in steps {
        if let Some(text) = &step.text {
            step.target.write(client, text.clone()).await.map_err(|error| Failure::failed(&error))?;
        }
    }
    Ok(true)
}

fn advise(target: &Target) -> Result<(), Failure> {
    if let Some(advice) = target.advice {
        print(&format!("{}: {advice}\n", target.name()))?;
    }
    if !target.reloads() {
        print(&format!(
            "{}: without the plugin `reload` it has to be restarted: kubectl -n kube-system rollout restart deployment/coredns\n",
            target.name()
        ))?;
    }
    Ok(())
}

/// Waits until pods get the answer that only a gateway has. It is asked for in a gateway's pod; where that cannot be,
/// from here.
async fn wait(client: &cluster::Client, timeout: Duration) -> Result<(), Failure> {
    let address = cluster::resolver(client).await.map_err(|error| Failure::failed(&error))?;
    print(&format!("waiting until the resolver at {address} answers {PROBE}\n"))?;
    let started = Instant::now();
    let (mut last, mut heard) = (None, false);
    while started.elapsed() < timeout {
        match in_a_pod(client, address).await {
            Ok(true) => return print(&format!("it does, after {} s\n", started.elapsed().as_secs())),
            Ok(false) => (last, heard) = (None, true),
            Err(why) => match from_here(address).await {
                Here::Answered => return print(&format!("it does, after {} s\n", started.elapsed().as_secs())),
                Here::Denied(rcode) => (last, heard) = (Some(rcode), true),
                Here::Foreign => {
                    return not_seen("what answers there does not seem to be the resolver of this cluster", &why);
                }
                Here::Silent if !heard && started.elapsed() > UNREACHABLE => {
                    return not_seen("it cannot be reached from here", &why);
                }
                Here::Silent => {}
            },
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
    let answers =
        last.map(|rcode| format!("it still answers {rcode}")).unwrap_or_else(|| "it still knows nothing".to_owned());
    let seconds = timeout.as_secs();
    print(&format!(
        "warning: no answer within {seconds} s; {answers}: see its log, and `eastway check` in a gateway's pod\n"
    ))?;
    Err(Failure::silent(exit::WARNINGS))
}

async fn in_a_pod(client: &cluster::Client, resolver: IpAddr) -> Result<bool, AskError> {
    let asker = Asker::find(client, SYSTEM_NAMESPACE).await?;
    asker.has_answer(resolver, PROBE, "TXT").await
}

/// What was written is right, and whether pods see it is not known here.
fn not_seen(reason: &str, why: &AskError) -> Result<(), Failure> {
    print(&format!(
        "not waited: {reason}, and {why}; ask in a pod:\n  kubectl run ask --rm -i --restart=Never --image=busybox -- nslookup -type=txt {PROBE}\n"
    ))
}

/// What a resolver says to a question from here.
enum Here {
    /// It has the answer.
    Answered,
    /// It is this cluster's, and has none.
    Denied(String),
    /// It is not this cluster's.
    Foreign,
    Silent,
}

/// Asks from here. The resolver of this cluster knows the Service that it is to forward to.
async fn from_here(address: IpAddr) -> Here {
    let server = SocketAddr::new(address, 53);
    match resolver::query(server, PROBE, QueryType::Txt, ANSWER).await {
        Ok(answer) if answer.rcode == "NOERROR" && !answer.records.is_empty() => Here::Answered,
        Ok(answer) => match resolver::query(server, OWN, QueryType::A, ANSWER).await {
            Ok(own) if own.records.is_empty() => Here::Foreign,
            _ => Here::Denied(answer.rcode),
        },
        Err(_) => Here::Silent,
    }
}
