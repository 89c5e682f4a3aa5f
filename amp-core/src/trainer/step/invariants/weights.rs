//! Checks that training changes every weight that has a gradient.

use std::{collections::HashSet, rc::Rc};

use tch::{Kind, Tensor};

use super::{
    Invariant, Moment, Rule,
    run_state::RunView,
    sampled_tensors::{self, Pair, Samples},
};
use crate::{Result, module::StepAccess, optim::Scheduled, precision::Clip};

/// The number of applied steps within which a parameter must have changed.
const STEPS: u64 = 10;

/// An element should have changed if learning rate × min(|gradient|, 1) is more than `SPACINGS` ×
/// |element| × machine epsilon of the dtype. Every optimizer then changes the element within ten
/// steps.
const SPACINGS: f64 = 8.0;

/// Checks that a parameter with a gradient changes within the first applied steps.
#[derive(Default)]
pub(super) struct WeightsMove {
    /// The first sample of the parameters' elements, and the number of steps applied before it.
    /// `None` before the first step.
    first: Option<(Rc<Samples>, u64)>,
    /// The names of the parameters that have changed since the first sample.
    moved: HashSet<String>,
    /// The learning rate of each optimizer's parameter groups before the step.
    rates: Vec<Vec<f64>>,
    done: bool,
}

impl Rule for WeightsMove {
    fn invariant(&self) -> Invariant {
        Invariant::WeightsMove
    }

    fn moments(&self) -> &'static [Moment] {
        &[Moment::Start, Moment::StepBegins, Moment::StepEnds]
    }

    fn violation(&mut self, moment: Moment, seen: &RunView<'_>) -> Result<Option<String>> {
        match moment {
            Moment::Start => *self = Self::default(),
            _ if self.done => {}
            Moment::StepBegins => {
                if self.first.is_none() {
                    let applied = seen.state.counts.applied + seen.running;
                    self.first = Some((seen.samples()?, applied));
                }
                self.rates = seen.scheduled().iter().map(lrs).collect();
            }
            _ => return self.after_step(seen),
        }
        Ok(None)
    }
}

impl WeightsMove {
    fn after_step(&mut self, seen: &RunView<'_>) -> Result<Option<String>> {
        let Some((first, since)) = &self.first else { return Ok(None) };
        let steps = seen.state.counts.applied.saturating_sub(*since);
        let (mut stands, mut broken) = (false, None);
        let now = seen.samples()?;
        for pair in first.pairs(&now).filter(|pair| pair.tensor.trains) {
            if self.moved.contains(&pair.tensor.name) {
                continue;
            }
            if pair.moved() {
                self.moved.insert(pair.tensor.name.clone());
                continue;
            }
            stands = true;
            if steps >= STEPS && broken.is_none() {
                broken = self.stuck(seen, &pair, steps)?;
            }
        }
        self.done = !stands;
        Ok(broken)
    }

    /// Describes the violation if the parameter should have changed. Returns `None` if its gradient
    /// may be too small for a change.
    fn stuck(&self, seen: &RunView<'_>, pair: &Pair<'_>, steps: u64) -> Result<Option<String>> {
        let name = &pair.tensor.name;
        for (scheduled, rates) in seen.scheduled().iter().zip(&self.rates) {
            let own = scheduled.optimizer.parameters();
            let Some(place) = own.iter().position(|parameter| parameter.name == *name) else {
                continue;
            };
            let gradient = own[place].tensor.f_grad()?;
            let Some(elements) = sampled_tensors::elements(&gradient)? else { return Ok(None) };
            let lr = rate(scheduled, place, rates);
            let factor = factor(seen, scheduled)?;
            let gradients: Vec<f64> = sampled_tensors::read(&[elements])?
                .iter()
                .map(|value| value.abs() * factor)
                .collect();
            let spacing = spacing(pair.tensor.kind);
            let mut pairs = pair.now.iter().zip(&gradients);
            let ought = pairs.any(|(weight, gradient)| {
                lr * gradient.min(1.0) > SPACINGS * spacing * weight.abs() && gradient.is_finite()
            });
            if ought {
                let largest = gradients.iter().copied().fold(0.0, f64::max);
                return Ok(Some(format!(
                    "`{name}` has not changed in {steps} applied steps, although its gradient is \
                     up to {largest:.1e} and its learning rate is {lr:.1e}: {} does not update \
                     it, or other code restores its old value; let the optimizer update every \
                     parameter with a gradient, or list `{name}` in optimization.freeze",
                    scheduled.optimizer.name()
                )));
            }
        }
        Ok(None)
    }
}

fn lrs(scheduled: &Scheduled) -> Vec<f64> {
    scheduled.optimizer.rates().iter().map(|rates| rates.lr).collect()
}

/// Returns the learning rate that the parameter's group had before the step, or 0 if it is not
/// known.
fn rate(scheduled: &Scheduled, place: usize, before: &[f64]) -> f64 {
    if let [only] = before {
        return *only;
    }
    let own = scheduled.optimizer.options(place).and_then(|options| options.get("lr")?.as_f64());
    let groups = lrs(scheduled);
    let group = own.and_then(|own| groups.iter().position(|lr| *lr == own));
    group.and_then(|group| before.get(group)).copied().unwrap_or(0.0)
}

/// Returns the factor by which the optimizer has multiplied the stored gradient, or a lower bound
/// of this factor. The factor is 1 unless the optimizer's kernel unscales and clips: the stored
/// gradient then stays scaled.
fn factor(seen: &RunView<'_>, scheduled: &Scheduled) -> Result<f64> {
    let deferred = matches!(seen.state.optim.access, StepAccess::Deferred)
        && scheduled.optimizer.capabilities().scales;
    if !deferred {
        return Ok(1.0);
    }
    // The loss scale may have grown after the step, so this factor may be too small.
    let scale = seen.state.optim.scale().unwrap_or(1.0);
    let Some(Clip::Norm(limit)) = seen.state.config.optimization.gradient_clip else {
        return Ok(1.0 / scale.max(1.0));
    };
    let mut squares = 0.0;
    for parameter in scheduled.optimizer.parameters().iter() {
        let gradient: Tensor = parameter.tensor.f_grad()?;
        if gradient.defined() {
            squares += gradient.f_to_kind(Kind::Double)?.f_norm()?.f_double_value(&[])?.powi(2);
        }
    }
    Ok((limit / squares.sqrt()).min(1.0 / scale.max(1.0)))
}

/// Returns the distance from 1 to the next number of this dtype.
fn spacing(kind: Kind) -> f64 {
    match kind {
        Kind::Double => f64::EPSILON,
        Kind::Half => 2.0_f64.powi(-10),
        Kind::BFloat16 => 2.0_f64.powi(-7),
        _ => f64::from(f32::EPSILON),
    }
}
