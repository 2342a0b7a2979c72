//! One grammar of names everywhere: what a file or a peer may call something can be asked for over a link.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::num::NonZeroU16;
use std::sync::Arc;

use eastway_model::name::check_label_pair;
use eastway_model::{EndpointId, ServiceKey, Subset, WorkloadIdentity};
use eastway_tunnel::header::{ClientAddress, Decoded, EndpointRef, Label, ServiceHeader, Source, StreamHeader, decode};
use proptest::prelude::*;

/// The header of a stream to `key`; none if the link's grammar refuses a part of it.
fn header(key: &ServiceKey, subset: &Subset, endpoint: Option<&EndpointId>) -> Option<StreamHeader> {
    Some(StreamHeader::Service(ServiceHeader {
        namespace: Label::parse(key.namespace.as_str()).ok()?,
        service: Label::parse(key.name.as_str()).ok()?,
        port: NonZeroU16::MIN,
        subset: subset.iter().map(|(key, value)| (Arc::clone(key), Arc::clone(value))).collect(),
        endpoint: endpoint.map(|id| EndpointRef::parse(id.as_str())).transpose().ok()?,
        source: Source::default(),
        traceparent: None,
        affinity: None,
        tls: false,
        client: None,
        flow: None,
    }))
}

fn crosses(header: StreamHeader) -> bool {
    let Ok(bytes) = header.encode() else { return false };
    decode(&bytes) == Ok(Decoded::Complete { header, used: bytes.len() })
}

fn any_pair() -> impl Strategy<Value = (String, String)> {
    let key = prop_oneof!["[a-zA-Z0-9._!/+ -]{1,12}", "[a-z0-9.-]{1,8}/[A-Za-z0-9_.-]{1,8}", "[a-z]{60,66}"];
    (key, prop_oneof!["[a-zA-Z0-9._!/+ -]{0,12}", "[a-z]{60,66}"])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn i7_every_service_name_of_the_model_can_be_asked_for(
        namespace in "[a-z0-9x-]{1,6}", name in prop_oneof!["[a-z0-9x-]{1,6}", "0x[0-9a-f]{0,4}", "[0-9]{1,10}"],
    ) {
        let Ok(key) = ServiceKey::parse(&namespace, &name) else { return Ok(()) };
        prop_assert!(header(&key, &Subset::new(), None).is_some_and(crosses), "{key}");
    }

    #[test]
    fn every_label_of_the_model_can_be_asked_for(pair in any_pair()) {
        let (name, value) = pair;
        let key = ServiceKey::parse("shop", "cart").unwrap();
        let subset: Subset = [(name.as_str().into(), value.as_str().into())].into();
        let accepted = check_label_pair(&name, &value).is_ok();
        prop_assert_eq!(header(&key, &subset, None).is_some_and(crosses), accepted, "{}: {}", name, value);
    }

    #[test]
    fn every_endpoint_id_of_the_model_can_be_asked_for(id in "[a-z0-9A-Z._-]{0,70}") {
        let Some(id) = EndpointId::parse(&id) else { return Ok(()) };
        let key = ServiceKey::parse("shop", "cart").unwrap();
        prop_assert!(header(&key, &Subset::new(), Some(&id)).is_some_and(crosses), "{id:?}");
    }
}

/// The longest of everything beside a subset of the longest that a policy may have.
#[test]
fn the_longest_header_that_a_policy_can_cause_fits() {
    let long = "a".repeat(63);
    let key = ServiceKey::parse(&long, &long).unwrap();
    let identity = format!("spiffe://{}/ns/{long}/sa/{long}", "d".repeat(255));
    assert!(WorkloadIdentity::parse(&identity).is_some());
    let subset: Subset = (0..16).map(|n| (format!("{n:0>4}").as_str().into(), "vvvv".into())).collect();
    assert_eq!(subset.iter().map(|(key, value)| key.len() + value.len() + 8).sum::<usize>(), 256);
    let id = EndpointId::parse(&"e".repeat(64)).unwrap();
    let Some(StreamHeader::Service(mut service)) = header(&key, &subset, Some(&id)) else { panic!("refused") };
    service.source.namespace = Some(Label::parse(&long).unwrap());
    service.source.service_account = Some(Label::parse(&long).unwrap());
    service.source.identity = Some(identity.as_str().into());
    service.affinity = Some(u64::MAX);
    service.client = ClientAddress::new("[2001:ffff::ffff]:65535".parse().unwrap());
    assert!(crosses(StreamHeader::Service(service)));
}
