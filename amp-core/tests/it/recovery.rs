//! Tests of how the trainer continues a run after steps with non-finite gradients, at the lower
//! limit of the loss scale, and when memory is short.

use std::{cell::Cell, rc::Rc};

use amp_core::{
    Error, Module, Result, TrainerConfig,
    data::Batch,
    event::Event,
    loss::cross_entropy,
    nn::{self, Context, Sequential, Visit, Visitor},
    optim::{Adam, OptimizerConfig, Sgd, TrainingPlan},
    precision::{GradScalerConfig, Precision},
    record::RunRecord,
    tch::{Kind, Tensor},
    trainer::{AtFloor, NonFinite, Recovery, ScaleFloor},
};
use rstest::rstest;

use crate::support::{
    bits::sha256,
    device, message,
    model::{Model, constant, demo, digits, fit, in_order, linear},
    needs_cuda, seeded,
};

fn sgd(_: &TrainingPlan) -> OptimizerConfig {
    OptimizerConfig::new(Sgd { lr: 1e-3, momentum: 0.9, ..Default::default() })
}

fn config(precision: Precision) -> TrainerConfig {
    TrainerConfig { max_epochs: 1, ..TrainerConfig::new(precision, device()) }
        .with(|config| config.logging.log_every_n_steps = 1)
}

/// A layer that returns its input. It numbers its forward passes in training from 0. In those for
/// whose number `bad` returns true, it multiplies the input by infinity.
struct Faulty {
    bad: fn(u32) -> bool,
    runs: Rc<Cell<u32>>,
}

impl Visit for Faulty {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl Module for Faulty {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        let run = self.runs.get();
        if !cx.is_training() {
            return Ok(input.shallow_clone());
        }
        self.runs.set(run + 1);
        match (self.bad)(run) {
            true => Ok(input.f_mul_scalar(f64::INFINITY)?),
            false => Ok(input.shallow_clone()),
        }
    }
}

fn faulty(bad: fn(u32) -> bool) -> Result<Model> {
    let layers: Vec<Box<dyn Module>> =
        vec![Box::new(linear(4, 4)?), Box::new(Faulty { bad, runs: Rc::default() })];
    Ok(Model::regression(Sequential::new(layers), sgd))
}

/// Trains for twenty steps of two examples each. The search for the causes of skipped steps is off,
/// because it runs steps a second time, and the layer would count these forward passes.
fn train(config: &TrainerConfig, model: &mut Model) -> Result<RunRecord> {
    let config = config.clone().with(|config| config.recovery.provenance = false);
    fit(&config, model, &in_order(constant(40, 4, 0.5)?, 2)?).1
}

fn fingerprint(model: &Model) -> Vec<String> {
    nn::named_tensors(model).iter().map(|(_, tensor, _)| sha256(tensor)).collect()
}

fn finite(model: &Model) -> bool {
    let all = |tensor: &Tensor| tensor.isfinite().all().int64_value(&[]) != 0;
    nn::parameters(model).iter().all(|parameter| all(&parameter.tensor))
}

#[rstest]
fn a_non_finite_step_is_skipped_and_the_run_continues(
    #[values(Precision::F32True, Precision::Bf16Mixed, Precision::F16Mixed)] precision: Precision,
) -> Result<()> {
    let _generator = seeded(0);
    let mut model = faulty(|run| run == 3 || run == 4)?;
    let config = config(precision).with(|config| {
        config.numerics.scaler = GradScalerConfig { init_scale: 256.0, ..Default::default() }
    });
    let record = train(&config, &mut model)?;
    assert_eq!((record.end.global_step, record.end.skipped), (18, 2));
    assert_eq!(record.skips.iter().map(|skip| skip.attempt).collect::<Vec<_>>(), [3, 4]);
    assert!(finite(&model));
    Ok(())
}

/// With `NonFinite::Ignore`, which is what Lightning does, a step with non-finite gradients is
/// applied, and the weights become NaN.
#[test]
fn without_a_check_the_weights_become_nan() -> Result<()> {
    let _generator = seeded(0);
    let mut model = faulty(|run| run == 3)?;
    let config =
        config(Precision::F32True).with(|config| config.recovery.on_non_finite = NonFinite::Ignore);
    let record = train(&config, &mut model)?;
    assert_eq!(record.end.skipped, 0);
    assert!(!finite(&model));
    Ok(())
}

#[test]
fn too_many_non_finite_steps_in_a_row_end_the_run() -> Result<()> {
    let _generator = seeded(0);
    let mut model = faulty(|run| run >= 3)?;
    let config =
        config(Precision::F32True).with(|config| config.recovery.max_consecutive_skips = 5);
    let outcome = train(&config, &mut model);
    assert!(matches!(outcome, Err(Error::NonFinite(_))));
    let said = message(outcome);
    assert!(said.contains("step 8") && said.contains("(6 skipped steps in a row)"), "{said}");
    Ok(())
}

#[rstest]
#[case::stop(NonFinite::Stop)]
#[case::skip(NonFinite::Skip)]
fn a_run_stops_only_if_the_scaler_cannot_help(#[case] policy: NonFinite) -> Result<()> {
    let _generator = seeded(0);
    // The first loss scales are so large that gradients overflow, although the loss is finite. The
    // scaler skips these steps, also with `NonFinite::Stop`.
    let scaler = GradScalerConfig { init_scale: 2f64.powi(30), ..Default::default() };
    let config = config(Precision::F16Mixed).with(|config| {
        config.recovery.on_non_finite = policy;
        config.numerics.scaler = scaler;
    });
    let record = train(&config, &mut faulty(|_| false)?)?;
    assert!(record.end.skipped > 3 && record.end.global_step > 3, "{:?}", record.end);
    let outcome = train(&config, &mut faulty(|run| run == 19)?);
    assert_eq!(outcome.is_err(), policy == NonFinite::Stop);
    Ok(())
}

/// With `LowerScale`, a step whose gradients overflow is repeated with the same examples and a
/// lower loss scale. No example is skipped, so the weights equal those of a run that began with the
/// final loss scale.
#[test]
fn lowering_the_scale_repeats_the_same_examples() -> Result<()> {
    let train = |init_scale: f64, policy: NonFinite| -> Result<_> {
        let _generator = seeded(0);
        let mut model = faulty(|_| false)?;
        let scaler = GradScalerConfig { init_scale, ..Default::default() };
        let config = config(Precision::F16Mixed).with(|config| {
            config.recovery.on_non_finite = policy;
            config.numerics.scaler = scaler;
        });
        let record = train(&config, &mut model)?;
        Ok((record, fingerprint(&model)))
    };
    let (high, weights) = train(2f64.powi(30), NonFinite::LowerScale)?;
    assert!(high.end.skipped > 3);
    assert_eq!(high.end.global_step, 20, "each window of batches is one step");
    let lowered = high
        .recoveries
        .iter()
        .filter(|(_, recovery)| matches!(recovery, Recovery::LoweredScale { .. }));
    assert_eq!(lowered.count() as u64, high.end.skipped);
    let fits = high.end.scale.expect("a scale");
    let (low, same_weights) = train(fits, NonFinite::Skip)?;
    assert_eq!((low.end.skipped, low.end.scale), (0, Some(fits)));
    assert_eq!(weights, same_weights);
    Ok(())
}

#[test]
fn the_last_good_state_is_restored() -> Result<()> {
    let _generator = seeded(0);
    let restoring = config(Precision::F32True).with(|config| {
        config.recovery.on_non_finite = NonFinite::RestoreLastGood;
        config.recovery.keep_good_every_n_steps = 5;
    });
    let mut model = faulty(|run| run == 7)?;
    let record = train(&restoring, &mut model)?;
    assert_eq!(record.recoveries, [(8, Recovery::Restored { global_step: 5 })]);
    // The rollback after the eighth batch undoes 2 of the 7 applied steps, so 5 remain. The
    // remaining 12 of the 20 batches add 12 steps.
    assert_eq!((record.end.global_step, record.end.skipped), (17, 1));
    // All examples are equal. The weights and the momentum therefore equal those of a run of 17
    // steps without infinite values.
    let _ = amp_core::hardware::seed_everything(0);
    let mut straight = faulty(|_| false)?;
    let config = TrainerConfig { max_steps: Some(17), ..config(Precision::F32True) };
    let _: RunRecord = train(&config, &mut straight)?;
    assert_eq!(fingerprint(&model), fingerprint(&straight));
    // If no step is applied after a rollback, a second rollback would not help, so the run ends.
    let outcome = train(&restoring, &mut faulty(|run| run >= 7)?);
    assert!(message(outcome).contains("is not finite"));
    Ok(())
}

#[test]
fn falling_back_to_bf16_keeps_the_weights() -> Result<()> {
    let _generator = seeded(0);
    // The inputs are 1e6, which f16 cannot represent and bf16 can.
    let layers: Vec<Box<dyn Module>> = vec![Box::new(linear(4, 4)?), Box::new(linear(4, 4)?)];
    let mut model = Model::regression(Sequential::new(layers), |_| {
        OptimizerConfig::new(Adam { lr: 1e-3, ..Default::default() })
    });
    let config = config(Precision::F16Mixed)
        .with(|config| config.recovery.on_non_finite = NonFinite::FallBackToBf16);
    let options = (Kind::Float, device());
    let large = Batch::new(Tensor::full([8, 4], 1e6, options), Tensor::zeros([8, 4], options))?;
    let record = fit(&config, &mut model, &in_order(large, 2)?).1?;
    let fell = Recovery::FellBack { precision: Precision::Bf16Mixed };
    assert_eq!(record.recoveries, [(1, fell)]);
    assert_eq!((record.end.global_step, record.end.skipped, record.end.scale), (4, 1, None));
    let wrong = TrainerConfig { precision: Precision::F32True, ..config };
    let said = message(fit(&wrong, &mut model, &in_order(constant(4, 4, 0.0)?, 2)?).1);
    assert!(
        said.contains("fall-back-to-bf16 is allowed only under 16-mixed, not under 32-true"),
        "{said}"
    );
    Ok(())
}

/// The loss scale has a lower limit. The option `then` says what the trainer does at the limit: it
/// keeps the loss scale and prints a note, or continues in bf16, or ends the run with an error.
#[rstest]
#[case::warn(AtFloor::Warn)]
#[case::fall_back(AtFloor::FallBackToBf16)]
#[case::halt(AtFloor::Halt)]
fn the_scale_has_a_floor(#[case] then: AtFloor) -> Result<()> {
    let _generator = seeded(0);
    let config = config(Precision::F16Mixed).with(|config| {
        config.numerics.scaler = GradScalerConfig { init_scale: 4.0, ..Default::default() };
        config.recovery.scale_floor = ScaleFloor { min_scale: 1.0, then };
    });
    let outcome = train(&config, &mut faulty(|run| run < 4)?);
    match then {
        AtFloor::Halt => {
            assert!(matches!(outcome, Err(Error::Scaler(_))));
            let said = message(outcome);
            assert!(
                said.contains("the loss scale fell to 5e-1, below the lowest allowed scale of 1e0"),
                "{said}"
            );
        }
        AtFloor::Warn => {
            let record = outcome?;
            let held = Recovery::HeldScale { scale: 1.0 };
            assert_eq!(record.recoveries, [(3, held.clone()), (4, held)]);
            assert_eq!((record.end.skipped, record.end.scale), (4, Some(1.0)));
        }
        AtFloor::FallBackToBf16 => {
            let record = outcome?;
            let fell = Recovery::FellBack { precision: Precision::Bf16Mixed };
            assert_eq!(record.recoveries, [(3, fell)]);
            assert_eq!(record.end.scale, None);
        }
        other => panic!("{other:?} has no assertions here"),
    }
    Ok(())
}

#[rstest]
#[case(0.0)]
#[case(f64::NAN)]
#[case(1e-39)]
fn an_invalid_floor_is_refused(#[case] min_scale: f64) -> Result<()> {
    let scale_floor = ScaleFloor { min_scale, then: AtFloor::Warn };
    let config =
        config(Precision::F16Mixed).with(|config| config.recovery.scale_floor = scale_floor);
    let said = message(train(&config, &mut faulty(|_| false)?));
    assert!(
        said.contains("the lowest allowed loss scale (min_scale) is")
            && said.contains("at least 1.17549"),
        "{said}"
    );
    Ok(())
}

/// A layer that returns an out-of-memory error in training if a batch has more than `examples`
/// examples.
struct Room {
    examples: i64,
}

impl Visit for Room {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl Module for Room {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        if cx.is_training() && input.size()[0] > self.examples {
            return Err(Error::Torch("CUDA out of memory. Tried to allocate 1.00 GiB".into()));
        }
        Ok(input.shallow_clone())
    }
}

/// If a batch does not fit into memory, it is split into halves until these micro-batches fit. The
/// weights after the step equal those after a step on the whole batch.
#[rstest]
#[case::one_batch(1)]
#[case::windows(3)]
fn a_batch_that_does_not_fit_is_split(#[case] window: i64) -> Result<()> {
    let train = |examples: i64, micro_batching: bool| -> Result<_> {
        let _generator = seeded(2);
        let layers: Vec<Box<dyn Module>> =
            vec![Box::new(Room { examples }), Box::new(linear(64, 3)?)];
        let mut model = Model::regression(Sequential::new(layers), sgd);
        let all = digits(40)?;
        let data = Batch::new(all.input.shallow_clone(), all.input.narrow(1, 20, 3).copy())?;
        let config = config(Precision::F64True).with(|config| {
            config.optimization.accumulate_grad_batches = window;
            config.memory.micro_batching = micro_batching;
        });
        let (events, record) = fit(&config, &mut model, &in_order(data, 10)?);
        let weights: Vec<f64> = nn::parameters(&model)
            .iter()
            .flat_map(|parameter| crate::support::bits::values(&parameter.tensor))
            .collect();
        Ok((events, record, weights))
    };
    let (_, whole, expected) = train(10, true)?;
    let whole = whole?;
    assert_eq!(whole.recoveries, []);
    let (events, parts, weights) = train(3, true)?;
    let parts = parts?;
    let halved = |parts| Recovery::MicroBatches { parts };
    assert_eq!(parts.recoveries, [(0, halved(2)), (0, halved(4))], "each halving is reported once");
    assert_eq!(parts.end.global_step, whole.end.global_step);
    for (seen, expected) in weights.iter().zip(&expected) {
        assert!((seen - expected).abs() < 1e-14, "found {seen}, expected {expected}");
    }
    let logged = events.iter().filter(|event| matches!(event, Event::Logged { .. })).count();
    assert_eq!(logged as u64, parts.end.global_step);
    let losses = |record: &RunRecord| record.epochs[0].train[0].value;
    assert!((losses(&parts) - losses(&whole)).abs() < 1e-12, "each example is logged once");
    let (_, refused, _) = train(3, false)?;
    assert!(message(refused).contains("out of memory"));
    let (_, hopeless, _) = train(0, true)?;
    assert!(message(hopeless).contains("in `model.0`: libtorch: CUDA out of memory"));
    Ok(())
}

/// If a batch is split, batch norms normalize each part by itself. A note says so.
#[test]
fn parts_of_a_batch_norm_are_noted() -> Result<()> {
    let _generator = seeded(0);
    let layers: Vec<Box<dyn Module>> = vec![Box::new(Room { examples: 4 }), Box::new(demo(0.0)?)];
    let mut model = Model::regression(Sequential::new(layers), sgd);
    model.loss = cross_entropy;
    let record = fit(&config(Precision::F32True), &mut model, &in_order(digits(32)?, 8)?).1?;
    assert_eq!(record.recoveries, [(0, Recovery::MicroBatches { parts: 2 })]);
    let found = record.notes.iter().find(|note| note.contains("computed from each part alone"));
    assert!(found.is_some_and(|note| note.starts_with("`model.1.1` ")), "{:?}", record.notes);
    Ok(())
}

/// A batch is also split if the CUDA device itself runs out of memory. The activations of the batch
/// need 64 GiB and do not fit. The activations of a quarter of the batch fit.
#[test]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn a_batch_that_does_not_fit_on_cuda_is_split() -> Result<()> {
    needs_cuda();
    let _generator = seeded(2);
    let (width, examples) = (1 << 20, 1 << 15);
    let layers: Vec<Box<dyn Module>> =
        vec![Box::new(linear(8, width)?), Box::new(nn::Gelu), Box::new(linear(width, 1)?)];
    let mut model = Model::regression(Sequential::new(layers), sgd);
    let options = (Kind::Float, device());
    let data =
        Batch::new(Tensor::ones([examples, 8], options), Tensor::ones([examples, 1], options))?;
    let val = Batch::new(Tensor::ones([8, 8], options), Tensor::ones([8, 1], options))?;
    let data = amp_core::data::DataModule::new("ones", data, val, examples);
    let record = fit(&config(Precision::F32True), &mut model, &data).1?;
    assert!(matches!(record.recoveries[0], (0, Recovery::MicroBatches { parts: 2 })), "{record:?}");
    assert_eq!((record.end.global_step, record.end.skipped), (1, 0));
    assert!(finite(&model));
    Ok(())
}
