//! Releases as nodes of many systems write them, and what each has to be taken for.
//!
//! The expectations are written by hand, from what the makers say of their kernels. The tests of the operator, of the
//! agent and of this crate read the same table: a release that they judge differently fails one of them.

/// Expected judgement of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Runs the eBPF capture.
    Capable,
    /// Runs it, and maps count as locked memory.
    CapableWithLockedMemory,
    /// Lacks what the programs need.
    TooOld,
    /// Crashes.
    KnownBad,
    /// Has to be tried.
    Unknown,
}

/// All examples.
#[rustfmt::skip]
pub const EXAMPLES: [(&str, Expected); 83] = {
    use Expected::{Capable, CapableWithLockedMemory, KnownBad, TooOld, Unknown};
    [
        // kernel.org, and what people build of it
        ("7.2.13", Capable),
        ("6.18", Capable),
        ("6.15.0-rc3", Capable),
        ("10.0-rc1", Capable),
        ("6.12.8-custom+", Capable),
        ("6.1.192", Capable),
        ("5.11.0", Capable),
        ("5.10.0", CapableWithLockedMemory),
        ("5.8.0", CapableWithLockedMemory),
        ("5.7.19", TooOld),
        ("3.10.0", TooOld),
        // Debian
        ("7.0.1+deb14-amd64", Capable),
        ("7.2.12+deb14-amd64", Capable),
        ("6.12.41+deb13-amd64", Capable),
        ("6.12.117+deb13-cloud-amd64", Capable),
        ("6.1.0-37-cloud-arm64", Capable),
        ("5.10.0-46-cloud-amd64", CapableWithLockedMemory),
        ("4.19.0-27-amd64", TooOld),
        ("4.9.0-19-amd64", TooOld),
        // Ubuntu, and Ubuntu on clouds
        ("6.8.0-79-generic", Capable),
        ("5.15.0-153-lowlatency", Capable),
        ("6.8.0-1034-gke", Capable),
        ("6.8.0-1031-azure", Capable),
        ("6.8.0-1021-aws", Capable),
        ("5.15.0-1083-azure-fde", Capable),
        ("6.5.0-1023-oem", Capable),
        ("5.8.0-63-generic", CapableWithLockedMemory),
        ("5.4.0-216-generic", TooOld),
        ("5.4.0-1063-eks", TooOld),
        ("4.15.0-213-generic", TooOld),
        ("4.4.0-116-generic", TooOld),
        ("4.4.0-119-generic", KnownBad),
        ("4.4.0-124-lowlatency", KnownBad),
        ("4.4.0-126-generic", KnownBad),
        ("4.4.0-127-generic", TooOld),
        // Red Hat, CentOS, Rocky, Alma: RHEL 8.0 to 8.10 are 80, 147, 193, 240, 305, 348, 372, 425, 477, 513 and 553
        ("6.12.0-55.21.1.el10_0.x86_64", Capable),
        ("5.14.0-570.32.1.el9_6.x86_64", Capable),
        ("5.14.0-70.el9.aarch64", Capable),
        ("4.18.0-553.69.1.el8_10.x86_64", CapableWithLockedMemory),
        ("4.18.0-372.9.1.el8.x86_64", CapableWithLockedMemory),
        ("4.18.0-348.el8.x86_64", CapableWithLockedMemory),
        ("4.18.0-347.el8.x86_64", CapableWithLockedMemory),
        ("4.18.0-305.45.1.el8_4.x86_64", CapableWithLockedMemory),
        ("4.18.0-305.28.1.rt7.100.el8_4.x86_64", CapableWithLockedMemory),
        ("4.18.0-305.el8.x86_64", CapableWithLockedMemory),
        ("4.18.0-304.el8.x86_64", TooOld),
        ("4.18.0-240.22.1.el8_3.x86_64", TooOld),
        ("4.18.0-80.el8.x86_64", TooOld),
        ("3.10.0-1160.119.1.el7.x86_64", TooOld),
        // Nearly RHEL 8
        ("4.18.0-553-generic", TooOld),
        ("4.18.0-305", TooOld),
        ("4.18.20-500.fc28.x86_64", TooOld),
        ("4.17.0-553.el8.x86_64", TooOld),
        // Oracle
        ("6.12.0-100.28.2.el10uek.x86_64", Capable),
        ("5.15.0-310.184.5.2.el9uek.x86_64", Capable),
        ("5.4.17-2136.345.4.el8uek.x86_64", TooOld),
        // Amazon Linux
        ("6.12.37-61.105.amzn2023.x86_64", Capable),
        ("6.1.147-172.266.amzn2023.aarch64", Capable),
        ("5.10.239-236.958.amzn2.x86_64", CapableWithLockedMemory),
        ("5.4.296-208.531.amzn2.x86_64", TooOld),
        ("4.14.355-280.684.amzn2.x86_64", TooOld),
        // Made for containers: COS, Bottlerocket, Talos, Flatcar, Azure Linux
        ("6.6.87+", Capable),
        ("5.10.162+", CapableWithLockedMemory),
        ("6.1.141", Capable),
        ("6.12.40-talos", Capable),
        ("5.10.17-talos", CapableWithLockedMemory),
        ("6.6.95-flatcar", Capable),
        ("6.6.96.1-1.azl3", Capable),
        // SUSE
        ("6.4.0-150600.23.60-default", Capable),
        ("5.14.21-150500.55.110-default", Capable),
        ("5.3.18-150300.59.204-default", TooOld),
        // Small and odd machines
        ("6.12.34+rpt-rpi-2712", Capable),
        ("5.10.103-v7l+", CapableWithLockedMemory),
        ("6.6.87.2-microsoft-standard-WSL2", Capable),
        ("6.1.75-android14-11-g0123456789ab-ab11111111", Capable),
        ("5.10.198-android13-4-00050-g2a3b4c5d6e7f-ab11111111", CapableWithLockedMemory),
        ("4.9.337-tegra", TooOld),
        // No version
        ("", Unknown),
        ("x", Unknown),
        ("6", Unknown),
        ("six.one", Unknown),
        ("my-kernel", Unknown),
        ("99999999999.1", Unknown),
    ]
};
