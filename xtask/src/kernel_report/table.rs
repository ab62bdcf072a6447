//! The results of several guests, side by side: a table for each program and pass, a row for each test, a column for each
//! guest.

use std::{collections::BTreeSet, fmt::Write as _};

use super::console::{Console, Section, Title};

/// The least width of a column: that of the longest verdict.
const COLUMN: usize = 7;

/// Returns the tables, the reasons of skipped tests, and the comparison of captures.
pub fn render(guests: &[(&str, &Console<'_>)]) -> String {
    let tables: Vec<_> = titles(guests).into_iter().map(|title| (title, tests(guests, title))).collect();
    let all = tables.iter().flat_map(|(_, tests)| tests);
    let first = all.map(|test| test.len()).max().unwrap_or_default();
    let width = guests.iter().map(|(name, _)| name.len()).max().unwrap_or_default().max(COLUMN);
    let line = |head: &str, cells: &mut dyn Iterator<Item = &str>| {
        cells.fold(format!("  {head:first$}"), |line, cell| line + &format!("  {cell:width$}")) + "\n"
    };
    let mut text = String::new();
    for (title, tests) in tables {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "\n{title}");
        text += &line("", &mut guests.iter().map(|(name, _)| *name));
        for test in tests {
            text += &line(test, &mut guests.iter().map(|(_, console)| cell(console, title, test)));
        }
    }
    text + &skip_reasons(guests) + &comparison(guests)
}

fn cell(console: &Console<'_>, title: Title<'_>, test: &str) -> &'static str {
    section(console, title).and_then(|section| section.verdict(test)).map_or("-", |verdict| verdict.as_str())
}

fn section<'a, 'b>(console: &'b Console<'a>, title: Title<'_>) -> Option<&'b Section<'a>> {
    console.sections.iter().find(|section| section.title == title)
}

fn titles<'a>(guests: &[(&str, &Console<'a>)]) -> Vec<Title<'a>> {
    let sections = guests.iter().flat_map(|(_, console)| &console.sections);
    sections.fold(Vec::new(), |mut titles, section| {
        if !titles.contains(&section.title) {
            titles.push(section.title);
        }
        titles
    })
}

/// Returns the tests that ran in any guest, in the order of the guests' output.
fn tests<'a>(guests: &[(&str, &Console<'a>)], title: Title<'_>) -> Vec<&'a str> {
    let mut seen = BTreeSet::new();
    let sections = guests.iter().filter_map(|(_, console)| section(console, title));
    sections.flat_map(|section| &section.tests).map(|(test, _)| *test).filter(|test| seen.insert(*test)).collect()
}

fn skip_reasons(guests: &[(&str, &Console<'_>)]) -> String {
    let reasons: BTreeSet<_> = guests.iter().flat_map(|(_, console)| &console.skip_reasons).collect();
    reasons.into_iter().fold(String::new(), |text, reason| text + "\nskipped: " + reason + "\n")
}

/// Returns the lines of all guests' comparisons. Guests have the heading in common.
fn comparison(guests: &[(&str, &Console<'_>)]) -> String {
    let mut seen = BTreeSet::new();
    let lines = guests.iter().flat_map(|(_, console)| &console.comparison).filter(|line| seen.insert(**line));
    let lines = lines.fold(String::new(), |text, line| text + line + "\n");
    if lines.is_empty() { lines } else { format!("\nside by side\n{lines}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_has_a_row_for_each_test_and_a_column_for_each_guest() {
        let old = "guest-tests: begin parity root\ntest a ... ok\ntest b::c ... FAILED\nguest-tests: end parity root 1\n\
                   guest-tests: begin parity daemonset\ntest a ... ok\n---- a stdout ----\nskipped: no BTF (btf)\n";
        let new = "guest-tests: begin parity root\ntest d ... ok\ntest a ... ok\n";
        let rendered = render(&[("5.10", &Console::parse(old)), ("7.x-no-ipv6", &Console::parse(new))]);
        let expected = [
            "",
            "parity, as root",
            "        5.10         7.x-no-ipv6",
            "  a     ok           ok         ",
            "  b::c  FAILED       -          ",
            "  d     -            ok         ",
            "",
            "parity, with the capabilities of the DaemonSet alone",
            "        5.10         7.x-no-ipv6",
            "  a     skipped      -          ",
            "",
            "skipped: no BTF (btf)",
            "",
        ];
        assert_eq!(rendered, expected.join("\n"));
    }

    #[test]
    fn comparison_has_the_common_heading_once() {
        let old = Console::parse("parity: capture  count\nparity: 5.10  3\n");
        let new = Console::parse("parity: capture  count\nparity: 7.x  3\n");
        let rendered = render(&[("5.10", &old), ("7.x", &new)]);
        assert_eq!(rendered, "\nside by side\ncapture  count\n5.10  3\n7.x  3\n");
    }

    #[test]
    fn nothing_comes_of_consoles_without_tests() {
        assert_eq!(render(&[("5.10", &Console::parse("guest: exit 1\n"))]), "");
    }
}
