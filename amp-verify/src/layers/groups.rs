//! Compares each group of fused layers with the same layers run one after another, on the same
//! input and with the same weights. This comparison is needed because `Trainer::fit` runs the fused
//! groups, while the rest of the command `layers` measures each layer separately.

use std::{cell::RefCell, rc::Rc};

use amp_core::{
    Error, Result, Step,
    log::Log,
    nn::{self, Context, GroupProbe, Parameter, parameters, place},
    precision::{Policy, Precision, is_floating},
    random,
    tch::{Kind as Dtype, Tensor},
    trainer::first_loss,
};
use serde::{Deserialize, Serialize};

use super::Subject;
use crate::rounding::rounding_of;

/// A group of fused layers, and how far its results are from the results of the same layers run one
/// after another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// The paths of the fused layers, in the order in which they run.
    pub members: Vec<String>,
    /// The dtype of the output of the fused layers.
    pub dtype: String,
    /// The relative difference of the outputs: rms(fused − separate)/rms(separate). Null if it is
    /// not finite.
    pub forward: Option<f64>,
    /// The relative difference between an input's gradient from the fused layers and from the
    /// separate layers: the largest of all inputs. Null if there are no gradients, or if the
    /// difference is not finite.
    pub input_gradient: Option<f64>,
    /// The relative difference between a parameter's gradient from the fused layers and from the
    /// separate layers: the largest of all parameters. Null if there are no gradients, or if the
    /// difference is not finite.
    pub weight_gradient: Option<f64>,
    /// The largest accepted difference between the outputs of fused and separate layers.
    pub forward_bound: f64,
    /// The largest accepted difference between the gradients of fused and separate layers.
    pub gradient_bound: f64,
    /// Whether a difference exceeds its bound, or is not finite.
    pub is_beyond: bool,
}

/// The accepted difference between the outputs of fused and separate layers, in unit roundoffs of
/// the output's dtype. The fused kernel rounds its results once, and so does each separate layer.
/// The kernels may also round intermediate values a few times.
const OF_OUTPUT: f64 = 4.0;
/// The accepted difference between the gradients of fused and separate layers, in unit roundoffs of
/// the output's dtype.
const OF_GRADIENT: f64 = 8.0;
/// The relative difference between fused and separate layers that is always accepted, because f32
/// sums may be added in another order.
const LEAST: f64 = 1e-4;
/// The difference between a fused and a separate gradient is divided by the norm of the gradient,
/// but at least by this fraction of the norm of all gradients of the group. A gradient with a
/// smaller norm may consist of rounding errors alone.
const SHARE: f64 = 1e-2;

impl Group {
    /// Joins the paths of the layers, for example `model.0 with model.1 and model.2`.
    pub fn name(&self) -> String {
        match self.members.as_slice() {
            [] => String::new(),
            [only] => only.clone(),
            [first, others @ ..] => format!("{first} with {}", others.join(" and ")),
        }
    }

    /// Returns the largest of three ratios: the differences of output, input gradient and weight
    /// gradient, each divided by its bound. Returns infinity if a difference is not finite.
    pub fn over_bound(&self) -> f64 {
        let over = |figure: Option<f64>, bound: f64| figure.map_or(0.0, |figure| figure / bound);
        let found = [
            over(self.forward, self.forward_bound),
            over(self.input_gradient, self.gradient_bound),
            over(self.weight_gradient, self.gradient_bound),
        ];
        match found.into_iter().fold(0.0, f64::max) {
            largest if self.is_beyond && largest <= 1.0 => f64::INFINITY,
            largest => largest,
        }
    }
}

/// Runs a training step under this precision. Compares each group of layers that is fused in this
/// step with the separate layers. Returns the groups in the order in which they run. On a CPU there
/// are no groups. Dropout is off, because the fused kernel and the separate layers would use
/// different random masks.
///
/// # Errors
/// When the training step fails.
pub fn groups(subject: &Subject<'_>, precision: Precision) -> Result<Vec<Group>> {
    let policy = Policy::new(precision, subject.device);
    let _section = random::seeded(subject.seed)?;
    let mut model = subject.model()?;
    let mut model = subject.prepared(&mut model)?;
    place(model.as_mut(), policy, &subject.overrides)?;
    let batch = subject.batch.place(policy)?;
    let probe = Rc::new(Compare {
        parameters: parameters(model.as_mut()),
        found: RefCell::default(),
        failed: RefCell::default(),
    });
    let context = Context::new(policy, true)
        .with_overrides(subject.overrides.clone())
        .without_checkpointing()
        .without_dropout()
        .with_group_probe(probe.clone());
    let _autocast = policy.autocast()?;
    let mut log = Log::default();
    let _ = first_loss(model.as_mut(), &batch, &mut Step::new(&context, &mut log, 0, 0))?;
    match probe.failed.take() {
        Some(error) => Err(error),
        None => Ok(probe.found.take()),
    }
}

struct Compare {
    parameters: Vec<Parameter>,
    found: RefCell<Vec<Group>>,
    failed: RefCell<Option<Error>>,
}

impl GroupProbe for Compare {
    fn ran(&self, group: &nn::Group<'_>) {
        match self.compare(group) {
            Ok(Some(found)) => self.found.borrow_mut().push(found),
            Ok(None) => {}
            Err(error) => {
                self.failed.borrow_mut().get_or_insert(error.at(&group.paths.join(", ")));
            }
        }
    }
}

/// The results of running the layers of a group, either as one fused kernel or one after another.
struct Ran {
    output: Tensor,
    /// The gradients of the inputs, followed by the gradients of the parameters. `None` for a
    /// gradient that does not exist.
    gradients: Vec<Option<Tensor>>,
}

impl Compare {
    fn compare(&self, group: &nn::Group<'_>) -> Result<Option<Group>> {
        let is_member = |name: &str| {
            let mut paths = group.paths.iter();
            paths.any(|path| {
                name.strip_prefix(path.as_str()).is_some_and(|rest| rest.starts_with('.'))
            })
        };
        let own = self.parameters.iter().filter(|parameter| is_member(&parameter.name));
        let weights: Vec<Tensor> = own
            .map(|parameter| parameter.tensor.shallow_clone())
            .filter(Tensor::requires_grad)
            .collect();
        let fused = ran(group, &weights, &|inputs| (group.fused)(inputs))?;
        let apart = ran(group, &weights, &|inputs| (group.apart)(inputs).map(Some))?;
        let (Some(fused), Some(apart)) = (fused, apart) else { return Ok(None) };
        let dtype = group.output.kind();
        let rounding = rounding_of(dtype);
        let bound = |times: f64| (times * rounding).max(LEAST);
        let forward = distance(&fused.output, &apart.output, 0.0)?;
        let inputs = group.inputs.len();
        let of = |from: usize, to: usize| {
            largest(&fused.gradients[from..to], &apart.gradients[from..to])
        };
        let (input_gradient, weight_gradient) =
            (of(0, inputs)?, of(inputs, inputs + weights.len())?);
        let (forward_bound, gradient_bound) = (bound(OF_OUTPUT), bound(OF_GRADIENT));
        // A difference that is NaN exceeds every bound.
        let within = |figure: Option<f64>, bound: f64| figure.is_none_or(|figure| figure <= bound);
        let is_beyond = !(forward <= forward_bound
            && within(input_gradient, gradient_bound)
            && within(weight_gradient, gradient_bound));
        let finite = |figure: f64| Some(figure).filter(|figure| figure.is_finite());
        Ok(Some(Group {
            members: group.paths.to_vec(),
            dtype: amp_core::precision::dtype_name(dtype).into(),
            forward: finite(forward),
            input_gradient: input_gradient.and_then(finite),
            weight_gradient: weight_gradient.and_then(finite),
            forward_bound,
            gradient_bound,
            is_beyond,
        }))
    }
}

type Run<'a> = &'a dyn Fn(&[&Tensor]) -> Result<Option<Tensor>>;

/// Runs the layers of the group on the group's inputs. `run` decides whether they run as one fused
/// kernel or one after another. The backward pass starts from the same fixed gradient each time.
/// Returns `None` if `run` returns no output.
fn ran(group: &nn::Group<'_>, weights: &[Tensor], run: Run<'_>) -> Result<Option<Ran>> {
    let leaf = |input: &&Tensor| -> Result<Tensor> {
        let input = input.f_detach()?;
        Ok(if is_floating(input.kind()) { input.f_set_requires_grad(true)? } else { input })
    };
    let inputs = group.inputs.iter().map(leaf).collect::<Result<Vec<_>>>()?;
    let Some(output) = run(&inputs.iter().collect::<Vec<_>>())? else { return Ok(None) };
    let mut wanted: Vec<Tensor> = inputs.iter().map(Tensor::shallow_clone).collect();
    wanted.extend(weights.iter().map(Tensor::shallow_clone));
    let traced: Vec<bool> = wanted.iter().map(Tensor::requires_grad).collect();
    let gradients = match output.requires_grad() {
        false => wanted.iter().map(|_| None).collect(),
        true => {
            let sum = output.f_mul(&direction(&output)?)?.f_sum(output.kind())?;
            let leaves: Vec<&Tensor> =
                wanted.iter().zip(&traced).filter(|(_, traced)| **traced).map(|(t, _)| t).collect();
            // Keeps the autograd graph after this backward pass (`retain_graph`). It contains
            // weight casts from autocast's cache, which the graph of the whole step uses too.
            let mut found = Tensor::f_run_backward(&[sum], &leaves, true, false)?.into_iter();
            let mut next = |traced: &bool| traced.then(|| found.next()).flatten();
            traced.iter().map(|traced| next(traced).filter(Tensor::defined)).collect()
        }
    };
    Ok(Some(Ran { output: output.f_detach()?, gradients }))
}

/// Returns a fixed gradient for an output, with various signs and magnitudes. Uses no random
/// numbers, because the state of the random generator must not change within a step.
fn direction(output: &Tensor) -> Result<Tensor> {
    let numel = i64::try_from(output.numel()).unwrap_or(i64::MAX);
    let places = Tensor::f_arange(numel, (Dtype::Double, output.device()))?;
    let waves = places.f_square()?.f_mul_scalar(0.37)?.f_cos()?;
    Ok(waves.f_view(output.size().as_slice())?.f_to_kind(output.kind())?)
}

/// Computes the relative difference of two tensors, ‖a − b‖/max(‖b‖, least). Returns 0 if a equals
/// b.
fn distance(a: &Tensor, b: &Tensor, least: f64) -> Result<f64> {
    let (a, b) = (a.f_to_kind(Dtype::Double)?, b.f_to_kind(Dtype::Double)?);
    let off = norm(&a.f_sub(&b)?)?;
    Ok(if off == 0.0 { 0.0 } else { off / norm(&b)?.max(least) })
}

fn norm(tensor: &Tensor) -> Result<f64> {
    Ok(tensor.f_to_kind(Dtype::Double)?.f_norm()?.f_double_value(&[])?)
}

/// Returns the largest relative difference between a gradient with fused layers and the same
/// gradient with separate layers. Returns NaN if a gradient exists in only one of the two cases,
/// and `None` if there are no gradients.
fn largest(fused: &[Option<Tensor>], apart: &[Option<Tensor>]) -> Result<Option<f64>> {
    let mut all = 0.0;
    for gradient in apart.iter().flatten() {
        all += norm(gradient)?.powi(2);
    }
    let least = SHARE * f64::sqrt(all);
    let mut worst: Option<f64> = None;
    for pair in fused.iter().zip(apart) {
        let found = match pair {
            (Some(a), Some(b)) => distance(a, b, least)?,
            (None, None) => continue,
            _ => f64::NAN,
        };
        let is_larger = worst.is_none_or(|worst| found.is_nan() || found > worst);
        if is_larger && !worst.is_some_and(f64::is_nan) {
            worst = Some(found);
        }
    }
    Ok(worst)
}
