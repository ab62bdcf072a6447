//! Nodes of many systems, and the agents that each has to get: written down by hand, from what their makers say of them.

/// One kind of node.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// `status.nodeInfo.operatingSystem`.
    pub os: &'static str,
    /// `status.nodeInfo.osImage`.
    pub image: &'static str,
    /// `status.nodeInfo.kernelVersion`.
    pub kernel: &'static str,
    /// The value of `scopeprobe.io/mode`; none for nodes that are left alone.
    pub agents: Option<&'static str>,
    /// Why.
    pub reason: &'static str,
}

const fn linux(image: &'static str, kernel: &'static str, agents: &'static str, reason: &'static str) -> Kind {
    Kind { os: "linux", image, kernel, agents: Some(agents), reason }
}

const fn modern(image: &'static str, kernel: &'static str) -> Kind {
    linux(image, kernel, "ebpf", "Supported")
}

/// Maps count as locked memory.
const fn middle(image: &'static str, kernel: &'static str) -> Kind {
    linux(image, kernel, "ebpf-memlock", "Supported")
}

const fn old(image: &'static str, kernel: &'static str) -> Kind {
    linux(image, kernel, "fallback", "KernelTooOld")
}

const fn other(os: &'static str, image: &'static str, kernel: &'static str) -> Kind {
    Kind { os, image, kernel, agents: None, reason: "" }
}

/// All kinds; the fleet has some nodes of each.
pub const KINDS: [Kind; 50] = [
    modern("Debian GNU/Linux 12 (bookworm)", "6.1.0-37-amd64"),
    modern("Debian GNU/Linux 13 (trixie)", "6.12.41+deb13-amd64"),
    middle("Debian GNU/Linux 11 (bullseye)", "5.10.0-34-cloud-amd64"),
    old("Debian GNU/Linux 10 (buster)", "4.19.0-27-amd64"),
    modern("Ubuntu 24.04.3 LTS", "6.8.0-79-generic"),
    modern("Ubuntu 22.04.5 LTS", "5.15.0-153-generic"),
    middle("Ubuntu 20.10", "5.8.0-63-generic"),
    old("Ubuntu 20.04.6 LTS", "5.4.0-216-generic"),
    old("Ubuntu 18.04.6 LTS", "4.15.0-213-generic"),
    linux("Ubuntu 16.04.4 LTS", "4.4.0-121-generic", "fallback", "KnownBadKernel"),
    linux("Ubuntu 16.04.4 LTS", "4.4.0-119-generic", "fallback", "KnownBadKernel"),
    old("Ubuntu 16.04.7 LTS", "4.4.0-210-generic"),
    modern("Ubuntu 22.04.5 LTS", "6.8.0-1031-azure"),
    modern("Ubuntu 22.04.5 LTS", "6.8.0-1034-gke"),
    modern("Ubuntu 22.04.5 LTS", "6.8.0-1033-aws"),
    old("Ubuntu 18.04.6 LTS", "5.4.0-1063-eks"),
    modern("Red Hat Enterprise Linux 10.0 (Coughlan)", "6.12.0-55.21.1.el10_0.x86_64"),
    modern("Red Hat Enterprise Linux CoreOS 418.94.202502100215-0", "5.14.0-427.50.1.el9_4.x86_64"),
    modern("CentOS Stream 9", "5.14.0-598.el9.x86_64"),
    middle("Red Hat Enterprise Linux CoreOS 412.86.202303211731-0", "4.18.0-372.49.1.el8_6.x86_64"),
    middle("Rocky Linux 8.10 (Green Obsidian)", "4.18.0-553.69.1.el8_10.x86_64"),
    middle("Red Hat Enterprise Linux CoreOS 49.84.202205050701-0 (Ootpa)", "4.18.0-305.45.1.el8_4.x86_64"),
    old("CentOS Linux 8", "4.18.0-240.22.1.el8_3.x86_64"),
    old("CentOS Linux 7 (Core)", "3.10.0-1160.119.1.el7.x86_64"),
    modern("Oracle Linux Server 9.6", "5.15.0-310.184.5.2.el9uek.x86_64"),
    old("Oracle Linux Server 8.10", "5.4.17-2136.345.4.el8uek.x86_64"),
    modern("Amazon Linux 2023.8.20250808", "6.1.147-172.266.amzn2023.x86_64"),
    modern("Amazon Linux 2023.8.20250808", "6.12.37-61.105.amzn2023.aarch64"),
    middle("Amazon Linux 2", "5.10.239-236.958.amzn2.x86_64"),
    old("Amazon Linux 2", "5.4.296-208.531.amzn2.x86_64"),
    old("Amazon Linux 2", "4.14.355-280.684.amzn2.x86_64"),
    modern("Container-Optimized OS from Google", "6.6.87+"),
    middle("Container-Optimized OS from Google", "5.10.162+"),
    modern("Bottlerocket OS 1.43.0 (aws-k8s-1.33)", "6.1.141"),
    middle("Bottlerocket OS 1.19.5 (aws-k8s-1.23)", "5.10.219"),
    modern("Talos (v1.10.6)", "6.12.40-talos"),
    middle("Talos (v0.9.3)", "5.10.29-talos"),
    modern("Flatcar Container Linux by Kinvolk 4230.2.2 (Oklo)", "6.6.95-flatcar"),
    modern("SUSE Linux Enterprise Server 15 SP6", "6.4.0-150600.23.60-default"),
    modern("SUSE Linux Enterprise Server 15 SP4", "5.14.21-150400.24.158-default"),
    old("SUSE Linux Enterprise Server 15 SP3", "5.3.18-150300.59.204-default"),
    modern("Microsoft Azure Linux 3.0", "6.6.96.1-1.azl3"),
    modern("Raspberry Pi OS", "6.12.34+rpt-rpi-2712"),
    modern("Docker Desktop", "6.6.87.2-microsoft-standard-WSL2"),
    modern("Arch Linux", "7.0.0-rc3-arch1-1"),
    linux("A board with a kernel of its own", "my-kernel", "ebpf", "KernelUnknown"),
    linux("Nothing is known", "", "ebpf", "KernelUnknown"),
    other("windows", "Windows Server 2022 Datacenter", "10.0.20348.4052"),
    other("windows", "Windows Server 2019 Datacenter", "10.0.17763.7678"),
    other("", "", ""),
];

/// Number of nodes.
pub const SIZE: usize = 300;

/// The name of a node, and what it is.
pub fn nodes() -> impl Iterator<Item = (String, Kind)> {
    (0..SIZE).map(|number| (format!("node-{number:03}"), KINDS[number % KINDS.len()]))
}

/// The first node with a kernel.
pub fn with_kernel(kernel: &str) -> String {
    nodes().find(|(_, kind)| kind.kernel == kernel).expect("the fleet has such a node").0
}
