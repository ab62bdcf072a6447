//! Keeps a thread's use of the CPU within a budget, by waiting.

use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

/// Upper bound of saved time, as a multiple of the budget of one second: scans differ.
const SAVINGS: u32 = 20;

/// The budget of the thread that made it.
#[derive(Debug)]
pub(super) struct CpuBudget {
    /// CPU per second.
    budget: Duration,
    began: Instant,
    used_at_start: Duration,
    /// Time that was earned and neither used nor saved, since savings are bounded.
    forfeited: Duration,
    /// Time used beyond the budget that is not waited for.
    forgiven: Duration,
}

impl CpuBudget {
    pub(super) fn new(millicores: u32) -> Self {
        Self {
            budget: Duration::from_millis(u64::from(millicores.max(1))),
            began: Instant::now(),
            used_at_start: cpu_of_this_thread(),
            forfeited: Duration::ZERO,
            forgiven: Duration::ZERO,
        }
    }

    /// CPU used since the start.
    pub(super) fn used(&self) -> Duration {
        cpu_of_this_thread().saturating_sub(self.used_at_start)
    }

    /// Returns the time in which the budget allows for so much CPU.
    pub(super) fn time_to_earn(&self, cpu: Duration) -> Duration {
        cpu.div_f64(self.budget.as_secs_f64())
    }

    /// Returns the delay after which the budget is kept.
    pub(super) fn debt(&mut self) -> Duration {
        let counted = self.used().saturating_sub(self.forgiven);
        let (debt, forfeited) = debt(self.budget, self.began.elapsed(), counted, self.forfeited);
        self.forfeited = forfeited;
        debt
    }

    /// Forgives the time used beyond the budget so far: the cost of a start.
    pub(super) fn forgive(&mut self) {
        let owed = self.debt();
        self.forgiven += self.budget.mul_f64(owed.as_secs_f64());
    }
}

/// The time to wait, and what is forfeited now.
fn debt(budget: Duration, elapsed: Duration, used: Duration, forfeited: Duration) -> (Duration, Duration) {
    let earned = budget.mul_f64(elapsed.as_secs_f64()) + budget * SAVINGS;
    let owned = earned.saturating_sub(forfeited);
    let Some(left) = owned.checked_sub(used) else {
        return (used.saturating_sub(owned).div_f64(budget.as_secs_f64()), forfeited);
    };
    (Duration::ZERO, forfeited + left.saturating_sub(budget * SAVINGS))
}

fn cpu_of_this_thread() -> Duration {
    // Every Linux has this clock.
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Duration = Duration::from_millis(50);

    fn seconds(count: f64) -> Duration {
        Duration::from_secs_f64(count)
    }

    #[test]
    fn what_is_used_beyond_the_savings_is_waited_for() {
        assert_eq!(debt(BUDGET, seconds(0.0), seconds(1.0), Duration::ZERO).0, Duration::ZERO);
        // 0.1 s too much, at 0.05 s each second.
        assert_eq!(debt(BUDGET, seconds(0.0), seconds(1.1), Duration::ZERO).0.as_millis(), 2000);
        assert_eq!(debt(BUDGET, seconds(2.0), seconds(1.1), Duration::ZERO).0, Duration::ZERO);
    }

    #[test]
    fn savings_are_bounded() {
        let (_, forfeited) = debt(BUDGET, seconds(1000.0), seconds(0.0), Duration::ZERO);
        assert_eq!(forfeited, seconds(50.0));
        let after_a_burst = debt(BUDGET, seconds(1000.0), seconds(1.5), forfeited).0;
        assert_eq!(after_a_burst.as_millis(), 10_000);
    }

    #[test]
    fn what_a_start_costs_is_not_waited_for() {
        let mut budget = CpuBudget::new(1);
        let mut sum = 0_u64;
        while budget.debt() < seconds(30.0) {
            sum = std::hint::black_box(sum + 1);
        }
        budget.forgive();
        assert!(budget.debt() < seconds(30.0) && budget.used() > seconds(0.04), "{sum}");
    }

    #[test]
    fn work_is_counted() {
        let budget = CpuBudget::new(50);
        let before = budget.used();
        let mut sum = 0_u64;
        while budget.used() < before + Duration::from_millis(1) {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(sum > 0);
    }
}
