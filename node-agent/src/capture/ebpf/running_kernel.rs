//! The kernel that the agent runs on, by its release. Pure.

use kernel_support::{KernelFeature, Release, Verdict};

use crate::capture::errors::Refusal;

/// Release of the running kernel, and its version where the release names one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RunningKernel {
    /// `uname -r`.
    pub(super) text: String,
    release: Option<Release>,
}

impl RunningKernel {
    pub(super) fn of(text: String) -> Self {
        let release = Release::parse(&text).ok();
        Self { text, release }
    }

    /// Returns whether the kernel is known to have the feature.
    pub(super) fn has(&self, feature: KernelFeature) -> bool {
        self.release.as_ref().is_some_and(|release| release.has(feature))
    }

    /// Returns whether the kernel is known to lack the feature.
    pub(super) fn lacks(&self, feature: KernelFeature) -> bool {
        self.release.as_ref().is_some_and(|release| !release.has(feature))
    }

    /// Judges whether an attempt is worthwhile. A kernel whose release names no version is tried.
    ///
    /// # Errors
    /// If every attempt is known to fail, or to do harm.
    pub(super) fn judge(&self) -> Result<(), Refusal> {
        let Verdict::Unfit(unfit) = Verdict::of(&self.text) else { return Ok(()) };
        Err(Refusal { reason: unfit.reason(), message: unfit.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use kernel_support::examples::{EXAMPLES, Expected};

    use super::*;
    use kernel_support::Reason;

    #[test]
    fn running_kernel_is_refused_exactly_where_the_operator_expects_it() {
        for (release, expected) in EXAMPLES {
            let expected = match expected {
                Expected::Capable | Expected::CapableWithLockedMemory | Expected::Unknown => None,
                Expected::TooOld => Some(Reason::KernelTooOld),
                Expected::KnownBad => Some(Reason::KnownBadKernel),
            };
            let refused = RunningKernel::of(String::from(release)).judge().err().map(|refusal| refusal.reason);
            assert_eq!(refused, expected, "{release:?}");
        }
    }

    #[test]
    fn kernel_without_version_neither_has_nor_lacks_a_feature() {
        let unknown = RunningKernel::of(String::from("my-kernel"));
        assert!(!unknown.has(KernelFeature::CgroupAccountedMaps) && !unknown.lacks(KernelFeature::CgroupAccountedMaps));
        let old = RunningKernel::of(String::from("5.10.0-46-cloud-amd64"));
        assert!(!old.has(KernelFeature::CgroupAccountedMaps) && old.lacks(KernelFeature::CgroupAccountedMaps));
    }
}
