//! Kernel features by the version that introduced them, with Red Hat's backports.

use crate::release::Release;

/// Kernel feature that cannot be probed before it is needed, so that its version decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KernelFeature {
    /// BPF ring buffers, and with them `CAP_BPF` and `CAP_PERFMON`. Without them no program of ours can be loaded.
    RingBuffer,
    /// eBPF maps that count against the memory of the cgroup instead of the limit of locked memory.
    CgroupAccountedMaps,
    /// Iterators over the sockets and namespaces of all tasks, with socket cookies.
    SocketIterators,
    /// Map updates that are safe in programs of classic tracepoints.
    ClassicTracepointMapUpdates,
    /// Count of the runs that the kernel skips of a classic tracepoint's program.
    ClassicTracepointMissCount,
}

/// First kernels with a feature.
struct Since {
    version: (u32, u32),
    /// `None` where no backport is known.
    rhel_8: Option<Rhel8>,
}

/// Minor release of RHEL 8, and the build of its 4.18.0.
struct Rhel8 {
    minor: u32,
    build: u32,
}

impl KernelFeature {
    const fn since(self) -> Since {
        match self {
            // RHEL 8 has ring buffers since RHEL 8.4 (build 305). NetObserv's agent creates one when it starts
            // (https://github.com/netobserv/netobserv-ebpf-agent/blob/87126f7/bpf/tc-agent/flows.c). Its README lists
            // OpenShift on Kubernetes 1.23.3 as tested with BPF, PERFMON and NET_ADMIN alone. That is OpenShift 4.10,
            // whose RHCOS 410.84 is RHEL 8.4. RHEL 8.3 (build 240) has none
            // (https://github.com/grafana/beyla/pull/1175). Nothing is known of the builds between the two.
            //
            // A wrong "new enough" is corrected: the agent probes everything that it needs. If something is missing,
            // the operator moves the node to Fallback mode within a minute, and retries eBPF after an hour at the
            // earliest. A wrong "too old" would be permanent: an agent in Fallback mode never tries eBPF.
            Self::RingBuffer => Since { version: (5, 8), rhel_8: Some(Rhel8 { minor: 4, build: 305 }) },
            // RHEL 8 counts as lacking it. If that is wrong, the agent only has SYS_RESOURCE without needing it.
            Self::CgroupAccountedMaps => Since { version: (5, 11), rhel_8: None },
            Self::SocketIterators => Since { version: (5, 12), rhel_8: None },
            Self::ClassicTracepointMapUpdates => Since { version: (6, 1), rhel_8: None },
            Self::ClassicTracepointMissCount => Since { version: (6, 7), rhel_8: None },
        }
    }

    /// Names the first kernels with the feature: `Linux 5.8, or RHEL 8.4`.
    pub(crate) fn first_kernels(self) -> String {
        let Since { version: (major, minor), rhel_8 } = self.since();
        let rhel_8 = rhel_8.map(|rhel_8| format!(", or RHEL 8.{}", rhel_8.minor)).unwrap_or_default();
        format!("Linux {major}.{minor}{rhel_8}")
    }
}

impl Release {
    /// Returns whether a kernel of this release has the feature.
    #[must_use]
    pub fn has(&self, feature: KernelFeature) -> bool {
        let since = feature.since();
        let backported = || since.rhel_8.is_some_and(|first| self.build().is_some_and(|build| build >= first.build));
        self.version() >= since.version || self.is_rhel_8() && backported()
    }
}

#[cfg(test)]
mod tests {
    use KernelFeature::{
        CgroupAccountedMaps, ClassicTracepointMapUpdates, ClassicTracepointMissCount, RingBuffer, SocketIterators,
    };

    use super::*;

    fn has(text: &str, feature: KernelFeature) -> bool {
        Release::parse(text).unwrap().has(feature)
    }

    #[test]
    fn features_begin_with_their_version() {
        for (feature, last_without, first) in [
            (RingBuffer, "5.7.19", "5.8.0"),
            (CgroupAccountedMaps, "5.10.250", "5.11"),
            (SocketIterators, "5.11.22", "5.12"),
            (ClassicTracepointMapUpdates, "6.0.19", "6.1.0"),
            (ClassicTracepointMissCount, "6.6.95-flatcar", "6.7"),
        ] {
            assert!(!has(last_without, feature), "{feature:?}");
            for later in [first, "6.12.117+deb13", "7.0-rc1", "10.0"] {
                assert!(has(later, feature), "{feature:?} {later}");
            }
        }
    }

    #[test]
    fn rhel_8_has_only_what_was_backported() {
        assert!(has("4.18.0-305.el8.x86_64", RingBuffer));
        assert!(!has("4.18.0-304.el8.x86_64", RingBuffer));
        assert!(!has("4.18.0.el8.x86_64", RingBuffer), "without a build");
        assert!(!has("4.18.0-553.el8_10.x86_64", CgroupAccountedMaps));
    }

    #[test]
    fn features_name_their_first_kernels() {
        assert_eq!(RingBuffer.first_kernels(), "Linux 5.8, or RHEL 8.4");
        assert_eq!(ClassicTracepointMapUpdates.first_kernels(), "Linux 6.1");
    }
}
