//! Runs that are saved and gone on with, and what is shown of them.

use std::path::Path;

use rstest::rstest;
use tempfile::tempdir;

use crate::support::{amp, device, files, refusal, text};

/// What `train` with these options prints; it must succeed.
fn train(folder: &Path, arguments: &[&str]) -> String {
    let output = amp(folder)
        .args(["train", "--device", &device(), "--threads", "1", "--quiet"])
        .args(arguments)
        .output()
        .expect("the binary runs");
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// The rows of epochs, without the seconds that end them.
fn epochs(printed: &str) -> Vec<Vec<&str>> {
    let rows = printed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let rows = rows.filter(|row| row.first().is_some_and(|first| first.parse::<u32>().is_ok()));
    rows.map(|row| row[..row.len() - 1].to_vec()).collect()
}

/// Ended by its steps in the middle of an epoch and gone on with from the folder, a run prints the
/// epochs of the one that was not ended.
#[rstest]
#[case("32-true")]
#[case("16-mixed")]
fn a_resumed_run_prints_what_the_whole_one_does(#[case] precision: &str) {
    let folder = tempdir().expect("a temporary folder");
    let options = ["--precision", precision, "--epochs", "3"];
    let whole = train(folder.path(), &options);
    let saving = [&options[..], &["--checkpoint-dir", "saved"]].concat();
    let first = train(folder.path(), &[&saving[..], &["--max-steps", "30"]].concat());
    assert_eq!(epochs(&first)[0], epochs(&whole)[0]);
    assert_eq!(epochs(&first)[1][..2], ["2", "30"], "{first}");
    let rest = train(folder.path(), &[&saving[..], &["--resume", "saved"]].concat());
    assert!(rest.contains("\nresumed in epoch 2 after 7 batches\n"), "{rest}");
    // On CUDA the order of sums is not fixed.
    if device() == "cpu" {
        assert_eq!(epochs(&rest), epochs(&whole)[1..]);
    }
    let nothing = train(folder.path(), &[&saving[..], &["--resume", "saved"]].concat());
    assert!(nothing.contains("\nresumed after the last epoch: nothing is left"), "{nothing}");
}

#[test]
fn another_runs_checkpoint_is_refused_and_leaves_no_folder() {
    let folder = tempdir().expect("a temporary folder");
    train(folder.path(), &["--epochs", "1", "--checkpoint-dir", "saved"]);
    let output = amp(folder.path())
        .args(["train", "--device", &device(), "--epochs", "1", "--seed", "7"])
        .args(["--resume", "saved", "--checkpoint-dir", "other", "--log-csv", "log.csv"])
        .output()
        .expect("the binary runs");
    let line = refusal(&output);
    assert!(line.contains("saved by a run whose seed is 42, but here it is 7"), "{line}");
    assert_eq!(files(folder.path()), ["saved"]);
}

#[test]
fn weights_alone_are_nothing_to_go_on_from() {
    let folder = tempdir().expect("a temporary folder");
    train(folder.path(), &["--epochs", "1", "--checkpoint-dir", "saved", "--save-weights-only"]);
    let refused = |path: &str| {
        let mut command = amp(folder.path());
        command.args(["train", "--device", &device(), "--resume", path]);
        refusal(&command.output().expect("the binary runs"))
    };
    let line = refused("saved");
    assert!(line.contains("saved: no checkpoint to go on from is in this folder"), "{line}");
    let line = refused("saved/last.safetensors");
    assert!(line.contains("last.safetensors: holds weights alone"), "{line}");
}

/// A checkpoint every step is shown by nothing; the best epoch's by a line.
#[test]
fn checkpoints_of_steps_are_not_told_of() {
    let folder = tempdir().expect("a temporary folder");
    let options = ["--epochs", "2", "--checkpoint-dir", "saved", "--every-n-train-steps", "1"];
    let printed = train(folder.path(), &options);
    let saved: Vec<&str> = printed.lines().filter(|line| line.starts_with("saved ")).collect();
    assert!((1..=2).contains(&saved.len()), "{printed}");
    assert!(saved.iter().all(|line| line.contains("epoch=")), "{printed}");
    assert!(files(&folder.path().join("saved")).contains(&"last.safetensors".to_owned()));
}
