//! Tests that violate each invariant of training once, and check the error.

use amp_core::{
    Error, Result, Trainer,
    event::Event,
    optim::WeightUpdate,
    precision::Precision,
    trainer::{Check, Invariant},
};
use rstest::rstest;

use super::{Odd, Planted, broken, config, data, fit, planted::Does};
use crate::support::{device, seeded};

/// If a run violates an invariant, the error names the step, the tensor and the cause.
#[rstest]
#[case::weight_written_back(
    Odd::WritesBack,
    Does::Nothing,
    Invariant::WeightsMove,
    "step 10: `model.0.weight` has not changed in 10 applied steps"
)]
#[case::parameter_left_out(
    Odd::LeavesOut,
    Does::Nothing,
    Invariant::OptimizerHoldsWeights,
    "before step 1: no optimizer holds `model.0.weight`"
)]
#[case::copy_held(
    Odd::Copies,
    Does::Nothing,
    Invariant::OptimizerHoldsWeights,
    "before step 1: the tensor that the optimizer holds as `model.0.weight` is not the model's \
     tensor"
)]
#[case::tensors_replaced(
    Odd::Nothing,
    Does::ReplacesTensors,
    Invariant::OptimizerHoldsWeights,
    "before step 1: the tensor that the optimizer holds as `model.0.weight` is not the model's \
     tensor"
)]
#[case::frozen_within(
    Odd::Nothing,
    Does::FreezesWithin,
    Invariant::OptimizerHoldsWeights,
    "step 2: `model.0.weight` no longer requires a gradient"
)]
#[case::gradients_kept(
    Odd::KeepsGradients,
    Does::Nothing,
    Invariant::GradientsAreCleared,
    "step 2: `model.0.weight` still has the last step's gradient"
)]
#[case::rates_ignored(
    Odd::IgnoresRates,
    Does::Nothing,
    Invariant::RatesAreScheduled,
    "step 1: parameter group 0 of AdamW has the learning rate 1e-3, but its schedule prescribes \
     9.9e-4"
)]
#[case::scheduled_twice(
    Odd::SchedulesTwice,
    Does::Nothing,
    Invariant::RatesAreScheduled,
    "step 1: the schedule of AdamW has advanced by 2 in 1 applied steps"
)]
#[case::never_scheduled(
    Odd::SchedulesNever,
    Does::Nothing,
    Invariant::RatesAreScheduled,
    "step 1: the schedule of AdamW has advanced by 0 in 1 applied steps"
)]
#[case::converted(
    Odd::Nothing,
    Does::Converts,
    Invariant::DtypesStay,
    "step 2: `model.1.num_batches_tracked` is int32 [] on"
)]
#[case::buffers_replaced(
    Odd::Nothing,
    Does::ReplacesBuffers,
    Invariant::DtypesStay,
    "step 2: `model.1.running_mean` has been replaced by another tensor since the run began"
)]
#[case::weight_moved_in_validation(
    Odd::Nothing,
    Does::MovesWeightInValidation,
    Invariant::EvaluationMovesNothing,
    "validation after step 7: `model.0.weight` has changed"
)]
#[case::buffer_moved_in_validation(
    Odd::Nothing,
    Does::MovesBufferInValidation,
    Invariant::EvaluationMovesNothing,
    "validation after step 7: `model.1.running_mean` has changed"
)]
#[case::validated_in_training_mode(
    Odd::Nothing,
    Does::TrainsInValidation,
    Invariant::EvaluationMode,
    if device().is_cuda() {
        // On CUDA, the batch norm runs in a kernel of this crate, which libtorch does not know by
        // name. The error therefore names no operation.
        "validation after step 7: layers run in training mode"
    } else {
        "validation after step 7: `batch_norm_impl_index` runs in training mode"
    }
)]
#[case::dropout_in_validation(
    Odd::Nothing,
    Does::DropsInValidation,
    Invariant::EvaluationMode,
    "validation after step 7: `dropout` runs in training mode"
)]
fn each_broken_rule_is_reported(
    #[values(Check::Cheap, Check::Full)] level: Check,
    #[case] odd: Odd,
    #[case] does: Does,
    #[case] invariant: Invariant,
    #[case] says: &str,
) -> Result<()> {
    let mut model = Planted::new(odd, does)?;
    let _section = seeded(1);
    let text = broken(fit(config(level), &mut model), invariant);
    assert!(text.starts_with(says), "{text}");
    Ok(())
}

/// Only the `MemoryMeter` that was started last sees new memory. If a step measures its memory with
/// its own meter, a meter that measures the whole epoch therefore reads too little, which the
/// trainer reports. Meters that follow one another without overlap count all memory.
#[rstest]
fn a_meter_that_misses_memory_is_reported(
    #[values(Check::Cheap, Check::Full)] level: Check,
) -> Result<()> {
    let _section = seeded(1);
    let mut model = Planted::new(Odd::Nothing, Does::MeasuresWithin)?;
    let text = broken(fit(config(level), &mut model), Invariant::MemoryOverStep);
    assert!(text.contains("readings of a `MemoryMeter` are too low"), "{text}");
    fit(config(level), &mut Planted::new(Odd::Nothing, Does::MeasuresSteps)?)?;
    Ok(())
}

/// A change that a skipped step makes is reported. With a loss scale of 2^40, the first steps of
/// 16-mixed overflow and are skipped.
#[rstest]
#[case::a_weight(Odd::Nothing, Does::MovesInHook, "step 1: `model.0.weight` has changed")]
#[case::a_buffer(Odd::Nothing, Does::CountsInHook, "step 1: `model.1.running_mean` has changed")]
#[case::a_rate(
    Odd::MovesRates,
    Does::MovesBufferInValidation,
    "step 1: a learning rate has changed"
)]
fn a_skipped_step_that_changes_something_is_reported(
    #[values(Check::Cheap, Check::Full)] level: Check,
    #[case] odd: Odd,
    #[case] does: Does,
    #[case] says: &str,
) -> Result<()> {
    let mut config = config(level);
    config.numerics.scaler.init_scale = 2f64.powi(40);
    let mut model = Planted::new(odd, does)?;
    let _section = seeded(1);
    let text = broken(fit(config.clone(), &mut model), Invariant::SkipsChangeNothing);
    assert!(text.starts_with(says), "{text}");
    // With `skipped_step_advances`, a skipped step may change weights, buffers and learning rates.
    config.recovery.skipped_step_advances = true;
    config.max_epochs = 1;
    if does != Does::MovesBufferInValidation {
        fit(config, &mut Planted::new(odd, does)?)?;
    }
    Ok(())
}

/// If weights are changed after their f32 master weights were made, for example by loading a file
/// after the optimizer was built, this is reported. Otherwise, the first step would silently
/// overwrite the change with the master weights.
#[test]
fn weights_written_after_their_masters_were_made_are_reported() -> Result<()> {
    let mut config = config(Check::Cheap);
    config.precision = Precision::Bf16True;
    config.numerics.weight_update = WeightUpdate::MasterWeights;
    let mut model = Planted::new(Odd::Nothing, Does::WritesAtStart)?;
    let _section = seeded(1);
    let text = broken(fit(config.clone(), &mut model), Invariant::OptimizerHoldsWeights);
    assert!(
        text.starts_with(
            "before step 1: `model.0.weight` differs from its f32 master weight, rounded to 16 bits"
        ),
        "{text}"
    );
    fit(config, &mut Planted::new(Odd::Nothing, Does::Nothing)?)?;
    Ok(())
}

/// With `save_on_error`, a run that violates an invariant saves a checkpoint: with the state before
/// the step if the violation is found within the step, and with the state after the step if it is
/// found later. A run with a correct optimizer can resume from this checkpoint, and has `left`
/// batches left.
#[rstest]
#[case::within_a_step(Odd::KeepsGradients, 13)]
#[case::after_a_step(Odd::WritesBack, 4)]
fn a_run_that_breaks_a_rule_is_saved(#[case] odd: Odd, #[case] left: usize) -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("broken.safetensors");
    let _section = seeded(1);
    let mut model = Planted::new(odd, Does::Nothing)?;
    let outcome = Trainer::new(config(Check::Cheap)).save_on_error(&path).fit(&mut model, &data()?);
    assert!(matches!(outcome, Err(Error::Invariant { .. })), "{odd:?}");
    let mut steps = 0;
    let mut count = |event: &Event| {
        steps += usize::from(matches!(event, Event::Batch { .. }));
        Ok(())
    };
    let mut mended = Planted::new(Odd::Nothing, Does::Nothing)?;
    let trainer = Trainer::new(config(Check::Full)).resume_from(&path).subscribe(&mut count);
    let record = { trainer }.fit(&mut mended, &data()?)?;
    assert_eq!((record.end.global_step, steps), (14, left));
    Ok(())
}

/// If the checks are off, a run that violates an invariant ends normally, and nothing is reported.
#[rstest]
fn without_checks_a_broken_rule_is_not_reported(
    #[values(Odd::WritesBack, Odd::KeepsGradients, Odd::SchedulesTwice)] odd: Odd,
) -> Result<()> {
    let _section = seeded(1);
    let record = fit(config(Check::Off), &mut Planted::new(odd, Does::Nothing)?)?;
    assert_eq!(record.end.global_step, 14);
    Ok(())
}
