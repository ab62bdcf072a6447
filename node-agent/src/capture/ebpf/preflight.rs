//! Checks that every attach type needs, in the order in which they are run.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use kernel_support::{KernelFeature, Reason};
use nix::sys::{resource, utsname};
use node_agent_common::Offsets;
use procfs::process::Process;

use super::{attach_types::AttachTypes, btf::Btf, offsets, running_kernel::RunningKernel};
use crate::capture::{
    attach::Attach,
    cgroup_root::is_cgroup2,
    description::{Degradation, Feature, Finding},
    errors::Refusal,
    settings::Settings,
};

/// Result of the checks.
pub(super) struct Environment {
    pub(super) release: RunningKernel,
    /// The id of the cgroup at the node's root.
    pub(super) root: u64,
    pub(super) offsets: Offsets,
    pub(super) attach_types: AttachTypes,
    /// Features that are missing with any attach type.
    pub(super) degradations: Vec<Degradation>,
    pub(super) capabilities: Capabilities,
    pub(super) lockdown: Lockdown,
}

/// The id of the real cgroup root: below it is everything.
const WHOLE_MACHINE: u64 = 1;

/// Looks for all of it, and notes each step.
///
/// # Errors
/// The first that is missing.
pub(super) fn find(settings: &Settings, findings: &mut Vec<Finding>) -> Result<Environment, Refusal> {
    let release = note(findings, None, "kernel", running_kernel(settings), |release| release.text.clone())?;
    let capabilities = note(findings, None, "capabilities", capabilities(&release), Capabilities::words)?;
    let lockdown = Lockdown::read(&settings.lockdown_path);
    note(findings, None, "lockdown", Ok(()), |()| String::from(lockdown.words()))?;
    let root = note(findings, None, "cgroup v2", cgroup_id(&settings.cgroup_root), |id| {
        format!("{} is cgroup {id}", settings.cgroup_root.display())
    })?;
    let mut degradations = Vec::new();
    let found = find_types(&settings.btf_path, &mut degradations);
    let (offsets, attach_types) =
        note(findings, None, "BTF", found, |_| format!("all fields found in {}", settings.btf_path.display()))?;
    let offsets = Offsets { scoped: u32::from(root != WHOLE_MACHINE), ..offsets };
    Ok(Environment { release, root, offsets, attach_types, degradations, capabilities, lockdown })
}

/// Notes a step's outcome.
pub(super) fn note<T>(
    findings: &mut Vec<Finding>,
    attach: Option<Attach>,
    what: &'static str,
    result: Result<T, Refusal>,
    detail: impl FnOnce(&T) -> String,
) -> Result<T, Refusal> {
    findings.push(match &result {
        Ok(found) => Finding { attach, what, ok: true, detail: detail(found), refusal: None },
        Err(refusal) => {
            Finding { attach, what, ok: false, detail: refusal.message.clone(), refusal: Some(refusal.reason) }
        }
    });
    result
}

fn running_kernel(settings: &Settings) -> Result<RunningKernel, Refusal> {
    let text = match &settings.release {
        Some(release) => release.clone(),
        None => utsname::uname()
            .map_err(|error| Refusal {
                reason: Reason::KernelTooOld,
                message: format!("asking for the kernel's release: {error}"),
            })?
            .release()
            .to_string_lossy()
            .into_owned(),
    };
    let kernel = RunningKernel::of(text);
    kernel.judge()?;
    Ok(kernel)
}

/// Optional capabilities of this process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Capabilities {
    pub(super) net_admin: bool,
}

impl Capabilities {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "as `note` calls it")]
    fn words(&self) -> String {
        String::from(if self.net_admin { "BPF, PERFMON and NET_ADMIN" } else { "BPF and PERFMON, not NET_ADMIN" })
    }

    /// # Errors
    /// Without the capability that programs of the network stack need.
    pub(super) fn allow_sock_ops(self) -> Result<(), Refusal> {
        if self.net_admin {
            return Ok(());
        }
        Err(lacking("NET_ADMIN"))
    }
}

fn lacking(names: &str) -> Refusal {
    Refusal {
        reason: Reason::CapabilityMissing,
        message: format!("this process lacks {names}: run as root, or add it to the container's capabilities"),
    }
}

fn capabilities(kernel: &RunningKernel) -> Result<Capabilities, Refusal> {
    const NET_ADMIN: u64 = 1 << 12;
    const SYS_ADMIN: u64 = 1 << 21;
    // SYS_ADMIN stands for the two that were split from it, not for NET_ADMIN.
    const NEEDED: [(u64, &str); 2] = [(1 << 38 | SYS_ADMIN, "PERFMON"), (1 << 39 | SYS_ADMIN, "BPF")];
    let effective = Process::myself()
        .and_then(|process| process.status())
        .map_err(|error| Refusal {
            reason: Reason::CapabilityMissing,
            message: format!("reading /proc/self/status: {error}"),
        })?
        .capeff;
    let mut missing: Vec<_> = NEEDED.iter().filter(|(any, _)| effective & any == 0).map(|(_, name)| *name).collect();
    if !missing.is_empty() && effective & NET_ADMIN == 0 {
        missing.push("NET_ADMIN");
    }
    if !raise_memlock() && kernel.lacks(KernelFeature::CgroupAccountedMaps) {
        missing.push("SYS_RESOURCE (locked memory is limited, and before 5.11 the programs' tables count as such)");
    }
    if !missing.is_empty() {
        return Err(lacking(&missing.join(", ")));
    }
    Ok(Capabilities { net_admin: effective & NET_ADMIN != 0 })
}

/// Before 5.11 maps count against the limit of locked memory. Whether there is no limit now.
fn raise_memlock() -> bool {
    use resource::{RLIM_INFINITY, Resource::RLIMIT_MEMLOCK, getrlimit, setrlimit};
    setrlimit(RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY).is_ok()
        || getrlimit(RLIMIT_MEMLOCK).is_ok_and(|(soft, _)| soft == RLIM_INFINITY)
}

/// Lockdown level of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lockdown {
    Unknown,
    Open,
    Integrity,
    Confidentiality,
}

impl Lockdown {
    fn read(path: &Path) -> Self {
        fs::read_to_string(path).map_or(Self::Unknown, |text| Self::of(&text))
    }

    /// Of `none [integrity] confidentiality`.
    fn of(text: &str) -> Self {
        match text.split_once('[').and_then(|(_, rest)| rest.split_once(']')) {
            Some(("none", _)) => Self::Open,
            Some(("integrity", _)) => Self::Integrity,
            Some(("confidentiality", _)) => Self::Confidentiality,
            _ => Self::Unknown,
        }
    }

    /// Replaces an error by the kernel's lockdown if that is the real cause.
    pub(super) fn explain(self, refusal: Refusal) -> Refusal {
        let locked = matches!(self, Self::Integrity | Self::Confidentiality);
        if !locked || refusal.reason != Reason::CapabilityMissing {
            return refusal;
        }
        Refusal {
            reason: Reason::Lockdown,
            message: format!("{}; the kernel is locked down ({})", refusal.message, self.words()),
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Unknown => "the kernel does not show it here",
            Self::Open => "none",
            Self::Integrity => "integrity: as a rule nothing here is affected",
            Self::Confidentiality => {
                "confidentiality: programs may not read the kernel's memory at will, which the classic tracepoint needs"
            }
        }
    }
}

/// The id of a cgroup is its directory's inode number.
fn cgroup_id(root: &Path) -> Result<u64, Refusal> {
    let refusal = |message| Refusal { reason: Reason::CgroupV2Missing, message };
    let metadata =
        fs::metadata(root).map_err(|error| refusal(format!("opening the cgroup root {}: {error}", root.display())))?;
    if !is_cgroup2(root) {
        return Err(refusal(format!(
            "{} does not belong to a cgroup v2 hierarchy; where v1 and v2 are side by side, it is in the directory \
             `unified`",
            root.display()
        )));
    }
    Ok(metadata.ino())
}

/// Reads what the programs need to know of the kernel's types.
fn find_types(path: &Path, degradations: &mut Vec<Degradation>) -> Result<(Offsets, AttachTypes), Refusal> {
    let refusal = |what: String| Refusal {
        reason: Reason::BtfMissing,
        message: format!(
            "{}: {what}; the programs need the kernel's own type information: use a kernel with \
             CONFIG_DEBUG_INFO_BTF=y",
            path.display()
        ),
    };
    let bytes = fs::read(path).map_err(|error| refusal(error.to_string()))?;
    let btf = Btf::parse(&bytes).map_err(|error| refusal(error.to_string()))?;
    let found = offsets::find(&btf).map_err(|error| {
        if offsets::keeps_cgroups_in_a_union(&btf) {
            return Refusal {
                reason: Reason::KernelTooOld,
                message: String::from(
                    "the sockets of this kernel hold their cgroup in a form that programs cannot follow; 5.15 and \
                     later, and 5.10 as Debian maintains it, do not",
                ),
            };
        }
        refusal(error.to_string())
    })?;
    if let Some(error) = found.no_listing {
        degradations.push(no_listing(&error.to_string()));
    }
    let lacking = [
        (Feature::Retransmits, "retransmissions are", found.no_retransmits),
        (Feature::RoundTripTimes, "round-trip times are", found.no_rtt),
    ];
    for (feature, what, error) in lacking {
        degradations.extend(error.map(|error| Degradation {
            feature,
            message: format!("{what} not known: the kernel's own type information: {error}"),
        }));
    }
    Ok((found.offsets, AttachTypes::find(&btf)))
}

pub(super) fn no_listing(why: &str) -> Degradation {
    Degradation {
        feature: Feature::OpenSockets,
        message: format!(
            "the open sockets cannot be listed: {why}. Connections from before the start are not shown, nor the bytes \
             of connections before they end"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lockdown_explains_what_capabilities_do_not() {
        let refused = |reason| Refusal { reason, message: String::from("loading: not permitted") };
        let explained = Lockdown::Integrity.explain(refused(Reason::CapabilityMissing));
        assert_eq!(explained.reason, Reason::Lockdown);
        assert!(explained.message.starts_with("loading: not permitted; the kernel is locked down"), "{explained}");
        assert_eq!(Lockdown::Open.explain(refused(Reason::CapabilityMissing)).reason, Reason::CapabilityMissing);
        assert_eq!(Lockdown::Integrity.explain(refused(Reason::LoadFailed)).reason, Reason::LoadFailed);
    }

    #[test]
    fn lockdown_is_read_as_the_kernel_writes_it() {
        for (text, lockdown) in [
            ("[none] integrity confidentiality\n", Lockdown::Open),
            ("none [integrity] confidentiality\n", Lockdown::Integrity),
            ("none integrity [confidentiality]\n", Lockdown::Confidentiality),
            ("", Lockdown::Unknown),
            ("[", Lockdown::Unknown),
        ] {
            assert_eq!(Lockdown::of(text), lockdown, "{text}");
        }
        assert_eq!(Lockdown::read(Path::new("/nonexistent")), Lockdown::Unknown);
    }
}
