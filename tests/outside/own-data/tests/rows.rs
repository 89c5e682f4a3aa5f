//! Tests of the data set with files that the tests write, and of training on the registry's data
//! set.

use std::{fs, path::Path};

use amp_core::{
    data::{AnyBatch, Dataset, Loading, Placement},
    prelude::*,
    random,
};
use amp_verify::Project;
use own_data::{HeightNet, Rows, registry_of};
use tempfile::{TempDir, tempdir};

/// Returns the row at `index`: two coordinates and the height there.
fn row(index: usize) -> [f32; 3] {
    let (x, y) = ((index as f32 * 0.7).sin(), (index as f32 * 1.3).cos());
    [x, y, x * y + 0.5]
}

fn write(path: &Path, rows: std::ops::Range<usize>) {
    let bytes: Vec<u8> = rows.flat_map(row).flat_map(f32::to_le_bytes).collect();
    fs::write(path, bytes).expect("a file");
}

/// Creates a folder with the project's two files.
fn project() -> TempDir {
    let folder = tempdir().expect("a folder");
    let data = folder.path().join("data");
    fs::create_dir(&data).expect("a folder");
    write(&data.join("train.f32"), 0..128);
    write(&data.join("val.f32"), 1000..1032);
    folder
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.reshape([-1])).expect("numbers")
}

#[test]
fn examples_come_in_the_order_they_are_asked_for() {
    let folder = project();
    let mut rows = Rows::open(folder.path().join("data/train.f32"), 2).expect("rows");
    assert_eq!(rows.len(), 128);
    for indices in [vec![0, 1, 2], vec![127, 3, 3, 64]] {
        let Batch { input, target } = rows.gather(&indices).expect("examples");
        let expected: Vec<[f32; 3]> = indices.iter().map(|index| row(*index as usize)).collect();
        assert_eq!(input.size(), [indices.len() as i64, 2]);
        assert_eq!(target.size(), [indices.len() as i64, 1]);
        let inputs: Vec<f32> = expected.iter().flat_map(|[x, y, _]| [*x, *y]).collect();
        let targets: Vec<f32> = expected.iter().map(|[.., height]| *height).collect();
        assert_eq!((numbers(&input), numbers(&target)), (inputs, targets));
    }
}

#[test]
fn damaged_and_missing_files_are_named() {
    let folder = tempdir().expect("a folder");
    let path = folder.path().join("cut.f32");
    let refused = |bytes: usize| {
        fs::write(&path, vec![0; bytes]).expect("a file");
        Rows::open(&path, 2).expect_err("a refusal").to_string()
    };
    assert!(refused(25).contains("cut.f32: 25 bytes are not a whole number of 12-byte rows"));
    assert!(refused(0).contains("cut.f32: 0 bytes"));
    let missing = Rows::open(folder.path().join("gone.f32"), 2).expect_err("a refusal");
    assert!(missing.to_string().contains("gone.f32: No such file"), "{missing}");
}

/// If the file is cut off after it was opened, the epoch ends with an error that contains the
/// file's name.
#[test]
fn an_example_that_is_gone_ends_the_epoch_with_the_files_name() {
    let folder = project();
    let path = folder.path().join("data/train.f32");
    let mut rows = Rows::open(&path, 2).expect("rows");
    write(&path, 0..64);
    assert!(rows.gather(&[63]).is_ok());
    let error = rows.gather(&[64]).expect_err("a refusal").to_string();
    assert!(error.contains("data/train.f32"), "{error}");
}

fn loaded(folder: &TempDir) -> Result<DataModule> {
    let registry = registry_of(Project::new("own-data", folder.path()));
    registry.check()?;
    registry.find_data("heights")?.load(16)
}

/// An epoch contains every example once, in random order. This also holds with a thread that loads
/// ahead.
#[test]
fn an_epoch_has_every_example_once() {
    let data = loaded(&project()).expect("data");
    let policy = TrainerConfig::new(Precision::F32True, Device::Cpu).policy();
    let epoch = |prefetch| {
        let loading = Loading { placement: Placement::Host, prefetch, ..Loading::default() };
        let data = DataModule { loading, ..data.clone() };
        let loader = data.train_loader(policy, 3).expect("a loader");
        let batches = loader.epoch(0, 0).expect("an epoch");
        let targets = |batch: Result<AnyBatch>| {
            numbers(batch.expect("a batch").required("target").expect("targets"))
        };
        batches.flat_map(targets).collect::<Vec<f32>>()
    };
    let shuffled = epoch(Some(0));
    assert_eq!(epoch(Some(2)), shuffled);
    let mut heights: Vec<f32> = (0..128).map(|index| row(index)[2]).collect();
    assert_ne!(shuffled, heights, "the examples are not in the order of the file");
    let mut found = shuffled;
    found.sort_by(f32::total_cmp);
    heights.sort_by(f32::total_cmp);
    assert_eq!(found, heights);
}

/// The data set in the registry is read from the project's folder, and the model learns from it. If
/// a model always predicted the mean height, its loss would be the variance of the heights. The
/// loss of the trained model is less than half of the variance.
#[test]
fn the_registered_set_is_trained_on() {
    // Inside the section that `seeded` begins, the initial weights depend only on this seed, and
    // not on random numbers that other tests use.
    let _section = random::seeded(1).expect("a seed");
    let folder = project();
    let data = loaded(&folder).expect("data");
    let mut config = TrainerConfig::new(Precision::Bf16Mixed, Device::Cpu);
    config.max_epochs = 30;
    let mut model = HeightNet::builder().build().expect("a model");
    let record = Trainer::new(config).fit(&mut model, &data).expect("a run");
    assert_eq!(record.start.run.data, "heights");
    let heights: Vec<f64> = (1000..1032).map(|index| row(index)[2].into()).collect();
    let mean = heights.iter().sum::<f64>() / heights.len() as f64;
    let variance = heights.iter().map(|height| (height - mean).powi(2)).sum::<f64>() / 32.0;
    let loss = record.last("val_loss").expect("a loss");
    assert!(loss < 0.5 * variance, "loss {loss}, variance of the heights {variance}");
}

#[test]
fn a_project_without_its_files_says_which_one_is_missing() {
    let error = loaded(&tempdir().expect("a folder")).expect_err("no files").to_string();
    assert!(error.contains("data/train.f32: No such file"), "{error}");
}

/// The code in the README equals the crate's code.
#[test]
fn the_page_shows_the_code() {
    let (page, code) = (include_str!("../README.md"), include_str!("../src/lib.rs"));
    let block = page.split("```rust\n").nth(1).and_then(|rest| rest.split("```").next());
    assert!(code.contains(block.expect("a block of Rust")), "src/lib.rs has other code");
}
