//! Tests of the copy of the training state that a run restores after a step with non-finite
//! gradients.

use std::{
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use amp_core::{
    Hook, Result, Trainer, TrainerConfig,
    callback::{Action, Callback},
    data::{AnyBatch, BatchRandom, BatchTransform, DataModule},
    optim::{Interval, OptimizerConfig, Sgd, StepLr, TrainingPlan},
    precision::{Precision, StepOutcome},
    record::RunRecord,
    trainer::{Averaging, NonFinite, Recovery},
};
use rstest::rstest;
use tempfile::tempdir;

use crate::{
    resume::{file, fingerprint},
    support::{
        device,
        model::{Model, constant, in_order, linear},
        seeded,
    },
};

fn halving(_: &TrainingPlan) -> OptimizerConfig {
    OptimizerConfig::new(Sgd { lr: 0.01, momentum: 0.9, ..Default::default() })
        .with_scheduler(StepLr { step_size: 1, gamma: 0.5 }, Interval::Epoch)
}

fn config(precision: Precision, averaging: Option<Averaging>) -> TrainerConfig {
    TrainerConfig { max_epochs: 1, ..TrainerConfig::new(precision, device()) }.with(|config| {
        config.recovery.on_non_finite = NonFinite::RestoreLastGood;
        config.recovery.keep_good_every_n_steps = 5;
        config.optimization.averaging = averaging;
    })
}

/// Returns `batches` batches of two examples. All examples are equal, but the inputs of the batch
/// with the index `bad` are infinite.
fn data(batches: i64, bad: Option<i64>) -> Result<DataModule> {
    let examples = constant(2 * batches, 4, 0.5)?;
    if let Some(bad) = bad {
        let _ = examples.input.narrow(0, 2 * bad, 2).fill_(f64::INFINITY);
    }
    let data = in_order(examples, 2)?;
    Ok(DataModule { val: constant(2, 4, 0.5)?.into(), ..data })
}

/// A transform that makes the inputs of one batch infinite. `at` is the index of this batch,
/// counted from 0 over all epochs.
struct SpoilsOne {
    at: usize,
    read: AtomicUsize,
}

impl BatchTransform for SpoilsOne {
    fn apply(&self, mut batch: AnyBatch, _: &mut BatchRandom) -> Result<AnyBatch> {
        if self.read.fetch_add(1, Ordering::Relaxed) == self.at {
            let input = batch.required("input")?.f_mul_scalar(f64::INFINITY)?;
            batch.replace("input", &input)?;
        }
        Ok(batch)
    }
}

/// A callback that saves the run after every step.
struct EveryStep<'f> {
    folder: &'f Path,
    saved: usize,
}

impl Callback for EveryStep<'_> {
    fn name(&self) -> String {
        "EveryStep".into()
    }

    fn on_train_batch_end(
        &mut self,
        _: Option<&StepOutcome>,
        _: &mut Hook<'_>,
    ) -> Result<Vec<Action>> {
        self.saved += 1;
        Ok(vec![Action::Save { path: file(self.folder, self.saved), weights_only: false }])
    }
}

fn train(trainer: Trainer<'_>, data: &DataModule) -> Result<(String, RunRecord)> {
    let _section = seeded(0);
    let mut model = Model::regression(linear(4, 4)?, halving);
    let record = { trainer }.fit(&mut model, data)?;
    Ok((fingerprint(&model), record))
}

/// When a run restores an earlier state, it also restores the averages of the weights. Of its 20
/// steps, one is skipped and two are undone. All examples are equal, so the run ends with the same
/// weights as a run of 17 steps without infinite inputs.
#[rstest]
fn averages_are_restored(
    #[values(Precision::F32True, Precision::Bf16True)] precision: Precision,
) -> Result<()> {
    let config = config(precision, Some(Averaging::Ema { decay: 0.9 }));
    let (restored, record) = train(Trainer::new(config.clone()), &data(20, Some(7))?)?;
    assert_eq!(record.recoveries, [(8, Recovery::Restored { global_step: 5 })]);
    assert_eq!(record.end.global_step, 17);
    let (straight, record) = train(Trainer::new(config), &data(17, None)?)?;
    assert_eq!(record.recoveries, []);
    assert_eq!(restored, straight);
    Ok(())
}

/// If the restored state was copied in an earlier epoch, the learning rate of a schedule with
/// `Interval::Epoch` does not go back. An epoch has four steps. The state is copied in the first
/// epoch, and restored in the second one.
#[test]
fn a_schedule_of_epochs_does_not_go_back() -> Result<()> {
    let config = config(Precision::F32True, None).with(|config| {
        config.max_epochs = 3;
        config.recovery.keep_good_every_n_steps = 3;
    });
    let DataModule { train: set, .. } = data(4, None)?;
    let spoiled = set.transformed(SpoilsOne { at: 5, read: AtomicUsize::new(0) });
    let data = DataModule { train: spoiled, ..data(4, None)? };
    let (_, record) = train(Trainer::new(config), &data)?;
    assert_eq!(record.recoveries, [(6, Recovery::Restored { global_step: 3 })]);
    let rates: Vec<f64> = record.epochs.iter().map(|epoch| epoch.lr).collect();
    assert_eq!(rates, [0.01, 0.005, 0.0025]);
    Ok(())
}

/// A run that is resumed from a checkpoint restores the same state as a run without interruption,
/// whether this state was copied before or after the checkpoint was saved.
#[rstest]
fn a_resumed_run_returns_to_the_same_state(
    #[values(Precision::F32True, Precision::Bf16True)] precision: Precision,
    #[values(None, Some(Averaging::Ema { decay: 0.9 }))] averaging: Option<Averaging>,
) -> Result<()> {
    let folder = tempdir().expect("a folder");
    let (config, data) = (config(precision, averaging), data(12, Some(7))?);
    let mut every = EveryStep { folder: folder.path(), saved: 0 };
    let (straight, record) = train(Trainer::new(config.clone()).callback(&mut every), &data)?;
    assert_eq!(record.recoveries, [(8, Recovery::Restored { global_step: 5 })]);
    for step in [2, 5, 6, 7, 9] {
        let trainer = Trainer::new(config.clone()).resume_from(file(folder.path(), step));
        let (resumed, _) = train(trainer, &data)?;
        assert_eq!(resumed, straight, "resumed after step {step}");
    }
    Ok(())
}
