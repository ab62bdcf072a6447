//! Platforms of programs: their names, and the compilers that make programs for them on this machine.

use std::{
    env::consts::ARCH,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::bail;
use clap::ValueEnum;
use object::elf::{EM_AARCH64, EM_X86_64};

use crate::workspace::{self, Workspace};

/// Arguments of `cargo xtask cargo`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Platform of what cargo builds.
    #[arg(long, value_enum)]
    platform: Platform,
    /// Subcommand of cargo.
    subcommand: String,
    /// Arguments of the subcommand.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Runs cargo.
pub fn run(workspace: &Workspace, arguments: &Arguments) -> anyhow::Result<()> {
    let mut cargo = arguments.platform.cargo(workspace, &arguments.subcommand)?;
    workspace::run(cargo.args(&arguments.rest))
}

/// A platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Platform {
    /// Processors of AMD and Intel, with 64 bits.
    #[value(name = "linux/amd64", alias = "amd64")]
    Amd64,
    /// Processors of ARM, with 64 bits.
    #[value(name = "linux/arm64", alias = "arm64")]
    Arm64,
}

impl Platform {
    /// Returns this machine's platform.
    pub fn host() -> Option<Self> {
        [Self::Amd64, Self::Arm64].into_iter().find(|platform| platform.processor() == ARCH)
    }

    /// Returns the name of the processor in images, which is Go's.
    pub const fn architecture(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// Returns the name in images and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "linux/amd64",
            Self::Arm64 => "linux/arm64",
        }
    }

    /// Returns the target by which rustc knows it.
    pub fn target(self) -> String {
        format!("{}-unknown-linux-gnu", self.processor())
    }

    /// Returns the processor in the header of a program (`e_machine`).
    pub const fn machine(self) -> u16 {
        match self {
            Self::Amd64 => EM_X86_64,
            Self::Arm64 => EM_AARCH64,
        }
    }

    /// Returns the name of a program of GCC or of the binutils that makes programs for this platform.
    pub fn tool(self, name: &str) -> String {
        if Self::host() == Some(self) { name.to_owned() } else { format!("{}-linux-gnu-{name}", self.processor()) }
    }

    /// Returns the compiler to use instead of rustup's: Debian's, if rustup has no libraries for the platform.
    pub fn compiler(self, workspace: &Workspace) -> anyhow::Result<Option<PathBuf>> {
        let target = self.target();
        let mut rustc = workspace.command("rustc");
        let libraries = workspace::output(rustc.args(["--print", "target-libdir", "--target", &target]))?;
        if Path::new(&libraries).exists() {
            return Ok(None);
        }
        let debian = workspace.cache()?.join("rust-arm64/rustc");
        if self == Self::Arm64 && debian.exists() {
            return Ok(Some(debian));
        }
        bail!("Rust's libraries for {target} are missing; run `rustup target add {target}` or `scripts/setup arm64`");
    }

    /// Returns a command of cargo that builds for this platform.
    pub fn cargo(self, workspace: &Workspace, subcommand: &str) -> anyhow::Result<Command> {
        let mut cargo = workspace.command("cargo");
        cargo.args([subcommand, "--target", &self.target()]);
        if let Some(compiler) = self.compiler(workspace)? {
            cargo.env("RUSTC", compiler);
        }
        if Self::host() != Some(self) {
            let target = self.target().to_uppercase().replace('-', "_");
            cargo.env(format!("CARGO_TARGET_{target}_LINKER"), self.tool("gcc"));
        }
        if self == Self::Arm64 {
            // Kernels for arm64 have pages of 4, 16 or 64 KiB. The allocator works with those that it is built for, and with
            // smaller ones.
            cargo.env("JEMALLOC_SYS_WITH_LG_PAGE", "16");
        }
        Ok(cargo)
    }

    /// Returns the name of the processor in targets and in names of compilers.
    const fn processor(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_images_and_of_compilers() {
        assert_eq!(Platform::from_str("linux/arm64", false), Ok(Platform::Arm64));
        assert_eq!(Platform::from_str("amd64", false), Ok(Platform::Amd64));
        assert_eq!(Platform::Arm64.target(), "aarch64-unknown-linux-gnu");
        assert_eq!(Platform::Amd64.architecture(), "amd64");
    }

    #[test]
    fn tools_of_a_foreign_platform_have_its_name() {
        for platform in [Platform::Amd64, Platform::Arm64] {
            let foreign = format!("{}-linux-gnu-strip", platform.processor());
            let expected = if Platform::host() == Some(platform) { "strip".to_owned() } else { foreign };
            assert_eq!(platform.tool("strip"), expected);
        }
    }
}
