//! The fields of Istio's objects that are known: those that are carried out, and those that are refused, each with what to
//! do instead. `docs/istio.md` has the same table; a test compares them.

use eastway_registry::yaml::Keys;

const SOURCES: &str = "rules count for all clients of the service; tell them apart by a header that they set";
const LEAVE_OUT: &str = "leave it out";

pub(super) const OBJECT: Keys = &[("apiVersion", ""), ("kind", ""), ("metadata", ""), ("spec", "")];

pub(super) const VIRTUAL_SERVICE: Keys =
    &[("hosts", ""), ("gateways", ""), ("exportTo", ""), ("http", ""), ("tls", ""), ("tcp", "")];

pub(super) const HTTP: Keys = &[
    ("name", ""),
    ("match", ""),
    ("route", ""),
    ("redirect", ""),
    ("rewrite", ""),
    ("timeout", ""),
    ("retries", ""),
    ("fault", ""),
    ("mirror", ""),
    ("mirrors", ""),
    ("mirrorPercentage", ""),
    ("headers", ""),
    ("mirrorPercent", "write mirrorPercentage: {value: …}"),
    ("directResponse", "rules lead to a service or redirect; let a service answer"),
    ("delegate", "write the rules of the other VirtualService here"),
    ("corsPolicy", "let the service answer preflight requests"),
];

pub(super) const HTTP_MATCH: Keys = &[
    ("name", ""),
    ("uri", ""),
    ("method", ""),
    ("authority", ""),
    ("headers", ""),
    ("queryParams", ""),
    ("port", ""),
    ("gateways", ""),
    ("scheme", "requests between workloads have one scheme, http"),
    ("withoutHeaders", "write a rule for the requests with the header before this one"),
    ("ignoreUriCase", "write a regex that begins with (?i)"),
    ("sourceLabels", SOURCES),
    ("sourceNamespace", SOURCES),
    ("statPrefix", LEAVE_OUT),
];

pub(super) const TEXT: Keys = &[("exact", ""), ("prefix", ""), ("regex", "")];

pub(super) const ROUTE: Keys = &[("destination", ""), ("weight", ""), ("headers", "")];

pub(super) const CONNECTION_ROUTE: Keys = &[("destination", ""), ("weight", "")];

pub(super) const DESTINATION: Keys = &[("host", ""), ("subset", ""), ("port", "")];

pub(super) const PORT: Keys = &[("number", "")];

pub(super) const HEADERS: Keys = &[("request", ""), ("response", "")];

pub(super) const HEADER_CHANGES: Keys = &[("set", ""), ("add", ""), ("remove", "")];

pub(super) const REDIRECT: Keys = &[
    ("uri", ""),
    ("authority", ""),
    ("port", ""),
    ("scheme", ""),
    ("redirectCode", ""),
    ("derivePort", "write the port"),
];

pub(super) const REWRITE: Keys = &[
    ("uri", ""),
    ("authority", ""),
    ("uriRegexRewrite", "match a prefix or a whole path, and write the new one as uri"),
];

pub(super) const RETRIES: Keys = &[
    ("attempts", ""),
    ("perTryTimeout", ""),
    ("retryOn", ""),
    ("backoff", ""),
    ("retryRemoteLocalities", "leave it out: tries go to any endpoint of the destination, in all clusters"),
    ("retryIgnorePreviousHosts", "leave it out: each try goes to another endpoint"),
];

pub(super) const FAULT: Keys = &[("delay", ""), ("abort", "")];

pub(super) const DELAY: Keys = &[
    ("fixedDelay", ""),
    ("percentage", ""),
    ("percent", "write percentage: {value: …}"),
    ("exponentialDelay", "write fixedDelay"),
];

pub(super) const ABORT: Keys = &[
    ("httpStatus", ""),
    ("percentage", ""),
    ("percent", "write percentage: {value: …}"),
    ("grpcStatus", "write httpStatus; 503 is UNAVAILABLE to a gRPC client"),
    ("http2Error", "write httpStatus"),
];

pub(super) const PERCENT: Keys = &[("value", "")];

pub(super) const MIRROR: Keys = &[("destination", ""), ("percentage", "")];

pub(super) const TLS_MATCH: Keys = &[
    ("sniHosts", ""),
    ("port", ""),
    ("gateways", ""),
    ("destinationSubnets", "the service is matched by its host"),
    ("sourceLabels", SOURCES),
    ("sourceNamespace", SOURCES),
];

pub(super) const TCP_MATCH: Keys = &[
    ("port", ""),
    ("gateways", ""),
    ("destinationSubnets", "the service is matched by its host"),
    ("sourceSubnet", SOURCES),
    ("sourceLabels", SOURCES),
    ("sourceNamespace", SOURCES),
];

pub(super) const CONNECTION: Keys = &[("match", ""), ("route", "")];

pub(super) const DESTINATION_RULE: Keys = &[
    ("host", ""),
    ("exportTo", ""),
    ("subsets", ""),
    ("trafficPolicy", ""),
    ("workloadSelector", "it counts for all clients of the service"),
];

pub(super) const SUBSET: Keys = &[
    ("name", ""),
    ("labels", ""),
    ("trafficPolicy", "one policy counts for the whole service; write it beside subsets"),
];

pub(super) const TRAFFIC_POLICY: Keys = &[
    ("outlierDetection", ""),
    ("connectionPool", ""),
    ("loadBalancer", ""),
    ("tls", ""),
    ("portLevelSettings", "one policy counts for all ports of the service"),
    ("tunnel", "the gateway carries connections to other clusters"),
    ("proxyProtocol", LEAVE_OUT),
    ("retryBudget", "limit the tries with retries of a VirtualService"),
];

pub(super) const OUTLIERS: Keys = &[
    ("consecutive5xxErrors", ""),
    ("consecutiveLocalOriginFailures", ""),
    ("splitExternalLocalOriginErrors", ""),
    ("interval", ""),
    ("baseEjectionTime", ""),
    ("maxEjectionPercent", ""),
    ("consecutiveErrors", "write consecutive5xxErrors"),
    ("consecutiveGatewayErrors", "write consecutive5xxErrors, which counts them too"),
    ("minHealthPercent", "leave it out: ejected endpoints come back by themselves"),
];

pub(super) const POOL: Keys = &[("tcp", ""), ("http", "")];

pub(super) const POOL_TCP: Keys = &[
    ("maxConnections", ""),
    ("connectTimeout", "a dial through the gateways has 5 s"),
    ("tcpKeepalive", "the link between the gateways keeps connections alive"),
    ("maxConnectionDuration", "connections last as long as their ends like"),
    ("idleTimeout", "limits.connectionIdle of the GatewayConfig says how long connections may stand still"),
];

pub(super) const POOL_HTTP: Keys = &[
    ("http1MaxPendingRequests", ""),
    ("http2MaxRequests", ""),
    ("maxRequestsPerConnection", "connections are kept and used again"),
    ("maxRetries", "limit the tries with retries of a VirtualService"),
    ("idleTimeout", "limits.connectionIdle of the GatewayConfig says how long connections may stand still"),
    ("h2UpgradePolicy", "the port's appProtocol says which version of HTTP it speaks"),
    ("useClientProtocol", "the port's appProtocol says which version of HTTP it speaks"),
    ("maxConcurrentStreams", LEAVE_OUT),
];

pub(super) const BALANCER: Keys = &[
    ("simple", ""),
    ("consistentHash", "sessionPersistence of an HTTPRoute keeps sessions together"),
    ("localityLbSetting", "locality and failover of a TrafficPolicy say which cluster comes first"),
    ("warmup", LEAVE_OUT),
    ("warmupDurationSecs", LEAVE_OUT),
];

pub(super) const TLS: Keys = &[
    ("mode", ""),
    ("clientCertificate", "the mesh has its own certificates"),
    ("privateKey", "the mesh has its own certificates"),
    ("caCertificates", "the mesh has its own certificates"),
    ("caCrl", "the mesh has its own certificates"),
    ("credentialName", "the mesh has its own certificates"),
    ("subjectAltNames", "sidecars know who may serve an endpoint"),
    ("sni", LEAVE_OUT),
    ("insecureSkipVerify", "certificates are always verified"),
];
