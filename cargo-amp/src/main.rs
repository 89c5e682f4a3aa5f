//! `cargo amp`: finds the project and libtorch, then starts cargo or the project's own `amp`
//! binary. It also creates, extends and packs projects.
//!
//! This crate has few dependencies and does not depend on libtorch. It can therefore be built in
//! seconds, before libtorch is installed.

#[macro_use]
mod say;
mod test_build;
mod test_parts;

mod cargo;
mod cli;
mod create;
mod error;
mod handover;
mod libtorch;
mod lock;
mod pack;
mod pip;
mod process;
mod project;
mod python;

use std::env;
use std::process::ExitCode;

use cli::{Invocation, Request};
use error::Error;
use handover::TestOptions;
use libtorch::Libtorch;
use pack::Pack;
use project::Project;
use test_build::TestBuild;

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        note!("error: {error}");
        ExitCode::from(2)
    })
}

fn run() -> Result<ExitCode, Error> {
    let Invocation { package, request } = Invocation::parse(env::args_os().skip(1).collect())?;
    let package = package.as_deref();
    match request {
        Request::Help => {
            say!("{}", cli::HELP.trim_end());
            Ok(ExitCode::SUCCESS)
        }
        Request::New { name, amp_source } => create::new(&name, amp_source.as_deref()),
        Request::Init { amp_source } => create::init(package, amp_source.as_deref()),
        Request::Setup(wanted) => {
            let libtorch = Libtorch::setup(Project::find()?.root(), wanted)?;
            let all =
                if libtorch.exceeds(wanted) { ": it includes everything for CPUs" } else { "" };
            say!("libtorch {} is ready in {libtorch}{all}", libtorch::version::REQUIRED);
            Ok(ExitCode::SUCCESS)
        }
        Request::Test { device, arguments } => {
            let project = Project::find()?;
            let package = package.map(|name| project.named(name)).transpose()?;
            let libtorch = libtorch_of(&project)?;
            let build = python::is_missing(&project)
                .then(|| TestBuild::start(&libtorch, package))
                .transpose()?;
            let python = python::ensure(&project)?;
            if let Some(build) = build {
                let status = build.wait()?;
                if !status.success() {
                    return Ok(cargo::exit_code(status));
                }
            }
            let options = TestOptions { python, device, arguments };
            handover::test(&libtorch, &project, package, &options)
        }
        Request::Pack { output, bin_only } => {
            let project = Project::find()?;
            let pack = Pack::new(&project, project.with_binary(package)?, output, bin_only)?;
            pack.run(&libtorch_of(&project)?)
        }
        Request::Amp(arguments) => {
            let project = Project::find()?;
            let package = project.with_binary(package)?;
            handover::amp(&libtorch_of(&project)?, package, &arguments)
        }
    }
}

fn libtorch_of(project: &Project) -> Result<Libtorch, Error> {
    Libtorch::find_or_provision(project.root())
}
