//! What of a traffic policy only sidecars do.

use std::time::Duration;

use eastway_model::rules::{Abort, Balance, ConnectionLimits, Delay, Fault, MAX_WEIGHT, Outliers, SidecarPolicy};
use eastway_registry::diagnostic::Code;
use eastway_registry::yaml::{At, Context, Field};

use super::file::{ConnectionLimitsSection, FaultSection, OutlierSection, TrafficPolicySpec};
use crate::config::settings::duration_in;

pub(in crate::config) const HOUR: Duration = Duration::from_secs(3_600);
/// Most errors in a row that are waited for.
pub(in crate::config) const MAX_ERRORS: u32 = 1_000;

pub(super) fn sidecars(spec: &TrafficPolicySpec, cx: &mut Context<'_>) -> SidecarPolicy {
    SidecarPolicy {
        outliers: spec.outlier_detection.value().map_or_else(Outliers::default, |section| outliers(section, cx)),
        limits: spec.limits.value().map_or_else(ConnectionLimits::default, |section| limits(section, cx)),
        balance: Balance::default(),
        fault: spec.fault.get().map(|section| fault(section, cx)),
    }
}

fn outliers(section: &OutlierSection, cx: &mut Context<'_>) -> Outliers {
    let defaults = Outliers::default();
    let least = Duration::from_millis(100);
    Outliers {
        errors: number(&section.consecutive_errors, 0, MAX_ERRORS, cx).unwrap_or(defaults.errors),
        failures: number(&section.consecutive_failures, 0, MAX_ERRORS, cx).unwrap_or(defaults.failures),
        interval: duration_in(&section.interval, least, HOUR, defaults.interval, cx),
        ejection: duration_in(&section.ejection_time, least, HOUR, defaults.ejection, cx),
        most_percent: number(&section.max_ejected_percent, 0, 100, cx).unwrap_or(defaults.most_percent),
    }
}

fn limits(section: &ConnectionLimitsSection, cx: &mut Context<'_>) -> ConnectionLimits {
    ConnectionLimits {
        connections: number(&section.connections, 1, MAX_WEIGHT, cx),
        pending: number(&section.pending_requests, 1, MAX_WEIGHT, cx),
        requests: number(&section.requests, 1, MAX_WEIGHT, cx),
    }
}

fn fault(section: &At<FaultSection>, cx: &mut Context<'_>) -> Fault {
    let fault = &section.value;
    if matches!((&fault.delay, &fault.abort), (Field::Absent, Field::Absent)) {
        cx.error(section.at, Code::Missing, "delay or abort is required");
    }
    let least = Duration::from_millis(1);
    let delay = fault.delay.get().map(|delay| {
        cx.required(delay.at, "duration", &delay.value.duration, "how long, e.g. 2s");
        let duration = duration_in(&delay.value.duration, least, HOUR, least, cx);
        Delay { duration, per_million: number(&delay.value.percent, 0, 100, cx).unwrap_or(100) * 10_000 }
    });
    let abort = fault.abort.get().map(|abort| {
        cx.required(abort.at, "status", &abort.value.status, "of the answer, e.g. 503");
        let status = number(&abort.value.status, 200, 599, cx).and_then(|status| u16::try_from(status).ok());
        let per_million = number(&abort.value.percent, 0, 100, cx).unwrap_or(100) * 10_000;
        Abort { status: status.unwrap_or(503), per_million }
    });
    Fault { delay, abort }
}

/// A number within bounds.
pub(in crate::config) fn number(field: &Field<i64>, min: u32, max: u32, cx: &mut Context<'_>) -> Option<u32> {
    let at = field.get()?;
    let number = u32::try_from(at.value).ok().filter(|number| (min..=max).contains(number));
    if number.is_none() {
        cx.error(at.at, Code::Value, format!("must be {min} to {max}"));
    }
    number
}
