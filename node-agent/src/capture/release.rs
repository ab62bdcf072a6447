//! What a kernel's release tells. Pure.

use super::{Reason, Refusal};

/// `uname -r`, and the version that it begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Release {
    pub(super) text: String,
    version: (u32, u32),
}

impl Release {
    pub(super) fn of(text: String) -> Self {
        let version = {
            let mut numbers = numbers(&text);
            (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
        };
        Self { text, version }
    }

    pub(super) fn is_before(&self, major: u32, minor: u32) -> bool {
        self.version < (major, minor)
    }

    /// Whether it is worth a try. A version alone is a bad judge: only what is known to be hopeless, or to do harm, is
    /// turned away here.
    ///
    /// # Errors
    /// With the reason.
    pub(super) fn judge(&self) -> Result<(), Refusal> {
        let release = &self.text;
        if self.panics_on_tracing() {
            return Err(Refusal {
                reason: Reason::KnownBadKernel,
                message: format!(
                    "kernel {release} can panic when programs are loaded (Launchpad bug 1763454); 4.4.0-127.153 and \
                     later do not"
                ),
            });
        }
        // Ring buffers and links came with 5.8; Red Hat's 4.18 has had both since its 8.4.
        if self.is_before(5, 8) && self.enterprise_build().is_none_or(|build| build < 305) {
            return Err(Refusal {
                reason: Reason::KernelTooOld,
                message: format!("kernel {release} has no BPF ring buffers; 5.8 has, 5.10 and later are tested"),
            });
        }
        Ok(())
    }

    /// Ubuntu's 4.4.0-119 up to 4.4.0-126.
    fn panics_on_tracing(&self) -> bool {
        let build = self.text.strip_prefix("4.4.0-").and_then(|rest| numbers(rest).next());
        build.is_some_and(|build| (119..127).contains(&build))
    }

    /// Of `4.18.0-553.el8_10.x86_64`: 553.
    fn enterprise_build(&self) -> Option<u32> {
        let build = self.text.strip_prefix("4.18.0-").filter(|rest| rest.contains(".el8"))?;
        numbers(build).next()
    }
}

fn numbers(text: &str) -> impl Iterator<Item = u32> {
    text.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(release: &str) -> Option<Reason> {
        Release::of(String::from(release)).judge().err().map(|refusal| refusal.reason)
    }

    #[test]
    fn releases_are_judged_by_what_they_can_do() {
        for fine in [
            "5.10.0-46-cloud-amd64",
            "6.1.192",
            "6.12.117+deb13-cloud-amd64",
            "7.2.12+deb14-amd64",
            "5.14.0-503.el9.x86_64",
            "4.18.0-553.el8_10.x86_64",
            "4.18.0-305.el8.x86_64",
            "6.8.0-1021-aws",
            "5.15.0-talos",
        ] {
            assert_eq!(judged(fine), None, "{fine}");
        }
        for old in ["4.14.355-277.647.amzn2.x86_64", "5.4.0-200-generic", "4.18.0-240.el8.x86_64", "3.10.0", "", "x"] {
            assert_eq!(judged(old), Some(Reason::KernelTooOld), "{old}");
        }
        assert_eq!(judged("4.4.0-119-generic"), Some(Reason::KnownBadKernel));
        assert_eq!(judged("4.4.0-126-generic"), Some(Reason::KnownBadKernel));
        assert_eq!(judged("4.4.0-127-generic"), Some(Reason::KernelTooOld));
    }

    #[test]
    fn versions_compare_by_number() {
        let release = Release::of(String::from("6.12.117+deb13"));
        assert!(release.is_before(6, 13) && release.is_before(7, 0) && !release.is_before(6, 12));
        assert!(!release.is_before(6, 2));
    }
}
