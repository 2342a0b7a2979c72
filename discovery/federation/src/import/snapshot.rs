//! Snapshots: from `SnapshotBegin` to `Complete` nothing of one counts (F15).

use eastway_proto::federation::v1 as wire;

use super::{ImportAction, ImportSession, Phase, Rejections};
use crate::limits::Now;
use crate::reject::RejectReason;
use crate::table::{ImportTable, Reading, Source, Staging};

impl ImportSession {
    /// What we hold is what the exporter has.
    pub(super) fn unchanged(&mut self, table: &mut ImportTable, now: Now, actions: &mut Vec<ImportAction>) {
        if !matches!(self.phase, Phase::AwaitSnapshot) || !self.asked_with_held {
            return self.resync("OUT_OF_SEQUENCE", now, actions);
        }
        self.go_live(table, now, actions);
    }

    pub(super) fn begin(&mut self, buckets: u64, now: Now, actions: &mut Vec<ImportAction>) {
        // A part is an answer to what the open message said we hold, and to nothing else.
        let first = matches!(self.phase, Phase::AwaitSnapshot) && self.asked_with_held;
        if buckets != u64::MAX && !first {
            return self.resync("OUT_OF_SEQUENCE", now, actions);
        }
        self.listings.clear();
        self.phase = Phase::Snapshot(Staging::new(buckets));
    }

    pub(super) fn chunk(
        &mut self,
        table: &mut ImportTable,
        chunk: wire::SnapshotChunk,
        now: Now,
        actions: &mut Vec<ImportAction>,
    ) {
        let Phase::Snapshot(staging) = &mut self.phase else {
            return self.resync("OUT_OF_SEQUENCE", now, actions);
        };
        self.records.take(chunk.services.len(), now);
        let mut rejections = Rejections::default();
        let quota = self.limits.services;
        let mut reading = Reading { rules: &self.rules, texts: &mut table.texts, now };
        for state in chunk.services {
            if let Err((key, reason)) = staging.take(state, &table.services, quota, &mut reading) {
                rejections.add(key, reason);
            }
        }
        rejections.report(actions);
    }

    pub(super) fn complete(
        &mut self,
        table: &mut ImportTable,
        digest: &[u8],
        now: Now,
        actions: &mut Vec<ImportAction>,
    ) {
        let staging = match std::mem::replace(&mut self.phase, Phase::AwaitResync) {
            Phase::Snapshot(staging) => staging,
            Phase::AwaitOpen | Phase::AwaitSnapshot | Phase::Live | Phase::AwaitResync | Phase::Closed => {
                return self.resync("OUT_OF_SEQUENCE", now, actions);
            }
        };
        let Ok(swap) = staging.complete(&mut table.services, digest, self.limits.services) else {
            return self.resync("DIGEST_MISMATCH", now, actions);
        };
        for key in &swap.gone {
            table.forget_endpoints(key);
        }
        let mut rejections = Rejections::default();
        for key in swap.refused {
            rejections.add(Some(key), RejectReason::Quota { what: "services", max: self.limits.services });
        }
        rejections.report(actions);
        self.go_live(table, now, actions);
    }

    /// The table holds all that the exporter said. The store is told everything at once, also if
    /// nothing changed: whatever it missed or dropped meanwhile, now it is right.
    fn go_live(&mut self, table: &mut ImportTable, now: Now, actions: &mut Vec<ImportAction>) {
        self.phase = Phase::Live;
        table.pending.services.clear();
        table.source = Some(Source { epoch: self.epoch, sequence: self.sequence });
        table.touch();
        actions.push(ImportAction::Apply(table.replacement()));
        self.applied_at = Some(now.mono);
        self.want_refused(table, now);
    }
}
