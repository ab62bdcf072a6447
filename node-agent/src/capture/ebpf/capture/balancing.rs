//! Load balancers at the sockets, while a capture runs.

use std::time::Instant;

use node_agent_common::Loss;

use super::EbpfCapture;
use crate::capture::{
    description::Feature,
    errors::{CaptureError, failed},
};

/// It contains no number, so that it does not change with each of them.
const LOST: &str = "the kernel had no room to note the original destinations of some connections that a load balancer at the \
                    sockets led to backends: they are shown without their Service";

/// See [`LOST`].
const EARLIER: &str = "a load balancer at the sockets had led connections to backends before this agent attached: those that \
                       are still open are shown without their Service, and count both there and with the Service";

impl EbpfCapture {
    /// To be called when preexisting connections are found.
    pub(super) fn describe_earlier_balancing(&mut self) {
        if self.programs.has_balancers() && self.preexisting.has_earlier_clients() {
            self.description.lack(Feature::BalancedDestinations, EARLIER);
        }
    }

    /// See [`Programs::check_balancers`](super::Programs::check_balancers).
    pub(super) fn check_balancers(&mut self, now: Instant) -> Result<(), CaptureError> {
        let checked = self.programs.check_balancers(self.datagrams.as_mut(), &self.cgroup_root, now);
        if let Err(message) = checked {
            if self.description.has(Feature::BalancedDestinations) {
                tracing::warn!("{message}");
            }
            self.description.lack(Feature::BalancedDestinations, &message);
        }
        let lost = self.programs.lost(Loss::BalancedDestination);
        if lost.map_err(|error| failed("reading the kernel's losses", error))? > 0 {
            self.description.lack(Feature::BalancedDestinations, LOST);
        }
        Ok(())
    }
}
