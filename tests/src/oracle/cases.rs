//! Results by situation, one table row each.

use std::{collections::BTreeMap, fmt};

/// Column names of [`Case`], in Markdown.
pub const HEAD: &str =
    "| case | edges | recall | precision | counts exact | names right |\n| --- | ---: | ---: | ---: | ---: | ---: |";

/// Result of one situation. Displayed as a table row in Markdown.
#[derive(Clone, Debug, Default)]
pub struct Case {
    /// Name of the situation.
    pub name: String,
    happened: usize,
    shown: usize,
    invented: usize,
    exact: usize,
    named: usize,
}

impl Case {
    /// Returns a case without results.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// Edges by what they join, as they happened and as they are shown. `counts` and `names` of an edge: what has to be
    /// equal beside.
    #[must_use]
    pub fn of<Edge: Ord, Facts, Counts: PartialEq, Names: PartialEq>(
        name: &str,
        happened: &BTreeMap<Edge, Facts>,
        shown: &BTreeMap<Edge, Facts>,
        counts: impl Fn(&Facts) -> Counts,
        names: impl Fn(&Facts) -> Names,
    ) -> Self {
        let mut case = Self::new(name);
        for (edge, facts) in happened {
            let shown = shown.get(edge).map(|shown| (counts(shown) == counts(facts), names(shown) == names(facts)));
            case.add(shown);
        }
        case.invented = shown.keys().filter(|edge| !happened.contains_key(edge)).count();
        case
    }

    /// One more edge that happened; where it is shown, whether with the right counts, and with the right names.
    pub fn add(&mut self, shown: Option<(bool, bool)>) {
        self.happened += 1;
        let Some((exact, named)) = shown else { return };
        self.shown += 1;
        self.exact += usize::from(exact);
        self.named += usize::from(named);
    }

    /// One more edge that is shown and did not happen.
    pub fn add_invented(&mut self) {
        self.invented += 1;
    }
}

impl fmt::Display for Case {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |count: usize, of: usize| format!("{} %", 100 * count / of.max(1));
        let (recall, exact) = (part(self.shown, self.happened), part(self.exact, self.happened));
        let (named, precision) = (part(self.named, self.happened), part(self.shown, self.shown + self.invented));
        write!(formatter, "| {} | {} | {recall} | {precision} | {exact} | {named} |", self.name, self.happened)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edges(of: &[(&'static str, (u64, &'static str))]) -> BTreeMap<&'static str, (u64, &'static str)> {
        of.iter().copied().collect()
    }

    #[test]
    fn each_column_has_its_own_fault() {
        let happened =
            edges(&[("right", (1, "a")), ("miscounted", (2, "b")), ("misnamed", (3, "c")), ("missing", (4, "d"))]);
        let shown =
            edges(&[("right", (1, "a")), ("miscounted", (9, "b")), ("misnamed", (3, "x")), ("invented", (1, "e"))]);
        let case = Case::of("all faults", &happened, &shown, |edge| edge.0, |edge| edge.1);
        assert_eq!(case.to_string(), "| all faults | 4 | 75 % | 75 % | 50 % | 50 % |");
        let perfect = Case::of("none", &happened, &happened, |edge| edge.0, |edge| edge.1);
        assert_eq!(perfect.to_string(), "| none | 4 | 100 % | 100 % | 100 % | 100 % |");
    }
}
