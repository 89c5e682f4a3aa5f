//! `cargo amp init`: adds the missing files for `cargo amp` to a crate. Of the crate's existing
//! files it changes only `Cargo.toml`, `Cargo.lock` and `.gitignore`.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use super::changes::Changes;
use super::source::Source;
use super::template;
use crate::cargo;
use crate::error::Error;
use crate::project::{Package, Project};

/// Extends the package `wanted`, or else the package of the working directory, or else the only
/// package.
///
/// Prints for each file whether `cargo amp init` added, extended or did not change the file. If the
/// user must add lines to a file, prints the lines and ends with an error.
pub(crate) fn init(wanted: Option<&str>, amp_source: Option<&str>) -> Result<ExitCode, Error> {
    let project = Project::find()?;
    let package = project.to_extend(wanted)?;
    let mut init = Init { project: &project, package, changes: Changes::default(), said: vec![] };
    // Adding the dependencies comes first, because it is the step that is most likely to fail.
    let source = init.add_dependencies(amp_source)?;
    let binary_is_new = init.add_binary()?;
    let config_is_fit = init.add_config()?;
    init.add_ignored()?;
    init.add_workflow(source.as_ref(), amp_source)?;
    let Init { changes, said, .. } = init;
    changes.keep();
    for line in said {
        say!("{line}");
    }
    if binary_is_new {
        print_advice(&project, package)?;
    }
    let binary_is_found = Project::find()?.named(&package.name)?.has_binary();
    match (binary_is_found, config_is_fit) {
        (true, true) => Ok(ExitCode::SUCCESS),
        (true, false) => {
            say!("add these lines to {}:\n\n{}", template::CONFIG, template::config());
            Err(Error::new(format!(
                "your {} does not say where libtorch is: add the lines above to it",
                template::CONFIG
            )))
        }
        (false, _) => Err(Error::new(format!(
            "cargo does not look for binaries in src/bin: add `[[bin]]` with `name = \"amp\"` and \
             `path = \"{}\"` to {}",
            template::BINARY,
            package.folder.join("Cargo.toml").display()
        ))),
    }
}

struct Init<'a> {
    project: &'a Project,
    package: &'a Package,
    changes: Changes,
    /// The lines to print at the end: for each file, whether it was added, extended or not changed.
    said: Vec<String>,
}

impl Init<'_> {
    /// Lets cargo add the missing dependencies. Returns their source, or `None` if no dependency
    /// was missing.
    fn add_dependencies(&mut self, amp_source: Option<&str>) -> Result<Option<Source>, Error> {
        let missing: Vec<_> = ["amp-core", "amp-verify"]
            .into_iter()
            .filter(|name| !self.package.dependencies.iter().any(|known| known == name))
            .collect();
        if missing.is_empty() {
            self.say("unchanged", "Cargo.toml");
            return Ok(None);
        }
        let source = Source::find(amp_source)?;
        let manifest = self.package.folder.join("Cargo.toml");
        self.changes.remember(&manifest)?;
        self.changes.remember(&self.project.root().join("Cargo.lock"))?;
        for name in &missing {
            let mut command = cargo::command();
            command.args(["add", "--quiet", "--manifest-path"]).arg(&manifest);
            cargo::run(command.args(source.add_arguments(name)), |reason| {
                format!("cargo cannot add {name} to Cargo.toml: {reason}; nothing was changed")
            })?;
        }
        self.say("extended", &format!("Cargo.toml: the dependencies {}", missing.join(", ")));
        Ok(Some(source))
    }

    /// Adds the `amp` binary if the crate has none. Returns whether the binary was added.
    fn add_binary(&mut self) -> Result<bool, Error> {
        let path = self.package.folder.join(template::BINARY);
        if self.package.has_binary() || path.exists() {
            self.say("unchanged", template::BINARY);
            return Ok(false);
        }
        self.changes.write(&path, &template::binary_with_registry(&self.package.name))?;
        self.say("added", template::BINARY);
        Ok(true)
    }

    /// Adds `.cargo/config.toml` if the crate has no such file. Returns whether cargo finds
    /// libtorch with the resulting configuration.
    fn add_config(&mut self) -> Result<bool, Error> {
        let path = self.project.root().join(template::CONFIG);
        // Cargo also reads `.cargo/config` without extension, and prefers it to
        // `.cargo/config.toml`.
        let old = path.with_extension("");
        let path = if old.exists() { old } else { path };
        let Some(text) = read(&path)? else {
            self.changes.write(&path, template::config())?;
            self.say("added", template::CONFIG);
            return Ok(true);
        };
        self.say("unchanged", template::CONFIG);
        let settings: String =
            text.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
        Ok(["LIBTORCH", ".libtorch/torch", "-rpath"].iter().all(|part| settings.contains(part)))
    }

    fn add_ignored(&mut self) -> Result<(), Error> {
        let path = self.project.root().join(template::IGNORED);
        let known = read(&path)?;
        let bare = |line: &str| line.trim().trim_matches('/').to_owned();
        let had: Vec<_> = known.iter().flat_map(|text| text.lines()).map(bare).collect();
        let missing: Vec<_> =
            template::ignored().filter(|line| !had.contains(&bare(line))).collect();
        if missing.is_empty() {
            self.say("unchanged", template::IGNORED);
            return Ok(());
        }
        let done = if known.is_some() { "extended" } else { "added" };
        let mut text = known.unwrap_or_default();
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(&missing.join("\n"));
        text.push('\n');
        self.changes.write(&path, &text)?;
        self.say(done, &format!("{}: {}", template::IGNORED, missing.join(", ")));
        Ok(())
    }

    fn add_workflow(
        &mut self,
        source: Option<&Source>,
        amp_source: Option<&str>,
    ) -> Result<(), Error> {
        let path = self.project.root().join(template::WORKFLOW);
        if path.exists() {
            self.say("unchanged", template::WORKFLOW);
            return Ok(());
        }
        let text = match source {
            Some(source) => template::workflow(source),
            None => template::workflow(&Source::find(amp_source)?),
        };
        self.changes.write(&path, &text)?;
        self.say("added", template::WORKFLOW);
        Ok(())
    }

    fn say(&mut self, done: &str, what: &str) {
        self.said.push(format!("{done:<9} {what}"));
    }
}

/// Prints what the user can do next.
fn print_advice(project: &Project, package: &Package) -> Result<(), Error> {
    say!(
        "next: register your models in {}, each with a margin; `cargo amp gate` then judges them",
        template::BINARY
    );
    if !package.has_library() {
        say!("next: put your models into src/lib.rs, where the binary `amp` can use them");
    }
    let others: Vec<_> = package.binaries().filter(|name| *name != "amp").collect();
    if let ([only], None) = (others.as_slice(), &package.default_run) {
        say!(
            "next: add `default-run = \"{only}\"` to [package] in Cargo.toml, so that `cargo run` \
             still starts {only}"
        );
    }
    let manifest = read(&project.root().join("Cargo.toml"))?.unwrap_or_default();
    if !manifest.contains("[profile.dev") {
        say!(
            "next: add `[profile.dev]` with `opt-level = 1` to {}: without it, training is slow in \
             `cargo amp verify` and in the tests",
            project.root().join("Cargo.toml").display()
        );
    }
    Ok(())
}

/// Returns the text of a file, or `None` if the file does not exist.
fn read(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::new(format!("{} cannot be read: {e}", path.display()))),
    }
}
