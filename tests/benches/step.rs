//! Measures how much time a training step needs in addition to its tensor operations. The tensors
//! are small, so that this time is visible. The benchmark compares three steps: the step that the
//! derive macro generates, the same step written by hand, and the bare calls of libtorch.
//!
//! `cargo bench -p tests --bench step` measures the times of the three steps. To count instructions
//! instead, set `AMP_STEP` to the name of a step (`derived`, `by-hand` or `bare-libtorch`) and
//! `AMP_STEPS` to a number: the program runs this step so many times and ends. Two such runs under
//! `valgrind --tool=callgrind` with different numbers of steps give the number of instructions per
//! step.

use amp_core::{
    data::{AnyBatch, Batch, BatchType},
    log::{Log, LogOptions},
    nn::{Context, Linear, LinearConfig, Relu, Sequential, visit_child},
    optim::{Adam, OptimizerConfig, Optimizers, TrainingPlan},
    precision::{Policy, Precision},
    prelude::*,
    tch::{Device, Kind},
};
use criterion::Criterion;
use fixtures::models::PrecisionTestModel;

const FEATURES: i64 = 128;
const BATCH: i64 = 64;

/// PrecisionTestModel, written without the derive macro.
struct ByHand {
    model: Sequential,
}

impl amp_core::Visit for ByHand {
    fn visit(&self, visitor: &mut dyn amp_core::nn::Visitor) {
        visit_child(visitor, "model", None, &self.model);
    }
}

impl Module for ByHand {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        cx.call("model", None, &self.model, input)
    }
}

impl LightningModule for ByHand {
    fn name(&self) -> &'static str {
        "ByHand"
    }

    fn hyperparameters(&self) -> amp_core::Hyperparameters {
        amp_core::Hyperparameters::new()
    }

    fn training_step(&mut self, batch: &AnyBatch, step: &mut Step<'_>) -> Result<Tensor> {
        let batch = Batch::from_any(batch)?;
        let output = self.forward(&batch.input, step.context())?;
        let loss = loss::cross_entropy(&output, &batch.target)?;
        step.log("train_loss", &loss, batch.len(), LogOptions::ON_STEP)?;
        Ok(loss)
    }

    fn validation_step(&mut self, _: &AnyBatch, _: &mut Step<'_>) -> Result<()> {
        Ok(())
    }

    fn configure_optimizers(&self, _: &TrainingPlan) -> Result<Optimizers> {
        Ok(OptimizerConfig::new(Adam::default()).into())
    }
}

fn linear(inputs: i64, outputs: i64) -> Result<Linear> {
    Linear::new(LinearConfig::new(inputs, outputs))
}

fn by_hand() -> Result<ByHand> {
    let layers: Vec<Box<dyn Module>> = vec![
        Box::new(linear(FEATURES, 256)?),
        Box::new(Relu),
        Box::new(linear(256, 64)?),
        Box::new(Relu),
        Box::new(linear(64, 10)?),
    ];
    Ok(ByHand { model: Sequential::new(layers) })
}

fn batch() -> Result<Batch> {
    let x = Tensor::f_randn([BATCH, FEATURES], (Kind::Float, Device::Cpu))?;
    Batch::new(x, Tensor::f_randint(10, [BATCH], (Kind::Int64, Device::Cpu))?)
}

fn step(model: &mut dyn LightningModule, batch: &AnyBatch, cx: &Context, log: &mut Log) -> Tensor {
    let mut step = Step::new(cx, log, 0, 0);
    model.training_step(batch, &mut step).expect("a step")
}

/// Calls libtorch directly, without amp-core. Computes the forward pass and the loss, and the two
/// operations with which a step logs its loss: detach and add.
fn bare(weights: &[(Tensor, Tensor)], batch: &Batch, sum: &mut Tensor) -> Result<Tensor> {
    let mut x = batch.input.shallow_clone();
    for (at, (weight, bias)) in weights.iter().enumerate() {
        x = x.f_linear(weight, Some(bias))?;
        if at + 1 < weights.len() {
            x = x.f_relu()?;
        }
    }
    let none = None::<Tensor>;
    let mean = amp_core::tch::Reduction::Mean;
    let loss = x.f_cross_entropy_loss(&batch.target, none, mean, -100, 0.0)?;
    let value = loss.f_detach()?.f_to_kind(Kind::Double)?.f_mul_scalar(BATCH as f64)?;
    let _ = sum.f_add_(&value)?;
    Ok(loss)
}

type Run = Box<dyn FnMut() -> Tensor>;

/// Returns the three steps to compare, each with its name.
fn candidates() -> Result<Vec<(&'static str, Run)>> {
    amp_core::tch::set_num_threads(1);
    let context = || Context::new(Policy::new(Precision::F32True, Device::Cpu), true);
    let (mut derived, mut hand) =
        (PrecisionTestModel::builder().input_size(FEATURES).build()?, by_hand()?);
    let weights: Vec<(Tensor, Tensor)> = amp_core::nn::parameters(&hand)
        .chunks(2)
        .map(|pair| (pair[0].tensor.shallow_clone(), pair[1].tensor.shallow_clone()))
        .collect();
    let (data, cx, mut log) = (batch()?.to_any()?, context(), Log::default());
    let first: Run = Box::new(move || step(&mut derived, &data, &cx, &mut log));
    let (data, cx, mut log) = (batch()?.to_any()?, context(), Log::default());
    let second: Run = Box::new(move || step(&mut hand, &data, &cx, &mut log));
    let (data, mut sum) = (batch()?, Tensor::zeros([], (Kind::Double, Device::Cpu)));
    let third: Run = Box::new(move || bare(&weights, &data, &mut sum).expect("a step"));
    Ok(vec![("derived", first), ("by-hand", second), ("bare-libtorch", third)])
}

fn main() {
    let candidates = candidates().expect("models");
    let wanted = |name: &str| std::env::var(name).ok();
    if let (Some(steps), Some(name)) = (wanted("AMP_STEPS"), wanted("AMP_STEP")) {
        let steps: u64 = steps.parse().expect("AMP_STEPS is a number");
        let mut chosen = candidates.into_iter().filter(|(own, _)| *own == name);
        let (_, mut step) = chosen.next().expect("AMP_STEP is derived, by-hand or bare-libtorch");
        (0..steps).for_each(|_| drop(step()));
        return;
    }
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("training step");
    for (name, mut step) in candidates {
        group.bench_function(name, |bencher| bencher.iter(&mut step));
    }
    group.finish();
    criterion.final_summary();
}
