//! Observes each step of a run and checks the rules of the training path. The results of the checks
//! also apply to the unobserved run, because the two runs must end with the same bits.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use amp_core::{
    Hook, LightningModule, Result, Step,
    callback::{Action, Callback, Epoch},
    data::AnyBatch,
    nn::{DroppedWeights, Role, named_tensors},
    optim::{Optimizers, TrainingPlan},
    precision::{Clip, Gradients, StepOutcome, Unscaled},
    random::RandomState,
    state::State,
    tch::{Device, Tensor},
    trainer::StepAccess,
};

use super::{
    between::{Change, Kept, state_of},
    reference::{Drawn, Passed, Reference},
    replay::{Replay, Wrong},
    rules::ScaleRule,
};
use crate::{
    gate::{
        hooks::{copies, copy_of, rates},
        reason::{Failure, Reason},
    },
    interceptor::Interceptor,
    scalars::{all_equal, all_finite, read, square},
};

/// What the observer of a run needs to check a step, and what it has found so far.
pub(super) struct Observation {
    pub(super) device: Device,
    pub(super) clip: Option<Clip>,
    /// A second build of the model, on which `replay` repeats the run's optimizer steps in float64.
    /// It is passed to `replay` when the run creates its optimizers.
    copy: Option<Box<dyn LightningModule>>,
    pub(super) replay: Option<Replay>,
    /// The reason why the optimizer steps cannot be repeated in float64. `None` if they can.
    pub(super) no_replay: Option<String>,
    pub(super) reference: Option<Reference>,
    /// Copies of the observed model that run in 32-true and emulate the rounding of the precision,
    /// each with other random numbers. Their gradients show how much rounding alone changes the
    /// gradients of the observed model.
    pub(super) rounded: Vec<Reference>,
    /// The steps that `rounded` runs more often than other steps, by their index in
    /// `reference.steps`.
    pub(super) repeated: BTreeSet<usize>,
    /// The batches of the current step so far, if the step is to be repeated.
    window: Vec<Passed>,
    /// Copies of the buffers from before the current step, if the step is to be repeated.
    start: BTreeMap<String, Tensor>,
    pub(super) scale: Option<ScaleRule>,
    pub(super) failures: Vec<Failure>,
    /// The gradient norms of the applied steps, before clipping.
    pub(super) norms: Vec<f64>,
    pub(super) applied: u64,
    pub(super) skipped: u64,
    /// The number of steps that the run has attempted so far, including skipped steps.
    attempts: u64,
    /// The gradients of the current step. Each optimizer has one map, from the name of a parameter
    /// to its gradient.
    gradients: Vec<BTreeMap<String, Tensor>>,
    /// For each batch of the current step, its weight in the step's loss, and whether its loss is
    /// finite.
    losses: Vec<(f64, bool)>,
    /// Copies of the model's buffers after the latest step, if the run is compared with a reference
    /// (a model under 32-true). They are copied during the run, because weight averaging (EMA, SWA)
    /// may replace the buffers when the run ends.
    pub(super) buffers: BTreeMap<String, Tensor>,
    /// Copies of the model's tensors from before the first batch of the current step.
    before: Vec<Before>,
    /// Copies of the buffers after the latest batch, if the run is compared with a reference.
    kept: Option<Kept>,
    /// The learning rates after the previous step.
    rates: Vec<f64>,
    /// Whether the first batch of the current step has begun.
    begun: bool,
}

/// A tensor of the model, and a copy (`held`) of its values from before the step.
struct Before {
    name: String,
    role: Role,
    held: Tensor,
    tensor: Tensor,
}

/// Observes a run in two roles. As an interceptor it receives the batches. As a callback it
/// receives the gradients and the outcomes of steps.
#[derive(Clone)]
pub(super) struct Observer(pub(super) Rc<RefCell<Observation>>);

impl Observation {
    pub(super) fn new(
        device: Device,
        clip: Option<Clip>,
        copy: Option<Box<dyn LightningModule>>,
    ) -> Self {
        Self {
            device,
            clip,
            copy,
            replay: None,
            no_replay: None,
            reference: None,
            rounded: Vec::new(),
            repeated: BTreeSet::new(),
            window: Vec::new(),
            start: BTreeMap::new(),
            scale: None,
            failures: Vec::new(),
            norms: Vec::new(),
            applied: 0,
            skipped: 0,
            attempts: 0,
            gradients: Vec::new(),
            losses: Vec::new(),
            buffers: BTreeMap::new(),
            before: Vec::new(),
            kept: None,
            rates: Vec::new(),
            begun: false,
        }
    }

    /// Adds a failure, unless there already is a failure of the same rule.
    fn fail(&mut self, reason: Reason, text: impl Into<String>) {
        if self.failures.iter().all(|failure| failure.reason != reason) {
            let text = format!("step {}: {}", self.attempts, text.into());
            self.failures.push(Failure::new(reason, text));
        }
    }

    /// Returns whether the loss of the current step is finite. A batch of weight 0, for example a
    /// batch without targets, is ignored if another batch of the step has a weight above 0.
    fn has_finite_loss(&self) -> bool {
        let counts = self.losses.iter().any(|(weight, _)| *weight > 0.0);
        self.losses.iter().all(|(weight, finite)| *finite || counts && *weight == 0.0)
    }

    fn step_of(&mut self, outcome: &StepOutcome, hook: &Hook<'_>) -> Result<()> {
        let gradients = std::mem::take(&mut self.gradients);
        let all = || gradients.iter().flat_map(BTreeMap::values);
        let finite = all_finite(all())? && self.has_finite_loss();
        let rates = rates(hook);
        let is_left_out = self.is_left_out(outcome);
        match outcome {
            StepOutcome::Applied => {
                self.applied += 1;
                if !finite {
                    self.fail(Reason::Skip, "it was applied although a gradient is not finite");
                }
                let squares = all().map(square).collect::<Result<Vec<_>>>()?;
                self.norms.push(read(&squares)?.into_iter().sum::<f64>().sqrt());
            }
            StepOutcome::Skipped { .. } => {
                self.skipped += 1;
                if finite {
                    self.fail(Reason::Skip, "it was skipped although all gradients are finite");
                }
                self.check_unchanged()?;
                if rates != self.rates {
                    self.fail(Reason::Schedule, "a skipped step changed the learning rate");
                }
            }
        }
        if let Some(rule) = &mut self.scale {
            let expected = if is_left_out { rule.now() } else { rule.after(outcome) };
            let found = hook.scale;
            if found != Some(expected) {
                let found = found.unwrap_or(1.0);
                self.fail(
                    Reason::Scale,
                    format!(
                        "the loss scale is {found}, but the rule of the loss scaler gives \
                        {expected}"
                    ),
                );
                self.scale = None;
            }
        }
        self.rates = rates;
        Ok(())
    }

    /// Returns whether the step with this outcome was skipped because all its batches have the
    /// weight 0: none of them has a target. Such a step does not change the loss scale.
    fn is_left_out(&self, outcome: &StepOutcome) -> bool {
        let counts = self.losses.iter().any(|(weight, _)| *weight > 0.0);
        *outcome != StepOutcome::Applied && !counts
    }

    /// Repeats an applied step in float64, and compares weights, optimizer state and learning
    /// rates. Called before the model's hooks run, because they may change weights.
    fn repeat(&mut self, model: &dyn LightningModule, hook: &Hook<'_>) -> Result<()> {
        let Some(replay) = &mut self.replay else { return Ok(()) };
        replay.step(&self.gradients)?;
        match replay.compare(hook.optimizers())? {
            None => return replay.keep(model),
            Some(Wrong::Rates(text)) => self.fail(Reason::Schedule, text),
            Some(Wrong::Update(text)) => self.fail(Reason::Update, text),
        }
        // The replay ends at the first difference, because later differences would only follow from
        // the first one.
        self.replay = None;
        Ok(())
    }

    /// Finds what hooks of the model have changed since the latest batch. Applies these changes to
    /// the models of the replay and of the references, which run no hooks. Returns the changes of
    /// the references.
    fn follow(&mut self, model: &dyn LightningModule) -> Result<(State, Vec<Change>)> {
        if let Some(replay) = self.replay.as_mut().filter(|_| !self.begun) {
            replay.follow(model)?;
        }
        let (Some(reference), Some(kept)) = (&mut self.reference, &self.kept) else {
            return Ok(Default::default());
        };
        let (state, changes) = (state_of(model)?, kept.changes(model)?);
        for copy in self.rounded.iter_mut().chain([reference]) {
            copy.follow(&state, &changes)?;
        }
        Ok((state, changes))
    }

    /// Returns whether the current step is to be repeated.
    fn repeats(&self, reference: &Reference) -> bool {
        self.repeated.contains(&reference.steps.len())
    }

    /// Checks that a skipped step changed neither weights nor buffers.
    fn check_unchanged(&mut self) -> Result<()> {
        let before = std::mem::take(&mut self.before);
        if all_equal(before.iter().map(|own| (&own.held, &own.tensor)))? {
            return Ok(());
        }
        for Before { name, role, held, tensor } in before {
            if !held.f_equal(&tensor.f_detach()?)? {
                let what = if role == Role::Parameter { "weight" } else { "buffer" };
                self.fail(Reason::Skip, format!("a skipped step changed the {what} `{name}`"));
                break;
            }
        }
        Ok(())
    }
}

impl Interceptor for Observer {
    fn step_access(&self) -> StepAccess {
        StepAccess::InStep("the gate observes the steps")
    }

    fn optimizers(&self, model: &dyn LightningModule, plan: &TrainingPlan) -> Result<Optimizers> {
        let mut observation = self.0.borrow_mut();
        if let Some(copy) = observation.copy.take() {
            match Replay::new(copy, model, plan, observation.clip) {
                Ok(replay) => observation.replay = Some(replay),
                Err(error) => observation.no_replay = Some(error.to_string()),
            }
        }
        if observation.reference.is_some() {
            observation.kept = Some(Kept::of(model, Role::Buffer)?);
        }
        drop(observation);
        model.configure_optimizers(plan)
    }

    fn training_step(
        &mut self,
        model: &mut dyn LightningModule,
        batch: &AnyBatch,
        step: &mut Step<'_>,
    ) -> Result<Tensor> {
        let mut observation = self.0.borrow_mut();
        let buffers = observation.kept.as_ref().map(Kept::shallow_copies).unwrap_or_default();
        let (state, changes) = observation.follow(model)?;
        if !observation.begun {
            observation.begun = true;
            observation.attempts += 1;
            observation.losses.clear();
            observation.window.clear();
            observation.start = buffers;
            observation.before = named_tensors(model)
                .into_iter()
                .map(|(name, tensor, role)| {
                    Ok(Before { name, role, held: copy_of(&tensor)?, tensor })
                })
                .collect::<Result<_>>()?;
        }
        let random = RandomState::read(observation.device)?;
        let place = step.place();
        let dropped = DroppedWeights::new()?;
        let recording = observation.reference.is_some().then(|| dropped.record()).transpose()?;
        let loss = model.training_step(batch, step)?;
        drop(recording);
        let counted = (model.loss_weight(batch)?, all_finite([&loss])?);
        observation.losses.push(counted);
        if let Some(mut reference) = observation.reference.take() {
            let drawn = Drawn { random, dropped };
            let own = reference.add(model, batch, place, &drawn, loss.f_double_value(&[])?)?;
            for rounded in &mut observation.rounded {
                rounded.add(model, batch, place, &drawn, own)?;
            }
            reference.masks_differ |= drawn.dropped.differ()?;
            if observation.repeats(&reference) {
                let batch = reference.placed(batch)?;
                observation.window.push(Passed { batch, place, drawn, loss: own, state, changes });
            }
            observation.reference = Some(reference);
            observation.kept = Some(Kept::of(model, Role::Buffer)?);
        }
        Ok(loss)
    }

    fn after_step(
        &mut self,
        model: &dyn LightningModule,
        outcome: &StepOutcome,
        hook: &Hook<'_>,
    ) -> Result<()> {
        let mut observation = self.0.borrow_mut();
        if *outcome == StepOutcome::Applied {
            observation.repeat(model, hook)?;
        }
        if observation.reference.is_some() {
            observation.buffers = Kept::of(model, Role::Buffer)?.copies;
        }
        Ok(())
    }
}

impl Callback for Observer {
    fn name(&self) -> String {
        "the gate".into()
    }

    fn step_access(&self) -> StepAccess {
        StepAccess::InStep("the gate observes the steps")
    }

    fn on_train_epoch_start(&mut self, hook: &mut Hook<'_>) -> Result<()> {
        // Reads the learning rates again, because schedules may have advanced between epochs.
        self.0.borrow_mut().rates = rates(hook);
        Ok(())
    }

    fn on_epoch_end(&mut self, epoch: &Epoch<'_>) -> Result<Vec<Action>> {
        if let Some(replay) = &mut self.0.borrow_mut().replay {
            replay.end_epoch(&[epoch.end.train.as_slice(), &epoch.end.val].concat())?;
        }
        Ok(Vec::new())
    }

    fn on_before_optimizer_step(
        &mut self,
        gradients: &Gradients<Unscaled>,
        _: &mut Hook<'_>,
    ) -> Result<()> {
        self.0.borrow_mut().gradients.push(copies(gradients)?);
        Ok(())
    }

    fn on_train_batch_end(
        &mut self,
        outcome: Option<&StepOutcome>,
        hook: &mut Hook<'_>,
    ) -> Result<Vec<Action>> {
        let Some(outcome) = outcome else { return Ok(Vec::new()) };
        let mut observation = self.0.borrow_mut();
        observation.begun = false;
        if let Some(mut reference) = observation.reference.take() {
            let repeats = observation.repeats(&reference);
            let Observation { gradients, rounded, window, start, .. } = &mut *observation;
            reference.compare(
                gradients,
                rounded,
                repeats.then_some((window.as_slice(), &*start)),
            )?;
            observation.reference = Some(reference);
        }
        observation.step_of(outcome, hook)?;
        Ok(Vec::new())
    }
}
