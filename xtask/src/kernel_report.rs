//! The report of the kernel guests that `scripts/kernels test` runs the agent's tests in.

mod console;
mod table;

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::Context;

use self::console::{Console, Outcome};

/// Number of lines of a console that show why a guest did not finish.
const LAST_LINES: usize = 30;

/// Arguments of `cargo xtask kernel-report`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Folder with two files for each guest: GUEST.console has its output, GUEST.seconds the time that it took.
    directory: PathBuf,
    /// Names of the guests, in the order of the columns.
    #[arg(required = true)]
    guests: Vec<String>,
}

/// A guest's name, and what remains of its run.
struct Guest {
    name: String,
    console: String,
    seconds: String,
}

/// Prints the report. Returns a failure if a guest failed.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let guests = arguments.guests.iter().map(|name| read(arguments, name)).collect::<anyhow::Result<Vec<_>>>()?;
    let (report, have_passed) = report(&guests);
    print!("{report}");
    Ok(if have_passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn read(arguments: &Arguments, name: &str) -> anyhow::Result<Guest> {
    let read = |kind: &str| {
        let path = arguments.directory.join(format!("{name}.{kind}"));
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        // A kernel's message may cut a character in two.
        Ok::<_, anyhow::Error>(String::from_utf8_lossy(&bytes).into_owned())
    };
    Ok(Guest { name: name.to_owned(), console: read("console")?, seconds: read("seconds")? })
}

/// Returns the report, and whether all guests passed.
fn report(guests: &[Guest]) -> (String, bool) {
    let consoles: Vec<_> = guests.iter().map(|guest| (guest, Console::parse(&guest.console))).collect();
    let named: Vec<_> = consoles.iter().map(|(guest, console)| (guest.name.as_str(), console)).collect();
    let mut report = table::render(&named) + "\n";
    for (guest, console) in &consoles {
        report += &verdict(guest, console);
    }
    (report, consoles.iter().all(|(_, console)| console.outcome == Outcome::Passed))
}

/// Returns the guest's result. A failure comes with the part of the console that explains it.
fn verdict(Guest { name, console: text, seconds }: &Guest, console: &Console<'_>) -> String {
    match console.outcome {
        Outcome::Passed => {
            format!("{name}: passed ({}, {} s)\n", console.release.unwrap_or("unknown kernel"), seconds.trim_end())
        }
        Outcome::Failed => {
            let failures: Vec<_> = text.lines().skip_while(|line| *line != "failures:").collect();
            // Programs other than tests fail without that heading.
            let shown = if failures.is_empty() { last_lines(text) } else { lines(&failures) };
            format!("{shown}{name}: FAILED; its failures are above\n")
        }
        Outcome::Unfinished => {
            format!("{}{name}: FAILED: the guest did not finish; its last output is above\n", last_lines(text))
        }
    }
}

fn last_lines(text: &str) -> String {
    let all: Vec<_> = text.lines().collect();
    lines(all.split_at(all.len().saturating_sub(LAST_LINES)).1)
}

fn lines(lines: &[&str]) -> String {
    lines.iter().flat_map(|line| [line, "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(name: &str, console: &str) -> Guest {
        Guest { name: name.to_owned(), console: console.to_owned(), seconds: "12\n".to_owned() }
    }

    #[test]
    fn report_of_passed_guest_names_kernel_and_time() {
        let console = "guest: ready after 11.86 s with 5.10.0-46-cloud-amd64\nguest: exit 0\n";
        let (report, have_passed) = report(&[guest("5.10", console)]);
        assert_eq!(report, "\n5.10: passed (5.10.0-46-cloud-amd64, 12 s)\n");
        assert!(have_passed);
    }

    #[test]
    fn report_of_failed_guest_begins_at_its_failures() {
        let console = "before\nfailures:\n\n---- a stdout ----\nwrong\nguest: exit 1\n";
        let (report, have_passed) = report(&[guest("6.1", console), guest("7.x", "guest: exit 0\n")]);
        let expected = "\nfailures:\n\n---- a stdout ----\nwrong\nguest: exit 1\n6.1: FAILED; its failures are above\n\
                        7.x: passed (unknown kernel, 12 s)\n";
        assert_eq!(report, expected);
        assert!(!have_passed);
    }

    #[test]
    fn report_of_failure_without_heading_has_the_last_lines() {
        let console = "test without_bpf ... FAILED\nexpected (CapabilityMissing)\nguest: exit 1\n";
        let (report, have_passed) = report(&[guest("6.1", console)]);
        assert_eq!(report, format!("\n{console}6.1: FAILED; its failures are above\n"));
        assert!(!have_passed);
    }

    #[test]
    fn report_of_unfinished_guest_has_its_last_30_lines() {
        let console: String =
            (1..=40).flat_map(|line| ["line ".to_owned(), line.to_string(), "\n".to_owned()]).collect();
        let (report, have_passed) = report(&[guest("6.1", &console)]);
        assert!(report.starts_with("\nline 11\nline 12\n"), "{report}");
        assert!(report.ends_with("line 40\n6.1: FAILED: the guest did not finish; its last output is above\n"));
        assert!(!have_passed);
    }
}
