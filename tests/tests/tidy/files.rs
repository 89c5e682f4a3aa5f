//! The workspace's files, and the limit on their length.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::Finding;

/// The largest number of lines of a file.
const LINES: usize = 400;
const CODE: &[&str] = &["rs", "cpp", "h", "cu", "cuh", "py"];
/// Folders of the project whose names begin with a dot. All further folders with such names belong
/// to tools and are not searched.
const DOTTED: &[&str] = &[".cargo", ".ci", ".github"];

/// Lists the workspace's files, with paths relative to `root`.
pub(crate) fn all(root: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(root.join(&folder)).expect("a folder can be read");
        for entry in entries {
            let entry = entry.expect("a folder's entry");
            let name = entry.file_name();
            let (name, path) = (name.to_string_lossy(), folder.join(&*name));
            let kind = entry.file_type().expect("a kind of file");
            if kind.is_file() {
                files.push(path);
            } else if kind.is_dir() && is_own(&name) {
                folders.push(path);
            }
        }
    }
    files.sort();
    files
}

fn is_own(folder: &str) -> bool {
    let dotted = folder.starts_with('.') && !DOTTED.contains(&folder);
    !dotted && !["target", "dist", "__pycache__"].contains(&folder)
}

/// Returns whether `file` has one of the extensions in `endings`.
pub(crate) fn ends_in(file: &Path, endings: &[&str]) -> bool {
    let ending = file.extension().and_then(|ending| ending.to_str());
    ending.is_some_and(|ending| endings.contains(&ending))
}

/// Returns the text of a file, or an empty string if the file is not text.
pub(crate) fn text(path: &Path) -> String {
    fs::read(path).ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default()
}

/// Finds files with code that are longer than the limit.
pub(crate) fn long(root: &Path) -> Vec<Finding> {
    let code = all(root).into_iter().filter(|file| ends_in(file, CODE));
    let finding = |file: PathBuf| {
        let lines = text(&root.join(&file)).lines().count();
        (lines > LINES).then(|| {
            let text = format!("{lines} lines, at most {LINES}: move a part into another file");
            Finding::new(file, lines, text)
        })
    };
    code.filter_map(finding).collect()
}
