//! Kernels that eBPF programs crash: they get the fallback whatever is asked for.

use std::ops::RangeInclusive;

use super::release::Release;

/// Some builds of one kernel, and why they are bad.
#[derive(Debug, PartialEq, Eq)]
pub struct KnownBad {
    version: (u32, u32, u32),
    builds: RangeInclusive<u32>,
    /// What follows the build's number.
    flavours: &'static [&'static str],
    /// For people: which, why, and what to do.
    pub reason: &'static str,
}

/// Only what is said by whom it happened to, or by those who have mended it.
static KNOWN_BAD: [KnownBad; 1] = [
    // https://bugs.launchpad.net/ubuntu/+source/linux/+bug/1763454, https://github.com/weaveworks/scope/issues/3131
    KnownBad {
        version: (4, 4, 0),
        builds: 119..=126,
        flavours: &["-generic", "-lowlatency"],
        reason: "Ubuntu's kernels 4.4.0-119 to 4.4.0-126 panic when an eBPF program looks into a map \
                 (https://bugs.launchpad.net/bugs/1763454): update the kernel",
    },
];

/// The entry of a kernel that is known to be bad.
pub(super) fn find(release: &Release<'_>) -> Option<&'static KnownBad> {
    KNOWN_BAD.iter().find(|bad| {
        bad.version == (release.major, release.minor, release.patch.unwrap_or_default())
            && release.build.is_some_and(|build| bad.builds.contains(&build))
            && bad.flavours.contains(&release.rest)
    })
}
