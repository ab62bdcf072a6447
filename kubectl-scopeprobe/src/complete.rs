//! Completion of command lines: scripts for shells, and candidates for kubectl's own completion.

use std::{
    ffi::{OsStr, OsString},
    io,
    time::Duration,
};

use anyhow::Result;
use clap::{CommandFactory as _, Parser as _};
use clap_complete::{Shell, engine};
use view::render::Names;

use crate::cli::{Cli, Command};

/// Name of the program.
const PROGRAM: &str = "kubectl-scopeprobe";
/// Longest time for names from a cluster: a person waits for them.
const PATIENCE: Duration = Duration::from_secs(2);
/// Options with a value that select what is read.
const OPTIONS: [&str; 9] =
    ["-f", "--file", "-n", "--namespace", "--context", "--kubeconfig", "--as", "-l", "--selector"];
/// Directive of kubectl's completion that completes names of files.
const FILES: u8 = 0;
/// Directive that does not.
const NO_FILES: u8 = 4;

/// Names that complete a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// Peers of the map.
    Peers,
    /// Nodes.
    Nodes,
}

/// Writes a script for a shell.
pub fn script(shell: Shell) {
    clap_complete::generate(shell, &mut Cli::command(), PROGRAM, &mut io::stdout());
}

/// Returns candidates for the last word, as kubectl expects them: one per line, and a directive.
///
/// # Errors
/// Returns an error if the words are no command line.
pub async fn candidates(words: &[OsString]) -> Result<String> {
    let text: Vec<&str> = words.iter().filter_map(|word| word.to_str()).collect();
    let last = text.last().copied().unwrap_or_default();
    let mut lines = Vec::new();
    let is_path = text.len() > 1 && matches!(text[text.len() - 2], "-f" | "--file" | "--kubeconfig");
    if is_standard_input(&text) {
        // It is the shell's.
    } else if let Some(wanted) = wanted(&text) {
        // Without a cluster, there are no names to complete.
        let names = tokio::time::timeout(PATIENCE, names(wanted, &text)).await.ok().and_then(Result::ok);
        let fitting = names
            .unwrap_or_default()
            .into_iter()
            .filter(|name| name.starts_with(last) && !name.contains(char::is_whitespace));
        lines.extend(fitting);
    } else if !is_path {
        let all: Vec<OsString> = [PROGRAM.into()].into_iter().chain(words.iter().cloned()).collect();
        let index = all.len() - 1;
        lines.extend(engine::complete(&mut Cli::command(), all, index, None)?.iter().map(line));
    }
    lines.push(format!(":{}\n", if is_path { FILES } else { NO_FILES }));
    Ok(lines.join("\n"))
}

fn line(candidate: &engine::CompletionCandidate) -> String {
    let value = candidate.get_value().to_string_lossy();
    match candidate.get_help().map(ToString::to_string) {
        Some(help) => format!("{value}\t{}", help.lines().next().unwrap_or_default()),
        None => value.into_owned(),
    }
}

/// Returns the kind of names that complete the last word, if it is no option or value of another kind.
fn wanted(words: &[&str]) -> Option<Wanted> {
    let (last, before) = words.split_last()?;
    let previous = before.last().copied().unwrap_or_default();
    if matches!(previous, "--around" | "--from" | "--to") {
        return Some(Wanted::Peers);
    }
    if last.starts_with('-') || OPTIONS.contains(&previous) {
        return None;
    }
    match before.first().copied() {
        Some("blast-radius" | "explain") => Some(Wanted::Peers),
        Some("why") => Some(Wanted::Nodes),
        _ => None,
    }
}

/// Returns whether standard input would be read.
fn is_standard_input(words: &[&str]) -> bool {
    let is_value = |pair: &[&str]| matches!(pair, ["-f" | "--file", "-"]);
    words.windows(2).any(is_value) || words.iter().any(|word| matches!(*word, "--file=-" | "-f-" | "-f=-"))
}

/// Returns whether a word is one of these options together with its value.
fn has_value(word: &str) -> bool {
    let with_value = |option: &str| {
        let rest = word.strip_prefix(option);
        rest.is_some_and(|rest| rest.starts_with('=') || !rest.is_empty() && !option.starts_with("--"))
    };
    OPTIONS.into_iter().any(with_value)
}

/// Returns the words that select what is read.
fn selecting<'w>(words: &[&'w str]) -> Vec<&'w str> {
    let mut selecting = Vec::new();
    for (number, word) in words.iter().enumerate() {
        let is_value = number > 0 && OPTIONS.contains(&words[number - 1]);
        if is_value || OPTIONS.contains(word) || has_value(word) || matches!(*word, "-A" | "--all-namespaces") {
            selecting.push(*word);
        }
    }
    selecting
}

async fn names(wanted: Wanted, words: &[&str]) -> Result<Vec<String>> {
    let command = if wanted == Wanted::Peers { "table" } else { "why" };
    let line = [PROGRAM, command].into_iter().chain(selecting(&words[..words.len() - 1])).map(OsStr::new);
    Ok(match Cli::try_parse_from(line)?.command {
        Command::Table { source, .. } => {
            let map = source.read().await?;
            Names::of(&map).all().map(|(_, name)| name.to_owned()).collect()
        }
        Command::Why { source, .. } => {
            source.read(None).await?.into_iter().filter_map(|node| node.metadata.name).collect()
        }
        _ => Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_complete_arguments_only() {
        assert_eq!(wanted(&["explain", ""]), Some(Wanted::Peers));
        for option in ["--around", "--from", "--to"] {
            assert_eq!(wanted(&["graph", "-A", option, "ca"]), Some(Wanted::Peers));
        }
        assert_eq!(wanted(&["why", "n"]), Some(Wanted::Nodes));
        for other in [&["explain", "-"][..], &["explain", "-n", ""], &["graph", ""], &["gra"], &[]] {
            assert_eq!(wanted(other), None, "{other:?}");
        }
    }

    #[test]
    fn options_of_the_source_are_kept() {
        let words = ["explain", "-n", "shop", "--ascii", "-A", "cart", "--context", "prod"];
        assert_eq!(selecting(&words), ["-n", "shop", "-A", "--context", "prod"]);
        let words = ["explain", "-nshop", "--context=prod", "--around=cart", "--hops", "2", "-f=a.yaml"];
        assert_eq!(selecting(&words), ["-nshop", "--context=prod", "-f=a.yaml"]);
    }

    #[test]
    fn standard_input_of_a_shell_is_not_read() {
        for words in [&["table", "-f", "-", ""][..], &["table", "--file=-", ""], &["explain", "-f-", "ca"]] {
            assert!(is_standard_input(words), "{words:?}");
        }
        assert!(!is_standard_input(&["table", "-f", "a-", "-"]));
    }
}
