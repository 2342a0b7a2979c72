//! What pods of a mesh speak, and who they prove to be: the one place that decides it. The owner of an endpoint decides, for
//! all who connect from elsewhere.

use std::collections::BTreeSet;

use eastway_model::{Pairs, PortKey, PortNumber, Protocol, TlsMode, WorkloadIdentity};

use super::Rules;
use super::authentications::Modes;
use super::kept::PodView;
use super::objects::Meta;
use crate::injection::{self, Inbound};

/// Label that Istio's injection gives to pods that have a sidecar, or a person to pods that speak its TLS without one.
const ISTIO_TLS: (&str, &str) = ("security.istio.io/tlsMode", "istio");

/// What stands beside a workload in its pod and takes mutual TLS for it.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) enum Sidecar {
    /// Istio's, at all ports. Whether plain text as well PeerAuthentications say.
    Istio,
    /// Ours, at some ports of TCP.
    Ours(Inbound),
}

/// What a pod says of its sidecar. Whoever writes it wrongly harms his own pod; the pod proves its own account all the same.
pub(super) fn sidecar_of(pod: &Meta, rules: &Rules) -> Option<Sidecar> {
    if rules.istio.is_some() && pod.label(ISTIO_TLS.0) == Some(ISTIO_TLS.1) {
        return Some(Sidecar::Istio);
    }
    rules.sidecars.as_ref()?;
    Some(Sidecar::Ours(injection::inbound_of(pod)?))
}

/// Whether a sidecar of Istio stands beside a workload.
pub(super) fn is_istios(pod: &PodView) -> bool {
    pod.sidecar.as_deref() == Some(&Sidecar::Istio)
}

/// What a pod speaks at the ports of one service, and who it proves to be there: a plain pod proves nothing, and neither does
/// one that nobody certifies.
pub(super) fn speaks(
    pod: &PodView,
    target_ports: &Pairs<PortKey, u16>,
    rules: &Rules,
    modes: &Modes,
) -> (TlsMode, Option<WorkloadIdentity>) {
    let (mode, trust_domain) = match pod.sidecar.as_deref() {
        Some(Sidecar::Istio) => (modes.of(pod.namespace.as_str()), &rules.istio),
        Some(Sidecar::Ours(inbound)) if takes_all(&inbound.ports, target_ports) => {
            (if inbound.strict { TlsMode::MeshStrict } else { TlsMode::Mesh }, &rules.sidecars)
        }
        Some(Sidecar::Ours(_)) | None => return (TlsMode::None, None),
    };
    match (trust_domain, &pod.service_account) {
        (Some(trust_domain), Some(account)) if mode != TlsMode::None => {
            let (trust_domain, namespace) = (trust_domain.clone(), pod.namespace.clone());
            (mode, Some(WorkloadIdentity { trust_domain, namespace, service_account: account.clone() }))
        }
        _ => (TlsMode::None, None),
    }
}

/// Whether the sidecar of a pod, which knows no PROXY protocol, takes connections at ports of a service that are told the client's
/// address.
pub(super) fn is_in_the_way(pod: &PodView, target_ports: &Pairs<PortKey, u16>, told: &BTreeSet<PortNumber>) -> bool {
    let Some(Sidecar::Ours(inbound)) = pod.sidecar.as_deref() else { return false };
    let mut targets = told.iter().filter_map(|number| target_ports.get(&PortKey::from(*number)));
    targets.any(|target| inbound.ports.contains(target))
}

/// Whether these are all ports of TCP that a service leads to: an endpoint that takes mutual TLS at some of them alone could
/// not be told so, it has one mode.
fn takes_all(ports: &[u16], target_ports: &Pairs<PortKey, u16>) -> bool {
    let mut tcp = target_ports.iter().filter(|(key, _)| key.protocol == Protocol::Tcp).peekable();
    tcp.peek().is_some() && tcp.all(|(_, port)| ports.contains(port))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::source::kept::Interner;
    use crate::source::translate;
    use crate::watch::ObjectName;

    #[test]
    fn a_pod_with_istios_sidecar_speaks_its_tls_and_proves_its_account() {
        let read = |labels: Value, rules: &Rules| {
            let pod = json!({
                "metadata": {"uid": "u", "labels": labels},
                "spec": {"serviceAccountName": "web"},
                "status": {"podIP": "10.244.0.9"},
            });
            let pod = serde_json::from_value(pod).unwrap();
            let view =
                translate::pod(&ObjectName::new("shop", "web-0"), &pod, rules, &mut Interner::default()).unwrap();
            let (tls, identity) = speaks(&view, &Pairs::default(), rules, &Modes::default());
            (tls, identity.map(|identity| identity.to_string()))
        };
        let injected = json!({"security.istio.io/tlsMode": "istio"});
        let there = Rules { istio: Some("b.example".into()), ..Rules::default() };
        let identity = "spiffe://b.example/ns/shop/sa/web".to_owned();
        assert_eq!(read(injected.clone(), &there), (TlsMode::Istio, Some(identity)));
        let plain = (TlsMode::None, None);
        assert_eq!(read(injected, &Rules::default()), plain, "nobody said that Istio is there");
        for others in [json!({}), json!({"security.istio.io/tlsMode": "disabled"})] {
            assert_eq!(read(others.clone(), &there), plain, "{others}");
        }
    }
}
