//! Emulates the rounding of a precision. The model runs in a wider precision, and every value that
//! the precision would store in 16 bits is rounded to 16 bits. The emulation does not use the code
//! of the precision that is checked. In each step, the weights are perturbed at random by less than
//! a rounding error before they are rounded, so that every run rounds differently. The differences
//! between these runs and a run without rounding show how far a correct run of the precision may be
//! from 32-true, for this model, its weights and its data.

mod between;
mod passes;

use std::{cell::Cell, collections::BTreeMap, rc::Rc};

use amp_core::{
    LightningModule, Result, Step,
    data::AnyBatch,
    hardware::seed_everything,
    log::Log,
    nn::{
        Context, OperatorDtypes, OperatorPass, Probe, Role, Substitute, named_tensors, parameters,
        place,
    },
    optim::Scheduled,
    precision::{Gradients, Policy, Precision, Unscaled, is_floating},
    random::RandomState,
    tch::{Device, Kind, Tensor, no_grad},
    trainer::first_loss,
};

use self::{
    between::Between,
    passes::{Seen, Unchanged},
};
use super::LOW_SCALE;
use crate::{
    case::Case,
    diagnose::Overrides,
    rounding::{is_narrow, moved, rounded, rounded_stochastically, rounding_of},
};

/// When the rounding of 32-true itself is emulated, the inputs and outputs of modules are changed
/// at random by at most this fraction of their value. It is the relative error of an f32 sum with
/// several hundred terms, such as those in a matrix product.
pub(in crate::gate) const SUMS: f64 = 1.0 / 1_048_576.0;
/// When the rounding of 32-true itself is emulated, the loss is changed at random by at most this
/// fraction of its value: the relative error of the loss's mean over the batch in f32.
const MEANS: f64 = 1.0 / 8_388_608.0;

/// The largest random error, in unit roundoffs, that is added to the gradient of a layer norm's
/// weight or bias. This gradient is a sum over the batch, and some kernels keep partial sums in 16
/// bits.
const OF_PARTS: f64 = 3.0;

/// Where a model rounds under a precision, and to which dtypes.
pub(in crate::gate) struct Emulation {
    /// The wider precision in which the emulation computes.
    pub(super) wide: Precision,
    precision: Precision,
    device: Device,
    /// The dtypes of each module, by path.
    modules: BTreeMap<String, Kinds>,
    /// The dtypes of modules' intermediate tensors, by the module's path and the tensor's name.
    inner: BTreeMap<(String, String), Kind>,
    /// The dtypes of what the model computes outside of layers, such as its own loss.
    operators: OperatorDtypes,
    loss: Kind,
}

/// The dtypes of a module's input (`given`), output (`returned`) and computation.
#[derive(Debug, Clone, Copy)]
struct Kinds {
    given: Kind,
    returned: Kind,
    computed: Kind,
    /// Whether kernels may compute the gradients of the module's parameters from partial sums that
    /// are rounded to 16 bits.
    sums_parts: bool,
}

impl Emulation {
    /// Runs one forward pass of `model` under `precision`, and records the dtypes in which modules
    /// receive, compute and return tensors, and those of the operators outside of layers. The model
    /// must be newly built. Then runs a forward pass in the wider precision, to count how often
    /// each of these operators runs there.
    pub(in crate::gate) fn of(
        case: &Case,
        model: &mut dyn LightningModule,
        precision: Precision,
        overrides: &Rc<Overrides>,
    ) -> Result<Self> {
        let device = case.trainer.device;
        let policy = Policy::new(precision, device);
        let seen = Rc::new(Seen::default());
        let operators = OperatorDtypes::new()?;
        let examples = case.data.train.head(case.data.batch_size)?;
        let context = |policy| Context::new(policy, false).with_overrides(Rc::clone(overrides));
        let mut first_loss = |policy: Policy, context: &Context| {
            place(model, policy, overrides)?;
            let batch = examples.place(policy)?;
            let _autocast = policy.autocast()?;
            let mut log = Log::default();
            let mut step = Step::new(context, &mut log, 0, 0);
            // Autograd stays on, because the loss may have a gradient penalty.
            first_loss(model, &batch, &mut step)
        };
        let loss = {
            let context = context(policy).with_probe(seen.clone() as Rc<dyn Probe>);
            let _recording = operators.record()?;
            first_loss(policy, &context)?.kind()
        };
        // 64-true and 32-true differ because 32-true rounds. So for 64-true the emulation runs in
        // 64-true and emulates the rounding of 32-true.
        let (wide, rounds) = match precision {
            Precision::F64True => (Precision::F64True, Precision::F32True),
            other => (Precision::F32True, other),
        };
        {
            let policy = Policy::new(wide, device);
            let context = context(policy).with_substitute(Rc::new(Unchanged));
            let _counting = operators.count()?;
            let _ = first_loss(policy, &context)?;
        }
        let (mut modules, inner) = (seen.modules.take(), seen.inner.take());
        // Only batch norms have buffers. Their kernels sum the gradients of their parameters in
        // f32, so there are no partial sums in 16 bits.
        for (name, _, role) in named_tensors(model) {
            let module = name.rsplit_once('.').and_then(|(module, _)| modules.get_mut(module));
            if let (Role::Buffer, Some(module)) = (role, module) {
                module.sums_parts = false;
            }
        }
        // The empty path stands for what the model itself computes between its modules.
        let computed = precision.compute();
        let own = Kinds { given: computed, returned: computed, computed, sums_parts: false };
        modules.entry(String::new()).or_insert(own);
        if is_narrow(precision.storage()) {
            cast_into_regions(&mut modules, precision.storage());
        }
        Ok(Self { wide, precision: rounds, device, modules, inner, operators, loss })
    }

    /// Returns the dtype in which the precision computes the loss.
    pub(in crate::gate) fn loss(&self) -> Kind {
        if is_narrow(self.loss) { self.loss } else { Kind::Float }
    }

    /// Returns the module to which a parameter belongs. Returns `None` if this module does not run.
    fn module_of(&self, parameter: &str) -> Option<&Kinds> {
        parameter.rsplit_once('.').and_then(|(module, _)| self.modules.get(module))
    }

    /// Returns whether the emulation rounds a parameter before the forward pass. It does if the
    /// parameter's module computes in 16 bits, or if no module that ran has this parameter.
    fn rounds(&self, parameter: &str) -> bool {
        self.module_of(parameter).is_none_or(|module| is_narrow(module.computed))
    }

    /// Returns the loss scale of the run with emulated rounding. The emulation scales the loss if
    /// the emulated precision does, so that both round gradients of the same size.
    fn scale(&self) -> f64 {
        if self.precision.scales_loss() { LOW_SCALE } else { 1.0 }
    }

    /// Returns the dtypes to which parameters and optimizer state are rounded after a step. `None`
    /// means that they are not rounded.
    fn stores(&self) -> (Option<Kind>, Option<Kind>) {
        match self.precision {
            Precision::F32True => (Some(Kind::Float), Some(Kind::Float)),
            Precision::Bf16True => (Some(Kind::BFloat16), Some(Kind::BFloat16)),
            Precision::F16True => (Some(Kind::Half), None),
            _ => (None, None),
        }
    }
}

/// Corrects the recorded input dtypes of modules that compute in FP32 under a 16-bit `*-true`
/// precision. The inputs of these modules have 16 bits, but were recorded after the cast to the
/// wider dtype.
fn cast_into_regions(modules: &mut BTreeMap<String, Kinds>, storage: Kind) {
    let computed: BTreeMap<String, Kind> =
        modules.iter().map(|(path, kinds)| (path.clone(), kinds.computed)).collect();
    for (path, kinds) in modules {
        let around = path.rsplit_once('.').and_then(|(outer, _)| computed.get(outer));
        let outer = around.copied().unwrap_or(storage);
        if is_narrow(outer) && is_floating(kinds.given) {
            kinds.given = outer;
        }
    }
}

/// The rounding and the random perturbations of one emulated run.
pub(in crate::gate) struct Rounding {
    emulation: Rc<Emulation>,
    draws: Rc<Draws>,
    /// The parameters that are rounded in the current step, each with a copy of its values before
    /// rounding.
    kept: Vec<(Tensor, Tensor)>,
    /// Whether the parameters are already rounded for the current step.
    has_begun: bool,
    /// Whether the inputs and outputs of modules are perturbed at random before they are rounded.
    moves_between: bool,
}

/// A source of random numbers that does not change the state of libtorch's generator.
struct Draws {
    device: Device,
    seed: Cell<u64>,
}

impl Draws {
    /// Sets libtorch's generator to the next seed of this source and runs `body`. Then restores the
    /// generator's state.
    fn with<T>(&self, body: impl FnOnce() -> Result<T>) -> Result<T> {
        let before = RandomState::read(self.device)?;
        self.seed.set(self.seed.get() + 1);
        seed_everything(self.seed.get())?;
        let drawn = body();
        before.restore(self.device)?;
        drawn
    }
}

impl Rounding {
    /// Creates the rounding for the run with the number `number`. Runs with different numbers have
    /// different random perturbations.
    pub(in crate::gate) fn new(emulation: &Rc<Emulation>, seed: u64, number: u64) -> Self {
        // Each use of the generator in a run increases the seed by 1. The seeds of two runs differ
        // by more than the number of uses in a run, so no seed is used twice. The seed has only 32
        // bits, because libtorch's CPU generator uses no more.
        let seed = seed.wrapping_mul(0x9E37_79B1).wrapping_add(number << 20) & u64::from(u32::MAX);
        Self {
            emulation: Rc::clone(emulation),
            draws: Rc::new(Draws { device: emulation.device, seed: Cell::new(seed) }),
            kept: Vec::new(),
            has_begun: false,
            moves_between: false,
        }
    }

    /// Perturbs also the inputs and outputs of modules at random before they are rounded. Weights
    /// that a run already stores in 16 bits do not change if they are perturbed and rounded again.
    /// So without this, all emulated runs of a step would round in the same way.
    pub(in crate::gate) fn moving_between_modules(self) -> Self {
        Self { moves_between: true, ..self }
    }

    /// Perturbs the parameters at random and rounds them, unless this was already done for the
    /// current step.
    pub(in crate::gate) fn begin(&mut self, model: &dyn LightningModule) -> Result<()> {
        if std::mem::replace(&mut self.has_begun, true) {
            return Ok(());
        }
        let kind = self.emulation.precision.compute();
        let draws = Rc::clone(&self.draws);
        draws.with(|| {
            for parameter in parameters(model) {
                if is_narrow(kind) && self.emulation.rounds(&parameter.name) {
                    let kept = no_grad(|| parameter.tensor.f_detach_copy())?;
                    let other = rounded_stochastically(&kept, kind)?;
                    no_grad(|| parameter.tensor.shallow_clone().f_copy_(&other))?;
                    self.kept.push((parameter.tensor, kept));
                }
            }
            Ok(())
        })
    }

    /// Returns the batch with the values that a run under the emulated precision would store. If
    /// this precision has 16-bit storage, the targets are rounded, too.
    pub(super) fn batch(&self, batch: &AnyBatch) -> Result<AnyBatch> {
        let Emulation { wide, precision, device, .. } = *self.emulation;
        let stored = match is_narrow(precision.storage()) {
            true => &batch.place(Policy::new(precision, device))?,
            false => batch,
        };
        stored.place(Policy::new(wide, device))
    }

    /// Returns the code that rounds the inputs and outputs of modules during a forward pass.
    pub(in crate::gate) fn between(&self) -> Rc<dyn Substitute> {
        Rc::new(Between::new(&self.emulation, &self.draws, self.moves_between))
    }

    /// Returns a guard. While it exists, the results of the operators outside of layers are rounded.
    /// It must exist during a forward pass and the computation of the loss.
    pub(in crate::gate) fn operators(&self) -> Result<OperatorPass<'_>> {
        self.emulation.operators.round()
    }

    /// Returns the loss, rounded as a run under the emulated precision rounds it. Also returns this
    /// loss times the loss scale, from which gradients are computed.
    pub(in crate::gate) fn loss(&self, loss: &Tensor) -> Result<(Tensor, Tensor)> {
        let loss = match self.emulation.precision {
            Precision::F32True => rounded(&self.draws.with(|| moved(loss, MEANS))?, Kind::Float)?,
            _ if is_narrow(self.emulation.loss) => rounded(loss, self.emulation.loss)?,
            _ => loss.shallow_clone(),
        };
        let scaled = loss.f_mul_scalar(self.emulation.scale())?;
        Ok((loss, scaled))
    }

    /// Ends a step's backward pass: unscales and rounds the gradients, and calls
    /// [`restore`](Self::restore).
    pub(super) fn end(&mut self, gradients: &Gradients<Unscaled>) -> Result<()> {
        for (name, gradient) in gradients.named() {
            let other = self.gradient(name, gradient)?;
            no_grad(|| gradient.shallow_clone().f_copy_(&other))?;
        }
        self.restore()
    }

    /// Returns the gradient of a parameter, unscaled and rounded.
    pub(in crate::gate) fn gradient(&self, name: &str, gradient: &Tensor) -> Result<Tensor> {
        let kind = self.emulation.precision.compute();
        no_grad(|| {
            let other = match self.emulation.precision {
                // The gradient of a parameter is itself an f32 sum, over the batch.
                Precision::F32True => self.with_error(gradient, SUMS)?,
                _ if self.emulation.rounds(name) && is_narrow(kind) => {
                    rounded(&self.with_parts(name, gradient, kind)?, kind)?
                }
                _ => gradient.shallow_clone(),
            };
            Ok(other.f_mul_scalar(1.0 / self.emulation.scale())?)
        })
    }

    /// Returns whether each step ends by giving the parameters the values that they had before
    /// rounding.
    pub(super) fn restores(&self) -> bool {
        self.emulation.stores().0.is_none()
    }

    /// Gives the parameters the values that they had before they were rounded for the current step.
    /// If the precision stores its parameters in 16 bits, leaves them rounded.
    pub(in crate::gate) fn restore(&mut self) -> Result<()> {
        let kept = std::mem::take(&mut self.kept);
        if self.restores() {
            for (mut tensor, kept) in kept {
                no_grad(|| tensor.f_copy_(&kept))?;
            }
        }
        self.has_begun = false;
        Ok(())
    }

    /// Adds a random error to the gradient of a layer norm's parameter, as if the gradient were
    /// computed from partial sums that were rounded to 16 bits. Returns any other gradient as it
    /// is.
    fn with_parts(&self, name: &str, gradient: &Tensor, kind: Kind) -> Result<Tensor> {
        let sums_parts = self.emulation.module_of(name).is_some_and(|module| module.sums_parts);
        if gradient.dim() > 1 || !sums_parts {
            return Ok(gradient.shallow_clone());
        }
        self.with_error(gradient, OF_PARTS * rounding_of(kind))
    }

    /// Adds a random error to each element of a gradient. The error is at most `share` times the
    /// root mean square of the gradient.
    fn with_error(&self, gradient: &Tensor, share: f64) -> Result<Tensor> {
        let size = gradient.f_square()?.f_mean(gradient.kind())?.f_sqrt()?;
        let drawn = self.draws.with(|| Ok(gradient.f_rand_like()?.f_sub_scalar(0.5)?))?;
        Ok(gradient.f_add(&drawn.f_mul(&size)?.f_mul_scalar(2.0 * share)?)?)
    }

    /// Rounds parameters and optimizer state after an optimizer step, to the dtypes in which the
    /// precision stores them.
    pub(super) fn stepped(
        &self,
        model: &dyn LightningModule,
        optimizers: &[Scheduled],
    ) -> Result<()> {
        let (weights, averages) = self.emulation.stores();
        let in_place = |tensor: &Tensor, kind: Kind| -> Result<()> {
            let other = rounded(&tensor.f_detach()?, kind)?;
            no_grad(|| tensor.shallow_clone().f_copy_(&other))?;
            Ok(())
        };
        if let Some(kind) = weights {
            for parameter in parameters(model) {
                if self.emulation.rounds(&parameter.name) || kind == Kind::Float {
                    in_place(&parameter.tensor, kind)?;
                }
            }
        }
        let Some(kind) = averages else { return Ok(()) };
        for scheduled in optimizers {
            let state = scheduled.optimizer.state()?;
            for (_, tensor) in state.tensors().filter(|(_, tensor)| tensor.numel() > 1) {
                in_place(tensor, kind)?;
            }
        }
        Ok(())
    }
}
