//! The gradient scaler, which follows torch/amp/grad_scaler.py. Its types enforce the order of
//! calls.
//!
//! [`GradScaler::scale`] returns a [`ScaledLoss`], whose backward pass computes scaled gradients.
//! [`GradScaler::gradients`] returns these as [`Gradients<Scaled>`]. [`GradScaler::unscale`]
//! converts them to [`Gradients<Unscaled>`], the only type that can be clipped and stepped. Each
//! call consumes a value that must not be used twice:
//!
//! ```no_run,standalone_crate
//! # use amp_core::{precision::{GradScaler, StepOutcome}, optim::Optimizer, tch::Tensor};
//! # fn f(scaler: &mut GradScaler, optimizer: &mut dyn Optimizer, loss: &Tensor) -> amp_core::Result<()> {
//! scaler.scale(loss)?.backward()?;
//! let gradients = scaler.gradients(optimizer)?;
//! let gradients = scaler.unscale(gradients)?;
//! gradients.clip_grad_norm(1.0)?;
//! if let StepOutcome::Skipped { culprit } = scaler.step(gradients, optimizer)? {
//!     eprintln!("skipped: {culprit:?} is not finite");
//! }
//! scaler.update()?;
//! # Ok(()) }
//! ```
//!
//! Clipping or stepping before unscaling does not compile:
//!
//! ```compile_fail,E0599
//! # use amp_core::{precision::GradScaler, optim::{OnDevice, Optimizer}};
//! # fn f(scaler: &mut GradScaler, optimizer: &mut dyn Optimizer) -> amp_core::Result<()> {
//! let gradients = scaler.gradients(optimizer)?;
//! gradients.clip_grad_norm(1.0)?;
//! # Ok(()) }
//! ```
//!
//! ```compile_fail,E0277
//! # use amp_core::{precision::GradScaler, optim::Optimizer};
//! # fn f(scaler: &mut GradScaler, optimizer: &mut dyn Optimizer) -> amp_core::Result<()> {
//! let gradients = scaler.gradients(optimizer)?;
//! let _ = scaler.step(gradients, optimizer)?;
//! # Ok(()) }
//! ```
//!
//! To unscale, to step or to run the backward pass twice does not compile either:
//!
//! ```compile_fail,E0382
//! # use amp_core::{precision::GradScaler, optim::Optimizer};
//! # fn f(scaler: &mut GradScaler, optimizer: &mut dyn Optimizer) -> amp_core::Result<()> {
//! let gradients = scaler.gradients(optimizer)?;
//! let _ = scaler.unscale(gradients)?;
//! let _ = scaler.unscale(gradients)?;
//! # Ok(()) }
//! ```
//!
//! ```compile_fail,E0382
//! # use amp_core::{precision::{GradScaler, Gradients, Unscaled}, optim::Optimizer};
//! # fn f(scaler: &mut GradScaler, gradients: Gradients<Unscaled>, optimizer: &mut dyn Optimizer)
//! #     -> amp_core::Result<()> {
//! let _ = scaler.step(gradients, optimizer)?;
//! let _ = scaler.step(gradients, optimizer)?;
//! # Ok(()) }
//! ```
//!
//! ```compile_fail,E0382
//! # use amp_core::{precision::GradScaler, tch::Tensor};
//! # fn f(scaler: &GradScaler, loss: &Tensor) -> amp_core::Result<()> {
//! let scaled = scaler.scale(loss)?;
//! scaled.backward()?;
//! scaled.backward()?;
//! # Ok(()) }
//! ```
//!
//! The remaining mistakes give an [`Error::Scaler`] at run time: gradients without a scaled loss,
//! gradients that are taken twice, gradients that are kept beyond an update or passed to another
//! optimizer, f16 gradients, and an update without gradients.

mod captured;
mod gradients;
mod losses;
mod planted;
mod rule;
mod step;
mod unscale;

pub use gradients::{Deferred, Gradients, Scaled, ScaledLoss, StepOutcome, Unscaled};
#[doc(hidden)]
pub use planted::GrowsOnHostAlone;
pub use rule::{GradScalerConfig, ScalerState};

use std::{cell::Cell, marker::PhantomData};

use tch::{Device, Kind, Tensor};

use self::{gradients::FoundInf, losses::Losses, rule::usable_scale};
use crate::{
    Error, Result,
    ffi::{self, Grads},
    optimizer::Optimizer,
    parameter::Parameter,
};

/// Scales losses and skips steps whose gradients overflowed.
///
/// The scale (f32) and the growth tracker (i32) are on the device, as in PyTorch. The host has a
/// copy, which [`scale_value`](Self::scale_value) returns without waiting for the device:
/// [`step`](Self::step) reads whether the gradients overflowed, so the host can update its copy.
#[derive(Debug)]
pub struct GradScaler {
    config: GradScalerConfig,
    mode: Mode,
    device: Device,
    scale: Tensor,
    growth_tracker: Tensor,
    /// A zero on the device: the overflow flag that a captured step passes to libtorch's update of
    /// the scale.
    no_overflow: Tensor,
    mirror: (f32, i32),
    /// Whether a loss was scaled since the last update.
    scaled: Cell<bool>,
    losses: Losses,
    iteration: Vec<Use>,
}

/// Whether the scaler scales losses and checks gradients. The precision determines the mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Neither scales losses nor checks gradients.
    Off,
    /// Skips steps whose gradients are not finite.
    Check,
    /// Scales losses, and skips steps whose gradients are not finite.
    Scale,
}

/// An optimizer whose gradients were unscaled since the last update, and whether they overflowed.
#[derive(Debug)]
struct Use {
    owner: usize,
    found_inf: FoundInf,
    overflowed: Option<bool>,
}

impl GradScaler {
    /// Creates a scaler for losses and gradients on `device`.
    ///
    /// # Errors
    /// When a constant is out of range: the scale must be positive and finite in f32, the growth
    /// factor above 1, the backoff factor between 0 and 1.
    pub fn new(device: Device, config: GradScalerConfig) -> Result<Self> {
        let scale = config.checked_scale()?;
        Ok(Self {
            config,
            mode: Mode::Scale,
            device,
            scale: Tensor::f_full([], f64::from(scale), (Kind::Float, device))?,
            growth_tracker: Tensor::f_zeros([], (Kind::Int, device))?,
            no_overflow: Tensor::f_zeros([], (Kind::Float, device))?,
            mirror: (scale, 0),
            scaled: Cell::new(false),
            losses: Losses::default(),
            iteration: Vec::new(),
        })
    }

    /// Creates a scaler that neither scales losses nor skips steps, so that the same training code
    /// works for every precision.
    ///
    /// # Errors
    /// When libtorch does not have this device.
    pub fn disabled(device: Device) -> Result<Self> {
        Self::unscaled(device, Mode::Off)
    }

    /// Creates a scaler that does not scale losses, but skips steps whose gradients are not finite.
    /// The gradients may have any dtype.
    ///
    /// # Errors
    /// When libtorch does not have this device.
    pub fn checking(device: Device) -> Result<Self> {
        Self::unscaled(device, Mode::Check)
    }

    fn unscaled(device: Device, mode: Mode) -> Result<Self> {
        let config = GradScalerConfig { init_scale: 1.0, ..Default::default() };
        Ok(Self { mode, ..Self::new(device, config)? })
    }

    /// Returns whether the scaler multiplies losses by a scale.
    pub fn is_enabled(&self) -> bool {
        self.mode == Mode::Scale
    }

    /// Returns the current loss scale. It is 1 if losses are not scaled.
    ///
    /// As in PyTorch, repeated overflows lower it without a limit. At 2⁻¹²⁸ or less, its reciprocal
    /// is infinite in f32: unscaling makes finite gradients, and so the parameters, infinite or NaN,
    /// and no step is skipped. End a training loop of your own before. The trainer acts earlier, at
    /// `min_scale`.
    pub fn scale_value(&self) -> f64 {
        f64::from(self.mirror.0)
    }

    /// Returns the number of steps since the last overflow or the last growth of the scale.
    pub fn growth_tracker(&self) -> i32 {
        self.mirror.1
    }

    /// Returns the loss scale and the growth tracker, read from the device.
    ///
    /// # Errors
    /// When an earlier CUDA operation failed: CUDA reports this only when the host waits.
    pub fn read_device(&self) -> Result<(f32, i32)> {
        let scale = self.scale.f_double_value(&[])? as f32;
        let tracker = self.growth_tracker.f_int64_value(&[])? as i32;
        Ok((scale, tracker))
    }

    /// Multiplies a loss by the scale. If the loss is not finite (such as a squared error that
    /// overflows), the step is skipped even if all gradients are finite. PyTorch applies the step.
    ///
    /// # Errors
    /// When `loss` is not a scalar.
    pub fn scale(&self, loss: &Tensor) -> Result<ScaledLoss> {
        if loss.numel() != 1 {
            let shape = loss.size();
            return Err(Error::config(format!(
                "a loss must be a scalar, but has shape {shape:?}: take the mean, as with \
                 `loss.f_mean(loss.kind())?`"
            )));
        }
        if self.mode != Mode::Off {
            self.losses.add(loss)?;
        }
        if self.mode == Mode::Scale {
            self.scaled.set(true);
        }
        // On CUDA the backward pass gets the scale even if it is 1, because otherwise it would
        // launch a kernel to create a 1.
        let scaled = self.mode == Mode::Scale || self.device.is_cuda();
        Ok(ScaledLoss {
            loss: loss.shallow_clone(),
            scale: scaled.then(|| self.scale.shallow_clone()),
        })
    }

    /// Returns the gradients that backward passes have stored on the optimizer's parameters.
    ///
    /// # Errors
    /// When no loss was scaled since the last [`update`](Self::update), or this optimizer's
    /// gradients were already unscaled.
    pub fn gradients(&self, optimizer: &dyn Optimizer) -> Result<Gradients<Scaled>> {
        let parameters = optimizer.parameters();
        let owner = owner(parameters);
        self.refuse_second_use(owner)?;
        if self.mode == Mode::Scale && !self.scaled.get() {
            return Err(Error::Scaler(
                "no loss was scaled since the last update: run backward on scale(loss)".into(),
            ));
        }
        Ok(Gradients {
            parameters: parameters.clone(),
            tensors: Grads::of(parameters)?,
            found_inf: None,
            factor: None,
            owner,
            state: PhantomData,
        })
    }

    /// Updates the loss scale. Call this once per iteration, after the steps of all optimizers.
    ///
    /// # Errors
    /// When no gradients were unscaled since the last update.
    pub fn update(&mut self) -> Result<()> {
        if self.mode != Mode::Scale {
            self.end_iteration();
            return Ok(());
        }
        let uses = self.end_iteration();
        let Some((first, rest)) = uses.split_first() else {
            return Err(Error::Scaler(
                "`update` was called, but no gradients were unscaled since the last update, so \
                 no inf checks were recorded: unscale the gradients before `update`"
                    .into(),
            ));
        };
        let mut total = first.found_inf.on(self.device)?;
        for other in rest {
            total = total.f_add(&other.found_inf.on(self.device)?)?;
        }
        let overflowed = match uses.iter().map(|seen| seen.overflowed).collect::<Option<Vec<_>>>() {
            Some(known) => known.contains(&true),
            // Some gradients were unscaled, but no step has read whether they overflowed.
            None => total.f_double_value(&[])? != 0.0,
        };
        let _ = self.scale.f_internal_amp_update_scale_(
            &self.growth_tracker,
            &total,
            self.config.growth_factor,
            self.config.backoff_factor,
            planted::device_interval(self.config.growth_interval),
        )?;
        self.mirror = self.config.next(self.mirror, overflowed);
        Ok(())
    }

    /// Ends the iteration as [`update`](Self::update) does, but sets the given scale (PyTorch's
    /// `update(new_scale)`). The growth tracker does not change.
    ///
    /// # Errors
    /// When the scale is not positive and finite in f32.
    pub fn set_scale(&mut self, scale: f64) -> Result<()> {
        let scale = usable_scale(scale)?;
        if self.mode == Mode::Scale {
            let _ = self.scale.f_fill_(f64::from(scale))?;
            self.mirror.0 = scale;
            self.end_iteration();
        }
        Ok(())
    }

    /// Undoes the last [`update`](Self::update): writes the earlier `state` into the existing
    /// tensors of the scale and the growth tracker, because captured CUDA graphs use these tensors.
    pub(crate) fn return_to(&mut self, state: ScalerState) -> Result<()> {
        let _ = self.scale.f_fill_(state.scale)?;
        let _ = self.growth_tracker.f_fill_(i64::from(state.growth_tracker))?;
        self.mirror = (state.scale as f32, state.growth_tracker);
        Ok(())
    }

    /// Returns the state for a checkpoint. Call this after [`update`](Self::update).
    pub fn state(&self) -> ScalerState {
        ScalerState {
            scale: self.scale_value(),
            growth_factor: self.config.growth_factor,
            backoff_factor: self.config.backoff_factor,
            growth_interval: self.config.growth_interval,
            growth_tracker: self.mirror.1,
        }
    }

    /// Restores a state that [`state`](Self::state) returned.
    ///
    /// # Errors
    /// When a constant is out of range.
    pub fn load_state(&mut self, state: ScalerState) -> Result<()> {
        let config = GradScalerConfig {
            init_scale: state.scale,
            growth_factor: state.growth_factor,
            backoff_factor: state.backoff_factor,
            growth_interval: state.growth_interval,
        };
        let mut fresh = Self::new(self.device, config)?;
        let _ = fresh.growth_tracker.f_fill_(i64::from(state.growth_tracker))?;
        fresh.mirror.1 = state.growth_tracker;
        fresh.mode = self.mode;
        *self = fresh;
        Ok(())
    }

    /// Allows an optimizer to step several times before one update, each time with the gradients of
    /// another backward pass. The update then depends on the gradients of all these backward
    /// passes.
    pub(crate) fn end_use(&mut self, optimizer: &dyn Optimizer) {
        let owner = owner(optimizer.parameters());
        self.iteration
            .iter_mut()
            .filter(|seen| seen.owner == owner)
            .for_each(|seen| seen.owner = 0);
        self.losses.clear();
    }

    /// Returns whether gradients were unscaled since the last update.
    pub(crate) fn is_used(&self) -> bool {
        !self.iteration.is_empty()
    }

    fn end_iteration(&mut self) -> Vec<Use> {
        self.scaled.set(false);
        self.losses.clear();
        std::mem::take(&mut self.iteration)
    }

    fn refuse_second_use(&self, owner: usize) -> Result<()> {
        if self.iteration.iter().any(|seen| seen.owner == owner) {
            return Err(Error::Scaler(
                "this optimizer's gradients were already unscaled since the last update: call \
                 `update` after each step"
                    .into(),
            ));
        }
        Ok(())
    }
}

/// Identifies an optimizer by the address of its first parameter. Returns 0 if the optimizer has no
/// parameters.
fn owner(parameters: &[Parameter]) -> usize {
    parameters.first().map_or(0, |parameter| ffi::identity(&parameter.tensor))
}
