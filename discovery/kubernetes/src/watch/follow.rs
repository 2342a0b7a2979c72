//! Asking the server for what a [`super::Watch`] tells, whatever the kind: objects are texts here, and what their
//! decoder makes of them.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use kube::core::Status;
use kube::runtime::watcher::{self, Config, Event};
use kube::{Api, Client};
use tokio::time::{Instant, sleep_until};

use super::decode::{Anything, Decoded, Decoder, Raw};
use super::table::{Difference, Table};
use super::{BadObject, Selection, WatchStatus};

/// How long the server may keep one watch open, seconds; up to a quarter less, so that the watches of
/// many replicas do not end together. A dead connection is noticed at the latest then.
const WATCH_SECONDS: u32 = 120;

/// Longest silence while a list is read: a server that hangs is asked again.
const LISTING_SILENCE: Duration = Duration::from_secs(60);

/// Pause after a first failure; it doubles with each further one.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// Longest pause between attempts: after an outage a change is seen no later, and a server that comes
/// back has no more than this to bear.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Longest pause that a server can ask for.
const LONGEST_ASKED: Duration = Duration::from_secs(30);

/// Pause before a kind that the server does not know is asked for again: somebody may install it.
const ABSENT_PAUSE: Duration = Duration::from_secs(10);

/// Objects that do not decode and are shown by name; of further ones only the number.
const SHOWN: usize = 10;

/// Objects that do not decode and are logged by name for one list: the status has the number.
const LOGGED: usize = 20;

/// What the server tells.
type Events = BoxStream<'static, watcher::Result<Event<Raw>>>;

/// A watch of objects of whatever kind.
pub(super) struct Follower {
    client: Client,
    selection: Selection,
    decode: Decoder,
    /// Which of the versions is asked for.
    version: usize,
    /// Versions in a row that the server does not know.
    unknown: usize,
    streaming: bool,
    events: Option<Events>,
    /// A list is being read.
    listing: bool,
    table: Table<Anything>,
    status: WatchStatus,
    pause: Pause,
    /// When to go on after a failure.
    resume: Option<Instant>,
    /// The version that was watched from is gone, and no list was read since.
    gone: bool,
    logged: usize,
}

impl Follower {
    /// A watch that asks nothing until [`Follower::next`].
    pub(super) fn new(client: Client, selection: Selection, decode: Decoder) -> Self {
        let kind = selection.resources.first().map_or_else(String::new, |first| match first.group.as_str() {
            "" => first.plural.clone(),
            group => format!("{}.{group}", first.plural),
        });
        Self {
            client,
            selection,
            decode,
            version: 0,
            unknown: 0,
            streaming: true,
            events: None,
            listing: false,
            table: Table::default(),
            status: WatchStatus { kind, ..WatchStatus::default() },
            pause: Pause::default(),
            resume: None,
            gone: false,
            logged: 0,
        }
    }

    /// See [`super::Watch::eager`].
    pub(super) fn tell_as_it_comes(&mut self) {
        self.table.eager = true;
    }

    /// How it is doing.
    pub(super) fn status(&self) -> &WatchStatus {
        &self.status
    }

    /// Waits until there are differences or the status is another; in the latter case there may be
    /// none. Nothing is lost if the future is dropped.
    pub(super) async fn next(&mut self) -> Vec<Difference<Anything>> {
        loop {
            if let Some(at) = self.resume {
                sleep_until(at).await;
                self.resume = None;
            }
            if self.events.is_none() {
                self.events = self.start();
                self.listing = true;
            }
            let Some(events) = &mut self.events else { return std::future::pending().await };
            let event = if self.listing {
                tokio::time::timeout(LISTING_SILENCE, events.next()).await.ok()
            } else {
                Some(events.next().await)
            };
            let before = self.status.clone();
            let differences = match event {
                Some(Some(Ok(event))) => self.take(event),
                Some(Some(Err(error))) => {
                    self.failed(&error);
                    Vec::new()
                }
                Some(None) | None => {
                    self.events = None;
                    self.failure("the server does not answer".to_owned(), None);
                    Vec::new()
                }
            };
            if !differences.is_empty() || self.status != before {
                return differences;
            }
        }
    }

    fn start(&self) -> Option<Events> {
        let resource = self.selection.resources.get(self.version)?;
        let api: Api<Raw> = match &self.selection.namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, resource),
            None => Api::all_with(self.client.clone(), resource),
        };
        let mut config = Config::default().timeout(fastrand::u32(WATCH_SECONDS * 3 / 4..=WATCH_SECONDS));
        config.label_selector.clone_from(&self.selection.labels);
        config.field_selector.clone_from(&self.selection.fields);
        if self.streaming {
            config = config.streaming_lists();
        }
        Some(watcher::watcher(api, config).boxed())
    }

    fn take(&mut self, event: Event<Raw>) -> Vec<Difference<Anything>> {
        match &event {
            Event::Init => {
                self.listing = true;
                self.logged = 0;
            }
            Event::InitApply(_) => {}
            Event::InitDone => {
                self.listing = false;
                self.succeeded();
            }
            Event::Apply(_) | Event::Delete(_) => self.succeeded(),
        }
        let outcome = self.table.handle(self.decoded(event));
        for (object, error) in outcome.quarantined {
            let kind = self.status.kind.as_str();
            if self.listing && self.logged == LOGGED {
                tracing::warn!(kind, "further objects cannot be read; the status has their number");
            }
            if !self.listing || self.logged < LOGGED {
                tracing::warn!(kind, %object, "cannot be read: {error}; its last good version stays, if it had one");
            }
            self.logged = self.logged.saturating_add(1);
        }
        self.status.listed = self.table.listed();
        self.status.objects = self.table.len();
        self.status.quarantined = self.table.bad().len();
        self.status.bad.clear();
        let bad = self.table.bad().take(SHOWN);
        self.status
            .bad
            .extend(bad.map(|(object, error)| BadObject { object: object.clone(), error: error.to_owned() }));
        outcome.differences
    }

    fn decoded(&self, event: Event<Raw>) -> Event<Decoded<Anything>> {
        match event {
            Event::Init => Event::Init,
            Event::InitApply(object) => Event::InitApply(object.decoded(self.decode)),
            Event::InitDone => Event::InitDone,
            Event::Apply(object) => Event::Apply(object.decoded(self.decode)),
            Event::Delete(object) => Event::Delete(object.decoded(self.decode)),
        }
    }

    fn succeeded(&mut self) {
        if self.status.problem.take().is_some() {
            tracing::info!(kind = self.status.kind, "watched again");
        }
        self.status.not_installed = false;
        self.unknown = 0;
        self.gone = false;
        self.pause.reset();
    }

    fn failed(&mut self, error: &watcher::Error) {
        let (kube_error, starting) = match error {
            watcher::Error::InitialListFailed(error) => (Some(error), false),
            watcher::Error::WatchStartFailed(error) => (Some(error), true),
            watcher::Error::WatchFailed(error) => (Some(error), false),
            watcher::Error::WatchError(_) | watcher::Error::NoResourceVersion => (None, false),
        };
        let status = match (error, kube_error) {
            (watcher::Error::WatchError(status), _) | (_, Some(kube::Error::Api(status))) => Some(status),
            _ => None,
        };
        match status.map(|status| status.code) {
            // No streaming lists: forbidden fields (before 1.32, or switched off). Nothing is wrong.
            // 500: its store is an etcd before 3.4.25 or 3.5.8, which cannot tell how far it is.
            Some(400 | 422) if starting && self.streaming && self.listing => return self.no_streaming(error),
            Some(500) if self.streaming && self.listing => return self.no_streaming(error),
            Some(404) => return self.absent(),
            // The version is gone, as after an outage or a long silence: the server is well, and is asked for
            // a list soon.
            Some(410) if !self.gone => {
                tracing::debug!(kind = self.status.kind, "listing again: {error}");
                self.gone = true;
                self.events = None;
                self.pause.reset();
                self.resume = Some(Instant::now() + self.pause.next());
                return;
            }
            // The version is gone even so, or the server was set back and has not reached it: list anew.
            Some(400 | 410 | 422 | 504) => self.events = None,
            _ => {}
        }
        let asked = status.and_then(|status| retry_after(status));
        self.failure(describe(error, status.map(|status| &**status)), asked);
    }

    /// Lists are read as a whole from now on.
    fn no_streaming(&mut self, error: &watcher::Error) {
        tracing::debug!(kind = self.status.kind, "no streaming lists here: {error}");
        self.streaming = false;
        self.events = None;
    }

    /// The server does not know this version of the kind. What was told stays: when a definition is
    /// deleted its objects are deleted first, and told as that.
    fn absent(&mut self) {
        self.events = None;
        self.version = (self.version + 1) % self.selection.resources.len().max(1);
        self.unknown += 1;
        if self.unknown < self.selection.resources.len() {
            return;
        }
        self.unknown = 0;
        if !self.status.not_installed {
            tracing::info!(
                kind = self.status.kind,
                "the API server has no such resource; waiting until it is installed"
            );
        }
        self.status.not_installed = true;
        self.status.problem = None;
        self.resume = Some(Instant::now() + jittered(ABSENT_PAUSE));
    }

    fn failure(&mut self, problem: String, asked: Option<Duration>) {
        self.status.failures += 1;
        let pause = self.pause.next().max(asked.unwrap_or_default().min(LONGEST_ASKED));
        if self.status.problem.as_ref() != Some(&problem) {
            tracing::warn!(kind = self.status.kind, "{problem}; trying again");
        }
        self.status.problem = Some(problem);
        self.status.not_installed = false;
        self.resume = Some(Instant::now() + pause);
    }
}

/// For how long the server wants to be left alone.
fn retry_after(status: &Status) -> Option<Duration> {
    let seconds = status.details.as_ref()?.retry_after_seconds;
    (seconds > 0).then(|| Duration::from_secs(u64::from(seconds)))
}

/// What to tell about a failure: of a refusal, the server's own words, which name the verb and the
/// resource that are missing.
fn describe(error: &watcher::Error, status: Option<&Status>) -> String {
    match status {
        Some(status) if !status.message.is_empty() => format!("{} ({})", status.message.trim_end(), status.code),
        Some(status) => format!("the API server answers {} {}", status.code, status.reason),
        None => chain(error).into_iter().next_back().unwrap_or_default(),
    }
}

/// The texts of an error and of what caused it.
fn chain(error: &dyn std::error::Error) -> Vec<String> {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect()
}

/// Growing pauses between attempts.
#[derive(Debug, Default)]
struct Pause {
    failures: u32,
}

impl Pause {
    fn next(&mut self) -> Duration {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(10)).min(LONGEST_PAUSE);
        self.failures = self.failures.saturating_add(1);
        jittered(pause)
    }

    fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Half to all of a pause: replicas that failed together do not come back together.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}
