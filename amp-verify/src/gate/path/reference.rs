//! Computes the gradient of each step's examples in 32-true, with the run's own weights and the
//! same dropped elements, so that only the rounding of this step differs. Layers run one at a time,
//! and this module weights the batches itself, so that fused kernels and the trainer's accumulation
//! are checked as well.

use std::{collections::BTreeMap, rc::Rc};

use amp_core::{
    LightningModule, Result, Step,
    data::AnyBatch,
    log::Log,
    nn::{self, Context, Role, named_tensors},
    precision::{AutocastGuard, GradScaler, Policy, Precision},
    random::RandomState,
    tch::{Device, Tensor, no_grad},
};

use super::{
    dropout::Counter,
    final_state::{dot, exact, exact_on},
};
use crate::{gate::conformance::emulation::Rounding, rounding::rounding_of};

/// Tensors with a smaller share of the gradient's norm may consist mostly of rounding errors.
const SHARE: f64 = 0.05;

/// A model in 32-true with the run's weights.
pub(super) struct Reference {
    model: Box<dyn LightningModule>,
    policy: Policy,
    device: Device,
    /// The total weight of the batches in this step.
    weight: f64,
    /// The comparisons of the steps so far.
    pub(super) steps: Vec<Compared>,
    /// The largest difference of a loss in this step.
    loss: f64,
    /// Whether the model draws random numbers in training.
    pub(super) draws: bool,
    /// The dropped elements of the first batch.
    pub(super) dropout: Rc<Counter>,
    /// The rounding to emulate, if any.
    rounding: Option<Rounding>,
}

/// The differences of a step's gradient g and losses l from the reference's gradient r and losses
/// m.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Figures {
    /// |⟨g, r⟩/⟨r, r⟩ − 1| of the whole gradient.
    pub(super) projection: f64,
    /// The largest value of |⟨g, r⟩/⟨r, r⟩ − 1| for a single parameter.
    pub(super) parameter: f64,
    /// ‖g − r‖/‖r‖ for the whole gradient.
    pub(super) error: f64,
    /// The largest value of ‖g − r‖/‖r‖ for a single parameter.
    pub(super) parameter_error: f64,
    /// The largest |l − m|/|m| for the step's batches.
    pub(super) loss: f64,
}

/// The figures of a step, and of passes with emulated rounding on the same examples.
#[derive(Debug, Clone, Default)]
pub(super) struct Compared {
    pub(super) found: Figures,
    pub(super) rounded: Vec<Figures>,
}

impl Reference {
    pub(super) fn new(model: Box<dyn LightningModule>, device: Device) -> Result<Self> {
        let policy = Policy::new(Precision::F32True, device);
        nn::place(model.as_ref(), policy, &BTreeMap::new())?;
        Ok(Self {
            model,
            policy,
            device,
            weight: 0.0,
            steps: Vec::new(),
            loss: 0.0,
            draws: false,
            dropout: Rc::default(),
            rounding: None,
        })
    }

    /// Adds emulated rounding to the passes.
    pub(super) fn rounding(self, rounding: Rounding) -> Self {
        Self { rounding: Some(rounding), ..self }
    }

    /// Copies the run's weights before the first batch of a step.
    fn begin(&mut self, run: &dyn LightningModule) -> Result<()> {
        let own = named_tensors(self.model.as_ref());
        for ((_, own, role), (_, run, _)) in own.into_iter().zip(named_tensors(run)) {
            if role == Role::Parameter {
                no_grad(|| own.shallow_clone().f_copy_(&run.f_detach()?))?;
            }
        }
        if let Some(rounding) = &mut self.rounding {
            rounding.begin(self.model.as_ref())?;
        }
        self.clear()
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

    /// Adds a batch, with the random numbers and the loss of the run. Returns the loss of the
    /// reference.
    pub(super) fn add(
        &mut self,
        run: &dyn LightningModule,
        batch: &AnyBatch,
        (index, global_step): (usize, u64),
        random: &RandomState,
        loss: f64,
    ) -> Result<f64> {
        if self.weight == 0.0 {
            self.begin(run)?;
        }
        let now = RandomState::read(self.device)?;
        random.restore(self.device)?;
        let weight = batch.weight()?;
        let own = {
            let _off = AutocastGuard::off(self.device)?;
            let mut context = Context::new(self.policy, true).with_probe(self.dropout.clone());
            if let Some(rounding) = &self.rounding {
                context = context.with_substitute(rounding.between());
            }
            let mut log = Log::default();
            let mut step = Step::new(&context, &mut log, index, global_step);
            let own = self.model.training_step(&batch.place(self.policy)?, &mut step)?;
            let (own, descended) = match &self.rounding {
                Some(rounding) => rounding.loss(&own)?,
                None => (own.shallow_clone(), own),
            };
            let weighed = descended.f_mul_scalar(weight)?;
            GradScaler::disabled(self.device)?.scale(&weighed)?.backward()?;
            own
        };
        self.draws |= !RandomState::read(self.device)?.is_same(random)?;
        now.restore(self.device)?;
        self.dropout.end();
        self.weight += weight;
        let own = own.f_double_value(&[])?;
        self.loss = larger(self.loss, relative(loss, own));
        Ok(own)
    }

    /// Compares the gradients of the run, and those with emulated rounding, with the gradients of
    /// this reference, for the batches of the step.
    pub(super) fn compare(
        &mut self,
        gradients: &[BTreeMap<String, Tensor>],
        rounded: &mut [Self],
    ) -> Result<()> {
        let rounded = rounded.iter_mut().map(|one| {
            let loss = std::mem::take(&mut one.loss);
            Ok(Figures { loss, ..self.figures(&[one.rounded_gradients()?])? })
        });
        let rounded = rounded.collect::<Result<_>>()?;
        let loss = std::mem::take(&mut self.loss);
        let found = Figures { loss, ..self.figures(gradients)? };
        self.steps.push(Compared { found, rounded });
        self.weight = 0.0;
        Ok(())
    }

    /// Returns the gradients for the batches of the step, with the final rounding.
    fn rounded_gradients(&mut self) -> Result<BTreeMap<String, Tensor>> {
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
        let (mut both, mut own) = (0.0, 0.0);
        let mut each = Vec::new();
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
            let (product, square) = (dot(&found, &reference)?, dot(&reference, &reference)?);
            let difference = no_grad(|| found.f_sub(&reference))?;
            (both, own) = (both + product, own + square);
            each.push((product, square, dot(&difference, &difference)?));
        }
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

    /// Returns the buffer with the largest difference from the reference's buffer, relative to its
    /// size. The rounding of a running average in its dtype is subtracted: ten roundings for a
    /// momentum of 0.1.
    pub(super) fn buffers(&self, run: &dyn LightningModule) -> Result<Option<(String, f64)>> {
        let mut worst: Option<(String, f64)> = None;
        let own = named_tensors(self.model.as_ref()).into_iter().zip(named_tensors(run));
        for ((name, own, role), (_, run, _)) in own {
            if role != Role::Buffer {
                continue;
            }
            let kept = 20.0 * rounding_of(run.kind());
            let (own, run) = (exact(&own)?, exact(&run)?);
            let off = no_grad(|| run.f_sub(&own))?;
            let (off, size) = (dot(&off, &off)?, dot(&own, &own)?);
            let away = if off == 0.0 { 0.0 } else { ((off / size).sqrt() - kept).max(0.0) };
            if worst.as_ref().is_none_or(|(_, most)| away.is_nan() || away > *most) {
                worst = Some((name, away));
            }
        }
        Ok(worst)
    }

    /// Returns the reference's model with the run's weights and buffers.
    pub(super) fn into_model(self, run: &dyn LightningModule) -> Result<Box<dyn LightningModule>> {
        let own = named_tensors(self.model.as_ref());
        for ((_, own, _), (_, run, _)) in own.into_iter().zip(named_tensors(run)) {
            let kind = own.kind();
            no_grad(|| own.shallow_clone().f_copy_(&run.f_detach()?.f_to_kind(kind)?))?;
        }
        Ok(self.model)
    }
}

/// |a − b|/|b|; 0 for equal values.
fn relative(a: f64, b: f64) -> f64 {
    if a == b { 0.0 } else { ((a - b) / b).abs() }
}

/// Returns the larger value; NaN counts as the largest.
pub(super) fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}
