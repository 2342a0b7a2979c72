//! Who a client says it is, compared with who it has proved to be.

use bytes::Bytes;
use eastway_model::Label;
use eastway_proto::xds::discovery as wire;
use prost::Message;

use crate::inbound::{self, ByService, Inbound, InboundError};

/// Largest encoded node. Envoy lists all its extensions in it, some 50 kB.
const MAX_NODE: usize = 256 << 10;
/// Longest id or cluster of a node.
const MAX_TEXT: usize = 256;
/// What the ids of sidecars begin with.
const SIDECAR: &str = "sidecar~";
/// What the ids of clients without a proxy begin with.
const PROXYLESS: &str = "proxyless~";
/// Key of the metadata that says how connections to virtual addresses are taken; see [`Outbound::word`].
pub const LISTEN: &str = "LISTEN";

/// The workload that a client's certificate names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Its namespace.
    pub namespace: Label,
    /// Its service account.
    pub service_account: Label,
}

/// What kind of client asks: what it is told depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientKind {
    /// An Envoy beside a workload.
    Envoy,
    /// A program with a gRPC library that reads this protocol itself.
    Proxyless,
}

/// A node that says nothing which its certificate does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: ClientKind,
    /// `sidecar~<name>.<namespace>`, or `proxyless~` and the same.
    pub id: String,
    /// `<service account>.<namespace>`.
    pub cluster: String,
    /// What proxy it is, e.g. `envoy 1.40.0`; empty if it does not say.
    pub agent: String,
    /// Where it takes connections for its workload.
    pub inbound: Vec<Inbound>,
    /// What of that Services say.
    pub by_service: ByService,
    /// How it takes connections to virtual addresses.
    pub outbound: Outbound,
}

/// How an Envoy takes connections to virtual addresses of imports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outbound {
    /// It listens there.
    #[default]
    Bound,
    /// They are led to a listener of its own, which gives each to the one for its original destination.
    Captured,
    /// Not at all: its workload connects to nobody.
    None,
}

impl Outbound {
    const CAPTURED: &str = "capture";
    const NONE: &str = "none";

    /// As the node's metadata says it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Bound => "vip",
            Self::Captured => Self::CAPTURED,
            Self::None => Self::NONE,
        }
    }
}

/// Why a node is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// The first message of a stream has none.
    #[error("the first message of a stream must hold a node")]
    Missing,
    /// More than 256 KiB.
    #[error("the node is {0} bytes large; at most 262144 are allowed")]
    TooLarge(usize),
    /// Not a node.
    #[error("the node cannot be read")]
    Malformed,
    /// A text of it that is too long or holds control characters.
    #[error("{0} of the node must be 1 to 256 printable characters")]
    Text(&'static str),
    /// It names another workload than the certificate does.
    #[error("node {field} {said:?} does not match the identity of the certificate: {wanted}")]
    Identity {
        /// Which part.
        field: &'static str,
        /// What it says.
        said: String,
        /// What it would have to be.
        wanted: String,
    },
    /// What it says of its own listeners.
    #[error(transparent)]
    Inbound(#[from] InboundError),
    /// Another node than that of the first message.
    #[error("the node changed on the stream")]
    Changed,
}

impl Node {
    /// Reads the node of a client that has proved to be `workload`.
    ///
    /// # Errors
    /// [`NodeError`]
    pub fn parse(encoded: &Bytes, workload: &Workload) -> Result<Self, NodeError> {
        if encoded.is_empty() {
            return Err(NodeError::Missing);
        }
        if encoded.len() > MAX_NODE {
            return Err(NodeError::TooLarge(encoded.len()));
        }
        let node = wire::Node::decode(encoded.clone()).map_err(|_| NodeError::Malformed)?;
        check_text("id", &node.id)?;
        check_text("cluster", &node.cluster)?;
        let Workload { namespace, service_account } = workload;
        let (kind, role) = match node.id.strip_prefix(PROXYLESS) {
            Some(_) => (ClientKind::Proxyless, PROXYLESS),
            None => (ClientKind::Envoy, SIDECAR),
        };
        let name = node.id.strip_prefix(role).and_then(|rest| rest.rsplit_once('.'));
        if !name.is_some_and(|(name, of)| !name.is_empty() && of == namespace.as_str()) {
            let wanted = format!("{role}<name>.{namespace}");
            return Err(NodeError::Identity { field: "id", said: node.id, wanted });
        }
        let wanted = format!("{service_account}.{namespace}");
        if node.cluster != wanted {
            return Err(NodeError::Identity { field: "cluster", said: node.cluster, wanted });
        }
        let hints = node.metadata.unwrap_or_default().fields;
        let proved = [("NAMESPACE", namespace), ("SERVICE_ACCOUNT", service_account)];
        for (field, wanted) in proved {
            let said = hints.get(field).and_then(|hint| hint.string_value.as_deref());
            if let Some(said) = said.filter(|said| *said != wanted.as_str()) {
                let said = said.chars().take(MAX_TEXT).collect();
                return Err(NodeError::Identity { field, said, wanted: wanted.to_string() });
            }
        }
        let version = node.user_agent_build_version.and_then(|build| build.version);
        let version =
            version.map(|version| format!(" {}.{}.{}", version.major_number, version.minor_number, version.patch));
        let text = Some(node.user_agent_version).filter(|text| !text.is_empty()).map(|text| format!(" {text}"));
        let agent = node.user_agent_name + &version.or(text).unwrap_or_default();
        let agent = agent.chars().filter(|c| !c.is_control()).take(64).collect();
        let outbound = match hints.get(LISTEN).and_then(|hint| hint.string_value.as_deref()) {
            Some(Outbound::NONE) => Outbound::None,
            Some(Outbound::CAPTURED) => Outbound::Captured,
            Some(_) | None => Outbound::Bound,
        };
        let hint = |key: &str| hints.get(key).and_then(|hint| hint.string_value.as_deref());
        let inbound = inbound::parse(hint(inbound::KEY))?;
        let by_service = inbound::parse_by_service(hint(inbound::BY_SERVICE))?;
        Ok(Self { kind, id: node.id, cluster: node.cluster, agent, inbound, by_service, outbound })
    }

    /// Checks the node of a later message: none, or the same.
    ///
    /// # Errors
    /// [`NodeError`]
    pub fn check_again(&self, encoded: &Bytes, workload: &Workload) -> Result<(), NodeError> {
        if encoded.is_empty() || Self::parse(encoded, workload)? == *self { Ok(()) } else { Err(NodeError::Changed) }
    }
}

fn check_text(field: &'static str, text: &str) -> Result<(), NodeError> {
    let good = !text.is_empty() && text.len() <= MAX_TEXT && !text.chars().any(char::is_control);
    if good { Ok(()) } else { Err(NodeError::Text(field)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str, cluster: &str) -> wire::Node {
        wire::Node { id: id.into(), cluster: cluster.into(), ..wire::Node::default() }
    }

    fn parse(node: &wire::Node) -> Result<Node, NodeError> {
        let workload =
            Workload { namespace: Label::parse("shop").unwrap(), service_account: Label::parse("web").unwrap() };
        Node::parse(&node.encode_to_vec().into(), &workload)
    }

    fn hinted(name: &str, value: &str) -> wire::Node {
        let hint = wire::Hint { string_value: Some(value.into()) };
        let hints = wire::Hints { fields: [(name.to_owned(), hint)].into() };
        wire::Node { metadata: Some(hints), ..node("sidecar~web-1.shop", "web.shop") }
    }

    #[test]
    fn x2_a_node_may_say_only_what_the_certificate_says() {
        let good = parse(&wire::Node {
            user_agent_name: "envoy".into(),
            user_agent_build_version: Some(wire::BuildVersion {
                version: Some(wire::SemanticVersion { major_number: 1, minor_number: 40, patch: 2 }),
            }),
            ..node("sidecar~web-1.shop", "web.shop")
        });
        assert_eq!(good.unwrap().agent, "envoy 1.40.2");
        assert!(parse(&hinted("NAMESPACE", "shop")).is_ok());
        let library = wire::Node {
            user_agent_name: "gRPC Go".into(),
            user_agent_version: "1.85.0".into(),
            ..node("proxyless~web-1.shop", "web.shop")
        };
        let library = parse(&library).unwrap();
        assert_eq!((library.kind, library.agent.as_str()), (ClientKind::Proxyless, "gRPC Go 1.85.0"));
        assert!(parse(&node("proxyless~web-1.bank", "web.shop")).is_err());
        let other_namespace = parse(&node("sidecar~web-1.bank", "web.bank")).unwrap_err().to_string();
        assert_eq!(
            other_namespace,
            "node id \"sidecar~web-1.bank\" does not match the identity of the certificate: sidecar~<name>.shop"
        );
        for bad in [
            node("web-1.shop", "web.shop"),
            node("sidecar~.shop", "web.shop"),
            node("sidecar~web-1.shop", "other.shop"),
            node("sidecar~web\n.shop", "web.shop"),
            node(&format!("sidecar~{}.shop", "x".repeat(300)), "web.shop"),
            node("", ""),
            hinted("NAMESPACE", "bank"),
            hinted("SERVICE_ACCOUNT", "admin"),
        ] {
            assert!(parse(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_node_comes_first_is_bounded_and_does_not_change() {
        let workload =
            Workload { namespace: Label::parse("shop").unwrap(), service_account: Label::parse("web").unwrap() };
        assert_eq!(Node::parse(&Bytes::new(), &workload), Err(NodeError::Missing));
        let large = Bytes::from(vec![0; MAX_NODE + 1]);
        assert_eq!(Node::parse(&large, &workload), Err(NodeError::TooLarge(MAX_NODE + 1)));
        assert_eq!(Node::parse(&Bytes::from_static(b"\xff"), &workload), Err(NodeError::Malformed));
        let encode = |id| Bytes::from(node(id, "web.shop").encode_to_vec());
        let first = Node::parse(&encode("sidecar~a.shop"), &workload).unwrap();
        assert_eq!(first.check_again(&Bytes::new(), &workload), Ok(()));
        assert_eq!(first.check_again(&encode("sidecar~a.shop"), &workload), Ok(()));
        assert_eq!(first.check_again(&encode("sidecar~b.shop"), &workload), Err(NodeError::Changed));
    }
}
