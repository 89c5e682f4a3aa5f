//! Checks the links between pages. The file must exist, and if the link has a part after `#`, the
//! file must have a heading of that name.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use crate::{
    Finding,
    files::{all, ends_in, text},
    pages::plain,
};

/// The folder of the book (the documentation that mdBook builds). `SUMMARY` is the file with its
/// table of contents.
const BOOK: &str = "docs";
const SUMMARY: &str = "SUMMARY.md";

/// Finds links in pages (`*.md`) whose target does not exist. Links to the web and between pages of
/// rustdoc (`derive.Batch.html`) are not checked.
pub(crate) fn broken(root: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    for page in pages(root) {
        for (line, target) in links(&text(&root.join(&page))) {
            if let Some(problem) = problem(root, &page, &target) {
                findings.push(Finding::new(&page, line, format!("link `{target}`: {problem}")));
            }
        }
    }
    findings
}

/// Finds pages in `docs` that the table of contents does not list. Also finds links to files
/// outside of `docs`, because such links do not work in the built book.
pub(crate) fn outside_the_book(root: &Path) -> Vec<Finding> {
    let book = Path::new(BOOK);
    let summary = book.join(SUMMARY);
    let listed: Vec<PathBuf> =
        links(&text(&root.join(&summary))).map(|(_, target)| plain(&book.join(target))).collect();
    let mut findings = Vec::new();
    for page in pages(root).into_iter().filter(|page| page.starts_with(book)) {
        if page != summary && !listed.contains(&page) {
            findings.push(Finding::new(&page, 1, format!("list this page in {BOOK}/{SUMMARY}")));
        }
        for (line, target) in links(&text(&root.join(&page))) {
            let path = target.split('#').next().unwrap_or_default();
            let file = plain(&page.with_file_name("").join(path));
            if !path.is_empty() && !is_elsewhere(&target) && !file.starts_with(book) {
                let advice = format!("the book contains only {BOOK}: name the file without a link");
                findings.push(Finding::new(&page, line, format!("link `{target}`: {advice}")));
            }
        }
    }
    findings
}

fn pages(root: &Path) -> Vec<PathBuf> {
    all(root).into_iter().filter(|file| ends_in(file, &["md"])).collect()
}

/// Returns `None` if the target of the link exists. Otherwise returns the reason why it does not
/// exist.
fn problem(root: &Path, page: &Path, target: &str) -> Option<String> {
    if is_elsewhere(target) {
        return None;
    }
    let (path, anchor) = target.split_once('#').map_or((target, None), |(p, a)| (p, Some(a)));
    let file =
        if path.is_empty() { page.to_owned() } else { plain(&page.with_file_name("").join(path)) };
    let full = root.join(&file);
    if !full.exists() {
        return Some(format!("there is no {}", file.display()));
    }
    let anchor = anchor?;
    let found = anchors(&text(&full)).any(|known| known == anchor);
    (!found).then(|| format!("{} has no heading of this name", file.display()))
}

fn is_elsewhere(target: &str) -> bool {
    let of_rustdoc = target.split('#').next().is_some_and(|path| path.ends_with(".html"));
    of_rustdoc || ["http:", "https:", "mailto:"].iter().any(|start| target.starts_with(start))
}

/// Returns the lines outside code blocks with their numbers.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fence: Option<&str> = None;
    text.lines().enumerate().filter_map(move |(number, line)| {
        let mark = ["```", "~~~"].into_iter().find(|mark| line.trim_start().starts_with(mark));
        match (fence, mark) {
            (None, None) => return Some((number + 1, line)),
            (None, Some(mark)) => fence = Some(mark),
            (Some(open), Some(mark)) if open == mark => fence = None,
            (Some(_), _) => {}
        }
        None
    })
}

/// Returns the targets of links and images with their line numbers.
fn links(text: &str) -> impl Iterator<Item = (usize, String)> {
    let mut found = Vec::new();
    for (number, line) in prose(text) {
        // Text between backticks is code and is not searched for links.
        let line: String = line.split('`').step_by(2).collect();
        for rest in line.split("](").skip(1) {
            let target = rest.split(')').next().unwrap_or_default();
            let target = target.split(' ').next().unwrap_or_default();
            found.push((number, target.to_owned()));
        }
    }
    found.into_iter()
}

/// Returns the anchors of the headings in `text`, in the form of GitHub and mdBook. They are in
/// lower case, without punctuation, and with a hyphen for each space. If headings have the same
/// text, a number is added to all but the first.
fn anchors(text: &str) -> impl Iterator<Item = String> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let heading = |line: &str| {
        let title =
            line.trim_start_matches('#').strip_prefix(' ').filter(|_| line.starts_with('#'));
        title.map(|title| title.trim().to_owned())
    };
    let mut names = Vec::new();
    for title in prose(text).filter_map(|(_, line)| heading(line)) {
        let keep = |c: &char| c.is_alphanumeric() || ['-', '_', ' '].contains(c);
        let name: String = title.chars().filter(keep).collect();
        let name = name.to_lowercase().replace(' ', "-");
        let count = seen.entry(name.clone()).or_default();
        names.push(if *count == 0 { name } else { format!("{name}-{count}") });
        *count += 1;
    }
    names.into_iter()
}
