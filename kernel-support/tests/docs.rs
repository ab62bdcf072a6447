//! Keeps the lists of reasons in the documentation equal to the reasons of the code.

use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path};

use scopeprobe_kernel_support::Reason;

fn read(page: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(page);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Words between backticks that look like reasons, in the row of a field of docs/api.md.
fn words_of_field(field: &str) -> BTreeSet<String> {
    let page = read("api.md");
    let start = format!("| `{field}` | string |");
    let row = page.lines().find(|line| line.starts_with(&start)).unwrap_or_else(|| panic!("no row of {field}"));
    let quoted = row[start.len()..].split('`').skip(1).step_by(2);
    quoted.filter(|word| word.starts_with(|letter: char| letter.is_ascii_uppercase())).map(str::to_owned).collect()
}

fn words(reasons: impl IntoIterator<Item = Reason>) -> BTreeSet<String> {
    reasons.into_iter().map(|reason| reason.to_string()).collect()
}

#[test]
fn api_reference_lists_the_reasons_of_a_node_probe() {
    // An agent does not report before it has started, and a release without version is a reason of the choice alone.
    let shown = Reason::ALL.into_iter().filter(|it| !matches!(it, Reason::Starting | Reason::KernelUnknown));
    assert_eq!(words_of_field("status.reason"), words(shown));
}

#[test]
fn api_reference_lists_the_reasons_of_the_choice() {
    use Reason::{ForcedByOverride, ForcedByProbe, KernelTooOld, KernelUnknown, KnownBadKernel, Supported};
    let shown = [Supported, KernelUnknown, KernelTooOld, KnownBadKernel, ForcedByProbe, ForcedByOverride];
    assert_eq!(words_of_field("status.choice.reason"), words(shown));
}

#[test]
fn page_about_modes_explains_each_reason() {
    let mut table = String::from("| reason | meaning, and what to do |\n|---|---|\n");
    for reason in Reason::ALL.into_iter().filter(|reason| *reason != Reason::Starting) {
        let _ = writeln!(table, "| `{reason}` | {} |", reason.sentence());
    }
    let page = read("modes.md");
    assert!(page.contains(&table), "docs/modes.md lacks this table:\n{table}");
}
