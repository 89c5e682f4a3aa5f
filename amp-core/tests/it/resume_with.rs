//! Tests of runs that are resumed with other options than the saved run had. Resuming is refused
//! unless the user permits the change (`--resume-with`).

use std::path::{Path, PathBuf};

use amp_core::{
    Result, Trainer, TrainerConfig,
    callback::{Mode, ModelCheckpoint},
    data::{Bucketed, DataModule, Limit},
    event::Event,
    optim::{CosineAnnealing, Interval, OptimizerConfig, Sgd, StepLr, TrainingPlan},
    precision::Precision,
    record::RunRecord,
    trainer::{Change, Loops},
};
use rstest::rstest;
use tempfile::tempdir;

use crate::support::{
    device, message,
    model::{Model, constant, linear, same},
    seeded,
};

type Optimizer = fn(&TrainingPlan) -> OptimizerConfig;

fn cosine(plan: &TrainingPlan) -> OptimizerConfig {
    let schedule = CosineAnnealing { t_max: plan.max_epochs, ..Default::default() };
    OptimizerConfig::new(Sgd { lr: 0.1, ..Default::default() })
        .with_scheduler(schedule, Interval::Epoch)
}

fn steps(lr: f64) -> OptimizerConfig {
    let schedule = StepLr { step_size: 1, gamma: 0.5 };
    OptimizerConfig::new(Sgd { lr, ..Default::default() }).with_scheduler(schedule, Interval::Epoch)
}

struct Run<'a> {
    optimizer: Optimizer,
    epochs: i64,
    data: DataModule,
    resume: Option<(&'a Path, &'a [Change])>,
    max_steps: Option<u64>,
    loops: Loops,
}

impl Run<'_> {
    fn new(optimizer: Optimizer, epochs: i64) -> Result<Self> {
        let data = same(constant(12, 3, 1.0)?, 2)?;
        let loops = Loops::default();
        Ok(Self { optimizer, epochs, data, resume: None, max_steps: None, loops })
    }

    /// Trains and saves `last.safetensors` in `folder`. Returns the run record and the number of
    /// batches that were trained in each epoch.
    fn train(self, folder: &Path) -> Result<(RunRecord, Vec<i64>)> {
        let _generator = seeded(0);
        let mut model = Model::regression(linear(3, 3)?, self.optimizer);
        let config = TrainerConfig {
            max_epochs: self.epochs,
            max_steps: self.max_steps,
            loops: self.loops,
            ..TrainerConfig::new(Precision::Bf16Mixed, device())
        };
        let mut batches = Vec::new();
        let mut listen = |event: &Event| -> Result<()> {
            if let Event::Batch { epoch, .. } = event {
                batches.resize((epoch + 1) as usize, 0);
                batches[*epoch as usize] += 1;
            }
            Ok(())
        };
        let saves = ModelCheckpoint::new(folder, "val_loss", Mode::Min)?
            .save_top_k(0)
            .save_last(true)
            .every_n_train_steps(1);
        let mut trainer = Trainer::new(config).subscribe(&mut listen).callback(saves);
        if let Some((path, with)) = self.resume {
            trainer = trainer.resume_from(path).resume_with(with.iter().copied());
        }
        let record = trainer.fit(&mut model, &self.data)?;
        drop(trainer);
        Ok((record, batches))
    }
}

/// Trains for two epochs, or for the given number of steps, and returns the path of the checkpoint.
fn saved(optimizer: Optimizer, max_steps: Option<u64>, folder: &Path) -> Result<PathBuf> {
    Run { max_steps, ..Run::new(optimizer, 2)? }.train(folder)?;
    Ok(folder.join("last.safetensors"))
}

fn rates(record: &RunRecord) -> Vec<f64> {
    record.epochs.iter().map(|epoch| epoch.lr).collect()
}

/// If a run of two epochs with a cosine schedule is resumed with four epochs, the remaining epochs
/// have the learning rates of a cosine over four epochs. This needs the user's permission
/// (`--resume-with epochs`), because the schedule changes.
#[test]
fn a_cosine_can_be_extended() -> Result<()> {
    let folder = tempdir().expect("a folder");
    let path = saved(cosine, None, folder.path())?;
    let longer = |with: &[Change]| -> Result<(RunRecord, Vec<i64>)> {
        let other = tempdir().expect("a folder");
        Run { resume: Some((&path, with)), ..Run::new(cosine, 4)? }.train(other.path())
    };
    let text = message(longer(&[]));
    assert!(
        text.contains(
            "schedule's length is \"2 epochs, 12 steps\", but here it is \"4 epochs, 24 steps\""
        ) && text.contains("--resume-with epochs"),
        "{text}"
    );
    let straight = Run::new(cosine, 4)?.train(tempdir().expect("a folder").path())?.0;
    let (record, batches) = longer(&[Change::Epochs])?;
    assert_eq!(batches, [0, 0, 6, 6]);
    assert_eq!(rates(&record), rates(&straight)[2..]);
    assert!(rates(&record).iter().all(|rate| *rate > 0.01), "{:?}", rates(&record));
    assert!(
        record.notes.iter().any(|note| note.contains("differs from the saved run's: epochs")),
        "{:?}",
        record.notes
    );
    Ok(())
}

/// If the schedule does not depend on the length of the run, the run can be extended without
/// permission.
#[test]
fn a_length_that_affects_no_schedule_needs_no_permission() -> Result<()> {
    let folder = tempdir().expect("a folder");
    let path = saved(|_| steps(0.1), None, folder.path())?;
    let run = Run { resume: Some((&path, &[])), ..Run::new(|_| steps(0.1), 4)? };
    let (record, _) = run.train(tempdir().expect("a folder").path())?;
    assert_eq!(rates(&record), [0.1 * 0.25, 0.1 * 0.125]);
    Ok(())
}

/// If the learning rate in the code differs from that of the saved run, resuming needs permission,
/// with and without a schedule. The resumed run uses the new learning rate, and the schedule
/// continues from the saved epoch.
#[test]
fn a_new_rate_needs_permission() -> Result<()> {
    let plain: [Optimizer; 2] = [
        |_| OptimizerConfig::new(Sgd { lr: 0.1, ..Default::default() }),
        |_| OptimizerConfig::new(Sgd { lr: 0.02, ..Default::default() }),
    ];
    let scheduled: [Optimizer; 2] = [|_| steps(0.1), |_| steps(0.02)];
    for ([before, after], expected) in [(plain, [0.02, 0.02]), (scheduled, [0.005, 0.0025])] {
        let folder = tempdir().expect("a folder");
        let path = saved(before, None, folder.path())?;
        let go_on = |with: &[Change]| -> Result<(RunRecord, Vec<i64>)> {
            let other = tempdir().expect("a folder");
            Run { resume: Some((&path, with)), ..Run::new(after, 4)? }.train(other.path())
        };
        let text = message(go_on(&[]));
        assert!(text.contains("learning rate is [0.1], but here it is [0.02]"), "{text}");
        assert_eq!(rates(&go_on(&[Change::Lr])?.0), expected);
    }
    Ok(())
}

/// A run that is resumed with another batch size continues the epoch after the same number of
/// examples. After 4 of 6 batches of 2 examples, it continues after 2 of 3 batches of 4 examples.
/// If the data set has another number of examples, the epoch starts again.
#[test]
fn an_epoch_continues_after_the_same_number_of_examples() -> Result<()> {
    let folder = tempdir().expect("a folder");
    let path = saved(|_| steps(0.1), Some(4), folder.path())?;
    let go_on = |data: DataModule, with: &[Change]| -> Result<Vec<i64>> {
        let other = tempdir().expect("a folder");
        let run = Run { data, resume: Some((&path, with)), ..Run::new(|_| steps(0.1), 2)? };
        Ok(run.train(other.path())?.1)
    };
    let larger = || {
        Ok::<_, amp_core::Error>(DataModule { batch_size: 4, ..same(constant(12, 3, 1.0)?, 4)? })
    };
    let text = message(go_on(larger()?, &[]));
    assert!(
        text.contains("batch_size is 2, but here it is 4")
            && text.contains("--resume-with batch-size"),
        "{text}"
    );
    assert_eq!(go_on(larger()?, &[Change::BatchSize])?, [1, 3]);
    let other = || same(constant(10, 3, 1.0)?, 2);
    let text = message(go_on(other()?, &[Change::BatchSize]));
    assert!(text.contains("training examples is 12, but here it is 10"), "{text}");
    assert_eq!(go_on(other()?, &[Change::Data])?, [5, 5]);
    Ok(())
}

/// The order of a bucketed sampler depends on the batch size. With another batch size, the first
/// batches of an epoch have other examples than in the saved run, so the epoch starts again.
#[test]
fn an_epoch_whose_order_depends_on_the_batch_size_starts_again() -> Result<()> {
    let folder = tempdir().expect("a folder");
    let data = |batch_size: i64| -> Result<DataModule> {
        let lengths = (0..12).map(|at| (at * 7) % 12).collect();
        Ok(same(constant(12, 3, 1.0)?, batch_size)?.with_order(Bucketed::new(lengths).pool(2)))
    };
    let run =
        |data: DataModule| Ok::<_, amp_core::Error>(Run { data, ..Run::new(|_| steps(0.1), 2)? });
    Run { max_steps: Some(4), ..run(data(2)?)? }.train(folder.path())?;
    let path = folder.path().join("last.safetensors");
    let resume = |size: i64, with: &[Change]| -> Result<Vec<i64>> {
        let other = tempdir().expect("a folder");
        Ok(Run { resume: Some((&path, with)), ..run(data(size)?)? }.train(other.path())?.1)
    };
    assert_eq!(resume(2, &[])?, [2, 6]);
    assert_eq!(resume(4, &[Change::BatchSize])?, [3, 3]);
    Ok(())
}

fn decayed(decay: f64) -> OptimizerConfig {
    OptimizerConfig::new(Sgd { lr: 0.1, momentum: 0.5, weight_decay: decay, ..Default::default() })
}

fn halved(gamma: f64) -> OptimizerConfig {
    let schedule = StepLr { step_size: 1, gamma };
    OptimizerConfig::new(Sgd { lr: 0.1, ..Default::default() })
        .with_scheduler(schedule, Interval::Epoch)
}

/// If an option other than the learning rate has changed, resuming is refused and the error names
/// the option. With the user's permission, the run continues (pytorch/examples#816).
#[test]
fn other_changed_options_need_permission() -> Result<()> {
    let folder = tempdir().expect("a temporary folder");
    let last = folder.path().join("last.safetensors");
    Run::new(|_| decayed(0.0), 1)?.train(folder.path())?;
    let other = |with| -> Result<Run<'_>> {
        Ok(Run { resume: Some((&last, with)), ..Run::new(|_| decayed(0.5), 2)? })
    };
    let elsewhere = tempdir().expect("a temporary folder");
    let said = message(other(&[])?.train(elsewhere.path()));
    assert!(
        said.contains("whose optimizer is \"Sgd { weight_decay: 0.0 }\", but here it is")
            && said.contains("\"Sgd { weight_decay: 0.5 }\""),
        "{said}"
    );
    assert!(said.contains("--resume-with optimizer"), "{said}");
    let (record, _) = other(&[Change::Optimizer])?.train(elsewhere.path())?;
    assert_eq!(record.epochs.len(), 1);
    let same = Run { resume: Some((&last, &[])), ..Run::new(|_| decayed(0.0), 2)? };
    let (plain, _) = same.train(elsewhere.path())?;
    assert_ne!(record.last("val_loss"), plain.last("val_loss"), "the new option is used");
    Ok(())
}

/// If the `gamma` of a schedule differs from that of the saved run, resuming needs permission. The
/// new schedule then continues from the epoch that the saved schedule had reached.
#[test]
fn another_schedule_needs_permission() -> Result<()> {
    let folder = tempdir().expect("a temporary folder");
    let last = folder.path().join("last.safetensors");
    Run { max_steps: Some(9), ..Run::new(|_| halved(0.5), 4)? }.train(folder.path())?;
    let resumed = |with| -> Result<Run<'_>> {
        Ok(Run { resume: Some((&last, with)), ..Run::new(|_| halved(0.1), 4)? })
    };
    let elsewhere = tempdir().expect("a temporary folder");
    let said = message(resumed(&[])?.train(elsewhere.path()));
    assert!(
        said.contains(
            "saved by a run with another schedule: its learning rates or momenta differ from those \
             of this run's schedule within the first 1000 steps or epochs: "
        ) && said.contains("--resume-with lr"),
        "{said}"
    );
    let (record, _) = resumed(&[Change::Lr])?.train(elsewhere.path())?;
    // The schedule has advanced by one epoch, with the new `gamma` of 0.1.
    assert!((record.epochs[0].lr / 0.01 - 1.0).abs() < 1e-12, "{}", record.epochs[0].lr);
    Ok(())
}

/// With another limit on the number of training batches, a resumed run would train on other
/// examples than the saved run. This needs permission, and the epoch then starts again.
#[rstest]
#[case::limit(
    |loops: &mut Loops| loops.limit_train_batches = Limit::Batches(4),
    "limit_train_batches is 4, but here it is 1.0"
)]
#[case::overfit(
    |loops: &mut Loops| loops.overfit_batches = Some(Limit::Batches(4)),
    "overfit_batches is 4, but here it is none"
)]
fn another_limit_of_batches_needs_permission(
    #[case] limit: fn(&mut Loops),
    #[case] says: &str,
) -> Result<()> {
    let folder = tempdir().expect("a folder");
    let limited = |max_steps| -> Result<Run<'_>> {
        let mut loops = Loops::default();
        limit(&mut loops);
        Ok(Run { loops, max_steps, ..Run::new(|_| steps(0.1), 2)? })
    };
    limited(Some(3))?.train(folder.path())?;
    let path = folder.path().join("last.safetensors");
    let elsewhere = tempdir().expect("a folder");
    let resumed = |with: &[Change], run: Run<'_>| -> Result<Vec<i64>> {
        Ok(Run { resume: Some((&path, with)), ..run }.train(elsewhere.path())?.1)
    };
    let whole = || Run::new(|_| steps(0.1), 2);
    let said = message(resumed(&[], whole()?));
    assert!(said.contains(says) && said.contains("--resume-with data"), "{said}");
    assert_eq!(resumed(&[Change::Data], whole()?)?, [6, 6]);
    assert_eq!(resumed(&[], limited(None)?)?, [1, 4]);
    Ok(())
}
