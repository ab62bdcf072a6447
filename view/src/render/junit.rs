//! A difference as XML of `JUnit`, which continuous integration shows as failed tests.

use super::{Names, svg::escaped};
use crate::{
    diff::{Difference, Relation},
    map::{Edge, Map},
};

/// Returns a report with one test for each edge of the difference, which fails, and one for each other edge of the later map. Labels
/// name both maps.
#[must_use]
pub fn junit(before: &Map, after: &Map, difference: &Difference, labels: [&str; 2]) -> String {
    let (names_before, names_after) = (Names::of(before), Names::of(after));
    let is_same = |edge: &&Edge| difference.added.iter().chain(&difference.failing).all(|other| other.id != edge.id);
    let same: Vec<&Edge> = after.edges.iter().filter(is_same).collect();
    let [added, removed, failing] =
        [&difference.added, &difference.removed, &difference.failing].map(|edges| edges.iter().collect::<Vec<_>>());
    let failing_message = match difference.relation {
        Relation::Later => "the edge has further failed or pending attempts",
        Relation::OtherCluster => "the edge has failed or pending attempts there only",
    };
    let failures = added.len() + removed.len() + failing.len();
    let cases = [
        cases("removed", &removed, &names_before, Some("the edge is gone")),
        cases("added", &added, &names_after, Some("the edge is new")),
        cases("failing", &failing, &names_after, Some(failing_message)),
        cases("same", &same, &names_after, None),
    ];
    let gaps = |of: &str, map: &Map| {
        let line = |caveat: &String| escaped(&format!("incomplete: {of}: {caveat}")) + "\n";
        map.caveats.iter().map(line).collect::<Vec<_>>().concat()
    };
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n<testsuite name=\"kubectl scopeprobe diff\" tests=\"{}\" \
         failures=\"{failures}\">\n{}<system-err>{}{}</system-err>\n</testsuite>\n</testsuites>\n",
        failures + same.len(),
        cases.concat(),
        gaps(labels[0], before),
        gaps(labels[1], after),
    )
}

fn cases(class: &str, edges: &[&Edge], names: &Names<'_>, failure: Option<&str>) -> String {
    let case = |edge: &&Edge| {
        let name = format!("{} -> {}", names.name(&edge.client), edge.called_by_name(names.name(&edge.server)));
        let failure = failure.map(|message| format!("<failure message=\"{message}\"/>")).unwrap_or_default();
        format!("<testcase classname=\"{class}\" name=\"{}\">{failure}</testcase>\n", escaped(&name))
    };
    edges.iter().map(case).collect::<Vec<_>>().concat()
}
