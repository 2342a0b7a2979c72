//! A service of UDP in another cluster, by its name.

use std::collections::BTreeSet;

use anyhow::ensure;
use eastway_tests::bed_tests;
use eastway_tests::kube::{eastway as installed, seconds};

use crate::answering::Answering;
use crate::client;

const NAMESPACE: &str = "e2e-udp";

bed_tests! {
    /// A pod in a talks by UDP with one in b, next to TCP of the same service, and finds the port by its name.
    async fn a_service_of_udp_is_used_by_its_name(bed) {
        installed::ready(bed).await?;
        let both = Answering::start(bed, NAMESPACE).await?;
        let talked = both.ask(bed).await?;
        bed.record("udp.lost", talked.asked - talked.answered);
        bed.record("udp.longest_silence_s", seconds(talked.longest_silence));
        let host = format!("both.{NAMESPACE}.svc.clusterset.local");
        let found = client::lookup(bed.cluster("a"), NAMESPACE, "srv", &format!("_echo._udp.{host}")).await?;
        ensure!(found.targets == BTreeSet::from([(7_007, host)]), "{found:?}");
        both.end(bed).await
    }
}
