//! Tests of training runs that are shorter than the warm-up of the learning rate, or than the
//! validation interval.

use amp_core::{
    Result, TrainerConfig,
    data::Limit,
    event::Event,
    optim::{
        BuildScheduler, ConstantLr, Decay, Interval, OptimizerConfig, Rates, SequentialLr, Sgd,
        TrainingPlan, WarmupCosine, Wsd,
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
    assert_eq!(schedule.note().as_deref(), Some(note));
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
