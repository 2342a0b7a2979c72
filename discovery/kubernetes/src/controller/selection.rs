//! Of the Services of this cluster, by what Istio finds their endpoints.

use std::collections::BTreeMap;

/// What a Service with an address selects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Labels that its endpoints have.
    pub labels: BTreeMap<String, String>,
    /// Ports that it knows by the name that pods give them, each with a number of the Service that leads there.
    pub target_names: BTreeMap<String, u16>,
}

impl Selection {
    /// Whether a workload with these labels would be one of its endpoints.
    #[must_use]
    pub fn has(&self, workload: &BTreeMap<String, String>) -> bool {
        self.labels.iter().all(|(key, value)| workload.get(key) == Some(value))
    }
}
