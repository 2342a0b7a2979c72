//! Settings that only a restart can change.

use eastway_registry::diagnostic::Code;
use eastway_registry::yaml::{Context, Document};

use super::settings::{ReplicaSettings, Settings};
use super::value::Fqdn;

/// `new` with everything that cannot change in a running process as `running` has it, and a warning
/// for each difference.
pub(super) fn keep(running: &Settings, new: Settings, document: &Document, cx: &mut Context<'_>) -> Settings {
    let mut kept = new;
    let mut fixed = Fixed { document, cx };
    fixed.keep(&["cluster"], &running.cluster, &mut kept.cluster);
    fixed.keep(&["trust", "domain"], &running.trust.domain, &mut kept.trust.domain);
    fixed.keep(&["trust", "cacerts"], &running.trust.cacerts, &mut kept.trust.cacerts);
    fixed.keep(&["trust", "ca"], &running.trust.ca, &mut kept.trust.ca);
    fixed.keep(&["trust", "token"], &running.trust.token, &mut kept.trust.token);
    fixed.keep(&["trust", "keep"], &running.trust.keep, &mut kept.trust.keep);
    fixed.keep(&["trust", "leafTtl"], &running.trust.leaf_ttl, &mut kept.trust.leaf_ttl);
    fixed.keep(&["listen", "link"], &running.listen.link, &mut kept.listen.link);
    fixed.keep(&["listen", "dns"], &running.listen.dns, &mut kept.listen.dns);
    fixed.keep(&["listen", "admin"], &running.listen.admin, &mut kept.listen.admin);
    fixed.keep(&["listen", "local"], &running.listen.local, &mut kept.listen.local);
    fixed.keep(&["listen", "hbone"], &running.listen.hbone, &mut kept.listen.hbone);
    fixed.keep(&["listen", "sni"], &running.listen.sni, &mut kept.listen.sni);
    fixed.keep(&["listen", "ca"], &running.listen.ca, &mut kept.listen.ca);
    fixed.keep(&["listen", "injection"], &running.listen.injection, &mut kept.listen.injection);
    fixed.keep(&["listen", "metrics"], &running.listen.metrics, &mut kept.listen.metrics);
    fixed.keep(&["listen", "health"], &running.listen.health, &mut kept.listen.health);
    fixed.keep(&["link"], &running.link, &mut kept.link);
    // Siblings come and go; where they are heard, or that they are heard at all, stays.
    let heard_at = |settings: &Settings| settings.replicas.as_ref().map(|replicas| replicas.listen);
    let (running_at, mut kept_at) = (heard_at(running), heard_at(&kept));
    fixed.keep(&["replicas", "listen"], &running_at, &mut kept_at);
    let siblings = kept.replicas.take().or_else(|| running.replicas.clone()).map(|replicas| replicas.siblings);
    kept.replicas = kept_at.map(|listen| ReplicaSettings { listen, siblings: siblings.unwrap_or_default() });
    fixed.keep(&["dns", "zones"], &running.dns.zones, &mut kept.dns.zones);
    fixed.keep(&["vip"], &running.vip, &mut kept.vip);
    fixed.keep(&["sidecars"], &running.sidecars, &mut kept.sidecars);
    fixed.keep(&["kubernetes"], &running.kubernetes, &mut kept.kubernetes);
    fixed.keep(&["state"], &running.state, &mut kept.state);
    fixed.keep(&["limits"], &running.limits, &mut kept.limits);
    fixed.keep(&["log", "format"], &running.log.format, &mut kept.log.format);
    fixed.keep(&["allowLoopback"], &running.allow_loopback, &mut kept.allow_loopback);
    // Names in a zone that is not served yet would lead nowhere; the zone's warning says so.
    let zones = &kept.dns.zones;
    let served = |name: &str| Fqdn::parse(name).is_ok_and(|name| zones.iter().any(|zone| name.is_in(zone)));
    kept.dns.names.retain(|name| served(&name.fqdn));
    kept
}

struct Fixed<'a, 'c> {
    document: &'a Document,
    cx: &'a mut Context<'c>,
}

impl Fixed<'_, '_> {
    fn keep<T: PartialEq + Clone>(&mut self, keys: &[&str], running: &T, new: &mut T) {
        if new == running {
            return;
        }
        new.clone_from(running);
        // A setting that was removed is reported at what is left of its surroundings.
        let mut at = self.cx.root();
        for key in keys {
            at = self.document.child(at, key).unwrap_or(at);
        }
        let message = format!("{} takes effect at the next start; the running value stays until then", keys.join("."));
        self.cx.warn(at, Code::NeedsRestart, message);
    }
}
