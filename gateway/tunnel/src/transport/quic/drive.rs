//! One QUIC connection and what drives it.
//!
//! Whoever has something for a connection takes its lock and does it: the reader of a socket with the packets of a batch,
//! streams with what is written to them. What is to be sent then the connection's own task sends, when all that is ready to
//! run has run, and at timers, and when the socket takes packets again. All of these belong to one thread, its home, so that
//! nobody waits for the lock, or wakes another thread.

mod waiters;

use std::future::poll_fn;
use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn_proto::{
    ConnectionError, ConnectionEvent, ConnectionHandle, ConnectionStats, Dir, Event, StreamEvent, StreamId, Transmit,
    TransportError, TransportErrorCode, VarInt,
};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::sleep_until;

pub(super) use self::waiters::For;
use self::waiters::Waiters;
use super::again::Again;
use super::datagrams::Waiting;
use super::port::Port;
use super::udp::MAX_TRAIN;
use crate::code::CloseCode;
use crate::transport::BoxFuture;

/// Trains that are sent before others of the thread have their turn.
const TURN: usize = 8;

/// A connection. Its end is the end of its task, a moment after it was closed.
pub(super) struct Conn {
    pub(super) port: Arc<Port>,
    /// Its thread's.
    pub(super) home: Handle,
    handle: ConnectionHandle,
    /// Halves of streams that somebody holds.
    halves: AtomicUsize,
    state: Mutex<State>,
    /// Its handshake is done, or it is closed.
    connected: Notify,
    /// The other side opened streams, or it is closed.
    incoming: Notify,
    /// The other side admits more streams, or it is closed.
    admitted: Notify,
    /// A datagram has come, or it is closed.
    datagrams: Notify,
    closed: Notify,
}

/// What the lock guards.
pub(super) struct State {
    pub(super) inner: quinn_proto::Connection,
    pub(super) waiters: Waiters,
    is_connected: bool,
    /// Why it is closed.
    pub(super) error: Option<ConnectionError>,
    /// Why this side closed it.
    reason: Option<(CloseCode, String)>,
    /// The task.
    driver: Option<Waker>,
    /// When the task comes by itself.
    alarm: Option<Instant>,
    /// Packets have come that were not answered yet.
    is_owing: bool,
    /// The socket was full.
    unsent: Option<(Transmit, Vec<u8>)>,
    /// What is sent twice.
    pub(super) again: Again,
    /// Datagrams that wait to be sent.
    pub(super) waiting: Waiting,
}

/// What is left to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    Nothing,
    /// It was enough for one turn.
    More,
    /// The socket takes no more now.
    Blocked,
}

impl Conn {
    pub(super) fn new(
        port: Arc<Port>,
        home: Handle,
        handle: ConnectionHandle,
        mut inner: quinn_proto::Connection,
    ) -> Arc<Self> {
        let waiting = Waiting::new(&mut inner);
        let state = State {
            inner,
            waiters: Waiters::default(),
            is_connected: false,
            error: None,
            reason: None,
            driver: None,
            alarm: None,
            is_owing: false,
            unsent: None,
            again: Again::default(),
            waiting,
        };
        Arc::new(Self {
            port,
            home,
            handle,
            halves: AtomicUsize::new(0),
            state: Mutex::new(state),
            connected: Notify::new(),
            incoming: Notify::new(),
            admitted: Notify::new(),
            datagrams: Notify::new(),
            closed: Notify::new(),
        })
    }

    /// Whether it is this one of its port.
    pub(super) fn is(&self, handle: ConnectionHandle) -> bool {
        self.handle == handle
    }

    /// How many streams it carries, each direction for itself.
    pub(super) fn load(&self) -> usize {
        self.halves.load(Ordering::Relaxed)
    }

    pub(super) fn halves_made(&self) {
        self.halves.fetch_add(2, Ordering::Relaxed);
    }

    pub(super) fn half_dropped(&self) {
        self.halves.fetch_sub(1, Ordering::Relaxed);
    }

    /// Runs something at its home.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.port.tasks.spawn_on(task, &self.home);
    }

    /// Drives it until nothing is left of it, or its port is gone.
    pub(super) async fn run(self: Arc<Self>) {
        let dead = self.port.dead.clone();
        let _left = Left(&self);
        if dead.run_until_cancelled(self.drive_all()).await.is_none() {
            let mut state = self.lock();
            let wakers = self.lose(&mut state, socket_failed());
            drop(state);
            wakers.into_iter().for_each(Waker::wake);
        }
    }

    async fn drive_all(&self) {
        let mut alarm = pin!(sleep_until(Instant::now().into()));
        let mut writable: Option<BoxFuture<'static, ()>> = None;
        let mut is_last = false;
        poll_fn(|cx| {
            // Others that are to run have their say first: what they write shares packets.
            if !mem::replace(&mut is_last, true) {
                self.lock().note_driver(cx);
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            is_last = false;
            if writable.as_mut().is_some_and(|wait| wait.as_mut().poll(cx).is_ready()) {
                writable = None;
            }
            loop {
                let now = Instant::now();
                let mut state = self.lock();
                state.note_driver(cx);
                // After packets timers wait until they are answered: a path that the connection has just moved to has nothing
                // under way that could be lost.
                let is_owing = mem::take(&mut state.is_owing);
                if !is_owing && state.inner.poll_timeout().is_some_and(|at| at <= now) {
                    state.inner.handle_timeout(now);
                }
                let (left, wakers) = self.advance(&mut state, now);
                let is_drained = state.inner.is_drained();
                let at = state.next_alarm();
                state.alarm = at;
                drop(state);
                wakers.into_iter().for_each(Waker::wake);
                if is_drained {
                    return Poll::Ready(());
                }
                match left {
                    Rest::Nothing => {}
                    Rest::More => {
                        is_last = true;
                        cx.waker().wake_by_ref();
                    }
                    Rest::Blocked if writable.is_some() => {}
                    Rest::Blocked => {
                        let socket = self.port.socket();
                        let mut wait: BoxFuture<'static, ()> = Box::pin(async move { socket.writable().await });
                        if wait.as_mut().poll(cx).is_ready() {
                            continue;
                        }
                        writable = Some(wait);
                    }
                }
                let Some(at) = at else { return Poll::Pending };
                if alarm.deadline() != at.into() {
                    alarm.as_mut().reset(at.into());
                }
                if alarm.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
            }
        })
        .await;
    }

    /// Takes packets that have come for it. The task answers them, after the streams that they are for had their say: an
    /// acknowledgement that goes with an answer, or with room for more, is no packet of its own.
    pub(super) fn handle(&self, events: impl IntoIterator<Item = ConnectionEvent>) {
        let mut state = self.lock();
        for event in events {
            state.inner.handle_event(event);
        }
        state.is_owing = true;
        let mut wakers = self.tell_all(&mut state);
        wakers.extend(state.driver.clone());
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// As [`Self::tell_all`], and sends.
    fn advance(&self, state: &mut State, now: Instant) -> (Rest, Vec<Waker>) {
        let wakers = self.tell_all(state);
        let left = state.send(&self.port, now);
        // An identifier that is retired with the last packet is told with the next.
        self.tell_endpoint(state);
        (left, wakers)
    }

    /// Tells the endpoint and the streams what has happened. Returns whom to wake, once the lock is given back.
    fn tell_all(&self, state: &mut State) -> Vec<Waker> {
        self.tell_endpoint(state);
        let mut wakers = Vec::new();
        while let Some(event) = state.inner.poll() {
            self.tell(state, event, &mut wakers);
        }
        wakers
    }

    fn tell_endpoint(&self, state: &mut State) {
        while let Some(event) = state.inner.poll_endpoint_events() {
            if let Some(answer) = self.port.endpoint_event(self.handle, event) {
                state.inner.handle_event(answer);
            }
        }
    }

    fn tell(&self, state: &mut State, event: Event, wakers: &mut Vec<Waker>) {
        match event {
            Event::HandshakeDataReady | Event::DatagramsUnblocked => {}
            Event::Connected => {
                state.is_connected = true;
                self.connected.notify_waiters();
            }
            Event::ConnectionLost { reason } => wakers.append(&mut self.lose(state, reason)),
            Event::Stream(StreamEvent::Opened { dir: Dir::Bi }) => self.incoming.notify_waiters(),
            Event::Stream(StreamEvent::Available { .. }) => self.admitted.notify_waiters(),
            Event::Stream(StreamEvent::Readable { id }) => state.waiters.readable(id, wakers),
            Event::Stream(StreamEvent::Writable { id }) => state.waiters.writable(id, wakers),
            Event::Stream(StreamEvent::Finished { id }) => state.waiters.stopped(id, wakers),
            Event::Stream(StreamEvent::Stopped { id, .. }) => {
                state.waiters.stopped(id, wakers);
                state.waiters.writable(id, wakers);
            }
            Event::DatagramReceived => self.datagrams.notify_waiters(),
            // Links have none: whoever opens one speaks another protocol.
            Event::Stream(StreamEvent::Opened { dir: Dir::Uni }) => {
                self.shut(state, (CloseCode::Protocol, "a unidirectional stream"), wakers);
            }
        }
    }

    /// Everybody who waits for something of it learns that it is gone.
    fn lose(&self, state: &mut State, error: ConnectionError) -> Vec<Waker> {
        state.error.get_or_insert(error);
        for notify in [&self.connected, &self.incoming, &self.admitted, &self.datagrams, &self.closed] {
            notify.notify_waiters();
        }
        state.waiters.take_all()
    }

    fn shut(&self, state: &mut State, (code, reason): (CloseCode, &str), wakers: &mut Vec<Waker>) {
        if state.error.is_none() {
            state.reason = Some((code, reason.to_owned()));
        }
        let reason = Bytes::copy_from_slice(reason.as_bytes());
        state.inner.close(Instant::now(), VarInt::from_u32(code.to_wire()), reason);
        wakers.append(&mut self.lose(state, ConnectionError::LocallyClosed));
    }

    pub(super) fn close(&self, code: CloseCode, reason: &str) {
        let (mut state, mut wakers) = (self.lock(), Vec::new());
        self.shut(&mut state, (code, reason), &mut wakers);
        wakers.extend(state.driver.clone());
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Should it ever panic within, the connection is no less consistent than its other side may make it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves when its handshake is done.
    pub(super) async fn connected(&self) -> Result<(), ConnectionError> {
        self.wait_for(&self.connected, |state| {
            let failed = state.error.clone().map(Err);
            failed.or(state.is_connected.then_some(Ok(())))
        })
        .await
    }

    /// Resolves when it is closed.
    pub(super) async fn closed(&self) -> ConnectionError {
        self.wait_for(&self.closed, |state| state.error.clone()).await
    }

    /// Opens a stream; waits while the other side admits none.
    pub(super) async fn open(&self) -> Result<StreamId, ConnectionError> {
        self.wait_for(&self.admitted, |state| match &state.error {
            Some(error) => Some(Err(error.clone())),
            None => state.inner.streams().open(Dir::Bi).map(Ok),
        })
        .await
    }

    /// The next stream of the other side.
    pub(super) async fn accept(&self) -> Result<StreamId, ConnectionError> {
        self.wait_for(&self.incoming, |state| {
            let opened = state.inner.streams().accept(Dir::Bi).map(Ok);
            opened.or_else(|| state.error.clone().map(Err))
        })
        .await
    }

    /// The datagrams that have come, at least one and at most `most`.
    pub(super) async fn read_datagrams(&self, most: usize) -> Result<Vec<Bytes>, ConnectionError> {
        self.wait_for(&self.datagrams, |state| {
            let mut datagrams = state.inner.datagrams();
            let read: Vec<_> = std::iter::from_fn(|| datagrams.recv()).take(most).collect();
            if read.is_empty() { state.error.clone().map(Err) } else { Some(Ok(read)) }
        })
        .await
    }

    async fn wait_for<T>(&self, notify: &Notify, mut look: impl FnMut(&mut State) -> Option<T>) -> T {
        loop {
            let mut notified = pin!(notify.notified());
            notified.as_mut().enable();
            if let Some(found) = look(&mut self.lock()) {
                return found;
            }
            notified.await;
        }
    }

    /// Changes something of it that the other side may have to be told.
    pub(super) fn change(&self, change: impl FnOnce(&mut quinn_proto::Connection)) {
        let mut state = self.lock();
        change(&mut state.inner);
        state.wake_driver();
    }

    pub(super) fn stats(&self) -> ConnectionStats {
        self.lock().inner.stats()
    }

    /// Packets that were sent a second time.
    pub(super) fn repeated(&self) -> u64 {
        self.lock().again.repeated()
    }

    pub(super) fn rtt(&self) -> Duration {
        self.lock().inner.rtt()
    }

    pub(super) fn remote_address(&self) -> SocketAddr {
        self.lock().inner.remote_address()
    }

    pub(super) fn local_ip(&self) -> Option<IpAddr> {
        self.lock().inner.local_ip()
    }

    /// Why this side closed it, if it did.
    pub(super) fn local_reason(&self) -> Option<(CloseCode, String)> {
        self.lock().reason.clone()
    }
}

/// A connection without a task, by a panic too, is none of its port's any more.
struct Left<'a>(&'a Conn);

impl Drop for Left<'_> {
    fn drop(&mut self) {
        self.0.port.left(self.0.handle);
    }
}

fn socket_failed() -> ConnectionError {
    ConnectionError::TransportError(TransportError {
        code: TransportErrorCode::INTERNAL_ERROR,
        frame: None,
        reason: "the socket failed".to_owned(),
    })
}

impl State {
    fn note_driver(&mut self, cx: &Context<'_>) {
        if self.driver.as_ref().is_none_or(|driver| !driver.will_wake(cx.waker())) {
            self.driver = Some(cx.waker().clone());
        }
    }

    /// Has the task come soon.
    pub(super) fn wake_driver(&self) {
        if let Some(driver) = &self.driver {
            driver.wake_by_ref();
        }
    }

    /// When there is something to do that nobody else asks for.
    fn next_alarm(&mut self) -> Option<Instant> {
        [self.inner.poll_timeout(), self.again.due()].into_iter().flatten().min()
    }

    pub(super) fn send(&mut self, port: &Port, now: Instant) -> Rest {
        thread_local! {
            static BUFFER: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
        }
        let socket = port.socket();
        if let Some((transmit, contents)) = self.unsent.take()
            && !port.send(&socket, &transmit, &contents)
        {
            self.unsent = Some((transmit, contents));
            return Rest::Blocked;
        }
        while let Some((transmit, contents)) = self.again.next(now) {
            // What the socket does not take is lost, as the first may have been.
            port.send(&socket, &transmit, &contents);
        }
        BUFFER.with_borrow_mut(|buffer| {
            for _ in 0..TURN {
                buffer.clear();
                let segments = socket.train(usize::from(self.inner.current_mtu()));
                let streams = self.again.is_urgent().then(|| self.inner.stats().frame_tx.stream);
                let train = self.waiting.poll_transmit(&mut self.inner, now, segments, buffer);
                let Some(transmit) = train else { return Rest::Nothing };
                if let Some(before) = streams {
                    self.repeat(port, now, before, &transmit, buffer);
                }
                if !port.send(&socket, &transmit, buffer) {
                    self.unsent = Some((transmit, mem::replace(buffer, Vec::with_capacity(MAX_TRAIN))));
                    return Rest::Blocked;
                }
            }
            Rest::More
        })
    }

    /// Notes what is to be sent twice of a train, before which so many frames of streams had been sent.
    fn repeat(&mut self, port: &Port, now: Instant, before: u64, train: &Transmit, contents: &[u8]) {
        let stats = self.inner.stats();
        if stats.frame_tx.stream > before {
            let is_lossy = port.lossy.is(train.destination.ip());
            self.again.sent(now, train, contents, is_lossy.then_some((stats.path.cwnd, stats.path.rtt)));
        }
    }
}
