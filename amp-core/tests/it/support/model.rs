//! Models whose trait implementations are written by hand, in the form in which the derive macro
//! generates them. Also functions that train these models.

use std::io::Read;

use amp_core::{
    Hyperparameters, LightningModule, Module, Result, Step, Trainer, TrainerConfig,
    data::{AnyBatch, Batch, BatchType, DataModule},
    event::Event,
    log::LogOptions,
    loss,
    nn::{
        BatchNorm, BatchNormConfig, Context, Dropout, Linear, LinearConfig, Relu, Sequential,
        Visit, Visitor, visit_child,
    },
    optim::{OptimizerConfig, Optimizers, TrainingPlan},
    record::RunRecord,
    state::State,
    tch::{Device, Kind, Tensor},
};
use flate2::read::GzDecoder;

/// A model that consists of one module, `model`, with a loss and an optimizer that the test
/// chooses.
pub(crate) struct Model {
    pub(crate) model: Box<dyn Module>,
    pub(crate) loss: fn(&Tensor, &Tensor) -> Result<Tensor>,
    pub(crate) optimizer: Box<dyn Fn(&TrainingPlan) -> OptimizerConfig>,
}

impl Model {
    /// Returns a model that consists of the given module, with the mean squared error as its loss.
    pub(crate) fn regression(
        model: impl Module + 'static,
        optimizer: impl Fn(&TrainingPlan) -> OptimizerConfig + 'static,
    ) -> Self {
        Self { model: Box::new(model), loss: loss::mse_loss, optimizer: Box::new(optimizer) }
    }

    fn log(&self, name: &str, batch: &AnyBatch, step: &mut Step<'_>) -> Result<Tensor> {
        let batch = Batch::from_any(batch)?;
        let output = self.forward(&batch.input, step.context())?;
        let loss = (self.loss)(&output, &batch.target)?;
        let options = LogOptions { on_step: true, on_epoch: true, prog_bar: true };
        step.log(name, &loss, batch.len(), options)?;
        Ok(loss)
    }
}

impl Visit for Model {
    fn visit(&self, visitor: &mut dyn Visitor) {
        visit_child(visitor, "model", None, &self.model);
    }
}

impl Module for Model {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        cx.call("model", None, &self.model, input)
    }
}

impl LightningModule for Model {
    fn name(&self) -> &'static str {
        "Model"
    }

    fn hyperparameters(&self) -> Hyperparameters {
        Hyperparameters::new()
    }

    fn training_step(&mut self, batch: &AnyBatch, step: &mut Step<'_>) -> Result<Tensor> {
        self.log("train_loss", batch, step)
    }

    fn validation_step(&mut self, batch: &AnyBatch, step: &mut Step<'_>) -> Result<()> {
        self.log("val_loss", batch, step).map(drop)
    }

    fn configure_optimizers(&self, plan: &TrainingPlan) -> Result<Optimizers> {
        Ok((self.optimizer)(plan).into())
    }
}

/// A model with state of its own, which is a count of training steps.
pub(crate) struct Counting {
    pub(crate) inner: Model,
    /// The number of training steps so far.
    pub(crate) seen: i64,
}

impl Visit for Counting {
    fn visit(&self, visitor: &mut dyn Visitor) {
        self.inner.visit(visitor);
    }
}

impl Module for Counting {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        self.inner.forward(input, cx)
    }
}

impl LightningModule for Counting {
    fn name(&self) -> &'static str {
        "Counting"
    }

    fn hyperparameters(&self) -> Hyperparameters {
        Hyperparameters::new()
    }

    fn training_step(&mut self, batch: &AnyBatch, step: &mut Step<'_>) -> Result<Tensor> {
        self.seen += 1;
        self.inner.training_step(batch, step)
    }

    fn validation_step(&mut self, batch: &AnyBatch, step: &mut Step<'_>) -> Result<()> {
        self.inner.validation_step(batch, step)
    }

    fn configure_optimizers(&self, plan: &TrainingPlan) -> Result<Optimizers> {
        self.inner.configure_optimizers(plan)
    }

    fn on_save_checkpoint(&self, state: &mut State) -> Result<()> {
        state.put("seen", &self.seen)
    }

    fn on_load_checkpoint(&mut self, state: &State) -> Result<()> {
        self.seen = state.get("seen")?;
        Ok(())
    }
}

/// Trains the model. Returns all events and the record of the run.
pub(crate) fn fit(
    config: &TrainerConfig,
    model: &mut Model,
    data: &DataModule,
) -> (Vec<Event>, Result<RunRecord>) {
    let mut events = Vec::new();
    let mut listen = |event: &Event| -> Result<()> {
        events.push(event.clone());
        Ok(())
    };
    let record = Trainer::new(config.clone()).subscribe(&mut listen).fit(model, data);
    (events, record)
}

pub(crate) fn linear(inputs: i64, outputs: i64) -> Result<Linear> {
    Linear::new(LinearConfig::new(inputs, outputs))
}

/// Builds the model MixedPrecisionDemo, the first model of the Lightning notebook that
/// `fixtures/GUIDE.md` follows. Its layers have the widths 64 → 32 → 32 → 16 → 10. The random
/// initial weights are generated in the same order as in PyTorch.
pub(crate) fn demo(dropout: f64) -> Result<Sequential> {
    let mut layers: Vec<Box<dyn Module>> = Vec::new();
    let mut width = 64;
    for out in [32, 32, 16] {
        layers.push(Box::new(linear(width, out)?));
        layers.push(Box::new(BatchNorm::new(BatchNormConfig::new(out))?));
        layers.push(Box::new(Relu));
        layers.push(Box::new(Dropout::new(dropout)?));
        width = out;
    }
    layers.push(Box::new(linear(width, 10)?));
    Ok(Sequential::new(layers))
}

/// Returns the first `rows` examples of the handwritten digits: the pixels, scaled to values from 0
/// to 1, and the classes.
pub(crate) fn digits(rows: usize) -> Result<Batch> {
    let packed = include_bytes!("../../../../fixtures/data/digits.csv.gz");
    let mut table = String::new();
    GzDecoder::new(packed.as_slice()).read_to_string(&mut table).expect("a gzipped table");
    let fields = table
        .lines()
        .take(rows)
        .flat_map(|row| row.split(',').map(|field| field.parse::<i64>().expect("an integer")));
    let table = Tensor::from_slice(&fields.collect::<Vec<_>>()).reshape([rows as i64, 65]);
    let features = table.narrow(1, 0, 64).to_kind(Kind::Float) / 16.0;
    Batch::new(features, table.select(1, 64))
}

/// Returns inputs of ones and targets with the value `target`, each `[count, width]`.
pub(crate) fn constant(count: i64, width: i64, target: f64) -> Result<Batch> {
    let shape = [count, width];
    let options = (Kind::Float, Device::Cpu);
    Batch::new(Tensor::ones(shape, options), Tensor::full(shape, target, options))
}

/// Returns data whose validation set is a copy of the training set. The examples are not shuffled.
pub(crate) fn in_order(examples: Batch, batch_size: i64) -> Result<DataModule> {
    Ok(same(examples, batch_size)?.in_order())
}

pub(crate) fn same(examples: Batch, batch_size: i64) -> Result<DataModule> {
    let val = Batch::new(examples.input.copy(), examples.target.copy())?;
    Ok(DataModule::new("examples", examples, val, batch_size))
}
