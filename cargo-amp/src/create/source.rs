//! Finds where a user's crate gets its dependencies amp-core and amp-verify from: a folder, a git
//! repository or crates.io.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::Error;

/// The two ways in which cargo writes crates.io as the source of a package.
const CRATES_IO: [&str; 2] =
    ["registry+https://github.com/rust-lang/crates.io-index", "sparse+https://index.crates.io/"];

/// Where cargo gets amp-core and amp-verify from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A local checkout of this repository.
    Path(PathBuf),
    /// A git repository. `rev` is the revision. Without it, cargo takes the newest commit of the
    /// default branch.
    Git { url: String, rev: Option<String> },
    /// A version on crates.io.
    Version(String),
}

impl Source {
    /// Returns the source that the user gives with `--amp-source`. Without this option, returns the
    /// source from which cargo-amp was installed, so that the crate depends on the same version of
    /// amp-core.
    pub(crate) fn find(option: Option<&str>) -> Result<Self, Error> {
        if let Some(option) = option {
            return Self::parse(option);
        }
        if let Some(checkout) = run_from_checkout() {
            return Self::checkout(&checkout);
        }
        let unknown = |why: &str| {
            Error::new(format!(
                "where amp-core comes from is not known, because {why}: pass --amp-source with a \
                 folder, a git URL or a version"
            ))
        };
        let package =
            recorded().ok_or_else(|| unknown("cargo-amp was not installed by `cargo install`"))?;
        Self::of_package(&package)
            .unwrap_or_else(|| Err(unknown(&format!("cargo-amp was installed from {package}"))))
    }

    /// Parses the value of `--amp-source`: a git URL, a version or a folder.
    fn parse(option: &str) -> Result<Self, Error> {
        if option.contains("://") || option.starts_with("git@") {
            let (url, rev) = match option.split_once('#') {
                Some((url, rev)) => (url, Some(rev.into())),
                None => (option, None),
            };
            return Ok(Source::Git { url: url.into(), rev });
        }
        let is_version = option.trim_start_matches(['=', '^', '~']).starts_with(char::is_numeric);
        if is_version && !Path::new(option).exists() {
            return Ok(Source::Version(option.into()));
        }
        Self::checkout(Path::new(option))
    }

    /// Returns the absolute path of `folder`, after a check that the folder contains the crates
    /// `amp-core` and `amp-verify`.
    fn checkout(folder: &Path) -> Result<Self, Error> {
        let lacks = |what: String| {
            Error::new(format!(
                "{} {what}: point --amp-source at a checkout of the repository of amp-core, a git \
                 URL or a version",
                folder.display()
            ))
        };
        let absolute = folder.canonicalize().map_err(|e| lacks(format!("cannot be read ({e})")))?;
        match ["amp-core", "amp-verify"]
            .into_iter()
            .find(|name| !absolute.join(name).join("Cargo.toml").is_file())
        {
            Some(missing) => Err(lacks(format!("has no {missing}/Cargo.toml"))),
            None => Ok(Source::Path(absolute)),
        }
    }

    /// Parses the source of an installed package as cargo writes it, for example
    /// `git+https://…#<revision>`. Returns `None` if the package comes from a registry other than
    /// crates.io.
    fn of_package(identifier: &str) -> Option<Result<Self, Error>> {
        if let Some(url) = identifier.strip_prefix("git+") {
            let (url, rev) = url.split_once('#')?;
            // The revision (a commit) is enough, so a branch or tag (`?branch=…`) is dropped.
            let url = url.split('?').next()?;
            return Some(Ok(Source::Git { url: url.into(), rev: Some(rev.into()) }));
        }
        if let Some(path) = identifier.strip_prefix("path+file://") {
            return Some(Self::checkout(Path::new(&percent_decoded(path)?).parent()?));
        }
        CRATES_IO
            .contains(&identifier)
            .then(|| Ok(Source::Version(env!("CARGO_PKG_VERSION").into())))
    }

    /// Formats the dependency on `package` for a `Cargo.toml`.
    pub(crate) fn dependency(&self, package: &str) -> String {
        match self {
            Source::Path(folder) => {
                format!("{{ path = {} }}", quoted(&folder.join(package).to_string_lossy()))
            }
            Source::Git { url, rev: Some(rev) } => {
                format!("{{ git = {}, rev = {} }}", quoted(url), quoted(rev))
            }
            Source::Git { url, rev: None } => format!("{{ git = {} }}", quoted(url)),
            Source::Version(version) => quoted(version),
        }
    }

    /// Returns the arguments with which `cargo add` adds the dependency `package` from this source.
    pub(crate) fn add_arguments(&self, package: &str) -> Vec<String> {
        match self {
            Source::Path(folder) => {
                vec!["--path".into(), folder.join(package).display().to_string()]
            }
            Source::Git { url, rev } => {
                let mut arguments = vec!["--git".into(), url.clone()];
                arguments.extend(rev.iter().flat_map(|rev| ["--rev".into(), rev.clone()]));
                arguments.push(package.into());
                arguments
            }
            Source::Version(version) => vec![format!("{package}@{version}")],
        }
    }

    /// Returns the command that installs the same version of cargo-amp on another machine.
    pub(crate) fn install_command(&self) -> String {
        match self {
            Source::Path(folder) => {
                format!("cargo install --path {}", folder.join("cargo-amp").display())
            }
            Source::Git { url, rev } => {
                let rev = rev.as_ref().map(|rev| format!(" --rev {rev}")).unwrap_or_default();
                format!("cargo install --git {url}{rev} cargo-amp")
            }
            Source::Version(version) => format!("cargo install cargo-amp --version {version}"),
        }
    }
}

/// Returns the checkout from which `cargo run` started this program.
fn run_from_checkout() -> Option<PathBuf> {
    if env::var("CARGO_PKG_NAME").ok()? != env!("CARGO_PKG_NAME") {
        return None;
    }
    Path::new(&env::var_os("CARGO_MANIFEST_DIR")?).parent().map(Path::to_owned)
}

/// Returns the source from which `cargo install` installed this program, for example
/// `git+https://…#<revision>`. Cargo records it in a file in the parent of the folder `bin` that
/// contains the program.
fn recorded() -> Option<String> {
    let program = env::current_exe().ok()?;
    let record = fs::read(program.parent()?.parent()?.join(".crates2.json")).ok()?;
    let record: Value = serde_json::from_slice(&record).ok()?;
    // Each key has the form `name version (source)`.
    record["installs"].as_object()?.keys().find_map(|package| {
        let (_version, source) = package.strip_prefix("cargo-amp ")?.split_once(" (")?;
        source.strip_suffix(')').map(String::from)
    })
}

/// Decodes the path of a `file:` URL.
fn percent_decoded(path: &str) -> Option<String> {
    let mut decoded = Vec::new();
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            u8::from_str_radix(str::from_utf8(&digits).ok()?, 16).ok()?
        } else {
            byte
        });
    }
    String::from_utf8(decoded).ok()
}

/// Formats `text` as a TOML string. A JSON string is valid TOML, so this function writes JSON.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::{Source, percent_decoded};

    fn of_package(identifier: &str) -> Option<Source> {
        Source::of_package(identifier).map(|found| found.expect("a source"))
    }

    #[test]
    fn the_record_of_an_installation_says_where_the_libraries_are() {
        let git = of_package("git+https://host/repo?branch=main#0123abc").expect("known");
        assert_eq!(
            git,
            Source::Git { url: "https://host/repo".into(), rev: Some("0123abc".into()) }
        );
        assert_eq!(git.dependency("amp-core"), r#"{ git = "https://host/repo", rev = "0123abc" }"#);
        assert_eq!(
            git.add_arguments("amp-core"),
            ["--git", "https://host/repo", "--rev", "0123abc", "amp-core"]
        );
        assert_eq!(
            git.install_command(),
            "cargo install --git https://host/repo --rev 0123abc cargo-amp"
        );

        let version = Source::Version(env!("CARGO_PKG_VERSION").into());
        let crates_io = "registry+https://github.com/rust-lang/crates.io-index";
        assert_eq!(of_package(crates_io), Some(version));
        assert_eq!(of_package("registry+https://elsewhere/index"), None);
        assert_eq!(of_package("something new"), None);
    }

    #[test]
    fn a_source_is_a_url_a_version_or_a_folder() {
        let parse = |option| Source::parse(option).expect("a source");
        assert_eq!(
            parse("ssh://git@host/repo#v1"),
            Source::Git { url: "ssh://git@host/repo".into(), rev: Some("v1".into()) }
        );
        let git = parse("git@host:repo");
        assert_eq!(git.dependency("amp-core"), r#"{ git = "git@host:repo" }"#);
        assert_eq!(git.add_arguments("amp-core"), ["--git", "git@host:repo", "amp-core"]);
        assert_eq!(parse("=0.1.0").dependency("amp-core"), r#""=0.1.0""#);
        assert_eq!(parse("0.1").add_arguments("amp-core"), ["amp-core@0.1"]);
        assert!(Source::parse("nowhere").is_err());
    }

    #[test]
    fn the_path_of_a_url_is_decoded() {
        assert_eq!(percent_decoded("/a%20b/%C3%BC").as_deref(), Some("/a b/ü"));
        assert_eq!(percent_decoded("/a%2"), None);
        assert_eq!(percent_decoded("/a%zz"), None);
    }
}
