//! The codes of `eastway check`: what each means, why it is probably so, and what to do.
//!
//! A code never changes its meaning and is never used again. EW1xx: this gateway; EW2xx: names; EW3xx: the way to a peer;
//! EW4xx: trust; EW5xx: what is exchanged; EW6xx: policy. In texts `{peer}` and `{what}` are replaced.

use super::Severity;

/// One code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    /// `EWnnn`.
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What it says, as one line.
    pub title: &'static str,
    /// Why it is probably so.
    pub cause: &'static str,
    /// What to do.
    pub fix: &'static str,
}

macro_rules! codes {
    ($($name:ident = $id:literal $severity:ident $title:literal, $cause:literal, $fix:literal;)*) => {
        $(
            #[doc = $title]
            pub const $name: Code =
                Code { id: $id, severity: Severity::$severity, title: $title, cause: $cause, fix: $fix };
        )*
        /// All codes, in order.
        pub const ALL: &[Code] = &[$($name),*];
    };
}

codes! {
    GATEWAY_OK = "EW100" Ok "the gateway is ready", "", "";
    NOT_READY = "EW101" Error "the gateway is not ready: {what}",
        "something it needs at the start has not happened yet",
        "read its log; `registry` waits for the registry's first contents, `certificate` for the ca role";
    CONFIG_REFUSED = "EW102" Error "the configuration on disk is refused, an older one runs: {what}",
        "a file was changed and cannot be used", "run `eastway config check`, mend what it names, and save the file";
    NO_LEAF = "EW103" Error "the gateway has no certificate",
        "the ca role does not run, or does not answer at `trust.ca`", "start `eastway ca --config FILE` and see its log";
    LEAF_EXPIRED = "EW104" Error "the gateway's certificate ended {what} ago",
        "it was not renewed: the ca role is down, or the clock was moved", "start the ca role; compare `date -u` with another machine";
    LEAF_OLD = "EW105" Warning "the gateway's certificate ends in {what} and was not renewed",
        "it should be renewed at two thirds of its life; the ca role does not answer", "see the logs of gateway and ca for `certificate`";
    ISSUER_ENDS = "EW106" Warning "the issuing CA ends in {what}",
        "CA certificates do not renew themselves", "run `eastway ca rotate` and give the new pin to all peers before then";
    ISSUER_EXPIRED = "EW107" Error "the issuing CA ended {what} ago",
        "it was not rotated in time", "run `eastway ca rotate`, and send the output of `eastway peer export` to all peers";
    CRL_STALE = "EW108" Error "the revocation list ended {what} ago",
        "`trust.crl` is not updated any more; new links to gateways of that CA are refused", "publish a new list, or remove `crl` from the configuration";
    LEAF_IN_FUTURE = "EW109" Error "the gateway's certificate begins in {what}",
        "the clock of this machine is behind", "set the clock (`timedatectl`, chrony)";
    LOG_LINES_LOST = "EW110" Warning "{what} log lines were dropped",
        "whoever reads standard error is too slow or stuck", "see to the log collector, or lower `log.level`";
    FEW_FDS = "EW111" Warning "the process may open only {what} files",
        "each connection needs one to three file descriptors", "raise the limit (`LimitNOFILE=`, `ulimit -n`) to at least 65536";
    SMALL_UDP_BUFFER = "EW112" Warning "the UDP receive buffer is only {what} bytes",
        "`net.core.rmem_max` of this machine is small; bursts are lost", "sysctl -w net.core.rmem_max=7500000";
    VIPS_FULL = "EW113" Error "{what} imports have no virtual address",
        "`vip.ranges` is full, or there is no room for more listeners: `eastway describe NAME` tells which",
        "add a range to `vip.ranges`, or raise the limit on open files";
    NO_ENDPOINTS = "EW114" Warning "exported services without a ready endpoint: {what}",
        "their health checks fail, or all endpoints drain", "run `eastway endpoints`, and look at the health checks in the registry";
    NO_PEERS = "EW115" Warning "no peer is configured",
        "the peers folder holds no `kind: Peer` file", "run `eastway peer export` at the other cluster and save its output in the peers folder";
    VIPS_UNBOUND = "EW116" Error "virtual addresses cannot be listened on: {what}",
        "`vip.ranges` does not lead to this host", "route each range here: ip route add local RANGE dev lo";
    CRL_ENDS = "EW117" Warning "the revocation list ends in {what}",
        "no newer list was published at `trust.crl`", "publish a new list before then: after it new links to gateways of that CA are refused";
    REGISTRY_REFUSED = "EW118" Error "registry {what}",
        "its file cannot be used as it is now; what was read before, if anything, goes on", "mend what it names, and save the file; `eastway config check` shows the line";

    CA_SILENT = "EW119" Warning "the ca role does not answer: {what}",
        "it does not run, hangs, or listens elsewhere than `trust.ca` says; links go on until our certificate ends",
        "start `eastway ca --config FILE` again and see its log; `trust.ca` must name where it listens";
    SIBLINGS_SILENT = "EW120" Warning "gateways of this cluster do not answer: {what}",
        "they do not run, UDP between the gateways of this cluster is blocked, or their link keys are others",
        "start them, or take them out of `replicas.siblings`; open UDP of `replicas.listen` between them; after `ca rotate finish --force` restart all of them";
    SIDECARS_REFUSE = "EW121" Warning "sidecars refuse what they are told: {what}",
        "their proxies cannot use a part of it and go on with what they had: a rule that their version does not know, or a mistake of ours",
        "run `eastway proxy-status`, and `eastway proxy-status SIDECAR` for what it holds; change the rule, or upgrade the proxy";
    SIDECARS_MISSING = "EW122" Warning "pods that are to have a sidecar have none: {what}",
        "they were made before their namespace had its label, or while no injector answered the API server",
        "kubectl rollout restart what makes them, once `deploy/eastway-injector` is ready; or say `sidecar.eastway.dev/inject: \"false\"`";
    SIDECARS_DIFFER = "EW123" Warning "sidecars do not take what Services say is spoken: {what}",
        "Services that lead to one port contradict each other (it is bytes then), or an annotation `sidecar.eastway.dev/inbound` contradicts them; clients speak as their Service says",
        "give the ports of these Services the same `appProtocol`; or take `/http`, `/http2` or `/tcp` out of the annotation, and make the pods anew";
    SIDECARS_IN_THE_WAY = "EW124" Error "pods whose sidecar would take a PROXY header for what clients say take no part in {what}",
        "the annotation `eastway.dev/proxy-protocol` of the Service names a port that `sidecar.eastway.dev/inbound` of its pods leads to their sidecar",
        "take the port out of one of the two: who connects by a sidecar is told in `x-forwarded-client-cert`";
    ISTIO_NOBODY = "EW125" Warning "ports for Istio's sidecars lead to no peer: {what}",
        "`listen.sni` (`istio.networks` of the chart) names a cluster that there is no Peer of",
        "add the Peer, or correct the name";
    ISTIO_UNREADABLE = "EW126" Warning "what Istio here is configured for cannot be read: {what}",
        "the gateway's rights lack it, or the API server does not answer", "install the chart again with `istio.enabled`, and what revisions there are in `istio.revisions`; see what the API server says";
    ISTIO_NETWORK = "EW127" Error "{what}",
        "the label `topology.istio.io/network` of the namespace istio-system says which network a cluster is to istiod; it has to be another one in each",
        "kubectl label namespace istio-system --overwrite topology.istio.io/network=NAME, and restart istiod and the workloads";
    ISTIO_STRANGERS = "EW128" Error "pods of this cluster take themselves for ones of a peer's network: {what}",
        "their label `topology.istio.io/network` (or ISTIO_META_NETWORK of their sidecar) is the name of a peer's network: they would look for its endpoints without a gateway",
        "take the label off them and what makes them, and start them again";
    ISTIO_UNTOLD = "EW129" Error "istiod is not told the gateway of {what}",
        "the Gateway `eastway-PEER` of class istio-remote is missing or has no IP address: no controller leads, the Service eastway-istio has no address yet, or the kinds of the Gateway API are not installed; istiod leaves endpoints there out meanwhile",
        "see the controller's log for `Istio`, and kubectl get gateways.gateway.networking.k8s.io -n eastway-system";
    ISTIO_NO_SIDECAR = "EW130" Warning "exported services with pods without a sidecar of Istio: {what}",
        "these pods lack the label `security.istio.io/tlsMode: istio`, which Istio's injection sets; sidecars of peers reach them in plain text inside the link, or not at all",
        "inject the sidecar and start them again, if they are to be part of the mesh";
    ISTIO_DOMAIN = "EW131" Error "the trust domain of Istio is {what}",
        "`trustDomain` of the chart has to be that of Istio's mesh configuration: peers are told to expect other identities than its sidecars have",
        "correct `trustDomain`, and send the output of `eastway peer export` to all peers";
    ISTIO_ROOT = "EW132" Error "Istio here signs by another root than our CA",
        "istiod and Eastway have different CAs, so that peers would be given one by which its sidecars cannot be verified",
        "give both the same Secret `cacerts`: copy that of istio-system to the namespace of Eastway";
    ISTIO_MESH = "EW133" Error "sidecars of Istio here cannot verify those of {what}",
        "their root or trust domain is not that of Istio here, and its mesh configuration does not name it",
        "set ISTIO_MULTIROOT_MESH=true for istiod, put what follows into the mesh configuration, and start the workloads again; it makes an account of these trust domains the same as that of its name here to AuthorizationPolicies";

    DNS_OK = "EW200" Ok "names are answered", "", "";
    DNS_SILENT = "EW201" Error "our DNS server does not answer",
        "its socket is overloaded or blocked by a local firewall", "try `eastway dns query`, and see the log for `dns`";
    DNS_NOT_SYNCED = "EW202" Error "all names are answered SERVFAIL",
        "local truth is not known yet", "see what `eastway status` says is pending";
    NAME_DANGLES = "EW203" Warning "{what}, which is neither imported nor local",
        "a rule in `dns.names` is misspelt, or the service is not exported to us", "correct the rule, or export the service at its cluster";
    NAME_UNRESOLVED = "EW204" Error "{what}",
        "the import has no virtual address, or its zone is not among `dns.zones`", "run `eastway describe` for it";

    PATH_OK = "EW300" Ok "reachable: {what}", "", "";
    ADDRESS_UNRESOLVED = "EW301" Error "{what}",
        "the name of the peer's gateway does not exist in DNS, or no resolver answers", "correct `addresses` of peer {peer}, or its DNS record";
    ADDRESS_SILENT = "EW302" Error "no answer to UDP from {what}",
        "a firewall drops UDP, the address is wrong, or no gateway runs there", "open UDP 15443 to the peer's gateways (security group, load balancer, NAT), and check its `eastway status`";
    ADDRESS_REFUSED = "EW303" Error "nobody listens at {what}",
        "the machine is there but no gateway runs on that port", "start the peer's gateway, or correct the port in `addresses` of peer {peer}";
    ADDRESS_UNROUTABLE = "EW304" Error "no route to {what}",
        "no default route, an address family that this network lacks, or a local firewall", "check routing and egress rules of this machine";
    NOT_DIALLED = "EW305" Error "no link, and no address to dial",
        "peer {peer} has no `addresses`: it has to dial us and does not", "check that {peer} lists our address (`eastway peer export` prints it) and can reach it";
    ADDRESS_PARTLY = "EW306" Warning "linked, but {what}",
        "one of several addresses does not work: no redundancy", "repair that address, or remove it from peer {peer}";
    DEGRADED = "EW307" Warning "linked over {what}, not over QUIC",
        "UDP is blocked on the way; TCP is slower when packets are lost", "open UDP 15443 between the gateways";
    SMALL_MTU = "EW308" Warning "packets carry only {what} bytes",
        "larger ones are lost on the way: a tunnel or PPPoE with a small MTU", "raise the MTU of the path; throughput is lower, nothing breaks";
    ECHO_FAILED = "EW309" Error "linked, but bytes do not come back: {what}",
        "packets of some size are dropped on the way, or the peer is overloaded", "look for a device that drops large UDP packets; see the peer's CPU and memory";
    LOSS = "EW310" Warning "{what} of packets are lost",
        "a congested or faulty path", "measure the path with another tool, and tell the network's owner";
    FLAPPING = "EW311" Warning "all links were lost {what} times in 10 minutes",
        "a NAT or load balancer drops the flow, or the peer restarts", "see the reasons in the log; look for UDP timeouts below 30 s";
    ANSWERS_BUT_DOWN = "EW312" Error "the address answers, but no link comes up",
        "the peer does not know us, or removed us; or something else speaks QUIC there", "see `lastError` in `eastway peers -o json`, and ask whether {peer} has our `eastway peer export`";

    RELAYED = "EW313" Warning "linked by way of {what} only",
        "neither side can be dialled, or what was dialled does not answer; all bytes take the longer way, within the limits of `relay.allow` there",
        "give one of both sides an address that the other can reach, and list it in `addresses`; nothing else has to change";
    NOT_RELAYED = "EW314" Error "{what}",
        "all three have to agree: `relay.allow` at the relay, and the same `via` in the Peer files of both ends",
        "see the message; ask the operator it names, and run `eastway check` there";

    TRUST_OK = "EW400" Ok "trusted: {what}", "", "";
    UNPINNED = "EW401" Error "the peer showed the key {what}, which is not pinned",
        "its CA was rotated or replaced, or somebody else answers at its address", "ask the peer's operator for its pin by another way; if it matches, add it to `pins` of peer {peer}";
    WRONG_IDENTITY = "EW402" Error "the peer's certificate is for {what}",
        "not a gateway of that cluster: a workload's certificate, or another `gateway` than our Peer file says", "correct `gateway` of peer {peer}, or the certificate at its side";
    PEER_EXPIRED = "EW403" Error "the peer's certificate ended {what} ago",
        "its gateway could not renew it, or our clock is ahead", "see the ca role at {peer}; compare both clocks";
    PEER_IN_FUTURE = "EW404" Error "the peer's certificate begins in {what}",
        "our clock is behind, or its clock is ahead", "compare `date -u` on both sides";
    REVOKED = "EW405" Error "the peer's certificate is revoked",
        "it is on our revocation list", "if that is a mistake, publish a new list; else the peer must get a new certificate";
    WRONG_CLUSTER = "EW406" Error "the peer calls itself {what}",
        "two clusters have one name, or our Peer file has the wrong one", "each cluster needs a name of its own: correct `metadata.name` here or `cluster` there";
    REFUSED_US = "EW407" Error "the peer refuses us: {what}",
        "its Peer file for us has another key or identity, or it has none", "send it the output of `eastway peer export`: `pins` and `gateway` there must be what we present; its log names the reason";
    PROTOCOL = "EW408" Error "the peer does not speak our protocol: {what}",
        "another service answers at this address, or the versions are too far apart", "compare `eastway version` on both sides";
    HANDSHAKE = "EW409" Error "the handshake failed: {what}",
        "see the message", "see the logs of both gateways";
    PEER_CERTIFICATE_ENDS = "EW410" Warning "the peer's certificate ends in {what}",
        "its gateway did not renew it; the link is cut then", "see the ca role at {peer}";
    NEXT_CA_MISSING = "EW411" Warning "it does not accept our next CA key yet: {what}",
        "a rotation was begun (`eastway ca rotate`), and the `pins` of its Peer file for us lack the new key",
        "send it the output of `eastway peer export`; its step `activate` before that cuts the links";
    SHARED_TRUST_DOMAIN = "EW412" Warning "workload isolation: none",
        "peer {peer} shares our trust domain: either cluster can mint identities of the other", "give each cluster a trust domain of its own";
    SKEW = "EW413" Warning "its clock differs from ours by {what}",
        "time is not synchronised at one side", "run chrony or another NTP client on both sides";
    LARGE_SKEW = "EW414" Error "its clock differs from ours by {what}",
        "time is not synchronised at one side; certificates will be refused", "run chrony or another NTP client on both sides";
    NEXT_CA_UNKNOWN = "EW415" Warning "whether it accepts our next CA key is not known: {what}",
        "a rotation was begun (`eastway ca rotate`), and {peer} has no link, or runs a version that does not tell",
        "ask its operator whether `pins` of the Peer file for us holds this key, before the step `activate`";

    EXCHANGE_OK = "EW500" Ok "exchanging: {what}", "", "";
    NOT_SYNCED = "EW501" Error "linked, but its services never arrived",
        "the peer waits for its own registries, or refuses our session", "see `eastway status` at {peer}: it must be ready";
    NOTHING_ARRIVES = "EW502" Warning "nothing is imported, though our rules allow it",
        "the peer exports nothing to us, or not from these namespaces", "see `export` of its Peer file for us, and our `import`";
    NO_IMPORT_RULES = "EW503" Warning "nothing will be imported",
        "`import` of peer {peer} is empty", "add the namespaces you want to `import`";
    NO_EXPORT_RULES = "EW504" Warning "nothing will be exported",
        "`export` of peer {peer} is empty", "add the services you offer to `export`";
    EXPORT_SELECTS_NOTHING = "EW505" Warning "the export rules select no service",
        "no service of that name is in our registries with `export: true`", "compare `export` of peer {peer} with `eastway services`";
    RECORDS_REFUSED = "EW506" Warning "records were refused in the last 10 minutes: {what}",
        "the peer offers more than `import` allows, or malformed records", "if they are wanted, widen `import` of peer {peer}; if they are malformed, upgrade the peer";
    STALE = "EW507" Warning "its services are {what} old",
        "no link; they are served as last known until `withdrawAfter`", "restore the link";
    CONFLICT = "EW508" Warning "{what}",
        "clusters describe one service differently; the oldest export counts", "make the service the same in all clusters";
    VERSIONS = "EW509" Error "no protocol version in common: {what}",
        "one side is too old", "upgrade the older side";
    ISTIO_PLAIN = "EW510" Warning "Istio here is not told of all endpoints of {what}",
        "at {peer} some have no sidecar of Istio (their pods lack the label `security.istio.io/tlsMode: istio`), or no service account, or it was installed without `istio.enabled`",
        "inject the sidecar there; until then they are reached at the address of the import, in plain text inside the link";

    POLICY_OK = "EW600" Ok "no connection was denied in the last 10 minutes", "", "";
    DENIED = "EW601" Warning "connections were denied in the last 10 minutes: {what}",
        "no AccessPolicy allows this source (deny by default across clusters)", "if they should pass, add the source to an AccessPolicy of the service";
    DENIED_BY_PEER = "EW602" Warning "{peer} denied {what} connections from here in the last 10 minutes",
        "no AccessPolicy there allows their source", "see this gateway's access log for `DENY`; the owner of the service at {peer} has to allow the source in an AccessPolicy";
}

/// The code called `id`, in either case.
#[must_use]
pub fn find(id: &str) -> Option<&'static Code> {
    ALL.iter().find(|code| code.id.eq_ignore_ascii_case(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_sorted_and_helpful() {
        assert!(ALL.is_sorted_by(|a, b| a.id < b.id), "codes must rise");
        for code in ALL {
            assert_eq!(code.id.len(), 5, "{code:?}");
            assert_eq!(code.cause.is_empty(), code.severity == Severity::Ok, "{code:?}");
            assert_eq!(code.fix.is_empty(), code.severity == Severity::Ok, "{code:?}");
        }
        assert_eq!(find("ew302"), Some(&ADDRESS_SILENT));
    }
}
