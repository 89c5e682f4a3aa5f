//! Tests that a run with many options at once equals the run without interruption if it is resumed
//! after any step.

use std::{fs, path::PathBuf};

use amp_core::{
    Hook, Trainer, TrainerConfig,
    callback::{Action, Callback},
    data::{Bucketed, Limit, MapDataset, MixUp, SharedTensor},
    event::Event,
    loss::cross_entropy,
    optim::{AdamW, Interval, MultiStepLr, OptimizerConfig, ReduceLrOnPlateau, Sgd, TrainingPlan},
    precision::{Clip, GradScalerConfig, StepOutcome},
    prelude::*,
    random::Rng,
    record::RunRecord,
    trainer::{Averaging, NonFinite, ValCheckInterval},
};
use rstest::rstest;
use tempfile::tempdir;

use crate::{
    resume::{comparable, file, fingerprint, run},
    support::{
        device,
        model::{Model, demo, digits},
        seeded,
    },
};

/// Saves the run after every step.
struct EveryStep {
    folder: PathBuf,
    saved: usize,
}

impl Callback for EveryStep {
    fn name(&self) -> String {
        "EveryStep".into()
    }

    fn on_train_batch_end(
        &mut self,
        outcome: Option<&StepOutcome>,
        _: &mut Hook<'_>,
    ) -> Result<Vec<Action>> {
        if outcome.is_none() {
            return Ok(Vec::new());
        }
        self.saved += 1;
        Ok(vec![Action::Save { path: file(&self.folder, self.saved), weights_only: false }])
    }
}

/// A data set of rows with random noise, which differs from epoch to epoch.
struct Noisy {
    input: SharedTensor,
    target: SharedTensor,
}

impl MapDataset for Noisy {
    type Example = Batch;

    fn len(&self) -> i64 {
        self.target.get().size()[0]
    }

    fn get(&self, index: i64, rng: &mut Rng) -> Result<Batch> {
        let input = self.input.get().f_get(index)?.f_add_scalar(0.05 * rng.normal())?;
        Ok(Batch { input, target: self.target.get().f_get(index)? })
    }
}

/// Returns training examples with noise and MixUp, in the order of the sampler `Bucketed`. Two data
/// loader workers read them.
fn data() -> Result<DataModule> {
    let Batch { input, target } = digits(90)?;
    let classes = target.f_one_hot(10)?.f_to_kind(Kind::Float)?;
    let val = Batch::new(input.copy(), classes)?;
    let rows = Noisy { input: input.into(), target: target.into() };
    let train = rows.shared().transformed(MixUp::new(0.5, 10)?);
    let lengths = (0..90).map(|at| (at * 37) % 90).collect();
    let mut data =
        DataModule::new("rows", train, val, 16).with_order(Bucketed::new(lengths).pool(2));
    data.loading.num_workers = 2;
    Ok(data)
}

fn plateau(_: &TrainingPlan) -> OptimizerConfig {
    let plateau =
        ReduceLrOnPlateau { patience: 0, factor: 0.5, threshold: 0.2, ..Default::default() };
    OptimizerConfig::new(AdamW { lr: 0.01, ..Default::default() })
        .with_scheduler(plateau, Interval::Epoch)
}

fn milestones(_: &TrainingPlan) -> OptimizerConfig {
    let schedule = MultiStepLr { milestones: vec![3, 5], gamma: 0.5 };
    OptimizerConfig::new(Sgd { lr: 0.05, momentum: 0.9, ..Default::default() })
        .with_scheduler(schedule, Interval::Step)
}

type Optimizer = fn(&TrainingPlan) -> OptimizerConfig;

/// A run that is resumed after any step has the same events and weights as the run without
/// interruption. In `16-mixed`, the first steps overflow.
#[rstest]
#[case::average_of_steps(Precision::Bf16True, plateau, |config: &mut TrainerConfig| {
    config.optimization.averaging = Some(Averaging::Ema { decay: 0.8 });
    config.optimization.accumulate_grad_batches = 2;
    config.optimization.freeze = vec!["model.0.*=step:3".parse().expect("an entry")];
    config.loops.limit_train_batches = Limit::Fraction(0.9);
    config.loops.val_check_interval = ValCheckInterval::Fraction(0.5);
})]
#[case::average_of_epochs(Precision::Bf16Mixed, plateau, |config: &mut TrainerConfig| {
    config.optimization.averaging = Some(Averaging::Swa { start_epoch: 1 });
    config.optimization.freeze = vec!["model.0.*=epoch:1".parse().expect("an entry")];
    config.optimization.gradient_clip = Some(Clip::Value(0.01));
    config.loops.val_check_interval = ValCheckInterval::Steps(4);
})]
#[case::repeated_steps(Precision::F16Mixed, milestones, |config: &mut TrainerConfig| {
    config.optimization.averaging = Some(Averaging::Ema { decay: 0.5 });
    config.optimization.accumulate_grad_batches = 3;
    config.optimization.gradient_clip = Some(Clip::Norm(0.5));
    config.recovery.on_non_finite = NonFinite::LowerScale;
    config.loops.check_val_every_n_epoch = 2;
})]
#[case::skipped_steps_count(Precision::F16Mixed, milestones, |config: &mut TrainerConfig| {
    config.optimization.accumulate_grad_batches = 2;
    config.recovery.skipped_step_advances = true;
    config.loops.val_check_interval = ValCheckInterval::Fraction(0.3);
})]
#[case::overfitting(Precision::Bf16True, milestones, |config: &mut TrainerConfig| {
    config.optimization.averaging = Some(Averaging::Ema { decay: 0.5 });
    config.loops.overfit_batches = Some(Limit::Batches(3));
})]
fn runs_with_many_options_resume_at_any_step(
    #[case] precision: Precision,
    #[case] optimizer: Optimizer,
    #[case] change: fn(&mut TrainerConfig),
) -> Result<()> {
    let folder = tempdir().expect("a temporary folder");
    let config = TrainerConfig { max_epochs: 3, ..TrainerConfig::new(precision, device()) };
    let config = config.with(|config| {
        config.logging.log_every_n_steps = 1;
        config.numerics.scaler = GradScalerConfig {
            init_scale: 2f64.powi(23),
            growth_interval: 3,
            ..Default::default()
        };
        change(config);
    });
    let model = || -> Result<Model> {
        let (model, optimizer) = (Box::new(demo(0.3)?), Box::new(optimizer));
        Ok(Model { model, loss: cross_entropy, optimizer })
    };
    let generator = seeded(7);
    let mut straight = model()?;
    let mut callback = EveryStep { folder: folder.path().to_owned(), saved: 0 };
    let trainer = Trainer::new(config.clone()).callback(&mut callback);
    let (events, record) = run(trainer, &mut straight, &data()?);
    let skipped = record?.end.skipped;
    drop(generator);
    assert_eq!(skipped > 0, precision == Precision::F16Mixed);
    let is_save = |event: &&Event| matches!(event, Event::Saving { .. } | Event::Saved { .. });
    for step in 1..=callback.saved {
        let _generator = seeded(100 + step as u64);
        let path = file(folder.path(), step);
        let mut resumed = model()?;
        let mut callback = EveryStep { folder: folder.path().join("again"), saved: step };
        fs::create_dir_all(&callback.folder).expect("a folder");
        let trainer = Trainer::new(config.clone()).resume_from(&path).callback(&mut callback);
        let (resumed_events, record) = run(trainer, &mut resumed, &data()?);
        let _: RunRecord = record?;
        let saved = events.iter().position(|event| *event == Event::Saving { path: path.clone() });
        let rest = events[saved.expect("it was saved") + 1..].iter();
        let expected: Vec<_> =
            rest.filter(|event| !is_save(event)).filter_map(comparable).collect();
        let seen = resumed_events.iter().filter(|event| !is_save(event));
        assert_eq!(seen.filter_map(comparable).collect::<Vec<_>>(), expected, "step {step}");
        assert_eq!(fingerprint(&resumed), fingerprint(&straight), "step {step}");
    }
    Ok(())
}
