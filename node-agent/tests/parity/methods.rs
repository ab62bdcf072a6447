//! The ways of seeing, each with exactly what its agent may do.

use kernel_support::KernelFeature;
use prerequisites::Prerequisite;
use scopeprobe_agent::capture::Attach;

use crate::lab::{kernel_has, no_classic_tracepoint};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Ebpf(Attach),
    Fallback,
}

/// Expected completeness of a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// Everything.
    All,
    /// Everything except the reported losses.
    AllButLost,
    /// Nothing but what was.
    OnlyTruth,
    /// As [`Promise::AllButLost`], and every edge that lasts.
    WhatLasts,
    /// Besides, 99 % of the edges of a hundred short ones a second.
    WhatLastsAndShortEdges,
}

#[derive(Debug)]
pub struct Method {
    /// As the capture calls it.
    pub name: &'static str,
    pub how: How,
    pub capabilities: String,
    pub promise: Promise,
    /// What it takes that a machine may lack.
    pub prerequisite: Option<Prerequisite>,
    /// Why it cannot be had, where that is known before it is tried.
    pub absent: Option<String>,
}

/// By eBPF and without, from the best to the last resort.
pub fn all() -> Vec<Method> {
    let mut methods = by_ebpf();
    let fallback = |name, capabilities: &str, promise| Method {
        name,
        how: How::Fallback,
        capabilities: String::from(capabilities),
        promise,
        prerequisite: None,
        absent: None,
    };
    methods.push(fallback(
        "SockDiag+Conntrack",
        "NET_ADMIN,SYS_PTRACE,SYS_ADMIN,DAC_READ_SEARCH",
        Promise::WhatLastsAndShortEdges,
    ));
    // What is left without some of them.
    methods.push(fallback("SockDiag", "SYS_PTRACE,SYS_ADMIN,DAC_READ_SEARCH", Promise::WhatLasts));
    methods.push(fallback("Procfs", "SYS_PTRACE,DAC_READ_SEARCH", Promise::WhatLasts));
    methods
}

/// Each way to attach.
pub fn by_ebpf() -> Vec<Method> {
    let memory = if kernel_has(KernelFeature::CgroupAccountedMaps) { "" } else { ",SYS_RESOURCE" };
    let ebpf = |attach: Attach, more: &str, promise, prerequisite, absent| Method {
        name: attach.as_str(),
        how: How::Ebpf(attach),
        capabilities: format!("BPF,PERFMON{more}{memory}"),
        promise,
        prerequisite: Some(prerequisite),
        absent,
    };
    // Before 6.7 the kernel does not count what a classic tracepoint's program misses, and before 5.12 it cannot list
    // processes and sockets, as it takes to compare with what namespaces count.
    let counted = if kernel_has(KernelFeature::SocketIterators) { Promise::AllButLost } else { Promise::OnlyTruth };
    vec![
        ebpf(Attach::SockOps, ",NET_ADMIN", Promise::All, Prerequisite::Ebpf, None),
        ebpf(Attach::TpBtf, "", Promise::AllButLost, Prerequisite::Ebpf, None),
        // Debian's kernels want SYS_ADMIN for it.
        ebpf(Attach::Tracepoint, ",SYS_ADMIN", counted, Prerequisite::ClassicTracepoint, no_classic_tracepoint()),
    ]
}
