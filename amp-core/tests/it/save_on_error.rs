//! Tests of `save_on_error`. If a run ends with an error, it saves its state from before the failed
//! step.

use std::{cell::Cell, path::Path};

use amp_core::{
    Error, Hook, LightningModule, Result, Step, Trainer, TrainerConfig,
    callback::{Action, Callback},
    data::{Batch, DataModule},
    event::Event,
    log::LogOptions,
    nn::{self, BatchNorm, Dropout, Linear},
    precision::{Precision, StepOutcome},
    tch::{Device, Kind, Tensor},
};
use rstest::rstest;
use tempfile::tempdir;

use crate::support::{bits::sha256, device, message, seeded};

/// A model with batch statistics, dropout, momentum, a schedule and a count of batches.
#[derive(LightningModule)]
#[forward(|x| head(&drop(&norm(x)?)?))]
#[training_step(train)]
#[validation_step(validate)]
#[optimizer(sgd, lr = 1e-3, momentum = 0.9)]
#[scheduler(step_lr, step_size = 3, gamma = 0.9, interval = step)]
struct Net {
    #[layer(batch_norm1d(4))]
    norm: BatchNorm,
    #[layer(dropout(0.5))]
    drop: Dropout,
    #[layer(linear(4, 2))]
    head: Linear,
    #[state]
    seen: i64,
}

/// Where the test lets the run fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Nowhere,
    /// In the forward pass of this training batch, after batch statistics were updated.
    Batch(i64),
    Validation,
    /// In the callback after this training batch.
    Callback(i64),
}

thread_local! {
    static FAILS: Cell<At> = const { Cell::new(At::Nowhere) };
}

fn train(net: &mut Net, batch: &Batch, step: &mut Step<'_>) -> Result<Tensor> {
    net.seen += 1;
    let output = amp_core::Module::forward(net, &batch.input, step.context())?;
    if FAILS.get() == At::Batch(net.seen - 1) {
        return Err(Error::config("the fault that was planted"));
    }
    let loss = amp_core::loss::mse_loss(&output, &batch.target)?;
    step.log("train_loss", &loss, batch.len(), LogOptions::ON_EPOCH)?;
    Ok(loss)
}

fn validate(net: &mut Net, batch: &Batch, step: &mut Step<'_>) -> Result<()> {
    if FAILS.get() == At::Validation {
        return Err(Error::config("the fault that was planted"));
    }
    let output = amp_core::Module::forward(net, &batch.input, step.context())?;
    let loss = amp_core::loss::mse_loss(&output, &batch.target)?;
    step.log("val_loss", &loss, batch.len(), LogOptions::ON_EPOCH)
}

struct Fails(i64);

impl Callback for Fails {
    fn name(&self) -> String {
        "Fails".to_owned()
    }

    fn on_train_batch_end(
        &mut self,
        _: Option<&StepOutcome>,
        _: &mut Hook<'_>,
    ) -> Result<Vec<Action>> {
        self.0 += 1;
        match FAILS.get() == At::Callback(self.0 - 1) {
            true => Err(Error::config("the fault that was planted")),
            false => Ok(Vec::new()),
        }
    }
}

fn data() -> Result<DataModule> {
    let _section = seeded(7);
    let options = (Kind::Float, Device::Cpu);
    let examples = || Batch::new(Tensor::randn([60, 4], options), Tensor::randn([60, 2], options));
    Ok(DataModule::new("rows", examples()?, examples()?, 6))
}

/// Runs three epochs of ten batches. Returns the epochs' reports, the weights, and the notes.
fn run(
    precision: Precision,
    window: i64,
    save_to: &Path,
    resume: bool,
) -> (Result<Vec<String>>, Vec<String>) {
    let (mut notes, mut epochs) = (Vec::new(), Vec::new());
    let mut listen = |event: &Event| {
        match event {
            Event::Note { text } if text.contains("fault") || text.contains("saved") => {
                notes.push(text.clone());
            }
            Event::EpochEnd(end) => {
                epochs.push(format!("{:?} {:?} {}", end.train, end.val, end.lr))
            }
            _ => {}
        }
        Ok(())
    };
    let mut trained = || -> Result<String> {
        let mut net = {
            let _section = seeded(3);
            Net::builder().build()?
        };
        let config = TrainerConfig::new(precision, device()).with(|config| {
            config.max_epochs = 3;
            config.optimization.accumulate_grad_batches = window;
        });
        // A resumed run begins with another seed, so that its random numbers are right only if the
        // checkpoint restores them.
        let _section = seeded(if resume { 1 } else { 0 });
        let trainer = Trainer::new(config).save_on_error(save_to).callback(Fails(0));
        let trainer = if resume { trainer.resume_from(save_to) } else { trainer };
        trainer.subscribe(&mut listen).fit(&mut net, &data()?)?;
        let weights = nn::named_tensors(&net).into_iter();
        let text: Vec<_> = weights.map(|(_, tensor, _)| sha256(&tensor)).collect();
        Ok(format!("{text:?} {}", net.seen))
    };
    let outcome = trained().map(|weights| {
        epochs.push(weights);
        epochs
    });
    (outcome, notes)
}

/// A run that was saved after an error resumes bit for bit. This includes batch statistics, random
/// numbers, the running sums of logged values, momentum and schedule.
#[rstest]
#[case::first_batch(At::Batch(0), 1)]
#[case::a_batch(At::Batch(17), 1)]
#[case::the_first_of_a_window(At::Batch(18), 3)]
#[case::the_last_of_a_window(At::Batch(14), 3)]
#[case::validation(At::Validation, 1)]
fn a_run_saved_after_an_error_resumes_bit_for_bit(
    #[values(Precision::F32True, Precision::F16Mixed)] precision: Precision,
    #[case] fails: At,
    #[case] window: i64,
) -> Result<()> {
    let folder = tempdir().expect("a folder");
    let path = folder.path().join("failed.safetensors");
    FAILS.set(At::Nowhere);
    let straight = run(precision, window, &path, false).0?;
    assert!(!path.exists());
    FAILS.set(fails);
    let (outcome, notes) = run(precision, window, &path, false);
    FAILS.set(At::Nowhere);
    assert!(message(outcome).contains("the fault that was planted"));
    let [note] = notes.as_slice() else { panic!("{notes:?}") };
    assert!(note.contains("failed.safetensors before the run ended with the error: "), "{note}");
    let resumed = run(precision, window, &path, true).0?;
    assert_eq!(straight[straight.len() - resumed.len()..], resumed);
    Ok(())
}

/// If a step has changed the weights and then fails, the run is not saved. A run that resumed from
/// such a file would make the step twice.
#[test]
fn a_step_that_changed_weights_before_its_error_is_not_saved() {
    let folder = tempdir().expect("a folder");
    let path = folder.path().join("failed.safetensors");
    FAILS.set(At::Callback(4));
    let (outcome, notes) = run(Precision::F32True, 1, &path, false);
    FAILS.set(At::Nowhere);
    assert!(message(outcome).contains("the fault that was planted"));
    let says = "could not be saved: the step that failed had begun to change the weights";
    assert!(notes.len() == 1 && notes[0].contains(says), "{notes:?}");
    assert!(!path.exists());
}

/// If saving after an error fails, a note reports this failure, and the run ends with its original
/// error.
#[test]
fn a_file_that_cannot_be_written_is_a_note() {
    let folder = tempdir().expect("a folder");
    FAILS.set(At::Batch(4));
    let (outcome, notes) =
        run(Precision::F32True, 1, &folder.path().join("none/failed.safetensors"), false);
    FAILS.set(At::Nowhere);
    assert!(message(outcome).contains("the fault that was planted"));
    assert!(notes.len() == 1 && notes[0].contains("could not be saved"), "{notes:?}");
}
