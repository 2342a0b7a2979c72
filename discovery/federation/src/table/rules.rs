//! A Peer's rules applied to what is already held.

use std::sync::Arc;

use eastway_model::rules::PeerRules;
use eastway_model::{ServiceKey, ServiceRecord};

use super::ImportTable;
use crate::reject::RejectReason;

/// What new rules do to a table.
#[derive(Debug, Default)]
pub(crate) struct RulesOutcome {
    /// Services that were in use and must not be any more, with the reason.
    pub(crate) refused: Vec<(ServiceKey, RejectReason)>,
    /// Services that were refused may now be allowed: only a whole snapshot has them.
    pub(crate) needs_snapshot: bool,
}

impl ImportTable {
    /// Takes what `rules` forbid out of use; the store learns it as pending changes.
    pub(crate) fn apply_rules(&mut self, rules: &PeerRules) -> RulesOutcome {
        let mut outcome = RulesOutcome::default();
        let mut out_of_use = Vec::new();
        for (key, held) in self.services.iter() {
            let verdict = held.record.as_deref().map(|record| check(key, record, rules));
            if let Some(Err(reason)) = verdict {
                out_of_use.push((key.clone(), reason));
            }
            outcome.needs_snapshot |= match &held.refused {
                Some(RejectReason::NotAllowed) => rules.import.allows(key),
                Some(RejectReason::ForeignIdentity { trust_domain, .. }) => **trust_domain != *rules.trust_domain,
                Some(_) | None => false,
            };
        }
        let quota = self.limits.services;
        for (key, reason) in out_of_use {
            let Some(mut held) = self.services.get(&key).cloned() else { continue };
            held.record = None;
            held.refused = Some(reason.clone());
            // It is held already, so no quota refuses it.
            if self.services.insert(key.clone(), held, quota).is_ok() {
                self.forget_endpoints(&key);
                self.pending.services.insert(key.clone());
                outcome.refused.push((key, reason));
            }
        }
        if !outcome.refused.is_empty() {
            self.touch();
        }
        outcome.needs_snapshot |= self.apply_rules_to_endpoints(rules);
        outcome
    }

    /// Endpoints of an identity that the peer may no longer use go as a whole listing: the next
    /// session brings the good ones back.
    fn apply_rules_to_endpoints(&mut self, rules: &PeerRules) -> bool {
        let foreign = |domain: &Arc<str>| **domain != *rules.trust_domain;
        let mut any = false;
        let mut dropped = Vec::new();
        for (key, subscribed) in &mut self.subscriptions {
            let identities = |endpoint: eastway_model::endpoint::EndpointRef<'_>| {
                endpoint.shape.identity.as_ref().is_some_and(|identity| foreign(&identity.trust_domain))
            };
            if subscribed.endpoints.iter().any(identities) {
                dropped.push((key.clone(), subscribed.ids().collect::<Vec<_>>()));
                subscribed.forget();
                any = true;
            }
        }
        for (key, ids) in dropped {
            self.pending.endpoints.entry(key).or_default().extend(ids);
        }
        any
    }
}

fn check(key: &ServiceKey, record: &ServiceRecord, rules: &PeerRules) -> Result<(), RejectReason> {
    if !rules.import.allows(key) {
        return Err(RejectReason::NotAllowed);
    }
    let mut identities = record.groups.iter().flat_map(|group| &group.identities);
    match identities.find(|identity| *identity.trust_domain != *rules.trust_domain) {
        Some(identity) => Err(RejectReason::ForeignIdentity {
            identity: identity.to_string(),
            trust_domain: rules.trust_domain.to_string(),
        }),
        None => Ok(()),
    }
}
