//! How many connections each local client has: one must not take the room of all.

use std::net::IpAddr;
use std::sync::Arc;

use dashmap::DashMap;

/// Connections by client.
#[derive(Debug)]
pub struct Clients {
    each: usize,
    counts: DashMap<IpAddr, usize>,
}

/// One connection of a client, until it is dropped.
#[derive(Debug)]
pub struct Share {
    clients: Arc<Clients>,
    client: IpAddr,
}

impl Clients {
    /// Each may have `each` connections, at least one.
    #[must_use]
    pub fn new(each: usize) -> Arc<Self> {
        Arc::new(Self { each: each.max(1), counts: DashMap::new() })
    }

    /// One more connection of `client`. `None`: it has its share.
    #[must_use]
    pub fn enter(self: &Arc<Self>, client: IpAddr) -> Option<Share> {
        let mut count = self.counts.entry(client).or_default();
        if *count >= self.each {
            return None;
        }
        *count += 1;
        Some(Share { clients: self.clone(), client })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.clients.counts.remove_if_mut(&self.client, |_, count| {
            *count = count.saturating_sub(1);
            *count == 0
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_leaves_room_for_others() {
        let clients = Clients::new(2);
        let (greedy, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let mut shares: Vec<_> = std::iter::from_fn(|| clients.enter(greedy)).take(100).collect();
        assert_eq!(shares.len(), 2);
        assert!(clients.enter(other).is_some());
        shares.pop();
        let again = clients.enter(greedy);
        assert!(again.is_some() && clients.enter(greedy).is_none());
        drop((shares, again));
        assert!(clients.counts.is_empty(), "nothing is kept of clients that are gone");
    }
}
