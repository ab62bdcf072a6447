//! `kubectl scopeprobe`: reads Topology objects from a cluster, files or standard input, and shows them.

mod cli;
mod source;

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
};

use anyhow::{Result, bail};
use clap::Parser as _;
use view::{Edge, Map, diff::Difference, reach, render};

use self::cli::{Cli, Command, Format};

/// Exit code of `diff` if both maps differ, as of `kubectl diff`.
const DIFFERS: u8 = 1;
/// Exit code after an error.
const FAILED: u8 = 2;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli).await {
        Ok(code) => code,
        Err(error) => {
            // A reader that has seen enough, such as `head`.
            if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
                return ExitCode::SUCCESS;
            }
            eprintln!("error: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

async fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Table { source, selection } => {
            let map = selection.apply(source.read().await?)?;
            print(&render::table(&map))?;
            warn(&map);
        }
        Command::Graph { source, selection, output, ascii } => {
            let map = selection.apply(source.read().await?)?;
            let ascii = ascii || !speaks_utf8();
            print(&text(&map, output, ascii)?)?;
            if output == Format::Tree {
                warn(&map);
            }
        }
        Command::External { source, mut selection } => {
            selection.external = true;
            let map = selection.apply(source.read().await?)?;
            print(&render::table(&map))?;
            warn(&map);
        }
        Command::BlastRadius { source, peer } => {
            let map = source.read().await?;
            print(&blast_radius(&map, &peer)?)?;
            warn(&map);
        }
        Command::Explain { source, what } => {
            let map = source.read().await?;
            print(&explain(&map, &what)?)?;
        }
        Command::Diff { before, after, output } => {
            let (before, after) = (source::file(&before)?, source::file(&after)?);
            let difference = Difference::between(&before, &after);
            match output {
                cli::DiffFormat::Text => print(&difference_text(&difference))?,
                cli::DiffFormat::Json => print(&format!("{}\n", serde_json::to_string_pretty(&difference)?))?,
            }
            return Ok(if difference.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(DIFFERS) });
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn text(map: &Map, output: Format, ascii: bool) -> Result<String> {
    Ok(match output {
        Format::Tree => render::tree(map, ascii),
        Format::Table => render::table(map),
        Format::Dot => render::dot(map),
        Format::Mermaid => render::mermaid(map),
        Format::Csv => render::csv(map),
        Format::Name => render::names(map),
        Format::Json => format!("{}\n", serde_json::to_string_pretty(map)?),
        Format::Yaml => serde_yaml::to_string(map)?,
    })
}

fn print(text: &str) -> Result<()> {
    let mut output = io::stdout().lock();
    output.write_all(text.as_bytes())?;
    output.flush()?;
    Ok(())
}

/// Writes to standard error what is missing from a map.
fn warn(map: &Map) {
    const MOST: usize = 5;
    for caveat in map.caveats.iter().take(MOST) {
        eprintln!("incomplete: {caveat}");
    }
    if map.caveats.len() > MOST {
        eprintln!("incomplete: {} more; -o json has all", map.caveats.len() - MOST);
    }
}

/// Returns whether the terminal, if the output is one, shows characters beyond ASCII.
fn speaks_utf8() -> bool {
    if !io::stdout().is_terminal() {
        return true;
    }
    let variable = ["LC_ALL", "LC_CTYPE", "LANG"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().filter(|it| !it.is_empty()));
    variable.is_none_or(|value| value.to_ascii_uppercase().replace('-', "").ends_with("UTF8"))
}

fn blast_radius(map: &Map, peer: &str) -> Result<String> {
    let Some(dependents) = reach::dependents(map, peer) else {
        bail!("no peer is named {peer:?}; `kubectl scopeprobe graph -o name` lists all");
    };
    if dependents.is_empty() {
        return Ok(format!("nothing was observed that calls {peer}\n"));
    }
    let line = |dependent: &reach::Dependent| {
        let through: Vec<String> = dependent.through.iter().map(ToString::to_string).collect();
        format!("{}  {}  by {}\n", dependent.hops, dependent.peer, through.join(", "))
    };
    Ok(dependents.iter().map(line).collect())
}

fn explain(map: &Map, what: &str) -> Result<String> {
    let edges: Vec<&Edge> = map
        .edges
        .iter()
        .filter(|edge| edge.id == what || edge.client.is_named(what) || edge.server.is_named(what))
        .collect();
    if edges.is_empty() {
        bail!("no edge has the identifier {what:?}, and no peer has this name");
    }
    Ok(edges.iter().map(|edge| view::explain::edge(edge)).collect::<Vec<_>>().join("\n"))
}

fn difference_text(difference: &Difference) -> String {
    let line = |mark: &str, edge: &Edge| format!("{mark} {} -> {}\n", edge.client, edge.called());
    let lines = |mark: &'static str, edges: &[Edge]| edges.iter().map(|edge| line(mark, edge)).collect::<String>();
    [lines("-", &difference.removed), lines("+", &difference.added), lines("! now failing:", &difference.failing)]
        .concat()
}
