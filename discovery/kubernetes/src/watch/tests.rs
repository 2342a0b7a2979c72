use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::follow::{FIRST_PAUSE, LONGEST_PAUSE};
use super::*;
use crate::testing::{Reply, client, event, failure};
use crate::types::mcs::ServiceExport;

fn object(name: &str, version: u32) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap",
           "metadata": {"namespace": "shop", "name": name, "uid": name, "resourceVersion": version.to_string()}})
}

fn bad(name: &str, version: u32) -> Value {
    let mut object = object(name, version);
    object["data"] = json!(7);
    object
}

fn end_of_list(version: u32) -> String {
    let annotations = json!({"k8s.io/initial-events-end": "true"});
    event(
        "BOOKMARK",
        &json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"resourceVersion": version.to_string(), "annotations": annotations}}),
    )
}

fn list(version: u32, items: &[Value]) -> Reply {
    let body = json!({"kind": "ConfigMapList", "apiVersion": "v1",
                      "metadata": {"resourceVersion": version.to_string()}, "items": items});
    Reply::Whole(200, body)
}

/// Answers that are given in this order; after them nothing is answered.
fn script(replies: Vec<Reply>) -> (Client, crate::testing::Requests) {
    let replies = Mutex::new(replies.into_iter());
    client(move |_| replies.lock().unwrap().next().unwrap_or(Reply::Silence))
}

fn lines(lines: impl IntoIterator<Item = String>) -> (mpsc::UnboundedSender<Result<String, std::io::Error>>, Reply) {
    let (sender, receiver) = mpsc::unbounded_channel();
    lines.into_iter().for_each(|line| sender.send(Ok(line)).unwrap());
    (sender, Reply::Lines(receiver))
}

fn watch(client: Client) -> Watch<ConfigMap> {
    Watch::new(client, Selection::all::<ConfigMap>())
}

/// The next differences, as `+name@version` and `-name`.
async fn told(watch: &mut Watch<ConfigMap>) -> Vec<String> {
    let waited = async {
        loop {
            let differences = watch.next().await;
            if !differences.is_empty() {
                return differences;
            }
        }
    };
    let differences = tokio::time::timeout(Duration::from_secs(600), waited).await;
    let differences = differences.unwrap_or_else(|_| panic!("{:?}", watch.status()));
    let mut told: Vec<String> = differences.iter().map(shown).collect();
    told.sort();
    told
}

fn shown(difference: &Difference<ConfigMap>) -> String {
    match difference {
        Difference::Set(name, object) => {
            format!("+{}@{}", name.name, object.metadata.resource_version.as_deref().unwrap_or_default())
        }
        Difference::Gone(name) => format!("-{}", name.name),
    }
}

#[tokio::test(start_paused = true)]
async fn lists_are_streamed() {
    let (_open, stream) = lines([event("ADDED", &object("a", 1)), event("ADDED", &object("b", 2)), end_of_list(2)]);
    let (client, requests) = script(vec![stream]);
    let mut watch = watch(client);
    assert_eq!(told(&mut watch).await, ["+a@1", "+b@2"]);
    assert!(watch.status().listed);
    assert!(requests.lock().unwrap()[0].contains("sendInitialEvents=true"));
}

#[tokio::test(start_paused = true)]
async fn a_server_without_streaming_lists_is_listed() {
    let refusal = "sendInitialEvents: Forbidden: unless the WatchList feature gate is enabled";
    let (open, stream) = lines([]);
    let replies = vec![Reply::status(422, "Invalid", refusal), list(1, &[object("a", 1), bad("b", 1)]), stream];
    let (client, requests) = script(replies);
    let mut watch = watch(client);
    assert_eq!(told(&mut watch).await, ["+a@1"]);
    assert_eq!((watch.status().failures, watch.status().quarantined), (0, 1));
    assert!(!requests.lock().unwrap()[1].contains("watch=true"));
    open.send(Ok(event("MODIFIED", &object("a", 2)))).unwrap();
    assert_eq!(told(&mut watch).await, ["+a@2"]);
}

#[tokio::test(start_paused = true)]
async fn a_server_whose_store_has_no_streaming_lists_is_listed() {
    let refusal = "the required storage feature RequestWatchProgress is disabled";
    let (_open, refused) = lines([event("ERROR", &failure(500, "InternalError", refusal))]);
    let (_open_too, stream) = lines([]);
    let (client, _) = script(vec![refused, list(1, &[object("a", 1)]), stream]);
    let mut watch = watch(client);
    assert_eq!(told(&mut watch).await, ["+a@1"]);
    assert_eq!((watch.status().failures, watch.status().problem.as_deref()), (0, None));
}

#[tokio::test(start_paused = true)]
async fn f18_a_version_that_is_gone_leads_to_one_difference() {
    let (_open, first) = lines([
        event("ADDED", &object("a", 1)),
        event("ADDED", &object("b", 2)),
        event("ADDED", &object("c", 3)),
        end_of_list(3),
        event("ERROR", &failure(410, "Expired", "too old resource version: 3 (9)")),
    ]);
    let (_open_too, second) = lines([
        event("ADDED", &object("a", 1)),
        event("ADDED", &object("b", 7)),
        event("ADDED", &object("d", 8)),
        end_of_list(9),
    ]);
    let (client, _) = script(vec![first, second]);
    let mut watch = watch(client);
    assert_eq!(told(&mut watch).await, ["+a@1", "+b@2", "+c@3"]);
    assert_eq!(told(&mut watch).await, ["+b@7", "+d@8", "-c"]);
}

#[tokio::test(start_paused = true)]
async fn f18_a_watch_that_cannot_resume_lists_again() {
    let (open, first) = lines([event("ADDED", &object("a", 1)), end_of_list(1)]);
    drop(open);
    let (_open, second) = lines([event("ADDED", &object("a", 4)), end_of_list(4)]);
    let (client, requests) = script(vec![first, Reply::status(410, "Expired", "too old"), second]);
    let mut watch = watch(client);
    assert_eq!(told(&mut watch).await, ["+a@1"]);
    let before = Instant::now();
    assert_eq!(told(&mut watch).await, ["+a@4"]);
    assert!(before.elapsed() <= FIRST_PAUSE, "nothing is wrong with the server");
    assert_eq!(watch.status().failures, 0);
    let requests = requests.lock().unwrap();
    assert!(requests[1].contains("resourceVersion=1"), "first it resumes: {}", requests[1]);
    assert!(requests[2].contains("sendInitialEvents=true"), "then it lists: {}", requests[2]);
}

#[tokio::test(start_paused = true)]
async fn a_cut_in_mid_object_is_resumed() {
    let (open, first) = lines([event("ADDED", &object("a", 1)), end_of_list(1)]);
    let half = event("ADDED", &object("b", 2));
    open.send(Ok(half[..half.len() / 2].to_owned())).unwrap();
    open.send(Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset))).unwrap();
    drop(open);
    let (_open, second) = lines([event("ADDED", &object("b", 2))]);
    let (client, _) = script(vec![first, second]);
    let mut watch = watch(client);
    assert_eq!(told(&mut watch).await, ["+a@1"]);
    assert_eq!(told(&mut watch).await, ["+b@2"]);
    assert_eq!(watch.status().problem, None);
}

#[tokio::test(start_paused = true)]
async fn f19_a_bad_object_does_not_stop_the_watch() {
    let (_open, stream) = lines([
        event("ADDED", &bad("a", 1)),
        event("ADDED", &object("b", 2)),
        end_of_list(2),
        event("ADDED", &bad("c", 3)),
        event("ADDED", &object("d", 4)),
    ]);
    let (client, _) = script(vec![stream]);
    let mut watch = watch(client);
    assert_eq!(told(&mut watch).await, ["+b@2"]);
    assert_eq!(told(&mut watch).await, ["+d@4"]);
    let status = watch.status();
    assert_eq!((status.quarantined, status.objects), (2, 2));
    assert_eq!(status.bad[1].object.to_string(), "shop/c");
    assert!(status.bad[1].error.contains("invalid type: integer `7`"), "{}", status.bad[1].error);
}

#[tokio::test(start_paused = true)]
async fn a_busy_server_is_left_alone_for_as_long_as_it_asks() {
    let mut busy = failure(429, "TooManyRequests", "the server is busy");
    busy["details"] = json!({"retryAfterSeconds": 20});
    let (_open, stream) = lines([end_of_list(1)]);
    let (client, _) = script(vec![Reply::Whole(429, busy), stream]);
    let mut watch = watch(client);
    assert!(watch.next().await.is_empty());
    assert_eq!(watch.status().problem.as_deref(), Some("the server is busy (429)"));
    let before = Instant::now();
    while !watch.status().listed {
        watch.next().await;
    }
    let waited = before.elapsed();
    assert!((20..31).contains(&waited.as_secs()), "{waited:?}");
    assert_eq!(watch.status().problem, None);
}

#[tokio::test(start_paused = true)]
async fn pauses_grow_and_are_capped() {
    let calls = Arc::new(Mutex::new(Vec::new()));
    let times = Arc::clone(&calls);
    let (client, _) = client(move |_| {
        times.lock().unwrap().push(Instant::now());
        Reply::status(503, "ServiceUnavailable", "apiserver not ready")
    });
    let mut watch = watch(client);
    let forever = async {
        loop {
            watch.next().await;
        }
    };
    let ended: Result<(), _> = tokio::time::timeout(Duration::from_secs(300), forever).await;
    assert!(ended.is_err());
    let calls = calls.lock().unwrap();
    assert!((30..80).contains(&calls.len()), "{}", calls.len());
    let pauses: Vec<_> = calls.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses[0] <= FIRST_PAUSE && pauses.iter().all(|pause| *pause <= LONGEST_PAUSE));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_hangs_in_a_list_is_asked_again() {
    let (_open, first) = lines([event("ADDED", &object("a", 1))]);
    let (_open_too, second) = lines([event("ADDED", &object("a", 1)), end_of_list(1)]);
    let (client, _) = script(vec![first, second]);
    assert_eq!(told(&mut watch(client)).await, ["+a@1"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_missing_for_the_right_is_named() {
    let message = "configmaps is forbidden: User \"system:serviceaccount:eastway-system:eastway-gateway\" \
                   cannot watch resource \"configmaps\" in API group \"\" at the cluster scope";
    let (client, _) = script(vec![Reply::status(403, "Forbidden", message)]);
    let mut watch = watch(client);
    watch.next().await;
    assert_eq!(watch.status().problem.as_deref(), Some(&*format!("{message} (403)")));
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_is_not_installed_is_waited_for_under_each_version() {
    let installed = Arc::new(Mutex::new(false));
    let state = Arc::clone(&installed);
    let (keep, kept) = mpsc::unbounded_channel();
    let (client, requests) = client(move |request| {
        if !*state.lock().unwrap() || !request.uri().path().contains("/v1alpha1/") {
            return Reply::status(404, "NotFound", "the server could not find the requested resource");
        }
        let (open, stream) = lines([event("ADDED", &object("a", 1)), end_of_list(1)]);
        keep.send(open).unwrap();
        stream
    });
    let selection = Selection::all::<ServiceExport>().or_versions(&["v1alpha1"]);
    let mut watch: Watch<ConfigMap> = Watch::new(client, selection);
    assert!(watch.next().await.is_empty());
    let status = watch.status();
    assert!(status.not_installed && status.is_settled() && !status.listed && status.problem.is_none());
    assert_eq!(status.kind, "serviceexports.multicluster.x-k8s.io");
    *installed.lock().unwrap() = true;
    assert_eq!(told(&mut watch).await, ["+a@1"]);
    assert!(!watch.status().not_installed);
    assert!(requests.lock().unwrap()[0].contains("/v1beta1/"));
    drop(kept);
}
