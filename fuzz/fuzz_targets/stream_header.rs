//! Any bytes at all as the beginning of a stream.
#![no_main]

use eastway_tunnel::header::{Decoded, MAX_HEADER, StreamHeader, decode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match decode(bytes) {
        Ok(Decoded::Complete { header, used }) => {
            assert!(used <= bytes.len());
            if let StreamHeader::Service(service) = &header {
                assert!(service.service.as_str().parse::<std::net::IpAddr>().is_err());
            }
            let again = header.encode().expect("what was received fits");
            assert_eq!(decode(&again), Ok(Decoded::Complete { header, used: again.len() }));
        }
        Ok(Decoded::Incomplete(missing)) => assert!((1..=MAX_HEADER + 6).contains(&missing)),
        Err(_) => {}
    }
});
