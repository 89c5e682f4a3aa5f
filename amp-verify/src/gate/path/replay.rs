//! Repeats the updates of an observed run in float64, from the same gradients, to check clipping,
//! optimizer steps and schedules. Uses elementwise operations of libtorch on the run's device. Uses
//! neither the trainer's code for unscaling, clipping and stepping, nor the code and the kernels of
//! the optimizers. If this module has no rule for an optimizer, the optimizer's own code makes the
//! step in float64.

use std::collections::BTreeMap;

use amp_core::{
    LightningModule, Result,
    log::Logged,
    nn::{self, Role},
    optim::{Interval, Scheduled, Storage, TrainingPlan},
    precision::{Clip, Policy, Precision},
    state::State,
    tch::{Device, Kind, Tensor, no_grad},
};

use super::{
    between::{Change, Kept},
    final_state::{exact, exact_on},
    rule::{Rule, Slots},
};
use crate::{
    gate::hooks::copy_of,
    rounding::rounding_of,
    scalars::{read, square, square_of_difference},
};

/// The accepted relative difference between the run and the repetition in float64. That of weights
/// is relative to the norm of their change in all steps so far, that of optimizer state to its
/// norm. It allows for several f32 operations with a relative error of 2⁻²⁴ each.
const ROUNDING: f64 = 2e-5;

/// Repeats the optimizer steps of a run with f64 copies of the parameters.
pub(super) struct Replay {
    /// Never read: keeps alive the model whose parameters are the f64 copies that this replay
    /// updates.
    _model: Box<dyn LightningModule>,
    scheduled: Vec<Scheduled>,
    /// For each optimizer, the rule with which this module repeats its steps. `None` if this module
    /// has no rule for the optimizer.
    rules: Vec<Option<Ruled>>,
    /// The run's parameters before the first step, by name. The changes by hooks are added later,
    /// so that only the optimizers' steps lie between these values and the current parameters.
    initial: BTreeMap<String, Tensor>,
    /// Copies of the run's parameters after the latest step, before hooks changed them.
    kept: Kept,
    clip: Option<Clip>,
    steps: u64,
    /// The largest difference from the repetition in float64 so far, divided by the accepted
    /// difference.
    pub(super) worst: f64,
    /// The number of steps in which gradients were clipped.
    pub(super) clipped: u64,
}

/// The update rule of one of the model's optimizers, and the state that the rule needs.
struct Ruled {
    rule: Rule,
    /// For each parameter by name: how often it was updated, and its optimizer state.
    kept: BTreeMap<String, (u64, Slots)>,
}

/// The difference between the optimizer state of the run and that of the repetition in float64.
struct Distance {
    /// Which tensor was compared, in words.
    what: String,
    /// The norm of the difference between the run and the repetition.
    off: f64,
    /// The norm by which `off` and `allowed` are divided in messages.
    of: f64,
    /// The largest accepted norm of the difference between the run and the repetition.
    allowed: f64,
}

/// A difference between the run and the repetition, as a sentence. `Rates` is a difference of
/// learning rates. `Update` is a difference of weights or optimizer state.
pub(super) enum Wrong {
    Rates(String),
    Update(String),
}

impl Replay {
    /// Prepares to repeat the optimizer steps of `run` in float64. `model` is another build of the
    /// same model. It receives the weights of `run`.
    pub(super) fn new(
        model: Box<dyn LightningModule>,
        run: &dyn LightningModule,
        plan: &TrainingPlan,
        clip: Option<Clip>,
    ) -> Result<Self> {
        let first = nn::parameters(run).into_iter().next();
        let device = first.map_or(Device::Cpu, |parameter| parameter.tensor.device());
        let policy = Policy::new(Precision::F64True, device);
        nn::place(model.as_ref(), policy, &BTreeMap::new())?;
        for ((_, own, _), (_, run, _)) in
            nn::named_tensors(model.as_ref()).into_iter().zip(nn::named_tensors(run))
        {
            let kind = own.kind();
            no_grad(|| own.shallow_clone().f_copy_(&run.f_detach()?.f_to_kind(kind)?))?;
        }
        let parameters = nn::parameters(model.as_ref());
        // These copies have the dtype of the run. f64 copies would take at least twice as much
        // memory.
        let initial = nn::parameters(run)
            .iter()
            .map(|parameter| Ok((parameter.name.clone(), copy_of(&parameter.tensor)?)))
            .collect::<Result<_>>()?;
        // An optimizer may be configured without the frozen parameters. So the run's frozen
        // parameters are also frozen here while this model configures its optimizers.
        let frozen: Vec<Tensor> = nn::parameters(model.as_ref())
            .into_iter()
            .zip(nn::parameters(run))
            .filter(|(_, run)| !run.tensor.requires_grad())
            .map(|(own, _)| own.tensor.set_requires_grad(false))
            .collect();
        let scheduled = model.configure_optimizers(plan)?.build(parameters, Storage::default())?;
        frozen.iter().for_each(|own| drop(own.set_requires_grad(true)));
        let ruled = |scheduled: &Scheduled| {
            scheduled.optimizer.options(0)?;
            let rule = Rule::of(scheduled.optimizer.name())?;
            Some(Ruled { rule, kept: BTreeMap::new() })
        };
        let rules = scheduled.iter().map(ruled).collect();
        Ok(Self {
            _model: model,
            scheduled,
            rules,
            initial,
            kept: Kept::of(run, Role::Parameter)?,
            clip,
            steps: 0,
            worst: 0.0,
            clipped: 0,
        })
    }

    /// Receives the weights that hooks of the run have changed since the latest step.
    pub(super) fn follow(&mut self, run: &dyn LightningModule) -> Result<()> {
        for Change { name, before, after } in self.kept.changes(run)? {
            let Some(initial) = self.initial.get_mut(&name) else { continue };
            *initial = no_grad(|| initial.f_add(&after.f_detach()?)?.f_sub(&before))?;
            let mut all = self.scheduled.iter().flat_map(|own| own.optimizer.parameters().iter());
            if let Some(own) = all.find(|own| own.name == name) {
                let (mut own, kind) = (own.tensor.shallow_clone(), own.tensor.kind());
                no_grad(|| own.f_copy_(&after.f_detach()?.f_to_kind(kind)?))?;
            }
        }
        Ok(())
    }

    /// Copies the run's weights at the end of a step, to find later which ones hooks change.
    pub(super) fn keep(&mut self, run: &dyn LightningModule) -> Result<()> {
        self.kept = Kept::of(run, Role::Parameter)?;
        Ok(())
    }

    /// Repeats a step of the run in float64. `gradients` has one map for each optimizer, from the
    /// name of a parameter to its gradient. The gradients are unscaled and not yet clipped.
    pub(super) fn step(&mut self, gradients: &[BTreeMap<String, Tensor>]) -> Result<()> {
        self.steps += 1;
        for own in gradients {
            let own = own.iter().map(|(name, gradient)| Ok((name.as_str(), exact(gradient)?)));
            let own = own.collect::<Result<BTreeMap<_, _>>>()?;
            let (own, changed) = clipped(own, self.clip)?;
            self.clipped += u64::from(changed);
            let is_of = |scheduled: &Scheduled| {
                let mut parameters = scheduled.optimizer.parameters().iter();
                parameters.any(|parameter| own.contains_key(parameter.name.as_str()))
            };
            let Some(at) = self.scheduled.iter().position(is_of) else { continue };
            let scheduled = &mut self.scheduled[at];
            match &mut self.rules[at] {
                Some(ruled) => ruled.step(scheduled, &own)?,
                None => step_with_own_code(scheduled, &own)?,
            }
            scheduled.advance(Interval::Step, &[])?;
        }
        Ok(())
    }

    /// Advances the schedules that advance after each epoch. A schedule may depend on the logged
    /// values.
    pub(super) fn end_epoch(&mut self, logged: &[Logged]) -> Result<()> {
        self.scheduled
            .iter_mut()
            .try_for_each(|scheduled| scheduled.advance(Interval::Epoch, logged))
    }

    /// Compares the learning rates, weights and optimizer state of the run with those of the
    /// repetition. The run and the repetition must have made the same number of steps.
    pub(super) fn compare(&mut self, run: &[Scheduled]) -> Result<Option<Wrong>> {
        for (own, run) in self.scheduled.iter().zip(run) {
            if own.rates() != run.rates() {
                let rates = |scheduled: &Scheduled| -> Vec<f64> {
                    scheduled.rates().iter().map(|group| group.rates.lr).collect()
                };
                return Ok(Some(Wrong::Rates(format!(
                    "the learning rates are {:?}, but the schedule prescribes {:?}",
                    rates(run),
                    rates(own)
                ))));
            }
        }
        let (mut sums, mut eps) = (Vec::new(), 0.0_f64);
        for (own, run) in self.scheduled.iter().zip(run) {
            for own in own.optimizer.parameters().iter() {
                let mut others = run.optimizer.parameters().iter();
                let Some(run) = others.find(|run| run.name == own.name) else {
                    let text = format!("the optimizer lacks `{}`", own.name);
                    return Ok(Some(Wrong::Update(text)));
                };
                let (from, own) = (exact(&self.initial[&own.name])?, exact(&own.tensor)?);
                eps = eps.max(rounding_of(run.tensor.kind()));
                let run = exact_on(own.device(), &run.tensor)?;
                sums.extend([
                    square_of_difference(&run, &own)?,
                    square_of_difference(&own, &from)?,
                    square(&own)?,
                ]);
            }
        }
        let sums = read(&sums)?;
        let sum = |at: usize| sums.iter().skip(at).step_by(3).sum::<f64>();
        let (off, moved, size) = (sum(0), sum(1), sum(2));
        let allowed =
            ROUNDING * moved.sqrt() + self.steps as f64 * eps * size.sqrt() + self.signs();
        if let Some(text) = self.beyond("the weights", off.sqrt(), moved.sqrt(), allowed) {
            return Ok(Some(Wrong::Update(text)));
        }
        let mut averages = Vec::new();
        for ((own, ruled), run) in self.scheduled.iter().zip(&self.rules).zip(run) {
            let own = match ruled {
                Some(ruled) => ruled.state(),
                None => own.optimizer.state()?,
            };
            averages.extend(self.averages(&own, run)?);
        }
        for Distance { what, off, of, allowed } in averages {
            if let Some(text) = self.beyond(&what, off, of, allowed) {
                return Ok(Some(Wrong::Update(text)));
            }
        }
        Ok(None)
    }

    /// Compares the running averages in an optimizer's state. They reveal if all gradients were
    /// multiplied by a wrong factor. An adaptive optimizer's steps do not reveal this, because the
    /// factor cancels in them.
    fn averages(&self, own: &State, run: &Scheduled) -> Result<Vec<Distance>> {
        let run_parameters = run.optimizer.parameters();
        let run = run.optimizer.state()?;
        let (mut slots, mut each) = (Vec::new(), Vec::new());
        // `eps` is at least the unit roundoff of the parameters' dtype, because the run rounds
        // clipped gradients to this dtype.
        let kinds = run_parameters.iter().map(|parameter| rounding_of(parameter.tensor.kind()));
        let mut eps = kinds.fold(0.0_f64, f64::max);
        for (name, tensor) in own.tensors() {
            let Ok(found) = run.tensor(name) else { continue };
            if found.size() != tensor.size() || !is_floating(found.kind()) {
                continue;
            }
            eps = eps.max(rounding_of(found.kind()));
            let (found, tensor) = (exact_on(tensor.device(), found)?, exact(tensor)?);
            slots.push(name.split('/').next().unwrap_or(name).to_owned());
            each.extend([square_of_difference(&found, &tensor)?, square(&tensor)?]);
        }
        let mut sums: BTreeMap<String, (f64, f64)> = BTreeMap::new();
        for (slot, of) in slots.into_iter().zip(read(&each)?.chunks(2)) {
            let sum = sums.entry(slot).or_default();
            (sum.0, sum.1) = (sum.0 + of[0], sum.1 + of[1]);
        }
        let distance = |(slot, (off, size)): (String, (f64, f64))| {
            let (off, of) = (off.sqrt(), size.sqrt());
            // Accepts 3 unit roundoffs for the rounding of the gradients, whose relative error
            // doubles if they are squared, and 1 more for each step, which rounds the average.
            let allowed = (ROUNDING + (3.0 + self.steps as f64) * eps) * of;
            Distance { what: format!("the optimizer's `{slot}`"), off, of, allowed }
        };
        Ok(sums.into_iter().map(distance).collect())
    }

    /// Returns by how much more the weights may differ from the repetition's if the optimizer is
    /// Lion (0 for any other). Lion uses only the sign of an average, and rounding may change the
    /// sign of an average that is near zero.
    fn signs(&self) -> f64 {
        let by_sign = self
            .scheduled
            .iter()
            .zip(&self.rules)
            .filter(|(_, ruled)| ruled.as_ref().is_some_and(|ruled| ruled.rule == Rule::Lion));
        let most = by_sign.map(|(scheduled, _)| {
            let parameters = scheduled.optimizer.parameters().iter();
            let elements: usize = parameters.map(|parameter| parameter.tensor.numel()).sum();
            let turned = 4.0 + 1e-6 * elements as f64 * self.steps as f64;
            let rates = scheduled.optimizer.rates().into_iter().map(|rates| rates.lr);
            2.0 * turned.sqrt() * rates.fold(0.0, f64::max)
        });
        most.fold(0.0, f64::max)
    }

    fn beyond(&mut self, what: &str, off: f64, of: f64, allowed: f64) -> Option<String> {
        if off == 0.0 {
            return None;
        }
        let share = off / allowed;
        self.worst = self.worst.max(share);
        // A difference between the run and the repetition that is NaN exceeds every tolerance.
        (share.is_nan() || share > 1.0).then(|| {
            let clip = match self.clip {
                Some(Clip::Norm(limit)) => format!(
                    ", clipped to a norm of {limit:.3} in {} of {} steps",
                    self.clipped, self.steps
                ),
                Some(Clip::Value(limit)) => format!(", clipped at {limit:.3}"),
                None => String::new(),
            };
            format!(
                "{what} differ by {:.2e} from the optimizer's update with the same \
                 gradients in float64{clip}; at most {:.1e} is accepted",
                off / of,
                allowed / of
            )
        })
    }
}

impl Ruled {
    fn step(&mut self, scheduled: &Scheduled, own: &BTreeMap<&str, Tensor>) -> Result<()> {
        for (place, parameter) in scheduled.optimizer.parameters().iter().enumerate() {
            let (Some(gradient), Some(options)) =
                (own.get(parameter.name.as_str()), scheduled.optimizer.options(place))
            else {
                continue;
            };
            let (steps, slots) = self.kept.entry(parameter.name.clone()).or_default();
            *steps += 1;
            self.rule.step(&options, *steps, &parameter.tensor, gradient, slots)?;
        }
        Ok(())
    }

    /// Returns the optimizer state of the repetition under the names that the optimizer uses in
    /// checkpoints.
    fn state(&self) -> State {
        let mut state = State::default();
        for (name, (_, slots)) in &self.kept {
            for (slot, tensor) in slots {
                state.put_tensor(format!("{slot}/{name}"), tensor);
            }
        }
        state
    }
}

/// Makes a step with the optimizer's own code. A backward pass of Σ⟨p, g⟩ over all parameters p
/// sets the gradient of each p to its g.
fn step_with_own_code(scheduled: &mut Scheduled, own: &BTreeMap<&str, Tensor>) -> Result<()> {
    scheduled.optimizer.zero_grad()?;
    let mut sum = Tensor::from(0.0);
    for parameter in scheduled.optimizer.parameters().iter() {
        if let Some(gradient) = own.get(parameter.name.as_str()) {
            let kind = parameter.tensor.kind();
            let product = parameter.tensor.f_mul(&gradient.f_to_kind(kind)?)?;
            sum = sum.f_add(&product.f_sum(Kind::Double)?)?;
        }
    }
    sum.f_backward()?;
    scheduled.optimizer.step()
}

/// Clips the gradients as PyTorch's documentation specifies. Returns whether clipping changed them.
fn clipped(
    gradients: BTreeMap<&str, Tensor>,
    clip: Option<Clip>,
) -> Result<(BTreeMap<&str, Tensor>, bool)> {
    let mut changed = false;
    let mut each = |change: &dyn Fn(&Tensor) -> Result<Tensor>| -> Result<BTreeMap<&str, Tensor>> {
        changed = true;
        gradients.iter().map(|(name, gradient)| Ok((*name, change(gradient)?))).collect()
    };
    let clipped = match clip {
        None => None,
        Some(Clip::Value(limit)) => Some(each(&|g| Ok(g.f_clamp(-limit, limit)?))?),
        Some(Clip::Norm(limit)) => {
            let squares = read(&gradients.values().map(square).collect::<Result<Vec<_>>>()?)?;
            let factor = limit / (squares.iter().sum::<f64>().sqrt() + 1e-6);
            match factor < 1.0 {
                true => Some(each(&|g| Ok(g.f_mul_scalar(factor)?))?),
                false => None,
            }
        }
    };
    Ok((clipped.unwrap_or(gradients), changed))
}

fn is_floating(kind: Kind) -> bool {
    matches!(kind, Kind::Half | Kind::BFloat16 | Kind::Float | Kind::Double)
}
