//! Tests of training runs that are shorter than the warm-up of the learning rate, or than the
//! validation interval.

use std::time::Duration;

use amp_core::{
    Result, TrainerConfig,
    data::Limit,
    event::Event,
    optim::{
        BuildScheduler, ChainedScheduler, ConstantLr, Decay, ExponentialLr, Interval, Intervals,
        LinearLr, OneCycle, OptimizerConfig, PolynomialLr, Rates, SequentialLr, Sgd, TrainingPlan,
        WarmupCosine, Wsd,
    },
    precision::Precision,
    trainer::{Loops, ValCheckInterval},
};
use rstest::rstest;

use crate::support::{
    device,
    model::{Model, constant, fit, linear, same},
    seeded,
};

/// A schedule may be shorter than its warm-up, for example in a trial run. It then has a note that
/// says so. The expected learning rates are those of transformers 5.3 with a base rate of 1.
#[rstest]
#[case(
    &WarmupCosine { warmup_steps: 5, total_steps: 4 },
    &[0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 0.0],
    "the warm-up takes 5 steps, but total_steps is only 4: the learning rate does not reach its \
     full value"
)]
#[case(
    &Wsd { warmup_steps: 6, decay_steps: 5, total_steps: 10, decay_type: Decay::Cosine, min_lr_ratio: 0.0 },
    &[0.0, 1.0 / 6.0, 2.0 / 6.0, 0.5, 4.0 / 6.0, 5.0 / 6.0, 0.9045084971874737, 0.6545084971874737],
    "the warm-up takes 6 steps and the decay 5 steps, but total_steps is only 10: the decay \
     starts within the warm-up"
)]
#[case(
    &SequentialLr::new(WarmupCosine { warmup_steps: 2, total_steps: 1 }).then(3, ConstantLr::default()),
    &[0.0, 0.5, 1.0, 1.0 / 3.0],
    "the warm-up takes 2 steps, but total_steps is only 1: the learning rate does not reach its \
     full value"
)]
fn a_warm_up_may_be_longer_than_the_schedule(
    #[case] schedule: &dyn BuildScheduler,
    #[case] expected: &[f64],
    #[case] note: &str,
) -> Result<()> {
    let mut running = schedule.build(Rates { lr: 1.0, momentum: None })?;
    for (step, expected) in expected.iter().enumerate() {
        assert!((running.rates().lr - expected).abs() < 1e-12, "step {step}");
        running.advance(None);
    }
    assert_eq!(schedule.note(None).as_deref(), Some(note));
    Ok(())
}

/// A schedule may end before the training, or its warm-up after the training. The note has both
/// numbers. The training has 50 steps.
#[rstest]
#[case::one_cycle(
    &OneCycle { max_lr: 0.1, total_steps: 20, ..OneCycle::default() },
    "total_steps is 20, but the training has 50 steps: the learning rate of the last 30 steps is \
     only 4.00e-7"
)]
#[case::cosine(
    &WarmupCosine { warmup_steps: 5, total_steps: 49 },
    "total_steps is 49, but the training has 50 steps: the learning rate of the last 1 step is 0"
)]
#[case::wsd(
    &Wsd { warmup_steps: 5, decay_steps: 5, total_steps: 40, min_lr_ratio: 0.1, ..Wsd::default() },
    "total_steps is 40, but the training has 50 steps: the learning rate of the last 10 steps is \
     only 0.1 of the optimizer's"
)]
#[case::polynomial(
    &PolynomialLr { total_iters: 5, power: 1.0 },
    "total_iters is 5, but the training has 50 steps: the learning rate of the last 45 steps is 0"
)]
#[case::long_warm_up(
    &WarmupCosine { warmup_steps: 80, total_steps: 1000 },
    "the warm-up takes 80 steps, but the training has only 50 steps: the learning rate does not \
     reach its full value"
)]
#[case::long_rise(
    &OneCycle { max_lr: 0.1, total_steps: 1000, ..OneCycle::default() },
    "the warm-up takes 300 steps, but the training has only 50 steps"
)]
#[case::linear(
    &LinearLr { total_iters: 51, ..LinearLr::default() },
    "the warm-up takes 51 steps, but the training has only 50 steps"
)]
#[case::constant(
    &ConstantLr { factor: 0.5, total_iters: 60 },
    "the warm-up takes 60 steps, but the training has only 50 steps"
)]
#[case::chained(
    &ChainedScheduler::new(ExponentialLr { gamma: 0.9 }).then(PolynomialLr { total_iters: 5, power: 1.0 }),
    "total_iters is 5, but the training has 50 steps"
)]
#[case::late_part(
    &SequentialLr::new(LinearLr::default()).then(60, ExponentialLr { gamma: 0.9 }),
    "the training has only 50 steps: the schedule after milestone 60 never applies"
)]
#[case::short_part(
    &SequentialLr::new(LinearLr::default()).then(5, PolynomialLr { total_iters: 40, power: 1.0 }),
    "total_iters is 40, but the training has 45 steps: the learning rate of the last 5 steps is 0"
)]
fn a_schedule_of_another_length_than_the_training_is_noted(
    #[case] schedule: &dyn BuildScheduler,
    #[case] expected: &str,
) {
    let planned = Intervals { count: 50, unit: Interval::Step };
    let said = schedule.note(Some(planned)).expect("a note");
    assert!(said.starts_with(expected), "{said}");
    assert_eq!(schedule.note(None), None);
}

#[rstest]
#[case(&OneCycle { max_lr: 0.1, total_steps: 50, ..OneCycle::default() })]
#[case(&WarmupCosine { warmup_steps: 10, total_steps: 1000 })]
#[case(&PolynomialLr { total_iters: 50, power: 1.0 })]
#[case(&LinearLr { total_iters: 50, ..LinearLr::default() })]
#[case(&LinearLr { start_factor: 1.0, end_factor: 0.1, total_iters: 80 })]
#[case(&SequentialLr::new(LinearLr { total_iters: 5, ..LinearLr::default() })
    .then(5, PolynomialLr { total_iters: 45, power: 1.0 }))]
fn a_schedule_that_fits_the_training_has_no_note(#[case] schedule: &dyn BuildScheduler) {
    assert_eq!(schedule.note(Some(Intervals { count: 50, unit: Interval::Step })), None);
}

/// The note has the unit of the schedule, and the run's length. A run with a time limit has no
/// known length.
#[rstest]
#[case::steps(Interval::Step, None, Some("total_iters is 2, but the training has 20 steps"))]
#[case::epochs(Interval::Epoch, None, Some("total_iters is 2, but the training has 4 epochs"))]
#[case::limited(Interval::Step, Some(Duration::from_secs(3600)), None)]
fn a_run_notes_a_schedule_that_ends_early(
    #[case] interval: Interval,
    #[case] max_time: Option<Duration>,
    #[case] expected: Option<&str>,
) -> Result<()> {
    let _generator = seeded(0);
    let mut model = Model::regression(linear(3, 3)?, move |_| {
        OptimizerConfig::new(Sgd { lr: 0.1, ..Default::default() })
            .with_scheduler(PolynomialLr { total_iters: 2, power: 1.0 }, interval)
    });
    let mut config =
        TrainerConfig { max_epochs: 4, ..TrainerConfig::new(Precision::F32True, device()) };
    config.loops.max_time = max_time;
    let (events, record) = fit(&config, &mut model, &same(constant(10, 3, 1.0)?, 2)?);
    record?;
    let found = events.iter().find_map(|event| match event {
        Event::Note { text } if text.starts_with("total_iters") => Some(text.as_str()),
        _ => None,
    });
    assert_eq!(found.and_then(|text| text.split(':').next()), expected);
    Ok(())
}

/// The planned run has 30 steps, of which 10 are warm-up. A trial of it (`fast_dev_run`) and a run
/// of its first steps (`plan` and `max_steps`) have the first learning rates of the planned run and
/// print no note. A run whose plan itself has fewer steps than the warm-up prints a note.
#[rstest]
#[case::tried_out(|config: &mut TrainerConfig| config.loops.fast_dev_run = Some(2), None)]
#[case::part_of_a_run(
    |config: &mut TrainerConfig| {
        config.optimization.plan =
            Some(TrainingPlan { max_epochs: 3, estimated_stepping_batches: 30 });
        config.max_steps = Some(2);
    },
    None
)]
#[case::short(
    |config: &mut TrainerConfig| config.max_steps = Some(2),
    Some("the warm-up takes 10 steps, but total_steps is only 2: the learning rate does not \
          reach its full value")
)]
fn a_trial_has_the_rates_of_the_whole_run(
    #[case] set: fn(&mut TrainerConfig),
    #[case] note: Option<&str>,
) -> Result<()> {
    let _generator = seeded(0);
    let mut model = Model::regression(linear(3, 3)?, |plan| {
        let schedule =
            WarmupCosine { warmup_steps: 10, total_steps: plan.estimated_stepping_batches };
        OptimizerConfig::new(Sgd { lr: 0.1, ..Default::default() })
            .with_scheduler(schedule, Interval::Step)
    });
    let config =
        TrainerConfig { max_epochs: 3, ..TrainerConfig::new(Precision::Bf16Mixed, device()) };
    let config = config.with(set);
    let (events, record) = fit(&config, &mut model, &same(constant(20, 3, 1.0)?, 2)?);
    record?;
    let mut ends = events.iter().filter_map(|event| match event {
        Event::EpochEnd(end) => Some(end.lr),
        _ => None,
    });
    let lr = ends.next().expect("an epoch");
    assert!((lr - 0.01).abs() < 1e-12, "{lr}");
    let notes = events.iter().filter_map(|event| match event {
        Event::Note { text } if text.starts_with("the warm-up") => Some(text.as_str()),
        _ => None,
    });
    assert_eq!(notes.collect::<Vec<_>>(), note.into_iter().collect::<Vec<_>>());
    Ok(())
}

/// If a run is too short to validate, a note names the option that sets the validation interval. If
/// the user has switched validation off, there is no note. An epoch has ten steps.
#[rstest]
#[case::last_step(Loops { val_check_interval: ValCheckInterval::Steps(20), ..Loops::default() }, 20, "")]
#[case::too_many_steps(
    Loops { val_check_interval: ValCheckInterval::Steps(21), ..Loops::default() },
    20,
    "it has 20 optimizer steps and val_check_interval is 21 steps"
)]
#[case::too_few_steps(
    Loops { val_check_interval: ValCheckInterval::Steps(6), ..Loops::default() },
    5,
    "it has 5 optimizer steps and val_check_interval is 6 steps"
)]
#[case::last_epoch(Loops { check_val_every_n_epoch: 2, ..Loops::default() }, 11, "")]
#[case::too_few_epochs(
    Loops { check_val_every_n_epoch: 2, ..Loops::default() },
    10,
    "it has 1 epochs and check_val_every_n_epoch is 2"
)]
#[case::never(Loops { val_check_interval: ValCheckInterval::Never, ..Loops::default() }, 20, "")]
#[case::no_validation_batches(
    Loops {
        limit_val_batches: Limit::Batches(0),
        val_check_interval: ValCheckInterval::Steps(21),
        ..Loops::default()
    },
    20,
    ""
)]
fn a_run_that_cannot_validate_says_so(
    #[case] loops: Loops,
    #[case] max_steps: u64,
    #[case] expected: &str,
) -> Result<()> {
    let _generator = seeded(0);
    let never = loops.val_check_interval == ValCheckInterval::Never;
    let limited = loops.limit_val_batches == Limit::Batches(0);
    let config = TrainerConfig {
        max_epochs: 2,
        max_steps: Some(max_steps),
        loops,
        ..TrainerConfig::new(Precision::Bf16Mixed, device())
    };
    let mut model = Model::regression(linear(3, 3)?, |_| {
        OptimizerConfig::new(Sgd { lr: 0.1, ..Default::default() })
    });
    let (events, record) = fit(&config, &mut model, &same(constant(20, 3, 1.0)?, 2)?);
    let notes = record?.notes;
    let of_validation = |note: &String| {
        note.contains("val_check_interval") || note.contains("check_val_every_n_epoch")
    };
    match expected {
        "" => assert!(!notes.iter().any(of_validation), "{notes:?}"),
        text => assert!(notes.iter().any(|note| note.contains(text)), "{notes:?}"),
    }
    let validates = events.iter().any(|event| match event {
        Event::Validated(_) => true,
        Event::EpochEnd(end) => !end.val.is_empty(),
        _ => false,
    });
    assert_eq!(validates, expected.is_empty() && !never && !limited);
    Ok(())
}

/// The completed fraction of a run (`done`) becomes 1 with the last batch of the run, and not
/// before. This also holds if steps were skipped, and if `max_steps` ends the run before its last
/// epoch. The loss scale is so large that the first steps overflow.
#[rstest]
#[case::by_steps(Some(6), 7)]
#[case::by_epochs(None, 2)]
fn the_last_batch_completes_a_run_with_skipped_steps(
    #[case] max_steps: Option<u64>,
    #[case] max_epochs: i64,
) -> Result<()> {
    let _generator = seeded(0);
    let mut model = Model::regression(linear(3, 3)?, |_| {
        OptimizerConfig::new(Sgd { lr: 0.1, ..Default::default() })
    });
    let config = TrainerConfig {
        max_epochs,
        max_steps,
        ..TrainerConfig::new(Precision::F16Mixed, device())
    };
    let config = config.with(|config| {
        config.optimization.accumulate_grad_batches = 2;
        config.numerics.scaler.init_scale = 2f64.powi(19);
    });
    let (events, record) = fit(&config, &mut model, &same(constant(20, 3, 1.0)?, 2)?);
    record?;
    assert!(events.iter().any(|event| matches!(event, Event::Skipped(_))));
    let done: Vec<f64> = events
        .iter()
        .filter_map(|event| match event {
            Event::Batch { done, .. } => Some(*done),
            _ => None,
        })
        .collect();
    assert!(done.is_sorted(), "{done:?}");
    assert_eq!(done.iter().position(|done| *done == 1.0), Some(done.len() - 1), "{done:?}");
    Ok(())
}
