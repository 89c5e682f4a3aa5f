//! Reads the command line.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::slice;

use crate::error::Error;
use crate::libtorch::Variant;

pub(crate) const HELP: &str = "\
cargo amp: train models in mixed precision, and compare each precision with
32-bit training

usage: cargo amp [--package NAME] <command> [arguments]
begin: cargo amp new my-model && cd my-model && cargo amp verify

These commands belong to cargo amp itself:

  new      create a crate with a model, its data, a golden test and a CI workflow:
           cargo amp new NAME [--amp-source SOURCE]
  init     add the same files to the crate in this folder; your files are kept:
           cargo amp init [--amp-source SOURCE]
  test     run all tests of the workspace, two test binaries at a time:
           cargo amp test [--device cpu|cuda] [-- <test arguments>]
  pack     write everything for a GPU machine without Rust to dist/ (binaries,
           tests, goldens, data and run.sh):
           cargo amp pack [--output FOLDER] [--bin-only]
  setup    only fetch libtorch 2.11.0: cargo amp setup [--cpu | --cuda]
  help     print this help

These commands belong to the binary `amp` of your crate (src/bin/amp.rs). cargo amp
builds it and passes the arguments on. `cargo amp verify --help` shows the options of
verify. If several packages of a workspace have such a binary, choose with --package.

  verify     train under every precision and compare each run with 32-true
  train      train under one precision
  validate   evaluate a checkpoint on the validation sets
  test-set   evaluate a checkpoint on the test sets
  predict    write the predictions of a checkpoint to files
  summary    show layers, shapes, parameters, operations and the memory of a step
  layers     show the rounding error of each layer under a precision
  diagnose   find which modules must stay in FP32
  gate       decide whether each precision is as good as 32-true, for CI
  bench      measure speed and memory
  parity     compare training with the model's PyTorch version
  margins    record how much worse than 32-true each model may be (its margin), and
             how far goldens differ between CPUs
  selftest   test that the gate reports known faults
  models     list the models and their data
  doctor     show the devices and the recommended precision

SOURCE is the source of amp-core and amp-verify: a folder, a git URL (with #REV for
a revision) or a version. The default is the source of the installed cargo-amp.

Settings in Cargo.toml, with paths relative to the package's folder:
  [package.metadata.amp]
  pack = [\"data\"]               files and folders that `pack` also copies, to the same
                                paths as in the workspace
  pack-skip-tests = [\"ui\"]      test binaries that `pack` does not copy
  [workspace.metadata.amp]
  test-python-packages = [\"tensorboard==2.20.0\"]
                                Python packages for tests. `test` fetches them once
                                into .amp/python; AMP_TEST_PYTHON has that path

cargo amp fetches libtorch 2.11.0 once for all projects with `python3 -m pip`, into
${XDG_CACHE_HOME:-~/.cache}/cargo-amp. A project's .libtorch is a link to it.
  setup --cpu              for CPUs only: 0.5 GB on the disk, 0.5 GB to download. The
                           default on a machine without an NVIDIA driver
  setup --cuda             for CPUs and CUDA: 3.6 GB on the disk, 2.5 GB to download.
                           The default on a machine with an NVIDIA driver
To use another libtorch, set one of these variables:
  LIBTORCH=<folder>        a libtorch 2.11.0 folder
  LIBTORCH_USE_PYTORCH=1   the torch 2.11.0 of your Python

Exit codes: those of cargo or of the binary. If `cargo amp` itself cannot carry out
the request, it prints one line with the reason and exits with 2.
";

/// The device on which `cargo amp test` runs the tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    Cpu,
    Cuda,
}

impl Device {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Device::Cpu => "cpu",
            Device::Cuda => "cuda",
        }
    }

    fn parse(name: &OsStr) -> Result<Self, Error> {
        [Device::Cpu, Device::Cuda].into_iter().find(|d| name == d.name()).ok_or_else(|| {
            Error::new(format!("unknown device `{}`: use cpu or cuda", name.display()))
        })
    }
}

/// The parsed command line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Invocation {
    /// The package of the workspace to which the command applies.
    pub(crate) package: Option<String>,
    pub(crate) request: Request,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Help,
    /// Fetches libtorch, in this variant if one is given.
    Setup(Option<Variant>),
    New {
        name: String,
        amp_source: Option<String>,
    },
    Init {
        amp_source: Option<String>,
    },
    Test {
        device: Option<Device>,
        /// The arguments after `--`, which are passed to the test binaries.
        arguments: Vec<OsString>,
    },
    Pack {
        /// The folder that `cargo amp pack` writes. `None` means `dist` in the project's root.
        output: Option<PathBuf>,
        bin_only: bool,
    },
    /// Runs the project's `amp` binary with these arguments. The first argument is the subcommand,
    /// for example `verify`.
    Amp(Vec<OsString>),
}

impl Invocation {
    pub(crate) fn parse(arguments: Vec<OsString>) -> Result<Self, Error> {
        let mut words = Words(arguments.iter());
        // For `cargo amp`, cargo passes `amp` as the first argument. An alias of `cargo run` does
        // not.
        if words.0.as_slice().first().is_some_and(|first| first == "amp") {
            words.0.next();
        }
        let mut package = None;
        while let Some(first) = words.0.as_slice().first() {
            if !first.to_string_lossy().starts_with('-') || is_help(first) {
                break;
            }
            words.0.next();
            if !words.package(first, &mut package)? {
                return Err(Error::new(format!(
                    "unexpected option `{}` before the command: put a command's options after the \
                     command",
                    first.display()
                )));
            }
        }
        let all = words.0.as_slice();
        let request = match words.0.next().map(|command| command.to_str()) {
            None | Some(Some("help" | "--help" | "-h")) => Request::Help,
            Some(Some("setup")) => words.setup()?,
            Some(Some("new")) => words.new_crate()?,
            Some(Some("init")) => words.init(&mut package)?,
            Some(Some("test")) => words.test(&mut package)?,
            Some(Some("pack")) => words.pack(&mut package)?,
            Some(_) => Request::Amp(all.to_vec()),
        };
        Ok(Self { package, request })
    }
}

/// The arguments that have not been read yet.
struct Words<'a>(slice::Iter<'a, OsString>);

impl Words<'_> {
    fn setup(&mut self) -> Result<Request, Error> {
        let mut wanted = None;
        for word in self.0.by_ref() {
            if is_help(word) {
                return Ok(Request::Help);
            }
            let variant = match word.to_str() {
                Some("--cpu") => Variant::Cpu,
                Some("--cuda") => Variant::Cuda,
                _ => return Err(unexpected(word, "setup", "--cpu or --cuda")),
            };
            if wanted.replace(variant).is_some_and(|before| before != variant) {
                return Err(Error::new(
                    "--cpu and --cuda exclude each other: use --cuda, which includes what CPUs need",
                ));
            }
        }
        Ok(Request::Setup(wanted))
    }

    fn new_crate(&mut self) -> Result<Request, Error> {
        let (mut name, mut amp_source) = (None, None);
        while let Some(word) = self.0.next() {
            if is_help(word) {
                return Ok(Request::Help);
            } else if let Some(value) = self.value(word, "--amp-source", SOURCE)? {
                amp_source = Some(utf8(&value)?);
            } else if word.to_string_lossy().starts_with('-') || name.is_some() {
                return Err(unexpected(word, "new", "a NAME and --amp-source SOURCE"));
            } else {
                name = Some(utf8(word)?);
            }
        }
        let name = name.ok_or_else(|| {
            Error::new(
                "the crate's name is missing: run `cargo amp new NAME`, for example with the name \
                 my-model",
            )
        })?;
        Ok(Request::New { name, amp_source })
    }

    fn init(&mut self, package: &mut Option<String>) -> Result<Request, Error> {
        let mut amp_source = None;
        while let Some(word) = self.0.next() {
            if is_help(word) {
                return Ok(Request::Help);
            } else if let Some(value) = self.value(word, "--amp-source", SOURCE)? {
                amp_source = Some(utf8(&value)?);
            } else if !self.package(word, package)? {
                return Err(unexpected(word, "init", "--package NAME and --amp-source SOURCE"));
            }
        }
        Ok(Request::Init { amp_source })
    }

    fn test(&mut self, package: &mut Option<String>) -> Result<Request, Error> {
        let mut device = None;
        while let Some(word) = self.0.next() {
            if word == "--" {
                break;
            } else if is_help(word) {
                return Ok(Request::Help);
            } else if let Some(name) = self.value(word, "--device", "use cpu or cuda")? {
                device = Some(Device::parse(&name)?);
            } else if !self.package(word, package)? {
                return Err(Error::new(format!(
                    "unexpected argument `{}`: put arguments for the tests behind `--`; for \
                     cargo's own options use `cargo test`",
                    word.display()
                )));
            }
        }
        Ok(Request::Test { device, arguments: self.0.as_slice().to_vec() })
    }

    fn pack(&mut self, package: &mut Option<String>) -> Result<Request, Error> {
        let (mut output, mut bin_only) = (None, false);
        while let Some(word) = self.0.next() {
            if is_help(word) {
                return Ok(Request::Help);
            } else if word == "--bin-only" {
                bin_only = true;
            } else if let Some(folder) = self.value(word, "--output", "give a folder")? {
                output = Some(folder.into());
            } else if !self.package(word, package)? {
                let takes = "--output FOLDER, --bin-only and --package NAME";
                return Err(unexpected(word, "pack", takes));
            }
        }
        Ok(Request::Pack { output, bin_only })
    }

    /// Reads the option that names a package of the workspace into `package`. Returns whether
    /// `word` is this option.
    fn package(&mut self, word: &OsStr, package: &mut Option<String>) -> Result<bool, Error> {
        let hint = "name a package of the workspace";
        let long = self.value(word, "--package", hint)?;
        let Some(value) = long.map_or_else(|| self.value(word, "-p", hint), |v| Ok(Some(v)))?
        else {
            return Ok(false);
        };
        *package = Some(utf8(&value)?);
        Ok(true)
    }

    /// Returns the value of the option `name` if `word` is that option, given as `name value` or
    /// `name=value`.
    fn value(&mut self, word: &OsStr, name: &str, hint: &str) -> Result<Option<OsString>, Error> {
        let value = if word == name {
            self.0.next().cloned()
        } else {
            match word.to_str().and_then(|word| word.strip_prefix(name)?.strip_prefix('=')) {
                Some(value) => Some(value.into()),
                None => return Ok(None),
            }
        };
        match value {
            Some(value) if !value.is_empty() => Ok(Some(value)),
            _ => Err(Error::new(format!("{name} needs a value: {hint}"))),
        }
    }
}

const SOURCE: &str = "a folder, a git URL or a version";

fn unexpected(word: &OsStr, command: &str, takes: &str) -> Error {
    Error::new(format!(
        "unexpected argument `{}`: `cargo amp {command}` takes {takes}",
        word.display()
    ))
}

fn utf8(word: &OsStr) -> Result<String, Error> {
    word.to_str().map(String::from).ok_or_else(|| {
        Error::new(format!("`{}` is not UTF-8: Cargo.toml cannot contain it", word.display()))
    })
}

fn is_help(word: &OsString) -> bool {
    word == "--help" || word == "-h"
}
