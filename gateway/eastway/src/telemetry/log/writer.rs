//! Writes lines in a thread of its own.
//!
//! Standard error may be a pipe whose reader is stuck. A gateway that blocked on it would stop forwarding, so lines
//! go through a bounded queue and are dropped, and counted, when it is full.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// Lines that may wait. At 200 bytes each this is below 1 MiB.
const QUEUE: usize = 4_096;

/// Longest wait of [`LineWriter::flush`].
const FLUSH_WAIT: Duration = Duration::from_secs(1);

/// A message to the writing thread.
enum Message {
    Line(Vec<u8>),
    /// Answer when everything before it is written.
    Flush(SyncSender<()>),
}

/// The sending side; clones write to the same thread.
#[derive(Clone)]
pub(super) struct LineWriter {
    queue: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

impl LineWriter {
    /// Starts the thread; it ends when the last clone is dropped.
    pub(super) fn start(output: impl Write + Send + 'static) -> io::Result<Self> {
        let (queue, lines) = sync_channel(QUEUE);
        thread::Builder::new().name("log".to_owned()).spawn(move || write_lines(output, &lines))?;
        Ok(Self { queue, dropped: Arc::default() })
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(super) fn flush(&self) {
        let (done, waiter) = sync_channel(1);
        if self.queue.try_send(Message::Flush(done)).is_ok() {
            // Disconnected or too slow: there is nobody left to tell.
            waiter.recv_timeout(FLUSH_WAIT).ok();
        }
    }
}

fn write_lines(mut output: impl Write, lines: &Receiver<Message>) {
    while let Ok(message) = lines.recv() {
        match message {
            // Nobody can be told that the log itself fails.
            Message::Line(line) => {
                output.write_all(&line).ok();
            }
            Message::Flush(done) => {
                output.flush().ok();
                done.try_send(()).ok();
            }
        }
    }
}

/// Collects one line and queues it when dropped.
pub(super) struct Line {
    text: Vec<u8>,
    to: LineWriter,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let text = std::mem::take(&mut self.text);
        match self.to.queue.try_send(Message::Line(text)) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.to.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl<'a> MakeWriter<'a> for LineWriter {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { text: Vec::with_capacity(256), to: self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Instant;

    use super::*;

    /// An output that blocks until it is allowed to go on.
    struct Stuck(Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().ok();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn i8_a_stuck_reader_costs_lines_not_time() {
        let (release, gate) = mpsc::channel();
        let writer = LineWriter::start(Stuck(gate)).unwrap();
        let start = Instant::now();
        for _ in 0..QUEUE * 2 {
            writer.make_writer().write_all(b"line\n").unwrap();
        }
        assert!(start.elapsed() < Duration::from_secs(5));
        // One line may be in the hands of the thread.
        assert!(writer.dropped() >= u64::try_from(QUEUE).unwrap() - 1);
        drop(release);
    }
}
