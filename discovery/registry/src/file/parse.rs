//! From the file to [`Contents`]. Whatever is wrong is reported where it stands.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use eastway_model::name::check_label_key;
use eastway_model::rules::never_shared;
use eastway_model::{
    IpFamily, Label, PortKey, PortName, PortNumber, Protocol, ServiceKey, ServiceKind, ServicePort, ServiceRecord,
    SessionAffinity, TlsMode, Workload,
};

use super::contents::{Contents, EndpointSpec, HealthPort, HealthSpec, Probe, ServiceSpec};
use super::list::{
    AffinityWord, EndpointSection, HealthSection, KindWord, PortSection, ProtocolWord, ServiceList, ServiceSection,
    TlsWord, WorkloadSection,
};
use crate::diagnostic::{Code, Diagnostics, Source, did_you_mean, quoted};
use crate::value::{RefusedAddress, dialable, duration, label_pair, port, show_duration};
use crate::yaml::{self, At, Context, Field, NodeId, Text};

/// Largest service file: some 100,000 endpoints.
pub const MAX_BYTES: usize = 16 << 20;
/// Most ports of a service.
const MAX_PORTS: usize = 250;
/// Most labels of a service or endpoint.
const MAX_LABELS: usize = 16;
/// Largest weight of an endpoint.
const MAX_WEIGHT: u32 = 1_000_000;

/// Reads a service file. Loopback addresses are accepted only with `allow_loopback`.
///
/// # Errors
/// All that is wrong with it, and the warnings.
pub fn load(path: &Path, allow_loopback: bool) -> Result<(Contents, Diagnostics), Diagnostics> {
    match yaml::read_file(path, MAX_BYTES) {
        Ok(source) => parse(&source, allow_loopback),
        Err(diagnostic) => {
            let mut sink = Diagnostics::new();
            sink.push(*diagnostic);
            Err(sink)
        }
    }
}

/// Parses the text of a service file.
///
/// # Errors
/// All that is wrong with it, and the warnings.
pub fn parse(source: &Arc<Source>, allow_loopback: bool) -> Result<(Contents, Diagnostics), Diagnostics> {
    let mut sink = Diagnostics::new();
    let mut contents = None;
    if let Some(document) = yaml::read_one(source, "ServiceList", &mut sink)
        && let Some(list) = document.decode::<ServiceList>(&mut sink)
    {
        let mut reader = Reader { cx: Context::new(&document, &mut sink), allow_loopback };
        contents = Some(reader.list(&list));
    }
    sink.sort();
    match contents {
        Some(contents) if !sink.has_errors() => Ok((contents, sink)),
        _ => Err(sink),
    }
}

struct Reader<'a> {
    cx: Context<'a>,
    allow_loopback: bool,
}

/// Ports of the service being read.
type Ports = Vec<(ServicePort, PortNumber)>;

impl Reader<'_> {
    fn list(&mut self, list: &ServiceList) -> Contents {
        let root = self.cx.root();
        self.cx.header(root, &list.api_version, &list.kind, "ServiceList");
        let mut contents = Contents::default();
        for section in list.services.items() {
            let Some((key, service)) = self.service(section) else { continue };
            match contents.services.entry(key) {
                Entry::Vacant(entry) => {
                    entry.insert(service);
                }
                Entry::Occupied(entry) => {
                    let at = section.value.name.get().map_or(section.at, |name| name.at);
                    self.cx.error(at, Code::Duplicate, format!("{} is already listed; merge the two", entry.key()));
                }
            }
        }
        let mut addresses = BTreeSet::new();
        for section in list.workloads.items() {
            let Some(workload) = self.workload(section) else { continue };
            if addresses.insert(workload.address) {
                contents.workloads.push(workload);
            } else {
                let at = section.value.address.get().map_or(section.at, |address| address.at);
                self.cx.error(at, Code::Duplicate, format!("{} is already listed", workload.address));
            }
        }
        contents
    }

    fn service(&mut self, section: &At<ServiceSection>) -> Option<(ServiceKey, ServiceSpec)> {
        let (at, service) = (section.at, &section.value);
        let namespace = self.cx.required_parse(at, "namespace", &service.namespace, "its namespace", Label::parse);
        let name = self.cx.required_parse(at, "name", &service.name, "the service's name", Label::parse_service);
        let ports = self.ports(at, service);
        let told = self.told(service, &ports);
        let health = service.health.get().and_then(|section| self.health(section, &ports, &told));
        let endpoints = self.endpoints(service, &ports);
        let affinity = self.affinity(service);
        let labels = self.labels(&service.labels);
        let annotations = self.annotations(&service.annotations);
        let exported = service.export.value().copied().unwrap_or(false);
        let key = ServiceKey { namespace: namespace?, name: name? };
        if let Some(export) = service.export.get().filter(|export| export.value)
            && never_shared(key.namespace.as_str())
        {
            let message = format!("services of {} never leave their cluster", key.namespace);
            self.cx.warn(export.at, Code::Forbidden, message);
        }
        let mut record = ServiceRecord::new(key.clone(), ports.into_iter().map(|(port, _)| port).collect());
        record.kind = match service.kind.value() {
            None | Some(KindWord::ClusterSetIp) => ServiceKind::ClusterSetIp,
            Some(KindWord::Headless) => ServiceKind::Headless,
        };
        record.ip_families = families(&endpoints);
        record.session_affinity = affinity;
        record.labels = labels;
        record.annotations = annotations;
        record.proxy_protocol = told;
        let tls = match service.tls.value() {
            None | Some(TlsWord::Plain) => TlsMode::None,
            Some(TlsWord::Permissive) => TlsMode::Mesh,
            Some(TlsWord::Strict) => TlsMode::MeshStrict,
            Some(TlsWord::Istio) => TlsMode::Istio,
            Some(TlsWord::IstioStrict) => TlsMode::IstioStrict,
        };
        Some((key, ServiceSpec { record, exported, health, tls, endpoints }))
    }

    fn ports(&mut self, at: NodeId, service: &ServiceSection) -> Ports {
        let mut ports: Ports = Vec::new();
        let Some(list) = self.cx.required(at, "ports", &service.ports, "at least one port") else { return ports };
        if list.value.is_empty() {
            self.cx.error(list.at, Code::Missing, "at least one port is required");
        }
        if list.value.len() > MAX_PORTS {
            let message = format!("has {} ports; at most {MAX_PORTS} are allowed", list.value.len());
            self.cx.error(list.at, Code::TooLarge, message);
        }
        for section in service.ports.items().take(MAX_PORTS) {
            let Some((port, target)) = self.port(section, list.value.len() == 1) else { continue };
            let same = |(other, _): &&(ServicePort, PortNumber)| {
                (other.name.is_some() && other.name == port.name)
                    || (other.number == port.number && other.protocol == port.protocol)
            };
            if let Some((other, _)) = ports.iter().find(same) {
                let message = if other.name.is_some() && other.name == port.name {
                    "another port has this name".to_owned()
                } else {
                    format!("port {} is already listed", port.number)
                };
                self.cx.error(section.at, Code::Duplicate, message);
            } else {
                ports.push((port, target));
            }
        }
        ports
    }

    fn port(&mut self, section: &At<PortSection>, alone: bool) -> Option<(ServicePort, PortNumber)> {
        let (at, text) = (section.at, &section.value);
        let name = text.name.get().map(|name| self.cx.parse(name, PortName::parse));
        if text.name.get().is_none() && !alone && matches!(text.name, Field::Absent) {
            self.cx.error(at, Code::Missing, "name is required (the service has several ports)");
        }
        let number = self.cx.required(at, "port", &text.port, "its number")?;
        let number = self.cx.checked(number, |number| port(*number));
        let target = text.target_port.get().map_or(number, |target| self.cx.checked(target, |target| port(*target)));
        let app_protocol = text.app_protocol.get().and_then(|text| {
            self.cx.parse(text, |text| {
                let good = !text.is_empty() && text.len() <= 63 && text.bytes().all(|byte| byte.is_ascii_graphic());
                good.then(|| Arc::from(text)).ok_or("must be 1 to 63 printable characters without blanks")
            })
        });
        let protocol = match text.protocol.value() {
            None | Some(ProtocolWord::Tcp) => Protocol::Tcp,
            Some(ProtocolWord::Udp) => Protocol::Udp,
        };
        let name = match name {
            Some(name) => Some(name?),
            None => None,
        };
        Some((ServicePort { name, number: number?, protocol, app_protocol }, target?))
    }

    /// Ports whose endpoints are told the client's address.
    fn told(&mut self, service: &ServiceSection, ports: &Ports) -> BTreeSet<PortNumber> {
        let mut told = BTreeSet::new();
        let has_tls = !matches!(service.tls.value(), None | Some(TlsWord::Plain));
        for section in service.ports.items() {
            let Some(word) = section.value.proxy_protocol.get() else { continue };
            let is_udp = section.value.protocol.value() == Some(&ProtocolWord::Udp);
            if is_udp {
                self.cx.error(word.at, Code::Conflict, "is for TCP ports only");
            }
            if has_tls {
                // The sidecar would take the header for a broken handshake.
                self.cx.error(word.at, Code::Conflict, "not together with tls: sidecars expect no header");
            }
            let number = section.value.port.value().and_then(|number| port(*number).ok());
            told.extend(number.filter(|number| !is_udp && ports.iter().any(|(port, _)| port.number == *number)));
        }
        told
    }

    fn health(
        &mut self,
        section: &At<HealthSection>,
        ports: &Ports,
        told: &BTreeSet<PortNumber>,
    ) -> Option<HealthSpec> {
        let health = &section.value;
        let (probe, port) = match (health.http.get(), health.tcp.get()) {
            (Some(_), Some(tcp)) => {
                self.cx.error(tcp.at, Code::Conflict, "either http or tcp, not both");
                return None;
            }
            (Some(http), None) => {
                let path = http.value.path.get().map(|path| self.cx.parse(path, request_path));
                let path = path.unwrap_or_else(|| Some(Arc::from("/")));
                (path.map(|path| Probe::Http { path }), &http.value.port)
            }
            (None, Some(tcp)) => (Some(Probe::Tcp), &tcp.value.port),
            (None, None) => {
                if matches!((&health.http, &health.tcp), (Field::Absent, Field::Absent)) {
                    let help = "write tcp: {} to check by connecting";
                    self.cx.error_help(section.at, Code::Missing, "http or tcp is required", help);
                }
                return None;
            }
        };
        let port = self.health_port(section.at, port, ports);
        let ms = Duration::from_millis;
        let interval = self.duration(&health.interval, ms(100), ms(3_600_000), ms(5_000));
        let timeout = self.duration(&health.timeout, ms(10), ms(60_000), ms(1_000).min(interval));
        if timeout > interval
            && let Some(at) = health.timeout.get()
        {
            self.cx.error(at.at, Code::Conflict, "must be at most interval");
        }
        let unhealthy_after = self.count(&health.unhealthy_after, 2);
        let healthy_after = self.count(&health.healthy_after, 1);
        let port = port?;
        let proxy_protocol = match port {
            HealthPort::Service(port) => told.contains(&port),
            HealthPort::Number(number) => {
                ports.iter().any(|(port, target)| *target == number && told.contains(&port.number))
            }
        };
        Some(HealthSpec { probe: probe?, port, proxy_protocol, interval, timeout, unhealthy_after, healthy_after })
    }

    fn health_port(&mut self, at: NodeId, field: &Field<Text>, ports: &Ports) -> Option<HealthPort> {
        let tcp = || ports.iter().map(|(port, _)| port).filter(|port| port.protocol == Protocol::Tcp);
        let Some(text) = field.get() else {
            let first = tcp().next();
            if first.is_none() && !ports.is_empty() {
                self.cx.error(at, Code::Missing, "port is required (the service has no TCP port to check)");
            }
            return first.map(|port| HealthPort::Service(port.number));
        };
        self.cx.parse(text, |text| {
            if let Ok(number) = text.parse::<i64>() {
                return port(number).map(HealthPort::Number).map_err(|error| error.to_string());
            }
            let named = tcp().find(|port| port.name.as_ref().is_some_and(|name| name.as_str() == text));
            named.map(|port| HealthPort::Service(port.number)).ok_or_else(|| {
                let names = tcp().filter_map(|port| port.name.as_ref()).map(PortName::as_str);
                format!("no TCP port is named {}{}", quoted(text), meant(text, names))
            })
        })
    }

    fn endpoints(&mut self, service: &ServiceSection, ports: &Ports) -> Vec<EndpointSpec> {
        let mut endpoints = Vec::new();
        let mut places = BTreeSet::new();
        for section in service.endpoints.items() {
            let Some(endpoint) = self.endpoint(section, ports) else { continue };
            let taken =
                endpoint.target_ports.iter().any(|place| !places.insert((endpoint.address, *place.0, *place.1)));
            if taken {
                let at = section.value.address.get().map_or(section.at, |address| address.at);
                let message = format!("{} with these ports is already listed", endpoint.address);
                self.cx.error(at, Code::Duplicate, message);
            } else {
                endpoints.push(endpoint);
            }
        }
        endpoints
    }

    fn endpoint(&mut self, section: &At<EndpointSection>, ports: &Ports) -> Option<EndpointSpec> {
        let endpoint = &section.value;
        let address = self.address(section.at, &endpoint.address);
        let subset = self.labels(&endpoint.labels).into();
        let zone = endpoint.zone.get().and_then(|text| {
            self.cx.parse(text, |text| {
                let good = !text.is_empty() && text.len() <= 63 && text.bytes().all(|byte| byte.is_ascii_graphic());
                good.then(|| Arc::from(text)).ok_or("must be 1 to 63 printable characters without blanks")
            })
        });
        let weight = endpoint.weight.get().and_then(|weight| {
            self.cx.checked(weight, |weight| {
                let number = u32::try_from(*weight).ok().filter(|number| (1..=MAX_WEIGHT).contains(number));
                number.ok_or_else(|| format!("must be 1 to {MAX_WEIGHT}; to take it out, set draining: true"))
            })
        });
        let service_account = endpoint.service_account.get().and_then(|text| self.cx.parse(text, Label::parse));
        let hostname = endpoint.hostname.get().and_then(|text| self.cx.parse(text, Label::parse));
        let target_ports = self.target_ports(&endpoint.ports, ports);
        let draining = endpoint.draining.value().copied().unwrap_or(false);
        let weight = weight.unwrap_or(100);
        Some(EndpointSpec {
            address: address?,
            subset,
            zone,
            weight,
            service_account,
            hostname,
            target_ports,
            draining,
        })
    }

    fn target_ports(&mut self, field: &Field<BTreeMap<String, Field<i64>>>, ports: &Ports) -> BTreeMap<PortKey, u16> {
        let mut targets: BTreeMap<PortKey, u16> =
            ports.iter().map(|(port, target)| (port.key(), target.get())).collect();
        let Some(map) = field.get() else { return targets };
        for (key, value) in &map.value {
            let Some(value) = value.get() else { continue };
            // A number is that of all transports; a name, or a number with its transport, is of one.
            let known: Vec<PortKey> = (ports.iter().map(|(port, _)| port))
                .filter(|port| port.name.as_ref().is_some_and(|name| name.as_str() == key) || names(port, key))
                .map(ServicePort::key)
                .collect();
            if known.is_empty() {
                let names = ports.iter().filter_map(|(port, _)| port.name.as_ref()).map(PortName::as_str);
                let message = format!("the service has no port {}{}", quoted(key), meant(key, names));
                self.cx.error(value.at, Code::UnknownKey, message);
                continue;
            }
            if let Some(target) = self.cx.checked(value, |value| port(*value)) {
                targets.extend(known.into_iter().map(|known| (known, target.get())));
            }
        }
        targets
    }

    fn workload(&mut self, section: &At<WorkloadSection>) -> Option<Workload> {
        let workload = &section.value;
        let address = self.address(section.at, &workload.address);
        let namespace =
            self.cx.required_parse(section.at, "namespace", &workload.namespace, "its namespace", Label::parse);
        let service_account = workload.service_account.get().and_then(|text| self.cx.parse(text, Label::parse));
        Some(Workload { address: address?, namespace: namespace?, service_account })
    }

    /// An address that may be dialled (threat P6).
    fn address(&mut self, parent: NodeId, field: &Field<Text>) -> Option<IpAddr> {
        let text = self.cx.required(parent, "address", field, "its IP address")?;
        let what = "must be an IP address; names are not resolved here";
        let address: IpAddr = self.cx.parse(text, |text| text.parse().map_err(|_| what))?;
        match dialable(address, self.allow_loopback) {
            Ok(()) => Some(address),
            Err(refused) => {
                let message = format!("endpoint {address} refused: {refused}");
                if refused == RefusedAddress::Loopback {
                    let help = "use the address that other machines see, or set allowLoopback: true in the \
                                gateway's configuration for a test on one machine";
                    self.cx.error_help(text.at, Code::Forbidden, message, help);
                } else {
                    self.cx.error(text.at, Code::Forbidden, message);
                }
                None
            }
        }
    }

    fn affinity(&mut self, service: &ServiceSection) -> SessionAffinity {
        let hours = |hours: u64| Duration::from_secs(hours * 3_600);
        let timeout = self.duration(&service.session_affinity_timeout, Duration::from_secs(1), hours(24), hours(3));
        match service.session_affinity.value() {
            Some(AffinityWord::ClientIp) => SessionAffinity::ClientIp { timeout },
            None | Some(AffinityWord::None) => {
                if let Some(at) = service.session_affinity_timeout.get() {
                    self.cx.warn(at.at, Code::Conflict, "has no effect without sessionAffinity: ClientIP");
                }
                SessionAffinity::None
            }
        }
    }

    fn labels(&mut self, field: &Field<BTreeMap<String, Field<String>>>) -> BTreeMap<Arc<str>, Arc<str>> {
        let mut labels = BTreeMap::new();
        let Some(map) = field.get() else { return labels };
        if map.value.len() > MAX_LABELS {
            let message = format!("has {} labels; at most {MAX_LABELS} are allowed", map.value.len());
            self.cx.error(map.at, Code::TooLarge, message);
        }
        for (key, value) in &map.value {
            let Some(value) = value.get() else { continue };
            if self.cx.parse(value, |text| label_pair(key, text)).is_some() {
                labels.insert(key.as_str().into(), value.value.as_str().into());
            }
        }
        labels
    }

    fn annotations(&mut self, field: &Field<BTreeMap<String, Field<String>>>) -> BTreeMap<Arc<str>, Arc<str>> {
        let mut annotations = BTreeMap::new();
        let Some(map) = field.get() else { return annotations };
        if map.value.len() > MAX_LABELS {
            let message = format!("has {} annotations; at most {MAX_LABELS} are allowed", map.value.len());
            self.cx.error(map.at, Code::TooLarge, message);
        }
        for (key, value) in &map.value {
            let Some(value) = value.get() else { continue };
            let text = value.value.as_str();
            if let Err(error) = check_label_key(key) {
                self.cx.error(value.at, Code::Value, error.to_string());
            } else if text.len() > 1024 || text.chars().any(char::is_control) {
                let message = "must be at most 1024 characters without control characters";
                self.cx.error(value.at, Code::Value, message);
            } else {
                annotations.insert(key.as_str().into(), text.into());
            }
        }
        annotations
    }

    fn duration(&mut self, field: &Field<Text>, min: Duration, max: Duration, default: Duration) -> Duration {
        let Some(text) = field.get() else { return default };
        let value = self.cx.parse(text, |text| {
            let value = duration(text).map_err(|error| error.to_string())?;
            let message = || format!("must be {} to {}", show_duration(min), show_duration(max));
            if (min..=max).contains(&value) { Ok(value) } else { Err(message()) }
        });
        value.unwrap_or(default)
    }

    fn count(&mut self, field: &Field<i64>, default: u32) -> u32 {
        let Some(count) = field.get() else { return default };
        let value = self.cx.checked(count, |count| {
            u32::try_from(*count).ok().filter(|count| (1..=100).contains(count)).ok_or("must be 1 to 100")
        });
        value.unwrap_or(default)
    }
}

fn families(endpoints: &[EndpointSpec]) -> Vec<IpFamily> {
    let mut families = Vec::new();
    for endpoint in endpoints {
        let family = if endpoint.address.is_ipv4() { IpFamily::Ipv4 } else { IpFamily::Ipv6 };
        if !families.contains(&family) {
            families.push(family);
        }
    }
    families
}

fn request_path(text: &str) -> Result<Arc<str>, &'static str> {
    let good = |byte: u8| byte.is_ascii_graphic() && byte != b'#';
    if !text.starts_with('/') || text.len() > 1024 || !text.bytes().all(good) {
        return Err("must be a path such as /health, at most 1024 printable characters without blanks");
    }
    Ok(Arc::from(text))
}

/// Whether `key` is the number of a port, alone or with its transport.
fn names(port: &ServicePort, key: &str) -> bool {
    port.number.to_string() == key || port.key().to_string() == key
}

fn meant<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    did_you_mean(word, candidates).map_or_else(String::new, |meant| format!(" (did you mean {meant}?)"))
}
