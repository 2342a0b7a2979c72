//! What anybody on the way can read.

use std::io::Read as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::place::Place;

/// Reads all packets on all wires of a place until it is dropped, and counts those with a mark in them.
#[derive(Debug)]
pub struct Sniffer {
    stop: Arc<AtomicBool>,
    seen: Arc<AtomicU64>,
    packets: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Sniffer {
    /// Begins, at a place whose packets this process may read.
    ///
    /// # Errors
    /// It may not.
    pub async fn start(place: &Place, mark: &'static [u8]) -> Result<Self> {
        // AF_PACKET, and ETH_P_ALL in the order of the network.
        let socket = place.run(async {
            let socket = Socket::new(Domain::from(17), Type::RAW, Some(Protocol::from(0x0300)))?;
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
            Ok(socket)
        });
        let mut socket = socket.await?;
        let (stop, seen, packets) =
            (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let thread = std::thread::spawn({
            let (stop, seen, packets) = (Arc::clone(&stop), Arc::clone(&seen), Arc::clone(&packets));
            move || {
                let mut packet = vec![0; 64 << 10];
                while !stop.load(Ordering::Relaxed) {
                    let Ok(length) = socket.read(&mut packet) else { continue };
                    packets.fetch_add(1, Ordering::Relaxed);
                    if packet[..length].windows(mark.len()).any(|part| part == mark) {
                        seen.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
        Ok(Self { stop, seen, packets, thread: Some(thread) })
    }

    /// Packets with the mark, and all, so far.
    #[must_use]
    pub fn seen(&self) -> (u64, u64) {
        (self.seen.load(Ordering::Relaxed), self.packets.load(Ordering::Relaxed))
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // It never panics.
        let _ended = self.thread.take().map(JoinHandle::join);
    }
}
