//! Compares all results of a capture by eBPF with the expected ones.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use scopeprobe_agent::capture::{Attach, Capture, EbpfCapture, Feature, Folded, Losses, Refusal, Settings, start_ebpf};
use scopeprobe_agent::names::Answer;
use topology::{
    flow::{FlowCounters, FlowKey, Methods, Protocol},
    rtt::RttHistogram,
};

use super::can_list;

/// Adds a capture's new results to the earlier ones, and asserts that no counter decreases.
pub fn take_in(flows: &mut BTreeMap<FlowKey, FlowCounters>, news: Vec<(FlowKey, FlowCounters)>) {
    for (key, now) in news {
        let before = flows.insert(key, now).unwrap_or_default();
        let grows = |field: fn(&FlowCounters) -> u64| assert!(field(&before) <= field(&now), "{before:?} {now:?}");
        grows(|counters| counters.opened);
        grows(|counters| counters.closed);
        grows(|counters| counters.failed);
        grows(|counters| counters.preexisting);
        grows(|counters| counters.bytes_sent);
        grows(|counters| counters.bytes_received);
        grows(|counters| counters.inferred);
        grows(|counters| counters.without_bytes);
        grows(|counters| counters.retransmits.unwrap_or_default());
        grows(|counters| counters.pending_begun);
        grows(|counters| counters.pending_ended);
    }
}

/// A capture, and all its results so far.
pub struct Watched {
    pub capture: EbpfCapture,
    pub flows: BTreeMap<FlowKey, FlowCounters>,
    pub losses: Losses,
    pub folded: Folded,
    pub seen: u64,
    pub answers: Vec<(u64, Answer)>,
}

impl Watched {
    pub fn start(settings: &Settings) -> Self {
        Self::try_start(settings).unwrap()
    }

    /// As [`Watched::start`], where a refusal is of interest.
    pub fn try_start(settings: &Settings) -> Result<Self, Refusal> {
        // The log names the reasons for losses, and is shown where a test fails. Only the first call has an effect.
        let _ = tracing_subscriber::fmt().with_test_writer().try_init();
        let capture = start_ebpf(settings)?;
        let description = capture.description();
        assert_eq!(settings.attach.map(Attach::as_str), Some(description.attach));
        assert_eq!(description.has(Feature::OpenSockets), can_list(), "{:?}", description.degradations);
        let by_sock_ops = settings.attach == Some(Attach::SockOps);
        assert_eq!(description.has(Feature::EveryEvent), by_sock_ops, "{:?}", description.degradations);
        assert!(
            description.has(Feature::OldCloses) || settings.max_preexisting.is_some(),
            "{:?}",
            description.degradations
        );
        Ok(Self {
            capture,
            flows: BTreeMap::new(),
            losses: Losses::default(),
            folded: Folded::default(),
            seen: 0,
            answers: Vec::new(),
        })
    }

    /// Reads the capture until the condition holds, at most for two minutes.
    pub fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_mins(2);
        while !is_so(self) {
            assert!(Instant::now() < deadline, "{what}: {:?} {:?}", self.losses, self.flows);
            self.capture.list_again();
            self.read();
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// The sum of a count over all flows.
    pub fn sum(&self, field: fn(&FlowCounters) -> u64) -> u64 {
        self.flows.values().map(field).sum()
    }

    /// Reads once; nothing may go backwards.
    pub fn read(&mut self) {
        let reading = self.capture.read().unwrap();
        take_in(&mut self.flows, reading.flows);
        (self.losses, self.folded, self.seen) = (reading.losses, reading.folded, reading.seen);
        self.answers.extend(reading.answers);
    }

    /// Reads until that many flows have room.
    pub fn wait_for_free_slots(&mut self, slots: u32) {
        let deadline = Instant::now() + Duration::from_mins(1);
        while self.capture.free_slots() < slots {
            assert!(Instant::now() < deadline, "{} of {slots} slots are free", self.capture.free_slots());
            self.read();
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Reads and looks until it knows exactly this, or for a minute. Where runs of a tracepoint were skipped, as many
    /// connections may be missing.
    pub fn expect(&mut self, expected: &BTreeMap<FlowKey, FlowCounters>) {
        /// Long enough to know that nothing more is coming.
        const SETTLED: Duration = Duration::from_secs(5);
        let began = Instant::now();
        loop {
            self.capture.list_again();
            self.read();
            if self.is(expected) {
                let seen = expected.values().map(|counters| counters.opened + counters.failed).sum::<u64>();
                assert_eq!(self.seen, seen);
                return;
            }
            if self.losses.missed_runs > 0
                && began.elapsed() > SETTLED
                && self.missing(expected).is_some_and(|missing| missing <= self.losses.missed_runs)
            {
                println!("{} runs were skipped", self.losses.missed_runs);
                return;
            }
            if began.elapsed() > Duration::from_mins(1) {
                assert_eq!(without_measures(&self.flows), with_methods(expected), "{:?}", self.losses);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Nothing but what a tracepoint may have missed.
    pub fn assert_nothing_lost(&self) {
        let Losses { missed_runs, closes_unseen, .. } = self.losses;
        assert!(closes_unseen <= missed_runs, "{:?}", self.losses);
        assert_eq!(self.losses, Losses { missed_runs, closes_unseen, ..Losses::default() });
        assert!(missed_runs == 0 || self.capture.description().attach != "SockOps", "{:?}", self.losses);
    }

    fn is(&self, expected: &BTreeMap<FlowKey, FlowCounters>) -> bool {
        without_measures(&self.flows) == with_methods(expected)
    }

    /// Returns the number of missing openings, failures or ends, the greatest of them; `None` if there are too many or
    /// unexpected ones.
    fn missing(&self, expected: &BTreeMap<FlowKey, FlowCounters>) -> Option<u64> {
        if !self.flows.keys().all(|key| expected.contains_key(key)) {
            return None;
        }
        let lack = |field: fn(&FlowCounters) -> u64| {
            let lacks = expected
                .iter()
                .map(|(key, counters)| field(counters).checked_sub(self.flows.get(key).map_or(0, field)));
            lacks.sum::<Option<u64>>()
        };
        let begun = lack(|counters| counters.opened + counters.preexisting)? + lack(|counters| counters.failed)?;
        Some(begun.max(lack(|counters| counters.closed)?))
    }
}

/// Removes TCP measurements, which depend on the machine's load: see `measures`. Where the kernel cannot list sockets, more
/// conversations of UDP have a guessed direction.
pub fn without_measures(flows: &BTreeMap<FlowKey, FlowCounters>) -> BTreeMap<FlowKey, FlowCounters> {
    let plain = |key: &FlowKey, counters: &FlowCounters| FlowCounters {
        inferred: if key.protocol == Protocol::Udp && !can_list() { 0 } else { counters.inferred },
        retransmits: None,
        preexisting_retransmits: 0,
        open_retransmits: 0,
        rtt: RttHistogram::default(),
        // It depends on the time that a handshake waited.
        pending_begun: 0,
        pending_ended: 0,
        ..*counters
    };
    flows.iter().map(|(key, counters)| (*key, plain(key, counters))).collect()
}

/// Sets the method to eBPF for all expected flows.
pub fn with_methods(expected: &BTreeMap<FlowKey, FlowCounters>) -> BTreeMap<FlowKey, FlowCounters> {
    let ebpf = |counters: &FlowCounters| FlowCounters { methods: Methods::EBPF, ..*counters };
    expected.iter().map(|(key, counters)| (*key, ebpf(counters))).collect()
}
