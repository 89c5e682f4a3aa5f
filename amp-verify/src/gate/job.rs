//! A job of the gate: a training run or a check of a model. Each process can run any job.

use std::{fmt, time::Duration};

use amp_core::{
    LightningModule, Result, Trainer, TrainerConfig, hardware,
    memory::MemoryMeter,
    nn::init::Remembering,
    precision::{Kernels, Precision},
    tch::{Device, Tensor},
    trainer::Check,
};
use serde::{Deserialize, Serialize};

use super::{
    conformance, controls,
    deadline::Deadline,
    identity, invariants,
    outcome::Outcome,
    path,
    reason::{Failure, Reason},
    runs::product_error,
};
use crate::{
    case::{Case, Choices},
    changes::Changes,
    diagnose::Overrides,
    faults::{Fault, Faulty},
    interceptor::{Intercepted, Interceptor},
    length::Length,
    registry::Registry,
};

/// What a job of the gate does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Trains and validates.
    Train,
    /// Trains and validates with an optimizer that changes no weight: the control run.
    Frozen,
    /// Runs a few steps and compares them with the same steps under 32-true.
    Conformance,
    /// Observes the steps of a run and checks them against rules, for example of clipping.
    Path,
    /// Trains a few steps and validates. The invariants of training are checked in each step.
    Invariants,
}

/// The description of a job of the gate. Two equal jobs have equal results on the same machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// The name under which the model is registered.
    pub model: String,
    /// The precision of the run.
    pub precision: Precision,
    /// The seed of the weights, the order of examples and dropout.
    pub seed: u64,
    /// The length of a full training run.
    pub length: Length,
    /// The changes to the registered model that the gate's options ask for.
    pub changes: Changes,
    /// The name of the device, for example `cuda:0`.
    pub device: String,
    /// Whether f32 matrix products may run in TF32.
    pub tf32: bool,
    /// Whether libtorch is asked for deterministic algorithms.
    pub deterministic: bool,
    /// The kernels that layers and losses use.
    pub kernels: Kernels,
    /// How often the invariants of training are checked.
    pub check: Check,
    /// What the job does: train, or check the model.
    pub task: Task,
    /// The precisions of single modules, by path. They replace those in the model's code.
    pub overrides: Overrides,
    /// The mistake that the self-test puts into this job on purpose. `None` outside the self-test.
    pub fault: Option<Fault>,
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let task = match self.task {
            Task::Train => "whole run",
            Task::Frozen => "control",
            Task::Conformance => "first steps",
            Task::Path => "rules of the training path",
            Task::Invariants => "invariants",
        };
        write!(f, "{} under {}, seed {}: {task}", self.model, self.precision, self.seed)
    }
}

impl Job {
    /// Creates a job for an unchanged model on a CPU, without a fault and without checks of the
    /// invariants.
    pub fn new(model: &str, precision: Precision, seed: u64, length: Length, task: Task) -> Self {
        Self {
            model: model.to_owned(),
            precision,
            seed,
            length,
            changes: Changes::default(),
            device: "cpu".to_owned(),
            tf32: false,
            deterministic: false,
            kernels: Kernels::default(),
            check: Check::Off,
            task,
            overrides: Overrides::new(),
            fault: None,
        }
    }

    /// Runs the job with its model from the registry. If the job ends with an error, the outcome
    /// contains the error as a failure.
    pub fn execute(&self, registry: &Registry) -> Outcome {
        self.execute_within(registry, None)
    }

    /// Runs the job as [`execute`](Self::execute) does, but stops checking rules after `time`.
    pub(super) fn execute_within(&self, registry: &Registry, time: Option<Duration>) -> Outcome {
        let deadline = Deadline::within(time);
        if deadline.check().is_err() {
            return Outcome::ended();
        }
        let started = std::time::Instant::now();
        // Keeps the initial weights when the model is first built. If the job builds the model
        // again, the weights are copied, which is faster than initializing them.
        let _remembering = Remembering::new();
        let _kernels = self.kernels.enter();
        let model = registry.find(Some(&self.model)).ok();
        let layer = model.and_then(|model| model.planted_layer());
        let _planted = Fault::planted(self.fault, self.precision, layer);
        let outcome = match self.task {
            Task::Train | Task::Frozen => self.train(registry),
            Task::Conformance => self.measured(|| conformance::run(self, registry, &deadline)),
            Task::Path => self.measured(|| path::run(self, registry, &deadline)),
            Task::Invariants => invariants::run(self, registry),
        };
        let mut outcome = outcome.unwrap_or_else(|error| match deadline.has_ended() {
            true => Outcome::ended(),
            false => Outcome::failed(Failure::of(&error)),
        });
        outcome.seconds = started.elapsed().as_secs_f64();
        outcome
    }

    /// Returns a text that identifies the job: different jobs have different texts.
    pub(super) fn key(&self) -> String {
        // The job contains only names, numbers and sorted maps, so equal jobs give equal texts.
        serde_json::to_string(self).unwrap_or_else(|error| format!("{error}"))
    }

    /// Runs the job and measures the memory that it uses.
    fn measured(&self, run: impl FnOnce() -> Result<Outcome>) -> Result<Outcome> {
        let meter = MemoryMeter::start(self.device()?)?;
        let outcome = run()?;
        Ok(Outcome { peak_memory_bytes: meter.read()?.peak_allocated, ..outcome })
    }

    /// Returns the device on which the job runs.
    ///
    /// # Errors
    /// When no device has this name.
    pub fn device(&self) -> Result<Device> {
        hardware::parse_device(&self.device)
    }

    /// Builds the case (the model with its data and options) for a run under `precision`. If the
    /// self-test has put a fault into the data or the seed, the case contains the fault.
    pub(super) fn case(&self, registry: &Registry, precision: Precision) -> Result<Case> {
        hardware::set_numerics(self.tf32, self.deterministic)?;
        let seed = Fault::seed(self.fault, precision, self.seed);
        let length = Some(self.length);
        let choices = Choices { length, seed, ..Choices::from(&self.changes) };
        let model = registry.find(Some(&self.model))?;
        let mut case = Case::new(registry, model, choices, self.device()?)?;
        case.trainer.numerics.overrides = self.overrides.clone().into();
        case.trainer.numerics.kernels = self.kernels;
        Fault::data(self.fault, precision, &mut case.data)?;
        Ok(case)
    }

    /// Returns the case for a run under `precision`: a copy of `case`, so that its data is not
    /// loaded again. If the self-test has put a fault into the job, builds a new case, because the
    /// fault may affect only one precision.
    pub(super) fn case_like(
        &self,
        case: &Case,
        registry: &Registry,
        precision: Precision,
    ) -> Result<Case> {
        match self.fault {
            None => Ok(case.clone()),
            Some(_) => self.case(registry, precision),
        }
    }

    /// Returns the trainer's options for a run under `precision`, without the fault of the
    /// self-test.
    pub(super) fn config(&self, case: &Case, precision: Precision) -> TrainerConfig {
        let mut config = TrainerConfig { precision, ..case.trainer.clone() };
        config.recovery.provenance = false;
        // A control run breaks the invariant that training changes the weights, so its invariants
        // are not checked.
        config.checks.level = if self.task == Task::Frozen { Check::Off } else { self.check };
        // These tasks run only a few steps, or at most one epoch. A parameter that is unfrozen
        // later than that would be frozen in all their steps, and no rule would check it. So these
        // tasks train such a parameter from the first step.
        if matches!(self.task, Task::Conformance | Task::Path) {
            config.optimization.freeze.retain(|freeze| !freeze.ends_after(conformance::STEPS));
        }
        config
    }

    /// Builds the model and puts the fault of the self-test into it.
    pub(super) fn model(
        &self,
        case: &Case,
        precision: Precision,
    ) -> Result<Box<dyn LightningModule>> {
        let model = case.build()?;
        Ok(match self.fault {
            Some(fault) => Box::new(Intercepted::new(model, Faulty::new(fault, precision))),
            None => model,
        })
    }

    /// Puts the fault of the self-test into a model that already exists.
    pub(super) fn with_fault<'m>(
        &self,
        model: &'m mut dyn LightningModule,
        precision: Precision,
    ) -> Box<dyn LightningModule + 'm> {
        match self.fault {
            Some(fault) => Box::new(Intercepted::borrowing(model, Faulty::new(fault, precision))),
            None => Box::new(Intercepted::borrowing(model, Untouched)),
        }
    }

    fn train(&self, registry: &Registry) -> Result<Outcome> {
        let case = self.case(registry, self.precision)?;
        let mut config = self.config(&case, self.precision);
        Fault::config(self.fault, &mut config);
        let meter = MemoryMeter::start(case.trainer.device)?;
        let model = self.model(&case, self.precision)?;
        let weights = identity::weights(model.as_ref())?;
        let order = identity::Order::default();
        let mut model: Box<dyn LightningModule> =
            Box::new(Intercepted::new(model, Watch(order.clone())));
        if self.task == Task::Frozen {
            model = Box::new(Intercepted::new(model, controls::Freeze));
        }
        let mut trainer = Trainer::new(config);
        if let Some(stopping) = case.stopping()? {
            trainer = trainer.callback(stopping);
        }
        let record = trainer.fit(model.as_mut(), &case.data)?;
        let memory = meter.read()?;
        let is_baseline = self.precision == Precision::F32True;
        let data_bytes = case.copied_bytes(self.precision)?;
        let validation = identity::Validation::of(&case.data)?;
        // The runs under 32-true use the same data, so only the other runs compute the overlap of
        // training and validation examples.
        let overlap = match is_baseline {
            true => None,
            false => Some(validation.overlap(&case.data, case.trainer.seed)?),
        };
        let validation = validation.digest();
        let last = |name: &str| record.last(name).filter(|value| value.is_finite());
        let judged_by = case.model.judge.name;
        let (metric, loss) = (last(judged_by), last("val_loss"));
        let mut failures = Vec::new();
        if metric.is_none() || loss.is_none() || !identity::is_finite(model.as_ref())? {
            let what = match (metric, loss) {
                (None, _) => judged_by,
                (_, None) => "val_loss",
                _ => "a weight",
            };
            let text = match record.last(what) {
                None if what != "a weight" => format!("the model logs no {what}"),
                _ => format!("{what} is not finite"),
            };
            failures.push(Failure::new(Reason::NonFinite, text));
        }
        if record.end.global_step == 0 {
            let text = format!("all {} steps were skipped", record.end.skipped);
            failures.push(Failure::new(Reason::AllSkipped, text));
        }
        Ok(Outcome {
            metric,
            loss,
            applied_steps: record.end.global_step,
            skipped_steps: record.end.skipped,
            final_scale: record.end.scale,
            peak_memory_bytes: memory.peak_allocated,
            data_bytes,
            observed: record.observed,
            examples: case.data.val.examples(),
            pairing: identity::digest(&[&weights, &order.digest(), &validation]),
            start: identity::digest(&[&weights, &validation]),
            first_values: order.values(),
            overlap,
            hyperparameters: record.start.run.hyperparameters,
            data: record.start.run.data,
            batch_size: case.data.batch_size,
            fingerprint: Some(record.start.run.fingerprint),
            product_error: is_baseline.then(|| product_error(case.trainer.device)).transpose()?,
            conformance: None,
            path: None,
            failures,
            ended: false,
            seconds: 0.0,
        })
    }
}

/// An interceptor that passes all calls of the trainer on to the model unchanged.
struct Untouched;

impl Interceptor for Untouched {}

/// An interceptor that records a digest of a run's first batches, to compare the order of examples.
struct Watch(identity::Order);

impl Interceptor for Watch {
    fn training_step(
        &mut self,
        model: &mut dyn LightningModule,
        batch: &amp_core::data::AnyBatch,
        step: &mut amp_core::Step<'_>,
    ) -> Result<Tensor> {
        self.0.add(batch)?;
        model.training_step(batch, step)
    }
}
