//! Compares shown and real connections, one row per access path.

use std::{collections::BTreeSet, fmt};

use scopeprobe_tests::oracle::{EdgeCounts, EdgeName, Edges, cases};

use crate::paths::Case;

/// The whole comparison.
#[derive(Debug, Default)]
pub struct Table {
    /// Servers' and clients' objects have to show each edge.
    rows: Vec<cases::Case>,
    shown: usize,
    /// Shown edges that did not happen.
    invented: Vec<String>,
    wrong: Vec<String>,
}

impl Table {
    /// Compares what happened with what the clients' and the servers' objects show, but for edges at the ports `leads`.
    pub fn of(happened: &[(Case, Edges)], leads: &BTreeSet<u16>, (by_clients, by_servers): &(Edges, Edges)) -> Self {
        let mut table = Self::default();
        for (case, edges) in happened {
            if table.rows.last().is_none_or(|row| row.name != case.path.name) {
                table.rows.push(cases::Case::new(case.path.name));
            }
            for (name, counts) in edges {
                for (side, shown) in [("client", by_clients), ("server", by_servers)] {
                    table.compare(side, name, counts, shown.get(name));
                }
            }
        }
        for (side, shown) in [("client", by_clients), ("server", by_servers)] {
            let of_a_case = |name: &EdgeName| happened.iter().any(|(_, edges)| edges.contains_key(name));
            for (name, counts) in shown.iter().filter(|(name, _)| !is_lead(name, leads)) {
                table.shown += 1;
                if !of_a_case(name) {
                    let path =
                        happened.iter().find(|(case, _)| Some(case.port) == name.port).map(|(case, _)| case.path.name);
                    let row = table.rows.iter_mut().find(|row| Some(row.name.as_str()) == path);
                    row.into_iter().for_each(cases::Case::add_invented);
                    table.invented.push(format!("did not happen, at the {side}: {name:?} {counts:?}"));
                }
            }
        }
        table
    }

    fn compare(&mut self, side: &str, name: &EdgeName, counts: &EdgeCounts, shown: Option<&EdgeCounts>) {
        let Some(row) = self.rows.last_mut() else { return };
        let sums = |of: &EdgeCounts| (of.opened, of.active, of.failed, of.sent, of.received);
        row.add(shown.map(|shown| {
            (sums(shown) == sums(counts), (&shown.clients, &shown.servers) == (&counts.clients, &counts.servers))
        }));
        let Some(shown) = shown else {
            self.wrong.push(format!("missing, at the {side}: {name:?} {counts:?}"));
            return;
        };
        if shown != counts {
            self.wrong.push(format!("wrong, at the {side}: {name:?}\n    happened {counts:?}\n    shown    {shown:?}"));
        }
    }

    /// Returns whether everything is shown exactly, and nothing else.
    pub fn is_perfect(&self) -> bool {
        self.wrong.is_empty() && self.invented.is_empty()
    }
}

fn is_lead(name: &EdgeName, leads: &BTreeSet<u16>) -> bool {
    name.port.iter().chain(name.service.iter().map(|(_, port)| port)).any(|port| leads.contains(port))
}

impl fmt::Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "{}", cases::HEAD)?;
        for row in &self.rows {
            writeln!(formatter, "{row}")?;
        }
        let right = self.shown - self.invented.len();
        writeln!(formatter, "precision: {right} of {} edges that are shown did happen", self.shown)?;
        for line in self.wrong.iter().chain(&self.invented).take(40) {
            writeln!(formatter, "{line}")?;
        }
        Ok(())
    }
}
