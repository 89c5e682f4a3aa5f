//! Processes the gradients in a step: unscales, clips and applies them.

use tch::Tensor;

use crate::{
    Error, Result,
    log::Logged,
    loss,
    module::{StepAccess, Update},
    optim::{Interval, OnDevice, Optimizer, Scheduled},
    precision::{
        Clip, Deferred, GradScaler, GradientStorage, Gradients, Kernels, NarrowGradients, Scaled,
        StepOutcome, Unscaled, upcast_gradients,
    },
    trainer::config::{NonFinite, TrainerConfig},
};

/// The optimizers of a run with their schedules, and the loss scaler.
pub(in crate::trainer) struct Optimization<'a> {
    config: &'a TrainerConfig,
    pub(in crate::trainer) scheduled: Vec<Scheduled>,
    pub(in crate::trainer) scaler: GradScaler,
    /// The guard that allows 16-bit gradients of f32 parameters. `None` if gradients are stored in
    /// the parameters' dtype.
    narrow: Option<NarrowGradients>,
    /// For each optimizer that adds gradients over manual steps, the loss scale of these gradients.
    accumulating: Vec<Option<f64>>,
    /// Whether a manual step has computed gradients that no optimizer used.
    pub(super) has_dropped_gradients: bool,
    /// When the run must call its observers: within the step, directly after each step, or later,
    /// when further steps may already be running. If observers differ, the strictest requirement
    /// counts.
    pub(in crate::trainer) access: StepAccess,
}

impl<'a> Optimization<'a> {
    pub(in crate::trainer) fn new(
        config: &'a TrainerConfig,
        scheduled: Vec<Scheduled>,
        access: StepAccess,
    ) -> Result<Self> {
        let scaler = match config.precision.scales_loss() {
            true => GradScaler::new(config.device, config.numerics.scaler)?,
            false if config.recovery.on_non_finite == NonFinite::Ignore => {
                GradScaler::disabled(config.device)?
            }
            false => GradScaler::checking(config.device)?,
        };
        let narrow = match keeps_16_bit_gradients(config) {
            true => Some(NarrowGradients::allow(
                scheduled.iter().flat_map(|scheduled| scheduled.optimizer.parameters().iter()),
            )?),
            false => None,
        };
        let accumulating = vec![None; scheduled.len()];
        let has_dropped_gradients = false;
        Ok(Self { config, scheduled, scaler, narrow, accumulating, has_dropped_gradients, access })
    }

    /// Stores gradients in f32 from now on, even if the options request 16 bits.
    pub(in crate::trainer) fn keep_full_gradients(&mut self) {
        self.narrow = None;
    }

    /// Returns the loss scale. Returns `None` if the precision does not scale the loss.
    pub(in crate::trainer) fn scale(&self) -> Option<f64> {
        self.scaler.is_enabled().then(|| self.scaler.scale_value())
    }

    /// Returns the learning rate of the first optimizer's first parameter group, which a progress
    /// line shows.
    pub(in crate::trainer) fn lr(&self) -> f64 {
        self.scheduled.first().map_or(0.0, |first| first.optimizer.rates()[0].lr)
    }

    pub(in crate::trainer) fn zero_grad(&mut self) -> Result<()> {
        self.scheduled.iter_mut().try_for_each(|scheduled| scheduled.optimizer.zero_grad())
    }

    /// Drops the gradients of all optimizers that do not add gradients over manual steps. Returns
    /// whether that is all of them.
    pub(super) fn drop_gradients(&mut self) -> Result<bool> {
        for (scheduled, accumulating) in self.scheduled.iter_mut().zip(&self.accumulating) {
            if accumulating.is_none() {
                scheduled.optimizer.zero_grad()?;
            }
        }
        Ok(self.accumulating.iter().all(Option::is_none))
    }

    /// Creates the optimizer state of parameters that were unfrozen.
    pub(in crate::trainer) fn extend(&mut self) -> Result<()> {
        self.scheduled.iter_mut().try_for_each(|scheduled| scheduled.optimizer.extend_state())
    }

    /// Undoes [`extend`](Self::extend), after the parameters were frozen again.
    pub(in crate::trainer) fn drop_unused(&mut self) {
        self.scheduled.iter_mut().for_each(|scheduled| scheduled.optimizer.drop_unused_state());
    }

    /// Returns whether a hook reads the unclipped gradients within the step.
    pub(in crate::trainer) fn is_watched(&self) -> bool {
        matches!(self.access, StepAccess::InStep(_))
    }

    /// Unscales the gradients of each optimizer and returns them, so that hooks can read them.
    pub(in crate::trainer) fn unscale(&mut self) -> Result<Vec<Gradients<Unscaled>>> {
        let mut gradients = Vec::with_capacity(self.scheduled.len());
        for scheduled in &self.scheduled {
            let optimizer = scheduled.optimizer.as_ref();
            if self.narrow.is_some() {
                upcast_gradients(optimizer.parameters())?;
            }
            let scaled = self.scaler.gradients(optimizer)?;
            if !scaled.is_empty() {
                gradients.push(self.scaler.unscale(scaled)?);
            }
        }
        some(gradients)
    }

    /// Clips gradients that the hooks have read. Each optimizer's gradients have their own norm, as
    /// in Lightning.
    pub(in crate::trainer) fn clip(
        &self,
        gradients: Vec<Gradients<Unscaled>>,
    ) -> Result<Vec<Gradients<Deferred>>> {
        let clip = |gradients: Gradients<Unscaled>| {
            let limit = self.config.optimization.gradient_clip;
            limit.map_or(Ok(()), |clip| gradients.clip(clip))?;
            Ok(gradients.into())
        };
        gradients.into_iter().map(clip).collect()
    }

    /// Unscales and clips the gradients of a step in which no hook reads the unclipped gradients.
    /// To save passes over the gradients, leaves them scaled if the optimizer's kernel can unscale
    /// and clip them itself. In a `captured` step (a step captured as a CUDA graph), an optimizer
    /// that steps after the graph cannot do this.
    pub(in crate::trainer) fn unscale_and_clip(
        &mut self,
        captured: bool,
    ) -> Result<Vec<Gradients<Deferred>>> {
        // An observer that runs directly after the step may read the gradients. They may stay
        // scaled only if there is no such observer.
        let may_defer = matches!(self.access, StepAccess::Deferred);
        let limit = match self.config.optimization.gradient_clip {
            Some(Clip::Norm(limit)) => Some(limit),
            // Nothing is clipped, but the kernel of the optimizer must still unscale the gradients.
            None if self.scaler.is_enabled() => Some(f64::INFINITY),
            _ => None,
        };
        let mut gradients = Vec::with_capacity(self.scheduled.len());
        for scheduled in &self.scheduled {
            let optimizer = scheduled.optimizer.as_ref();
            let able = optimizer.capabilities();
            let multiplies = able.scales && (able.captures || !captured);
            let deferred = limit.filter(|_| may_defer && multiplies);
            if deferred.is_none() && self.narrow.is_some() {
                upcast_gradients(optimizer.parameters())?;
            }
            let scaled = self.scaler.gradients(optimizer)?;
            if scaled.is_empty() {
                continue;
            }
            gradients.push(match (deferred, self.config.optimization.gradient_clip) {
                (Some(limit), _) => self.scaler.defer(scaled, limit)?,
                (None, Some(Clip::Norm(limit))) => {
                    self.scaler.unscale_and_clip_norm(scaled, limit)?.into()
                }
                (None, clip) => {
                    let unscaled = self.scaler.unscale(scaled)?;
                    clip.map_or(Ok(()), |clip| unscaled.clip(clip))?;
                    unscaled.into()
                }
            });
        }
        some(gradients)
    }

    /// Steps each optimizer that has gradients, or none if a gradient is not finite. Updates the
    /// loss scale in both cases. The schedule of an optimizer advances with its steps and, with
    /// `skipped_step_advances`, also in skipped steps.
    pub(in crate::trainer) fn apply(
        &mut self,
        gradients: Vec<Gradients<Deferred>>,
    ) -> Result<StepOutcome> {
        let Self { scheduled, scaler, config, .. } = self;
        let stepped: Vec<bool> =
            scheduled.iter().map(|one| has_gradients(&gradients, one.optimizer.as_ref())).collect();
        let optimizers = scheduled.iter_mut().zip(&stepped).filter(|(_, stepped)| **stepped);
        let optimizers = optimizers.map(|(scheduled, _)| scheduled.optimizer.as_mut());
        let outcome = scaler.step_all(gradients.into_iter().zip(optimizers).collect())?;
        if outcome == StepOutcome::Applied || config.recovery.skipped_step_advances {
            for (scheduled, _) in
                scheduled.iter_mut().zip(&stepped).filter(|(_, stepped)| **stepped)
            {
                scheduled.advance(Interval::Step, &[])?;
            }
        }
        // All gradients come from backward passes with the same scale, so the scale is updated
        // once, after all optimizers.
        self.scaler.update()?;
        Ok(outcome)
    }

    /// Steps those optimizers whose step can be captured in a CUDA graph. If `skip_flag` is not 0,
    /// their steps change nothing. Returns for each optimizer whether it has gradients.
    pub(in crate::trainer) fn apply_captured(
        &mut self,
        gradients: &[Gradients<Deferred>],
        skip_flag: &Tensor,
    ) -> Result<Vec<bool>> {
        let mut stepped = Vec::with_capacity(self.scheduled.len());
        for scheduled in &mut self.scheduled {
            let optimizer = scheduled.optimizer.as_mut();
            let own = gradients.iter().find(|gradients| gradients.are_of(optimizer));
            if let Some(gradients) = own.filter(|_| optimizer.capabilities().captures) {
                let factor = gradients.factor();
                optimizer.step_with(OnDevice { found_inf: Some(skip_flag), factor })?;
            }
            stepped.push(own.is_some());
        }
        Ok(stepped)
    }

    /// Writes the learning rates to the device memory from which captured steps read them.
    pub(in crate::trainer) fn write_rates(&mut self) -> Result<()> {
        self.scheduled.iter_mut().try_for_each(|scheduled| scheduled.optimizer.write_rates())
    }

    /// Advances the schedules that count epochs. `logged` contains the values of the epoch.
    /// `more_to_come` says whether validations within an epoch may report further values: a
    /// schedule whose monitored value is not in `logged` then advances in
    /// [`follow_validation`](Self::follow_validation) instead.
    pub(in crate::trainer) fn end_epoch(
        &mut self,
        logged: &[Logged],
        more_to_come: bool,
    ) -> Result<()> {
        self.scheduled.iter_mut().try_for_each(|scheduled| match scheduled.monitor() {
            Some(monitor) if more_to_come && !has(logged, monitor) => Ok(()),
            _ => scheduled.advance(Interval::Epoch, logged),
        })
    }

    /// Advances the schedules whose monitored value is in `logged`, the values of a validation
    /// within the epoch.
    pub(in crate::trainer) fn follow_validation(&mut self, logged: &[Logged]) -> Result<()> {
        self.scheduled.iter_mut().try_for_each(|scheduled| match scheduled.monitor() {
            Some(monitor) if has(logged, monitor) => scheduled.advance(Interval::Epoch, logged),
            _ => Ok(()),
        })
    }
}

/// Returns the gradients, or an error if there are none because the backward pass reached no
/// parameter.
fn some<S>(gradients: Vec<Gradients<S>>) -> Result<Vec<Gradients<S>>> {
    match gradients.is_empty() {
        true => Err(Error::Scaler(
            "no parameter has a gradient: the loss depends on no parameter, or all are frozen"
                .into(),
        )),
        false => Ok(gradients),
    }
}

fn has_gradients(gradients: &[Gradients<Deferred>], optimizer: &dyn Optimizer) -> bool {
    gradients.iter().any(|gradients| gradients.are_of(optimizer))
}

fn has(logged: &[Logged], name: &str) -> bool {
    logged.iter().any(|logged| logged.name == name)
}

/// Returns whether gradients are stored in 16 bits, which the options must request and the run must
/// support.
fn keeps_16_bit_gradients(config: &TrainerConfig) -> bool {
    requests_16_bit_gradients(config) && full_gradients_note(config).is_none()
}

fn requests_16_bit_gradients(config: &TrainerConfig) -> bool {
    config.numerics.gradients == GradientStorage::SixteenBit
        && config.precision.autocast().is_some()
}

/// Returns why a run stores its gradients in f32 although 16-bit gradients are requested.
pub(in crate::trainer) fn full_gradients_note(config: &TrainerConfig) -> Option<String> {
    let why = match (config.device.is_cuda(), config.optimization.accumulate_grad_batches) {
        _ if !requests_16_bit_gradients(config) => return None,
        (false, _) => "only CUDA has kernels for 16-bit gradients".to_owned(),
        (true, _) if config.numerics.kernels == Kernels::Libtorch => {
            "libtorch's kernels would round the gradients to 16 bits and cast them back to f32"
                .to_owned()
        }
        (true, 1) => return None,
        (true, batches) => format!("the gradients of {batches} batches are added up"),
    };
    Some(format!("gradients are kept in f32, not in 16 bits: {why}"))
}

impl Update for Optimization<'_> {
    fn count(&self) -> usize {
        self.scheduled.len()
    }

    fn backward(&mut self, at: usize, loss: &Tensor) -> Result<Gradients<Scaled>> {
        self.accumulating[at] = None;
        let optimizer = self.scheduled[at].optimizer.as_mut();
        optimizer.zero_grad()?;
        self.scaler.scale(loss)?.backward().map_err(loss::in_backward)?;
        self.scaler.gradients(optimizer)
    }

    fn accumulate(&mut self, at: usize, loss: &Tensor) -> Result<Gradients<Scaled>> {
        self.keep_full_gradients();
        let scale = self.scaler.scale_value();
        let optimizer = self.scheduled[at].optimizer.as_mut();
        match self.accumulating[at].replace(scale) {
            None => optimizer.zero_grad()?,
            // A step of another optimizer has changed the loss scale in between.
            Some(before) if before != scale => {
                for parameter in optimizer.parameters().iter() {
                    let mut gradient = parameter.tensor.f_grad()?;
                    if gradient.defined() {
                        let _ = gradient.f_mul_scalar_(scale / before)?;
                    }
                }
            }
            Some(_) => {}
        }
        self.scaler.scale(loss)?.backward().map_err(loss::in_backward)?;
        self.scaler.gradients(self.scheduled[at].optimizer.as_ref())
    }

    fn unscale(&mut self, at: usize, gradients: Gradients<Scaled>) -> Result<Gradients<Unscaled>> {
        self.accumulating[at] = None;
        self.scaler.unscale(gradients)
    }

    fn step(&mut self, at: usize, gradients: Gradients<Unscaled>) -> Result<StepOutcome> {
        let scheduled = &mut self.scheduled[at];
        let outcome = self.scaler.step(gradients, scheduled.optimizer.as_mut())?;
        // Allows the manual step to step this optimizer again before the loss scale is updated.
        self.scaler.end_use(scheduled.optimizer.as_ref());
        if outcome == StepOutcome::Applied {
            scheduled.advance(Interval::Step, &[])?;
        }
        Ok(outcome)
    }

    fn parameters(&self, at: usize) -> Vec<Tensor> {
        let parameters = self.scheduled[at].optimizer.parameters().iter();
        parameters.map(|parameter| parameter.tensor.shallow_clone()).collect()
    }
}
