//! What is shown, compared with what happened, a line for each way in.

use std::{collections::BTreeSet, fmt};

use scopeprobe_tests::oracle::{EdgeCounts, EdgeName, Edges};

use crate::ways::Case;

/// How well one way in is shown.
#[derive(Debug, Default)]
struct Row {
    way: &'static str,
    /// Edges that happened, as clients' and as servers' objects have to show them.
    happened: usize,
    shown: usize,
    /// Of those shown, with the counts that the programs have.
    exact: usize,
    /// Of those shown, with the right pods and containers at both ends.
    named: usize,
}

/// The whole comparison.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Row>,
    shown: usize,
    /// What is shown and did not happen.
    invented: Vec<String>,
    wrong: Vec<String>,
}

impl Table {
    /// Compares what happened with what the clients' and the servers' objects show, but for edges at the ports `leads`.
    pub fn of(happened: &[(Case, Edges)], leads: &BTreeSet<u16>, (by_clients, by_servers): &(Edges, Edges)) -> Self {
        let mut table = Self::default();
        for (case, edges) in happened {
            if table.rows.last().is_none_or(|row| row.way != case.way.name) {
                table.rows.push(Row { way: case.way.name, ..Row::default() });
            }
            for (name, counts) in edges {
                for (side, shown) in [("client", by_clients), ("server", by_servers)] {
                    table.compare(side, name, counts, shown.get(name));
                }
            }
        }
        for (side, shown) in [("client", by_clients), ("server", by_servers)] {
            let of_a_case = |name: &EdgeName| happened.iter().any(|(_, edges)| edges.contains_key(name));
            for (name, counts) in shown.iter().filter(|(name, _)| !leads.contains(&name.port)) {
                table.shown += 1;
                if !of_a_case(name) {
                    table.invented.push(format!("did not happen, at the {side}: {name:?} {counts:?}"));
                }
            }
        }
        table
    }

    fn compare(&mut self, side: &str, name: &EdgeName, counts: &EdgeCounts, shown: Option<&EdgeCounts>) {
        let Some(row) = self.rows.last_mut() else { return };
        row.happened += 1;
        let Some(shown) = shown else {
            self.wrong.push(format!("missing, at the {side}: {name:?} {counts:?}"));
            return;
        };
        row.shown += 1;
        let sums = |of: &EdgeCounts| (of.opened, of.active, of.failed, of.sent, of.received);
        row.exact += usize::from(sums(shown) == sums(counts));
        row.named += usize::from((&shown.clients, &shown.servers) == (&counts.clients, &counts.servers));
        if shown != counts {
            self.wrong.push(format!("wrong, at the {side}: {name:?}\n    happened {counts:?}\n    shown    {shown:?}"));
        }
    }

    /// Whether all that happened is shown as it happened, and nothing else.
    pub fn is_perfect(&self) -> bool {
        self.wrong.is_empty() && self.invented.is_empty()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "| way in | edges | recall | counts exact | pods and containers right |")?;
        writeln!(formatter, "| --- | ---: | ---: | ---: | ---: |")?;
        for row in &self.rows {
            let part = |count: usize| format!("{} %", 100 * count / row.happened.max(1));
            let (recall, exact, named) = (part(row.shown), part(row.exact), part(row.named));
            writeln!(formatter, "| {} | {} | {recall} | {exact} | {named} |", row.way, row.happened)?;
        }
        let right = self.shown - self.invented.len();
        writeln!(formatter, "precision: {right} of {} edges that are shown did happen", self.shown)?;
        for line in self.wrong.iter().chain(&self.invented).take(40) {
            writeln!(formatter, "{line}")?;
        }
        Ok(())
    }
}
