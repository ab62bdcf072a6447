//! The images.

use std::{collections::BTreeMap, path::PathBuf};

use clap::ValueEnum;

use crate::{platform::Platform, workspace::Workspace};

/// Version of the programs, which is the workspace's.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// An image: one program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Image {
    Operator,
    Agent,
    Traffic,
    Pause,
}

impl Image {
    /// Returns the package of the program.
    pub const fn package(self) -> &'static str {
        match self {
            Self::Operator => "scopeprobe-operator",
            Self::Agent => "scopeprobe-agent",
            Self::Traffic => "scopeprobe-traffic",
            Self::Pause => "scopeprobe-pause",
        }
    }

    /// Returns the name of the program.
    pub const fn program(self) -> &'static str {
        match self {
            Self::Operator => "scopeprobe-operator",
            Self::Agent => "scopeprobe-agent",
            Self::Traffic => "traffic",
            Self::Pause => "pause",
        }
    }

    /// Returns the last part of the image's name.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Agent => "agent",
            Self::Traffic => "traffic",
            Self::Pause => "pause",
        }
    }

    /// Returns the names with their tags. Images for tests have no version. In the registry `localhost` no other party can
    /// publish an image.
    pub fn names(self) -> Vec<String> {
        match self {
            Self::Operator | Self::Agent => vec![format!("localhost/scopeprobe/{}:{VERSION}", self.title())],
            Self::Traffic => ["localhost/scopeprobe", "scopeprobe"].map(|it| format!("{it}/traffic:dev")).to_vec(),
            Self::Pause => vec!["scopeprobe/pause:dev".to_owned()],
        }
    }

    /// Returns whether users get it.
    pub const fn is_released(self) -> bool {
        matches!(self, Self::Operator | Self::Agent)
    }

    /// Returns user and group. The agent is root: its capabilities count for root alone. Tests' programs listen at any port.
    pub const fn user(self) -> &'static str {
        match self {
            Self::Operator => "65532:65532",
            Self::Agent | Self::Traffic | Self::Pause => "0:0",
        }
    }

    /// Returns the annotations of the Open Container Initiative. They have no time, so that equal programs make equal images.
    pub fn labels(self) -> BTreeMap<String, String> {
        let annotations = [
            ("title", format!("scopeprobe-{}", self.title())),
            ("version", VERSION.to_owned()),
            ("licenses", env!("CARGO_PKG_LICENSE").to_owned()),
        ];
        annotations.map(|(key, value)| (format!("org.opencontainers.image.{key}"), value)).into()
    }

    /// Returns the maximum size in bytes of the program of a released image.
    pub const fn maximum(self) -> Option<usize> {
        match self {
            Self::Operator => Some(25_000_000),
            Self::Agent => Some(15_000_000),
            Self::Traffic | Self::Pause => None,
        }
    }

    /// Returns the path of the archive for a platform; a relative one counts from the root.
    pub fn archive(self, workspace: &Workspace, platform: Platform) -> anyhow::Result<PathBuf> {
        let folder = match self {
            Self::Pause => workspace.cache()?.join("images"),
            _ => PathBuf::from("dist"),
        };
        // `dist/*.tar` are the images that run here.
        let folder = if Platform::host() == Some(platform) { folder } else { folder.join(platform.architecture()) };
        Ok(folder.join(format!("{}.tar", self.file())))
    }

    /// Returns the path of the archive of all platforms.
    pub fn index(self) -> PathBuf {
        PathBuf::from(format!("dist/oci/{}.tar", self.file()))
    }

    const fn file(self) -> &'static str {
        match self {
            Self::Operator => "scopeprobe-operator",
            Self::Agent => "scopeprobe-agent",
            Self::Traffic => "scopeprobe-traffic",
            Self::Pause => "pause",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_released_images_have_the_version() {
        assert_eq!(Image::Agent.names(), [format!("localhost/scopeprobe/agent:{VERSION}")]);
        assert_eq!(Image::Traffic.names()[0], "localhost/scopeprobe/traffic:dev");
    }
}
