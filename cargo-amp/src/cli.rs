//! What was asked for on the command line.

use std::ffi::OsString;

use crate::error::Error;

pub(crate) const HELP: &str = "\
cargo amp: mixed-precision training, held against 32-bit training

usage: cargo amp <command> [arguments]

  verify   train under every precision and print the comparison
  test     run the tests: cargo amp test [--device cpu|cuda] [-- <test arguments>]
  setup    only fetch libtorch 2.11.0 (about 4.6 GB, once)
  help     print this

every other command goes, with its arguments, to the amp binary, which is built
first: `cargo amp verify --help` shows the options of verify.

`test` fetches tensorboard once into .tensorboard (130 MB), whose reader a test runs.
libtorch 2.11.0 is fetched once into .libtorch with `python3 -m pip`. to use another:
  LIBTORCH=<folder>        a libtorch 2.11.0 folder
  LIBTORCH_USE_PYTORCH=1   the torch 2.11.0 of your python
";

/// A device that the tests can be pointed at.
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

    fn parse(name: &OsString) -> Result<Self, Error> {
        [Device::Cpu, Device::Cuda].into_iter().find(|d| name == d.name()).ok_or_else(|| {
            Error::new(format!("unknown device `{}`: use cpu or cuda", name.display()))
        })
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Help,
    Setup,
    Test {
        device: Option<Device>,
        /// What follows `--`, for the test binaries.
        arguments: Vec<OsString>,
    },
    /// All arguments, the subcommand included, for the amp binary.
    Amp(Vec<OsString>),
}

impl Request {
    pub(crate) fn parse(arguments: Vec<OsString>) -> Result<Self, Error> {
        match arguments.first().and_then(|first| first.to_str()) {
            None if arguments.is_empty() => Ok(Request::Help),
            Some("help" | "--help" | "-h") => Ok(Request::Help),
            Some("setup") => setup(&arguments[1..]),
            Some("test") => test(&arguments[1..]),
            _ => Ok(Request::Amp(arguments)),
        }
    }
}

fn setup(rest: &[OsString]) -> Result<Request, Error> {
    match rest.first() {
        None => Ok(Request::Setup),
        Some(first) if is_help(first) => Ok(Request::Help),
        Some(first) => Err(Error::new(format!(
            "unexpected argument `{}`: `cargo amp setup` takes none",
            first.display()
        ))),
    }
}

fn test(rest: &[OsString]) -> Result<Request, Error> {
    let mut device = None;
    let mut rest = rest.iter();
    while let Some(argument) = rest.next() {
        if argument == "--" {
            break;
        } else if is_help(argument) {
            return Ok(Request::Help);
        } else if argument == "--device" {
            let name =
                rest.next().ok_or_else(|| Error::new("--device needs a value: use cpu or cuda"))?;
            device = Some(Device::parse(name)?);
        } else if let Some(name) = argument.to_str().and_then(|a| a.strip_prefix("--device=")) {
            device = Some(Device::parse(&name.into())?);
        } else {
            return Err(Error::new(format!(
                "unexpected argument `{}`: put arguments for the tests behind `--`; for cargo's \
                 own options use `cargo test`",
                argument.display()
            )));
        }
    }
    Ok(Request::Test { device, arguments: rest.cloned().collect() })
}

fn is_help(argument: &OsString) -> bool {
    argument == "--help" || argument == "-h"
}
