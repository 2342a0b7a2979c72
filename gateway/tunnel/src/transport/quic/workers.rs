//! The threads that carry links: each has a runtime of its own, and sockets and connections that stay with it, so that a
//! packet goes from the kernel to the stream it is for, and a stream's bytes to the kernel, without waking anybody else.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Most threads, unless it is said otherwise: one carries some 5 Gbit/s.
const MOST: usize = 4;

/// See the module's documentation.
pub(super) struct Workers {
    first: Handle,
    others: Vec<Handle>,
    next: AtomicUsize,
}

impl Workers {
    /// Starts `count` threads, or as many as there are cores. They end after `stop`, with the last of `tasks`. With none,
    /// the runtime that this is called in does their work.
    pub(super) fn start(count: Option<u16>, tasks: &TaskTracker, stop: &CancellationToken) -> io::Result<Self> {
        if count == Some(0) {
            return Ok(Self { first: Handle::current(), others: Vec::new(), next: AtomicUsize::new(0) });
        }
        let cores = || thread::available_parallelism().map_or(1, usize::from).min(MOST);
        let count = count.map_or_else(cores, usize::from);
        let others = (1..count).map(|number| start(number, tasks, stop)).collect::<Result<_, _>>()?;
        Ok(Self { first: start(0, tasks, stop)?, others, next: AtomicUsize::new(0) })
    }

    /// All of them.
    pub(super) fn all(&self) -> impl Iterator<Item = &Handle> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// Where the next connection lives: one after the other.
    pub(super) fn next(&self) -> &Handle {
        let number = self.next.fetch_add(1, Ordering::Relaxed) % (self.others.len() + 1);
        self.others.get(number).unwrap_or(&self.first)
    }
}

fn start(number: usize, tasks: &TaskTracker, stop: &CancellationToken) -> io::Result<Handle> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let home = runtime.handle().clone();
    let (tasks, stop) = (tasks.clone(), stop.clone());
    thread::Builder::new().name(format!("links-{number}")).spawn(move || {
        runtime.block_on(async {
            stop.cancelled().await;
            tasks.wait().await;
        });
    })?;
    Ok(home)
}
