//! Lint of the language of comments and documentation, by the rules of CONTRIBUTING.md ("Writing").
#![forbid(unsafe_code)]
#![allow(clippy::expect_used, reason = "a test that cannot go on fails")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

/// Upper bound of the share of doc comments that begin with one of [`WH_WORDS`], in percent.
const MAX_WH_PERCENT: usize = 3;
/// Upper bound of the length of a sentence in a doc comment or a page, in words.
const MAX_WORDS: usize = 35;
/// Upper bound of the length of a line of prose on a page, in characters; link targets do not count.
const MAX_LINE: usize = 130;
/// Words that begin questions.
const WH_WORDS: [&str; 8] = ["What", "Who", "Whose", "Which", "Where", "How", "Whether", "When"];
/// Words and phrases without a place in our language.
const BANNED: [&str; 9] =
    ["somebody", "nobody", "whoever", "whatever", "in vain", "for ever", "as it were", "is told", "are told"];
/// Files that name the banned words to ban them.
const EXEMPT: [&str; 2] = ["CONTRIBUTING.md", "tests/tests/writing.rs"];
/// Page that is generated from doc comments, with one line per paragraph.
const GENERATED: &str = "docs/api.md";

#[test]
fn doc_comments_rarely_begin_with_a_wh_word() {
    let comments: Vec<Comment> = rust_files().iter().flat_map(|file| doc_comments(file)).collect();
    let wh: Vec<&Comment> = comments.iter().filter(|comment| begins_with_wh_word(&comment.text)).collect();
    assert!(
        wh.len() * 100 <= comments.len() * MAX_WH_PERCENT,
        "{} of {} doc comments begin with a wh-word, at most {MAX_WH_PERCENT} % may:\n{}",
        wh.len(),
        comments.len(),
        list(&wh)
    );
}

#[test]
fn sentences_are_short() {
    let comments = rust_files().iter().flat_map(|file| doc_comments(file)).collect::<Vec<_>>();
    let pages = markdown_files().iter().flat_map(|file| paragraphs(file)).collect::<Vec<_>>();
    let long: Vec<&Comment> =
        comments.iter().chain(&pages).filter(|it| longest_sentence(&it.text) > MAX_WORDS).collect();
    assert!(long.is_empty(), "{} sentences have more than {MAX_WORDS} words:\n{}", long.len(), list(&long));
}

#[test]
fn banned_words_do_not_occur() {
    let mut found = Vec::new();
    for file in text_files() {
        for (index, line) in read(&file).lines().enumerate() {
            let lower = line.to_lowercase();
            if BANNED.iter().any(|phrase| has_phrase(&lower, phrase)) {
                found.push(Comment { place: format!("{}:{}", shown(&file), index + 1), text: line.trim().to_owned() });
            }
        }
    }
    assert!(found.is_empty(), "{} lines have a banned word:\n{}", found.len(), list(&found.iter().collect::<Vec<_>>()));
}

#[test]
fn lines_of_pages_are_short() {
    let pages: Vec<PathBuf> = markdown_files().into_iter().filter(|file| !file.ends_with(GENERATED)).collect();
    let lines: Vec<Comment> = pages.iter().flat_map(|file| long_lines(file)).collect();
    let all: Vec<&Comment> = lines.iter().collect();
    assert!(all.is_empty(), "{} lines have more than {MAX_LINE} characters:\n{}", all.len(), list(&all));
}

#[test]
fn links_of_pages_lead_somewhere() {
    let files = markdown_files();
    let anchors: BTreeMap<PathBuf, BTreeSet<String>> =
        files.iter().map(|file| (absolute(file), anchors(&read(file)))).collect();
    let mut dead = Vec::new();
    for file in &files {
        for target in links(&without_code(&read(file))) {
            if !leads_somewhere(file, &target, &anchors) {
                dead.push(Comment { place: shown(file), text: target });
            }
        }
    }
    assert!(dead.is_empty(), "{} links lead nowhere:\n{}", dead.len(), list(&dead.iter().collect::<Vec<_>>()));
}

#[test]
fn links_and_anchors_follow_githubs_rules() {
    let page = "# The `a.b` of [c](d.md): e-f_g\n```sh\n# none\n```\n## Same\n## Same\n<a id=\"own\"></a>";
    let expected = ["the-ab-of-c-e-f_g", "same", "same-1", "own"].map(str::to_owned);
    assert_eq!(anchors(page), BTreeSet::from(expected));
    let page = "[a](b.md#c) `[d](e)` ![f](<g h>) [i\nj](k \"title\")\n[l]: m.md\n<img src=\"n.svg\">";
    assert_eq!(links(&without_code(page)), ["b.md#c", "g h", "k", "m.md", "n.svg"]);
    assert_eq!(without_targets("see [a](b.md), `c`"), "see [a], `c`");
}

#[test]
fn lint_separates_sentences_from_abbreviations_and_code() {
    assert_eq!(longest_sentence("One two. Three four five."), 3);
    assert_eq!(longest_sentence("See `a.b c.d e`, e.g. this."), 4, "code is one word, e.g. ends no sentence");
    assert!(has_phrase("what nobody sees", "nobody") && !has_phrase("nobodyx", "nobody"));
    assert!(begins_with_wh_word("How it is") && !begins_with_wh_word("However it is"));
}

/// A piece of prose and the place where it stands.
struct Comment {
    place: String,
    text: String,
}

fn list(comments: &[&Comment]) -> String {
    comments.iter().fold(String::new(), |mut all, it| {
        let _ = writeln!(all, "  {}: {}", it.place, it.text.chars().take(160).collect::<String>());
        all
    })
}

fn begins_with_wh_word(text: &str) -> bool {
    let first: String = text.chars().take_while(|it| it.is_alphabetic()).collect();
    WH_WORDS.contains(&first.as_str())
}

fn has_phrase(line: &str, phrase: &str) -> bool {
    line.match_indices(phrase).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + phrase.len()..].chars().next();
        !before.is_some_and(char::is_alphanumeric) && !after.is_some_and(char::is_alphanumeric)
    })
}

/// Number of words of the longest sentence; a code span is one word.
fn longest_sentence(text: &str) -> usize {
    let mut longest = 0;
    let mut words = 0;
    let prose: String =
        text.split('`').enumerate().map(|(index, part)| if index % 2 == 0 { part } else { "code" }).collect();
    for word in prose.split_whitespace() {
        words += usize::from(word.chars().any(char::is_alphanumeric));
        longest = longest.max(words);
        if ends_sentence(word) {
            words = 0;
        }
    }
    longest
}

fn ends_sentence(word: &str) -> bool {
    let bare = word.trim_end_matches(['"', ')', '*', '_', '\'']);
    bare.ends_with(['.', '?', '!']) && !matches!(bare, "e.g." | "i.e." | "etc.")
}

/// Doc comments of a Rust file: consecutive lines of `///` or `//!`, cut at blank lines, list items and code blocks.
fn doc_comments(file: &Path) -> Vec<Comment> {
    let lines = read(file);
    let lines = lines.lines().map(str::trim_start).map(|line| {
        line.strip_prefix("///").or_else(|| line.strip_prefix("//!")).filter(|rest| !rest.starts_with('/'))
    });
    blocks(file, lines.map(|line| line.map(str::trim)))
}

/// Paragraphs of a Markdown file, without headings, tables and code.
fn paragraphs(file: &Path) -> Vec<Comment> {
    let text = read(file);
    blocks(file, text.lines().map(str::trim).map(|line| (!line.starts_with(['|', '#', '<'])).then_some(line)))
}

/// Joins consecutive lines of prose. `None`, a blank line, a list item or a code fence ends a block.
fn blocks<'a>(file: &Path, lines: impl Iterator<Item = Option<&'a str>>) -> Vec<Comment> {
    let mut found: Vec<Comment> = Vec::new();
    let (mut open, mut fenced) = (false, false);
    for (index, line) in lines.enumerate() {
        let Some(line) = line else {
            open = false;
            continue;
        };
        if line.starts_with("```") {
            (fenced, open) = (!fenced, false);
        } else if fenced || line.is_empty() || line.starts_with('|') || line.starts_with('#') {
            open = false;
        } else if let Some(block) = found.last_mut().filter(|_| open && !is_list_item(line)) {
            block.text.push(' ');
            block.text.push_str(line);
        } else {
            found.push(Comment { place: format!("{}:{}", shown(file), index + 1), text: line.to_owned() });
            open = true;
        }
    }
    found
}

/// Lines of prose that are too long, without tables, code blocks and pictures.
fn long_lines(file: &Path) -> Vec<Comment> {
    let mut found = Vec::new();
    let mut fenced = false;
    for (index, line) in read(file).lines().enumerate() {
        let is_fence = line.trim_start().starts_with("```");
        fenced ^= is_fence;
        let is_prose = !fenced && !is_fence && !line.trim_start().starts_with(['|', '<']);
        if is_prose && without_targets(line).chars().count() > MAX_LINE {
            found.push(Comment { place: format!("{}:{}", shown(file), index + 1), text: line.to_owned() });
        }
    }
    found
}

/// Removes the targets of links, and bare addresses, which cannot be broken into lines.
fn without_targets(line: &str) -> String {
    let mut parts = line.split("](");
    let first = parts.next().unwrap_or_default().to_owned();
    let text = parts.fold(first, |text, part| text + "]" + part.split_once(')').map_or("", |(_, rest)| rest));
    text.split(' ').filter(|word| !word.contains("://")).collect::<Vec<_>>().join(" ")
}

/// Removes code blocks and code spans.
fn without_code(text: &str) -> String {
    let mut fenced = false;
    let prose = text.lines().filter(|line| {
        let is_fence = line.trim_start().starts_with("```");
        fenced ^= is_fence;
        !fenced && !is_fence
    });
    let prose = prose.collect::<Vec<_>>().join("\n");
    prose.split('`').step_by(2).collect::<Vec<_>>().join("`")
}

/// Targets of the links and pictures of a page without code.
fn links(text: &str) -> Vec<String> {
    let inline = text.split("](").skip(1).filter_map(|rest| match rest.strip_prefix('<') {
        Some(rest) => rest.split_once('>').map(|(target, _)| target),
        None => rest.split([')', ' ', '\n']).next(),
    });
    let references = text.lines().filter(|line| line.starts_with('[')).filter_map(|line| line.split_once("]: "));
    let tags = ["src=\"", "href=\""].into_iter().flat_map(|name| text.split(name).skip(1));
    let tags = tags.filter_map(|rest| rest.split_once('"')).map(|(target, _)| target);
    inline.chain(references.map(|(_, target)| target.trim())).chain(tags).map(str::to_owned).collect()
}

/// Returns whether a relative link has a file, and its anchor a heading. Other links are not checked.
fn leads_somewhere(page: &Path, target: &str, anchors: &BTreeMap<PathBuf, BTreeSet<String>>) -> bool {
    if target.contains("://") || target.starts_with("mailto:") {
        return true;
    }
    let (path, anchor) = target.split_once('#').map_or((target, None), |(path, anchor)| (path, Some(anchor)));
    let folder = page.parent().unwrap_or(page);
    let file = match path.strip_prefix('/') {
        Some(path) => root().join(path),
        None if path.is_empty() => page.to_owned(),
        None => folder.join(path),
    };
    file.exists() && anchor.is_none_or(|it| anchors.get(&absolute(&file)).is_none_or(|all| all.contains(it)))
}

fn absolute(file: &Path) -> PathBuf {
    file.canonicalize().unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// Anchors that GitHub gives to the headings of a page, and those that the page sets itself.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    let mut fenced = false;
    for line in text.lines() {
        let is_fence = line.trim_start().starts_with("```");
        fenced ^= is_fence;
        let heading = line.trim_start_matches('#');
        if !fenced && line.starts_with('#') && heading.starts_with(' ') {
            let slug = slug(heading);
            let time = times.entry(slug.clone()).or_default();
            found.insert(if *time == 0 { slug } else { format!("{slug}-{time}") });
            *time += 1;
        }
        let own = ["id=\"", "name=\""].into_iter().flat_map(|name| line.split(name).skip(1));
        found.extend(own.filter_map(|rest| rest.split_once('"')).map(|(anchor, _)| anchor.to_owned()));
    }
    found
}

/// Converts a heading to its anchor: lower case, hyphens for spaces, no other punctuation than hyphens and underscores.
fn slug(heading: &str) -> String {
    let text = without_targets(heading).trim().to_lowercase();
    let kept = text.chars().filter(|it| it.is_alphanumeric() || matches!(it, ' ' | '-' | '_'));
    kept.map(|it| if it == ' ' { '-' } else { it }).collect()
}

fn is_list_item(line: &str) -> bool {
    line.starts_with("- ")
        || line.starts_with("* ")
        || line.split_once(". ").is_some_and(|(it, _)| it.parse::<u8>().is_ok())
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn shown(file: &Path) -> String {
    file.strip_prefix(root()).unwrap_or(file).display().to_string()
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

fn rust_files() -> Vec<PathBuf> {
    files(&["rs"])
}

fn markdown_files() -> Vec<PathBuf> {
    files(&["md"])
}

fn text_files() -> Vec<PathBuf> {
    let mut files = files(&["rs", "md", "yaml", "proto", "sh", "toml", "txt", "tpl"]);
    files.retain(|file| !EXEMPT.iter().any(|exempt| file.ends_with(exempt)));
    files
}

/// Files of the repository with one of the extensions, without generated folders.
fn files(extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("a folder's entry is readable").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                if !["target", "dist", "LICENSES", "node_modules"].contains(&name.as_str()) && !name.starts_with(".git")
                {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|it| extensions.iter().any(|wanted| it == *wanted)) {
                found.push(path);
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no files with the extensions {extensions:?}");
    found
}
