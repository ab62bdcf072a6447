//! Kernels that eBPF programs crash.

use std::{fmt, ops::RangeInclusive};

use crate::release::Release;

/// Bug of some builds of a kernel.
#[derive(Debug, PartialEq, Eq)]
pub struct KernelBug {
    version: (u32, u32, u32),
    builds: RangeInclusive<u32>,
    flavours: &'static [&'static str],
    effect: &'static str,
    report: &'static str,
    first_fixed: &'static str,
}

/// Known bugs. Each was reported by people who met it, or who fixed it.
static KNOWN_BUGS: [KernelBug; 1] = [
    // Also https://github.com/weaveworks/scope/issues/3131.
    KernelBug {
        version: (4, 4, 0),
        builds: 119..=126,
        flavours: &["-generic", "-lowlatency"],
        effect: "panics when an eBPF program reads a map",
        report: "https://bugs.launchpad.net/bugs/1763454",
        first_fixed: "4.4.0-127",
    },
];

impl KernelBug {
    /// Returns the known bug of a kernel.
    pub(crate) fn of(release: &Release) -> Option<&'static Self> {
        KNOWN_BUGS.iter().find(|bug| {
            let (major, minor) = release.version();
            bug.version == (major, minor, release.patch().unwrap_or_default())
                && release.build().is_some_and(|build| bug.builds.contains(&build))
                && bug.flavours.contains(&release.flavour())
        })
    }
}

impl fmt::Display for KernelBug {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { effect, report, first_fixed, .. } = self;
        write!(formatter, "{effect} ({report}); update the kernel to {first_fixed} or later")
    }
}
