//! Records Kubernetes events. A failed write is only logged, because a status has the same information.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};

/// Reporting controller of all events. The chart's admission policy allows no other.
const CONTROLLER: &str = "scopeprobe.io/operator";

/// Recorder of events. Repeated ones become one event with a count.
#[derive(Clone)]
pub struct EventRecorder(Recorder);

impl EventRecorder {
    /// Returns a recorder for events of this operator.
    #[must_use]
    pub fn new(client: Client, identity: &str) -> Self {
        let reporter = Reporter { controller: CONTROLLER.to_owned(), instance: Some(identity.to_owned()) };
        Self(Recorder::new(client, reporter))
    }

    /// Records an event about an object. Events with the same reason and action share the first one's note and a count, so
    /// different changes need different actions.
    pub async fn record(&self, about: &ObjectReference, type_: EventType, reason: &str, action: &str, note: &str) {
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(truncated(note)),
            action: action.to_owned(),
            secondary: None,
        };
        if let Err(error) = self.0.publish(&event, about).await {
            tracing::warn!(%error, "cannot write an event");
        }
    }
}

/// Truncates an event's note to 1 kB, the maximum.
fn truncated(note: &str) -> String {
    note.chars().take(250).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_of_any_length_fits() {
        assert_eq!(truncated(&"€".repeat(2000)).len(), 750);
        assert_eq!(truncated("short"), "short");
    }
}
