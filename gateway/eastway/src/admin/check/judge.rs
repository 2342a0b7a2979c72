//! From facts to findings: pure, so that every code has a test.

use super::catalogue::{self as codes, Code};
use super::{
    CheckFacts, CheckReport, DnsFacts, Finding, GatewayFacts, HandshakeFault, IstioFacts, MeshChange, MeshFacts,
    NextCaFault, PeerFacts, Reach, Severity,
};
use crate::human::duration;

/// A CA that ends sooner is reported.
const ISSUER_WARNING: u64 = 30 * DAY;
/// A revocation list that ends sooner is reported: CAs publish the next one days before.
const CRL_WARNING: u64 = 2 * DAY;
/// Clocks further apart are reported; certificates are issued with a grace of a minute.
const SKEW_WARNING_MS: u64 = 30_000;
/// Clocks further apart make handshakes fail.
const SKEW_ERROR_MS: u64 = 300_000;
/// Ethernet carries 1,472 bytes of UDP payload over IPv4 and 1,452 over IPv6; clouds' own tunnels carry 1,380 and more.
const SMALL_MTU: u16 = 1_350;
/// Loss above this is reported.
const LOSS_PERCENT: f64 = 2.0;
/// Loss is judged only after so many packets.
const LOSS_SAMPLE: u64 = 1_000;
const FLAPS: u32 = 3;
const FEW_FDS: u64 = 4_096;
const SMALL_UDP_BUFFER: u64 = 1 << 20;
/// Names shown in one finding.
const EXAMPLES: usize = 5;

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;

/// Judges the facts: errors first, then warnings, then what is well; in each, the gateway before DNS before peers.
#[must_use]
pub fn judge(facts: &CheckFacts) -> CheckReport {
    let mut report = Report { findings: Vec::new() };
    gateway(&mut report, facts.now, &facts.gateway);
    if facts.peers.is_empty() {
        report.add(&codes::NO_PEERS, "gateway", "", "");
    }
    dns(&mut report, &facts.dns);
    for peer in &facts.peers {
        path(&mut report, peer);
        trust(&mut report, facts.now, peer);
        exchange(&mut report, peer);
        policy(&mut report, peer);
    }
    let mut findings = report.findings;
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    CheckReport { findings }
}

struct Report {
    findings: Vec<Finding>,
}

impl Report {
    fn add(&mut self, code: &Code, subject: &str, peer: &str, what: &str) {
        let fill = |text: &str| text.replace("{peer}", peer).replace("{what}", what);
        self.findings.push(Finding {
            code: code.id.to_owned(),
            severity: code.severity,
            subject: subject.to_owned(),
            message: fill(code.title),
            cause: fill(code.cause),
            fix: fill(code.fix),
            change: String::new(),
        });
    }

    /// The contents of a file that the last finding speaks of.
    fn with_change(&mut self, change: &str) {
        if let Some(last) = self.findings.last_mut() {
            change.clone_into(&mut last.change);
        }
    }

    /// Whether anything but praise was added after the first `before` findings.
    fn complained_since(&self, before: usize) -> bool {
        self.findings.iter().skip(before).any(|finding| finding.severity > Severity::Ok)
    }
}

fn gateway(report: &mut Report, now: u64, facts: &GatewayFacts) {
    let before = report.findings.len();
    let mut add = |code: &Code, what: &str| report.add(code, "gateway", "", what);
    if !facts.pending.is_empty() {
        add(&codes::NOT_READY, &list(&facts.pending));
    }
    for error in facts.registry_errors.iter().take(EXAMPLES) {
        add(&codes::REGISTRY_REFUSED, error);
    }
    if !facts.config_errors.is_empty() {
        add(&codes::CONFIG_REFUSED, &list(&facts.config_errors));
    }
    match facts.leaf {
        None => add(&codes::NO_LEAF, ""),
        Some((from, _)) if from > now => add(&codes::LEAF_IN_FUTURE, &duration(from - now)),
        Some((_, to)) if to <= now => add(&codes::LEAF_EXPIRED, &duration(now - to)),
        // Renewal is at two thirds; a fifth left means that it was tried for a long time.
        Some((from, to)) if to - now < (to - from) / 5 => add(&codes::LEAF_OLD, &duration(to - now)),
        Some(_) => {}
    }
    // Without a certificate that is told already.
    if let Some(why) = facts.ca_silent.as_ref().filter(|_| facts.leaf.is_some()) {
        add(&codes::CA_SILENT, why);
    }
    if !facts.siblings_silent.is_empty() {
        add(&codes::SIBLINGS_SILENT, &list(&facts.siblings_silent));
    }
    if !facts.sidecars_refusing.is_empty() {
        add(&codes::SIDECARS_REFUSE, &list(&facts.sidecars_refusing));
    }
    if !facts.sidecars_missing.is_empty() {
        add(&codes::SIDECARS_MISSING, &list(&facts.sidecars_missing));
    }
    if !facts.sidecars_differ.is_empty() {
        add(&codes::SIDECARS_DIFFER, &list(&facts.sidecars_differ));
    }
    if !facts.sidecars_in_the_way.is_empty() {
        add(&codes::SIDECARS_IN_THE_WAY, &list(&facts.sidecars_in_the_way));
    }
    match facts.issuer_not_after {
        Some(end) if end <= now => add(&codes::ISSUER_EXPIRED, &duration(now - end)),
        Some(end) if end - now < ISSUER_WARNING => add(&codes::ISSUER_ENDS, &duration(end - now)),
        _ => {}
    }
    match facts.crl_next_update {
        Some(end) if end <= now => add(&codes::CRL_STALE, &duration(now - end)),
        Some(end) if end - now < CRL_WARNING => add(&codes::CRL_ENDS, &duration(end - now)),
        _ => {}
    }
    if facts.dropped_log_lines > 0 {
        add(&codes::LOG_LINES_LOST, &facts.dropped_log_lines.to_string());
    }
    if let Some(limit) = facts.fd_limit.filter(|limit| *limit < FEW_FDS) {
        add(&codes::FEW_FDS, &limit.to_string());
    }
    if let Some(bytes) = facts.udp_receive_buffer.filter(|bytes| *bytes < SMALL_UDP_BUFFER) {
        add(&codes::SMALL_UDP_BUFFER, &bytes.to_string());
    }
    if facts.vips_missing > 0 {
        add(&codes::VIPS_FULL, &facts.vips_missing.to_string());
    }
    if !facts.vips_unbound.is_empty() {
        add(&codes::VIPS_UNBOUND, &list(&facts.vips_unbound));
    }
    if !facts.exported_without_endpoints.is_empty() {
        add(&codes::NO_ENDPOINTS, &list(&facts.exported_without_endpoints));
    }
    if let Some(facts) = &facts.istio {
        istio(report, facts);
    }
    if !report.complained_since(before) {
        report.add(&codes::GATEWAY_OK, "gateway", "", "");
    }
}

fn istio(report: &mut Report, facts: &IstioFacts) {
    let mut add = |code: &Code, what: &str| report.add(code, "istio", "", what);
    let lists = [
        (&codes::ISTIO_NOBODY, &facts.nobody),
        (&codes::ISTIO_STRANGERS, &facts.strangers),
        (&codes::ISTIO_UNTOLD, &facts.untold),
        (&codes::ISTIO_NO_SIDECAR, &facts.plain),
    ];
    for (code, found) in lists.into_iter().filter(|(_, found)| !found.is_empty()) {
        add(code, &list(found));
    }
    if let Some(why) = &facts.unreadable {
        add(&codes::ISTIO_UNREADABLE, why);
    }
    if let Some(what) = &facts.network {
        add(&codes::ISTIO_NETWORK, what);
    }
    if facts.other_root {
        add(&codes::ISTIO_ROOT, "");
    }
    for MeshFacts { revision, domains, change } in &facts.meshes {
        let subject = if revision.is_empty() { "istio".to_owned() } else { format!("istio revision {revision}") };
        if let Some((its, ours)) = domains {
            report.add(&codes::ISTIO_DOMAIN, &subject, "", &format!("{its}, and ours {ours}"));
        }
        if let Some(MeshChange { peers, change }) = change {
            report.add(&codes::ISTIO_MESH, &subject, "", &list(peers));
            report.with_change(change);
        }
    }
}

fn dns(report: &mut Report, facts: &DnsFacts) {
    if !facts.enabled {
        return;
    }
    let before = report.findings.len();
    let mut add = |code: &Code, what: &str| report.add(code, "dns", "", what);
    if !facts.answers {
        add(&codes::DNS_SILENT, "");
    } else if !facts.synced {
        add(&codes::DNS_NOT_SYNCED, "");
    }
    for (name, target) in facts.dangling_names.iter().take(EXAMPLES) {
        add(&codes::NAME_DANGLES, &format!("{name} points at {target}"));
    }
    for (name, answer) in facts.unresolved.iter().take(EXAMPLES) {
        add(&codes::NAME_UNRESOLVED, &format!("{name} is answered {answer}"));
    }
    if !report.complained_since(before) {
        report.add(&codes::DNS_OK, "dns", "", "");
    }
}

fn path(report: &mut Report, peer: &PeerFacts) {
    let subject = format!("peer {}", peer.name);
    let before = report.findings.len();
    let mut add = |code: &Code, what: &str| report.add(code, &subject, &peer.name, what);
    for address in &peer.addresses {
        let (code, what) = match &address.reach {
            Reach::Answered(_) => continue,
            Reach::Unresolved(why) => {
                (&codes::ADDRESS_UNRESOLVED, format!("{} does not resolve: {why}", address.address))
            }
            Reach::Silent => (&codes::ADDRESS_SILENT, address.address.clone()),
            Reach::Refused => (&codes::ADDRESS_REFUSED, address.address.clone()),
            Reach::Unroutable(why) => (&codes::ADDRESS_UNROUTABLE, format!("{}: {why}", address.address)),
        };
        if peer.up {
            add(&codes::ADDRESS_PARTLY, &format!("{} does not answer", address.address));
        } else {
            add(code, &what);
        }
    }
    if !peer.up {
        let answered = peer.addresses.iter().any(|address| matches!(address.reach, Reach::Answered(_)));
        if let Some(why) = &peer.relay_error {
            add(&codes::NOT_RELAYED, why);
        } else if peer.addresses.is_empty() {
            add(&codes::NOT_DIALLED, "");
        } else if answered && peer.handshake.is_none() && peer.version_mismatch.is_none() {
            add(&codes::ANSWERS_BUT_DOWN, "");
        }
    }
    if let Some(via) = &peer.via {
        add(&codes::RELAYED, via);
    } else if let Some(transport) = &peer.transport {
        add(&codes::DEGRADED, transport);
    }
    if let Some(mtu) = peer.mtu.filter(|mtu| *mtu < SMALL_MTU) {
        add(&codes::SMALL_MTU, &mtu.to_string());
    }
    if let Some(Err(why)) = &peer.echo {
        add(&codes::ECHO_FAILED, why);
    }
    if let Some(percent) = loss(peer.packets).filter(|percent| *percent > LOSS_PERCENT) {
        add(&codes::LOSS, &format!("{percent:.1} %"));
    }
    if peer.recent_link_losses >= FLAPS {
        add(&codes::FLAPPING, &peer.recent_link_losses.to_string());
    }
    if peer.up && !report.complained_since(before) {
        let trip = match &peer.echo {
            Some(Ok(trip)) => format!("64 KiB there and back in {}", crate::human::millis(*trip)),
            Some(Err(_)) | None => "link up".to_owned(),
        };
        report.add(&codes::PATH_OK, &subject, &peer.name, &trip);
    }
}

fn trust(report: &mut Report, now: u64, peer: &PeerFacts) {
    let subject = format!("peer {}", peer.name);
    let before = report.findings.len();
    let mut add = |code: &Code, what: &str| report.add(code, &subject, &peer.name, what);
    match &peer.handshake {
        // A fault of the past does not matter once a link is up; another replica's may, and its log says so.
        _ if peer.up => {}
        None => {}
        Some(HandshakeFault::Unpinned(pin)) => add(&codes::UNPINNED, pin),
        Some(HandshakeFault::WrongIdentity(id)) => add(&codes::WRONG_IDENTITY, id),
        Some(HandshakeFault::Expired(end)) => add(&codes::PEER_EXPIRED, &duration(now.saturating_sub(*end))),
        Some(HandshakeFault::NotYetValid(begin)) => add(&codes::PEER_IN_FUTURE, &duration(begin.saturating_sub(now))),
        Some(HandshakeFault::Revoked) => add(&codes::REVOKED, ""),
        Some(HandshakeFault::WrongCluster(name)) => add(&codes::WRONG_CLUSTER, name),
        Some(HandshakeFault::RefusedUs(why)) => add(&codes::REFUSED_US, why),
        Some(HandshakeFault::Protocol(why)) => add(&codes::PROTOCOL, why),
        Some(HandshakeFault::Other(why)) => add(&codes::HANDSHAKE, why),
    }
    // As with our own: renewed at two thirds, so a fifth left means that it was tried for a long time.
    if let Some((from, to)) = peer.certificate.filter(|_| peer.up)
        && to.saturating_sub(now) < to.saturating_sub(from) / 5
    {
        add(&codes::PEER_CERTIFICATE_ENDS, &duration(to.saturating_sub(now)));
    }
    match &peer.next_ca {
        Some(NextCaFault::Missing(key)) => add(&codes::NEXT_CA_MISSING, key),
        Some(NextCaFault::Unknown(key)) => add(&codes::NEXT_CA_UNKNOWN, key),
        None => {}
    }
    if peer.shared_trust_domain {
        add(&codes::SHARED_TRUST_DOMAIN, "");
    }
    if let Some(skew) = peer.clock_skew_ms.map(i64::unsigned_abs) {
        if skew > SKEW_ERROR_MS {
            add(&codes::LARGE_SKEW, &duration(skew));
        } else if skew > SKEW_WARNING_MS {
            add(&codes::SKEW, &duration(skew));
        }
    }
    if peer.up && !report.complained_since(before) {
        let keys = if peer.pins == 1 { "1 pinned key".to_owned() } else { format!("{} pinned keys", peer.pins) };
        report.add(&codes::TRUST_OK, &subject, &peer.name, &keys);
    }
}

fn exchange(report: &mut Report, peer: &PeerFacts) {
    let subject = format!("peer {}", peer.name);
    let before = report.findings.len();
    let mut add = |code: &Code, what: &str| report.add(code, &subject, &peer.name, what);
    if let Some(versions) = &peer.version_mismatch {
        add(&codes::VERSIONS, versions);
    } else if peer.up && !peer.synced {
        add(&codes::NOT_SYNCED, "");
    }
    if peer.import_rules == 0 {
        add(&codes::NO_IMPORT_RULES, "");
    } else if peer.up && peer.synced && peer.imported_services == 0 {
        add(&codes::NOTHING_ARRIVES, "");
    }
    if peer.export_rules == 0 {
        add(&codes::NO_EXPORT_RULES, "");
    } else if peer.exported_services == 0 {
        add(&codes::EXPORT_SELECTS_NOTHING, "");
    }
    if !peer.rejected.is_empty() {
        let reasons: Vec<String> = peer.rejected.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        add(&codes::RECORDS_REFUSED, &list(&reasons));
    }
    if let Some(age) = peer.stale_ms {
        add(&codes::STALE, &duration(age));
    }
    for conflict in peer.conflicts.iter().take(EXAMPLES) {
        add(&codes::CONFLICT, conflict);
    }
    if !peer.istio_plain.is_empty() {
        add(&codes::ISTIO_PLAIN, &list(&peer.istio_plain));
    }
    if peer.up && !report.complained_since(before) {
        let what = format!("{} services in, {} out", peer.imported_services, peer.exported_services);
        report.add(&codes::EXCHANGE_OK, &subject, &peer.name, &what);
    }
}

fn policy(report: &mut Report, peer: &PeerFacts) {
    let subject = format!("peer {}", peer.name);
    let before = report.findings.len();
    if let Some((count, example)) = &peer.denied {
        report.add(&codes::DENIED, &subject, &peer.name, &format!("{count}, e.g. {example}"));
    }
    if peer.denied_by_it > 0 {
        report.add(&codes::DENIED_BY_PEER, &subject, &peer.name, &peer.denied_by_it.to_string());
    }
    if !report.complained_since(before) {
        report.add(&codes::POLICY_OK, &subject, &peer.name, "");
    }
}

/// Percent of lost packets, if enough were sent to tell.
fn loss((sent, lost): (u64, u64)) -> Option<f64> {
    let thousandths = lost.saturating_mul(100_000).checked_div(sent)?;
    let percent = f64::from(u32::try_from(thousandths).ok()?) / 1_000.0;
    (sent >= LOSS_SAMPLE).then_some(percent)
}

fn list(items: &[String]) -> String {
    let mut text = items.iter().take(EXAMPLES).map(String::as_str).collect::<Vec<_>>().join(", ");
    if items.len() > EXAMPLES {
        text.push_str(&format!(" and {} more", items.len() - EXAMPLES));
    }
    text
}

#[cfg(test)]
mod tests;
