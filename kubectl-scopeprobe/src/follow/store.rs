//! Objects of a watch and whether they are up to date, without I/O.

use std::{collections::BTreeMap, time::Duration};

use crds::Topology;
use kube::runtime::watcher::Event;
use view::{Map, map::printable, read};

/// Problem until the first list is complete.
pub const READING: &str = "The objects are being read.";

/// Time between two checks while the watch works.
const CHECK_INTERVAL: Duration = Duration::from_secs(15);

/// Time until the first check after an interruption.
const SHORTEST_PAUSE: Duration = Duration::from_secs(2);

/// Upper bound of the time between two checks during an interruption.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Number of successful checks in a row, with no object of the list in between, after which that list hangs.
const CHECKS_OF_A_LIST: u32 = 2;

/// Objects by namespace and name.
type ByName = BTreeMap<(Option<String>, Option<String>), Topology>;

/// State of the watch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// It lists the objects.
    #[default]
    Reading,
    /// It reports their changes.
    Live,
    /// It has failed, or the API server does not answer.
    Interrupted,
}

/// Outcome of a check of the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// The objects can be read; during an interruption, a watch of them can begin as well.
    Works,
    /// The API server has refused the request, for this reason.
    Refused(String),
    /// The API server has not answered, for this reason.
    Failed(String),
}

/// Consequence of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing has changed.
    Continue,
    /// The problem has changed.
    Show,
    /// A new watch has to begin, by a list.
    Restart,
}

/// Objects of a watch.
#[derive(Debug)]
pub struct Store {
    /// Those of the last complete list, with all changes since; `None` before the first.
    known: Option<ByName>,
    /// Those of a list that is not complete yet.
    listed: ByName,
    phase: Phase,
    problem: String,
    /// Time until the next check during an interruption.
    pause: Duration,
    /// Successful checks since the list began, or has had its last object.
    checks_of_list: u32,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            known: None,
            listed: ByName::new(),
            phase: Phase::default(),
            problem: READING.to_owned(),
            pause: SHORTEST_PAUSE,
            checks_of_list: 0,
        }
    }
}

impl Store {
    /// Takes in an event. Returns whether what is shown may have changed.
    pub fn take(&mut self, event: Event<Topology>) -> bool {
        let key = |object: &Topology| (object.metadata.namespace.clone(), object.metadata.name.clone());
        match event {
            // It comes before the list is tried, and proves nothing.
            Event::Init => {
                self.listed.clear();
                return false;
            }
            Event::InitApply(object) => {
                self.listed.insert(key(&object), object);
                self.phase = Phase::Reading;
                self.checks_of_list = 0;
                return false;
            }
            Event::InitDone => self.known = Some(std::mem::take(&mut self.listed)),
            Event::Apply(object) => {
                let Some(known) = &mut self.known else { return false };
                known.insert(key(&object), object);
            }
            Event::Delete(object) => {
                let Some(known) = &mut self.known else { return false };
                known.remove(&key(&object));
            }
        }
        self.phase = Phase::Live;
        self.problem.clear();
        true
    }

    /// Records that the watch has failed. Returns whether the problem is another than before.
    pub fn interrupt(&mut self, reason: &str) -> bool {
        self.phase = Phase::Interrupted;
        let problem = printable(&format!("The watch of the cluster is interrupted: {reason}"));
        let is_other = problem != self.problem;
        self.problem = problem;
        is_other
    }

    /// Takes in the outcome of a check.
    pub fn checked(&mut self, check: Check) -> Step {
        match (check, self.phase) {
            (Check::Works, Phase::Live) => self.pause = SHORTEST_PAUSE,
            // Its connection works, and a watch that runs keeps its rights until it is renewed.
            (Check::Refused(_), Phase::Live) => (),
            (Check::Works, Phase::Reading) if self.checks_of_list + 1 < CHECKS_OF_A_LIST => self.checks_of_list += 1,
            (Check::Works, _) => {
                self.phase = Phase::Reading;
                self.checks_of_list = 0;
                self.lengthen_pause();
                return Step::Restart;
            }
            (Check::Refused(reason) | Check::Failed(reason), phase) => {
                if phase == Phase::Interrupted {
                    self.lengthen_pause();
                }
                if self.interrupt(&reason) {
                    return Step::Show;
                }
            }
        }
        Step::Continue
    }

    fn lengthen_pause(&mut self) {
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    /// Returns whether the watch is interrupted.
    pub fn is_interrupted(&self) -> bool {
        self.phase == Phase::Interrupted
    }

    /// Returns the time until the next check.
    pub fn pause(&self) -> Duration {
        if self.is_interrupted() { self.pause } else { CHECK_INTERVAL }
    }

    /// Returns the reason for which the map may be out of date; empty if it is not.
    pub fn problem(&self) -> &str {
        &self.problem
    }

    /// Returns the map of the objects, or `None` before the first list is complete.
    pub fn map(&self, caveat: Option<&str>) -> Option<Map> {
        let known = self.known.as_ref()?;
        let Map { edges, mut caveats, .. } = read::objects(known.values());
        caveats.extend(caveat.map(str::to_owned));
        if known.is_empty() {
            caveats.push("There are no Topology objects here.".to_owned());
        }
        Some(Map::new(edges, caveats))
    }
}
