//! `cargo amp`: finds or provisions libtorch, then hands over to cargo or to the amp binary.
//!
//! This crate depends on nothing, so that it builds in a second on a fresh clone, before there
//! is a libtorch to build anything else with.

mod checkout;
mod cli;
mod error;
mod handover;
mod libtorch;
mod lock;
mod pip;
mod process;
mod tensorboard;

use std::env;
use std::process::ExitCode;

use checkout::Checkout;
use cli::Request;
use error::Error;
use libtorch::Libtorch;

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::from(2)
    })
}

fn run() -> Result<ExitCode, Error> {
    match Request::parse(env::args_os().skip(1).collect())? {
        Request::Help => {
            print!("{}", cli::HELP);
            Ok(ExitCode::SUCCESS)
        }
        Request::Setup(wanted) => {
            let libtorch = Libtorch::setup(Checkout::find()?.root(), wanted)?;
            let all = if libtorch.exceeds(wanted) { ": it has all that --cpu fetches" } else { "" };
            println!("libtorch {} is ready in {libtorch}{all}", libtorch::version::REQUIRED);
            Ok(ExitCode::SUCCESS)
        }
        Request::Test { device, arguments } => {
            let checkout = Checkout::find()?;
            let libtorch = Libtorch::find_or_provision(checkout.root())?;
            tensorboard::ensure(&checkout)?;
            handover::test(&checkout, &libtorch, device, &arguments)
        }
        Request::Amp(arguments) => {
            let checkout = Checkout::find()?;
            let libtorch = Libtorch::find_or_provision(checkout.root())?;
            handover::amp(&checkout, &libtorch, &arguments)
        }
    }
}
