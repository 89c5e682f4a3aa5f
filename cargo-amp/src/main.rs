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
    let request = Request::parse(env::args_os().skip(1).collect())?;
    if request == Request::Help {
        print!("{}", cli::HELP);
        return Ok(ExitCode::SUCCESS);
    }
    let checkout = Checkout::find()?;
    let libtorch = Libtorch::find_or_provision(&checkout)?;
    match request {
        Request::Test { device, arguments } => {
            tensorboard::ensure(&checkout)?;
            handover::test(&checkout, &libtorch, device, &arguments)
        }
        Request::Amp(arguments) => handover::amp(&checkout, &libtorch, &arguments),
        Request::Setup | Request::Help => {
            println!("libtorch {} is ready in {libtorch}", libtorch::version::REQUIRED);
            Ok(ExitCode::SUCCESS)
        }
    }
}
