//! Prerequisites of tests, and the record of tests that lack one.
//!
//! A test that cannot run calls [`skip`] and returns. `SCOPEPROBE_REQUIRE` names the prerequisites that must be met:
//! lacking one of them fails the test. `all` names every prerequisite; `-NAME` excludes one, as in `all,-mptcp` for a
//! kernel without MPTCP. `SCOPEPROBE_SKIPPED` is the file that collects the skipped tests, one line each.
//! Other programs call [`record_skipped`].
#![forbid(unsafe_code)]

use std::{env, fmt, fs::OpenOptions, io::Write as _, thread};

/// Variable that names the required prerequisites.
const REQUIRE: &str = "SCOPEPROBE_REQUIRE";
/// Variable that names the file of skipped tests.
const SKIPPED: &str = "SCOPEPROBE_SKIPPED";

/// Prerequisites that scripts alone have (`skip` in `tests/steps.sh`).
const OF_SCRIPTS: [&str; 4] = ["codespell", "helm", "other-kernels", "shellcheck"];

/// Property of a machine that some tests depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prerequisite {
    /// The user is root.
    Root,
    /// A cgroup v2 hierarchy is mounted.
    CgroupV2,
    /// The kernel exposes its BTF.
    Btf,
    /// The kernel accepts the agent's eBPF programs.
    Ebpf,
    /// The kernel can list open sockets to an eBPF program (5.12).
    SocketListing,
    /// The agent can attach to a classic tracepoint (6.1, and tracefs is mounted).
    ClassicTracepoint,
    /// The kernel counts the skipped runs of a classic tracepoint's program (6.7).
    SkippedRuns,
    /// The kernel supports MPTCP.
    Mptcp,
    /// The machine has two processors.
    TwoProcessors,
    /// The test may grant `SYS_RESOURCE`.
    SysResource,
    /// The cluster is our own: its audit log is readable.
    OwnCluster,
    /// The toolchain of the eBPF programs is installed, in the version that built the committed object.
    EbpfToolchain,
}

impl Prerequisite {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Root,
        Self::CgroupV2,
        Self::Btf,
        Self::Ebpf,
        Self::SocketListing,
        Self::ClassicTracepoint,
        Self::SkippedRuns,
        Self::Mptcp,
        Self::TwoProcessors,
        Self::SysResource,
        Self::OwnCluster,
        Self::EbpfToolchain,
    ];

    /// Returns the name in `SCOPEPROBE_REQUIRE`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::CgroupV2 => "cgroup-v2",
            Self::Btf => "btf",
            Self::Ebpf => "ebpf",
            Self::SocketListing => "socket-listing",
            Self::ClassicTracepoint => "classic-tracepoint",
            Self::SkippedRuns => "skipped-runs",
            Self::Mptcp => "mptcp",
            Self::TwoProcessors => "two-processors",
            Self::SysResource => "sys-resource",
            Self::OwnCluster => "own-cluster",
            Self::EbpfToolchain => "ebpf-toolchain",
        }
    }
}

impl fmt::Display for Prerequisite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Records that the running test, or a part of it, is skipped. The caller returns afterwards.
///
/// # Panics
/// If `SCOPEPROBE_REQUIRE` requires the prerequisite, or is malformed; if the record cannot be written.
pub fn skip(missing: Prerequisite, reason: &str) {
    record_skipped(&test_name(), missing, reason).unwrap_or_else(|error| panic!("{error}"));
}

/// Records that a part of a program is skipped.
///
/// # Errors
/// If `SCOPEPROBE_REQUIRE` requires the prerequisite, or is malformed; if the record cannot be written.
pub fn record_skipped(program: &str, missing: Prerequisite, reason: &str) -> Result<(), SkipError> {
    let required = env::var(REQUIRE).unwrap_or_default();
    match requires(&required, missing) {
        Err(problem) => return Err(SkipError(format!("{REQUIRE}={required}: {problem}"))),
        Ok(true) => {
            let message = format!("{REQUIRE}={required} requires {missing}, but this machine lacks it: {reason}");
            return Err(SkipError(message));
        }
        Ok(false) => println!("skipped: {reason} ({missing})"),
    }
    let Some(file) = env::var_os(SKIPPED).filter(|file| !file.is_empty()) else { return Ok(()) };
    let line = format!("{program}: {reason} ({missing})\n");
    // One write: lines of parallel processes do not mix.
    let opened = OpenOptions::new().create(true).append(true).open(&file);
    opened
        .and_then(|mut file| file.write_all(line.as_bytes()))
        .map_err(|error| SkipError(format!("cannot record a skipped test in {}: {error}", file.display())))
}

/// Refusal to skip, as a message.
#[derive(Debug)]
pub struct SkipError(String);

impl fmt::Display for SkipError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for SkipError {}

/// Returns the test's name from nextest. Under libtest, it is the name of the thread.
fn test_name() -> String {
    env::var("NEXTEST_TEST_NAME")
        .ok()
        .or_else(|| thread::current().name().map(str::to_owned))
        .unwrap_or_else(|| String::from("unnamed test"))
}

/// Returns whether the list of names requires a prerequisite. Unknown names are errors: a typo must not allow a skip.
fn requires(list: &str, wanted: Prerequisite) -> Result<bool, String> {
    let mut is_required = false;
    for word in list.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        let (name, requires) = word.strip_prefix('-').map_or((word, true), |name| (name, false));
        if name == "all" || name == wanted.name() {
            is_required = requires;
        } else if !Prerequisite::ALL.iter().any(|known| known.name() == name) && !OF_SCRIPTS.contains(&name) {
            return Err(format!("there is no prerequisite `{name}`"));
        }
    }
    Ok(is_required)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_required_unless_named() {
        assert_eq!(requires("", Prerequisite::Root), Ok(false));
        assert_eq!(requires("btf", Prerequisite::Root), Ok(false));
        assert_eq!(requires("btf,root", Prerequisite::Root), Ok(true));
    }

    #[test]
    fn all_requires_each_but_the_excluded_ones() {
        for prerequisite in Prerequisite::ALL {
            assert_eq!(requires("all", prerequisite), Ok(true), "{prerequisite}");
            assert_eq!(requires(&format!("all,-{prerequisite}"), prerequisite), Ok(false), "{prerequisite}");
        }
        assert_eq!(requires("all,-mptcp", Prerequisite::Root), Ok(true));
    }

    #[test]
    fn unknown_names_are_refused() {
        assert_eq!(requires("all,-mtpcp", Prerequisite::Root), Err(String::from("there is no prerequisite `mtpcp`")));
    }

    #[test]
    fn names_are_distinct() {
        let names: std::collections::BTreeSet<_> = Prerequisite::ALL.iter().map(|it| it.name()).collect();
        assert_eq!(names.len(), Prerequisite::ALL.len());
    }
}
