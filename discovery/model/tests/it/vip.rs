//! Virtual addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;

use eastway_model::vip::{Exhausted, VipRange, VipRangeError, allocate};
use proptest::prelude::*;

fn range(text: &str) -> VipRange {
    text.parse().unwrap()
}

fn service(number: usize) -> String {
    format!("bookinfo/s{number}")
}

#[test]
fn the_address_of_a_name_is_always_the_same() {
    // Recorded: a change here would move the addresses of every user without a saved table.
    let recorded = [
        ("242.0.0.0/16", "242.0.168.41"),
        ("127.64.0.0/10", "127.69.12.165"),
        ("fd65:6173:7477::/48", "fd65:6173:7477:0:29b5:948b:e416:401f"),
    ];
    for (range, address) in recorded {
        let first = allocate(self::range(range), "bookinfo/reviews", |_| false);
        assert_eq!(first.unwrap().to_string(), address);
    }
}

#[test]
fn a_range_is_used_up_to_the_last_address_and_then_says_so() {
    let range = range("242.0.0.0/28");
    let mut taken: BTreeMap<IpAddr, String> = BTreeMap::new();
    for number in 0..14 {
        let address = allocate(range, &service(number), |address| taken.contains_key(&address)).unwrap();
        assert!(range.contains(address));
        assert!(taken.insert(address, service(number)).is_none());
    }
    for reserved in ["242.0.0.0", "242.0.0.15"] {
        assert!(!taken.contains_key(&reserved.parse().unwrap()), "network and broadcast are nobody's");
    }
    let error = allocate(range, &service(99), |address| taken.contains_key(&address));
    assert_eq!(error, Err(Exhausted { range, tried: 14 }));
    let freed: IpAddr = "242.0.0.7".parse().unwrap();
    taken.remove(&freed);
    assert_eq!(allocate(range, &service(99), |address| taken.contains_key(&address)), Ok(freed));
}

#[test]
fn the_anycast_address_of_an_ipv6_range_is_not_given_out() {
    let range = range("fd00::/126");
    let mut taken = Vec::new();
    while let Ok(address) = allocate(range, &service(taken.len()), |address| taken.contains(&address)) {
        taken.push(address);
    }
    taken.sort_unstable();
    assert_eq!(taken, ["fd00::1", "fd00::2", "fd00::3"].map(|text| text.parse::<IpAddr>().unwrap()));
}

#[test]
fn ranges_are_checked() {
    for good in ["242.0.0.0/16", "127.64.0.0/10", "fd65:6173:7477::/48", "10.0.0.0/30", "fd00::/126", "fd00::/8"] {
        assert_eq!(range(good).to_string(), good);
    }
    let error = |text: &str| text.parse::<VipRange>().unwrap_err();
    for form in
        ["", "242.0.0.0", "242.0.0.0/", "/16", "242.0.0/16", "242.0.0.0/+16", "242.0.0.0/016", "a/16", "1.2.3.4/999"]
    {
        assert_eq!(error(form), VipRangeError::Form, "{form}");
    }
    assert_eq!(error("242.0.0.0/31"), VipRangeError::Prefix(31, 30));
    assert_eq!(error("fd00::/127"), VipRangeError::Prefix(127, 126));
    assert_eq!(error("242.0.0.1/16"), VipRangeError::HostBits(range("242.0.0.0/16")));
    for nobody in ["0.0.0.0/8", "224.0.0.0/8", "255.255.255.0/24", "::/64", "ff00::/64", "0.0.0.0/0"] {
        assert_eq!(error(nobody), VipRangeError::NotUnicast, "{nobody}");
    }
}

#[test]
fn ranges_know_their_addresses() {
    assert!(range("242.0.0.0/16").contains("242.0.255.1".parse().unwrap()));
    assert!(!range("242.0.0.0/16").contains("242.1.0.1".parse().unwrap()));
    assert!(!range("242.0.0.0/16").contains("fd00::1".parse().unwrap()));
    assert_eq!(range("242.0.0.0/16").capacity(), 65_534);
    assert_eq!(range("fd00::/126").capacity(), 3);
    assert_eq!(range("fd00::/64").capacity(), u64::MAX);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 50, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn addresses_are_distinct_and_in_the_range(prefix in 20..30_u8, names in 1..20_usize) {
        let range = range(&format!("10.0.0.0/{prefix}"));
        let mut taken: BTreeMap<IpAddr, String> = BTreeMap::new();
        for number in 0..names {
            let Ok(address) = allocate(range, &service(number), |address| taken.contains_key(&address)) else {
                prop_assert!(taken.len() as u64 == range.capacity());
                break;
            };
            prop_assert!(range.contains(address));
            prop_assert!(taken.insert(address, service(number)).is_none());
        }
    }
}
