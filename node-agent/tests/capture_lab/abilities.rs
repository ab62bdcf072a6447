//! What the tests may do and what this kernel can do, known without asking the capture.

use std::env;

use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

/// Leaves this thread with no other capabilities than those of `SCOPEPROBE_TEST_CAPABILITIES` (`BPF,PERFMON,…`), where
/// that is set. Processes that it starts have all of root's again: it is the capture alone that is to do with few.
pub fn limit_capabilities() {
    let Some(names) = env::var("SCOPEPROBE_TEST_CAPABILITIES").ok().filter(|names| !names.is_empty()) else { return };
    let kept: CapabilitySet = names
        .split(',')
        .map(|name| CapabilitySet::from_name(name).unwrap_or_else(|| panic!("{name} is no capability")))
        .collect();
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() })
        .unwrap();
}

/// Whether the kernel's open sockets can be listed: `bpf_sock_from_file` is there since 5.11.
pub fn lists_open_sockets() -> bool {
    kernel_version() >= (5, 11)
}

/// `5.10.0-46-cloud-amd64` is (5, 10).
fn kernel_version() -> (u32, u32) {
    let release = nix::sys::utsname::uname().unwrap().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|other: char| !other.is_ascii_digit()).map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// How often something is done that is done very often: `SCOPEPROBE_TEST_DIVISOR` makes it fewer times where every time
/// takes long, in a virtual machine without hardware acceleration.
pub fn often(times: u64) -> u64 {
    let divisor = env::var("SCOPEPROBE_TEST_DIVISOR").map_or(1, |divisor| divisor.parse().unwrap());
    times / divisor
}

/// `return`s with the reason printed where the kernel cannot list its open sockets.
macro_rules! listing_or_skip {
    () => {
        if !$crate::capture_lab::abilities::lists_open_sockets() {
            println!("skipped: this kernel cannot list open sockets (5.11)");
            return;
        }
    };
}
pub(crate) use listing_or_skip;
