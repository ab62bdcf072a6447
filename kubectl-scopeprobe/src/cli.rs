//! The command line.

use std::{ffi::OsString, path::PathBuf};

use anyhow::{Result, anyhow};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use crds::TransportProtocol;
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::{SignedDuration, Timestamp},
};
use view::{
    Map,
    filter::Filter,
    level::{self, Level},
    reach, render,
};

use crate::{diff::Compared, nodes::NodeSource, source::Source, ui};

/// Commands that answer common questions.
const QUESTIONS: &str = "\
Questions:
  Who calls redis?                       kubectl scopeprobe table -A --to redis
  What does cart call outside?           kubectl scopeprobe external -A --from cart
  What fails, and when did it last?      kubectl scopeprobe table -A --failed -o wide
  What is new since yesterday?           kubectl scopeprobe table -A --new-since 24h -o wide
  What may break if cart does?           kubectl scopeprobe blast-radius -A cart
  Which Services have no callers?        kubectl scopeprobe unused -A --kind Service
  Which pods take part in calls?         kubectl scopeprobe explain -A cart
  How was an edge observed?              kubectl scopeprobe explain -A ID    (ID: table -o wide)
  Are the numbers complete?              kubectl scopeprobe why --incomplete
  Why is a node's coverage below 100%?   kubectl scopeprobe why NODE
  What differs between two clusters?     kubectl scopeprobe diff -A --context A --context B
  What differs between two commits?      kubectl scopeprobe diff --ref A --ref B FOLDER";

/// Shows who talks to whom in a cluster, from the Topology objects of ScopeProbe.
///
/// It needs the right to list topologies.scopeprobe.io, which the roles view, edit and admin of a namespace include.
#[derive(Debug, Parser)]
#[command(name = "kubectl-scopeprobe", bin_name = "kubectl scopeprobe", version, after_help = QUESTIONS)]
pub struct Cli {
    /// Command to run.
    #[command(subcommand)]
    pub command: Command,
}

/// Command to run.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Lists edges, one per line.
    Table {
        #[command(flatten)]
        source: Source,
        #[command(flatten)]
        selection: Selection,
        #[command(flatten)]
        columns: Columns,
    },
    /// Follows the edges of a cluster in the terminal: sort, filter, details. `?` lists the keys.
    Watch {
        #[command(flatten)]
        source: Source,
        #[command(flatten)]
        selection: Selection,
    },
    /// Draws the map.
    Graph {
        #[command(flatten)]
        source: Source,
        #[command(flatten)]
        selection: Selection,
        /// Format of the picture.
        #[arg(short, long, value_enum, default_value_t = Format::Tree)]
        output: Format,
        /// Draw with ASCII characters only.
        #[arg(long)]
        ascii: bool,
    },
    /// Lists edges with an end outside of the cluster.
    External {
        #[command(flatten)]
        source: Source,
        #[command(flatten)]
        selection: Selection,
        #[command(flatten)]
        columns: Columns,
    },
    /// Lists all that call a workload, directly or through others: what may fail if it does.
    BlastRadius {
        #[command(flatten)]
        source: Source,
        /// Name of the workload or peer: NAME, NAMESPACE/NAME or NAMESPACE/KIND/NAME.
        peer: String,
    },
    /// Describes an edge, or each edge of a peer: its pods, times and counts, how agents observed it, and what is not known.
    ///
    /// Objects do not have the node of an edge. `kubectl get pods -o wide` shows the nodes of its pods, and `why NODE` how a node
    /// is observed.
    Explain {
        #[command(flatten)]
        source: Source,
        /// Identifier of an edge, or name of a peer.
        what: String,
    },
    /// Lists Services and workloads without an observed caller, as far as the coverage of the nodes allows.
    Unused {
        #[command(flatten)]
        source: Source,
        /// Only objects of this kind.
        #[arg(long, value_enum, ignore_case = true)]
        kind: Option<UnusedKind>,
    },
    /// Describes a node's agent: its mode, the reason, its coverage, what is missing, and what to do.
    Why {
        #[command(flatten)]
        source: NodeSource,
        /// Name of the node; all nodes without it.
        node: Option<String>,
        /// A line for each node whose agents did not record everything, instead of the description.
        #[arg(long)]
        incomplete: bool,
    },
    /// Serves a page on this machine that shows the map while it changes, and prints its address.
    Ui {
        #[command(flatten)]
        source: Source,
        #[command(flatten)]
        options: ui::Options,
    },
    /// Compares the edges of two files, commits or clusters. Exit code 0: the same. 1: they differ. Above: an error.
    Diff {
        #[command(flatten)]
        compared: Compared,
        /// Format of the difference.
        #[arg(short, long, value_enum, default_value_t = DiffFormat::Text)]
        output: DiffFormat,
    },
    /// Writes the map and the state of the nodes as JSON, for people who may not know the cluster: names become numbers.
    Bundle {
        #[command(flatten)]
        source: Source,
        /// Keep names, addresses and messages.
        #[arg(long)]
        with_names: bool,
    },
    /// Writes a completion script for a shell.
    Completion {
        /// Name of the shell.
        shell: Shell,
    },
    /// Writes the manual.
    Man {
        /// Directory for the pages of all commands; without it, the first page goes to standard output.
        #[arg(long)]
        directory: Option<PathBuf>,
    },
    /// Writes candidates for the last word, as kubectl's completion asks for them.
    #[command(name = "__complete", hide = true)]
    Complete {
        /// Words of the command line.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<OsString>,
    },
}

/// Format of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Each client with the servers that it calls.
    Tree,
    /// A table.
    Table,
    /// Graphviz.
    Dot,
    /// Mermaid, for pages of Markdown.
    Mermaid,
    /// A picture to print or embed.
    Svg,
    /// The picture and a table in a page without scripts.
    Html,
    /// Comma-separated values (RFC 4180).
    Csv,
    /// Names of all peers.
    Name,
    /// The map, which `--file` reads again.
    Json,
    /// The same in YAML.
    Yaml,
}

/// Columns of a table.
#[derive(Clone, Debug, Args)]
pub struct Columns {
    /// Format of the table.
    #[arg(short, long, value_enum)]
    output: Option<TableFormat>,
}

impl Columns {
    /// Returns the table of a map.
    pub fn table(&self, map: &Map) -> String {
        match self.output {
            Some(TableFormat::Wide) => render::wide(map),
            None => render::table(map),
        }
    }
}

/// Format of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TableFormat {
    /// With times, methods of observation and identifiers.
    Wide,
}

/// Format of a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DiffFormat {
    /// A line for each edge.
    Text,
    /// JSON.
    Json,
    /// XML of `JUnit`, for continuous integration: each edge that differs is a failed test.
    Junit,
}

/// Conditions on edges.
#[derive(Clone, Debug, Args)]
pub struct Selection {
    /// Only the neighbourhood of this workload or peer.
    #[arg(long, value_name = "PEER")]
    around: Option<String>,
    /// Size of the neighbourhood, in edges.
    #[arg(long, default_value_t = 1, requires = "around", value_parser = hops)]
    hops: usize,
    /// Only edges of this client.
    #[arg(long, value_name = "PEER")]
    from: Option<String>,
    /// Only edges to this server or Service.
    #[arg(long, value_name = "PEER")]
    to: Option<String>,
    /// Only edges to this port of the server.
    #[arg(long)]
    port: Option<u16>,
    /// Only edges of this protocol.
    #[arg(long, value_parser = protocol)]
    protocol: Option<TransportProtocol>,
    /// Only edges with an end outside of the cluster.
    #[arg(long)]
    pub external: bool,
    /// Only edges with failed or pending attempts.
    #[arg(long)]
    failed: bool,
    /// Only edges that were first observed within this time, such as 10m, 24h or 7d.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    new_since: Option<SignedDuration>,
    /// Show namespaces instead of workloads.
    #[arg(long)]
    namespace_level: bool,
}

impl Selection {
    /// Returns the selected edges.
    ///
    /// # Errors
    /// Returns an error if no peer has the name, or if the time is out of range.
    pub fn apply(&self, map: Map) -> Result<Map> {
        for peer in [&self.around, &self.from].into_iter().flatten() {
            if !map.ends().any(|end| end.is_named(peer)) {
                return Err(unnamed(peer));
            }
        }
        if let Some(to) = &self.to
            && reach::named(&map, to).is_empty()
        {
            return Err(unnamed(to));
        }
        self.select(map)
    }

    /// Returns the selected edges, none if no peer has the name.
    ///
    /// # Errors
    /// Returns an error if the time is out of range.
    pub fn select(&self, map: Map) -> Result<Map> {
        let since = self.new_since.map(|time| Timestamp::now().checked_sub(time)).transpose()?;
        let filter = Filter {
            around: self.around.clone(),
            hops: self.hops,
            from: self.from.clone(),
            to: self.to.clone(),
            port: self.port,
            protocol: self.protocol,
            external: self.external,
            failed: self.failed,
            new_since: since.map(Time),
            ..Filter::default()
        };
        let level = if self.namespace_level { Level::Namespace } else { Level::Workload };
        Ok(level::on(level, filter.apply(map)))
    }
}

/// Kind of objects that `unused` lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum UnusedKind {
    /// Services.
    Service,
    /// Deployments.
    Deployment,
    /// `StatefulSets`.
    StatefulSet,
    /// `DaemonSets`.
    DaemonSet,
}

/// Returns the error for a name that no peer has.
pub fn unnamed(name: &str) -> anyhow::Error {
    anyhow!("no peer is named {name:?}; `kubectl scopeprobe graph -o name` lists all")
}

fn hops(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|hops| (1..=100).contains(hops)).ok_or_else(|| "a number from 1 to 100".to_owned())
}

fn protocol(text: &str) -> Result<TransportProtocol, String> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(TransportProtocol::Tcp),
        "udp" => Ok(TransportProtocol::Udp),
        _ => Err("tcp or udp".to_owned()),
    }
}

/// Reads a number with a unit: s, m, h or d.
fn duration(text: &str) -> Result<SignedDuration, String> {
    let wrong = || "a number with a unit: s, m, h or d".to_owned();
    let seconds = match text.char_indices().next_back() {
        Some((_, 's')) => 1,
        Some((_, 'm')) => 60,
        Some((_, 'h')) => 3600,
        Some((_, 'd')) => 86_400,
        _ => return Err(wrong()),
    };
    let number: u32 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    Ok(SignedDuration::from_secs(i64::from(number) * seconds))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration("7d"), Ok(SignedDuration::from_hours(7 * 24)));
        assert_eq!(duration("90s"), Ok(SignedDuration::from_secs(90)));
        for wrong in ["", "7", "d", "-1h", "1w", "é"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
