//! The manifest lists libtorch's files with their sizes. A folder is complete if it has a manifest,
//! and all files that the manifest lists, with these sizes.

use std::fs;
use std::io;
use std::path::Path;

use super::variant::Variant;
use super::version::REQUIRED;

const NAME: &str = "amp-manifest";

/// The version of the folder's layout. If you change the layout, increase this number: `cargo amp`
/// then replaces all folders that have another number.
const LAYOUT: u32 = 1;

/// The files of a libtorch. The manifest is written after all other files, so a folder without a
/// manifest may be incomplete.
pub(super) struct Manifest {
    pub(super) variant: Variant,
    /// The size and path of each file.
    pub(super) files: Vec<(u64, String)>,
}

/// What was found when the manifest was read.
pub(super) enum Found {
    Nothing,
    /// The manifest exists but cannot be used, for this reason.
    Unusable(String),
    Manifest(Manifest),
}

impl Manifest {
    pub(super) fn find(folder: &Path) -> Found {
        let text = match fs::read_to_string(folder.join(NAME)) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Found::Nothing,
            Err(e) => return Found::Unusable(format!("{NAME} cannot be read: {e}")),
        };
        match Self::parse(&text) {
            Some(manifest) => Found::Manifest(manifest),
            None => Found::Unusable("made by another version of cargo-amp".into()),
        }
    }

    /// Writes the manifest atomically, so that an interruption leaves no partial manifest.
    pub(super) fn write(&self, folder: &Path) -> io::Result<()> {
        let mut text = header(self.variant) + "\n";
        for (size, path) in &self.files {
            text += &format!("{size} {path}\n");
        }
        let unfinished = folder.join(format!("{NAME}.new"));
        fs::write(&unfinished, text)?;
        fs::rename(unfinished, folder.join(NAME))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let first = lines.next()?;
        let variant = Variant::parse(first.rsplit(' ').next()?)?;
        let files = lines.map(parse_line).collect::<Option<_>>()?;
        (first == header(variant)).then_some(Manifest { variant, files })
    }

    /// Checks the sizes of the files in `folder` for whose paths `is_looked_at` returns true.
    pub(super) fn check(
        &self,
        folder: &Path,
        is_looked_at: impl Fn(&str) -> bool,
    ) -> Result<(), String> {
        check_sizes(folder, self.files.iter().filter(|(_, path)| is_looked_at(path)))
    }
}

/// Checks the size of each of `files`.
pub(super) fn check_sizes<'a>(
    folder: &Path,
    files: impl IntoIterator<Item = &'a (u64, String)>,
) -> Result<(), String> {
    for (size, path) in files {
        if fs::metadata(folder.join(path)).map(|found| found.len()).ok() != Some(*size) {
            return Err(format!("{path} is missing or cut short"));
        }
    }
    Ok(())
}

/// Parses a line of a manifest: `size path`.
pub(super) fn parse_line(line: &str) -> Option<(u64, String)> {
    let (size, path) = line.split_once(' ')?;
    Some((size.parse().ok()?, path.to_owned()))
}

fn header(variant: Variant) -> String {
    format!("libtorch {REQUIRED}, layout {LAYOUT}, {}", variant.name())
}

#[cfg(test)]
mod tests {
    use super::{Manifest, header};
    use crate::libtorch::variant::Variant;

    #[test]
    fn a_manifest_of_another_kind_is_not_read() {
        let read = |text: &str| Manifest::parse(text).map(|m| (m.variant, m.files));
        let one = vec![(12, "torch/a file.h".to_owned())];
        let whole = header(Variant::Cuda) + "\n12 torch/a file.h\n";
        assert_eq!(read(&whole), Some((Variant::Cuda, one)));
        assert_eq!(read(&whole.replace("layout 1", "layout 0")), None);
        assert_eq!(read(&whole.replace("2.11.0", "2.10.0")), None);
        assert_eq!(read(&whole.replace("12 ", "")), None);
        assert_eq!(read("torch==2.11.0\n"), None);
        assert_eq!(read(""), None);
    }
}
