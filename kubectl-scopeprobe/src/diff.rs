//! `diff`: compares the edges of files, commits or clusters.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use view::{
    Edge, Map,
    diff::{Difference, Relation},
    render::{self, Names},
};

use crate::{cli::DiffFormat, files, git, source::Place};

/// Both maps to compare.
#[derive(Debug, Args)]
pub struct Compared {
    /// Two files or folders: objects, or a map that `graph -o json` has written; `-` is standard input. With --ref, the files or
    /// folders of both commits.
    #[arg(id = "file", value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Commit, branch or tag of the Git repository in the current directory. The second one is the later; without it, the files
    /// as they are now.
    #[arg(long = "ref", value_name = "REF", conflicts_with = "context")]
    references: Vec<String>,
    #[command(flatten)]
    place: Place,
}

/// Two maps, with their names in messages.
pub struct Sides {
    relation: Relation,
    labels: [String; 2],
    maps: [Map; 2],
}

impl Compared {
    /// Reads both maps.
    ///
    /// # Errors
    /// Returns an error if a map cannot be read, or if the command line does not name two.
    pub async fn read(&self) -> Result<Sides> {
        if self.place.contexts() > 0 {
            return self.clusters().await;
        }
        let (labels, contents) = match (self.references.as_slice(), self.paths.as_slice()) {
            ([], [before, after]) => {
                let both = [before, after].map(|path| files::contents(std::slice::from_ref(path)));
                (["before", "after"], both)
            }
            ([_, ..], []) => bail!("--ref needs a file or folder: `diff --ref main --ref HEAD topologies/`"),
            ([before], paths) => ([before.as_str(), "now"], [git::contents(before, paths), files::contents(paths)]),
            ([before, after], paths) => {
                ([before.as_str(), after.as_str()], [git::contents(before, paths), git::contents(after, paths)])
            }
            ([_, _, _, ..], _) => bail!("`diff` compares two commits; --ref is there more than twice"),
            ([], _) => bail!("name two files or folders, --context twice, or --ref and a file or folder"),
        };
        let [before, after] = contents;
        let map = |contents: Vec<files::Content>| anyhow::Ok(self.place.of_namespace(files::map(&contents)?));
        let maps = [map(before?)?, map(after?)?];
        if maps.iter().all(|map| map.edges.is_empty()) {
            self.place.check_namespace()?;
        }
        Ok(Sides { relation: Relation::Later, labels: labels.map(str::to_owned), maps })
    }

    async fn clusters(&self) -> Result<Sides> {
        if self.place.contexts() != 2 {
            bail!("`diff` compares two clusters; name two different contexts with --context");
        }
        let (labels, maps): (Vec<String>, Vec<Map>) = self.place.read_each().await?.into_iter().unzip();
        match (<[String; 2]>::try_from(labels), <[Map; 2]>::try_from(maps)) {
            (Ok(labels), Ok(maps)) => Ok(Sides { relation: Relation::OtherCluster, labels, maps }),
            _ => bail!("the clusters were not read"),
        }
    }
}

impl Sides {
    /// Returns the difference, and its text.
    ///
    /// # Errors
    /// Returns an error if it cannot be written.
    pub fn compare(&self, output: DiffFormat) -> Result<(Difference, String)> {
        let [before, after] = &self.maps;
        let difference = Difference::between(before, after, self.relation);
        let text = match output {
            DiffFormat::Text => self.text(&difference),
            DiffFormat::Junit => render::junit(before, after, &difference, self.labels.each_ref().map(String::as_str)),
            DiffFormat::Json => format!("{}\n", serde_json::to_string_pretty(&difference)?),
        };
        Ok((difference, text))
    }

    /// Returns the gaps of each map, with its name.
    pub fn gaps(&self) -> impl Iterator<Item = (&str, &[String])> {
        self.labels.iter().zip(&self.maps).map(|(label, map)| (label.as_str(), map.caveats.as_slice()))
    }

    fn text(&self, difference: &Difference) -> String {
        let [before, after] = self.maps.each_ref().map(Names::of);
        let lines = |mark: &str, edges: &[Edge], names: &Names<'_>| {
            let line = |edge: &Edge| {
                let (client, called) = (names.name(&edge.client), edge.called_by_name(names.name(&edge.server)));
                format!("{mark} {client} -> {called}\n")
            };
            edges.iter().map(line).collect::<Vec<_>>().concat()
        };
        let failing = match self.relation {
            Relation::Later => "! now failing:".to_owned(),
            Relation::OtherCluster => format!("! failing in {} only:", view::map::printable(&self.labels[1])),
        };
        [
            lines("-", &difference.removed, &before),
            lines("+", &difference.added, &after),
            lines(&failing, &difference.failing, &after),
        ]
        .concat()
    }
}
