//! From a change in a peer's file until the Envoy beside a client here has it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use eastway_tests::lab::cloud::Cloud;
use eastway_tests::lab::files::ServiceSpec;
use eastway_tests::mesh::Mesh;
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixStream;

use crate::clouds::{PATIENCE, SERVICE};
use crate::latency::{milliseconds, quantiles};

/// Between two looks. What is measured is that much too large at most.
const PAUSE: Duration = Duration::from_millis(1);
/// Milliseconds between two changes: each comes alone, and at no fixed time of any clock.
const REST: std::ops::Range<u64> = 40..80;
/// The pod that comes and goes.
const POD: u8 = 14;

/// Endpoints that take requests, and all of them.
type Count = (u64, u64);

/// What is done in turn, and the endpoints that there are then.
const STEPS: [(&str, Count); 4] = [("added", (4, 4)), ("draining", (3, 4)), ("ready", (4, 4)), ("removed", (3, 3))];

/// When it was known, since the change.
struct Times {
    owner: Duration,
    gateway: Duration,
    envoy: Duration,
}

/// Makes so many changes, one after the other.
pub(crate) async fn measure(mesh: &mut Mesh, changes: usize) -> Result<Value> {
    let mut admin = Admin::connect(&mesh.cloud("a").folder().join("shopper/envoy-admin.sock")).await?;
    // Endpoints cross only once a sidecar asks for them.
    admin.sees((3, 3)).await?;
    let mut all: Vec<Times> = Vec::new();
    let mut by_step: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    for (step, count) in STEPS.into_iter().cycle().take(changes) {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(REST))).await;
        let address = mesh.cloud("b").net().pod(POD);
        let begun = Instant::now();
        mesh.change_services("b", |services| {
            let spec = services.iter_mut().find(|spec| spec.name == SERVICE).expect("it is served");
            apply(spec, step, address);
        })?;
        let (owner, gateway, envoy) =
            tokio::try_join!(knows(mesh.cloud("b"), count), knows(mesh.cloud("a"), count), admin.sees(count))?;
        let [owner, gateway, envoy] = [owner, gateway, envoy].map(|at| at - begun);
        by_step.entry(step).or_default().push(envoy);
        all.push(Times { owner, gateway, envoy });
    }
    let of = |time: fn(&Times) -> Duration| quantiles(&all.iter().map(time).collect::<Vec<_>>(), milliseconds);
    let by_step: BTreeMap<_, _> =
        by_step.into_iter().map(|(step, times)| (step, quantiles(&times, milliseconds))).collect();
    Ok(json!({
        "changes": all.len(),
        "owners_gateway_ms": of(|times| times.owner),
        "own_gateway_ms": of(|times| times.gateway),
        "envoy_ms": of(|times| times.envoy),
        "envoy_ms_by_change": by_step,
    }))
}

fn apply(spec: &mut ServiceSpec, step: &str, address: std::net::IpAddr) {
    match step {
        "added" => *spec = spec.clone().endpoint(address, "v1"),
        "removed" => spec.endpoints.retain(|endpoint| endpoint.address != address),
        _ => {
            let endpoint = spec.endpoints.iter_mut().find(|endpoint| endpoint.address == address);
            endpoint.expect("it was added").more = json!({"draining": step == "draining"});
        }
    }
}

/// When a cloud's gateway has so many endpoints of b.
async fn knows(cloud: &Cloud, wanted: Count) -> Result<Instant> {
    let begun = Instant::now();
    loop {
        let answer: Value = cloud.admin(0, "/services").await?;
        let services = answer["items"].as_array().context("no services")?;
        let parts = services.iter().filter(|service| service["name"] == SERVICE);
        let mut parts = parts.flat_map(|service| service["parts"].as_array().into_iter().flatten());
        let part = parts.find(|part| part["cluster"] == "b").context("no part of b")?;
        let (ready, draining) = (part["ready"].as_u64().unwrap_or(0), part["draining"].as_u64().unwrap_or(0));
        if (ready, ready + draining) == wanted {
            return Ok(Instant::now());
        }
        ensure!(begun.elapsed() < PATIENCE, "{} still has {part}, not {wanted:?}", cloud.name());
        tokio::time::sleep(PAUSE).await;
    }
}

/// Envoy's administration, over one connection.
struct Admin(SendRequest<Empty<Bytes>>);

impl Admin {
    async fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).await?;
        let (requests, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self(requests))
    }

    /// When Envoy has so many hosts of the service.
    async fn sees(&mut self, wanted: Count) -> Result<Instant> {
        let begun = Instant::now();
        loop {
            let hosts = self.hosts().await?;
            if hosts == wanted {
                return Ok(Instant::now());
            }
            ensure!(begun.elapsed() < PATIENCE, "Envoy still has {hosts:?}, not {wanted:?}");
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn hosts(&mut self) -> Result<Count> {
        let request = Request::get("/clusters").header("host", "envoy").body(Empty::new())?;
        self.0.ready().await?;
        let answer = self.0.send_request(request).await?;
        let page = String::from_utf8(answer.into_body().collect().await?.to_bytes().to_vec())?;
        let cluster = format!("||{SERVICE}.");
        let flags = page.lines().filter(|line| line.contains(&cluster) && line.contains("envoy://"));
        let flags: Vec<&str> = flags.filter_map(|line| Some(line.split_once("::health_flags::")?.1)).collect();
        let healthy = flags.iter().filter(|flags| **flags == "healthy").count();
        Ok((u64::try_from(healthy)?, u64::try_from(flags.len())?))
    }
}
