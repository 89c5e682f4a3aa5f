//! A few steps of a precision beside the same steps in 32-true: what accuracy forgives and a rule
//! does not. Without dropout and batch statistics, whose random numbers differ between dtypes on
//! a GPU, both begin with the same weights and see the same examples.

use std::{cell::RefCell, rc::Rc};

use amp_core::{
    Error, Hook, LightningModule, Result, Step, Trainer, TrainerConfig,
    callback::{Action, Callback},
    data::Batch,
    log::Log,
    nn::{self, Context, Role, named_tensors},
    precision::{GradScalerConfig, Gradients, Precision, StepOutcome, Unscaled},
    tch::{Device, Kind, Tensor, no_grad},
    weights,
};
use serde::{Deserialize, Serialize};

use super::{
    identity,
    job::{Failure, Job, Outcome, Reason},
    tap::{Tap, Tapped},
};
use crate::{case::Case, diagnose::Islands, selftest::Fault};

/// Optimizer steps beside 32-true.
const STEPS: u64 = 6;
/// The scale of those steps: low, so that none is skipped.
const CALM: f64 = 1024.0;
/// The scale that overflows: f16 gradients above 65504/2³⁴ = 3.8e-6 are infinite.
const OVERFLOWING: f64 = 17_179_869_184.0;
/// Parameters with less than this share of the gradient's norm are rounding alone, as a bias
/// before a batch norm is.
const SHARE: f64 = 1e-2;

/// How far the steps were from the 32-true ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// The largest relative error of a parameter's first gradient, ‖g − g₃₂‖/‖g₃₂‖.
    pub gradient_error: f64,
    /// The parameter it is of.
    pub gradient_parameter: String,
    /// The first loss's relative error.
    pub loss_error: f64,
    /// The distance of the weights after the steps over how far 32-true went,
    /// ‖w − w₃₂‖/‖w₃₂ − w₀‖.
    pub update_error: f64,
    /// The relative difference of the ways gone, ‖w − w₀‖/‖w₃₂ − w₀‖ − 1.
    pub update_bias: f64,
    /// The relative difference of the weights' norms, (‖w‖ − ‖w₃₂‖)/‖w₃₂ − w₀‖: rounding towards
    /// zero and a lost weight decay show here.
    pub norm_bias: f64,
    /// Steps skipped while the scale came down from where it overflows.
    pub overflows: Option<u64>,
}

/// How far a precision may be from 32-true: set by hand above the most that any fixture model shows
/// on a CPU, which `tests/record_margins.py` records in `fixtures/margins.json`; under 64-true and
/// for some figures of bf16 far above. What is random (a unit of ReLU that falls on the other
/// side) makes most of a gradient's error.
struct Bounds {
    gradient: f64,
    loss: f64,
    update: f64,
    bias: f64,
}

impl Bounds {
    fn of(precision: Precision) -> Self {
        let (gradient, loss, update, bias) = match precision {
            Precision::F32True => (0.0, 0.0, 0.0, 0.0),
            Precision::F64True => (1e-3, 1e-6, 0.1, 1e-3),
            Precision::F16Mixed => (0.15, 1e-4, 0.3, 3e-3),
            Precision::Bf16Mixed => (0.2, 2e-3, 0.4, 6e-3),
            Precision::F16True => (0.15, 0.004, 0.3, 0.015),
            Precision::Bf16True => (0.2, 0.02, 0.5, 0.15),
        };
        Self { gradient, loss, update, bias }
    }
}

/// What is noted of a run.
#[derive(Default)]
struct Trace {
    gradients: Vec<(String, Tensor)>,
    loss: Option<Tensor>,
    rates: Vec<f64>,
    skips: u64,
    moved_on_skip: bool,
    before: Vec<Tensor>,
    save_at: Option<(u64, std::path::PathBuf)>,
}

#[derive(Clone, Default)]
struct Tracer(Rc<RefCell<Trace>>);

impl Callback for Tracer {
    fn name(&self) -> String {
        "conformance".into()
    }

    fn on_before_optimizer_step(
        &mut self,
        gradients: &Gradients<Unscaled>,
        hook: &mut Hook<'_>,
    ) -> Result<()> {
        let mut trace = self.0.borrow_mut();
        if trace.gradients.is_empty() {
            for (name, gradient) in gradients.named() {
                trace.gradients.push((name.to_owned(), on_host(gradient)?));
            }
        }
        let parameters = hook.optimizers().iter().flat_map(|s| s.optimizer.parameters());
        trace.before = parameters.map(|p| Ok(p.tensor.f_detach_copy()?)).collect::<Result<_>>()?;
        Ok(())
    }

    fn on_train_batch_end(
        &mut self,
        outcome: Option<&StepOutcome>,
        hook: &mut Hook<'_>,
    ) -> Result<Vec<Action>> {
        let mut trace = self.0.borrow_mut();
        match outcome {
            None => return Ok(Vec::new()),
            Some(StepOutcome::Applied) => {
                let rates = hook.optimizers().iter().flat_map(|s| s.rates());
                trace.rates.extend(rates.map(|group| group.rates.lr));
            }
            Some(StepOutcome::Skipped { .. }) => {
                trace.skips += 1;
                let parameters = hook.optimizers().iter().flat_map(|s| s.optimizer.parameters());
                let mut moved = trace.moved_on_skip;
                for (old, parameter) in trace.before.iter().zip(parameters) {
                    moved |= !old.f_equal(&parameter.tensor.f_detach()?)?;
                }
                trace.moved_on_skip = moved;
                return Ok(Vec::new());
            }
        }
        match &trace.save_at {
            Some((step, path)) if *step == hook.global_step => {
                Ok(vec![Action::Save { path: path.clone(), weights_only: false }])
            }
            _ => Ok(Vec::new()),
        }
    }
}

/// Computes each loss without dropout and batch statistics, and notes the first.
struct Still(Tracer, Rc<Islands>);

impl Tap for Still {
    fn training_step(
        &mut self,
        model: &mut dyn LightningModule,
        batch: &Batch,
        step: &mut Step<'_>,
    ) -> Result<Tensor> {
        let context = Context::new(step.context().policy(), false).with_islands(self.1.clone());
        let mut log = Log::default();
        let mut own = Step::new(&context, &mut log, step.batch_idx, step.global_step);
        let loss = model.training_step(batch, &mut own)?;
        let mut trace = self.0.0.borrow_mut();
        if trace.loss.is_none() {
            trace.loss = Some(on_host(&loss)?);
        }
        Ok(loss)
    }
}

fn on_host(tensor: &Tensor) -> Result<Tensor> {
    let tensor = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?;
    Ok(tensor.f_detach_copy()?)
}

fn parameters(model: &dyn LightningModule) -> Result<Vec<Tensor>> {
    let tensors = named_tensors(model).into_iter();
    let own = tensors.filter(|(_, _, role)| *role == Role::Parameter);
    own.map(|(_, tensor, _)| on_host(&tensor)).collect()
}

/// A run of some steps.
struct Ran {
    trace: Trace,
    initial: Vec<Tensor>,
    weights: Vec<Tensor>,
    finite: bool,
    steps: u64,
    scale: Option<f64>,
}

struct Steps<'a> {
    job: &'a Job,
    case: &'a Case,
    precision: Precision,
}

impl Steps<'_> {
    fn config(&self, steps: u64, init_scale: f64) -> TrainerConfig {
        let mut config = self.job.config(self.case, self.precision);
        // Enough for the scale to come down, and an end where no step is ever applied.
        config.max_epochs = 12;
        config.max_steps = Some(steps);
        config.scaler = GradScalerConfig { init_scale, growth_interval: 4, ..config.scaler };
        config
    }

    fn run(
        &self,
        config: TrainerConfig,
        trace: Trace,
        resume: Option<&std::path::Path>,
    ) -> Result<Ran> {
        let tracer = Tracer(Rc::new(RefCell::new(trace)));
        let model = self.job.model(self.case, self.precision)?;
        let initial = parameters(model.as_ref())?;
        let mut model = Tapped::new(model, Still(tracer.clone(), config.islands.clone()));
        let mut trainer = Trainer::new(config).callback(tracer.clone());
        if let Some(path) = resume {
            if Fault::loses_state(self.job.fault) {
                nn::place(
                    &model,
                    amp_core::precision::Policy::new(self.precision, self.case.trainer.device),
                    &Default::default(),
                )?;
                weights::load(&model, path)?;
            } else {
                trainer = trainer.resume_from(path);
            }
        }
        let record = trainer.fit(&mut model, &self.case.data)?;
        drop(trainer);
        let finite = identity::is_finite(&model)?;
        let weights = parameters(&model)?;
        let trace = tracer.0.take();
        let (steps, scale) = (record.end.global_step, record.end.scale);
        Ok(Ran { trace, initial, weights, finite, steps, scale })
    }
}

/// Does the job.
pub(super) fn run(job: &Job) -> Result<Outcome> {
    let case = job.case(Precision::F32True)?;
    let exact = Steps { job, case: &case, precision: Precision::F32True };
    let exact = exact.run(exact.config(STEPS, CALM), Trace::default(), None)?;
    let case = job.case(job.precision)?;
    let steps = Steps { job, case: &case, precision: job.precision };
    let ran = steps.run(steps.config(STEPS, CALM), Trace::default(), None)?;
    let mut outcome = Outcome::failed(Failure::new(Reason::Crashed, ""));
    outcome.failures.clear();
    let mut figures = compare(&exact, &ran)?;
    judge(job.precision, &figures, &mut outcome.failures);
    let failures = &mut outcome.failures;
    if ran.trace.rates != exact.trace.rates {
        failures.push(differs("the learning rates of the first steps"));
    }
    if !ran.finite {
        failures.push(Failure::new(Reason::NonFinite, "a weight is not finite after few steps"));
    }
    if job.precision.scales_loss() {
        figures.overflows = Some(overflow(&steps, &exact, failures)?);
    }
    resume(&steps, failures)?;
    outcome.conformance = Some(figures);
    Ok(outcome)
}

fn differs(what: &str) -> Failure {
    Failure::new(Reason::NotConformant, format!("{what} are not those of 32-true"))
}

/// Starts where the scale overflows: each such step must leave the weights alone and move no
/// schedule, and the scale must come down until steps are applied.
fn overflow(steps: &Steps<'_>, exact: &Ran, failures: &mut Vec<Failure>) -> Result<u64> {
    let ran = steps.run(steps.config(STEPS, OVERFLOWING), Trace::default(), None)?;
    let mut fail = |text: &str| failures.push(Failure::new(Reason::NotConformant, text));
    // With regions by path nothing may be left in f16.
    if ran.trace.skips == 0 && steps.job.islands.is_empty() {
        fail("no step was skipped although the scale overflows");
    }
    if ran.trace.moved_on_skip {
        fail("a skipped step moved the weights");
    }
    if ran.trace.rates != exact.trace.rates || ran.steps != STEPS {
        fail("skipped steps moved the schedule or counted as steps");
    }
    if !ran.finite {
        failures.push(Failure::new(Reason::NonFinite, "a weight is not finite after an overflow"));
    }
    Ok(ran.trace.skips)
}

/// Saves half way and goes on in a new model: weights and scale must be those of the run that was
/// not stopped.
fn resume(steps: &Steps<'_>, failures: &mut Vec<Failure>) -> Result<()> {
    let folder = tempfile::tempdir().map_err(|error| Error::io("a temporary folder", error))?;
    let path = folder.path().join("half.safetensors");
    let saving = Trace { save_at: Some((STEPS / 2, path.clone())), ..Trace::default() };
    let whole = steps.run(steps.config(STEPS, CALM), saving, None)?;
    let mut config = steps.config(STEPS, CALM);
    if Fault::loses_state(steps.job.fault) {
        config.max_steps = Some(STEPS - STEPS / 2);
    }
    let resumed = steps.run(config, Trace::default(), Some(&path))?;
    let distance = relative(&resumed.weights, &whole.weights, &whole.initial)?;
    // Sums on a GPU may go in another order.
    let bound = if steps.case.trainer.device.is_cuda() { 0.05 } else { 0.0 };
    if resumed.scale != whole.scale {
        let text = format!(
            "a resumed run ends at scale {:?}, one that was not stopped at {:?}",
            resumed.scale.unwrap_or(1.0),
            whole.scale.unwrap_or(1.0)
        );
        failures.push(Failure::new(Reason::NotConformant, text));
    }
    if distance > bound || distance.is_nan() {
        let text = format!(
            "a resumed run's weights are {distance:.2e} from those of one that was not stopped"
        );
        failures.push(Failure::new(Reason::NotConformant, text));
    }
    Ok(())
}

fn norm(tensors: &[Tensor]) -> Result<f64> {
    let mut sum = 0.0;
    for tensor in tensors {
        sum += tensor.f_square()?.f_sum(Kind::Double)?.f_double_value(&[])?;
    }
    Ok(sum.sqrt())
}

fn minus(a: &[Tensor], b: &[Tensor]) -> Result<Vec<Tensor>> {
    no_grad(|| a.iter().zip(b).map(|(a, b)| Ok(a.f_sub(b)?)).collect())
}

/// ‖a − b‖/‖b − from‖.
fn relative(a: &[Tensor], b: &[Tensor], from: &[Tensor]) -> Result<f64> {
    let distance = norm(&minus(a, b)?)?;
    Ok(if distance == 0.0 { 0.0 } else { distance / norm(&minus(b, from)?)? })
}

fn compare(exact: &Ran, ran: &Ran) -> Result<Figures> {
    let all: Vec<Tensor> =
        exact.trace.gradients.iter().map(|(_, gradient)| gradient.shallow_clone()).collect();
    let whole = norm(&all)?;
    let (mut gradient_error, mut gradient_parameter) = (0.0_f64, String::new());
    for (name, expected) in &exact.trace.gradients {
        let size = norm(&[expected.shallow_clone()])?;
        if size < SHARE * whole {
            continue;
        }
        let found = ran.trace.gradients.iter().find(|(own, _)| own == name);
        let error = match found {
            Some((_, found)) => norm(&[found.f_sub(expected)?])? / size,
            None => f64::INFINITY,
        };
        // NaN is the largest of all.
        if error.is_nan() || error > gradient_error {
            (gradient_error, gradient_parameter) = (error, name.clone());
        }
        if gradient_error.is_nan() {
            break;
        }
    }
    let loss = |run: &Ran| match &run.trace.loss {
        Some(loss) => Ok(loss.f_double_value(&[])?),
        None => Ok::<f64, Error>(f64::NAN),
    };
    let way = norm(&minus(&exact.weights, &exact.initial)?)?;
    Ok(Figures {
        gradient_error,
        gradient_parameter,
        loss_error: (loss(ran)? - loss(exact)?).abs() / loss(exact)?.abs(),
        update_error: relative(&ran.weights, &exact.weights, &exact.initial)?,
        update_bias: norm(&minus(&ran.weights, &ran.initial)?)? / way - 1.0,
        norm_bias: (norm(&ran.weights)? - norm(&exact.weights)?) / way,
        overflows: None,
    })
}

fn judge(precision: Precision, figures: &Figures, failures: &mut Vec<Failure>) {
    let bounds = Bounds::of(precision);
    let mut within = |what: &str, value: f64, bound: f64| {
        // NaN is within no bound.
        if value.is_nan() || value.abs() > bound {
            let text = format!("{what} is {value:.2e} from 32-true, beyond {bound:.0e}");
            failures.push(Failure::new(Reason::NotConformant, text));
        }
    };
    within("the first loss", figures.loss_error, bounds.loss);
    let what = format!("the first gradient of `{}`", figures.gradient_parameter);
    within(&what, figures.gradient_error, bounds.gradient);
    within("the weights' way", figures.update_error, bounds.update);
    within("the length of the weights' way", figures.update_bias, bounds.bias);
    within("the norm of the weights", figures.norm_bias, bounds.bias);
}
