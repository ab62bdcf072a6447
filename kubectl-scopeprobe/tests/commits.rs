//! Files and folders of Git commits.

#![expect(clippy::expect_used, reason = "a test")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const BEFORE: &str = include_str!("cmd/shop.in/shop.yaml");
const AFTER: &str = include_str!("cmd/shop.in/later.yaml");

/// Repository with two commits: the folder `maps` has the shop, and then its later state.
struct Repository(PathBuf);

impl Repository {
    fn new(name: &str) -> Self {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        if path.exists() {
            fs::remove_dir_all(&path).expect("it is of an earlier run");
        }
        fs::create_dir_all(path.join("maps/shop")).expect("the folder is there");
        let repository = Self(path);
        repository.git(&["init", "--quiet", "--initial-branch", "main"]);
        repository.write("maps/README.md", "not read");
        repository.write("maps/shop/objects.yaml", BEFORE);
        repository.commit();
        repository.write("maps/shop/objects.yaml", AFTER);
        repository.commit();
        repository
    }

    fn write(&self, path: &str, text: &str) {
        fs::write(self.0.join(path), text).expect("the folder is there");
    }

    fn commit(&self) {
        self.git(&["add", "--all"]);
        self.git(&["-c", "user.name=a", "-c", "user.email=a@example.com", "commit", "--quiet", "--message", "change"]);
    }

    fn git(&self, arguments: &[&str]) {
        let mut git = command("git");
        git.args(arguments).current_dir(&self.0).env("GIT_CONFIG_GLOBAL", "/dev/null");
        assert!(git.status().expect("the tests need git").success(), "git {arguments:?}");
    }

    /// Returns the exit code and both outputs of `diff` in a folder of the repository.
    fn diff(&self, folder: &str, arguments: &[&str]) -> (i32, String, String) {
        let output = command(env!("CARGO_BIN_EXE_kubectl-scopeprobe"))
            .arg("diff")
            .args(arguments)
            .current_dir(self.0.join(folder))
            .output()
            .expect("the plugin starts");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("it is UTF-8");
        (output.status.code().expect("it ends"), text(output.stdout), text(output.stderr))
    }
}

/// Returns a command that no other repository is named to, as Git does for its hooks.
fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("GIT_")) {
        command.env_remove(name);
    }
    command
}

/// Returns the difference of both files, without Git.
fn expected() -> String {
    let folder = Path::new("tests/cmd/shop.in");
    let output = Command::new(env!("CARGO_BIN_EXE_kubectl-scopeprobe"))
        .args(["diff", "shop.yaml", "later.yaml"])
        .current_dir(folder)
        .output()
        .expect("the plugin starts");
    let text = String::from_utf8(output.stdout).expect("it is UTF-8");
    assert_eq!(text.lines().count(), 4, "{text}");
    text
}

#[test]
fn commits_are_compared_from_any_folder() {
    let repository = Repository::new("commits");
    let text = expected();
    let both = ["--ref", "main~1", "--ref", "main"];
    for (folder, path) in
        [("", "maps"), ("", "maps/"), ("", "."), ("maps", "."), ("maps", "shop/objects.yaml"), ("maps/shop", "..")]
    {
        let (code, shown, error) = repository.diff(folder, &[&both[..], &[path]].concat());
        assert_eq!((code, &shown), (1, &text), "{folder} {path}: {error}");
        assert!(error.starts_with("incomplete: main~1: shop/cart: 3 ingress edges"), "{error}");
    }
    assert_eq!(repository.diff("", &["--ref", "main", "--ref", "main", "maps"]).0, 0);
}

#[test]
fn commit_is_compared_with_the_present_files() {
    let repository = Repository::new("present");
    assert_eq!(repository.diff("", &["--ref", "HEAD", "maps"]).0, 0);
    assert_eq!(repository.diff("", &["--ref", "HEAD~1", "maps"]).1, expected());
    repository.write("maps/shop/objects.yaml", BEFORE);
    assert_eq!(repository.diff("", &["--ref", "HEAD", "maps"]).0, 1, "it is not committed");
    assert_eq!(repository.diff("", &["--ref", "HEAD~1", "maps"]).0, 0);
    assert_eq!(repository.diff("", &["maps", "maps/shop/objects.yaml"]).0, 0, "folders are read without Git as well");
}

/// A folder and its commit leave out the same files.
#[test]
fn hidden_files_links_and_other_repositories_are_left_out() {
    let repository = Repository::new("left-out");
    repository.write("maps/.hidden.yaml", "kind: Pod\n");
    fs::create_dir_all(repository.0.join("maps/.ci")).expect("the folder is there");
    repository.write("maps/.ci/jobs.yml", "kind: Pod\n");
    std::os::unix::fs::symlink("shop/objects.yaml", repository.0.join("maps/link.yaml")).expect("the folder is there");
    repository.commit();
    fs::create_dir_all(repository.0.join("maps/module")).expect("the folder is there");
    repository.git(&["init", "--quiet", "maps/module"]);
    repository.write("maps/module/other.yaml", "kind: Pod\n");
    for path in ["maps", "./maps", "."] {
        assert_eq!(repository.diff("", &["--ref", "HEAD", path]), (0, String::new(), String::new()), "{path}");
    }
    assert_eq!(repository.diff("maps/shop", &["--ref", "HEAD", ".."]), (0, String::new(), String::new()));
}

#[test]
fn namespace_without_edges_is_an_error() {
    let repository = Repository::new("namespaces");
    let (code, _, error) = repository.diff("", &["-n", "shpo", "--ref", "HEAD", "maps"]);
    assert_eq!((code, error.as_str()), (2, "error: no edge has an end in the namespace shpo\n"));
}

#[test]
fn missing_commits_and_files_are_errors() {
    let repository = Repository::new("missing");
    let error = |arguments: &[&str]| {
        let (code, shown, error) = repository.diff("", arguments);
        assert_eq!((code, shown.as_str()), (2, ""), "{arguments:?}");
        error
    };
    let unknown = error(&["--ref", "nothing", "maps"]);
    assert!(unknown.starts_with("error: the repository has no commit, branch or tag nothing"), "{unknown}");
    let option = error(&["--ref=--all", "maps"]);
    assert!(option.starts_with("error: the repository has no commit, branch or tag --all"), "{option}");
    assert_eq!(
        error(&["--ref", "main", "nothing"]),
        "error: main has no file nothing, and no .yaml, .yml or .json file in such a folder\n"
    );
    repository.write("maps/other.yaml", "kind: Pod\n");
    repository.commit();
    let other = error(&["--ref", "main~1", "--ref", "main", "maps"]);
    assert!(other.starts_with("error: main:maps/other.yaml: document 1: it is a Pod"), "{other}");
}
