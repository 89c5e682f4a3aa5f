//! Computes the gradient of each step's examples under 32-true, with the weights and the dropout
//! masks that the observed run has in this step. So it differs from the run's gradient only by the
//! rounding in this one step. The layers are not fused, and gradients are averaged over a step's
//! batches without the trainer. So the comparison also checks fused kernels and the trainer's
//! accumulation of gradients.

use std::{collections::BTreeMap, rc::Rc};

use amp_core::{
    LightningModule, Result, Step,
    data::AnyBatch,
    log::Log,
    nn::{self, Context, DroppedWeights, Role, named_tensors},
    precision::{AutocastGuard, GradScaler, Policy, Precision},
    random::RandomState,
    state::State,
    tch::{Device, Kind, Tensor, no_grad},
};

use super::{
    between::{Change, state_of},
    bounds::REPEATED,
    compared::{Compared, Figures, SHARE, larger, relative},
    dropout::Counter,
    final_state::{exact, exact_on},
};
use crate::{
    gate::conformance::emulation::Rounding,
    rounding::rounding_of,
    scalars::{read, square, square_of_difference},
};

/// A model under 32-true. Before each step it receives the weights of the observed run, and what
/// the run's hooks have changed.
pub(super) struct Reference {
    model: Box<dyn LightningModule>,
    policy: Policy,
    device: Device,
    /// The loss weight of the step's first batch with targets: the number of elements over which
    /// its loss is averaged. 0 until there is such a batch.
    unit: f64,
    /// The sum of the weights of the step's batches so far. The weight of a batch is the number of
    /// elements over which its loss is averaged, divided by `unit`, so that weights are near 1 and
    /// weighted gradients do not overflow.
    weight: f64,
    /// Whether a step has begun and not yet ended.
    within_step: bool,
    /// For each step so far, how far its gradient is from that of 32-true.
    pub(super) steps: Vec<Compared>,
    /// The largest relative difference, over the batches of this step, between this model's loss
    /// and the loss with which [`add`](Self::add) compares it.
    loss: f64,
    /// Whether the model uses random numbers in training.
    pub(super) draws: bool,
    /// Whether a pass ran other attention with dropout on CUDA than the observed run, so that it
    /// dropped other attention weights.
    pub(super) masks_differ: bool,
    /// Counts the elements that dropout sets to zero in the first batch.
    pub(super) dropout: Rc<Counter>,
    /// The rounding to emulate. `None` means that the model runs under 32-true without emulated
    /// rounding.
    rounding: Option<Rounding>,
    /// Whether the first step has begun.
    has_begun: bool,
}

/// What a batch of the observed run has drawn at random.
pub(super) struct Drawn {
    /// The state of the random generator before the forward pass.
    pub(super) random: RandomState,
    /// The dropout masks of attention on CUDA, which do not depend on `random` alone.
    pub(super) dropped: DroppedWeights,
}

/// A batch of the current step as the models under 32-true received it, from which
/// [`Reference::again`] repeats the step.
pub(super) struct Passed {
    pub(super) batch: AnyBatch,
    /// The index of the batch, and the number of steps before it.
    pub(super) place: (usize, u64),
    pub(super) drawn: Drawn,
    /// The model's loss under 32-true.
    pub(super) loss: f64,
    /// What the hooks of the observed run had set before the batch: the run's state, and the buffers
    /// that changed since the previous batch.
    pub(super) state: State,
    pub(super) changes: Vec<Change>,
}

impl Reference {
    pub(super) fn new(model: Box<dyn LightningModule>, device: Device) -> Result<Self> {
        let policy = Policy::new(Precision::F32True, device);
        nn::place(model.as_ref(), policy, &BTreeMap::new())?;
        Ok(Self {
            model,
            policy,
            device,
            unit: 0.0,
            weight: 0.0,
            within_step: false,
            steps: Vec::new(),
            loss: 0.0,
            draws: false,
            masks_differ: false,
            dropout: Rc::default(),
            rounding: None,
            has_begun: false,
        })
    }

    /// Makes the passes of this model emulate the rounding of a precision.
    pub(super) fn rounding(self, rounding: Rounding) -> Self {
        Self { rounding: Some(rounding), ..self }
    }

    /// Copies the run's weights before the first batch of a step. Parameters that the run has not
    /// trained yet are frozen here too. If the run freezes a parameter again, its gradient is still
    /// computed here, so the comparison detects a parameter that was frozen by mistake.
    fn begin(&mut self, run: &dyn LightningModule) -> Result<()> {
        let is_first = !std::mem::replace(&mut self.has_begun, true);
        let own = named_tensors(self.model.as_ref());
        for ((_, own, role), (_, run, _)) in own.into_iter().zip(named_tensors(run)) {
            if role == Role::Parameter {
                no_grad(|| own.shallow_clone().f_copy_(&run.f_detach()?))?;
                if is_first || run.requires_grad() {
                    let _ = own.f_set_requires_grad(run.requires_grad())?;
                }
            }
        }
        self.start()
    }

    /// Draws the rounding of the weights for a step, and clears the gradients.
    fn start(&mut self) -> Result<()> {
        if let Some(rounding) = &mut self.rounding {
            rounding.begin(self.model.as_ref())?;
        }
        self.unit = 0.0;
        self.clear()
    }

    /// Repeats the step whose batches were `window`, with other random rounding. `buffers` are the
    /// run's buffers from before the step.
    fn again(&mut self, window: &[Passed], buffers: &BTreeMap<String, Tensor>) -> Result<()> {
        for (name, mut own, _) in named_tensors(self.model.as_ref()) {
            if let Some(before) = buffers.get(&name) {
                no_grad(|| own.f_copy_(before))?;
            }
        }
        self.start()?;
        for passed in window {
            self.follow(&passed.state, &passed.changes)?;
            self.pass(&passed.batch, passed.place, &passed.drawn, passed.loss)?;
        }
        Ok(())
    }

    /// Receives what the hooks of the observed run have set before the next batch: the run's state,
    /// and the buffers that changed since the last batch.
    pub(super) fn follow(&mut self, state: &State, changes: &[Change]) -> Result<()> {
        self.model.on_load_checkpoint(state)?;
        if changes.is_empty() {
            return Ok(());
        }
        for (name, mut own, _) in named_tensors(self.model.as_ref()) {
            if let Some(change) = changes.iter().find(|change| change.name == name) {
                no_grad(|| own.f_copy_(&change.after.f_detach()?))?;
            }
        }
        Ok(())
    }

    /// Returns the batch as this model receives it.
    pub(super) fn placed(&self, batch: &AnyBatch) -> Result<AnyBatch> {
        batch.place(self.policy)
    }

    fn clear(&self) -> Result<()> {
        for parameter in nn::parameters(self.model.as_ref()) {
            let mut gradient = parameter.tensor.f_grad()?;
            if gradient.defined() {
                let _ = gradient.f_zero_()?;
            }
        }
        Ok(())
    }

    /// Runs a forward and a backward pass for a batch of the observed run. `drawn` makes dropout set
    /// the same elements to zero as in that run. `loss` is compared with this model's loss, which is
    /// returned. It is the observed run's loss, or, if this model emulates rounding, the loss under
    /// 32-true.
    pub(super) fn add(
        &mut self,
        run: &dyn LightningModule,
        batch: &AnyBatch,
        place: (usize, u64),
        drawn: &Drawn,
        loss: f64,
    ) -> Result<f64> {
        if !std::mem::replace(&mut self.within_step, true) {
            self.begin(run)?;
        }
        self.pass(batch, place, drawn, loss)
    }

    fn pass(
        &mut self,
        batch: &AnyBatch,
        (index, global_step): (usize, u64),
        drawn: &Drawn,
        loss: f64,
    ) -> Result<f64> {
        let now = RandomState::read(self.device)?;
        drawn.random.restore(self.device)?;
        let denominator = self.model.loss_weight(batch)?;
        self.unit = if self.unit > 0.0 { self.unit } else { denominator };
        let weight = if denominator > 0.0 { denominator / self.unit } else { 0.0 };
        let own = {
            let _off = AutocastGuard::off(self.device)?;
            let mut context = Context::new(self.policy, true).with_probe(self.dropout.clone());
            if !drawn.dropped.is_empty()? {
                // The masks apply to the forward pass, not to a recomputation.
                context = context.without_checkpointing();
            }
            if let Some(rounding) = &self.rounding {
                context = context.with_substitute(rounding.between());
            }
            let mut log = Log::default();
            let mut step = Step::new(&context, &mut log, index, global_step);
            let operators = self.rounding.as_ref().map(Rounding::operators).transpose()?;
            let following = drawn.dropped.follow()?;
            let own = self.model.training_step(&self.placed(batch)?, &mut step)?;
            drop((operators, following));
            let (own, descended) = match &self.rounding {
                Some(rounding) => rounding.loss(&own)?,
                None => (own.shallow_clone(), own),
            };
            // A batch without weight, for example without targets, contributes no gradient.
            if weight > 0.0 {
                let weighed = descended.f_mul_scalar(weight)?;
                GradScaler::disabled(self.device)?.scale(&weighed)?.backward()?;
            }
            own
        };
        self.draws |= !RandomState::read(self.device)?.is_same(&drawn.random)?;
        now.restore(self.device)?;
        self.dropout.end();
        self.weight += weight;
        let own = own.f_double_value(&[])?;
        if weight > 0.0 {
            self.loss = larger(self.loss, relative(loss, own));
        }
        Ok(own)
    }

    /// Ends a step. Compares the observed run's `gradients`, and those of the models `rounded` with
    /// emulated rounding, with the gradients of this model. Stores no comparison if all batches of
    /// the step have the weight 0. With `repeats`, the models with emulated rounding run the step
    /// again until there are [`REPEATED`] passes of it.
    pub(super) fn compare(
        &mut self,
        gradients: &[BTreeMap<String, Tensor>],
        models: &mut [Self],
        repeats: Option<(&[Passed], &BTreeMap<String, Tensor>)>,
    ) -> Result<()> {
        let mut rounded = Vec::new();
        for model in models.iter_mut() {
            rounded.push(self.pass_of(model)?);
        }
        if let Some((window, buffers)) = repeats {
            for at in (0..models.len()).cycle().take(REPEATED.saturating_sub(rounded.len())) {
                models[at].again(window, buffers)?;
                rounded.push(self.pass_of(&mut models[at])?);
            }
        }
        let loss = std::mem::take(&mut self.loss);
        let found = Figures { loss, ..self.figures(gradients)? };
        self.within_step = false;
        if std::mem::take(&mut self.weight) > 0.0 {
            self.steps.push(Compared { found, rounded });
        }
        Ok(())
    }

    /// Compares the pass that `model` has made of the step with emulated rounding.
    fn pass_of(&self, model: &mut Self) -> Result<Figures> {
        let loss = std::mem::take(&mut model.loss);
        Ok(Figures { loss, ..self.figures(&[model.rounded_gradients()?])? })
    }

    /// Returns the mean gradients over the batches of the step, rounded as the precision rounds
    /// gradients.
    fn rounded_gradients(&mut self) -> Result<BTreeMap<String, Tensor>> {
        self.within_step = false;
        let weight = std::mem::take(&mut self.weight);
        let mut all = BTreeMap::new();
        let Some(rounding) = &mut self.rounding else { return Ok(all) };
        for parameter in nn::parameters(self.model.as_ref()) {
            let gradient = parameter.tensor.f_grad()?;
            if gradient.defined() {
                let mean = no_grad(|| gradient.f_div_scalar(weight))?;
                all.insert(parameter.name.clone(), rounding.gradient(&parameter.name, &mean)?);
            }
        }
        rounding.restore()?;
        Ok(all)
    }

    fn figures(&self, gradients: &[BTreeMap<String, Tensor>]) -> Result<Figures> {
        let mut sums = Vec::new();
        for parameter in nn::parameters(self.model.as_ref()) {
            let reference = parameter.tensor.f_grad()?;
            let found = gradients.iter().find_map(|by_name| by_name.get(&parameter.name));
            if !reference.defined() {
                continue;
            }
            let reference = exact(&reference)?.f_div_scalar(self.weight)?;
            let found = match found {
                Some(found) => exact_on(reference.device(), found)?,
                None => reference.f_zeros_like()?,
            };
            let product = no_grad(|| found.f_mul(&reference)?.f_sum(Kind::Double))?;
            sums.extend([product, square(&reference)?, square_of_difference(&found, &reference)?]);
        }
        let sums = read(&sums)?;
        let each: Vec<(f64, f64, f64)> = sums.chunks(3).map(|of| (of[0], of[1], of[2])).collect();
        let both = each.iter().map(|(product, ..)| product).sum::<f64>();
        let own = each.iter().map(|(_, square, _)| square).sum::<f64>();
        let off = each.iter().map(|(.., off)| off).sum::<f64>();
        let large = each.iter().filter(|(_, square, _)| square.sqrt() >= SHARE * own.sqrt());
        let parameters = large
            .map(|(product, square, off)| ((product / square - 1.0).abs(), (off / square).sqrt()));
        let (parameter, parameter_error) =
            parameters.fold((0.0, 0.0), |most, one| (larger(most.0, one.0), larger(most.1, one.1)));
        let projection = (both / own - 1.0).abs();
        let error = (off / own).sqrt();
        Ok(Figures { projection, parameter, error, parameter_error, loss: 0.0 })
    }

    /// Returns the name of the run's buffer that differs most from the same buffer under 32-true,
    /// and the relative difference minus 20 unit roundoffs. (A running average with momentum 0.1
    /// contains the rounding errors of about ten steps, which may be as large as that.) `run` has
    /// the run's buffers after its last step.
    pub(super) fn buffers(&self, run: &BTreeMap<String, Tensor>) -> Result<Option<(String, f64)>> {
        let (mut buffers, mut sums) = (Vec::new(), Vec::new());
        for (name, own, role) in named_tensors(self.model.as_ref()) {
            let Some(run) = run.get(&name).filter(|_| role == Role::Buffer) else { continue };
            sums.extend([square_of_difference(run, &own)?, square(&own)?]);
            buffers.push((name, 20.0 * rounding_of(run.kind())));
        }
        let mut worst: Option<(String, f64)> = None;
        for ((name, kept), of) in buffers.into_iter().zip(read(&sums)?.chunks(2)) {
            let (off, size) = (of[0], of[1]);
            let away = if off == 0.0 { 0.0 } else { ((off / size).sqrt() - kept).max(0.0) };
            if worst.as_ref().is_none_or(|(_, most)| away.is_nan() || away > *most) {
                worst = Some((name, away));
            }
        }
        Ok(worst)
    }

    /// Copies the weights, the buffers and the state of a run into this model under 32-true, and
    /// returns the model.
    pub(super) fn into_model(
        mut self,
        run: &dyn LightningModule,
    ) -> Result<Box<dyn LightningModule>> {
        let own = named_tensors(self.model.as_ref());
        for ((_, own, _), (_, run, _)) in own.into_iter().zip(named_tensors(run)) {
            let kind = own.kind();
            no_grad(|| own.shallow_clone().f_copy_(&run.f_detach()?.f_to_kind(kind)?))?;
        }
        self.model.on_load_checkpoint(&state_of(run)?)?;
        Ok(self.model)
    }
}

#[cfg(test)]
mod tests;
