//! Runs a model over data sets without training it: validation, test and prediction.

use std::slice;

use super::{MemoryConfig, TrainerConfig, step::halves};
use crate::{
    Error, LightningModule, LossScope, Result, Step,
    data::{AnyBatch, DataLoader, DataModule, Limit, Sets},
    event::RunStart,
    ffi::{self, WatchedBroadcasts},
    hardware::Fingerprint,
    log::{Interval, Log, Logged, Media},
    nn::{Context, Evaluating},
    precision::Policy,
    provenance::Validation,
    random::EvaluationDraws,
    tch_panics::returned,
};

/// The loaders of the validation, test or prediction sets, each with the name of its set.
pub(super) struct Loaders(Vec<(String, DataLoader)>);

impl Loaders {
    pub(super) fn new(
        data: &DataModule,
        sets: &Sets,
        policy: Policy,
        limit: Limit,
    ) -> Result<Self> {
        let loader = |(name, set): (&str, _)| {
            let loader = data.loader(set, policy)?;
            let all = loader.batches();
            let loader = loader.limited(limit);
            if loader.batches() == 0 && matches!(limit, Limit::Fraction(part) if part > 0.0) {
                return Err(Error::config(format!(
                    "the limit {limit} leaves none of the {all} batches to evaluate: give a \
                     fraction of at least {:.4}, or a number of batches",
                    1.0 / all as f64
                )));
            }
            Ok((name.to_owned(), loader))
        };
        Ok(Self(sets.iter().map(loader).collect::<Result<_>>()?))
    }

    /// Returns loaders of the first batches of the training set, in order. A run with
    /// `overfit_batches` validates on these batches instead of the validation sets.
    pub(super) fn overfitting(data: &DataModule, policy: Policy, limit: Limit) -> Result<Self> {
        let loader = data.clone().in_order().train_loader(policy, 0)?.limited(limit);
        Ok(Self(vec![(String::new(), loader)]))
    }

    /// Returns the values of all logs, one log for each set. Appends the name of each set to the
    /// names of the values in its log. A further log, which belongs to no set, may follow; its
    /// values keep their names.
    fn values(&self, logs: &[Log]) -> Result<Vec<Logged>> {
        let mut values = Vec::new();
        let names = self.0.iter().map(|(name, _)| name.as_str()).chain([""]);
        for (set, log) in names.zip(logs) {
            for mut value in log.epoch_values()? {
                value.name = of_set(value.name, set);
                values.push(value);
            }
        }
        Ok(values)
    }

    /// Returns the number of bytes of the tensors that the loaders keep in memory.
    pub(super) fn held_bytes(&self) -> u64 {
        self.0.iter().map(|(_, loader)| loader.held_bytes()).sum()
    }

    /// Returns whether no set contains a batch.
    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|(_, loader)| loader.batches() == 0)
    }
}

/// The method of the model that an evaluation calls for each batch.
#[derive(Clone, Copy)]
pub(super) struct EvaluationStep {
    /// The name of the evaluation in error messages.
    name: &'static str,
    step: fn(&mut dyn LightningModule, &AnyBatch, &mut Step<'_>) -> Result<()>,
}

impl EvaluationStep {
    /// Runs the model's `validation_step`.
    pub(super) const VALIDATION: Self =
        Self { name: "validation", step: |model, batch, step| model.validation_step(batch, step) };
    /// Runs the model's `test_step`.
    pub(super) const TEST: Self =
        Self { name: "test", step: |model, batch, step| model.test_step(batch, step) };
}

/// Receives the images, texts and histograms of an evaluation, with their names.
pub(super) type Show<'s> = dyn FnMut(String, Media) -> Result<()> + 's;

/// Receives the name of a set, the index of a batch in the set, and the results for the parts of
/// the batch: one result, unless the batch did not fit into memory and was split.
type Then<'t, T> = dyn FnMut(&str, usize, Vec<T>) -> Result<()> + 't;

/// Returns the event that reports the start of a run. `parameters` is the number of trained
/// parameter elements.
pub(super) fn run_start(
    config: &TrainerConfig,
    model: &dyn LightningModule,
    data: &DataModule,
    parameters: i64,
) -> Result<RunStart> {
    Ok(RunStart {
        model: model.name().to_owned(),
        data: data.name.clone(),
        precision: config.precision,
        seed: config.seed,
        fingerprint: Fingerprint::of(config.device)?,
        hyperparameters: model.hyperparameters(),
        parameters,
    })
}

/// Runs a model over data sets, in evaluation mode and without gradients.
pub(super) struct Evaluator {
    policy: Policy,
    context: Context,
    global_step: u64,
    /// The number of parts into which each batch is split. It is doubled when a part does not fit
    /// into memory.
    parts: i64,
    memory: MemoryConfig,
}

impl Evaluator {
    pub(super) fn new(config: &TrainerConfig, policy: Policy, global_step: u64) -> Self {
        let context = Context::new(policy, false).with_overrides(config.numerics.overrides.clone());
        Self { policy, context, global_step, parts: 1, memory: config.memory.clone() }
    }

    /// Evaluates the model on each set, over at most `most` batches per set. Returns the logged
    /// values, with the name of the set appended to each name. After the last set, calls `last`,
    /// which may add values to the log of the first set. `show` receives images, texts and
    /// histograms.
    pub(super) fn evaluate(
        &mut self,
        model: &mut dyn LightningModule,
        step: EvaluationStep,
        loaders: &Loaders,
        most: Option<i64>,
        last: impl FnOnce(&mut dyn LightningModule, &mut Log) -> Result<()>,
        show: &mut Show<'_>,
    ) -> Result<Vec<Logged>> {
        let scope = |model: &dyn LightningModule| model.loss_scope();
        let EvaluationStep { name, step: run } = step;
        let mut logs =
            self.each_batch(name, model, loaders, most, scope, run, &mut |_, _, _| Ok(()), show)?;
        let mut none = Log::default();
        last(model, logs.first_mut().unwrap_or(&mut none))?;
        logs.push(none);
        for (name, media) in logs.iter_mut().flat_map(Log::take_media) {
            show(name, media)?;
        }
        loaders.values(&logs)
    }

    /// Repeats a validation up to the first value that is not finite. Returns a description of this
    /// value and its batch. Returns `None` if all values are finite.
    pub(super) fn explain(
        &mut self,
        model: &mut dyn LightningModule,
        loaders: &Loaders,
    ) -> Result<Option<String>> {
        let _draws = EvaluationDraws::begin(self.policy.device)?;
        let context = std::mem::replace(&mut self.context, Context::new(self.policy, false));
        let (validation, context) = Validation::observe(context);
        self.context = context;
        for (set, loader) in &loaders.0 {
            for (index, batch) in loader.epoch(0, 0)?.enumerate() {
                let (scope, interval) = (LossScope::Examples, Interval::of(false));
                let (_, found) = self.in_parts(&batch?, scope, interval, |runner, part, log| {
                    let mut step = Step::new(&runner.context, log, index, runner.global_step);
                    validation.find(model, part, &mut step)
                })?;
                if let Some(cause) = found.into_iter().flatten().next() {
                    let set = if set.is_empty() { "the set" } else { set };
                    return Ok(Some(format!("{cause} (batch {index} of {set})")));
                }
            }
        }
        Ok(None)
    }

    /// Predicts each batch in order, and calls `write` with the name of the set, the index of the
    /// batch in the set, and the predictions. Returns the values that the model logged. `show`
    /// receives images, texts and histograms.
    pub(super) fn predict(
        &mut self,
        model: &mut dyn LightningModule,
        loaders: &Loaders,
        write: &mut dyn FnMut(&str, usize, &AnyBatch) -> Result<()>,
        show: &mut Show<'_>,
    ) -> Result<Vec<Logged>> {
        let scope = |_: &dyn LightningModule| LossScope::Examples;
        let run = |model: &mut dyn LightningModule, batch: &AnyBatch, step: &mut Step<'_>| {
            model.predict_step(batch, step)
        };
        let mut write = |set: &str, index, outputs: Vec<AnyBatch>| {
            outputs.iter().try_for_each(|output| write(set, index, output))
        };
        let name = "prediction";
        let logs = self.each_batch(name, model, loaders, None, scope, run, &mut write, show)?;
        loaders.values(&logs)
    }

    /// Calls `run` for at most `most` batches of each set, and passes the results for the parts of
    /// each batch to `then`. Returns one log per set. An error names the evaluation (`name`) and the
    /// batch.
    #[expect(
        clippy::too_many_arguments,
        reason = "validation, test and prediction pass different values for each argument"
    )]
    fn each_batch<T>(
        &mut self,
        name: &str,
        model: &mut dyn LightningModule,
        loaders: &Loaders,
        most: Option<i64>,
        scope: impl Fn(&dyn LightningModule) -> LossScope,
        mut run: impl FnMut(&mut dyn LightningModule, &AnyBatch, &mut Step<'_>) -> Result<T>,
        then: &mut Then<'_, T>,
        show: &mut Show<'_>,
    ) -> Result<Vec<Log>> {
        let _draws = EvaluationDraws::begin(self.policy.device)?;
        let mut logs = Vec::with_capacity(loaders.0.len());
        for (set, loader) in &loaders.0 {
            let mut log = Log::default();
            let most = most.map_or(usize::MAX, |most| most as usize);
            for (index, batch) in loader.epoch(0, 0)?.take(most).enumerate() {
                let (scope, interval) = (scope(&*model), Interval::of(index == 0));
                let ran = self.in_parts(&batch?, scope, interval, |runner, part, own| {
                    let mut step = Step::new(&runner.context, own, index, runner.global_step);
                    returned(|| run(model, part, &mut step))
                });
                let (own, results) = ran.map_err(|error| {
                    error.in_batch(&match set.as_str() {
                        "" => format!("batch {index} of the {name} set"),
                        set => format!("batch {index} of the {name} set `{set}`"),
                    })
                })?;
                log.merge(own)?;
                for (name, media) in log.take_media() {
                    show(of_set(name, set), media)?;
                }
                then(set, index, results)?;
            }
            logs.push(log);
        }
        Ok(logs)
    }

    /// Runs a batch. If it does not fit into memory, splits it into parts, unless the loss or a
    /// tensor that all examples share does not allow this. Returns the log of the batch and the
    /// result for each part.
    fn in_parts<T>(
        &mut self,
        batch: &AnyBatch,
        scope: LossScope,
        interval: Interval,
        mut run: impl FnMut(&Self, &AnyBatch, &mut Log) -> Result<T>,
    ) -> Result<(Log, Vec<T>)> {
        let (_no_grad, _evaluating) = (tch::no_grad_guard(), Evaluating::begin());
        loop {
            let mut log = Log::at(interval.clone());
            let parts = batch.split(self.parts)?;
            let parts = parts.as_ref().map_or(slice::from_ref(batch), Vec::as_slice).iter();
            let outcome = parts.map(|part| {
                let _between = ffi::between_captures_on(self.policy.device);
                let _autocast = self.policy.autocast()?;
                WatchedBroadcasts::note_batch(part.of_examples())?;
                run(self, part, &mut log)
            });
            let outcome: Result<Vec<T>> = outcome.collect();
            let error = match outcome {
                Ok(given) => return Ok((log, given)),
                Err(error) => error,
            };
            // A memory budget would not help: it reduces only the memory of training steps.
            let remedy = "choose a smaller batch";
            if !halves(&self.memory, &error, batch, self.parts, scope, remedy)? {
                return Err(error);
            }
            self.parts *= 2;
            if self.policy.device.is_cuda() {
                ffi::cuda_empty_cache()?;
            }
        }
    }
}

/// Appends the name of the set to the name of a logged value. If the name of the set is empty,
/// returns the name unchanged.
fn of_set(name: String, set: &str) -> String {
    if set.is_empty() { name } else { format!("{name}/{set}") }
}
