//! The binary that `cargo amp` builds and runs.

use std::process::ExitCode;

fn main() -> ExitCode {
    amp_verify::main(my_model::registry())
}
