//! What `eastway proxy-status` and `proxy-config` say of a real Envoy, and of a client that refuses what it is sent.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use eastway_proto::xds::discovery as wire;
use eastway_proto::xds::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use eastway_tests::mesh::{Mesh, NAMESPACE};
use eastway_tests::{lab_test, within};
use hyper_util::rt::TokioIo;
use prost::Message as _;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Endpoint, Uri};

use crate::whole_path::{PATIENCE, mesh, sidecar};

const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";

/// A client beside Envoy, with the same certificate, that takes no cluster.
struct Refusing {
    requests: mpsc::Sender<wire::DeltaDiscoveryRequest>,
    responses: tonic::Streaming<wire::DeltaDiscoveryResponse>,
}

impl Refusing {
    async fn connect(agent: &Path, node: &str, cluster: &str) -> Result<Self> {
        let path = agent.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://agent").connect_with_connector(connector).await?;
        let node = wire::Node { id: node.to_owned(), cluster: cluster.to_owned(), ..wire::Node::default() };
        let (requests, receiver) = mpsc::channel(4);
        requests
            .send(wire::DeltaDiscoveryRequest {
                node: node.encode_to_vec().into(),
                type_url: CLUSTER.to_owned(),
                ..wire::DeltaDiscoveryRequest::default()
            })
            .await?;
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let responses = client.delta_aggregated_resources(ReceiverStream::new(receiver)).await?.into_inner();
        Ok(Self { requests, responses })
    }

    async fn refuse(&mut self, reason: &str) -> Result<()> {
        let response = self.responses.message().await?.context("the stream ended")?;
        let answer = wire::DeltaDiscoveryRequest {
            type_url: CLUSTER.to_owned(),
            response_nonce: response.nonce,
            error_detail: Some(wire::ErrorDetail { code: 13, message: reason.to_owned() }),
            ..wire::DeltaDiscoveryRequest::default()
        };
        Ok(self.requests.send(answer).await?)
    }
}

/// A command at a's gateway that ends with this code, and what it prints.
async fn ask(mesh: &Mesh, arguments: &[&str], wanted: i32) -> Result<String> {
    let (code, output) = mesh.cloud("a").command(0, arguments).await?;
    ensure!(code == Some(wanted), "{arguments:?} ends with {code:?}:\n{output}");
    Ok(output)
}

lab_test! {
    async fn proxy_status_and_proxy_config_say_what_a_sidecar_has() {
        let mut mesh = mesh().await?;
        let nobody = ask(&mesh, &["proxy-status"], 0).await?;
        ensure!(nobody.contains("no sidecar is connected"), "{nobody}");
        sidecar(&mut mesh, "1.40.0").await?;
        within(PATIENCE, "all is acknowledged", async || {
            let text = ask(&mesh, &["proxy-status"], 0).await?;
            let line = text.lines().find(|line| line.starts_with("shopper-1.shop ")).unwrap_or_default();
            Ok(line.contains("envoy 1.40.0") && line.matches("SYNCED").count() == 4)
        })
        .await?;
        let one = ask(&mesh, &["proxy-status", "sidecar~shopper-1.shop"], 0).await?;
        ensure!(one.contains("/ns/shop/sa/shopper\n") && one.contains("cds   SYNCED"), "{one}");

        // What a person looks for, of each kind.
        let name = "||web.shop.svc.clusterset.local";
        let kinds = [
            ("listeners", "routes outbound|"),
            ("routes", "/*"),
            ("clusters", "least request"),
            ("endpoints", "HEALTHY"),
        ];
        for (kind, word) in kinds {
            let text = ask(&mesh, &["proxy-config", kind, "shopper-1.shop"], 0).await?;
            ensure!(text.contains(name) && text.contains(word), "{kind}:\n{text}");
        }
        within(PATIENCE, "an endpoint for each pod of b", async || {
            let text = ask(&mesh, &["proxy-config", "endpoints", "shopper-1.shop", "--match", "||web.shop."], 0).await?;
            Ok(text.lines().filter(|line| line.contains(".web.shop.b:") && line.contains("HEALTHY")).count() == 3)
        })
        .await?;
        let json = ask(&mesh, &["proxy-config", "clusters", "shopper-1.shop", "-o", "json"], 0).await?;
        let json: Value = serde_json::from_str(&json)?;
        let cluster = json["items"].as_array().into_iter().flatten().find(|one| one["name"].as_str().is_some_and(|one| one.ends_with(name)));
        let cluster = cluster.context("no such cluster")?;
        ensure!(cluster["resource"]["outlier_detection"]["consecutive_5xx"] == 5, "{cluster}");
        let secrets = ask(&mesh, &["proxy-config", "secrets", "shopper-1.shop"], 0).await?;
        ensure!(secrets.lines().any(|line| line.starts_with("workload ") && line.contains("in 23h")), "{secrets}");

        // Who does not exist, and who has no sidecars.
        let unknown = ask(&mesh, &["proxy-status", "nobody.shop"], 1).await?;
        ensure!(unknown.contains("no sidecar \"nobody.shop\"") && unknown.contains("connected are shopper-1.shop"), "{unknown}");
        let (code, none) = mesh.cloud("b").command(0, &["proxy-status"]).await?;
        ensure!(code == Some(1) && none.contains("serves no sidecars"), "{none}");
        mesh.stop().await
    }

    async fn what_a_client_refuses_is_kept_with_its_reason() {
        let mut mesh = mesh().await?;
        sidecar(&mut mesh, "1.36.2").await?;
        let agent = mesh.cloud("a").folder().join("shopper/agent.sock");
        let (node, cluster) = (format!("sidecar~stubborn.{NAMESPACE}"), format!("shopper.{NAMESPACE}"));
        let mut client = Refusing::connect(&agent, &node, &cluster).await?;
        client.refuse("Didn't find a registered implementation\nfor 'x'").await?;
        within(PATIENCE, "the refusal is shown", async || {
            let (code, text) = mesh.cloud("a").command(0, &["proxy-status"]).await?;
            let line = text.lines().find(|line| line.starts_with("stubborn.shop ")).unwrap_or_default();
            let reason = "stubborn.shop refuses cds";
            Ok(code == Some(3) && line.contains("REFUSED") && text.contains(reason) && text.contains("registered implementation for 'x'"))
        })
        .await?;
        let (code, text) = mesh.cloud("a").command(0, &["check"]).await?;
        let warned = text.contains("WARN EW121") && text.contains("stubborn.shop: cds: Didn't find");
        ensure!(code == Some(3) && warned && text.contains("eastway proxy-status") && !text.contains("shopper-1"), "{text}");
        let metrics = mesh.cloud("a").metrics(0).await?;
        ensure!(metrics.contains("eastway_sidecar_refusals_total{kind=\"cds\"} 1"), "{metrics}");
        // Beside it, Envoy has taken all.
        let text = ask(&mesh, &["proxy-status", "shopper-1.shop"], 0).await?;
        ensure!(!text.contains("REFUSED") && text.contains("SYNCED"), "{text}");
        let text = ask(&mesh, &["proxy-config", "clusters", "stubborn.shop"], 0).await?;
        ensure!(text.contains("refused: Didn't find"), "{text}");
        drop(client);
        within(PATIENCE, "who is gone is not shown", async || {
            Ok(!ask(&mesh, &["proxy-status"], 0).await?.contains("stubborn"))
        })
        .await?;
        mesh.stop().await
    }
}
