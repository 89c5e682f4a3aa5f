//! The user's project, found by cargo from the working directory.

use std::env;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::cargo;
use crate::error::Error;

/// The name of the binary that calls `amp_verify::main` with the user's registry.
const BINARY: &str = "amp";

/// A workspace, or a crate outside a workspace.
pub(crate) struct Project {
    root: PathBuf,
    packages: Vec<Package>,
    /// The index in `packages` of the package that contains the working directory. `None` if no
    /// package contains it, for example in the root of a virtual workspace.
    current: Option<usize>,
    test_python_packages: Vec<String>,
}

/// A package that is a member of the workspace.
pub(crate) struct Package {
    pub(crate) name: String,
    /// The folder that contains the package's `Cargo.toml`.
    pub(crate) folder: PathBuf,
    /// The binary that `cargo run` starts by default, if the package's `Cargo.toml` names one.
    pub(crate) default_run: Option<String>,
    pub(crate) dependencies: Vec<String>,
    pub(crate) targets: Vec<Target>,
    /// The paths to copy in `cargo amp pack`, relative to `folder`.
    pub(crate) pack: Vec<String>,
    /// The test binaries that `cargo amp pack` does not pack.
    pub(crate) pack_skip_tests: Vec<String>,
}

/// A cargo target: a library, binary, test or benchmark.
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) kind: String,
    /// Whether cargo builds the target only if certain features are enabled.
    pub(crate) needs_features: bool,
    /// Whether `cargo test` runs the target's tests.
    pub(crate) has_tests: bool,
    /// Whether `cargo test` runs the target's documentation tests.
    pub(crate) has_doc_tests: bool,
}

impl Project {
    /// Asks cargo for the workspace and the package of the working directory.
    pub(crate) fn find() -> Result<Self, Error> {
        let working = env::current_dir()
            .map_err(|e| Error::new(format!("the working directory cannot be read: {e}")))?;
        if !working.ancestors().any(|folder| folder.join("Cargo.toml").is_file()) {
            return Err(Error::new(format!(
                "{} is not inside a crate: change into one, or create one with `cargo amp new NAME`",
                working.display()
            )));
        }
        Self::from_metadata(&cargo::metadata()?, &working)
    }

    fn from_metadata(metadata: &Value, working: &Path) -> Result<Self, Error> {
        let settings = Settings::new(
            &metadata["metadata"]["amp"],
            "[workspace.metadata.amp]",
            &["test-python-packages"],
        )?;
        let packages = items(&metadata["packages"])
            .iter()
            .map(Package::from_metadata)
            .collect::<Result<Vec<_>, _>>()?;
        // A package may be in a folder inside another package's folder, so the innermost package is
        // chosen.
        let current = (0..packages.len())
            .filter(|&at| working.starts_with(&packages[at].folder))
            .max_by_key(|&at| packages[at].folder.as_os_str().len());
        Ok(Self {
            root: text(&metadata["workspace_root"]).into(),
            packages,
            current,
            test_python_packages: settings.list("test-python-packages")?,
        })
    }

    /// Returns the folder with the workspace's `Cargo.toml`, `.cargo` and `target`.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn packages(&self) -> &[Package] {
        &self.packages
    }

    /// Returns the Python packages that pip installs before the tests run.
    pub(crate) fn test_python_packages(&self) -> &[String] {
        &self.test_python_packages
    }

    /// Returns the package whose `amp` binary is to run. This is the package `wanted` if given, or
    /// else the current package, or else the only package of the workspace that has an `amp`
    /// binary.
    pub(crate) fn with_binary(&self, wanted: Option<&str>) -> Result<&Package, Error> {
        if let Some(package) = wanted.map(|name| self.named(name)).transpose()? {
            return if package.has_binary() { Ok(package) } else { Err(package.has_no_binary()) };
        }
        if let Some(current) = self.current().filter(|package| package.has_binary()) {
            return Ok(current);
        }
        let having: Vec<_> = self.packages.iter().filter(|package| package.has_binary()).collect();
        match (having.as_slice(), self.current()) {
            ([only], _) => Ok(only),
            ([], Some(current)) => Err(current.has_no_binary()),
            ([], None) => Err(Error::new(format!(
                "no package of {} has a binary `{BINARY}`: run `cargo amp init` in the folder of \
                 the package with your models",
                self.root.display()
            ))),
            (several, _) => Err(Error::new(format!(
                "the packages {} each have a binary `{BINARY}`: say which with `cargo amp \
                 --package NAME <command>`, or change into its folder",
                names(several.iter().copied())
            ))),
        }
    }

    /// Returns the package that `cargo amp init` extends: the package `wanted`, or the current
    /// package, or the only package.
    pub(crate) fn to_extend(&self, wanted: Option<&str>) -> Result<&Package, Error> {
        if let Some(name) = wanted {
            return self.named(name);
        }
        match (self.current(), self.packages.as_slice()) {
            (Some(package), _) | (None, [package]) => Ok(package),
            (None, packages) => Err(Error::new(format!(
                "{} holds the packages {}: say which one to extend with `cargo amp --package NAME \
                 init`, or change into its folder",
                self.root.display(),
                names(packages)
            ))),
        }
    }

    /// Returns the package called `name`, which must be a member of the workspace.
    pub(crate) fn named(&self, name: &str) -> Result<&Package, Error> {
        self.packages.iter().find(|package| package.name == name).ok_or_else(|| {
            Error::new(format!(
                "there is no package `{name}` in {}: it has {}",
                self.root.display(),
                names(&self.packages)
            ))
        })
    }

    fn current(&self) -> Option<&Package> {
        self.current.map(|at| &self.packages[at])
    }
}

impl Package {
    fn from_metadata(package: &Value) -> Result<Self, Error> {
        let name = text(&package["name"]);
        let settings = Settings::new(
            &package["metadata"]["amp"],
            &format!("[package.metadata.amp] of `{name}`"),
            &["pack", "pack-skip-tests"],
        )?;
        let manifest = Path::new(text(&package["manifest_path"]));
        let target = |target: &Value| Target {
            name: text(&target["name"]).into(),
            kind: text(&target["kind"][0]).into(),
            needs_features: !items(&target["required-features"]).is_empty(),
            has_tests: target["test"] == true,
            has_doc_tests: target["doctest"] == true,
        };
        Ok(Self {
            name: name.into(),
            folder: manifest.parent().unwrap_or(manifest).into(),
            default_run: package["default_run"].as_str().map(String::from),
            dependencies: items(&package["dependencies"])
                .iter()
                // Leaves out dev-dependencies and build-dependencies, the only ones with a `kind`.
                .filter(|dependency| dependency["kind"].is_null())
                .map(|dependency| text(&dependency["name"]).into())
                .collect(),
            targets: items(&package["targets"]).iter().map(target).collect(),
            pack: settings.list("pack")?,
            pack_skip_tests: settings.list("pack-skip-tests")?,
        })
    }

    pub(crate) fn has_binary(&self) -> bool {
        self.binaries().any(|name| name == BINARY)
    }

    /// Returns the names of the binaries of the package.
    pub(crate) fn binaries(&self) -> impl Iterator<Item = &str> {
        self.targets.iter().filter(|target| target.kind == "bin").map(|target| &*target.name)
    }

    /// Returns the names of the benchmarks that cargo builds without features.
    pub(crate) fn benchmarks(&self) -> impl Iterator<Item = &str> {
        let benchmarks = self.targets.iter().filter(|t| t.kind == "bench" && !t.needs_features);
        benchmarks.map(|target| &*target.name)
    }

    pub(crate) fn has_library(&self) -> bool {
        self.targets.iter().any(Target::is_library)
    }

    fn has_no_binary(&self) -> Error {
        Error::new(format!(
            "`{}` has no binary `{BINARY}`: run `cargo amp init` in {}",
            self.name,
            self.folder.display()
        ))
    }
}

impl Target {
    pub(crate) fn is_library(&self) -> bool {
        !["bin", "test", "bench", "example", "custom-build"].contains(&&*self.kind)
    }
}

/// The table `metadata.amp` in a `Cargo.toml`.
struct Settings<'a> {
    table: &'a Value,
    place: String,
}

impl<'a> Settings<'a> {
    /// Returns an error for an unknown key, because a misspelt key would have no effect.
    fn new(table: &'a Value, place: &str, known: &[&str]) -> Result<Self, Error> {
        let odd = match table {
            Value::Null => None,
            Value::Object(keys) => keys.keys().find(|key| !known.contains(&key.as_str())),
            _ => return Err(Error::new(format!("{place} in Cargo.toml must be a table"))),
        };
        match odd {
            None => Ok(Self { table, place: place.into() }),
            Some(key) => Err(Error::new(format!(
                "{place} in Cargo.toml has an unknown key `{key}`: use {}",
                known.join(" or ")
            ))),
        }
    }

    fn list(&self, key: &str) -> Result<Vec<String>, Error> {
        let value = &self.table[key];
        let strings: Option<Vec<_>> =
            items(value).iter().map(|item| item.as_str().map(String::from)).collect();
        strings.filter(|_| value.is_array() || value.is_null()).ok_or_else(|| {
            Error::new(format!("`{key}` in {} in Cargo.toml must be a list of strings", self.place))
        })
    }
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn names<'a>(packages: impl IntoIterator<Item = &'a Package>) -> String {
    let names: Vec<_> = packages.into_iter().map(|package| format!("`{}`", package.name)).collect();
    names.join(", ")
}
