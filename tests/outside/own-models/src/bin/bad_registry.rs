//! Runs `cargo amp` with a registry that has one mistake, which the variable `MISTAKE` chooses.
//! `tests/commands/bad_registry.rs` checks the errors.

use std::{env, process::ExitCode};

use amp_verify::{DataSet, Registry, model, project};
use own_models::{RingNet, data::rings};

fn main() -> ExitCode {
    let mistake = env::var("MISTAKE").unwrap_or_default();
    let registry = Registry::new(project!());
    let data = || DataSet::new("rings", rings::load);
    let net = || model!(RingNet).data("rings");
    amp_verify::main(match mistake.as_str() {
        "no models" => registry.data_set(data()),
        "no data" => registry.model(model!(RingNet)),
        "unregistered data" => registry.data_set(DataSet::new("circles", rings::load)).model(net()),
        "two models of one name" => registry.data_set(data()).model(net()).model(net()),
        "two data sets of one name" => registry.data_set(data()).data_set(data()).model(net()),
        "a metric that is not logged" => {
            registry.data_set(data()).model(net().metric("val_accuracy"))
        }
        other => panic!("there is no mistake `{other}`"),
    })
}
