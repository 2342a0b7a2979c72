//! Clients of this cluster whose workload is not known yet.
//!
//! A pod may speak as soon as it runs; that its address is its own the API server learns from the kubelet, up to a
//! second later. Its first connection would be refused on the other side for want of a name, so it is held until the
//! address has one. Addresses that never get one (nodes, what is outside) are held once, and remembered.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use eastway_model::access::SourceIdentity;
use eastway_model::store::Reader;
use tokio::sync::Semaphore;
use tokio::time::timeout_at;

/// How long an address that stayed without a name is not waited for again.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Addresses without a name that are remembered at most.
const MAX_STRANGERS: usize = 1_024;
/// Connections that are held at most; further ones go on without a name at once.
const MAX_HELD: usize = 1_024;

/// Holds connections of addresses without a name.
#[derive(Debug)]
pub(super) struct Newcomers {
    /// Zero: nobody is held.
    patience: Duration,
    held: Semaphore,
    /// Until when each is not waited for.
    strangers: Mutex<HashMap<IpAddr, Instant>>,
}

impl Newcomers {
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience, held: Semaphore::new(MAX_HELD), strangers: Mutex::default() }
    }

    /// Waits until `address` has a name; `None`: it is not to be expected.
    pub(super) async fn wait(&self, address: IpAddr, reader: &Reader) -> Option<SourceIdentity> {
        let _permit =
            self.held.try_acquire().ok().filter(|_| !self.patience.is_zero() && !self.is_stranger(address))?;
        let deadline = tokio::time::Instant::now() + self.patience;
        let mut reader = reader.clone();
        loop {
            if let Some(source) = reader.load().source_of(address) {
                return Some(source.clone());
            }
            match timeout_at(deadline, reader.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_closed)) => return None,
                Err(_elapsed) => {
                    self.remember(address);
                    return None;
                }
            }
        }
    }

    fn is_stranger(&self, address: IpAddr) -> bool {
        let strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        strangers.get(&address).is_some_and(|until| Instant::now() < *until)
    }

    fn remember(&self, address: IpAddr) {
        let now = Instant::now();
        let mut strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        if strangers.len() >= MAX_STRANGERS {
            strangers.retain(|_, until| now < *until);
        }
        if strangers.len() < MAX_STRANGERS {
            strangers.insert(address, now + REMEMBERED);
        }
    }
}

#[cfg(test)]
mod tests {
    use eastway_model::store::Writer;
    use eastway_model::{Change, ClusterName, Label, LocalChange, UnixMillis, Workload};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(3);

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 244, 0, last])
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_no_name_is_held_once() {
        let (_writer, reader) = Writer::new(ClusterName::parse("a").unwrap());
        let newcomers = Newcomers::new(PATIENCE);
        for expected in [PATIENCE, Duration::ZERO] {
            let started = tokio::time::Instant::now();
            assert!(newcomers.wait(address(1), &reader).await.is_none());
            assert_eq!(started.elapsed().as_secs(), expected.as_secs());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_speaks_before_it_is_known_is_held_until_it_is() {
        let (mut writer, reader) = Writer::new(ClusterName::parse("a").unwrap());
        let newcomers = Newcomers::new(PATIENCE);
        let label = |text| Label::parse(text).unwrap();
        let pod = Workload { address: address(1), namespace: label("shop"), service_account: Some(label("till")) };
        let known = async {
            tokio::time::sleep(PATIENCE / 2).await;
            let change = LocalChange::Workloads(vec![pod]);
            writer.apply([Change::Local { registry: label("cluster"), change }], UnixMillis(0));
        };
        let (source, ()) = tokio::join!(newcomers.wait(address(1), &reader), known);
        assert_eq!(source.unwrap().service_account, Some(label("till")));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_held_without_patience_or_room() {
        let (_writer, reader) = Writer::new(ClusterName::parse("a").unwrap());
        let started = tokio::time::Instant::now();
        assert!(Newcomers::new(Duration::ZERO).wait(address(1), &reader).await.is_none());
        let full = Newcomers::new(PATIENCE);
        let _all = full.held.acquire_many(u32::try_from(MAX_HELD).unwrap()).await.unwrap();
        assert!(full.wait(address(1), &reader).await.is_none());
        assert_eq!(started.elapsed(), Duration::ZERO);
    }

    #[test]
    fn the_table_of_strangers_is_bounded() {
        let newcomers = Newcomers::new(PATIENCE);
        for number in 0..2 * u32::try_from(MAX_STRANGERS).unwrap() {
            newcomers.remember(IpAddr::V4(number.into()));
        }
        assert_eq!(newcomers.strangers.lock().unwrap().len(), MAX_STRANGERS);
    }
}
