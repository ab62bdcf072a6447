//! What a kernel's release says of what it can, before anybody has tried.

/// The first kernel with everything that the eBPF capture needs; the agent finds out whether it is so.
const FIRST_WITH_EBPF: (u32, u32) = (5, 10);

/// What the operator thinks of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelHint {
    /// Recent enough.
    Capable,
    /// Too old.
    TooOld,
    /// Its release does not begin with two numbers; trying it is the only way to know.
    Unknown,
}

/// Judges a release as `uname -r` and `status.nodeInfo.kernelVersion` write it.
#[must_use]
pub fn hint(release: &str) -> KernelHint {
    match version(release) {
        Some(version) if version >= FIRST_WITH_EBPF => KernelHint::Capable,
        Some(_) => KernelHint::TooOld,
        None => KernelHint::Unknown,
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let (major, rest) = release.trim().split_once('.')?;
    let digits = rest.len() - rest.trim_start_matches(|letter: char| letter.is_ascii_digit()).len();
    Some((major.parse().ok()?, rest[..digits].parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_many_distributions() {
        let cases = [
            ("5.10.0-34-amd64", KernelHint::Capable),
            ("6.12.41+deb13-amd64", KernelHint::Capable),
            ("6.18", KernelHint::Capable),
            ("10.0-rc1", KernelHint::Capable),
            ("5.9.16", KernelHint::TooOld),
            ("5.4.0-200-generic", KernelHint::TooOld),
            ("4.18.0-553.el8_10.x86_64", KernelHint::TooOld),
            ("3.10.0-1160.el7.x86_64", KernelHint::TooOld),
            ("", KernelHint::Unknown),
            ("6", KernelHint::Unknown),
            ("six.one", KernelHint::Unknown),
            ("6.", KernelHint::Unknown),
            ("99999999999.1", KernelHint::Unknown),
        ];
        for (release, expected) in cases {
            assert_eq!(hint(release), expected, "{release:?}");
        }
    }
}
