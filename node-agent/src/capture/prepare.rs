//! From nothing to a running capture, in the order in which things can be missing.

use std::{fs, os::unix::fs::MetadataExt, path::Path, time::SystemTime};

use nix::sys::{resource, utsname};
use node_agent_common::Offsets;
use procfs::process::Process;

use super::{
    Degradation, Description, Feature, Finding, Mode, Reason, Refusal, Settings,
    btf::Btf,
    cgroup_root::is_cgroup2,
    ebpf::EbpfCapture,
    first_sights::FirstSights,
    kernel::{Kernel, no_listing},
    offsets, self_test,
    slots::Slots,
};

/// Does all of it, and notes each step.
///
/// # Errors
/// The first step that failed, which is the last one noted.
pub(super) fn prepare(settings: &Settings, findings: &mut Vec<Finding>) -> Result<EbpfCapture, Refusal> {
    let release = note(findings, "kernel", kernel_release(), Clone::clone)?;
    note(findings, "capabilities", capabilities(), Clone::clone)?;
    let root = note(findings, "cgroup v2", cgroup_id(&settings.cgroup_root), |id| {
        format!("{} is cgroup {id}", settings.cgroup_root.display())
    })?;
    let mut degradations = Vec::new();
    let offsets = note(findings, "BTF", find_offsets(&settings.btf_path, &mut degradations), |_| {
        format!("all fields found in {}", settings.btf_path.display())
    })?;
    raise_memlock();
    let offsets = Offsets { scoped: u32::from(root != WHOLE_MACHINE), ..offsets };
    let loaded = Kernel::load(settings, &offsets, root, &mut degradations);
    let mut kernel = note(findings, "sock_ops program", loaded, |_| String::from("loaded"))?;
    note_optional(findings, "list of open sockets", Feature::OpenSockets, &degradations);
    note_optional(findings, "ends of old connections", Feature::OldCloses, &degradations);
    kernel.set_first_look(true).map_err(|error| Refusal {
        reason: Reason::LoadFailed,
        message: format!("writing to the programs' maps: {error}"),
    })?;
    note(findings, "attach", kernel.attach(&settings.cgroup_root), |()| {
        format!("attached to {}", settings.cgroup_root.display())
    })?;
    let attached_at = SystemTime::now();
    let (mut slots, mut first_sights) = (Slots::default(), FirstSights::default());
    if settings.self_test {
        let tested = self_test::run(&mut kernel, &mut first_sights, &mut slots);
        note(findings, "self-test", tested, |()| String::from("a connection of the agent's own was counted exactly"))?;
    }
    let description = Description { mode: Mode::Ebpf, attach: "SockOps", attached_at, kernel: release, degradations };
    let mut capture = EbpfCapture::new(description, kernel, slots, first_sights, settings.look_every);
    capture.first_look().map_err(|error| Refusal {
        reason: Reason::LoadFailed,
        message: format!("looking at what is open: {error}"),
    })?;
    Ok(capture)
}

/// The id of the real cgroup root: below it is everything.
const WHOLE_MACHINE: u64 = 1;

fn note<T>(
    findings: &mut Vec<Finding>,
    what: &'static str,
    result: Result<T, Refusal>,
    detail: impl FnOnce(&T) -> String,
) -> Result<T, Refusal> {
    findings.push(match &result {
        Ok(found) => Finding { what, ok: true, detail: detail(found), refusal: None },
        Err(refusal) => Finding { what, ok: false, detail: refusal.message.clone(), refusal: Some(refusal.reason) },
    });
    result
}

fn note_optional(findings: &mut Vec<Finding>, what: &'static str, feature: Feature, degradations: &[Degradation]) {
    let lacking = degradations.iter().find(|degradation| degradation.feature == feature);
    let detail = lacking.map_or_else(|| String::from("loaded"), |degradation| degradation.message.clone());
    findings.push(Finding { what, ok: lacking.is_none(), detail, refusal: None });
}

/// The release, if it is new enough for ring buffers and links (5.8).
fn kernel_release() -> Result<String, Refusal> {
    let refusal = |message| Refusal { reason: Reason::KernelTooOld, message };
    let name = utsname::uname().map_err(|error| refusal(format!("asking for the kernel's release: {error}")))?;
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < (5, 8) {
        return Err(refusal(format!("kernel {release} has no BPF ring buffers; 5.8 has, 5.10 and later are tested")));
    }
    Ok(release)
}

/// Whether this process has what the programs need.
fn capabilities() -> Result<String, Refusal> {
    const SYS_ADMIN: u64 = 1 << 21;
    // Each with what stands for it: SYS_ADMIN for the two that were split from it, not for NET_ADMIN.
    const NEEDED: [(u64, &str); 3] =
        [(1 << 12, "NET_ADMIN"), (1 << 38 | SYS_ADMIN, "PERFMON"), (1 << 39 | SYS_ADMIN, "BPF")];
    let refusal = |message| Refusal { reason: Reason::CapabilityMissing, message };
    let effective = Process::myself()
        .and_then(|process| process.status())
        .map_err(|error| refusal(format!("reading /proc/self/status: {error}")))?
        .capeff;
    let lacking: Vec<_> = NEEDED.iter().filter(|(any, _)| effective & any == 0).map(|(_, name)| *name).collect();
    if lacking.is_empty() {
        return Ok(String::from("BPF, PERFMON and NET_ADMIN"));
    }
    Err(refusal(format!("this process lacks {}: run as root, or add them to the container", lacking.join(", "))))
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

fn find_offsets(path: &Path, degradations: &mut Vec<Degradation>) -> Result<Offsets, Refusal> {
    let refusal = |what: String| Refusal {
        reason: Reason::BtfMissing,
        message: format!(
            "{}: {what}; the programs need the kernel's own type information: use a kernel with \
             CONFIG_DEBUG_INFO_BTF=y",
            path.display()
        ),
    };
    let bytes = fs::read(path).map_err(|error| refusal(error.to_string()))?;
    let found = Btf::parse(&bytes).and_then(|btf| offsets::find(&btf)).map_err(|error| refusal(error.to_string()))?;
    if let Some(error) = found.no_listing {
        degradations.push(no_listing(&error.to_string()));
    }
    Ok(found.offsets)
}

/// Before 5.11 maps count against the limit of locked memory; where it cannot be raised, loading says so.
fn raise_memlock() {
    let _ = resource::setrlimit(resource::Resource::RLIMIT_MEMLOCK, resource::RLIM_INFINITY, resource::RLIM_INFINITY);
}
