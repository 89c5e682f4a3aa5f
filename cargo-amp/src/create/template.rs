//! The files of a new crate. They are real files under `templates`, so that they can be read and
//! formatted. The crate in them is named `my-model`.

use super::source::Source;

/// A path in the crate, and the text of the file.
pub(crate) type File = (&'static str, String);

pub(crate) const BINARY: &str = "src/bin/amp.rs";
pub(crate) const CONFIG: &str = ".cargo/config.toml";
pub(crate) const IGNORED: &str = ".gitignore";
pub(crate) const WORKFLOW: &str = ".github/workflows/amp.yml";

/// The entries of `.gitignore`.
pub(crate) fn ignored() -> impl Iterator<Item = &'static str> {
    include_str!("../../templates/gitignore").lines()
}

/// The settings that let cargo and the binaries find libtorch.
pub(crate) fn config() -> &'static str {
    include_str!("../../templates/config.toml")
}

pub(crate) fn workflow(source: &Source) -> String {
    include_str!("../../templates/workflow.yml").replace("INSTALL", &source.install_command())
}

/// The binary with an empty registry, for a crate that already has models.
pub(crate) fn binary_with_registry(name: &str) -> String {
    named(include_str!("../../templates/init_amp.rs"), name)
}

/// Every file of a new crate.
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

/// `text` with the crate's name `name` in place of `my-model`.
fn named(text: &str, name: &str) -> String {
    text.replace("my-model", name).replace("my_model", &name.replace('-', "_"))
}
