//! What a kernel's release says of what it can, before anybody has tried.
//!
//! A version is a bad judge: it chooses which DaemonSet a node begins with, and the agent finds out whether that is so.

mod known_bad;
mod release;

use self::{known_bad::KnownBad, release::Release};

/// The first kernel with everything that the eBPF capture needs: ring buffers, `CAP_BPF` and `CAP_PERFMON`.
const FIRST_WITH_EBPF: (u32, u32) = (5, 8);
/// The first kernel where eBPF maps count against the cgroup's memory and not against the limit of locked memory.
const FIRST_WITH_ACCOUNTED_MAPS: (u32, u32) = (5, 11);
/// RHEL 8 is 4.18 for ever, with much of what came later: its build 240 (8.3) has no ring buffer
/// (<https://github.com/grafana/beyla/pull/1175>), 348 (8.5) has (<https://github.com/foniod/redbpf/pull/251>). Whether the
/// rest suffices, the agent finds out.
const RHEL_8: (u32, u32) = (4, 18);
/// See [`RHEL_8`].
const FIRST_RHEL_8_WITH_EBPF: u32 = 348;

/// What the operator thinks of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelHint {
    /// Recent enough.
    Capable,
    /// Recent enough, and eBPF maps count as locked memory.
    CapableWithLockedMemory,
    /// Too old.
    TooOld,
    /// Recent enough or not: it would crash.
    KnownBad(&'static KnownBad),
    /// Its release does not begin with two numbers; trying it is the only way to know.
    Unknown,
}

/// Judges a release as `uname -r` and `status.nodeInfo.kernelVersion` write it.
#[must_use]
pub fn hint(release: &str) -> KernelHint {
    let Some(release) = Release::parse(release) else { return KernelHint::Unknown };
    if let Some(bad) = known_bad::find(&release) {
        return KernelHint::KnownBad(bad);
    }
    let version = (release.major, release.minor);
    if version >= FIRST_WITH_ACCOUNTED_MAPS {
        KernelHint::Capable
    } else if version >= FIRST_WITH_EBPF || is_recent_rhel_8(&release) {
        KernelHint::CapableWithLockedMemory
    } else {
        KernelHint::TooOld
    }
}

fn is_recent_rhel_8(release: &Release<'_>) -> bool {
    (release.major, release.minor) == RHEL_8
        && release.build.is_some_and(|build| build >= FIRST_RHEL_8_WITH_EBPF)
        && release.rest.split('.').any(|part| part == "el8" || part.starts_with("el8_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Is {
        Capable,
        WithLockedMemory,
        TooOld,
        KnownBad,
        Unknown,
    }

    /// As nodes of these systems write it.
    #[rustfmt::skip]
    const RELEASES: [(&str, Is); 65] = [
        // kernel.org, and what people build of it
        ("7.2.13", Is::Capable),
        ("6.18", Is::Capable),
        ("6.15.0-rc3", Is::Capable),
        ("10.0-rc1", Is::Capable),
        ("6.12.8-custom+", Is::Capable),
        ("5.11.0", Is::Capable),
        ("5.10.0", Is::WithLockedMemory),
        ("5.8.0", Is::WithLockedMemory),
        ("5.7.19", Is::TooOld),
        // Debian
        ("7.0.1+deb14-amd64", Is::Capable),
        ("6.12.41+deb13-amd64", Is::Capable),
        ("6.1.0-37-cloud-arm64", Is::Capable),
        ("5.10.0-34-amd64", Is::WithLockedMemory),
        ("4.19.0-27-amd64", Is::TooOld),
        ("4.9.0-19-amd64", Is::TooOld),
        // Ubuntu, and Ubuntu on clouds
        ("6.8.0-79-generic", Is::Capable),
        ("5.15.0-153-lowlatency", Is::Capable),
        ("6.8.0-1034-gke", Is::Capable),
        ("6.8.0-1031-azure", Is::Capable),
        ("5.15.0-1083-azure-fde", Is::Capable),
        ("6.5.0-1023-oem", Is::Capable),
        ("5.8.0-63-generic", Is::WithLockedMemory),
        ("5.4.0-216-generic", Is::TooOld),
        ("5.4.0-1063-eks", Is::TooOld),
        ("4.15.0-213-generic", Is::TooOld),
        ("4.4.0-116-generic", Is::TooOld),
        ("4.4.0-119-generic", Is::KnownBad),
        ("4.4.0-124-lowlatency", Is::KnownBad),
        ("4.4.0-126-generic", Is::KnownBad),
        ("4.4.0-127-generic", Is::TooOld),
        // Red Hat, CentOS, Rocky, Alma
        ("6.12.0-55.21.1.el10_0.x86_64", Is::Capable),
        ("5.14.0-570.32.1.el9_6.x86_64", Is::Capable),
        ("5.14.0-70.el9.aarch64", Is::Capable),
        ("4.18.0-553.69.1.el8_10.x86_64", Is::WithLockedMemory),
        ("4.18.0-372.9.1.el8.x86_64", Is::WithLockedMemory),
        ("4.18.0-348.el8.x86_64", Is::WithLockedMemory),
        ("4.18.0-305.19.1.el8_4.x86_64", Is::TooOld),
        ("4.18.0-240.22.1.el8_3.x86_64", Is::TooOld),
        ("4.18.0-80.el8.x86_64", Is::TooOld),
        ("3.10.0-1160.119.1.el7.x86_64", Is::TooOld),
        // Oracle
        ("6.12.0-100.28.2.el10uek.x86_64", Is::Capable),
        ("5.15.0-310.184.5.2.el9uek.x86_64", Is::Capable),
        ("5.4.17-2136.345.4.el8uek.x86_64", Is::TooOld),
        // Amazon Linux
        ("6.12.37-61.105.amzn2023.x86_64", Is::Capable),
        ("6.1.147-172.266.amzn2023.aarch64", Is::Capable),
        ("5.10.239-236.958.amzn2.x86_64", Is::WithLockedMemory),
        ("5.4.296-208.531.amzn2.x86_64", Is::TooOld),
        ("4.14.355-280.684.amzn2.x86_64", Is::TooOld),
        // Made for containers: COS, Bottlerocket, Talos, Flatcar, Azure Linux
        ("6.6.87+", Is::Capable),
        ("5.10.162+", Is::WithLockedMemory),
        ("6.1.141", Is::Capable),
        ("6.12.40-talos", Is::Capable),
        ("5.10.17-talos", Is::WithLockedMemory),
        ("6.6.95-flatcar", Is::Capable),
        ("6.6.96.1-1.azl3", Is::Capable),
        // SUSE
        ("6.4.0-150600.23.60-default", Is::Capable),
        ("5.14.21-150500.55.110-default", Is::Capable),
        ("5.3.18-150300.59.204-default", Is::TooOld),
        // Small and odd machines
        ("6.12.34+rpt-rpi-2712", Is::Capable),
        ("5.10.103-v7l+", Is::WithLockedMemory),
        ("6.6.87.2-microsoft-standard-WSL2", Is::Capable),
        ("4.9.337-tegra", Is::TooOld),
        // No release at all
        ("", Is::Unknown),
        ("six.one", Is::Unknown),
        ("99999999999.1", Is::Unknown),
    ];

    fn is(release: &str) -> Is {
        match hint(release) {
            KernelHint::Capable => Is::Capable,
            KernelHint::CapableWithLockedMemory => Is::WithLockedMemory,
            KernelHint::TooOld => Is::TooOld,
            KernelHint::KnownBad(_) => Is::KnownBad,
            KernelHint::Unknown => Is::Unknown,
        }
    }

    #[test]
    fn releases_of_many_distributions() {
        for (release, expected) in RELEASES {
            assert_eq!(is(release), expected, "{release:?}");
        }
    }

    #[test]
    fn only_red_hats_own_4_18_counts_as_newer() {
        for other in ["4.18.0-553-generic", "4.18.0-305", "4.18.20-500.fc28.x86_64", "4.17.0-553.el8.x86_64"] {
            assert_eq!(is(other), Is::TooOld, "{other:?}");
        }
    }
}
