//! Tests of freezing: layers inside a checkpointed layer, a memory budget, a step that overflows, a
//! freeze that is set to end after the last step, and a weight that two layers share.

use amp_core::{
    Trainer, TrainerConfig,
    data::DataModule,
    event::Skipped,
    nn::{self, Visit, Visitor, visit_child},
    optim::TrainingPlan,
    precision::{GradScalerConfig, Policy},
    prelude::*,
    record::RunRecord,
    trainer::Averaging,
};
use rstest::rstest;

use crate::support::{
    bits::values,
    message,
    model::{digits, same},
    seeded,
};

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 0.01)]
struct Net {
    #[layer(checkpoint(sequential(linear(64, 32), relu, linear(32, 32), relu)))]
    stem: Checkpoint<Sequential>,
    #[layer(checkpoint(sequential(linear(32, 32), relu)))]
    middle: Checkpoint<Sequential>,
    #[layer(linear(32, 10))]
    head: Linear,
}

/// The same layers as `Net`, without activation checkpointing.
#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 0.01)]
struct Plain {
    #[layer(sequential(linear(64, 32), relu, linear(32, 32), relu))]
    stem: Sequential,
    #[layer(sequential(linear(32, 32), relu))]
    middle: Sequential,
    #[layer(linear(32, 10))]
    head: Linear,
}

fn config(precision: Precision, freeze: &[&str]) -> TrainerConfig {
    TrainerConfig::new(precision, Device::Cpu).with(|config| {
        config.max_epochs = 1;
        config.optimization.freeze =
            freeze.iter().map(|text| text.parse()).collect::<Result<_>>().expect("an entry");
    })
}

fn data() -> Result<DataModule> {
    same(digits(64)?, 16)
}

fn train<M: LightningModule>(
    build: impl FnOnce() -> Result<M>,
    config: TrainerConfig,
) -> Result<(Vec<Vec<f64>>, RunRecord)> {
    let _section = seeded(0);
    let mut model = build()?;
    let record = Trainer::new(config).fit(&mut model, &data()?)?;
    let weights = nn::parameters(&model).iter().map(|own| values(&own.tensor)).collect();
    Ok((weights, record))
}

/// transformers#23170: with frozen layers and activation checkpointing, all parameters that are not
/// frozen train as without checkpointing.
#[rstest]
fn unfrozen_parameters_train_under_checkpoints(
    #[values(
        &["stem.*"],
        &["stem.*", "middle.*"],
        &["middle.*"],
        &["stem.0.*"],
        &["stem.2.*", "middle.0.weight"],
        &["*.bias"]
    )]
    freeze: &[&str],
    #[values(Precision::F32True, Precision::Bf16Mixed)] precision: Precision,
) -> Result<()> {
    let (seen, _) = train(|| Net::builder().build(), config(precision, freeze))?;
    let (expected, _) = train(|| Plain::builder().build(), config(precision, freeze))?;
    assert_eq!(seen, expected);
    let (all, _) = train(|| Plain::builder().build(), config(precision, &[]))?;
    assert_ne!(seen, all, "some parameters are frozen");
    Ok(())
}

/// Frozen layers can be combined with a memory budget. This test uses one budget that is large
/// enough for a whole step, and one that requires recomputation. Neither changes the result.
#[rstest]
fn a_budget_holds_with_frozen_layers(
    #[values(&["stem.*"], &["stem.*", "middle.*"])] freeze: &[&str],
    #[values(256 << 20, 150_000)] budget: u64,
) -> Result<()> {
    let (expected, _) = train(|| Plain::builder().build(), config(Precision::F32True, freeze))?;
    let tight = config(Precision::F32True, freeze);
    let tight = tight.with(|config| config.memory.budget = Some(budget));
    let (seen, _) = train(|| Plain::builder().build(), tight)?;
    assert_eq!(seen, expected);
    Ok(())
}

/// A budget that is sufficient only while parameters are frozen is refused before the first step. A
/// budget that is always sufficient does not change the result.
#[test]
fn a_budget_must_suffice_after_a_freeze() -> Result<()> {
    let freeze = &["stem.*=epoch:1", "middle.*=epoch:1"];
    let run = |epochs, budget| {
        let config = config(Precision::F32True, freeze);
        let config = config.with(|config| {
            config.max_epochs = epochs;
            config.memory.budget = budget;
        });
        train(|| Plain::builder().build(), config)
    };
    let (expected, _) = run(2, None)?;
    assert_eq!(run(2, Some(256 << 20))?.0, expected);
    let least = |freeze: &[&str]| {
        let config = config(Precision::F32True, freeze).with(|config| {
            config.memory.budget = Some(1);
        });
        let text = message(train(|| Plain::builder().build(), config));
        let (_, rest) = text.split_once("a step takes ").expect("the least memory");
        let bytes = rest.split_once(' ').map(|(bytes, _)| bytes.parse::<u64>());
        bytes.expect("a number").expect("bytes")
    };
    let enough_at_first = least(&["stem.*", "middle.*"]);
    assert_eq!(run(1, Some(enough_at_first))?.0, run(1, None)?.0);
    let text = message(run(2, Some(enough_at_first)));
    let says = "but a step after the end of stem.*=epoch:1, middle.*=epoch:1 takes ";
    assert!(text.contains(says), "{text}");
    Ok(())
}

/// Before the first step, the trainer checks whether the budget is sufficient after the freeze has
/// ended. The check counts the optimizer state that is created at that time. With the number of
/// bytes that the error names, the run succeeds, and has the same result as without a budget.
#[test]
fn the_budget_of_a_later_step_counts_the_optimizer_state() -> Result<()> {
    let run = |budget| {
        let config = config(Precision::F32True, &["stem.*=epoch:1", "middle.*=epoch:1"]);
        let config = config.with(|config| {
            config.max_epochs = 2;
            config.memory.budget = budget;
        });
        train(|| Plain::builder().build(), config)
    };
    let text = message(run(Some(1)));
    let (_, rest) = text.split_once("stem.*=epoch:1, middle.*=epoch:1 takes ").expect("bytes");
    let bytes: u64 = rest.split(' ').next().and_then(|word| word.parse().ok()).expect("bytes");
    assert_eq!(run(Some(bytes))?.0, run(None)?.0);
    let text = message(run(Some(bytes - 1)));
    assert!(text.contains("but a step after the end of"), "{text}");
    Ok(())
}

/// The record of a run has the number of parameters that are trained from the start, and of those
/// that are trained later. If a freeze is set to end after the run, or weight averaging is set to
/// begin after the run, a note reports this. The run has five epochs of four steps.
#[rstest]
#[case::reached(&["middle.*=epoch:4"], 4, 1056, &[])]
#[case::in_the_last_step(&["middle.*=step:19"], 4, 1056, &[])]
#[case::endless(&["middle.*"], 4, 0, &[])]
#[case::partly(&["middle.*=epoch:4", "middle.0.bias"], 4, 1024, &[])]
#[case::after_the_last_epoch(&["middle.*=epoch:5"], 4, 0, &["freeze: middle.*=epoch:5 does not end"])]
#[case::after_the_last_step(&["middle.*=step:20"], 4, 0, &["freeze: middle.*=step:20 does not end"])]
#[case::average(&[], 5, 0, &["the weights are not averaged: the average's start_epoch is 5"])]
fn a_time_that_the_run_does_not_reach_is_noted(
    #[case] freeze: &[&str],
    #[case] start_epoch: i64,
    #[case] later: i64,
    #[case] expected: &[&str],
) -> Result<()> {
    let config = config(Precision::F32True, freeze).with(|config| {
        config.max_epochs = 5;
        config.optimization.averaging = Some(Averaging::Swa { start_epoch });
    });
    let (_, record) = train(|| Plain::builder().build(), config.clone())?;
    let frozen = if freeze.is_empty() { 0 } else { 1056 };
    assert_eq!((record.start.run.parameters, record.start.trained_later), (4522 - frozen, later));
    let of_times = |note: &&String| note.starts_with("freeze:") || note.contains("start_epoch");
    let notes: Vec<&String> = record.notes.iter().filter(of_times).collect();
    assert_eq!(notes.len(), expected.len(), "{notes:?}");
    assert!(notes.iter().zip(expected).all(|(note, says)| note.starts_with(says)), "{notes:?}");
    // `plan` declares that this run is the first part of a run of six epochs, which reaches these
    // times. There is no note.
    let trial = config.with(|config| {
        let (max_epochs, estimated_stepping_batches) = (6, 24);
        config.optimization.plan = Some(TrainingPlan { max_epochs, estimated_stepping_batches });
    });
    let (_, record) = train(|| Plain::builder().build(), trial)?;
    assert!(!record.notes.iter().any(|note| of_times(&note)), "{:?}", record.notes);
    Ok(())
}

/// pytorch#56876: the report about a skipped step names the cause, even if an earlier layer is
/// frozen.
#[rstest]
fn a_skip_is_explained_with_frozen_layers(
    #[values(&["stem.*"], &["stem.*", "middle.*"])] freeze: &[&str],
) -> Result<()> {
    let scaler = GradScalerConfig { init_scale: 2f64.powi(30), ..Default::default() };
    let config = config(Precision::F16Mixed, freeze);
    let config = config.with(|config| config.numerics.scaler = scaler);
    let (_, record) = train(|| Plain::builder().build(), config)?;
    let Skipped { provenance, culprit, .. } = &record.skips[0];
    let found = provenance.as_ref().expect("the cause is found").to_string();
    assert!(found.contains("head") || found.contains("loss"), "{found}");
    assert!(culprit.as_deref().is_some_and(|name| !name.starts_with("stem")), "{culprit:?}");
    assert!(record.notes.iter().all(|note| !note.contains("cause")), "{:?}", record.notes);
    Ok(())
}

/// A module that reports one layer under two names. Under the second name, the layer may be in a
/// precision region.
struct Tied {
    layer: Linear,
    region: Option<Region>,
}

impl Visit for Tied {
    fn visit(&self, visitor: &mut dyn Visitor) {
        visit_child(visitor, "first", None, &self.layer);
        visit_child(visitor, "second", self.region, &self.layer);
    }
}

/// trl#4446: a weight that is in two precision regions of different dtypes is refused.
#[rstest]
#[case(Precision::Bf16True, Some(Region::Fp32), Some("bfloat16"))]
#[case(Precision::F16True, Some(Region::Fp32), Some("float16"))]
#[case(Precision::F32True, Some(Region::Bf16), None)]
#[case(Precision::Bf16Mixed, Some(Region::Fp32), None)]
#[case(Precision::Bf16True, None, None)]
fn a_weight_in_two_regions_is_refused(
    #[case] precision: Precision,
    #[case] region: Option<Region>,
    #[case] refused: Option<&str>,
) -> Result<()> {
    let tied = Tied { layer: Linear::new(nn::LinearConfig::new(4, 4))?, region };
    let placed = nn::place(&tied, Policy::new(precision, Device::Cpu), &Default::default());
    match refused {
        None => placed?,
        Some(kind) => {
            let said = message(placed);
            let names = "`first.weight` and `second.weight` are the same tensor";
            assert!(said.starts_with(names) && said.contains(kind), "{said}");
        }
    }
    Ok(())
}
