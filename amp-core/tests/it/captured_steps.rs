//! Tests of training steps that the user has written and that may run as CUDA graphs.

use amp_core::{
    LightningModule, Module, Result, Step, Trainer, TrainerConfig,
    data::{Batch, DataModule},
    log::LogOptions,
    loss,
    nn::{self, Dropout, Linear},
    precision::{GradScalerConfig, Precision},
    record::RunRecord,
    tch::{Device, Kind, Tensor},
    trainer::{Graph, StepAccess},
};
use rstest::rstest;

use crate::support::{device, message, seeded};

#[derive(LightningModule)]
#[training_step(twice, captured)]
#[loss(mse_loss)]
#[optimizer(adamw, lr = 0.01)]
struct Captured {
    #[layer(linear(4, 16))]
    body: Linear,
    #[layer(dropout(0.3))]
    drop: Dropout,
    #[layer(linear(16, 2))]
    head: Linear,
}

#[derive(LightningModule)]
#[training_step(once)]
#[loss(mse_loss)]
#[optimizer(adamw, lr = 0.01)]
struct Eager {
    #[layer(linear(4, 2))]
    body: Linear,
}

/// A model whose loss depends on the number of steps.
#[derive(LightningModule)]
#[training_step(annealed, captured)]
#[loss(mse_loss)]
#[optimizer(sgd, lr = 0.1)]
struct Annealed {
    #[layer(linear(4, 2))]
    body: Linear,
}

fn annealed(net: &mut Annealed, batch: &Batch, step: &mut Step<'_>) -> Result<Tensor> {
    let weight = 1.0 / (1.0 + step.global_step() as f64);
    let output = net.forward(&batch.input, step.context())?;
    Ok(loss::mse_loss(&output, &batch.target)?.f_mul_scalar(weight)?)
}

/// Computes a loss as in R-Drop: runs the same examples twice, with two different dropout masks,
/// and adds the difference between the two outputs to the loss.
fn twice(net: &mut Captured, batch: &Batch, step: &mut Step<'_>) -> Result<Tensor> {
    let one = net.forward(&batch.input, step.context())?;
    let other = net.forward(&batch.input, step.context())?;
    let apart = loss::mse_loss(&one, &other)?;
    let value = loss::mse_loss(&one, &batch.target)?.f_add(&apart)?;
    step.log("train_loss", &value, batch.len(), LogOptions::ON_EPOCH)?;
    Ok(value)
}

fn once(net: &mut Eager, batch: &Batch, step: &mut Step<'_>) -> Result<Tensor> {
    loss::mse_loss(&net.forward(&batch.input, step.context())?, &batch.target)
}

fn data() -> Result<DataModule> {
    let _section = seeded(5);
    let options = (Kind::Float, Device::Cpu);
    let (input, target) = (Tensor::randn([256, 4], options), Tensor::randn([256, 2], options));
    Ok(DataModule::training("rows", Batch::new(input, target)?, 8))
}

fn train(
    model: &mut dyn LightningModule,
    precision: Precision,
    graph: Graph,
    data: &DataModule,
) -> Result<RunRecord> {
    let config = TrainerConfig { max_epochs: 16, graph, ..TrainerConfig::new(precision, device()) }
        .with(|config| {
            config.numerics.scaler = GradScalerConfig {
                init_scale: 2f64.powi(24),
                growth_interval: 40,
                ..Default::default()
            }
        });
    Trainer::new(config).fit(model, data)
}

/// A training step that the user has written runs as a CUDA graph only if it is marked `captured`.
#[test]
fn only_a_step_marked_captured_may_be_captured() -> Result<()> {
    assert_eq!(Captured::builder().build()?.step_access(), StepAccess::Deferred);
    let mut eager = Eager::builder().build()?;
    assert!(matches!(eager.step_access(), StepAccess::InStep(_)));
    if device().is_cuda() {
        let text = message(train(&mut eager, Precision::F32True, Graph::On, &data()?));
        assert!(text.contains("is not marked `captured`"), "{text}");
    }
    Ok(())
}

/// Training for 512 steps has the same bits with and without CUDA graphs: weights, logged values,
/// skipped steps and loss scale.
#[rstest]
fn a_captured_step_equals_the_eager_step(
    #[values(Precision::F32True, Precision::Bf16Mixed, Precision::F16Mixed)] precision: Precision,
) -> Result<()> {
    let run = |graph: Graph| -> Result<(Captured, RunRecord)> {
        let mut model = {
            let _section = seeded(0);
            Captured::builder().build()?
        };
        // `data` seeds the random generator too. It is therefore called before `seeded(1)`, which
        // sets the random numbers of dropout.
        let data = data()?;
        let _section = seeded(1);
        let record = train(&mut model, precision, graph, &data)?;
        Ok((model, record))
    };
    let (one, eager) = run(Graph::Off)?;
    let (other, graphs) = run(Graph::Auto)?;
    assert_eq!(eager.end.replayed, 0);
    assert_eq!(graphs.end.replayed > 400, device().is_cuda(), "{}", graphs.end.replayed);
    assert_eq!((eager.end.skipped, &eager.scales), (graphs.end.skipped, &graphs.scales));
    for (eager, graphs) in eager.epochs.iter().zip(&graphs.epochs) {
        assert_eq!(eager.train, graphs.train);
    }
    for (one, other) in nn::parameters(&one).iter().zip(nn::parameters(&other)) {
        assert!(one.tensor.equal(&other.tensor), "`{}`", one.name);
    }
    Ok(())
}

/// A step that reads the number of steps runs without a CUDA graph: each replay would use the
/// number that was read during the capture. A note gives this reason.
#[test]
fn a_step_that_reads_its_number_is_not_captured() -> Result<()> {
    let run = |graph: Graph| -> Result<(Annealed, RunRecord)> {
        let data = data()?;
        let _section = seeded(0);
        let mut model = Annealed::builder().build()?;
        let record = train(&mut model, Precision::F32True, graph, &data)?;
        Ok((model, record))
    };
    let ((one, _), (other, record)) = (run(Graph::Off)?, run(Graph::Auto)?);
    assert_eq!(record.end.replayed, 0);
    let noted = record.notes.iter().any(|note| note.contains("reads `step.global_step()`"));
    assert_eq!(noted, device().is_cuda(), "{:?}", record.notes);
    assert!(one.body.weight().equal(other.body.weight()));
    Ok(())
}
