//! The note beside the committed object.

use std::{fmt, str::FromStr};

/// Sources and toolchain that made the object.
#[derive(Debug, PartialEq, Eq)]
pub struct Note {
    /// The hash over names and contents of the sources.
    pub sources: String,
    /// The versions of compiler and linker, a line each.
    pub toolchain: String,
}

/// The note has no line with the hash of the sources.
#[derive(Debug, PartialEq, Eq)]
pub struct MissingHash;

impl fmt::Display for MissingHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no line `sources HASH`")
    }
}

impl std::error::Error for MissingHash {}

impl FromStr for Note {
    type Err = MissingHash;

    fn from_str(text: &str) -> Result<Self, MissingHash> {
        let sources = text.lines().find_map(|line| line.strip_prefix("sources ")).ok_or(MissingHash)?;
        let toolchain: Vec<_> = text.lines().filter(|line| !line.starts_with("sources ")).collect();
        Ok(Self { sources: sources.to_owned(), toolchain: toolchain.join("\n") })
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "sources {}\n{}", self.sources, self.toolchain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn note_keeps_hash_and_toolchain() {
        let text = "sources 5660\nrustc 1.97.0-nightly (e50aa6fba 2026-05-19)\nbpf-linker 0.13.0\n";
        let note: Note = text.parse().unwrap();
        assert_eq!(note.sources, "5660");
        assert_eq!(note.toolchain, "rustc 1.97.0-nightly (e50aa6fba 2026-05-19)\nbpf-linker 0.13.0");
        assert_eq!(note.to_string(), text);
    }

    #[test]
    fn note_without_hash_is_refused() {
        assert_eq!("bpf-linker 0.13.0\n".parse::<Note>(), Err(MissingHash));
    }
}
