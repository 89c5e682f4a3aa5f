//! Tests of mistakes in a registry. The error is one line with the cause and the fix, and the exit
//! status is 2.

use std::process::Command;

use crate::support::Said;

fn refused(mistake: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bad_registry"));
    Said::of(command.args(arguments).env("MISTAKE", mistake)).refused()
}

#[track_caller]
fn says(line: &str, parts: &[&str]) {
    for part in parts {
        assert!(line.contains(part), "`{line}` does not say `{part}`");
    }
}

#[test]
fn a_registry_without_models() {
    says(&refused("no models", &["verify"]), &["own-models has no models", ".model(model!("]);
}

#[test]
fn a_registry_without_data() {
    says(&refused("no data", &["models"]), &["RingNet has no data", ".data_set(DataSet::new("]);
}

#[test]
fn a_model_whose_data_is_not_registered() {
    let line = refused("unregistered data", &["models"]);
    says(&line, &["RingNet", "unknown data `rings`", "circles"]);
}

#[test]
fn two_models_of_one_name() {
    let line = refused("two models of one name", &["models"]);
    says(&line, &["own-models", "two models named `RingNet`", "rename or remove one"]);
}

#[test]
fn two_data_sets_of_one_name() {
    let line = refused("two data sets of one name", &["models"]);
    says(&line, &["two data sets named `rings`", "rename or remove one"]);
}

/// `verify` warms up with two batches before training, and finds the mistake in these batches.
#[test]
fn a_metric_that_the_model_does_not_log() {
    let arguments = ["verify", "--device", "cpu", "--epochs", "1", "--quiet"];
    let line = refused("a metric that is not logged", &arguments);
    says(&line, &["RingNet", "`val_accuracy`", "`val_acc`", "judged_by_loss"]);
}
