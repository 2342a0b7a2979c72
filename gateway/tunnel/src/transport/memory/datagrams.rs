//! Datagrams of a connection in memory, one direction.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::lock;
use crate::transport::DATAGRAMS_AT_ONCE;

/// Datagrams that may be on their way or unread.
const ROOM: usize = 1_024;

/// What a network does to datagrams.
#[derive(Debug)]
pub(super) struct Weather {
    /// Bytes of the longest one; `None`: there are none.
    pub(super) longest: Option<usize>,
    /// How many of a hundred are lost.
    pub(super) loss: u32,
    pub(super) random: fastrand::Rng,
}

impl Default for Weather {
    fn default() -> Self {
        Self { longest: Some(1_200), loss: 0, random: fastrand::Rng::with_seed(1) }
    }
}

/// What is on its way, each with the time when it arrives.
#[derive(Default)]
pub(super) struct Datagrams {
    queue: Mutex<VecDeque<(Instant, Bytes)>>,
    changed: Notify,
    dropped: AtomicU64,
}

impl Datagrams {
    pub(super) fn send(&self, datagram: Bytes, delay: Duration) {
        let mut queue = lock(&self.queue);
        if queue.len() >= ROOM {
            queue.pop_front();
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        queue.push_back((Instant::now() + delay, datagram));
        drop(queue);
        self.changed.notify_one();
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Waits for the next ones.
    pub(super) async fn read(&self, into: &mut Vec<Bytes>) {
        loop {
            let next = {
                let mut queue = lock(&self.queue);
                let now = Instant::now();
                let due = queue.iter().take(DATAGRAMS_AT_ONCE).take_while(|(at, _)| *at <= now).count();
                into.extend(queue.drain(..due).map(|(_, datagram)| datagram));
                queue.front().map(|(at, _)| *at)
            };
            if !into.is_empty() {
                return;
            }
            match next {
                Some(at) => tokio::time::sleep_until(at).await,
                None => self.changed.notified().await,
            }
        }
    }
}
