//! Finds pages that no other file mentions.

use std::path::{Component, Path, PathBuf};

use crate::{
    Finding,
    files::{all, ends_in, text},
};

/// Finds pages (`*.md`) whose path no other file mentions. The README of the workspace need not be
/// mentioned.
pub(crate) fn unlinked_pages(root: &Path) -> Vec<Finding> {
    let files = all(root);
    let pages: Vec<&PathBuf> = files.iter().filter(|file| ends_in(file, &["md"])).collect();
    let mut mentioned = vec![Path::new("README.md").to_owned()];
    for file in &files {
        let text = text(&root.join(file));
        for path in paths(&text) {
            mentioned.extend(meant(path, file, &pages).filter(|page| page != file));
        }
    }
    let unlinked_pages = pages.into_iter().filter(|page| !mentioned.contains(page));
    let advice = "no other page or source mentions this page: link it, or remove it";
    unlinked_pages.map(|page| Finding::new(page, 1, advice)).collect()
}

/// Returns the words of a text that end in `.md`, which may be paths of pages.
fn paths(text: &str) -> impl Iterator<Item = &str> {
    let is_part = |c: char| c.is_alphanumeric() || "_-./".contains(c);
    let words = text.split(move |c| !is_part(c)).map(|word| word.trim_end_matches('.'));
    words.filter(|word| word.ends_with(".md"))
}

/// Returns the pages that the text `path` in the file `file` may refer to. `path` may be relative
/// to the file's folder or to a folder above it, or it may be a name that only one page has.
fn meant(path: &str, file: &Path, pages: &[&PathBuf]) -> impl Iterator<Item = PathBuf> {
    let seen = file.ancestors().skip(1).map(|folder| plain(&folder.join(path)));
    let mut found: Vec<PathBuf> = seen.filter(|seen| pages.contains(&seen)).take(1).collect();
    let named: Vec<_> = pages.iter().filter(|page| page.ends_with(path)).collect();
    if let [only] = named.as_slice() {
        found.push((**only).clone());
    }
    found.into_iter()
}

/// Resolves `.` and `..` in a path.
pub(crate) fn plain(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut plain, part| {
        match part {
            Component::ParentDir => drop(plain.pop()),
            Component::Normal(name) => plain.push(name),
            _ => {}
        }
        plain
    })
}
