//! Bad input: one line that names cause and fix, exit code 2, nothing written.

use std::path::Path;

use rstest::rstest;
use tempfile::tempdir;

use crate::support::{amp, assert_refused, files, refusal};

#[rstest]
#[case::precision(&["--precision", "16-mixd"], "unknown precision `16-mixd`")]
#[case::model(&["--model", "Demo"], "unknown model `Demo`: expected one of MixedPrecisionDemo")]
#[case::data(&["--data", "mnist"], "unknown data `mnist`: expected digits, synthetic or text")]
#[case::device(&["--device", "tpu"], "unknown device `tpu`: expected auto, cpu, cuda or cuda:N")]
#[case::batch_larger_than_data(&["--batch-size", "2000"], "batch size 2000 is larger than the 1437 training examples")]
#[case::batch_of_none(&["--batch-size", "0"], "batch size 0: it must be at least 1")]
#[case::no_epochs(&["--epochs", "0"], "epochs 0: it must be at least 1")]
#[case::hyperparameter(&["--set", "hidden=3"], "unknown hyperparameter `hidden`: expected one of")]
#[case::hyperparameter_type(&["--set", "hidden_size=wide"], "hyperparameter `hidden_size`")]
#[case::hyperparameter_range(&["--set", "hidden_size=0"], "both sizes must be positive")]
#[case::assignment(&["--set", "hidden_size"], "`hidden_size` is not of the form NAME=VALUE")]
#[case::clip(&["--gradient-clip-val", "-1"], "gradient clipping takes a positive limit, got -1")]
#[case::threads(&["--threads", "0"], "threads 0: it must be at least 1")]
#[case::placement(&["--data-placement", "gpu"], "unknown placement `gpu`: expected auto, device or host")]
#[case::prefetch(&["--data-placement", "device", "--prefetch", "2"], "prefetch 2: sets on the device need none")]
#[case::prefetch_of_no_number(&["--prefetch", "two"], "invalid value 'two' for '--prefetch <N>'")]
#[case::tensorboard(&["--log-tensorboard", "nowhere/runs"], "there is no folder nowhere; create it first")]
#[case::max_steps(&["--max-steps", "0"], "invalid value '0' for '--max-steps <N>': it must be at least 1")]
#[case::profile(&["--profile", "0"], "invalid value '0' for '--profile <N>': it must be at least 1")]
#[case::trace(&["--trace", "nowhere/trace.json"], "there is no folder nowhere; create it first")]
#[case::policy(&["--on-non-finite", "retry"], "unknown policy `retry`: expected one of ignore, skip, lower-scale")]
#[case::policy_of_another_precision(&["--on-non-finite", "fall-back-to-bf16"], "falling back to bf16 is for 16-mixed, not for 32-true")]
#[case::min_scale(&["--min-scale", "-1"], "the scale floor is -1e0, but must be at least")]
#[case::at_min_scale(&["--at-min-scale", "go on"], "unknown policy `go on`: expected one of halt, warn, fall-back-to-bf16")]
#[case::weight_update(&["--weight-update", "exact"], "unknown weight update `exact`: expected one of round-to-nearest")]
#[case::memory_budget(&["--memory-budget", "2 parsecs"], "`2 parsecs` is no size in bytes: write it as 500MB, 2GiB or 1048576")]
#[case::no_memory(&["--memory-budget", "0"], "`0` is no size in bytes")]
#[case::folder(&["--output", "nowhere/report.json"], "there is no folder nowhere; create it first")]
fn is_refused(#[case] arguments: &[&str], #[case] expected: &str) {
    let folder = tempdir().expect("a temporary folder");
    let device: &[&str] = if arguments.contains(&"--device") { &[] } else { &["--device", "cpu"] };
    let mut command = amp(folder.path());
    command.args(["verify", "--log-jsonl", "log.jsonl", "--log-csv", "log.csv"]);
    command.args(device).args(arguments);
    assert_refused(&mut command, folder.path(), expected);
}

/// What `train` alone takes. The folder for checkpoints is not left behind, and the log of an
/// earlier run stays as it is.
#[rstest]
#[case::missing(&["--resume", "nowhere"], "nowhere: No such file or directory")]
#[case::empty_folder(&["--resume", "."], ".: no checkpoint to go on from is in this folder")]
#[case::no_checkpoint(&["--resume", "log.csv"], "log.csv: not a whole safetensors file")]
#[case::every_no_step(&["--every-n-train-steps", "0"], "'--every-n-train-steps <N>': it must be at least 1")]
#[case::monitor(&["--monitor", "memory,disk"], "invalid value 'disk' for '--monitor <NAMES>' [possible values: memory, speed, lr, gradients]")]
#[case::too_little_memory(&["--memory-budget", "1KB"], "the memory budget is 1000 bytes, but a step takes ")]
#[case::rounding(&["--precision", "16-true", "--weight-update", "stochastic-rounding"], "stochastic rounding is for bfloat16, but")]
fn training_is_refused(#[case] arguments: &[&str], #[case] expected: &str) {
    let folder = tempdir().expect("a temporary folder");
    let log = folder.path().join("log.csv");
    std::fs::write(&log, "of an earlier run, which was a good one").expect("a file");
    let output = amp(folder.path())
        .args(["train", "--device", "cpu", "--log-csv", "log.csv", "--checkpoint-dir", "saved"])
        .args(arguments)
        .output()
        .expect("the binary runs");
    let line = refusal(&output);
    assert!(line.contains(expected), "`{line}` does not say `{expected}`");
    assert_eq!(files(folder.path()), ["log.csv"], "files written");
    let kept = std::fs::read_to_string(&log).expect("the log");
    assert_eq!(kept, "of an earlier run, which was a good one");
}

#[rstest]
#[case(&["--every-n-train-steps", "5"])]
#[case(&["--save-weights-only"])]
fn saving_needs_a_folder(#[case] arguments: &[&str]) {
    let folder = tempdir().expect("a temporary folder");
    let output = amp(folder.path()).arg("train").args(arguments).output().expect("the binary runs");
    let line = refusal(&output);
    assert!(line.ends_with("were not provided: --checkpoint-dir <FOLDER>"), "{line}");
}

/// A folder for TensorBoard that is a file, or may not be written to.
#[test]
fn a_log_folder_that_cannot_be_is_named() {
    let folder = tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("taken"), "").expect("a file");
    let output = amp(folder.path())
        .args(["train", "--device", "cpu", "--log-tensorboard", "taken", "--log-csv", "log.csv"])
        .output()
        .expect("the binary runs");
    let line = refusal(&output);
    assert!(line.contains("taken: ") && line.contains("exists"), "{line}");
    assert_eq!(files(folder.path()), ["taken"], "files written");
}

/// The line that refuses the data in `folder`.
fn refused_data(folder: &Path) -> String {
    let output = amp(folder)
        .args(["verify", "--device", "cpu"])
        .env("AMP_DATA", folder)
        .output()
        .expect("the binary runs");
    refusal(&output)
}

#[test]
fn a_missing_data_file_is_named_with_the_way_to_restore_it() {
    let folder = tempdir().expect("a temporary folder");
    let line = refused_data(folder.path());
    assert!(line.contains("digits.csv.gz: data file missing"), "{line}");
    assert!(line.contains("git checkout -- fixtures/data"), "{line}");
}

#[test]
fn a_changed_data_file_is_refused_by_its_checksum() {
    let folder = tempdir().expect("a temporary folder");
    let data = std::env::var("AMP_DATA")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/data").to_owned());
    let path = Path::new(&data).join("digits.csv.gz");
    let mut bytes = std::fs::read(path).expect("the data file");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(folder.path().join("digits.csv.gz"), bytes).expect("a copy");
    let line = refused_data(folder.path());
    assert!(line.contains("is not the recorded 09f66e6debde"), "{line}");
}

#[test]
fn cuda_without_a_device_is_refused() {
    let folder = tempdir().expect("a temporary folder");
    let output = amp(folder.path())
        .args(["verify", "--device", "cuda"])
        .env("CUDA_VISIBLE_DEVICES", "")
        .output()
        .expect("the binary runs");
    let line = refusal(&output);
    assert!(line.contains("sees no CUDA device here"), "{line}");
    assert!(line.contains("--device cpu"), "{line}");
}
