//! The training runs whose steps the gate checks. Each run is made twice: with an observer that
//! checks each step, and without an observer. The options of the runs are chosen such that every
//! rule of the training path is tested.

use std::{cell::RefCell, collections::BTreeSet, path::Path, rc::Rc};

use amp_core::{
    Error, LightningModule, Result, Trainer, TrainerConfig,
    callback::{Action, Callback},
    data::Limit,
    nn,
    precision::{Clip, Policy, Precision, StepOutcome},
    random,
    trainer::{Graph, StepAccess},
    weights,
};

use super::{
    bounds::{self, Judged},
    final_state::{FinalState, StateRecorder},
    observer::{Observation, Observer},
    reference::Reference,
    rules::ScaleRule,
};
use crate::{
    case::Case,
    faults::Fault,
    gate::{
        budget::Budget,
        conformance::emulation::{Emulation, Rounding},
        deadline::Deadline,
        job::Job,
    },
    interceptor::Intercepted,
    layers::Subject,
    length::Length,
};

/// The number of steps of the short runs.
pub(super) const STEPS: u64 = 6;
/// The number of applied steps in the run with [`HIGH_SCALE`], whose first steps overflow.
const SCALED_STEPS: u64 = 12;
/// A loss scale with which no step overflows.
pub(super) const LOW_SCALE: f64 = 1024.0;
/// A loss scale (2³⁴) with which steps overflow: f16 gradients above 65504/2³⁴ = 3.8e-6 become
/// infinite.
pub(super) const HIGH_SCALE: f64 = 17_179_869_184.0;

/// The kinds of training runs whose steps the gate checks. They differ in their trainer options.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Scenario {
    /// An epoch and its validation, with the options that the model declares and a constant loss
    /// scale.
    Epoch,
    /// A few steps in which gradients are clipped to this norm.
    Clipped(f64),
    /// Steps that begin with a loss scale so high that gradients overflow. The growth interval is
    /// short, so that the scale also grows again.
    Overflowing,
}

/// What to check: a case (a model with its data and options) under one precision, and the limits on
/// time and work.
pub(super) struct Setup<'a> {
    pub(super) job: &'a Job,
    pub(super) case: &'a Case,
    pub(super) precision: Precision,
    pub(super) budget: Budget,
    pub(super) deadline: &'a Deadline,
}

impl Setup<'_> {
    /// Calls `measure` with the model and the first training examples. If the self-test has put a
    /// fault into the job, the model has this fault.
    pub(super) fn measured<T>(&self, measure: impl FnOnce(&Subject<'_>) -> Result<T>) -> Result<T> {
        self.budget.measured(self.job, self.case, self.precision, measure)
    }

    /// Returns how many batches an epoch has with these trainer options.
    pub(super) fn batches(&self, config: &TrainerConfig) -> Result<i64> {
        let loader = self.case.data.train_loader(config.policy(), 0)?;
        Ok(loader.limited(config.loops.limit_train_batches).batches())
    }

    /// Returns by how many bytes the memory of the loaded batches can differ between steps, for
    /// example because sequences have different lengths. Returns 0 if all full batches are equally
    /// large.
    pub(super) fn varying_bytes(&self, scenario: Scenario) -> Result<u64> {
        let config = self.config(scenario)?;
        let (data, mut sizes) = (&self.case.data, Vec::new());
        for batch in config.train_loader(data)?.epoch(0, 0)? {
            let batch = batch?;
            if batch.len() == data.batch_size {
                sizes.push(batch.bytes());
            }
        }
        let (least, most) = (sizes.iter().min(), sizes.iter().max());
        // The number of batches in memory: the batches of one step, one batch of the next step, and
        // the batches that are loaded ahead.
        let ahead = data.loading.prefetch.unwrap_or(1) as u64;
        let held = config.optimization.accumulate_grad_batches.cast_unsigned() + 1 + ahead;
        Ok(least.zip(most).map_or(0, |(least, most)| held * (most - least)))
    }

    pub(super) fn config(&self, scenario: Scenario) -> Result<TrainerConfig> {
        let mut config = self.job.config(self.case, self.precision);
        config.graph = Graph::Auto;
        config.numerics.scaler.init_scale = LOW_SCALE;
        let window = config.optimization.accumulate_grad_batches;
        match scenario {
            Scenario::Epoch => {
                config.max_epochs = 1;
                config.max_steps = None;
                let most = self.budget.epoch_steps;
                let steps = match self.job.length {
                    Length::Epochs(_) => most,
                    Length::Steps(steps) => most.min(i64::try_from(steps).unwrap_or(most)),
                };
                // With gradient accumulation, the last step gets only one batch, because the last
                // step of a user's epoch may also have fewer batches than the other steps.
                let most = steps * window - (window - 1);
                if self.batches(&config)? > most {
                    config.loops.limit_train_batches = Limit::Batches(most);
                }
            }
            Scenario::Clipped(limit) => {
                config.max_steps = Some(STEPS);
                config.optimization.gradient_clip = Some(Clip::Norm(limit));
            }
            Scenario::Overflowing => {
                // Ends a run in which every step is skipped: such a run never reaches `max_steps`.
                config.max_epochs = 12;
                config.max_steps = Some(SCALED_STEPS);
                config.numerics.scaler.init_scale = HIGH_SCALE;
                config.numerics.scaler.growth_interval = 4;
            }
        }
        Ok(config)
    }

    /// Trains without an observer, as `Trainer::fit` does for a user.
    pub(super) fn plain(&self, scenario: Scenario) -> Result<FinalState> {
        Ok(self.fit(self.config(scenario)?, Vec::new(), None)?.0)
    }

    /// Trains without an observer, saves the run to `path` after `after` steps, and goes on
    /// training.
    pub(super) fn saved(&self, scenario: Scenario, after: u64, path: &Path) -> Result<FinalState> {
        let saver = Saver { after, path: path.to_owned() };
        Ok(self.fit(self.config(scenario)?, vec![Box::new(saver)], None)?.0)
    }

    /// Creates a new model and resumes the run from `path`, where it was saved after `done` steps.
    pub(super) fn resumed(&self, scenario: Scenario, path: &Path, done: u64) -> Result<FinalState> {
        let mut config = self.config(scenario)?;
        if Fault::loses_state(self.job.fault) {
            config.max_steps = config.max_steps.map(|most| most - done);
        }
        Ok(self.fit(config, Vec::new(), Some(path))?.0)
    }

    /// Trains without an observer, and also returns the trained model.
    pub(super) fn plain_with_model(
        &self,
        scenario: Scenario,
    ) -> Result<(FinalState, Box<dyn LightningModule>)> {
        self.fit(self.config(scenario)?, Vec::new(), None)
    }

    /// Creates the models that compute the gradient of each step under 32-true with emulated
    /// rounding, each with other random numbers. Bounds are computed from these gradients. For an
    /// epoch of `windows` steps, [`bounds::passes`] gives the number of models.
    fn rounded(&self, windows: i64) -> Result<Vec<Reference>> {
        let overrides = Rc::new(self.job.overrides.clone());
        let mut model = self.case.build()?;
        let emulation = Emulation::of(self.case, model.as_mut(), self.precision, &overrides)?;
        let emulation = Rc::new(emulation);
        let draw = |number| {
            let rounding =
                Rounding::new(&emulation, self.job.seed, number).moving_between_modules();
            let rounded = Reference::new(self.case.build()?, self.case.trainer.device)?;
            Ok(rounded.rounding(rounding))
        };
        (1..=bounds::passes(windows)).map(draw).collect()
    }

    /// Trains with the gate's observer. Returns the final state of the run, what the observer has
    /// recorded, and the model. If a few steps exceed the bounds that the passes with emulated
    /// rounding give, repeats the run with more such passes for these steps.
    pub(super) fn observed(
        &self,
        scenario: Scenario,
    ) -> Result<(FinalState, Observation, Box<dyn LightningModule>)> {
        let mut first = self.observed_with(scenario, BTreeSet::new())?;
        // The models of these passes are not needed any more.
        first.1.rounded.clear();
        if let Some(reference) = &mut first.1.reference {
            let repeated = Judged::new(&reference.steps, self.precision).to_repeat();
            if !repeated.is_empty() && !reference.masks_differ {
                let (_, second, _) = self.observed_with(scenario, repeated)?;
                reference.steps = second.reference.map_or_else(Vec::new, |second| second.steps);
            }
        }
        Ok(first)
    }

    /// Trains with the gate's observer, and with more passes with emulated rounding for the steps
    /// `repeated`.
    pub(super) fn observed_with(
        &self,
        scenario: Scenario,
        repeated: BTreeSet<usize>,
    ) -> Result<(FinalState, Observation, Box<dyn LightningModule>)> {
        let mut config = self.config(scenario)?;
        let device = config.device;
        let copy = self.case.build()?;
        let mut observation =
            Observation::new(device, config.optimization.gradient_clip, Some(copy));
        if scenario == Scenario::Epoch {
            let window = config.optimization.accumulate_grad_batches;
            observation.reference = Some(Reference::new(self.case.build()?, device)?);
            observation.rounded = self.rounded((self.batches(&config)? + window - 1) / window)?;
        }
        observation.repeated = repeated;
        if self.precision.scales_loss() {
            observation.scale = Some(ScaleRule::new(config.numerics.scaler));
        }
        Fault::config(self.job.fault, &mut config);
        let observer = Observer(Rc::new(RefCell::new(observation)));
        let _section = random::seeded(self.case.trainer.seed)?;
        let model = self.job.model(self.case, self.precision)?;
        let mut model: Box<dyn LightningModule> =
            Box::new(Intercepted::new(model, observer.clone()));
        let recorder = StateRecorder::until(self.deadline);
        let mut trainer =
            Trainer::new(config).callback(observer.clone()).callback(recorder.clone());
        let record = trainer.fit(model.as_mut(), &self.case.data)?;
        drop(trainer);
        let state = FinalState::new(model.as_ref(), &recorder, record)?;
        let observation = observer.0.replace(Observation::new(device, None, None));
        Ok((state, observation, model))
    }

    fn fit(
        &self,
        mut config: TrainerConfig,
        callbacks: Vec<Box<dyn Callback>>,
        resume: Option<&Path>,
    ) -> Result<(FinalState, Box<dyn LightningModule>)> {
        Fault::config(self.job.fault, &mut config);
        let _section = random::seeded(self.case.trainer.seed)?;
        let mut model = self.job.model(self.case, self.precision)?;
        let recorder = StateRecorder::new(config.device, self.deadline)?;
        let mut trainer = Trainer::new(config.clone()).callback(recorder.clone());
        for callback in callbacks {
            trainer = trainer.callback(callback);
        }
        match resume {
            Some(path) if Fault::loses_state(self.job.fault) => {
                let policy = Policy::new(self.precision, config.device);
                nn::place(model.as_ref(), policy, &config.numerics.overrides)?;
                weights::load(model.as_ref(), path)?;
            }
            Some(path) => trainer = trainer.resume_from(path),
            None => {}
        }
        let record = trainer.fit(model.as_mut(), &self.case.data)?;
        drop(trainer);
        Ok((FinalState::new(model.as_ref(), &recorder, record)?, model))
    }
}

/// A callback that saves the run after step number `after`.
struct Saver {
    after: u64,
    path: std::path::PathBuf,
}

impl Callback for Saver {
    fn name(&self) -> String {
        "saver".into()
    }

    fn step_access(&self) -> StepAccess {
        StepAccess::PerStep
    }

    fn on_train_batch_end(
        &mut self,
        outcome: Option<&StepOutcome>,
        hook: &mut amp_core::Hook<'_>,
    ) -> Result<Vec<Action>> {
        let due = outcome == Some(&StepOutcome::Applied) && hook.global_step == self.after;
        let save = || Action::Save { path: self.path.clone(), weights_only: false };
        Ok(due.then(save).into_iter().collect())
    }
}

/// Creates a temporary folder. The folder is removed when the returned value is dropped.
pub(super) fn folder() -> Result<tempfile::TempDir> {
    tempfile::tempdir().map_err(|error| Error::io("a temporary folder", error))
}

#[cfg(test)]
mod tests {
    use amp_core::{
        data::{Batch, DataModule, Dataset},
        precision::Kernels,
        prelude::*,
        trainer::Check,
    };

    use crate::{
        DataSet, Registry,
        changes::Changes,
        gate::{Task, deadline::Deadline, job::Job, reason::Reason},
        length::Length,
        model, project,
    };

    #[derive(LightningModule)]
    #[forward(|x| head(&x.f_mean_dim([1].as_slice(), true, x.kind())?))]
    #[loss(mse_loss)]
    #[optimizer(sgd, lr = 0.1)]
    struct Mean {
        #[layer(linear(1, 1))]
        head: Linear,
    }

    /// A data set of sequences, each longer than the one before.
    struct Growing(i64);

    impl Dataset for Growing {
        type Batch = Batch;

        fn len(&self) -> i64 {
            self.0
        }

        fn gather(&mut self, indices: &[i64]) -> Result<Batch> {
            let longest = 100 * indices.iter().max().map_or(1, |last| last + 1);
            let ones =
                |width| Tensor::f_ones([indices.len() as i64, width], (Kind::Float, Device::Cpu));
            Batch::new(ones(longest)?, ones(1)?)
        }
    }

    fn growing(batch_size: i64) -> Result<DataModule> {
        Ok(DataModule::new("growing", Growing(64), Growing(8), batch_size).in_order())
    }

    /// Checks that a later batch that is larger, and so needs more memory, is not reported as a
    /// leak.
    #[test]
    fn larger_batches_are_not_a_leak() -> Result<()> {
        let model = model!(Mean).judged_by_loss().margin(1.0).batch_size(4);
        let data = DataSet::new("growing", growing);
        let registry = Registry::new(project!()).data_set(data).model(model);
        let job = Job {
            model: "Mean".into(),
            precision: Precision::Bf16Mixed,
            seed: 1,
            length: Length::Epochs(1),
            changes: Changes::default(),
            device: "cpu".into(),
            tf32: false,
            deterministic: false,
            kernels: Kernels::default(),
            check: Check::Off,
            task: Task::Path,
            overrides: Default::default(),
            fault: None,
        };
        let outcome = super::super::run(&job, &registry, &Deadline::default())?;
        let path = outcome.path.expect("a report");
        let judged = path.checked.iter().any(|checked| {
            checked.rule == Reason::Memory && checked.what.starts_with("smallest memory")
        });
        assert!(judged, "{:?}", path.checked);
        let leaks = outcome.failures.iter().filter(|failure| failure.reason == Reason::Memory);
        assert_eq!(leaks.count(), 0, "{:?}", outcome.failures);
        Ok(())
    }
}
