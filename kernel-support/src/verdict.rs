//! Judges a kernel by its release, before the agent tries to load a program.

use crate::{
    feature::KernelFeature,
    known_bad::KernelBug,
    reason::Reason,
    release::{ParseReleaseError, Release},
};

/// Expected ability of a kernel to run the eBPF capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The kernel is recent enough.
    Fit(MapMemory),
    /// The kernel lacks a feature, or crashes.
    Unfit(UnfitKernel),
    /// The release names no version; only an attempt shows what the kernel can do.
    Unknown(ParseReleaseError),
}

/// Memory that eBPF maps count against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapMemory {
    /// Memory of the process's cgroup.
    Cgroup,
    /// Limit of locked memory, which the agent raises: it needs `CAP_SYS_RESOURCE` for that.
    Locked,
}

/// Reason why a kernel cannot run the eBPF capture.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnfitKernel {
    /// The kernel lacks a feature that the programs need.
    #[error("kernel {release} lacks BPF ring buffers (needs {})", KernelFeature::RingBuffer.first_kernels())]
    TooOld {
        /// Release of the kernel.
        release: Release,
    },
    /// Loading the programs can crash the kernel.
    #[error("kernel {release} {bug}")]
    KnownBad {
        /// Release of the kernel.
        release: Release,
        /// Its bug.
        bug: &'static KernelBug,
    },
}

impl UnfitKernel {
    /// Returns the reason that the API shows.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::TooOld { .. } => Reason::KernelTooOld,
            Self::KnownBad { .. } => Reason::KnownBadKernel,
        }
    }
}

impl Verdict {
    /// Judges a release as `uname -r` and `status.nodeInfo.kernelVersion` write it.
    #[must_use]
    pub fn of(release: &str) -> Self {
        match Release::parse(release) {
            Ok(release) => release.judge().map_or_else(Self::Unfit, Self::Fit),
            Err(error) => Self::Unknown(error),
        }
    }
}

impl Release {
    /// Judges whether a kernel of this release can run the eBPF capture.
    ///
    /// # Errors
    /// If the kernel lacks a feature that every program needs, or is known to crash. The release decides nothing else,
    /// because distributions backport features.
    pub fn judge(&self) -> Result<MapMemory, UnfitKernel> {
        if let Some(bug) = KernelBug::of(self) {
            return Err(UnfitKernel::KnownBad { release: self.clone(), bug });
        }
        if !self.has(KernelFeature::RingBuffer) {
            return Err(UnfitKernel::TooOld { release: self.clone() });
        }
        Ok(if self.has(KernelFeature::CgroupAccountedMaps) { MapMemory::Cgroup } else { MapMemory::Locked })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::examples::{EXAMPLES, Expected};

    #[test]
    fn releases_of_many_distributions_are_judged() {
        for (release, expected) in EXAMPLES {
            let judged = match Verdict::of(release) {
                Verdict::Fit(MapMemory::Cgroup) => Expected::Capable,
                Verdict::Fit(MapMemory::Locked) => Expected::CapableWithLockedMemory,
                Verdict::Unfit(UnfitKernel::TooOld { .. }) => Expected::TooOld,
                Verdict::Unfit(UnfitKernel::KnownBad { .. }) => Expected::KnownBad,
                Verdict::Unknown(_) => Expected::Unknown,
            };
            assert_eq!(judged, expected, "{release:?}");
        }
    }

    #[test]
    fn unfit_kernels_say_what_is_missing_and_what_to_do() {
        let said = |release| match Verdict::of(release) {
            Verdict::Unfit(unfit) => unfit.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            said("4.14.355-280.684.amzn2.x86_64"),
            "kernel 4.14.355-280.684.amzn2.x86_64 lacks BPF ring buffers (needs Linux 5.8, or RHEL 8.4)"
        );
        assert_eq!(
            said("4.4.0-121-generic"),
            "kernel 4.4.0-121-generic panics when an eBPF program reads a map \
             (https://bugs.launchpad.net/bugs/1763454); update the kernel to 4.4.0-127 or later"
        );
    }
}
