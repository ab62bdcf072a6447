//! Missing features of a node are reported by name, and the next attach type is used.

use std::path::{Path, PathBuf};

use kernel_support::KernelFeature;
use prerequisites::{Prerequisite, skip};
use scopeprobe_agent::capture::{
    Attach, Capture, Feature, Reason, Refusal, Settings, find_cgroup_root, probe, start_ebpf,
};

use crate::lab::{Node, can_list, foreign, node_or_skip, run_in_cgroup, run_with_capabilities};

fn refused(settings: &Settings) -> Refusal {
    start_ebpf(settings).err().expect("it has to be refused")
}

#[test]
fn a_kernel_without_btf() {
    let node = node_or_skip!();
    let refusal = refused(&Settings { btf_path: "/nonexistent/vmlinux".into(), ..node.settings(Attach::SockOps) });
    assert_eq!(refusal.reason, Reason::BtfMissing);
    assert!(refusal.message.contains("/nonexistent/vmlinux"), "{refusal}");
}

#[test]
fn what_is_not_btf() {
    let node = node_or_skip!();
    let refusal = refused(&Settings { btf_path: "/proc/version".into(), ..node.settings(Attach::SockOps) });
    assert_eq!(refusal.reason, Reason::BtfMissing);
}

#[test]
fn an_old_kernel_and_a_bad_one() {
    let node = node_or_skip!();
    for (release, reason) in
        [("4.14.355-277.647.amzn2.x86_64", Reason::KernelTooOld), ("4.4.0-122-generic", Reason::KnownBadKernel)]
    {
        let refusal = refused(&Settings { release: Some(release.into()), ..node.settings(Attach::SockOps) });
        assert_eq!(refusal.reason, reason);
        assert!(refusal.message.contains(release), "{refusal}");
    }
}

#[test]
fn kernel_whose_release_names_no_version_is_tried() {
    let node = node_or_skip!();
    for release in ["my-kernel", ""] {
        let settings = Settings { release: Some(release.into()), ..node.settings(Attach::SockOps) };
        let capture = start_ebpf(&settings).unwrap_or_else(|refusal| panic!("{release:?}: {refusal}"));
        assert_eq!(capture.description().kernel, release);
    }
}

#[test]
fn a_node_with_cgroup_v1_only() {
    let node = node_or_skip!();
    // As such a node has it: a directory for each controller, and no v2 hierarchy among them.
    let v1 = tempfile::tempdir().unwrap();
    for controller in ["memory", "cpu,cpuacct", "systemd"] {
        std::fs::create_dir(v1.path().join(controller)).unwrap();
    }
    let refusal = find_cgroup_root(v1.path()).unwrap_err();
    assert_eq!(refusal.reason, Reason::CgroupV2Missing);
    for attach in Attach::ALL {
        let refusal = refused(&Settings { cgroup_root: v1.path().into(), ..node.settings(attach) });
        assert_eq!(refusal.reason, Reason::CgroupV2Missing);
    }
}

#[test]
fn a_kernel_that_is_locked_down_for_confidentiality() {
    let node = node_or_skip!();
    let faked = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(faked.path(), "none integrity [confidentiality]\n").unwrap();
    let locked = |attach| Settings { lockdown_path: faked.path().into(), ..node.settings(attach) };
    assert_eq!(refused(&locked(Attach::Tracepoint)).reason, Reason::Lockdown);
    // It concerns the last resort alone.
    for attach in [Attach::SockOps, Attach::TpBtf] {
        start_ebpf(&locked(attach)).map(drop).unwrap();
    }
}

#[test]
fn a_classic_tracepoint_without_tracefs_or_on_a_kernel_where_it_is_not_safe() {
    let node = node_or_skip!();
    let nowhere = PathBuf::from("/nonexistent/tracing");
    let without = Settings { tracefs_paths: vec![nowhere], ..node.settings(Attach::Tracepoint) };
    let old = Settings { release: Some("5.15.0-talos".into()), ..without.clone() };
    let new = Settings { release: Some("6.12.1".into()), ..without };
    assert_eq!(refused(&old).reason, Reason::KernelTooOld);
    let refusal = refused(&new);
    assert_eq!(refusal.reason, Reason::AttachFailed);
    assert!(refusal.message.contains("/nonexistent/tracing"), "{refusal}");
}

#[test]
fn a_cgroup_whose_ancestor_allows_no_other_program() {
    let node = node_or_skip!();
    let root = node.cgroup("inner");
    let _foreign = foreign::exclusive(node.root());
    let settings = Settings { cgroup_root: root, ..node.settings(Attach::SockOps) };
    let refusal = refused(&settings);
    assert_eq!(refusal.reason, Reason::AttachFailed);
    assert!(refusal.message.contains("another sock_ops program"), "{refusal}");

    let capture = start_ebpf(&Settings { attach: None, ..settings }).unwrap();
    assert_eq!(capture.description().attach, "TpBtf");
    assert_second_choice(&capture.description().degradations, "AttachFailed");
}

fn assert_second_choice(degradations: &[scopeprobe_agent::capture::Degradation], why: &str) {
    let degradation = degradations.iter().find(|degradation| degradation.feature == Feature::EveryEvent).unwrap();
    assert!(degradation.message.contains("sock_ops was refused"), "{degradation:?}");
    assert!(degradation.message.contains(why), "{degradation:?}");
    assert!(degradation.message.contains("tracked by the BTF tracepoint"), "{degradation:?}");
}

/// A program of the capture's own cgroup is called before the capture's, which restores what it takes. One of a cgroup above
/// is called after it.
#[test]
fn a_program_that_takes_the_callbacks_away() {
    let node = node_or_skip!();
    let root = node.cgroup("agent");
    let beside = foreign::flag_owner(&root);
    let before = start_and_probe_below(&root, &node);
    drop(beside);
    assert!(before.contains("SockOps self-test: true"), "{before}");
    assert!(before.contains("chosen: SockOps"), "{before}");

    let _foreign = foreign::flag_owner(node.root());
    let output = start_and_probe_below(&root, &node);
    assert!(output.contains("SockOps self-test: false Some(SelfTestFailed)"), "{output}");
    assert!(output.contains("opened 1, closed 0"), "{output}");
    assert!(output.contains("TpBtf self-test: true"), "{output}");
    assert!(output.contains("chosen: TpBtf"), "{output}");
    assert!(output.contains("sock_ops was refused (SelfTestFailed"), "{output}");
}

/// In a cgroup at or below the capture's root, as the self-test wants it.
fn start_and_probe_below(root: &Path, node: &Node) -> String {
    let root = root.to_str().unwrap();
    run_in_cgroup("refusals::probe_here", &node.cgroup("agent"), &[("SCOPEPROBE_LAB_ROOT", root)])
}

/// Not a test of its own: run by others, in other circumstances.
#[test]
#[ignore = "run by other tests"]
fn probe_here() {
    let variable = |name| std::env::var(name).ok();
    let root = variable("SCOPEPROBE_LAB_ROOT")
        .map_or_else(|| find_cgroup_root("/sys/fs/cgroup".as_ref()).unwrap(), PathBuf::from);
    let settings = Settings { cgroup_root: root, release: variable("SCOPEPROBE_LAB_RELEASE"), ..Settings::default() };
    for finding in probe(&settings) {
        let attach = finding.attach.map(|attach| format!("{} ", attach.as_str())).unwrap_or_default();
        println!("{attach}{}: {} {:?} {}", finding.what, finding.ok, finding.refusal, finding.detail);
    }
    match start_ebpf(&settings) {
        Ok(capture) => println!("chosen: {} {:?}", capture.description().attach, capture.description().degradations),
        Err(refusal) => println!("refused: {refusal}"),
    }
}

fn probed_with(capabilities: &str, variables: &[(&str, &str)]) -> String {
    run_with_capabilities("refusals::probe_here", capabilities, variables)
}

#[test]
fn three_capabilities_are_enough() {
    let _node = node_or_skip!();
    let output = probed_with(needed(), &[]);
    for step in ["capabilities", "SockOps load", "SockOps ends of old connections", "SockOps self-test"] {
        assert!(output.contains(&format!("{step}: true")), "{step}: {output}");
    }
    assert_eq!(output.contains("SockOps list of open sockets: true"), can_list(), "{output}");
    for step in ["TpBtf load", "TpBtf attach", "TpBtf self-test"] {
        assert!(output.contains(&format!("{step}: true")), "{step}: {output}");
    }
    assert!(output.contains("chosen: SockOps"), "{output}");
}

/// Returns the capabilities of this kernel's DaemonSet.
fn needed() -> &'static str {
    if crate::lab::kernel_has(KernelFeature::CgroupAccountedMaps) {
        "+bpf,+perfmon,+net_admin"
    } else {
        "+bpf,+perfmon,+net_admin,+sys_resource"
    }
}

#[test]
fn each_missing_capability() {
    let _node = node_or_skip!();
    for (left, missing) in [("perfmon,net_admin", "BPF"), ("bpf,net_admin", "PERFMON")] {
        let output = probed_with(&needed_of(left), &[]);
        let refusal = format!("capabilities: false Some(CapabilityMissing) this process lacks {missing}:");
        assert!(output.contains(&refusal), "{output}");
        assert!(output.contains(&format!("refused: CapabilityMissing: this process lacks {missing}")), "{output}");
    }
    let output = probed_with(&needed_of("net_raw"), &[]);
    assert!(output.contains("this process lacks PERFMON, BPF, NET_ADMIN:"), "{output}");

    // The second choice does without that of the network's administrators.
    let output = probed_with(&needed_of("bpf,perfmon"), &[]);
    assert!(
        output.contains("SockOps capabilities: false Some(CapabilityMissing) this process lacks NET_ADMIN"),
        "{output}"
    );
    assert!(output.contains("TpBtf self-test: true"), "{output}");
    assert!(output.contains("chosen: TpBtf"), "{output}");
    assert!(output.contains("sock_ops was refused (CapabilityMissing: this process lacks NET_ADMIN"), "{output}");
}

fn needed_of(left: &str) -> String {
    let more = if crate::lab::kernel_has(KernelFeature::CgroupAccountedMaps) { "" } else { ",+sys_resource" };
    format!("+{}{more}", left.replace(',', ",+"))
}

#[test]
fn locked_memory_before_5_11() {
    let _node = node_or_skip!();
    let release = [("SCOPEPROBE_LAB_RELEASE", "5.10.0-46-cloud-amd64"), ("SCOPEPROBE_LAB_MEMLOCK", "65536")];
    let output = probed_with("+bpf,+perfmon,+net_admin", &release);
    assert!(output.contains("capabilities: false Some(CapabilityMissing) this process lacks SYS_RESOURCE"), "{output}");
    let output = probed_with("+bpf,+perfmon,+net_admin,+sys_resource", &release);
    if output.starts_with("setpriv:") {
        skip(Prerequisite::SysResource, "these tests may not grant SYS_RESOURCE, as they do not have it");
        return;
    }
    assert!(output.contains("capabilities: true"), "{output}");
}
