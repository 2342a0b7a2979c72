//! Which kinds of events a run had.

use std::fmt;

macro_rules! kinds {
    ($($(#[$meta:meta])* $name:ident,)+) => {
        /// A kind of event.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Kind {
            $($(#[$meta])* $name,)+
        }

        impl Kind {
            /// All kinds.
            pub const ALL: &[Self] = &[$(Self::$name,)+];
        }
    };
}

kinds! {
    /// A cluster gets a service.
    AddService,
    /// A service goes.
    RemoveService,
    /// Ports or labels of a service change.
    ChangeService,
    /// A service is exported, or no longer.
    ToggleExport,
    /// An endpoint becomes ready or unready.
    FlapEndpoint,
    /// An endpoint comes, goes or moves to another address.
    ChangeEndpoints,
    /// Two clusters lose their links.
    Partition,
    /// The same while a snapshot is on its way.
    PartitionMidSnapshot,
    /// A partition ends before anybody noticed.
    HealUnnoticed,
    /// A partition ends after the links were given up.
    Heal,
    /// A replica restarts with what is on its disk.
    RestartWithDisk,
    /// A replica restarts with nothing.
    RestartWithoutDisk,
    /// A replica restarts with an older disk.
    RestartFromOlderDisk,
    /// A replica finds a torn file.
    TornDisk,
    /// An exporter is asked before its registries are synced.
    UnsyncedExporter,
    /// An importer moves to another replica, or anew to the same.
    SwitchSession,
    /// A message of the session before arrives after the new one began.
    Reorder,
    /// A replica that is behind by 30 s learns of a change.
    LaggingReplica,
    /// A session is opened to a replica that is behind.
    SnapshotFromLaggingReplica,
    /// What a Peer may bring changes.
    ImportRules,
    /// What a Peer is offered changes.
    ExportRules,
    /// A Peer is removed from the configuration.
    RemovePeer,
    /// And added again.
    AddPeer,
    /// Endpoint records of a service are wanted.
    Subscribe,
    /// And no longer.
    Unsubscribe,
    /// A wall clock jumps.
    ClockJump,
    /// An importer stops reading for a while.
    SlowImporter,
    /// An exporter gave it up.
    AckTimeout,
    /// A peer was away for longer than its withdrawAfter.
    Withdraw,
    /// A reconnect found that nothing had changed.
    Unchanged,
    /// A reconnect needed a part of the services only.
    PartialSnapshot,
    /// An importer asked for a resync.
    Resync,
    /// A quota refused something.
    Quota,
    /// A hostile exporter sends bytes that are no message.
    HostileGarbage,
    /// A hostile exporter sends what it may not.
    HostileForbidden,
    /// A hostile exporter sends an earlier message again.
    HostileReplay,
    /// A hostile exporter says that it is another cluster.
    HostileName,
    /// A hostile exporter ignores sequence and window.
    HostileFlood,
    /// A hostile importer asks for what is not for it.
    HostileImporter,
}

/// The kinds that one or more seeds had.
#[derive(Clone, Debug)]
pub struct Hits {
    seeds: Vec<u64>,
    /// Events that happened.
    pub events: u64,
    /// Messages that were delivered.
    pub messages: u64,
}

impl Default for Hits {
    fn default() -> Self {
        Self { seeds: vec![0; Kind::ALL.len()], events: 0, messages: 0 }
    }
}

impl Hits {
    /// This seed had this kind.
    pub fn hit(&mut self, kind: Kind) {
        self.seeds[kind as usize] = 1;
    }

    /// Adds the hits of another seed.
    pub fn merge(&mut self, other: &Self) {
        self.seeds.iter_mut().zip(&other.seeds).for_each(|(sum, more)| *sum += more);
        self.events += other.events;
        self.messages += other.messages;
    }

    /// How many seeds had this kind.
    #[must_use]
    pub fn seeds_with(&self, kind: Kind) -> u64 {
        self.seeds[kind as usize]
    }

    /// Kinds that no seed had.
    #[must_use]
    pub fn missing(&self) -> Vec<Kind> {
        Kind::ALL.iter().copied().filter(|kind| self.seeds_with(*kind) == 0).collect()
    }
}

impl fmt::Display for Hits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for kind in Kind::ALL {
            writeln!(f, "  {:<28} {:>8} seeds", format!("{kind:?}"), self.seeds_with(*kind))?;
        }
        Ok(())
    }
}
