//! The binary that `cargo amp` builds and runs, with the registry of your models.

use std::process::ExitCode;

use amp_verify::{Registry, project};

fn main() -> ExitCode {
    amp_verify::main(registry())
}

/// Returns the registry of this crate. Register your models and their data sets here:
///
/// ```ignore
/// Registry::new(project!())
///     .data_set(DataSet::new("mine", my_model::data).about("what the data holds"))
///     .model(model!(MyNet).about("what the model is").data("mine").epochs(10).batch_size(64))
/// ```
fn registry() -> Registry {
    Registry::new(project!())
}
