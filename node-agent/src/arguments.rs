//! Arguments that several commands share.

use std::path::{Path, PathBuf};

use clap::{ArgAction, Args};
use jiff::SignedDuration;

use crate::{
    budget::Budget,
    capture::{Attach, FallbackSettings, Refusal, Settings, find_cgroup_root},
};

/// Mount points of the node's cgroups: in the agent's pod, and elsewhere.
const CGROUP_MOUNTS: [&str; 2] = ["/host/sys/fs/cgroup", "/sys/fs/cgroup"];

/// Options of the capture, common to all commands.
#[derive(Clone, Debug, Args)]
pub struct CaptureArguments {
    /// The cgroup v2 directory whose sockets are this node's [default: found below /host/sys/fs/cgroup, else
    /// /sys/fs/cgroup].
    #[arg(long, env = "SCOPEPROBE_CGROUP_ROOT", value_name = "DIRECTORY")]
    cgroup_root: Option<PathBuf>,
    /// The running kernel's type information.
    #[arg(long, env = "SCOPEPROBE_BTF", value_name = "FILE", default_value = "/sys/kernel/btf/vmlinux")]
    btf: PathBuf,
    /// Attach type of the programs [default: the first one that works].
    #[arg(long, env = "SCOPEPROBE_ATTACH", value_enum)]
    attach: Option<Attach>,
    /// Maximum number of flows in the kernel's table; connections of further flows count as lost. Lower if the agent's
    /// memory limit does not suffice: a flow takes about 1.3 KiB, everything else 32 MiB.
    #[arg(long, env = "SCOPEPROBE_MAX_FLOWS", value_name = "N", default_value_t = 65_536,
          value_parser = clap::value_parser!(u32).range(64..=1_048_576))]
    max_flows: u32,
    /// Don't make a connection of the agent's own at the start to see whether it is captured. For cgroup roots that
    /// the agent itself isn't below.
    #[arg(long, env = "SCOPEPROBE_SKIP_SELF_TEST")]
    skip_self_test: bool,
    /// Reads DNS responses to this node's sockets, to name external addresses.
    #[arg(long, env = "SCOPEPROBE_DNS_NAMES", value_name = "BOOL", default_value_t = true, action = ArgAction::Set)]
    dns_names: bool,
    /// CPU budget of the capture without eBPF, in thousandths of a core; the agent scans less often if it does not
    /// suffice.
    #[arg(long, env = "SCOPEPROBE_FALLBACK_CPU_BUDGET", value_name = "MILLICORES", default_value_t = 50,
          value_parser = clap::value_parser!(u32).range(5..=2000))]
    fallback_cpu_budget: u32,
}

impl CaptureArguments {
    /// The directory of the node's cgroup v2 root.
    ///
    /// # Errors
    /// If there is no cgroup v2 at the usual places.
    pub fn cgroup_root(&self) -> Result<PathBuf, Refusal> {
        let Some(root) = &self.cgroup_root else {
            let mount = CGROUP_MOUNTS.map(Path::new).into_iter().find(|mount| mount.is_dir());
            return find_cgroup_root(mount.unwrap_or(Path::new(CGROUP_MOUNTS[1])));
        };
        find_cgroup_root(root)
    }

    /// Returns the settings of the capture.
    ///
    /// # Errors
    /// See [`CaptureArguments::cgroup_root`].
    pub fn settings(&self) -> Result<Settings, Refusal> {
        Ok(Settings { cgroup_root: self.cgroup_root()?, ..self.settings_without_root() })
    }

    fn settings_without_root(&self) -> Settings {
        let budget = self.budget();
        Settings {
            btf_path: self.btf.clone(),
            attach: self.attach,
            max_flows: budget.flows,
            max_conversations: budget.conversations,
            max_tracked_sockets: budget.conversations,
            shortage: budget.shortage,
            self_test: !self.skip_self_test,
            dns_names: self.dns_names,
            ..Settings::default()
        }
    }

    /// Returns the settings of the capture without eBPF.
    ///
    /// # Errors
    /// See [`CaptureArguments::cgroup_root`].
    pub fn fallback_settings(&self) -> Result<FallbackSettings, Refusal> {
        Ok(FallbackSettings { cgroup_root: self.cgroup_root()?, ..self.fallback_settings_without_root() })
    }

    fn fallback_settings_without_root(&self) -> FallbackSettings {
        let budget = self.budget();
        FallbackSettings {
            cpu_millicores: self.fallback_cpu_budget,
            max_flows: budget.flows as usize,
            shortage: budget.shortage,
            ..FallbackSettings::default()
        }
    }

    /// Returns the settings, also if the cgroup root is not found: the capture reports that error.
    #[must_use]
    pub fn settings_to_probe(&self) -> Settings {
        Settings { cgroup_root: self.root_to_probe(), ..self.settings_without_root() }
    }

    /// As [`CaptureArguments::settings_to_probe`], of the capture without eBPF.
    #[must_use]
    pub fn fallback_settings_to_probe(&self) -> FallbackSettings {
        FallbackSettings { cgroup_root: self.root_to_probe(), ..self.fallback_settings_without_root() }
    }

    fn root_to_probe(&self) -> PathBuf {
        let found = self.cgroup_root().ok().or_else(|| self.cgroup_root.clone());
        found.unwrap_or_else(|| PathBuf::from(CGROUP_MOUNTS[1]))
    }

    /// Returns the maximum number of flows in the agent's memory: twice the kernel's.
    #[must_use]
    pub fn remembered_flows(&self) -> usize {
        2 * self.budget().flows as usize
    }

    /// Found anew each time: the limit of a running pod can be changed.
    fn budget(&self) -> Budget {
        Budget::of_this_process(self.max_flows)
    }
}

/// Reads a positive duration such as `500ms`, `1s` or `1h 30m`.
///
/// # Errors
/// If it is none.
pub fn duration(text: &str) -> Result<std::time::Duration, String> {
    let duration: SignedDuration =
        text.parse().map_err(|error| format!("{error}; write a duration such as 500ms, 1s or 1h30m"))?;
    std::time::Duration::try_from(duration)
        .ok()
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| "it must be greater than zero".to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1s"), Ok(Duration::from_secs(1)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_mins(90)));
        for wrong in ["", "5", "-1s", "0s", "soon"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
