//! Tests that a damaged checkpoint is refused without changing anything, and that a valid
//! checkpoint can also be used as a file of weights.

use std::{fs, path::Path};

use amp_core::{
    Error, Result, Trainer, TrainerConfig, checkpoint, nn, precision::Precision, weights,
};
use tempfile::tempdir;

use crate::{
    resume::{adam, file, fingerprint, run, saved, short},
    support::{
        message,
        model::{Model, constant, linear, same},
        seeded,
    },
};

/// Resumes from `path`, which must fail, and returns the error. Asserts that the model did not
/// change.
fn refused(path: &Path, config: &TrainerConfig, batch_size: i64) -> Result<String> {
    let _generator = seeded(2);
    let mut model = Model::regression(linear(8, 8)?, adam);
    nn::place(&model, config.policy(), &Default::default())?;
    let before = fingerprint(&model);
    let trainer = Trainer::new(config.clone()).resume_from(path);
    let (events, outcome) = run(trainer, &mut model, &same(constant(8, 8, 1.0)?, batch_size)?);
    assert!(matches!(&outcome, Err(Error::Config(_) | Error::Io { .. })), "{outcome:?}");
    assert_eq!(events, [], "a refused run sends no event");
    assert_eq!(fingerprint(&model), before);
    Ok(message(outcome))
}

#[test]
fn a_truncated_file_is_refused() -> Result<()> {
    let folder = tempdir().expect("a temporary folder");
    let config = short(Precision::F32True);
    let path = saved(folder.path(), &config)?;
    let whole = fs::read(&path).expect("the file");
    for length in (0..whole.len()).step_by(whole.len() / 40) {
        fs::write(&path, &whole[..length]).expect("a shorter file");
        let said = refused(&path, &config, 2)?;
        assert!(said.contains("step-002.safetensors: damaged, or not a safetensors"), "{said}");
    }
    Ok(())
}

/// A flipped bit is detected at any place: in the header's length, in names and text, in the
/// padding and in the values.
#[test]
fn a_flipped_bit_anywhere_is_detected() -> Result<()> {
    let folder = tempdir().expect("a temporary folder");
    let config = short(Precision::F32True);
    let path = saved(folder.path(), &config)?;
    let whole = fs::read(&path).expect("the file");
    let header = u64::from_le_bytes(whole[..8].try_into().expect("eight bytes")) as usize + 8;
    let in_header = (0..header).step_by(7);
    let in_values = (header..whole.len()).step_by((whole.len() - header) / 60);
    for (count, at) in in_header.chain(in_values).chain([header - 1, whole.len() - 1]).enumerate() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (count % 8);
        fs::write(&path, &bytes).expect("a changed file");
        let said = refused(&path, &config, 2)?;
        assert!(said.contains("step-002.safetensors"), "byte {at}: {said}");
    }
    fs::write(&path, &whole).expect("the file is written back");
    let _generator = seeded(2);
    let mut model = Model::regression(linear(8, 8)?, adam);
    let trainer = Trainer::new(config).resume_from(&path);
    run(trainer, &mut model, &same(constant(8, 8, 1.0)?, 2)?).1.map(drop)
}

#[test]
fn another_runs_checkpoint_is_refused_with_the_difference() -> Result<()> {
    let folder = tempdir().expect("a temporary folder");
    let config = short(Precision::F32True);
    let path = saved(folder.path(), &config)?;
    let said = refused(&path, &config, 4)?;
    assert!(said.contains("whose batch_size is 2, but here it is 4"), "{said}");
    let said = refused(&path, &short(Precision::Bf16Mixed), 2)?;
    assert!(said.contains(r#"precision is "32-true", but here it is "bf16-mixed""#), "{said}");
    let said = refused(&path, &TrainerConfig { seed: 3, ..config.clone() }, 2)?;
    assert!(said.contains("whose seed is 0, but here it is 3"), "{said}");
    let said = refused(&folder.path().join("none.safetensors"), &config, 2)?;
    assert!(said.contains("none.safetensors: No such file"), "{said}");
    let model = Model::regression(linear(8, 8)?, adam);
    let bare = folder.path().join("bare.safetensors");
    weights::save(&model, &bare, Default::default())?;
    let said = refused(&bare, &config, 2)?;
    assert!(said.contains("holds only weights"), "{said}");
    Ok(())
}

/// The weights of a checkpoint can be loaded without the rest of the run's state, which is in the
/// same file.
#[test]
fn a_checkpoint_is_also_a_file_of_weights() -> Result<()> {
    let folder = tempdir().expect("a temporary folder");
    let path = saved(folder.path(), &short(Precision::F32True))?;
    let model = Model::regression(linear(8, 8)?, adam);
    let text = weights::load(&model, &path)?;
    assert_eq!((text["model"].as_str(), text["global_step"].as_str()), ("Model", "2"));
    assert_eq!(text["libtorch"], amp_core::hardware::LIBTORCH_VERSION);
    Ok(())
}

#[test]
fn the_newest_checkpoint_has_the_most_steps() -> Result<()> {
    let folder = tempdir().expect("a temporary folder");
    assert_eq!(checkpoint::latest(folder.path())?, None);
    saved(folder.path(), &short(Precision::F32True))?;
    let model = Model::regression(linear(8, 8)?, adam);
    weights::save(&model, &folder.path().join("zzz.safetensors"), Default::default())?;
    fs::write(folder.path().join("notes.txt"), "not a checkpoint").expect("a file");
    assert_eq!(checkpoint::latest(folder.path())?, Some(file(folder.path(), 4)));
    fs::write(folder.path().join("half.safetensors"), [1, 2, 3]).expect("a file");
    let said = message(checkpoint::latest(folder.path()));
    assert!(said.contains("half.safetensors: damaged, or not a safetensors file"), "{said}");
    Ok(())
}
