//! Compares the lines that the logger writes with the record that `Trainer::fit` returns.

use std::fs;

use amp_core::{event::Skipped, prelude::*};
use own_logger::EpochLines;

#[derive(LightningModule)]
#[loss(mse_loss)]
#[optimizer(sgd, lr = 0.1)]
#[log(train_loss(on_epoch))]
struct Line {
    #[layer(linear(1, 1))]
    line: Linear,
}

/// Returns points on the line y = 3x. The first training example has the target `outlier` instead.
fn data(outlier: f64) -> DataModule {
    let part = |count: i64| {
        let x = Tensor::linspace(-1.0, 1.0, count, (Kind::Float, Device::Cpu)).unsqueeze(1);
        let y = &x * 3.0;
        Batch::new(x, y).expect("a batch")
    };
    let train = part(32);
    let _ = train.target.get(0).fill_(outlier);
    DataModule::new("line", train, part(8), 8)
}

fn config() -> TrainerConfig {
    let mut config = TrainerConfig::new(Precision::F32True, Device::Cpu);
    config.max_epochs = 3;
    config
}

/// Returns the `name value` pairs of a line.
fn pairs(line: &str) -> Vec<(&str, f64)> {
    let words: Vec<&str> = line.split(' ').collect();
    let (pairs, rest) = words.as_chunks::<2>();
    assert!(rest.is_empty(), "`{line}`");
    let number = |text: &str| text.parse().unwrap_or_else(|_| panic!("{text} in `{line}`"));
    pairs.iter().map(|[name, value]| (*name, number(value))).collect()
}

#[test]
fn each_epoch_has_a_line_with_its_values() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut lines = EpochLines::create(folder.path().join("epochs.txt")).expect("a file");
    let mut model = Line::builder().build().expect("a model");
    let record = Trainer::new(config()).subscribe(&mut lines).fit(&mut model, &data(3.0));
    let record = record.expect("a run");

    let text = fs::read_to_string(lines.path()).expect("the file");
    assert!(text.ends_with('\n'));
    let found: Vec<Vec<(&str, f64)>> = text.lines().map(pairs).collect();
    let value = |epoch: usize, name: &str| record.epochs[epoch].value(name).expect("a value");
    let expected: Vec<Vec<(&str, f64)>> = (0..3)
        .map(|epoch| {
            vec![
                ("epoch", epoch as f64),
                // There are 4 batches of 8 examples.
                ("step", 4.0 * (epoch + 1) as f64),
                ("lr", 0.1),
                ("train_loss", value(epoch, "train_loss")),
                ("val_loss", value(epoch, "val_loss")),
            ]
        })
        .collect();
    assert_eq!(found, expected);
}

/// One training example has the target 1e30. The square of its error overflows f32, so the step
/// with this example is skipped in each epoch.
#[test]
fn a_skipped_step_has_a_line_with_its_cause() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut lines = EpochLines::create(folder.path().join("epochs.txt")).expect("a file");
    let mut model = Line::builder().build().expect("a model");
    let record = Trainer::new(config()).subscribe(&mut lines).fit(&mut model, &data(1e30));
    let record = record.expect("a run");
    assert_eq!(record.skips.len(), 3);
    let text = fs::read_to_string(lines.path()).expect("the file");
    let skipped: Vec<&str> = text.lines().filter(|line| line.starts_with("skipped")).collect();
    let expected = |skip: &Skipped| format!("skipped step {}: {}", skip.attempt, skip.cause());
    assert_eq!(skipped, record.skips.iter().map(expected).collect::<Vec<_>>());
    assert_eq!(text.lines().count(), 6, "three skipped steps and three epochs: {text}");
}

#[test]
fn a_folder_that_is_missing_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("nowhere/epochs.txt");
    let error = EpochLines::create(&path).expect_err("no folder").to_string();
    assert!(error.contains("nowhere/epochs.txt"), "{error}");
}

/// `/dev/full` accepts no byte, like a full disk. The run ends with an error that names the file.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_ends_the_run() {
    let mut lines = EpochLines::create("/dev/full").expect("a device");
    let mut model = Line::builder().build().expect("a model");
    let run = Trainer::new(config()).subscribe(&mut lines).fit(&mut model, &data(3.0));
    let error = run.expect_err("no space").to_string();
    assert!(error.contains("/dev/full"), "{error}");
}

/// The code in the README equals the crate's code.
#[test]
fn the_page_shows_the_code() {
    let (page, code) = (include_str!("../README.md"), include_str!("../src/lib.rs"));
    let block = page.split("```rust\n").nth(1).and_then(|rest| rest.split("```").next());
    assert!(code.contains(block.expect("a block of Rust")), "src/lib.rs has other code");
}
