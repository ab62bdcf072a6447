//! CPU time and memory of processes, and the load of the machine, from `/proc`.

use std::fs;

use crate::{Error, Result};

/// Ticks per second of times in `/proc/PID/stat`: `USER_HZ`, a constant of the kernel's ABI.
const TICKS_PER_SECOND: u64 = 100;

/// Returns the CPU time that a process has used, in milliseconds; 0 if there is no such process.
#[must_use]
pub fn cpu_milliseconds(process: &str) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    cpu_ticks(&stat) * 1_000 / TICKS_PER_SECOND
}

/// Returns the resident memory of a process, in KiB; 0 if there is no such process.
#[must_use]
pub fn resident_kibibytes(process: &str) -> u64 {
    resident(&fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default())
}

/// Returns the load average of the last minute.
///
/// # Errors
/// Returns an error if `/proc/loadavg` is unreadable.
pub fn load() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg").map_err(Error::io("read /proc/loadavg"))?;
    let first = text.split(' ').next().and_then(|load| load.parse().ok());
    first.ok_or_else(|| Error::Unexpected(format!("/proc/loadavg has another shape: {text}")))
}

/// Fields 14 and 15, counted after the command, which may contain spaces.
fn cpu_ticks(stat: &str) -> u64 {
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    fields.split(' ').skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum()
}

fn resident(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().split(' ').next()?.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_after_any_command() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 5 6 7";
        assert_eq!(cpu_ticks(stat), 300);
        assert_eq!(resident("Name:\ta\nVmRSS:\t    1234 kB\n"), 1_234);
        assert_eq!((cpu_ticks(""), resident("")), (0, 0));
    }

    #[test]
    fn own_process_has_memory_and_the_machine_has_a_load() {
        assert!(resident_kibibytes("self") > 0);
        assert_eq!(resident_kibibytes("0"), 0);
        assert!(load().unwrap() >= 0.0);
    }
}
