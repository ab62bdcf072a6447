//! The parts of a kernel's release that mean the same everywhere.

/// `5.14.0-570.32.1.el9_6.x86_64`: version 5.14, build 570, and the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Release<'a> {
    pub major: u32,
    pub minor: u32,
    /// The patch level; none where it is no number of its own.
    pub patch: Option<u32>,
    /// The distribution's own number: what follows the first dash, where that is a number.
    pub build: Option<u32>,
    /// What follows that.
    pub rest: &'a str,
}

impl<'a> Release<'a> {
    /// None where it does not begin with two numbers.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let (major, rest) = text.trim().split_once('.')?;
        let (minor, rest) = number(rest);
        let (major, minor) = (major.parse().ok()?, minor?);
        let (patch, rest) = rest.strip_prefix('.').map_or((None, rest), number);
        let (build, rest) = rest.strip_prefix('-').map_or((None, rest), number);
        Some(Self { major, minor, patch, build, rest })
    }
}

/// The number at the beginning, if there is one, and what follows it.
fn number(text: &str) -> (Option<u32>, &str) {
    let rest = text.trim_start_matches(|letter: char| letter.is_ascii_digit());
    (text[..text.len() - rest.len()].parse().ok(), rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Parts<'a> = (u32, u32, Option<u32>, Option<u32>, &'a str);

    fn parts(text: &str) -> Option<Parts<'_>> {
        Release::parse(text).map(|it| (it.major, it.minor, it.patch, it.build, it.rest))
    }

    #[test]
    fn releases_have_parts() {
        assert_eq!(parts("5.14.0-570.32.1.el9_6.x86_64"), Some((5, 14, Some(0), Some(570), ".32.1.el9_6.x86_64")));
        assert_eq!(parts("4.4.0-119-generic"), Some((4, 4, Some(0), Some(119), "-generic")));
        assert_eq!(parts("6.12.40-talos"), Some((6, 12, Some(40), None, "talos")));
        assert_eq!(parts("6.12.41+deb13-amd64"), Some((6, 12, Some(41), None, "+deb13-amd64")));
        assert_eq!(parts("6.18-rc1"), Some((6, 18, None, None, "rc1")));
        assert_eq!(parts("6.1\n"), Some((6, 1, None, None, "")));
    }

    #[test]
    fn what_does_not_begin_with_two_numbers_is_none() {
        for text in ["", "6", "6.", ".1", "six.one", "-1.2", "99999999999.1", "1.99999999999"] {
            assert_eq!(parts(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn anything_can_be_read(text in any::<String>()) {
            Release::parse(&text);
        }

        #[test]
        fn numbers_come_back(major in any::<u32>(), minor in any::<u32>(), patch in any::<u32>(), build in any::<u32>(),
                             rest in "([-.+_a-z][-.+_a-z0-9]{0,20})?") {
            let text = format!("{major}.{minor}.{patch}-{build}{rest}");
            prop_assert_eq!(parts(&text), Some((major, minor, Some(patch), Some(build), rest.as_str())));
        }
    }
}
