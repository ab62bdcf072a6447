//! Kubernetes events: what a person may want to have been told.

use crds::{NodeProbe, NodeProbeStatus};
use kube::{
    Client, Resource,
    runtime::events::{Event, EventType, Recorder, Reporter},
};

/// Tells of changes of mode.
pub struct Events {
    recorder: Recorder,
}

impl Events {
    /// Events from this operator.
    #[must_use]
    pub fn new(client: Client, identity: &str) -> Self {
        let reporter =
            Reporter { controller: "scopeprobe.io/operator".to_owned(), instance: Some(identity.to_owned()) };
        Self { recorder: Recorder::new(client, reporter) }
    }

    /// Says on a NodeProbe that its mode or the reason for it has changed. An event that cannot be written is logged:
    /// the status says the same.
    pub async fn mode_changed(&self, node_probe: &NodeProbe, status: &NodeProbeStatus) {
        let Some(mode) = status.mode else { return };
        let event = Event {
            type_: if mode == crds::Mode::Ebpf { EventType::Normal } else { EventType::Warning },
            reason: format!("Capture{}", mode.as_str()),
            note: Some(truncated(&format!("{}: {}", status.reason, status.message))),
            action: "Capture".to_owned(),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, &node_probe.object_ref(&())).await {
            tracing::warn!(%error, "cannot write an event");
        }
    }
}

/// An event's note takes 1 kB at most.
fn truncated(note: &str) -> String {
    note.chars().take(250).collect()
}

/// Whether a write tells of another mode or reason.
#[must_use]
pub fn is_mode_change(before: Option<&NodeProbeStatus>, after: &NodeProbeStatus) -> bool {
    after.mode.is_some() && before.is_none_or(|before| (before.mode, &before.reason) != (after.mode, &after.reason))
}
