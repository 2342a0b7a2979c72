//! The sidecar of a pod: two containers before all others, what they mount, and where the pod looks for names.

use std::num::NonZeroU16;

use eastway_model::{Label, ServiceKey};
use serde_json::{Value, json};

use super::pod::Pod;
use super::{INBOUND, INJECT, LISTENERS, RANGES, STATUS, Settings, TLS, TRUST, USER};

/// The container that runs as long as the pod: with `restartPolicy: Always` in the list of those of the start, it is there
/// before the workload's and goes after them (Kubernetes 1.29).
const SIDECAR: &str = "eastway-sidecar";
/// The container that leads connections to it, and ends.
const CAPTURE: &str = "eastway-capture";
/// What they mount.
const VOLUMES: [&str; 3] = ["eastway-run", "eastway-token", "eastway-trust"];
/// Where its health is asked; the port that Istio has for it.
const HEALTH: u16 = 15021;
/// How long it may take until it is ready; then it is started anew. Its certificate and its configuration may have to wait for
/// others that start at the same time.
const START_SECONDS: u32 = 600;
/// Most search domains that a pod may have, and how many the cluster and its nodes may add to ours.
const MAX_SEARCHES: usize = 32;
const SEARCHES_OF_OTHERS: usize = 6;
/// Most ranges of one pod, and most places.
const MAX_RANGES: usize = 16;
const MAX_LISTENERS: usize = 64;
const MAX_INBOUND: usize = 32;
/// Where Envoy takes what comes to the first of the workload's ports; the next ones follow.
const FIRST_INBOUND: u16 = 15100;
/// Where Envoy gets what is led to it.
const ENVOY: u16 = 15001;

/// Whether the pod has one that was put there by this.
pub(super) fn is_in(pod: &Pod) -> bool {
    pod.annotation(STATUS).is_some() && pod.containers().any(|container| container.name == SIDECAR)
}

/// What has to be changed so that it has one: operations of JSON Patch (RFC 6902).
///
/// # Errors
/// Why it cannot have one, in words.
pub(super) fn patch(pod: &Pod, namespace: &str, settings: &Settings) -> Result<Vec<Value>, String> {
    check(pod)?;
    let listeners = listeners(pod)?;
    let ranges = ranges(pod, settings)?;
    let inbound = taken(pod, listeners.is_some(), settings.ipv6)?;
    let config = config(settings, &ranges, &inbound, listeners.as_deref()).to_string();
    let mut patch = Vec::new();
    let capture = listeners.is_none().then(|| capture(settings, &config));
    let containers: Vec<Value> = capture.into_iter().chain([sidecar(settings, &config)]).collect();
    match &pod.spec.init_containers {
        None => patch.push(add("/spec/initContainers", &json!(containers))),
        // Before those that are there, which may want to connect already; the last is put in first.
        Some(_) => patch.extend(containers.into_iter().rev().map(|one| add("/spec/initContainers/0", &one))),
    }
    match &pod.spec.volumes {
        None => patch.push(add("/spec/volumes", &json!(volumes()))),
        Some(_) => patch.extend(volumes().into_iter().map(|volume| add("/spec/volumes/-", &volume))),
    }
    patch.extend(searches(pod, namespace));
    if pod.has_annotations() {
        patch.push(add(&format!("/metadata/annotations/{}", STATUS.replace('/', "~1")), &json!("injected")));
    } else {
        patch.push(add("/metadata/annotations", &json!({STATUS: "injected"})));
    }
    Ok(patch)
}

fn add(path: &str, value: &Value) -> Value {
    json!({"op": "add", "path": path, "value": value})
}

fn check(pod: &Pod) -> Result<(), String> {
    if let Some(container) = pod.containers().find(|container| [SIDECAR, CAPTURE].contains(&container.name.as_str())) {
        return Err(format!("it has a container {} that was not put there by this webhook", container.name));
    }
    let volumes = pod.spec.volumes.iter().flatten();
    if let Some(volume) = volumes.into_iter().find(|volume| VOLUMES.contains(&volume.name.as_str())) {
        return Err(format!("it has a volume {} that was not put there by this webhook", volume.name));
    }
    if let Some(who) = pod.runs_as(USER) {
        let advice = format!("choose another runAsUser, or set {INJECT}: \"false\"");
        return Err(format!("{who} runs as user {USER}, whose connections pass by sidecars; {advice}"));
    }
    Label::parse(pod.account()).map(drop).map_err(|error| {
        let advice = format!("choose another service account, or set {INJECT}: \"false\"");
        format!("service account {:?} makes no identity, its name {error}; {advice}", pod.account())
    })
}

/// What is led to Envoy; empty: everything.
fn ranges(pod: &Pod, settings: &Settings) -> Result<Vec<String>, String> {
    let Some(text) = pod.annotation(RANGES) else { return Ok(settings.ranges.clone()) };
    let ranges: Vec<&str> = text.split(',').map(str::trim).filter(|range| !range.is_empty()).collect();
    if ranges.is_empty() || ranges.len() > MAX_RANGES {
        return Err(format!("annotation {RANGES} must hold 1 to {MAX_RANGES} ranges, e.g. \"10.96.0.0/16\""));
    }
    let parsed = ranges.iter().map(|range| match range.parse::<eastway_model::vip::VipRange>() {
        Ok(range) => Ok(range.to_string()),
        Err(error) => Err(format!("annotation {RANGES}: {range:?} {error}")),
    });
    parsed.collect()
}

/// Places that the pod's workload connects to, if it wants those instead of rules.
fn listeners(pod: &Pod) -> Result<Option<Vec<Value>>, String> {
    let Some(text) = pod.annotation(LISTENERS) else { return Ok(None) };
    let words: Vec<&str> = text.split(',').map(str::trim).filter(|word| !word.is_empty()).collect();
    if words.is_empty() || words.len() > MAX_LISTENERS {
        let example = "e.g. \"9080=bookinfo/reviews:9080/http\"";
        return Err(format!("annotation {LISTENERS} must hold 1 to {MAX_LISTENERS} places, {example}"));
    }
    let read = words.iter().map(|word| {
        let wrong = "must be PORT=NAMESPACE/SERVICE:PORT, with /http or /http2 at the end if it speaks that; PORT is 1024 or more";
        place(word).ok_or_else(|| format!("annotation {LISTENERS}: {word:?} {wrong}"))
    });
    read.collect::<Result<Vec<_>, _>>().map(Some)
}

fn place(word: &str) -> Option<Value> {
    let (listen, rest) = word.split_once('=')?;
    let listen: u16 = listen.parse().ok().filter(|port| *port >= 1024 && ![ENVOY, HEALTH].contains(port))?;
    let (service, port) = rest.split_once(':')?;
    let (port, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
    let service: ServiceKey = service.parse().ok()?;
    let port: NonZeroU16 = port.parse().ok()?;
    if !["tcp", "http", "http2"].contains(&protocol) {
        return None;
    }
    let listen = format!("127.0.0.1:{listen}");
    Some(json!({"listen": listen, "service": service.to_string(), "port": port, "protocol": protocol}))
}

/// Places where the sidecar takes connections for its workload, as its file has them.
fn taken(pod: &Pod, has_listeners: bool, ipv6: bool) -> Result<Vec<Value>, String> {
    let (text, strict) = match (pod.annotation(INBOUND), is_strict(pod.annotation(TLS))?) {
        (None, true) => return Err(format!("annotation {TLS}: {INBOUND} must say at which ports")),
        (None, false) => return Ok(Vec::new()),
        (Some(_), _) if has_listeners => {
            return Err(format!(
                "annotations {INBOUND} and {LISTENERS} exclude each other: without rules nothing is led in"
            ));
        }
        (Some(text), strict) => (text, strict),
    };
    let places = inbound(text)?;
    let ports: Vec<u16> = places.iter().map(|(port, _)| *port).collect();
    let asked = pod.containers().find_map(|container| Some((&container.name, container.asked_at(&ports)?)));
    if let Some((name, port)) = asked.filter(|_| strict) {
        return Err(format!(
            "container {name} has a probe at port {port}, which would take mutual TLS alone; probe by exec, or at a port of its own"
        ));
    }
    let mode = if strict { "strict" } else { "permissive" };
    let places = places.into_iter().zip(FIRST_INBOUND..).flat_map(|((port, protocol), listen)| {
        families(ipv6).iter().map(move |(any, own)| {
            json!({
                "listen": format!("{any}:{listen}"), "app": format!("{own}:{port}"), "mode": mode,
                // Services may come after the pod, and change while it runs: gateways know them.
                "protocol": protocol.unwrap_or("service"),
            })
        })
    });
    Ok(places.collect())
}

/// All addresses of a pod, and those of its own that its workload is reached at; of IPv6 only where pods have it.
fn families(ipv6: bool) -> &'static [(&'static str, &'static str)] {
    const IPV4: (&str, &str) = ("0.0.0.0", "127.0.0.1");
    if ipv6 { &[IPV4, ("[::]", "[::1]")] } else { &[IPV4] }
}

/// What [`TLS`] says.
pub(super) fn is_strict(text: Option<&str>) -> Result<bool, String> {
    match text {
        None | Some("permissive") => Ok(false),
        Some("strict") => Ok(true),
        Some(other) => Err(format!("annotation {TLS} must be strict or permissive, not {other:?}")),
    }
}

/// Ports of the workload, and what is spoken there; `None`: what Services say that lead there.
pub(super) fn inbound(text: &str) -> Result<Vec<(u16, Option<&str>)>, String> {
    let words: Vec<&str> = text.split(',').map(str::trim).filter(|word| !word.is_empty()).collect();
    if words.is_empty() || words.len() > MAX_INBOUND {
        return Err(format!("annotation {INBOUND} must hold 1 to {MAX_INBOUND} ports, e.g. \"9080/http\""));
    }
    let mut all: Vec<(u16, Option<&str>)> = Vec::new();
    for word in words {
        let (port, protocol) = word.split_once('/').map_or((word, None), |(port, protocol)| (port, Some(protocol)));
        let number: Option<u16> = port.parse().ok().filter(|port| *port > 0 && ![ENVOY, HEALTH].contains(port));
        let is_known = protocol.is_none_or(|protocol| ["tcp", "http", "http2"].contains(&protocol));
        match number.filter(|number| is_known && all.iter().all(|(other, _)| other != number)) {
            Some(number) => all.push((number, protocol)),
            None => {
                let wrong = "must be a port, named once, with /http, /http2 or /tcp behind it if no Service says what it speaks";
                return Err(format!("annotation {INBOUND}: {word:?} {wrong}"));
            }
        }
    }
    Ok(all)
}

/// The sidecar's file. What differs from pod to pod the kubelet fills in: the names of most pods are not known yet.
fn config(settings: &Settings, ranges: &[String], inbound: &[Value], listeners: Option<&[Value]>) -> Value {
    let any = if settings.ipv6 { "[::]" } else { "0.0.0.0" };
    let mut config = json!({
        "apiVersion": "eastway.dev/v1alpha1",
        "kind": "SidecarConfig",
        "workload": {
            "namespace": "$(POD_NAMESPACE)", "serviceAccount": "$(SERVICE_ACCOUNT)", "name": "$(POD_NAME)",
        },
        "trust": {
            "domain": settings.trust_domain,
            "ca": settings.ca,
            "cacerts": "/etc/eastway/trust",
            "token": "/var/run/secrets/eastway/token",
            "keep": "/run/eastway/keep",
            "systemNamespace": settings.system_namespace.as_str(),
        },
        "gateway": settings.gateway,
        "health": format!("{any}:{HEALTH}"),
        "state": "/run/eastway/state",
        "drain": "5s",
        "log": {"format": "json"},
    });
    let how = match listeners {
        Some(listeners) => json!({"outbound": false, "listeners": listeners}),
        None => json!({"capture": "prepared", "vips": ranges, "inbound": inbound}),
    };
    if let (Some(fields), Value::Object(how)) = (config.as_object_mut(), how) {
        fields.extend(how);
    }
    if let Some(workload) =
        config.pointer_mut("/workload").and_then(Value::as_object_mut).filter(|_| !inbound.is_empty())
    {
        // Where Services lead to it.
        workload.insert("addresses".to_owned(), "$(POD_IPS)".into());
    }
    config
}

fn environment(config: &str) -> Value {
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    json!([
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
        field("POD_IPS", "status.podIPs"),
        // After those that it names.
        {"name": "EASTWAY_SIDECAR_CONFIG", "value": config},
    ])
}

/// Makes rules in the pod's network, and ends. The one that may.
fn capture(settings: &Settings, config: &str) -> Value {
    json!({
        "name": CAPTURE,
        "image": settings.image,
        "imagePullPolicy": settings.pull_policy,
        "args": ["sidecar", "--prepare-capture"],
        "env": environment(config),
        "resources": settings.resources,
        "securityContext": {
            "runAsUser": 0,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    })
}

fn sidecar(settings: &Settings, config: &str) -> Value {
    let asked = |path: &str, every: u32, failures: u32| {
        json!({
            "httpGet": {"path": path, "port": HEALTH}, "periodSeconds": every, "timeoutSeconds": 2,
            "failureThreshold": failures,
        })
    };
    json!({
        "name": SIDECAR,
        "image": settings.image,
        "imagePullPolicy": settings.pull_policy,
        "restartPolicy": "Always",
        "args": ["sidecar"],
        "env": environment(config),
        "resources": settings.resources,
        // The workload starts when its connections have somewhere to go.
        "startupProbe": asked("/readyz", 1, START_SECONDS),
        "readinessProbe": asked("/readyz", 5, 3),
        "livenessProbe": asked("/healthz", 10, 6),
        "securityContext": {
            "runAsUser": USER,
            "runAsGroup": USER,
            "runAsNonRoot": true,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [
            {"name": VOLUMES[0], "mountPath": "/run/eastway"},
            {"name": VOLUMES[1], "mountPath": "/var/run/secrets/eastway", "readOnly": true},
            {"name": VOLUMES[2], "mountPath": "/etc/eastway/trust", "readOnly": true},
        ],
    })
}

fn volumes() -> [Value; 3] {
    let token = json!({"serviceAccountToken": {"path": "token", "audience": "eastway-ca", "expirationSeconds": 3600}});
    [
        // Sockets, and its key: never on a disk.
        json!({"name": VOLUMES[0], "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}}),
        json!({"name": VOLUMES[1], "projected": {"sources": [token]}}),
        json!({"name": VOLUMES[2], "configMap": {"name": TRUST}}),
    ]
}

/// A bare name is looked for in the pod's own cluster first, whose domains the kubelet puts before these, and then among the
/// services of all.
fn searches(pod: &Pod, namespace: &str) -> Vec<Value> {
    let ours = [format!("{namespace}.svc.clusterset.local"), "svc.clusterset.local".to_owned()];
    let config = pod.spec.dns_config.as_ref();
    let there = config.and_then(|config| config.searches.as_deref());
    let missing: Vec<&String> = ours.iter().filter(|one| !there.unwrap_or_default().contains(one)).collect();
    if there.unwrap_or_default().len() + missing.len() + SEARCHES_OF_OTHERS > MAX_SEARCHES {
        return Vec::new();
    }
    match (config, there) {
        (None, _) => vec![add("/spec/dnsConfig", &json!({"searches": missing}))],
        (Some(_), None) => vec![add("/spec/dnsConfig/searches", &json!(missing))],
        (Some(_), Some(_)) => missing.into_iter().map(|one| add("/spec/dnsConfig/searches/-", &json!(one))).collect(),
    }
}
