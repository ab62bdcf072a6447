//! Run time of eBPF programs, by the kernel's statistics (`BPF_ENABLE_STATS`, kernel 5.8).

use aya::programs::loaded_programs;

/// Runs and run time of some programs.
#[derive(Clone, Copy, Debug, Default)]
pub struct KernelTime {
    pub runs: u64,
    pub nanoseconds: u64,
}

impl KernelTime {
    /// Returns the sums over all loaded programs of these names.
    pub fn of(names: &[&str]) -> Self {
        let mut sum = Self::default();
        for program in loaded_programs().flatten().filter(|it| it.name_as_str().is_some_and(|it| names.contains(&it))) {
            sum.runs += program.run_count();
            sum.nanoseconds += u64::try_from(program.run_time().as_nanos()).unwrap();
        }
        sum
    }

    /// Returns the difference to an earlier measurement.
    pub fn since(self, earlier: Self) -> Self {
        Self { runs: self.runs - earlier.runs, nanoseconds: self.nanoseconds - earlier.nanoseconds }
    }
}
