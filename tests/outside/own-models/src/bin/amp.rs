//! The program that `cargo amp` runs in this project.

use std::process::ExitCode;

fn main() -> ExitCode {
    amp_verify::main(own_models::registry())
}
