//! One federation stream between two replicas: two sessions, and the bytes on their way.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use eastway_federation::codec::Decoder;
use eastway_federation::{ExportSession, ImportSession};
use eastway_model::ServiceKey;
use eastway_proto::federation::v1::{ExporterMessage, ImporterMessage};

/// A replica: index of its cluster, index in it.
pub(super) type ReplicaIndex = (usize, usize);

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Direction {
    ToImporter,
    ToExporter,
}

/// One stream.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) importer: ReplicaIndex,
    pub(super) exporter: ReplicaIndex,
    pub(super) import: ImportSession,
    pub(super) export: ExportSession,
    pub(super) to_importer: VecDeque<(Duration, Bytes)>,
    pub(super) to_exporter: VecDeque<(Duration, Bytes)>,
    pub(super) at_importer: Decoder<ExporterMessage>,
    pub(super) at_exporter: Decoder<ImporterMessage>,
    pub(super) latency: Duration,
    /// The importer reads nothing before this.
    pub(super) slow_until: Duration,
    /// When the timers are due that are in the queue.
    pub(super) import_timer: Option<Duration>,
    pub(super) export_timer: Option<Duration>,
    /// Services that the exporter has named.
    pub(super) named: BTreeSet<ServiceKey>,
    /// Sequence of the last message sent, and of the last acknowledgement that arrived.
    pub(super) sequence: u64,
    pub(super) acknowledged: u64,
    /// Some frames of the exporter, to be sent again by a hostile one.
    pub(super) recorded: Vec<Bytes>,
    /// A hostile peer has put messages of its own on this stream.
    pub(super) tampered: bool,
    /// A newer session of the importer took over.
    pub(super) superseded: bool,
    /// The importer reads a snapshot.
    pub(super) in_snapshot: bool,
    /// The exporter sent its open message.
    pub(super) opened: bool,
}

impl Conn {
    pub(super) fn queue(&mut self, direction: Direction) -> &mut VecDeque<(Duration, Bytes)> {
        match direction {
            Direction::ToImporter => &mut self.to_importer,
            Direction::ToExporter => &mut self.to_exporter,
        }
    }

    /// Nothing is under way and nothing waits.
    pub(super) fn is_idle(&self) -> bool {
        self.to_importer.is_empty() && self.to_exporter.is_empty() && self.export.is_idle() && self.import.is_live()
    }

    pub(super) fn clusters(&self) -> (usize, usize) {
        let (a, b) = (self.importer.0, self.exporter.0);
        (a.min(b), a.max(b))
    }
}
