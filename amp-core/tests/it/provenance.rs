//! Tests of reports on steps with a non-finite loss or gradient. A report names the first module,
//! gradient or loss with a non-finite value.

use std::{cell::Cell, rc::Rc};

use amp_core::{
    Module, Result, TrainerConfig,
    data::Batch,
    event::Skipped,
    loss::mse_loss,
    memory::MemoryMeter,
    nn::{
        BatchNorm, BatchNormConfig, Checkpoint, Context, Dropout, Relu, Sequential, Visit, Visitor,
    },
    optim::{OptimizerConfig, Sgd},
    precision::{GradScalerConfig, Precision},
    provenance::Cause,
    tch::{Device, Kind, Tensor},
    trainer::NonFinite,
};
use rstest::rstest;

use crate::support::{
    bits::sha256,
    device, message,
    model::{Model, constant, fit, in_order, linear, same},
    seeded,
};

/// A layer that multiplies its input by `forward` in the forward pass, and multiplies the gradient
/// by `backward` in the backward pass.
#[derive(Clone, Copy)]
struct Gain {
    forward: f64,
    backward: f64,
}

impl Visit for Gain {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl Module for Gain {
    fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
        let fixed = input.f_detach()?;
        // `traced` is zero, so it does not change the output. The gradient flows only through
        // `traced`, and is multiplied by `backward`.
        let traced = input.f_sub(&fixed)?.f_mul_scalar(self.backward)?;
        Ok(fixed.f_mul_scalar(self.forward)?.f_add(&traced)?)
    }
}

const PLAIN: Gain = Gain { forward: 1.0, backward: 1.0 };

/// Builds a model of five layers under the name `model`: linear (4 → 4), `Gain`, ReLU, linear (4 →
/// 4) and `Gain`.
fn stack(gain: Gain, after: Gain) -> Result<Model> {
    let layers: Vec<Box<dyn Module>> = vec![
        Box::new(linear(4, 4)?),
        Box::new(gain),
        Box::new(Relu),
        Box::new(linear(4, 4)?),
        Box::new(after),
    ];
    Ok(Model::regression(Sequential::new(layers), sgd))
}

fn sgd(_: &amp_core::optim::TrainingPlan) -> OptimizerConfig {
    OptimizerConfig::new(Sgd { lr: 1e-3, ..Default::default() })
}

fn config(precision: Precision) -> TrainerConfig {
    TrainerConfig { max_epochs: 1, ..TrainerConfig::new(precision, device()) }.with(|config| {
        config.numerics.scaler = GradScalerConfig { init_scale: 1024.0, ..Default::default() }
    })
}

fn examples(target: f64) -> Result<Batch> {
    constant(4, 4, target)
}

fn first_skip(config: &TrainerConfig, model: &mut Model, examples: Batch) -> Result<Skipped> {
    let record = fit(config, model, &in_order(examples, 2)?).1?;
    Ok(record.skips.into_iter().next().expect("a skipped step"))
}

fn cause(skipped: &Skipped) -> &Cause {
    &skipped.provenance.as_ref().expect("a provenance").cause
}

#[rstest]
#[case::f32(Precision::F32True, 1e39)]
#[case::f16_mixed(Precision::F16Mixed, 1e39)]
#[case::bf16_mixed(Precision::Bf16Mixed, 1e39)]
#[case::f16(Precision::F16True, 1e6)]
fn an_activation_that_overflows_is_named(
    #[case] precision: Precision,
    #[case] forward: f64,
) -> Result<()> {
    let _generator = seeded(0);
    let mut model = stack(Gain { forward, backward: 1.0 }, PLAIN)?;
    let skipped = first_skip(&config(precision), &mut model, examples(0.0)?)?;
    assert_eq!(*cause(&skipped), Cause::Activation("model.1".into()));
    let found = skipped.provenance.expect("a provenance");
    assert!(found.inf > 0 && found.of == 8, "{found:?}");
    assert!(found.from.is_some_and(|largest| largest > 0.0 && largest < 10.0), "{found:?}");
    assert!(found.to_string().contains("the output of `model.1` ("), "{found}");
    Ok(())
}

/// If a matrix product overflows in f16, the report names the module whose output overflows, and
/// float16 as the dtype.
#[test]
fn a_matrix_product_that_overflows_in_f16_is_named() -> Result<()> {
    let _generator = seeded(0);
    let mut model = stack(Gain { forward: 1e8, backward: 1.0 }, PLAIN)?;
    let skipped = first_skip(&config(Precision::F16Mixed), &mut model, examples(0.0)?)?;
    let found = skipped.provenance.expect("a provenance");
    let product = Cause::Activation("model.1".into());
    assert_eq!((found.cause, found.dtype.as_str()), (product, "float16"));
    Ok(())
}

#[test]
fn a_loss_that_overflows_is_named() -> Result<()> {
    let _generator = seeded(0);
    let mut model = stack(PLAIN, Gain { forward: 1e25, backward: 1.0 })?;
    let skipped = first_skip(&config(Precision::F32True), &mut model, examples(0.0)?)?;
    assert_eq!(*cause(&skipped), Cause::Loss);
    Ok(())
}

/// If the loss is finite, but its gradient with respect to the model's output is not, the report
/// names the gradient of the loss as the cause.
#[test]
fn a_loss_gradient_that_overflows_is_named() -> Result<()> {
    let _generator = seeded(0);
    let mut model = stack(PLAIN, PLAIN)?;
    // The square root of zero has an infinite slope.
    model.loss = |output, target| Ok((mse_loss(output, target)? * 0.0).f_sqrt()?);
    let skipped = first_skip(&config(Precision::F32True), &mut model, examples(0.0)?)?;
    assert_eq!(*cause(&skipped), Cause::LossGradient);
    Ok(())
}

#[rstest]
#[case::f32(Precision::F32True, 3e38, 1000.0)]
#[case::f16_mixed(Precision::F16Mixed, 1e6, 5.0)]
#[case::f16(Precision::F16True, 1e8, 5.0)]
fn an_input_gradient_that_overflows_is_named(
    #[case] precision: Precision,
    #[case] backward: f64,
    #[case] target: f64,
) -> Result<()> {
    let _generator = seeded(0);
    let mut model = stack(Gain { forward: 1.0, backward }, PLAIN)?;
    let skipped = first_skip(&config(precision), &mut model, examples(target)?)?;
    assert_eq!(*cause(&skipped), Cause::InputGradient("model.1".into()));
    assert!(!cause(&skipped).is_forward());
    Ok(())
}

/// If the gradient of a weight overflows because it is a sum over the batch, the report names this
/// gradient as the cause, although the gradients of all layers' inputs and outputs are finite.
#[test]
fn a_weight_gradient_that_overflows_is_named() -> Result<()> {
    let _generator = seeded(0);
    let mut model = Model::regression(linear(4, 4)?, sgd);
    model.loss = |output, _| {
        let sum = output.f_sum(None)?;
        Ok(sum.f_sub(&sum.f_detach()?)?.f_mul_scalar(300.0)?)
    };
    let options = (Kind::Float, device());
    let batch = Batch::new(Tensor::full([4, 4], 300.0, options), Tensor::zeros([4, 4], options))?;
    let skipped = first_skip(&config(Precision::F16True), &mut model, batch)?;
    assert_eq!(*cause(&skipped), Cause::WeightGradient("model.weight".into()));
    assert_eq!(skipped.culprit.as_deref(), Some("model.weight"));
    Ok(())
}

#[test]
fn a_non_finite_input_or_weight_is_named_first() -> Result<()> {
    let _generator = seeded(0);
    let options = (Kind::Float, device());
    let nan = Batch::new(Tensor::full([4, 4], f64::NAN, options), Tensor::zeros([4, 4], options))?;
    let skipped = first_skip(&config(Precision::F32True), &mut stack(PLAIN, PLAIN)?, nan)?;
    assert_eq!(*cause(&skipped), Cause::Input("input".to_owned()));
    assert!(
        skipped
            .cause()
            .contains("the batch's `input` (float32) has 0 inf and 8 NaN among 8 values")
    );
    let mut model = stack(PLAIN, PLAIN)?;
    let _ = amp_core::tch::no_grad(|| {
        amp_core::nn::parameters(&model)[1].tensor.shallow_clone().fill_(f64::INFINITY)
    });
    let skipped = first_skip(&config(Precision::F32True), &mut model, examples(0.0)?)?;
    assert_eq!(*cause(&skipped), Cause::Parameter("model.0.bias".into()));
    Ok(())
}

/// A layer that uses one random number per forward pass. In about a third of its forward passes it
/// returns infinity. It counts its forward passes.
struct Rare {
    runs: Rc<Cell<u32>>,
}

impl Visit for Rare {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl Module for Rare {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        self.runs.set(self.runs.get() + 1);
        let draw = Tensor::f_rand([1], (Kind::Float, input.device()))?;
        // In evaluation, the layer does not return infinity. If a validation loss were not finite,
        // the trainer would run more forward passes to find the cause, and the layer would count
        // them.
        if !cx.is_training() {
            return Ok(input.shallow_clone());
        }
        // With a probability of one third, the input is multiplied by infinity, and otherwise by 1.
        // After a skipped step, the next step draws the same random number. The factor therefore
        // depends on the batch too, so that not every following step is skipped.
        let number = draw.f_add(&input.f_sum(Kind::Float)?)?.f_frac()?.f_abs()?;
        let gate = number.f_gt(1.0 / 3.0)?.f_to_kind(Kind::Float)?.f_reciprocal()?;
        Ok(input.f_mul(&gate.f_to_kind(input.kind())?)?)
    }
}

/// To find the cause of a skipped step, the trainer runs only this step a second time. The second
/// run uses the same random numbers as the first run, and does not change the random numbers of
/// later steps.
#[rstest]
#[case(Precision::F32True)]
#[case(Precision::F16Mixed)]
fn only_the_skipped_step_runs_again_and_with_the_same_numbers(
    #[case] precision: Precision,
) -> Result<()> {
    let trained = |provenance: bool| -> Result<_> {
        let _generator = seeded(5);
        let runs = Rc::new(Cell::new(0));
        let layers: Vec<Box<dyn Module>> = vec![
            Box::new(linear(4, 4)?),
            Box::new(BatchNorm::new(BatchNormConfig::new(4))?),
            Box::new(Dropout::new(0.5)?),
            Box::new(Rare { runs: runs.clone() }),
        ];
        let mut model = Model::regression(Sequential::new(layers), sgd);
        let config = TrainerConfig { max_epochs: 10, ..config(precision) }
            .with(|config| config.recovery.provenance = provenance);
        let inputs = Tensor::f_rand([12, 4], (Kind::Float, Device::Cpu))?;
        let targets = inputs.f_mul_scalar(0.5)?;
        let examples = same(Batch::new(inputs, targets)?, 4)?;
        let record = fit(&config, &mut model, &examples).1?;
        let tensors = amp_core::nn::named_tensors(&model);
        let tensors: Vec<String> = tensors.iter().map(|(_, tensor, _)| sha256(tensor)).collect();
        Ok((record, tensors, runs.get()))
    };
    let (with, weights, runs) = trained(true)?;
    let (without, same_weights, fewer) = trained(false)?;
    assert!(with.end.skipped > 3, "{:?}", with.end);
    let named = Cause::Activation("model.3".into());
    assert!(with.skips.iter().all(|skip| skip.provenance.is_some()), "{:?}", with.notes);
    assert!(with.skips.iter().all(|skip| *cause(skip) == named), "{:?}", with.skips);
    assert!(without.skips.iter().all(|skip| skip.provenance.is_none()));
    assert_eq!((weights, with.end.skipped), (same_weights, without.end.skipped));
    assert_eq!(u64::from(runs - fewer), with.end.skipped, "one run more for each skipped step");
    Ok(())
}

/// If a value that is not finite arises inside a checkpointed module, the report names the
/// checkpointed module. The second run of the step cannot observe the modules inside it.
#[test]
fn a_checkpointed_part_is_named_as_a_whole() -> Result<()> {
    let _generator = seeded(0);
    let inner: Vec<Box<dyn Module>> =
        vec![Box::new(linear(4, 4)?), Box::new(Gain { forward: 1e39, backward: 1.0 })];
    let layers: Vec<Box<dyn Module>> =
        vec![Box::new(linear(4, 4)?), Box::new(Checkpoint::new(Sequential::new(inner), true))];
    let mut model = Model::regression(Sequential::new(layers), sgd);
    let skipped = first_skip(&config(Precision::F32True), &mut model, examples(0.0)?)?;
    let named = cause(&skipped).clone();
    assert!(
        matches!(&named, Cause::Activation(module) if module.starts_with("model.1")),
        "{named}"
    );
    Ok(())
}

/// If the gradients of a skipped step are finite when the step is run a second time, the report
/// says so.
#[test]
fn a_cause_that_does_not_recur_is_reported_as_unknown() -> Result<()> {
    struct Once(Cell<bool>);
    impl Visit for Once {
        fn visit(&self, _: &mut dyn Visitor) {}
    }

    impl Module for Once {
        fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
            match self.0.replace(false) {
                true => Ok(input.f_mul_scalar(f64::INFINITY)?),
                false => Ok(input.shallow_clone()),
            }
        }
    }
    let _generator = seeded(0);
    let layers: Vec<Box<dyn Module>> =
        vec![Box::new(linear(4, 4)?), Box::new(Once(Cell::new(true)))];
    let mut model = Model::regression(Sequential::new(layers), sgd);
    let record = fit(&config(Precision::F32True), &mut model, &in_order(examples(0.0)?, 2)?).1?;
    assert_eq!(record.skips.len(), 1);
    assert_eq!(record.skips[0].provenance, None);
    let last = record.notes.last().expect("a note");
    assert!(last.contains("everything was finite"), "{:?}", record.notes);
    Ok(())
}

/// If the run is configured to stop at a step whose gradients are not finite, the error contains
/// the cause.
#[test]
fn a_run_that_stops_reports_the_cause() -> Result<()> {
    let _generator = seeded(0);
    let mut model = stack(Gain { forward: 1e39, backward: 1.0 }, PLAIN)?;
    let config =
        config(Precision::Bf16Mixed).with(|config| config.recovery.on_non_finite = NonFinite::Stop);
    let said = message(fit(&config, &mut model, &in_order(examples(0.0)?, 2)?).1);
    assert!(
        said.starts_with(
            "optimizer step 0 under bf16-mixed has a gradient or a loss that is not finite: the output \
             of `model.1` (bfloat16)"
        ),
        "{said}"
    );
    Ok(())
}

/// The search for the cause needs no more memory than the step itself, because it does not keep
/// activations together with their gradients. The model has twelve wide layers, whose activations
/// are most of the memory of a step.
#[test]
fn the_search_needs_no_more_memory_than_the_step() -> Result<()> {
    let peak = |provenance: bool| -> Result<(u64, bool)> {
        let _generator = seeded(0);
        let mut layers: Vec<Box<dyn Module>> = Vec::new();
        for _ in 0..12 {
            layers.push(Box::new(linear(64, 64)?));
            layers.push(Box::new(Relu));
        }
        layers.push(Box::new(Gain { forward: 1.0, backward: 1e30 }));
        let mut model = Model::regression(Sequential::new(layers), sgd);
        let config = TrainerConfig {
            max_steps: Some(1),
            max_epochs: 1,
            ..TrainerConfig::new(Precision::F16Mixed, device())
        }
        .with(|config| config.recovery.provenance = provenance);
        let data = in_order(constant(4096, 64, 1.0)?, 4096)?;
        let meter = MemoryMeter::start(device())?;
        let (_, record) = fit(&config, &mut model, &data);
        let record = record?;
        assert_eq!(record.skips.len(), 1);
        Ok((meter.read()?.peak_allocated, record.skips[0].provenance.is_some()))
    };
    let ((unexplained, false), (explained, true)) = (peak(false)?, peak(true)?) else {
        panic!("expected one run without and one run with the search for the cause");
    };
    let ratio = explained as f64 / unexplained as f64;
    assert!(ratio < 1.25, "{explained} bytes with the search, {unexplained} without: {ratio:.2}");
    Ok(())
}
