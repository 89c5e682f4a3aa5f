//! What a step costs beyond its tensor work, on small tensors where that shows:
//! the derived training step, the same written by hand, and the bare libtorch calls.
//!
//! `cargo bench -p tests`. The three are timed in one run; read their ratio. For instruction
//! counts run one of them under callgrind:
//! `valgrind --tool=callgrind target/release/deps/step-… --bench derived --profile-time 1`.

use amp_core::{
    data::Batch,
    log::{Log, LogOptions},
    nn::{Context, Linear, LinearConfig, Relu, Sequential, visit_child},
    optim::{Adam, OptimizerConfig, TrainingPlan},
    precision::{Policy, Precision},
    prelude::*,
    tch::{Device, Kind},
};
use criterion::{Criterion, criterion_group, criterion_main};
use fixtures::models::PrecisionTestModel;

const FEATURES: i64 = 128;
const BATCH: i64 = 64;

/// PrecisionTestModel without the derive.
struct ByHand {
    model: Sequential,
}

impl Module for ByHand {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        cx.call("model", None, &self.model, input)
    }

    fn visit(&self, visitor: &mut dyn amp_core::nn::Visitor) {
        visit_child(visitor, "model", None, &self.model);
    }
}

impl LightningModule for ByHand {
    fn name(&self) -> &'static str {
        "ByHand"
    }

    fn hyperparameters(&self) -> amp_core::Hyperparameters {
        amp_core::Hyperparameters::new()
    }

    fn training_step(&mut self, batch: &Batch, step: &mut Step<'_>) -> Result<Tensor> {
        let output = self.forward(&batch.input, step.context())?;
        let loss = loss::cross_entropy(&output, &batch.target)?;
        step.log("train_loss", &loss, batch.len(), LogOptions::ON_STEP)?;
        Ok(loss)
    }

    fn validation_step(&mut self, _: &Batch, _: &mut Step<'_>) -> Result<()> {
        Ok(())
    }

    fn configure_optimizers(&self, _: &TrainingPlan) -> Result<OptimizerConfig> {
        Ok(OptimizerConfig::new(Adam::default()))
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

fn step(model: &mut dyn LightningModule, batch: &Batch, cx: &Context, log: &mut Log) -> Tensor {
    let mut step = Step::new(cx, log, 0, 0);
    model.training_step(batch, &mut step).expect("a step")
}

/// Forward and loss with libtorch's calls alone, and the log's two operations.
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

fn steps(criterion: &mut Criterion) {
    amp_core::tch::set_num_threads(1);
    let batch = batch().expect("a batch");
    let cx = Context::new(Policy::new(Precision::F32True, Device::Cpu), true);
    let mut group = criterion.benchmark_group("training step");
    let mut derived = PrecisionTestModel::builder().input_size(FEATURES).build().expect("a model");
    let mut log = Log::default();
    group.bench_function("derived", |b| b.iter(|| step(&mut derived, &batch, &cx, &mut log)));
    let mut hand = by_hand().expect("a model");
    let mut log = Log::default();
    group.bench_function("by hand", |b| b.iter(|| step(&mut hand, &batch, &cx, &mut log)));
    let weights: Vec<(Tensor, Tensor)> = amp_core::nn::parameters(&hand)
        .chunks(2)
        .map(|pair| (pair[0].tensor.shallow_clone(), pair[1].tensor.shallow_clone()))
        .collect();
    let mut sum = Tensor::zeros([], (Kind::Double, Device::Cpu));
    group.bench_function("bare libtorch", |b| b.iter(|| bare(&weights, &batch, &mut sum)));
    group.finish();
}

criterion_group!(benches, steps);
criterion_main!(benches);
