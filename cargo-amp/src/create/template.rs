//! The files of a new crate. They are stored in the folder `templates`, where they can be read and
//! formatted as ordinary files. The crate in these files is named `my-model`.

use super::source::Source;

/// The path of a file in the new crate, and the text of the file.
pub(crate) type File = (&'static str, String);

pub(crate) const BINARY: &str = "src/bin/amp.rs";
pub(crate) const CONFIG: &str = ".cargo/config.toml";
pub(crate) const IGNORED: &str = ".gitignore";
pub(crate) const WORKFLOW: &str = ".github/workflows/amp.yml";

/// Returns the lines that a project's `.gitignore` must contain.
pub(crate) fn ignored() -> impl Iterator<Item = &'static str> {
    include_str!("../../templates/gitignore").lines()
}

/// Returns the text of `.cargo/config.toml`, which tells cargo and the built binaries where
/// libtorch is.
pub(crate) fn config() -> &'static str {
    include_str!("../../templates/config.toml")
}

pub(crate) fn workflow(source: &Source) -> String {
    include_str!("../../templates/workflow.yml").replace("INSTALL", &source.install_command())
}

/// Returns the source text of an `amp` binary for a crate that already has models. Its registry is
/// empty, because the user must register these models.
pub(crate) fn binary_with_registry(name: &str) -> String {
    named(include_str!("../../templates/init_amp.rs"), name)
}

/// Returns every file of a new crate.
pub(crate) fn new_crate(name: &str, source: &Source) -> Vec<File> {
    let manifest = named(include_str!("../../templates/Cargo.toml.in"), name)
        .replace("AMP_CORE", &source.dependency("amp-core"))
        .replace("AMP_VERIFY", &source.dependency("amp-verify"));
    vec![
        ("Cargo.toml", manifest),
        ("README.md", named(include_str!("../../templates/README.md"), name)),
        ("src/lib.rs", named(include_str!("../../templates/lib.rs"), name)),
        ("src/data.rs", named(include_str!("../../templates/data.rs"), name)),
        (BINARY, named(include_str!("../../templates/amp.rs"), name)),
        ("tests/golden.rs", named(include_str!("../../templates/golden.rs"), name)),
        (CONFIG, config().into()),
        (IGNORED, include_str!("../../templates/gitignore").into()),
        (WORKFLOW, workflow(source)),
    ]
}

/// Replaces `my-model` in `text` by the crate's name.
fn named(text: &str, name: &str) -> String {
    text.replace("my-model", name).replace("my_model", &name.replace('-', "_"))
}
