//! `cargo amp` in this project.

use std::process::ExitCode;

fn main() -> ExitCode {
    amp_verify::main(own_models::registry())
}
