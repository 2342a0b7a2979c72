//! What pods of a mesh speak. The owner of an endpoint decides it, for all who connect from elsewhere.

use eastway_model::{TlsMode, WorkloadIdentity};

use super::Rules;
use super::kept::PodView;
use super::objects::Meta;

/// Label that Istio's injection gives to pods that have a sidecar, or a person to pods that speak its TLS without one.
const ISTIO_TLS: (&str, &str) = ("security.istio.io/tlsMode", "istio");

/// What the ports of a pod speak. Plain text as well, as far as this is known: what a PeerAuthentication says otherwise its
/// sidecar carries out.
pub(super) fn tls_of(pod: &Meta, rules: &Rules) -> TlsMode {
    let has_istio = rules.istio.is_some() && pod.label(ISTIO_TLS.0) == Some(ISTIO_TLS.1);
    if has_istio { TlsMode::Istio } else { TlsMode::None }
}

/// Who a pod proves to be; `None`: a plain pod proves nothing.
pub(super) fn identity_of(pod: &PodView, rules: &Rules) -> Option<WorkloadIdentity> {
    match pod.tls {
        TlsMode::Istio | TlsMode::IstioStrict => Some(WorkloadIdentity {
            trust_domain: rules.istio.clone()?,
            namespace: pod.namespace.clone(),
            service_account: pod.service_account.clone()?,
        }),
        TlsMode::None | TlsMode::Mesh | TlsMode::MeshStrict => None,
    }
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
            (view.tls, identity_of(&view, rules).map(|identity| identity.to_string()))
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
