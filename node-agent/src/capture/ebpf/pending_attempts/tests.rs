use std::{cell::RefCell, convert::Infallible};

use node_agent_common::Role;
use proptest::prelude::*;

use super::*;

fn key(port: u16) -> FlowKey {
    FlowKey::new(1, 1, Role::Client, port, [1; 16], [2; 16])
}

fn attempt(port: u16, retransmits: u64) -> PendingAttempt {
    PendingAttempt { flow: key(port), retransmits, is_answered: 0 }
}

fn counts(attempts: &PendingAttempts, now: Instant) -> HashMap<FlowKey, u64> {
    attempts.count(now, |flow| *flow)
}

/// Steps of the kernel program for one attempt, each of which an interruption may follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Retransmitted,
    Marked,
    Counted,
    Removed,
}

impl Step {
    fn next(self) -> Self {
        match self {
            Self::Retransmitted => Self::Marked,
            Self::Marked => Self::Counted,
            Self::Counted | Self::Removed => Self::Removed,
        }
    }
}

/// Kernel in which programs go on at each access by the agent.
struct Kernel {
    steps: RefCell<Vec<Step>>,
    /// Numbers of accesses after which the program of an attempt makes a step, with the attempt: the last one first.
    schedule: RefCell<Vec<(u32, usize)>>,
    accesses: RefCell<u32>,
    /// Attempts whose answers the agent has read from the counters.
    collected: HashSet<usize>,
}

impl Kernel {
    fn new(attempts: usize, schedule: &[(u32, usize)]) -> Self {
        let mut schedule: Vec<_> = schedule.iter().map(|(at, attempt)| (*at, attempt % attempts)).collect();
        schedule.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        Self {
            steps: RefCell::new(vec![Step::Retransmitted; attempts]),
            schedule: RefCell::new(schedule),
            accesses: RefCell::default(),
            collected: HashSet::new(),
        }
    }

    /// Lets the programs go on, up to the next access.
    fn run(&self) {
        *self.accesses.borrow_mut() += 1;
        let mut schedule = self.schedule.borrow_mut();
        while let Some((_, attempt)) = schedule.pop_if(|(at, _)| *at <= *self.accesses.borrow()) {
            let step = &mut self.steps.borrow_mut()[attempt];
            *step = step.next();
        }
    }

    fn present(&self) -> Vec<(u64, PendingAttempt)> {
        self.run();
        let steps = self.steps.borrow();
        let present = steps.iter().zip(0..).filter(|(step, _)| **step < Step::Removed);
        present
            .map(|(step, cookie)| {
                (cookie, PendingAttempt { is_answered: u64::from(*step >= Step::Marked), ..attempt(80, 1) })
            })
            .collect()
    }

    fn collect(&mut self) {
        self.run();
        let steps = self.steps.borrow();
        self.collected = (0..steps.len()).filter(|attempt| steps[*attempt] >= Step::Counted).collect();
    }

    /// Reads as a capture does. Returns the numbers of pending and of counted attempts.
    fn read(&mut self, attempts: &mut PendingAttempts, now: Instant) -> (u64, u64) {
        assert_eq!(attempts.update(self.present(), &HashSet::new(), now), Vec::<u64>::new());
        self.collect();
        attempts.settle(self).unwrap();
        (counts(attempts, now).values().sum(), self.collected.len() as u64)
    }
}

impl AnswerSource for Kernel {
    type Error = Infallible;

    fn state(&self, cookie: u64) -> Result<AttemptState, Infallible> {
        self.run();
        Ok(match self.steps.borrow()[usize::try_from(cookie).unwrap()] {
            Step::Retransmitted => AttemptState::Waiting,
            Step::Marked | Step::Counted => AttemptState::BeingCounted,
            Step::Removed => AttemptState::Counted,
        })
    }

    fn collect_answers(&mut self, _: &[FlowKey]) -> Result<(), Infallible> {
        self.collect();
        Ok(())
    }

    /// Programs that were interrupted go on.
    fn pause(&mut self) {
        for step in self.steps.get_mut().iter_mut().filter(|step| **step != Step::Retransmitted) {
            *step = step.next();
        }
    }

    fn remove_entries(&mut self, cookies: &[u64]) {
        unreachable!("programs went on: {cookies:?}");
    }
}

#[test]
fn young_attempts_are_not_pending() {
    let (mut attempts, start) = (PendingAttempts::default(), Instant::now());
    let none = HashSet::new();
    attempts.update([(1, attempt(80, 1)), (2, attempt(80, 1))], &none, start);
    assert_eq!(counts(&attempts, start), HashMap::new());
    let later = start + MIN_AGE;
    attempts.update([(1, attempt(80, 1)), (3, attempt(80, 1)), (2, attempt(80, 2))], &none, later);
    assert_eq!(counts(&attempts, later), HashMap::from([(key(80), 2)]));
}

#[test]
fn entry_without_retransmissions_is_stale() {
    let (mut attempts, start) = (PendingAttempts::default(), Instant::now());
    let unwatched = HashSet::from([3]);
    let present = |retransmits| [(1, attempt(80, 1)), (2, attempt(81, retransmits)), (3, attempt(82, 0))];
    attempts.update(present(1), &unwatched, start);
    let last = start + STALE_AFTER;
    assert_eq!(attempts.update(present(1), &unwatched, start + MIN_AGE), Vec::<u64>::new());
    assert_eq!(attempts.update(present(2), &unwatched, last), [1]);
    assert_eq!(counts(&attempts, last), HashMap::from([(key(81), 1), (key(82), 1)]));
}

/// The first reading has four accesses. The program marks the attempt at the next one.
#[test]
fn answer_that_is_being_counted_is_waited_for() {
    let (mut attempts, start) = (PendingAttempts::default(), Instant::now());
    let mut kernel = Kernel::new(2, &[(5, 1)]);
    assert_eq!(kernel.read(&mut attempts, start), (0, 0));
    assert_eq!(kernel.read(&mut attempts, start + MIN_AGE), (1, 1));
}

proptest! {
    /// Model: each attempt waits during a range of seconds, with an entry in the kernel.
    #[test]
    fn pending_attempts_are_those_that_have_waited(
        waits in prop::collection::vec((0_u64..20, 0_u64..20, 0_u16..3), 0..20),
    ) {
        let (mut attempts, start) = (PendingAttempts::default(), Instant::now());
        for second in 0..40 {
            let now = start + Duration::from_secs(second);
            let present = waits.iter().zip(0_u64..).filter(|((from, length, _), _)| (*from..from + length).contains(&second));
            let present: Vec<_> = present.map(|((from, _, port), cookie)| (cookie, *from, *port)).collect();
            let stale =
                attempts.update(present.iter().map(|(cookie, _, port)| (*cookie, attempt(*port, 1))), &HashSet::new(), now);
            prop_assert_eq!(stale, Vec::<u64>::new());
            attempts.settle(&mut Listed(present.iter().map(|(cookie, ..)| *cookie).collect())).unwrap();
            let mut expected = HashMap::new();
            for (_, from, port) in present {
                if second >= from + MIN_AGE.as_secs() {
                    *expected.entry(key(port)).or_default() += 1;
                }
            }
            prop_assert_eq!(counts(&attempts, now), expected);
        }
    }

    /// Programs are interrupted between any two of their steps, and readings between any two of their accesses.
    #[test]
    fn attempt_is_pending_or_counted_at_each_reading(
        all in 1_usize..6,
        schedule in prop::collection::vec((0_u32..60, 0_usize..6), 0..24),
    ) {
        let (mut attempts, start) = (PendingAttempts::default(), Instant::now());
        // Programs begin after the attempts are pending.
        let late: Vec<_> = schedule.iter().map(|(at, attempt)| (at + 10, *attempt)).collect();
        let mut kernel = Kernel::new(all, &late);
        prop_assert_eq!(kernel.read(&mut attempts, start), (0, 0));
        for _ in 0..8 {
            let (pending, counted) = kernel.read(&mut attempts, start + MIN_AGE);
            prop_assert_eq!(pending + counted, all as u64);
        }
    }
}

/// Kernel in which these attempts wait, and no program runs.
struct Listed(HashSet<u64>);

impl AnswerSource for Listed {
    type Error = Infallible;

    fn state(&self, cookie: u64) -> Result<AttemptState, Infallible> {
        Ok(if self.0.contains(&cookie) { AttemptState::Waiting } else { AttemptState::Counted })
    }

    fn collect_answers(&mut self, _: &[FlowKey]) -> Result<(), Infallible> {
        Ok(())
    }

    fn pause(&mut self) {}

    fn remove_entries(&mut self, _: &[u64]) {}
}
