//! Parser of kernel releases, as `uname -r` and `status.nodeInfo.kernelVersion` write them.

use std::fmt;

/// Kernel release, with the parts that mean the same in every distribution.
///
/// `5.14.0-570.32.1.el9_6.x86_64` is version 5.14.0, build 570, flavour `.32.1.el9_6.x86_64`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    text: String,
    version: (u32, u32),
    patch: Option<u32>,
    build: Option<u32>,
    /// Byte of `text` at which the flavour begins.
    flavour: usize,
}

/// A release that does not begin with a version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("kernel release {text:?} does not begin with a version such as 5.10; only an attempt shows its features")]
pub struct ParseReleaseError {
    text: String,
}

impl Release {
    /// Parses a release.
    ///
    /// # Errors
    /// If the text does not begin with two numbers that a dot separates.
    pub fn parse(text: &str) -> Result<Self, ParseReleaseError> {
        let text = text.trim();
        Self::read(text).ok_or_else(|| ParseReleaseError { text: text.to_owned() })
    }

    fn read(text: &str) -> Option<Self> {
        let (major, rest) = number(text);
        let (minor, rest) = number(rest.strip_prefix('.')?);
        let (patch, rest) = rest.strip_prefix('.').map_or((None, rest), number);
        let (build, rest) = rest.strip_prefix('-').map_or((None, rest), number);
        Some(Self { text: text.to_owned(), version: (major?, minor?), patch, build, flavour: text.len() - rest.len() })
    }

    /// Returns the release as it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Major and minor version.
    #[must_use]
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// Patch level; `None` where the release has none that is a number.
    #[must_use]
    pub fn patch(&self) -> Option<u32> {
        self.patch
    }

    /// Number that the distribution gives its build: the one after the first dash, if there is one.
    #[must_use]
    pub fn build(&self) -> Option<u32> {
        self.build
    }

    /// Text after the build, or after the version where there is no build.
    #[must_use]
    pub fn flavour(&self) -> &str {
        &self.text[self.flavour..]
    }

    /// Returns whether the kernel is one of RHEL 8, or of a distribution that rebuilds it: 4.18 with many later
    /// features.
    #[must_use]
    pub fn is_rhel_8(&self) -> bool {
        let is_el8 = |part: &str| part == "el8" || part.starts_with("el8_");
        self.version == (4, 18) && self.flavour().split('.').any(is_el8)
    }
}

impl fmt::Display for Release {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// Splits the number off that the text begins with.
fn number(text: &str) -> (Option<u32>, &str) {
    let rest = text.trim_start_matches(|letter: char| letter.is_ascii_digit());
    (text[..text.len() - rest.len()].parse().ok(), rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Parts<'a> = (u32, u32, Option<u32>, Option<u32>, &'a str);

    fn parts(release: &Release) -> Parts<'_> {
        let (major, minor) = release.version();
        (major, minor, release.patch(), release.build(), release.flavour())
    }

    #[test]
    fn release_parser_finds_parts() {
        #[rustfmt::skip]
        let cases = [
            ("5.14.0-570.32.1.el9_6.x86_64", (5, 14, Some(0), Some(570), ".32.1.el9_6.x86_64")),
            ("4.18.0-305.28.1.rt7.100.el8_4.x86_64", (4, 18, Some(0), Some(305), ".28.1.rt7.100.el8_4.x86_64")),
            ("4.4.0-119-generic", (4, 4, Some(0), Some(119), "-generic")),
            ("6.8.0-1031-azure", (6, 8, Some(0), Some(1031), "-azure")),
            ("5.4.17-2136.345.4.el8uek.x86_64", (5, 4, Some(17), Some(2136), ".345.4.el8uek.x86_64")),
            ("6.1.147-172.266.amzn2023.aarch64", (6, 1, Some(147), Some(172), ".266.amzn2023.aarch64")),
            ("6.4.0-150600.23.60-default", (6, 4, Some(0), Some(150_600), ".23.60-default")),
            ("6.12.40-talos", (6, 12, Some(40), None, "talos")),
            ("6.12.41+deb13-amd64", (6, 12, Some(41), None, "+deb13-amd64")),
            ("6.6.87+", (6, 6, Some(87), None, "+")),
            ("5.10.198-android13-4-00050-g2a3b4c5d6e7f-ab11111111", (5, 10, Some(198), None, "android13-4-00050-g2a3b4c5d6e7f-ab11111111")),
            ("6.6.87.2-microsoft-standard-WSL2", (6, 6, Some(87), None, ".2-microsoft-standard-WSL2")),
            ("6.18-rc1", (6, 18, None, None, "rc1")),
            ("6.1\n", (6, 1, None, None, "")),
        ];
        for (text, expected) in cases {
            let release = Release::parse(text).unwrap();
            assert_eq!(parts(&release), expected, "{text:?}");
            assert_eq!(release.to_string(), text.trim());
        }
    }

    #[test]
    fn release_parser_names_text_without_version() {
        for text in ["", "6", "6.", ".1", "six.one", "-1.2", "+6.1", "99999999999.1", "1.99999999999", "6,1", "٦.١"] {
            let error = Release::parse(text).unwrap_err();
            let message = format!("kernel release {text:?} does not begin with a version such as 5.10; ");
            assert!(error.to_string().starts_with(&message), "{error}");
        }
    }

    #[test]
    fn rhel_8_is_recognised_by_version_and_distribution() {
        for text in ["4.18.0-80.el8.x86_64", "4.18.0-553.69.1.el8_10.x86_64", "4.18.0-305.28.1.rt7.100.el8_4.x86_64"] {
            assert!(Release::parse(text).unwrap().is_rhel_8(), "{text:?}");
        }
        for text in [
            "4.18.0-553-generic",
            "4.18.0-305",
            "4.18.20-500.fc28.x86_64",
            "4.17.0-553.el8.x86_64",
            "5.4.17-2136.345.4.el8uek.x86_64",
            "5.10.134-16.2.al8.x86_64",
        ] {
            assert!(!Release::parse(text).unwrap().is_rhel_8(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_release_exactly_if_it_begins_with_two_numbers(text in any::<String>()) {
            let mut numbers = text.trim().splitn(3, |letter: char| !letter.is_ascii_digit());
            let begins = [numbers.next(), numbers.next()].iter().all(|it| it.is_some_and(|it| it.parse::<u32>().is_ok()))
                && text.trim().trim_start_matches(|letter: char| letter.is_ascii_digit()).starts_with('.');
            prop_assert_eq!(Release::parse(&text).is_ok(), begins);
        }

        #[test]
        fn damaged_release_never_panics(text in "[0-9]{0,12}[.-]?[0-9]{0,12}[.+_ -]?[0-9a-z.+_é-]{0,20}") {
            if let Ok(release) = Release::parse(&text) {
                prop_assert!(text.trim().ends_with(release.flavour()));
                prop_assert_eq!(release.as_str(), text.trim());
            }
        }

        #[test]
        fn release_parser_returns_written_numbers(
            major in any::<u32>(), minor in any::<u32>(), patch in any::<u32>(), build in any::<u32>(),
            flavour in "([-.+_a-z][-.+_a-z0-9]{0,20})?",
        ) {
            let release = Release::parse(&format!("{major}.{minor}.{patch}-{build}{flavour}")).unwrap();
            prop_assert_eq!(parts(&release), (major, minor, Some(patch), Some(build), flavour.as_str()));
        }
    }
}
