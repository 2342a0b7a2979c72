//! Who waits for what of a connection's streams.

use std::collections::HashMap;
use std::task::{Context, Waker};

use quinn_proto::StreamId;

/// Of all streams of a connection: only those that somebody waits for.
#[derive(Default)]
pub(in super::super) struct Waiters {
    streams: HashMap<StreamId, Stream>,
}

#[derive(Default)]
struct Stream {
    reader: Option<Waker>,
    /// Waits for the other side to cut the stream, whether it is read or not.
    watcher: Option<Waker>,
    writer: Option<Waker>,
    /// Waits for the other side to stop reading, or to have got everything.
    stopped: Option<Waker>,
}

impl Stream {
    fn is_empty(&self) -> bool {
        [&self.reader, &self.watcher, &self.writer, &self.stopped].iter().all(|waker| waker.is_none())
    }
}

/// What somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum For {
    Read,
    Reset,
    Write,
    Stopped,
}

impl Waiters {
    /// Whoever waited for the same waits no more.
    pub(in super::super) fn wait(&mut self, id: StreamId, what: For, cx: &Context<'_>) {
        let place = self.streams.entry(id).or_default().place(what);
        match place {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *place = Some(cx.waker().clone()),
        }
    }

    /// Nobody waits for these any more.
    pub(in super::super) fn forget(&mut self, id: StreamId, what: &[For]) {
        if let Some(stream) = self.streams.get_mut(&id) {
            what.iter().for_each(|what| *stream.place(*what) = None);
            self.tidy(id);
        }
    }

    /// There is something to read, an end or a cut among it.
    pub(super) fn readable(&mut self, id: StreamId, woken: &mut Vec<Waker>) {
        self.wake(id, &[For::Read, For::Reset], woken);
    }

    pub(super) fn writable(&mut self, id: StreamId, woken: &mut Vec<Waker>) {
        self.wake(id, &[For::Write], woken);
    }

    pub(super) fn stopped(&mut self, id: StreamId, woken: &mut Vec<Waker>) {
        self.wake(id, &[For::Stopped], woken);
    }

    fn wake(&mut self, id: StreamId, what: &[For], woken: &mut Vec<Waker>) {
        if let Some(stream) = self.streams.get_mut(&id) {
            woken.extend(what.iter().filter_map(|what| stream.place(*what).take()));
            self.tidy(id);
        }
    }

    /// Everybody, once.
    pub(super) fn take_all(&mut self) -> Vec<Waker> {
        let streams = std::mem::take(&mut self.streams).into_values();
        streams.flat_map(|stream| [stream.reader, stream.watcher, stream.writer, stream.stopped]).flatten().collect()
    }

    fn tidy(&mut self, id: StreamId) {
        if self.streams.get(&id).is_some_and(Stream::is_empty) {
            self.streams.remove(&id);
        }
    }
}

impl Stream {
    fn place(&mut self, what: For) -> &mut Option<Waker> {
        match what {
            For::Read => &mut self.reader,
            For::Reset => &mut self.watcher,
            For::Write => &mut self.writer,
            For::Stopped => &mut self.stopped,
        }
    }
}
