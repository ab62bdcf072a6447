//! The output of one guest: of `guest-init`, and of `guest-tests` around libtest's output.

use std::{collections::BTreeSet, fmt};

/// The end of a guest's run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All of its parts succeeded.
    Passed,
    /// A part failed.
    Failed,
    /// The guest panicked, hung or ran out of time.
    Unfinished,
}

/// The result of one test in one guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It passed.
    Passed,
    /// It failed.
    Failed,
    /// It recorded a prerequisite that the guest lacks.
    Skipped,
    /// Its line ends otherwise: the guest stopped in this test, or another message came between.
    Unclear,
}

impl Verdict {
    /// Returns the verdict as the report shows it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "ok",
            Self::Failed => "FAILED",
            Self::Skipped => "skipped",
            Self::Unclear => "unclear",
        }
    }
}

/// A program of tests, and the pass that runs it: `root`, or another name for the DaemonSet's capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Title<'a> {
    /// The program's name.
    pub program: &'a str,
    /// The pass.
    pub pass: &'a str,
}

impl fmt::Display for Title<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let capabilities = if self.pass == "root" { "as root" } else { "with the capabilities of the DaemonSet alone" };
        write!(f, "{}, {capabilities}", self.program)
    }
}

/// The tests of one program and pass.
#[derive(Debug)]
pub struct Section<'a> {
    /// Program and pass.
    pub title: Title<'a>,
    /// Names and verdicts, in the order of the output.
    pub tests: Vec<(&'a str, Verdict)>,
}

impl<'a> Section<'a> {
    /// Returns the verdict of a test that ran.
    pub fn verdict(&self, test: &str) -> Option<Verdict> {
        self.tests.iter().find(|(name, _)| *name == test).map(|(_, verdict)| *verdict)
    }

    /// Stores the last verdict of a test.
    fn record(&mut self, test: &'a str, verdict: Verdict) {
        match self.tests.iter_mut().find(|(name, _)| *name == test) {
            Some((_, old)) => *old = verdict,
            None => self.tests.push((test, verdict)),
        }
    }
}

/// The results on a console.
#[derive(Debug)]
pub struct Console<'a> {
    /// The release of the kernel that started.
    pub release: Option<&'a str>,
    /// The end of the run.
    pub outcome: Outcome,
    /// The tests, in the order of the output.
    pub sections: Vec<Section<'a>>,
    /// Reasons of skipped tests.
    pub skip_reasons: BTreeSet<&'a str>,
    /// Lines of the comparison of captures.
    pub comparison: Vec<&'a str>,
}

impl<'a> Console<'a> {
    /// Reads a console. Lines of other programs count as nothing.
    pub fn parse(text: &'a str) -> Self {
        let mut console = Self {
            release: None,
            outcome: Outcome::Unfinished,
            sections: Vec::new(),
            skip_reasons: BTreeSet::new(),
            comparison: Vec::new(),
        };
        let mut position = Position::default();
        for line in text.lines() {
            console.read(line, &mut position);
        }
        console
    }

    fn read(&mut self, line: &'a str, position: &mut Position<'a>) {
        if let Some(ready) = line.strip_prefix("guest: ready after ") {
            self.release = ready.rsplit_once(" with ").map(|(_, release)| release);
        } else if let Some(code) = line.strip_prefix("guest: exit ") {
            self.outcome = if code == "0" { Outcome::Passed } else { Outcome::Failed };
        } else if let Some(compared) = line.strip_prefix("parity: ") {
            self.comparison.push(compared);
        } else if let Some(begin) = line.strip_prefix("guest-tests: begin ") {
            *position = Position { section: self.section(begin), output_of: None };
        } else if line.starts_with("guest-tests: end ") {
            *position = Position::default();
        } else if let Some(section) = position.section {
            self.read_test(line, section, &mut position.output_of);
        }
    }

    /// Reads a line of a program of tests.
    fn read_test(&mut self, line: &'a str, section: usize, output_of: &mut Option<&'a str>) {
        let Some(section) = self.sections.get_mut(section) else { return };
        if let Some((test, verdict)) = finished_test(line) {
            section.record(test, verdict);
        } else if let Some(test) = heading_of_output(line) {
            *output_of = Some(test);
        } else if let Some(reason) = line.strip_prefix("skipped: ")
            && let Some(test) = output_of.take()
        {
            section.record(test, Verdict::Skipped);
            self.skip_reasons.insert(reason);
        }
    }

    /// Returns the index of a section, which a second run of its program continues.
    fn section(&mut self, begin: &'a str) -> Option<usize> {
        let mut words = begin.split_whitespace();
        let title = Title { program: words.next()?, pass: words.next()? };
        let known = self.sections.iter().position(|section| section.title == title);
        Some(known.unwrap_or_else(|| {
            self.sections.push(Section { title, tests: Vec::new() });
            self.sections.len() - 1
        }))
    }
}

/// The section that a line belongs to, by its index, and the test that the line is output of.
#[derive(Default)]
struct Position<'a> {
    section: Option<usize>,
    output_of: Option<&'a str>,
}

/// Reads `test NAME ... VERDICT`. Ignored tests did not run.
fn finished_test(line: &str) -> Option<(&str, Verdict)> {
    let (name, rest) = line.strip_prefix("test ")?.split_once(" ... ")?;
    let verdict = match rest.split_whitespace().next() {
        Some("ok") => Verdict::Passed,
        Some("FAILED") => Verdict::Failed,
        Some(word) if word.starts_with("ignored") => return None,
        _ => Verdict::Unclear,
    };
    is_name(name).then_some((name, verdict))
}

/// Reads the heading of a test's output, `---- NAME stdout ----`.
fn heading_of_output(line: &str) -> Option<&str> {
    line.strip_prefix("---- ")?.strip_suffix(" stdout ----").filter(|name| is_name(name))
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && !text.contains(' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = include_str!("example.console");

    #[test]
    fn console_has_kernel_outcome_and_sections() {
        let console = Console::parse(CONSOLE);
        assert_eq!(console.release, Some("5.10.0-46-cloud-amd64"));
        assert_eq!(console.outcome, Outcome::Failed);
        let titles: Vec<_> = console.sections.iter().map(|section| section.title.to_string()).collect();
        let expected = ["capture_kernel, as root", "capture_kernel, with the capabilities of the DaemonSet alone"];
        assert_eq!(titles, expected);
        assert_eq!(console.comparison, ["capture    connections", "SockOps    400"]);
    }

    #[test]
    fn tests_have_their_verdicts() {
        let console = Console::parse(CONSOLE);
        let tests = &console.sections[0].tests;
        let expected = [
            ("crowds::a_node_with_very_many_sockets_is_captured_exactly", Verdict::Passed),
            ("sock_ops::a_server_that_listens_for_mptcp_is_a_server", Verdict::Skipped),
            ("sock_ops::refused_attempts_are_counted_at_the_client_alone", Verdict::Failed),
        ];
        assert_eq!(tests, &expected, "neither ignored tests nor lines outside of a section");
        assert_eq!(console.skip_reasons, BTreeSet::from(["the kernel has no MPTCP (mptcp)"]));
    }

    #[test]
    fn test_without_end_is_unclear() {
        let console = Console::parse(CONSOLE);
        let section = &console.sections[1];
        assert_eq!(section.verdict("tp_btf::attempts_from_before"), Some(Verdict::Unclear));
        assert_eq!(section.verdict("tp_btf::never_began"), None);
    }

    #[test]
    fn console_without_exit_is_unfinished() {
        assert_eq!(Console::parse("guest: ready after 1 s with 6.1\n").outcome, Outcome::Unfinished);
        assert_eq!(Console::parse("guest: exit 0\n").outcome, Outcome::Passed);
    }

    #[test]
    fn reason_outside_of_a_tests_output_is_no_skip() {
        let console = Console::parse("guest-tests: begin a root\ntest b ... ok\nskipped: c\n");
        assert_eq!(console.sections[0].verdict("b"), Some(Verdict::Passed));
        assert!(console.skip_reasons.is_empty());
    }
}
