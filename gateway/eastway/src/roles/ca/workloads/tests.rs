//! A CA with sockets for workloads.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use eastway_identity::ca::{Ca, InitOptions};
use eastway_identity::{IdentityStore, renewal_time};

use super::*;
use crate::roles::ca::{BoundCa, bind};
use crate::roles::enroll::{CaClient, EnrollError};
use crate::telemetry::{AccessMode, Telemetry};

const DAY: Duration = Duration::from_secs(24 * 3600);

const ONE: &str = "  workloads: [{namespace: shop, serviceAccount: web, socket: ./run/web.sock}]\n";

/// Writes a configuration with these workloads, and gives the CA that it makes.
fn settings(folder: &Path, workloads: &str) -> CaSettings {
    let file = folder.join("gateway.yaml");
    let text =
        "apiVersion: eastway.dev/v1alpha1\nkind: GatewayConfig\ncluster: onprem\ntrust:\n  domain: onprem.example\n";
    fs::write(&file, format!("{text}{workloads}")).unwrap();
    let settings = config::load_settings(&file).unwrap();
    crate::roles::ca_settings(&settings).unwrap()
}

async fn start(folder: &Path, workloads: &str) -> (CaSettings, BoundCa) {
    let settings = settings(folder, workloads);
    Ca::init(&settings.folder, &InitOptions::new("onprem.example")).unwrap();
    (settings.clone(), bind(settings, Telemetry::new(AccessMode::Off)).await.unwrap())
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(10), wait).await.is_ok(), "{what}");
}

#[tokio::test]
async fn c4_a_workload_is_who_its_socket_says_and_gets_no_link_keys() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, ca) = start(folder.path(), ONE).await;
    let stop = CancellationToken::new();
    let role = tokio::spawn(ca.run(stop.clone()));
    let socket = folder.path().join("run/web.sock");
    let meta = fs::symlink_metadata(&socket).unwrap();
    assert_eq!(meta.mode() & 0o777, 0o600, "who may open it is that workload");
    assert_eq!(meta.uid(), rustix::process::geteuid().as_raw());

    let web = CaClient::new(socket.clone());
    let enrolled = web.enroll(10 * DAY, None).await.unwrap();
    assert_eq!(enrolled.identity.id().as_str(), "spiffe://onprem.example/ns/shop/sa/web");
    assert!(enrolled.link_keys.is_none());
    let store = IdentityStore::new(enrolled.identity);
    let life = store.current().not_after().duration_since(SystemTime::now()).unwrap();
    assert!(life <= DAY, "{life:?}");
    let renewal = renewal_time(&store.current(), 0.0).duration_since(SystemTime::now()).unwrap();
    assert!(renewal < life * 7 / 10, "{renewal:?} of {life:?}");
    // Nor if somebody made one for the gateway: the keys are for those who come in at the gateway's own door.
    let own = CaClient::new(settings.socket.unwrap()).enroll(DAY, None).await.unwrap();
    assert!(own.link_keys.is_some());

    stop.cancel();
    role.await.unwrap().unwrap();
    assert!(!socket.exists(), "nothing is left behind");
}

#[tokio::test]
async fn i8_a_workload_that_asks_without_end_does_not_keep_others_from_their_certificates() {
    let folder = tempfile::tempdir().unwrap();
    let two = "  workloads: [{namespace: shop, serviceAccount: web, socket: a}, {namespace: shop, serviceAccount: cart, socket: b}]\n";
    let (_settings, ca) = start(folder.path(), two).await;
    let stop = CancellationToken::new();
    let role = tokio::spawn(ca.run(stop.clone()));
    let greedy = CaClient::new(folder.path().join("a"));
    let mut refused = 0;
    for _ in 0..60 {
        match greedy.enroll(DAY, None).await {
            Err(EnrollError::Refused(status)) => {
                refused += usize::from(status.code() == tonic::Code::ResourceExhausted);
            }
            other => drop(other.unwrap()),
        }
    }
    assert!(refused > 0);
    CaClient::new(folder.path().join("b")).enroll(DAY, None).await.unwrap();
    stop.cancel();
    role.await.unwrap().unwrap();
}

#[tokio::test]
async fn sockets_come_and_go_with_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let (_settings, ca) = start(folder.path(), ONE).await;
    let stop = CancellationToken::new();
    let role = tokio::spawn(ca.run(stop.clone()));
    let [web, cart] = ["run/web.sock", "run/cart.sock"].map(|name| folder.path().join(name));
    let ask = async |socket: &Path| CaClient::new(socket.to_owned()).enroll(DAY, None).await;

    settings(folder.path(), "  workloads:\n  - {namespace: shop, serviceAccount: cart, socket: ./run/cart.sock}\n");
    until("the new one is there", || cart.exists()).await;
    until("the old one is gone", || !web.exists()).await;
    assert_eq!(ask(&cart).await.unwrap().identity.id().as_str(), "spiffe://onprem.example/ns/shop/sa/cart");

    // The same socket for another one.
    settings(folder.path(), "  workloads: [{namespace: shop, serviceAccount: basket, socket: ./run/cart.sock}]\n");
    let changed = async {
        while ask(&cart).await.map_or(true, |enrolled| !enrolled.identity.id().as_str().ends_with("sa/basket")) {
            sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), changed).await.unwrap();
    stop.cancel();
    role.await.unwrap().unwrap();
}

#[test]
fn i11_a_wrong_configuration_leaves_the_sockets_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(folder.path(), ONE);
    let mut list = List::of(&settings);
    let file = settings.file.as_ref().unwrap();
    fs::write(file, "kind: GatewayConfig\n").unwrap();
    list.refresh();
    fs::remove_file(file).unwrap();
    list.refresh();
    assert_eq!(list.wanted, settings.workloads);
}

#[tokio::test]
async fn a_socket_that_cannot_be_given_away_keeps_the_ca_from_starting() {
    let folder = tempfile::tempdir().unwrap();
    let settings =
        settings(folder.path(), "  workloads: [{namespace: shop, serviceAccount: web, socket: /proc/web.sock}]\n");
    Ca::init(&settings.folder, &InitOptions::new("onprem.example")).unwrap();
    let error = bind(settings, Telemetry::new(AccessMode::Off)).await.unwrap_err();
    assert!(error.to_string().starts_with("cannot listen on /proc/web.sock"), "{error}");
}
