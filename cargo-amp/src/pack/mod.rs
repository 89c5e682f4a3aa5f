//! `cargo amp pack`: creates a folder that can be copied to a machine with a GPU and without Rust.
//!
//! The packed folder contains `run.sh`, the binaries in `bin`, and files of the packages. Each of
//! these files has the same relative path as in the workspace. Goldens (results for golden tests)
//! that are recorded on the other machine can therefore be copied back to the same paths.

mod folder;

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use crate::cargo::{self, Executable};
use crate::error::Error;
use crate::handover;
use crate::libtorch::Libtorch;
use crate::project::{Package, Project};
use folder::Folder;

/// Names at the top of the packed folder that no file of a package may have there.
const RESERVED: [&str; 2] = ["run.sh", "bin"];

/// What to pack. [`new`](Pack::new) checks what can be checked before anything is downloaded or
/// built.
pub(crate) struct Pack<'a> {
    project: &'a Project,
    package: &'a Package,
    folder: Folder,
    bin_only: bool,
}

impl<'a> Pack<'a> {
    /// Checks a request to pack the amp binary of `package` into `output`, or into `dist` in the
    /// project's root.
    pub(crate) fn new(
        project: &'a Project,
        package: &'a Package,
        output: Option<PathBuf>,
        bin_only: bool,
    ) -> Result<Self, Error> {
        for package in project.packages() {
            for path in &package.pack {
                check(project, package, path)?;
            }
        }
        // Checks that `strip` exists before the builds, because the builds take minutes.
        let strip = Command::new("strip").arg("--version").stdout(Stdio::null()).status();
        strip.map_err(|e| {
            Error::new(format!("strip cannot be run ({e}): install it (package binutils)"))
        })?;
        let output = output.unwrap_or_else(|| project.root().join("dist"));
        Ok(Self { project, package, folder: Folder::new(output)?, bin_only })
    }

    /// Builds and packs.
    pub(crate) fn run(mut self, libtorch: &Libtorch) -> Result<ExitCode, Error> {
        // Builds with the release profile, because the packed binary also runs `bench`, which
        // measures time.
        let amp = match handover::build(libtorch, self.package, true)? {
            ControlFlow::Continue(amp) => amp,
            ControlFlow::Break(code) => return Ok(code),
        };
        let mut checks = vec![];
        if !self.bin_only {
            match self.build_checks(libtorch)? {
                ControlFlow::Continue(built) => checks = built,
                ControlFlow::Break(code) => return Ok(code),
            }
        }
        self.folder.begin()?;
        strip(&amp, &self.folder.place("bin/amp")?)?;
        for (path, executable) in &checks {
            strip(&executable.path, &self.folder.place(path)?)?;
        }
        self.folder.script("run.sh", include_str!("run.sh"))?;
        self.folder.write("bin/packages", &self.packages())?;
        self.copy_files()?;
        let (path, bytes) = self.folder.finish()?;
        say!(
            "packed {} ({:.1} MiB): copy it to a machine with Python's torch 2.11.0 and run \
             `./run.sh verify --device cuda`{} there",
            path.display(),
            bytes as f64 / f64::from(1 << 20),
            if self.bin_only { "" } else { " or `./run.sh test`" }
        );
        Ok(ExitCode::SUCCESS)
    }

    /// Copies the files that the packages list, and the recorded margins of the amp binary's
    /// package. If tests are packed, also copies the goldens (recorded results).
    fn copy_files(&self) -> Result<(), Error> {
        for package in self.project.packages() {
            let mut files: Vec<_> = package.pack.iter().map(String::as_str).collect();
            if package.name == self.package.name {
                files.push("margins.json");
            }
            if !self.bin_only {
                files.push("tests/goldens");
            }
            // The files that the packages list exist, as `new` has checked. The margins and the
            // goldens may be missing.
            files.retain(|path| package.folder.join(path).exists());
            for path in files {
                let place = place(self.project, package).join(path);
                self.folder.copy(&package.folder.join(path), &place)?;
            }
        }
        Ok(())
    }

    /// Returns the content of `bin/packages`: one line for each package, with its name and its path
    /// in the packed folder. The package of the amp binary comes first.
    fn packages(&self) -> String {
        let others = self.project.packages().iter().filter(|one| one.name != self.package.name);
        let line = |package: &Package| {
            format!("{} {}\n", package.name, place(self.project, package).display())
        };
        [self.package].into_iter().chain(others).map(line).collect()
    }

    /// Builds the tests and benchmarks of the workspace with the dev profile, as `cargo test` does.
    /// Returns the executables with their paths in the packed folder.
    fn build_checks(
        &self,
        libtorch: &Libtorch,
    ) -> Result<ControlFlow<ExitCode, Vec<(PathBuf, Executable)>>, Error> {
        let cargo = |arguments: &[&str]| {
            let mut command = cargo::command();
            command.args(arguments);
            libtorch.apply(&mut command);
            cargo::build(command)
        };
        let mut checks = vec![];
        match cargo(&["test", "--no-run", "--workspace"])? {
            ControlFlow::Continue(built) => checks.extend(self.tests(built)?),
            ControlFlow::Break(code) => return Ok(ControlFlow::Break(code)),
        }
        let names = self.project.packages().iter().flat_map(Package::benchmarks);
        let names: Vec<_> = names.flat_map(|name| ["--bench", name]).collect();
        if !names.is_empty() {
            match cargo(&[&["build", "--workspace"], names.as_slice()].concat())? {
                ControlFlow::Continue(built) => {
                    checks.extend(self.placed("bin/benches", built, |found| found.kind == "bench"));
                }
                ControlFlow::Break(code) => return Ok(ControlFlow::Break(code)),
            }
        }
        Ok(ControlFlow::Continue(checks))
    }

    /// Returns those test binaries in `built` that no package excludes in its `Cargo.toml`.
    fn tests(&self, mut built: Vec<Executable>) -> Result<Vec<(PathBuf, Executable)>, Error> {
        built.retain(|found| {
            // Leaves out the test binary of `amp`, which has no tests, and those of procedural
            // macros, which run only where the compiler's libraries are installed.
            let is_amp = found.kind == "bin" && found.target == "amp";
            found.is_test && !is_amp && found.kind != "proc-macro"
        });
        for package in self.project.packages() {
            let of_package = built.iter().filter(|found| found.package == package.folder);
            let names: Vec<_> = of_package.map(|found| &*found.target).collect();
            let skip = &package.pack_skip_tests;
            if let Some(unknown) = skip.iter().find(|name| !names.contains(&&***name)) {
                return Err(Error::new(format!(
                    "pack-skip-tests of `{}` names `{unknown}`, but the package has no test \
                     binary of this name: its test binaries are {}",
                    package.name,
                    names.join(", ")
                )));
            }
            built.retain(|found| found.package != package.folder || !skip.contains(&found.target));
        }
        Ok(self.placed("bin/tests", built, |_| true))
    }

    /// Returns the executables in `built` for which `wanted` is true, with their paths in the
    /// packed folder.
    fn placed(
        &self,
        folder: &str,
        built: Vec<Executable>,
        wanted: impl Fn(&Executable) -> bool,
    ) -> Vec<(PathBuf, Executable)> {
        let package = |found: &Executable| {
            self.project.packages().iter().find(|package| package.folder == found.package)
        };
        let place = |found: Executable| {
            let package = &package(&found)?.name;
            // A library and an integration test may have the same name, so the kind (such as `lib`)
            // is appended to the name of a library's test binary.
            let name = match &*found.kind {
                "test" | "bench" => found.target.clone(),
                kind => format!("{}-{kind}", found.target),
            };
            Some((Path::new(folder).join(package).join(name), found))
        };
        built.into_iter().filter(wanted).filter_map(place).collect()
    }
}

/// Returns the folder for a package's files in the packed folder.
fn place<'a>(project: &Project, package: &'a Package) -> &'a Path {
    // A package outside the workspace's folder gets a folder with its name.
    package.folder.strip_prefix(project.root()).unwrap_or(Path::new(&package.name))
}

/// Returns an error if `path` cannot be copied to the same relative path in the packed folder.
fn check(project: &Project, package: &Package, path: &str) -> Result<(), Error> {
    let refuse = |why: &str| {
        Err(Error::new(format!(
            "`pack` in [package.metadata.amp] of `{}` names `{path}`, {why}",
            package.name
        )))
    };
    let is_plain = |part: Component| matches!(part, Component::Normal(_));
    if path.is_empty() || !Path::new(path).components().all(is_plain) {
        return refuse("which is not a path in the package's folder");
    }
    let place = place(project, package).join(path);
    let first = place.components().next().map(Component::as_os_str);
    if RESERVED.iter().any(|name| first == Some(OsStr::new(name))) {
        return refuse("which the packed folder uses itself: rename it");
    }
    if !package.folder.join(path).exists() {
        return refuse(&format!("which is not in {}", package.folder.display()));
    }
    Ok(())
}

/// Copies an executable to `place` without its debug symbols.
fn strip(executable: &Path, place: &Path) -> Result<(), Error> {
    let mut command = Command::new("strip");
    let status = command.arg("--strip-all").arg("-o").arg(place).arg(executable).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Error::new(format!(
            "strip could not copy {} to {} ({status}): see its message above",
            executable.display(),
            place.display()
        ))),
        Err(e) => Err(Error::new(format!("strip cannot be run: {e}"))),
    }
}
