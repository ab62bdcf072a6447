//! `kubectl scopeprobe`: reads Topology objects from a cluster, files or standard input, and shows them.

mod cli;
mod complete;
mod diff;
mod files;
mod follow;
mod git;
mod inventory;
mod nodes;
mod source;
mod ui;
mod watch;

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use clap::{CommandFactory as _, Parser as _};
use view::{
    Edge, Map,
    map::printable,
    reach,
    render::{self, Names},
    unused,
};

use self::{
    cli::{Cli, Command, DiffFormat, Format, unnamed},
    diff::Sides,
};

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
            if is_broken_pipe(&error) {
                return ExitCode::SUCCESS;
            }
            eprintln!("error: {}", printable(&format!("{error:#}")));
            ExitCode::from(FAILED)
        }
    }
}

async fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Table { source, selection, columns } => {
            let map = selection.apply(source.read().await?)?;
            show(&columns.table(&map), &map)?;
        }
        Command::Graph { source, selection, output, ascii } => {
            let map = selection.apply(source.read().await?)?;
            let ascii = ascii || !speaks_utf8();
            if matches!(output, Format::Svg | Format::Html) {
                advise(&map);
            }
            let text = text(&map, output, ascii)?;
            // These have the caveats.
            if matches!(output, Format::Json | Format::Yaml) { print(&text)? } else { show(&text, &map)? }
        }
        Command::External { source, mut selection, columns } => {
            selection.external = true;
            let map = selection.apply(source.read().await?)?;
            show(&columns.table(&map), &map)?;
        }
        Command::BlastRadius { source, peer } => {
            let map = source.read().await?;
            show(&blast_radius(&map, &peer)?, &map)?;
        }
        Command::Explain { source, what } => {
            let map = source.read().await?;
            show(&explain(&map, &what)?, &map)?;
        }
        Command::Unused { source, kind } => {
            let (map, inventory) = source.read_with_inventory().await?;
            let mut unused = unused::unused(&map, &inventory);
            unused.retain(|unused| kind.is_none_or(|kind| unused.kind == format!("{kind:?}")));
            show(&unused::table(&unused), &map)?;
            for caveat in unused::caveats(&map, &inventory) {
                eprintln!("incomplete: {caveat}");
            }
        }
        Command::Why { source, node, incomplete: true } => {
            print(&view::node::gaps(&source.read(node.as_deref()).await?))?;
        }
        Command::Why { source, node, incomplete: false } => {
            let nodes = source.read(node.as_deref()).await?;
            print(&nodes.iter().map(view::node::describe).collect::<Vec<_>>().join("\n"))?;
        }
        Command::Watch { source, selection } => watch::watch(&source, &selection).await?,
        Command::Bundle { source, with_names } => {
            let (map, inventory) = source.read_with_inventory().await?;
            let bundle = view::bundle::bundle(map.clone(), &inventory, with_names)?;
            show(&format!("{}\n", serde_json::to_string_pretty(&bundle)?), &map)?;
        }
        Command::Completion { shell } => complete::script(shell),
        Command::Complete { words } => print(&complete::candidates(&words).await?)?,
        Command::Man { directory } => man(directory.as_deref())?,
        Command::Ui { source, options } => ui::serve(source, options).await?,
        Command::Diff { compared, output } => return compare(&compared.read().await?, output),
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints a text about a map, and what is missing from that.
fn show(text: &str, map: &Map) -> Result<()> {
    print(text)?;
    warn("", &map.caveats);
    Ok(())
}

fn compare(sides: &Sides, output: DiffFormat) -> Result<ExitCode> {
    let (difference, text) = sides.compare(output)?;
    let code = if difference.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(DIFFERS) };
    match print(&text) {
        // Who reads no more has the exit code all the same.
        Err(error) if is_broken_pipe(&error) => return Ok(code),
        other => other?,
    }
    if output == DiffFormat::Text {
        for (label, caveats) in sides.gaps() {
            warn(&format!("{}: ", printable(label)), caveats);
        }
    }
    Ok(code)
}

/// Writes to standard error how to draw less, if the picture is too large to be read.
fn advise(map: &Map) {
    const READABLE: usize = 300;
    let peers = Names::of(map).all().count();
    if peers > READABLE {
        eprintln!("note: {peers} peers are in the picture; --around NAME, --failed or --namespace-level draw fewer");
    }
}

fn text(map: &Map, output: Format, ascii: bool) -> Result<String> {
    Ok(match output {
        Format::Tree => render::tree(map, ascii),
        Format::Table => render::table(map),
        Format::Dot => render::dot(map),
        Format::Mermaid => render::mermaid(map),
        Format::Svg => render::svg(map),
        Format::Html => render::html(map),
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
fn warn(of: &str, caveats: &[String]) {
    const MOST: usize = 5;
    for caveat in caveats.iter().take(MOST) {
        eprintln!("incomplete: {of}{caveat}");
    }
    if caveats.len() > MOST {
        eprintln!("incomplete: {of}{} more; `kubectl scopeprobe graph -o json` has all", caveats.len() - MOST);
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
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

/// Writes the manual: one page to standard output, or the pages of all commands to a directory.
fn man(directory: Option<&Path>) -> Result<()> {
    match directory {
        Some(directory) => clap_mangen::generate_to(Cli::command(), directory).context(directory.display().to_string()),
        None => Ok(clap_mangen::Man::new(Cli::command()).render(&mut io::stdout())?),
    }
}

fn blast_radius(map: &Map, peer: &str) -> Result<String> {
    let Some(dependents) = reach::dependents(map, peer) else {
        return Err(unnamed(peer));
    };
    let names = Names::of(map);
    let origins: Vec<&str> = reach::named(map, peer).into_iter().map(|origin| names.name(origin)).collect();
    let mut lines = Vec::new();
    if origins.len() > 1 {
        lines.push(format!("of {}:\n", origins.join(" and ")));
    }
    if dependents.is_empty() {
        lines.push(format!("nothing was observed that calls {peer}\n"));
    }
    lines.extend(dependents.iter().map(|dependent| {
        let through: Vec<&str> = dependent.through.iter().map(|peer| names.name(peer)).collect();
        format!("{}  {}  by {}\n", dependent.hops, names.name(&dependent.peer), through.join(", "))
    }));
    Ok(lines.concat())
}

fn explain(map: &Map, what: &str) -> Result<String> {
    let is_meant = |edge: &&Edge| edge.id == what || edge.is_call_to(what) || edge.client.is_named(what);
    let edges: Vec<&Edge> = map.edges.iter().filter(is_meant).collect();
    if edges.is_empty() {
        bail!("no edge has the identifier {what:?}, and no peer has this name");
    }
    let names = Names::of(map);
    Ok(edges.iter().map(|edge| view::explain::edge(edge, &names)).collect::<Vec<_>>().join("\n"))
}
