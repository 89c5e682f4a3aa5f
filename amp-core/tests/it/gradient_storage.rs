//! Tests of gradients that stay in 16 bits until the optimizer's step. Only CUDA supports this
//! (`AMP_DEVICE=cuda`).

use std::{cell::RefCell, rc::Rc};

use amp_core::{
    Hook, Module, Result, Trainer, TrainerConfig,
    callback::Callback,
    event::Event,
    loss,
    memory::MemoryMeter,
    nn::{Context, Sequential, parameters},
    optim::{AdamW, Lion, Moments, OptimizerConfig, RmsProp, Sgd, TrainingPlan},
    precision::{Clip, GradScalerConfig, GradientStorage, Gradients, Policy, Precision, Unscaled},
    tch::{Kind, Tensor},
    trainer::{Graph, StepAccess},
};
use rstest::rstest;

use crate::{
    graphs::{Outcome, config, train_on},
    support::{
        bits::{bits, wide},
        device,
        model::{Model, constant, demo, fit, linear, same},
        needs_cuda, seeded,
    },
};

const STORAGES: [GradientStorage; 2] = [GradientStorage::Full, GradientStorage::SixteenBit];

fn adamw(_: &TrainingPlan) -> OptimizerConfig {
    OptimizerConfig::new(AdamW::default())
}

/// Returns an optimizer that uses libtorch's foreach kernels. These kernels need gradients in the
/// dtype of the parameters.
fn foreach(_: &TrainingPlan) -> OptimizerConfig {
    OptimizerConfig::new(AdamW { fused: false, ..Default::default() })
}

fn sgd(_: &TrainingPlan) -> OptimizerConfig {
    OptimizerConfig::new(Sgd { lr: 1e-2, momentum: 0.9, ..Default::default() })
}

fn rmsprop(_: &TrainingPlan) -> OptimizerConfig {
    OptimizerConfig::new(RmsProp { momentum: 0.9, centered: true, ..Default::default() })
}

fn lion(_: &TrainingPlan) -> OptimizerConfig {
    OptimizerConfig::new(Lion::default())
}

/// Trains the model `MixedPrecisionDemo` on some digits, without CUDA graphs.
fn run(
    precision: Precision,
    access: StepAccess,
    optimizer: fn(&TrainingPlan) -> OptimizerConfig,
    change: impl Fn(&mut TrainerConfig),
) -> Result<Outcome> {
    let _generator = seeded(7);
    let mut config = TrainerConfig { max_epochs: 4, ..config(precision, Graph::Off) };
    change(&mut config);
    train_on(&config, demo(0.2)?, access, optimizer, Vec::new())
}

/// An optimizer step from 16-bit gradients gives the same weights as a step from the same values in
/// f32. If other code may read the gradients before the step (`StepAccess::InStep`), that code and
/// the optimizer get the values in f32. This holds with and without clipping, and in steps that
/// overflow.
#[rstest]
#[case(adamw)]
#[case(foreach)]
#[case(sgd)]
#[case(rmsprop)]
#[case(lion)]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn a_step_with_16_bit_gradients_equals_one_with_the_same_values_in_f32(
    #[case] optimizer: fn(&TrainingPlan) -> OptimizerConfig,
    #[values(Precision::F16Mixed, Precision::Bf16Mixed)] precision: Precision,
    #[values(None, Some(Clip::Norm(1.0)), Some(Clip::Value(0.1)))] clip: Option<Clip>,
) -> Result<()> {
    needs_cuda();
    let change = |config: &mut TrainerConfig| {
        config.numerics.gradients = GradientStorage::SixteenBit;
        config.optimization.gradient_clip = clip;
        config.numerics.scaler.init_scale = 2.0_f64.powi(26);
    };
    let narrow = run(precision, StepAccess::Deferred, optimizer, change)?;
    let wide = run(precision, StepAccess::InStep("a test"), optimizer, change)?;
    assert_eq!(narrow.record.end.skipped, wide.record.end.skipped);
    assert_eq!(narrow.weights, wide.weights);
    let full = run(precision, StepAccess::Deferred, optimizer, |config| {
        change(config);
        config.numerics.gradients = GradientStorage::Full;
    })?;
    assert_ne!(narrow.weights, full.weights, "the gradients were not rounded");
    Ok(())
}

/// Optimizer state in 8 bits can be combined with 16-bit gradients. State in bf16 is not tested,
/// because it is rounded stochastically: its random numbers depend on whether all gradients of a
/// step have the same dtype.
#[rstest]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn state_in_8_bits_works_with_16_bit_gradients(
    #[values(Precision::F16Mixed, Precision::Bf16Mixed)] precision: Precision,
) -> Result<()> {
    needs_cuda();
    let change = |config: &mut TrainerConfig| {
        (config.numerics.gradients, config.numerics.moments) =
            (GradientStorage::SixteenBit, Moments::EightBit);
    };
    let narrow = run(precision, StepAccess::Deferred, adamw, change)?;
    let wide = run(precision, StepAccess::InStep("a test"), adamw, change)?;
    assert_eq!(narrow.weights, wide.weights);
    Ok(())
}

/// A callback that records the gradients of the first step. It gets unscaled gradients, and
/// multiplies them by the loss scale again.
struct First {
    seen: Rc<RefCell<Vec<Tensor>>>,
}

impl Callback for First {
    fn name(&self) -> String {
        "First".to_owned()
    }

    fn step_access(&self) -> StepAccess {
        StepAccess::InStep("a test")
    }

    fn on_before_optimizer_step(
        &mut self,
        gradients: &Gradients<Unscaled>,
        hook: &mut Hook<'_>,
    ) -> Result<()> {
        let mut seen = self.seen.borrow_mut();
        if seen.is_empty() {
            let scale = hook.scale.unwrap_or(1.0);
            let scaled = |(_, grad): (&str, &Tensor)| Ok(wide(&grad.f_mul_scalar(scale)?));
            *seen = gradients.named().map(scaled).collect::<Result<_>>()?;
        }
        Ok(())
    }
}

/// A weight's gradient is the f32 gradient rounded to 16 bits, as in PyTorch. The gradient of a
/// bias, and of a layer that computes in f32, is not rounded.
#[rstest]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn gradients_of_weights_are_rounded_to_16_bits(
    #[values(Precision::F16Mixed, Precision::Bf16Mixed)] precision: Precision,
) -> Result<()> {
    needs_cuda();
    let first = |gradients| -> Result<Vec<Tensor>> {
        let _generator = seeded(7);
        let seen = Rc::new(RefCell::default());
        let mut config = TrainerConfig { max_steps: Some(1), ..config(precision, Graph::Off) };
        config.numerics.gradients = gradients;
        // With this loss scale, the gradients of the step do not overflow.
        config.numerics.scaler = GradScalerConfig { init_scale: 1024.0, ..Default::default() };
        let callback = First { seen: Rc::clone(&seen) };
        train_on(&config, demo(0.2)?, StepAccess::Deferred, adamw, vec![Box::new(callback)])?;
        Ok(seen.take())
    };
    let [full, narrow] = STORAGES.map(first);
    let half = precision.compute();
    let round = |grad: &Tensor| grad.to_kind(half).to_kind(Kind::Double);
    for (full, narrow) in full?.iter().zip(&narrow?) {
        if full.dim() < 2 {
            assert_eq!(
                bits(full),
                bits(narrow),
                "the gradient of a bias or of a batch norm's weight is not rounded"
            );
            continue;
        }
        assert_eq!(bits(narrow), bits(&round(narrow)));
        assert_ne!(bits(full), bits(&round(full)));
        // The two runs may add the terms of a sum in different orders, so that the sums may round
        // to neighbouring 16-bit numbers.
        let ulp = if half == Kind::Half { 2.0_f64.powi(-10) } else { 2.0_f64.powi(-7) };
        let off = (narrow - full).abs() - full.abs() * (0.51 * ulp);
        assert!(off.max().double_value(&[]) <= 2.0_f64.powi(-24), "{off}");
    }
    Ok(())
}

/// 16-bit gradients save two bytes for each element of a weight.
#[rstest]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn gradients_in_16_bits_need_half_the_memory() -> Result<()> {
    needs_cuda();
    let widths = [64, 1024, 1024, 1024, 10];
    let peak = |gradients| -> Result<f64> {
        let _generator = seeded(7);
        let layers = widths
            .windows(2)
            .map(|pair| -> Result<Box<dyn Module>> { Ok(Box::new(linear(pair[0], pair[1])?)) });
        let network = Sequential::new(layers.collect::<Result<_>>()?);
        let mut config =
            TrainerConfig { max_epochs: 1, ..config(Precision::Bf16Mixed, Graph::Off) };
        config.numerics.gradients = gradients;
        let meter = MemoryMeter::start(device())?;
        train_on(&config, network, StepAccess::Deferred, adamw, Vec::new())?;
        Ok(meter.read()?.peak_allocated as f64)
    };
    let [full, narrow] = STORAGES.map(peak);
    let (saved, elements) =
        (full? - narrow?, widths.windows(2).map(|pair| pair[0] * pair[1]).sum::<i64>() as f64);
    // The peak is reached during the optimizer's step, when all gradients exist. There, 16-bit
    // gradients save almost 2 bytes per weight. All other memory is nearly the same in the two
    // runs.
    assert!((1.8 * elements..=2.0 * elements).contains(&saved), "{}", saved / elements);
    Ok(())
}

/// Accumulated gradients, and gradients on the CPU, are f32 even if the run requests 16 bits. The
/// trained weights have the same bits as those of a run that requests f32.
#[rstest]
fn accumulated_gradients_are_f32(
    #[values(Precision::F16Mixed, Precision::Bf16Mixed)] precision: Precision,
) -> Result<()> {
    let [full, narrow] = STORAGES.map(|gradients| {
        run(precision, StepAccess::Deferred, adamw, |config| {
            config.numerics.gradients = gradients;
            config.optimization.accumulate_grad_batches = if device().is_cuda() { 2 } else { 1 };
        })
    });
    assert_eq!(full?.weights, narrow?.weights);
    Ok(())
}

/// If a run requests 16-bit gradients but keeps them in f32, it prints a note with the reason. If
/// the precision computes no matrix products in 16 bits, there is no note.
#[rstest]
#[case(Precision::Bf16Mixed, 1, (!device().is_cuda()).then_some("only CUDA has kernels for 16-bit gradients"))]
#[case(Precision::F16Mixed, 4, Some(if device().is_cuda() { "the gradients of 4 batches are added" } else { "only CUDA" }))]
#[case(Precision::F32True, 4, None)]
fn a_note_gives_the_reason_for_f32_gradients(
    #[case] precision: Precision,
    #[case] accumulate_grad_batches: i64,
    #[case] why: Option<&str>,
) -> Result<()> {
    let _generator = seeded(7);
    let mut model = Model::regression(linear(8, 8)?, adamw);
    let data = same(constant(16, 8, 0.5)?, 4)?;
    let mut config = TrainerConfig { max_epochs: 1, ..config(precision, Graph::Off) };
    config.optimization.accumulate_grad_batches = accumulate_grad_batches;
    config.numerics.gradients = GradientStorage::SixteenBit;
    let (events, record) = fit(&config, &mut model, &data);
    record?;
    let said = events.iter().find_map(|event| match event {
        Event::Note { text } => text.strip_prefix("gradients are kept in f32, not in 16 bits: "),
        _ => None,
    });
    assert_eq!(said.is_some(), why.is_some(), "{said:?}");
    assert!(said.unwrap_or_default().starts_with(why.unwrap_or_default()), "{said:?}");
    Ok(())
}

/// After a run with 16-bit gradients, new gradients of the layer are f32 again.
#[rstest]
fn after_the_run_gradients_are_f32() -> Result<()> {
    let _generator = seeded(7);
    let mut model = Model::regression(linear(8, 8)?, adamw);
    let data = same(constant(16, 8, 0.5)?, 8)?;
    let mut config = TrainerConfig { max_epochs: 1, ..config(Precision::Bf16Mixed, Graph::Off) };
    config.numerics.gradients = GradientStorage::SixteenBit;
    Trainer::new(config).fit(&mut model, &data)?;
    for mut parameter in parameters(&model) {
        parameter.tensor.zero_grad();
    }
    let policy = Policy::new(Precision::Bf16Mixed, device());
    let input = constant(4, 8, 0.5)?.input.to(device());
    let output = {
        let _region = policy.autocast()?;
        model.forward(&input, &Context::new(policy, true))?
    };
    loss::mse_loss(&output, &output.zeros_like())?.backward();
    for parameter in parameters(&model) {
        assert_eq!(parameter.tensor.grad().kind(), Kind::Float, "{}", parameter.name);
    }
    Ok(())
}
