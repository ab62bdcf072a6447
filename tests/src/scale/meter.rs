//! Measurement of one phase: differences between its end and its beginning.

use std::time::{Duration, Instant};

use super::{
    figures::PhaseFigures,
    fleet::{FleetCounts, FleetStatistics},
    operator_process::OperatorProcess,
    oracle::Verdict,
    processes,
    sampler::{Sampler, Samples},
    statistics::{busiest, percentiles, ratio, rounded},
};
use crate::{ControlPlane, Result};

/// Number of seconds over which the maximum of requests is averaged.
const WINDOW: usize = 10;

/// Sources of a measurement.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    /// The operator.
    pub operator: &'a OperatorProcess,
    /// The API server and etcd.
    pub control_plane: &'a ControlPlane,
    /// The agents.
    pub fleet: &'a FleetStatistics,
    /// Samples of the operator.
    pub sampler: &'a Sampler,
}

impl Sources<'_> {
    fn cpu(&self) -> [u64; 3] {
        let control_plane = self.control_plane.process_ids().into_iter();
        let control_plane = control_plane.map(|id| processes::cpu_milliseconds(&id.to_string())).sum();
        [self.operator.cpu_milliseconds(), processes::cpu_milliseconds("self"), control_plane]
    }
}

/// Measurement that has begun.
pub struct Meter {
    began: Instant,
    cpu: [u64; 3],
    fleet: FleetCounts,
    samples: Samples,
}

impl Meter {
    /// Begins a measurement.
    #[must_use]
    pub fn begin(sources: Sources<'_>) -> Self {
        // Those from before belong to no phase.
        let _ = (sources.fleet.take_reply_times(), sources.fleet.take_broken());
        Self {
            began: Instant::now(),
            cpu: sources.cpu(),
            fleet: sources.fleet.counts(),
            samples: sources.sampler.samples(),
        }
    }

    /// Time since the beginning.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Ends the measurement. Edges and the verdict are left to the caller.
    ///
    /// # Errors
    /// Returns an error if `/proc` is unreadable.
    pub fn finish(self, name: &'static str, sources: Sources<'_>, flows: usize) -> Result<PhaseFigures> {
        let milliseconds = u64::try_from(self.elapsed().as_millis()).unwrap_or(u64::MAX);
        let [operator, simulator, control_plane] = sources.cpu();
        let cpu = |now: u64, before: u64| rounded(ratio(now.saturating_sub(before), milliseconds));
        let fleet = sources.fleet.counts();
        let per_second = |count: u64| rounded(1e3 * ratio(count, milliseconds));
        let samples = sources.sampler.samples().since(&self.samples);
        let mebibytes = |kibibytes: Option<&u64>| rounded(ratio(kibibytes.copied().unwrap_or_default(), 1 << 10));
        let times = percentiles(sources.fleet.take_reply_times());
        let requests_per_second = per_second(samples.requests.iter().sum());
        Ok(PhaseFigures {
            name,
            seconds: rounded(self.elapsed().as_secs_f64()),
            operator_cpu: cpu(operator, self.cpu[0]),
            simulator_cpu: cpu(simulator, self.cpu[1]),
            control_plane_cpu: cpu(control_plane, self.cpu[2]),
            resident_mebibytes: mebibytes(samples.resident_kibibytes.last()),
            peak_mebibytes: mebibytes(samples.resident_kibibytes.iter().max()),
            flows,
            messages_per_second: per_second(fleet.messages - self.fleet.messages),
            flow_updates_per_second: per_second(fleet.flow_updates - self.fleet.flow_updates),
            reply_milliseconds: times.map(super::rounded_percentiles),
            given_up: fleet.given_up - self.fleet.given_up,
            broken: sources.fleet.take_broken(),
            connected_seconds: None,
            requests_per_second,
            // Samples are late on a busy machine.
            most_requests_per_second: rounded(busiest(&samples.requests, WINDOW)).max(requests_per_second),
            requests: samples.by_kind,
            new_edge_seconds: None,
            new_edges_missing: 0,
            complete_seconds: None,
            load: processes::load()?,
            verdict: Verdict::default(),
        })
    }
}
