//! What was asked for on the command line.

use std::ffi::OsString;

use crate::error::Error;
use crate::libtorch::Variant;

pub(crate) const HELP: &str = "\
cargo amp: mixed-precision training, held against 32-bit training

usage: cargo amp <command> [arguments]

  verify   train under every precision and print the comparison
  test     run the tests: cargo amp test [--device cpu|cuda] [-- <test arguments>]
  setup    only fetch libtorch 2.11.0: cargo amp setup [--cpu | --cuda]
  help     print this

every other command goes, with its arguments, to the amp binary, which is built
first: `cargo amp verify --help` shows the options of verify.

libtorch 2.11.0 is fetched once for all projects with `python3 -m pip`, into
${XDG_CACHE_HOME:-~/.cache}/cargo-amp, to which .libtorch is a link. what is fetched:
  setup --cpu              what a machine without an NVIDIA GPU needs: 0.5 GB, of a
                           download of 0.5 GB; the default where no driver is found
  setup --cuda             the same with CUDA, or CUDA added to it: 3.6 GB, of a
                           download of 2.5 GB; the default where a driver is found
to use another:
  LIBTORCH=<folder>        a libtorch 2.11.0 folder
  LIBTORCH_USE_PYTORCH=1   the torch 2.11.0 of your python
`test` fetches tensorboard once into .tensorboard (130 MB), whose reader a test runs.
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
    /// What to fetch, if that is said.
    Setup(Option<Variant>),
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
    let mut wanted = None;
    for argument in rest {
        if is_help(argument) {
            return Ok(Request::Help);
        }
        let variant = match argument.to_str() {
            Some("--cpu") => Variant::Cpu,
            Some("--cuda") => Variant::Cuda,
            _ => {
                return Err(Error::new(format!(
                    "unexpected argument `{}`: `cargo amp setup` takes --cpu or --cuda",
                    argument.display()
                )));
            }
        };
        if wanted.replace(variant).is_some_and(|before| before != variant) {
            return Err(Error::new(
                "--cpu and --cuda exclude each other: use --cuda, which includes what CPUs need",
            ));
        }
    }
    Ok(Request::Setup(wanted))
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
