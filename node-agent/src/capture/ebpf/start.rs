//! From nothing to a running capture: what all ways to attach need, and then each way until one works.

use std::time::{Instant, SystemTime};

use super::{
    capture::EbpfCapture,
    new_flows::NewFlows,
    preflight::{self, Environment, note},
    programs::Programs,
    self_test,
    slots::Slots,
    snmp_audit::SnmpAudit,
};
use crate::capture::{
    attach::Attach,
    description::{Degradation, Description, Feature, Finding, Mode},
    errors::Refusal,
    settings::Settings,
};
use kernel_support::Reason;

/// Loads, attaches and tests the programs, and finds preexisting connections.
///
/// # Errors
/// Returns the first requirement that this machine does not meet.
pub fn start_ebpf(settings: &Settings) -> Result<EbpfCapture, Refusal> {
    prepare(settings, &mut Vec::new())
}

/// Probes this machine, step by step and for each attach type, without leaving anything behind.
#[must_use]
pub fn probe(settings: &Settings) -> Vec<Finding> {
    let mut findings = Vec::new();
    try_all(settings, &mut findings);
    findings
}

/// Starts the best capture that works, and notes each step.
///
/// # Errors
/// Returns the error that keeps all attach types from working, or the errors of each.
pub(super) fn prepare(settings: &Settings, findings: &mut Vec<Finding>) -> Result<EbpfCapture, Refusal> {
    let environment = preflight::find(settings, findings)?;
    let mut refused = Vec::new();
    for attach in choices(settings) {
        match start(settings, &environment, attach, &refused, findings) {
            Ok(capture) => return Ok(capture),
            Err(refusal) => refused.push((attach, refusal)),
        }
    }
    Err(all_refused(&refused))
}

/// Tries every way, and notes each step.
pub(super) fn try_all(settings: &Settings, findings: &mut Vec<Finding>) {
    let Ok(environment) = preflight::find(settings, findings) else { return };
    for attach in choices(settings) {
        // Dropping the capture detaches and unloads everything.
        drop(start(settings, &environment, attach, &[], findings));
    }
}

fn choices(settings: &Settings) -> Vec<Attach> {
    settings.attach.map_or_else(|| Attach::ALL.to_vec(), |attach| vec![attach])
}

fn start(
    settings: &Settings,
    environment: &Environment,
    attach: Attach,
    refused: &[(Attach, Refusal)],
    findings: &mut Vec<Finding>,
) -> Result<EbpfCapture, Refusal> {
    let mut degradations = environment.degradations.clone();
    if attach == Attach::SockOps {
        note(findings, Some(attach), "capabilities", environment.capabilities.allow_sock_ops(), |()| {
            String::from("NET_ADMIN, too")
        })?;
    }
    let loaded = Programs::load(settings, environment, attach, &mut degradations)
        .map_err(|refusal| environment.lockdown.explain(refusal));
    let mut programs = note(findings, Some(attach), "load", loaded, |_| String::from("loaded"))?;
    note_optional(findings, attach, "list of open sockets", Feature::OpenSockets, &degradations);
    if attach == Attach::SockOps {
        note_optional(findings, attach, "ends of old connections", Feature::OldCloses, &degradations);
    } else {
        degradations.push(weakness(&programs, environment, attach, refused));
    }
    let in_maps =
        |error| Refusal { reason: Reason::LoadFailed, message: format!("writing to the programs' maps: {error}") };
    programs.set_first_look(true).map_err(in_maps)?;
    // Before the programs of TCP, as loading takes long on a busy node, and their notes of the first look are limited.
    let mut datagrams = if settings.datagrams {
        let attached = programs.attach_datagrams(settings, &mut degradations);
        note_optional(findings, attach, "UDP", Feature::Datagrams, &degradations);
        if attached.is_some() {
            note_optional(
                findings,
                attach,
                "original destinations of UDP",
                Feature::OriginalDestinations,
                &degradations,
            );
        }
        attached
    } else {
        None
    };
    note(findings, Some(attach), "attach", programs.attach(attach, &settings.cgroup_root), |()| match attach {
        Attach::SockOps => format!("attached to {}", settings.cgroup_root.display()),
        Attach::TpBtf | Attach::Tracepoint => {
            format!("attached to inet_sock_set_state: {}", programs.weakness(&environment.release))
        }
    })?;
    let attached_at = SystemTime::now();
    if let Err(message) = programs.check_balancers(datagrams.as_mut(), &settings.cgroup_root, Instant::now()) {
        degradations.push(Degradation { feature: Feature::BalancedDestinations, message });
        note_optional(findings, attach, "load balancer at the sockets", Feature::BalancedDestinations, &degradations);
    }
    let (mut slots, mut new_flow_notifications) = (Slots::default(), NewFlows::default());
    if settings.self_test {
        let tested = self_test::run(attach, &mut programs, &mut new_flow_notifications, &mut slots);
        note(findings, Some(attach), "self-test", tested, |()| {
            String::from("a connection of the agent's own was counted exactly")
        })?;
    }
    let mut description = Description {
        mode: Mode::Ebpf,
        attach: attach.as_str(),
        attached_at,
        kernel: environment.release.text.clone(),
        degradations,
    };
    description.note_shortage(settings.shortage);
    let snmp_audit = SnmpAudit::open(settings, &programs).map_err(|error| Refusal {
        reason: Reason::LoadFailed,
        message: format!("reading the cgroups below {}: {error}", settings.cgroup_root.display()),
    })?;
    let mut capture =
        EbpfCapture::new(description, programs, slots, new_flow_notifications, datagrams, snmp_audit, settings);
    capture.first_look().map_err(|error| Refusal {
        reason: Reason::LoadFailed,
        message: format!("looking at what is open: {error}"),
    })?;
    Ok(capture)
}

fn note_optional(
    findings: &mut Vec<Finding>,
    attach: Attach,
    what: &'static str,
    feature: Feature,
    degradations: &[Degradation],
) {
    let lacking = degradations.iter().find(|degradation| degradation.feature == feature);
    let detail = lacking.map_or_else(|| String::from("loaded"), |degradation| degradation.message.clone());
    findings.push(Finding { attach: Some(attach), what, ok: lacking.is_none(), detail, refusal: None });
}

/// Why it is not the first choice, and what that means.
fn weakness(
    programs: &Programs,
    environment: &Environment,
    attach: Attach,
    refused: &[(Attach, Refusal)],
) -> Degradation {
    let mut parts: Vec<_> = refused.iter().map(|(other, refusal)| format!("{other} was refused ({refusal})")).collect();
    parts.push(format!("connections are tracked by {attach}: {}", programs.weakness(&environment.release)));
    Degradation { feature: Feature::EveryEvent, message: parts.join("; ") }
}

/// The reason is that of the first choice.
fn all_refused(refused: &[(Attach, Refusal)]) -> Refusal {
    let reason = refused.first().map_or(Reason::LoadFailed, |(_, refusal)| refusal.reason);
    let each: Vec<_> = refused.iter().map(|(attach, refusal)| format!("{attach}: {refusal}")).collect();
    Refusal { reason, message: each.join("; ") }
}
