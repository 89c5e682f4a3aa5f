//! Finds the first value of a step that was not finite: repeats the step once and checks the
//! outputs and gradients of all modules.

use std::{cell::RefCell, fmt, rc::Rc};

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::{
    Error, LightningModule, Result, Step,
    data::AnyBatch,
    ffi::WatchedGradient,
    log::Log,
    nn::{Call, Context, Parameter, Probe},
    precision::{Policy, dtype_name, is_floating},
};

/// The first value of a step that was not finite.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// Where the value occurred: for example a parameter, or the output of a module.
    pub cause: Cause,
    /// The dtype of the value, as in `float16`.
    pub dtype: String,
    /// The number of NaN elements in the tensor.
    pub nan: i64,
    /// The number of infinite elements in the tensor.
    pub inf: i64,
    /// The number of all elements of the tensor.
    pub of: i64,
    /// The largest absolute value in the input tensor from which this tensor was computed. `None`
    /// if it is not known.
    pub from: Option<f64>,
}

/// Where the first value that was not finite occurred.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Cause {
    /// The parameter with this name was not finite before the step.
    Parameter(String),
    /// The field of the batch with this name was not finite.
    Input(String),
    /// The output of the module with this path. The input of the module was finite.
    Activation(String),
    /// The loss. The output of every module was finite.
    Loss,
    /// The gradient of the loss with respect to the model's output.
    LossGradient,
    /// The gradient with respect to the input of the module with this path. The gradient of the
    /// module's output was finite.
    InputGradient(String),
    /// The gradient of the parameter with this name. The gradient of its module's output was
    /// finite.
    WeightGradient(String),
}

impl Cause {
    /// Returns whether the infinity or NaN first occurred before the backward pass: in a parameter,
    /// the batch, an activation or the loss. If so, a lower loss scale does not help.
    pub fn is_forward(&self) -> bool {
        matches!(self, Self::Parameter(_) | Self::Input(_) | Self::Activation(_) | Self::Loss)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Parameter(name) => write!(f, "the parameter `{name}`"),
            Self::Input(name) => write!(f, "the batch's `{name}`"),
            Self::Activation(module) => write!(f, "the output of `{module}`"),
            Self::Loss => f.write_str("the loss"),
            Self::LossGradient => f.write_str("the gradient of the loss"),
            Self::InputGradient(module) => write!(f, "the input gradient of `{module}`"),
            Self::WeightGradient(name) => write!(f, "the gradient of `{name}`"),
        }
    }
}

impl fmt::Display for Provenance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cause, dtype, nan, inf, of, from } = self;
        write!(f, "{cause} ({dtype}) has {inf} inf and {nan} NaN among {of} values")?;
        match from {
            Some(largest) => write!(f, ", computed from values up to {largest:.3e}"),
            None => Ok(()),
        }
    }
}

/// A step that is repeated to find the first value that is not finite.
pub(crate) struct Replay<'a> {
    pub(crate) policy: Policy,
    /// The context of the forward pass, without the probe that observes modules.
    pub(crate) context: Context,
    pub(crate) scale: f64,
    /// The batches of the step, or the micro-batches into which its batches are split.
    pub(crate) batches: Vec<ReplayedBatch>,
    pub(crate) global_step: u64,
    pub(crate) parameters: &'a [Parameter],
}

/// A batch of a repeated step, or a part of a batch.
pub(crate) struct ReplayedBatch {
    pub(crate) batch: AnyBatch,
    /// The factor by which the loss is multiplied. It is 0 for a batch in which no target counts,
    /// for example because all are ignored. The loss of such a batch may be NaN, and no backward
    /// pass runs.
    pub(crate) share: f64,
    /// The index of the batch in the epoch. For a part of a batch, the index of the whole batch.
    pub(crate) index: usize,
}

/// Checks the output of each module, and the gradient of this output in the backward pass. Keeps
/// only statistics and the last output, so that the repeated step needs no more memory than the
/// step itself.
#[derive(Default)]
struct Watch {
    seen: RefCell<Vec<ModuleRun>>,
    last: RefCell<Option<Tensor>>,
    /// The first output that is not finite, or the error that ended the search.
    first: RefCell<Option<Result<Provenance>>>,
}

/// One call of a module in the forward pass.
struct ModuleRun {
    path: String,
    kind: Kind,
    elements: i64,
    gradient: Option<WatchedGradient>,
}

impl Watch {
    fn look(&self, call: &Call<'_>) -> Result<Option<Provenance>> {
        let Call { path, input, output, .. } = *call;
        let kind = output.kind();
        let traced = is_floating(kind) && output.requires_grad();
        let gradient = traced.then(|| WatchedGradient::of(output)).transpose()?;
        let elements = output.numel() as i64;
        self.seen.borrow_mut().push(ModuleRun { path: path.to_owned(), kind, elements, gradient });
        *self.last.borrow_mut() = Some(output.shallow_clone());
        check(Cause::Activation(path.to_owned()), output, Some(input))
    }
}

impl Probe for Watch {
    fn ran(&self, call: &Call<'_>) {
        if self.first.borrow().is_none()
            && let Some(found) = self.look(call).transpose()
        {
            *self.first.borrow_mut() = Some(found);
        }
    }
}

impl Replay<'_> {
    /// Repeats the forward and backward passes until a value is not finite. The caller must first
    /// restore the random generator to its state at the start of the step. Does not change
    /// parameters or gradients. Returns `None` if all values of the repetition are finite.
    pub(crate) fn find(self, model: &mut dyn LightningModule) -> Result<Option<Provenance>> {
        for Parameter { name, tensor } in self.parameters {
            if let Some(found) = check(Cause::Parameter(name.clone()), tensor, None)? {
                return Ok(Some(found));
            }
        }
        let watch = Rc::new(Watch::default());
        let context = self.context.again().with_probe(watch.clone());
        for ReplayedBatch { batch, share, index } in &self.batches {
            let counts = *share > 0.0;
            for (name, tensor) in batch.numbers().filter(|_| counts) {
                if let Some(found) = check(Cause::Input(name.to_owned()), tensor, None)? {
                    return Ok(Some(found));
                }
            }
            let loss = {
                let _autocast = self.policy.autocast()?;
                let mut log = Log::default();
                let mut step = Step::new(&context, &mut log, *index, self.global_step);
                model.training_step(batch, &mut step)?
            };
            if !counts {
                // This batch contributes no gradient. It runs only so that the next batches draw
                // the same random numbers as in the original step.
                drop((watch.first.take(), watch.last.take(), watch.seen.take()));
                continue;
            }
            if let Some(found) = watch.first.take() {
                return found.map(Some);
            }
            let last = watch.last.take();
            if let Some(found) = check(Cause::Loss, &loss, last.as_ref())? {
                return Ok(Some(found));
            }
            drop(last);
            let scaled = loss.f_mul_scalar(share * self.scale)?;
            drop(loss);
            if let Some(found) = backward(&watch.seen.take(), &scaled, self.parameters)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

/// Observes the modules in validation steps, to find the first value that is not finite.
pub(crate) struct Validation(Rc<Watch>);

impl Validation {
    /// Returns an observer, and `context` with this observer as its probe.
    pub(crate) fn observe(context: Context) -> (Self, Context) {
        let watch = Rc::new(Watch::default());
        (Self(watch.clone()), context.with_probe(watch))
    }

    /// Runs the validation step on a batch. Returns the first value that is not finite: a tensor of
    /// the batch, or the output of a module. The caller must have disabled gradients.
    pub(crate) fn find(
        &self,
        model: &mut dyn LightningModule,
        batch: &AnyBatch,
        step: &mut Step<'_>,
    ) -> Result<Option<Provenance>> {
        for (name, tensor) in batch.numbers() {
            if let Some(found) = check(Cause::Input(name.to_owned()), tensor, None)? {
                return Ok(Some(found));
            }
        }
        model.validation_step(batch, step)?;
        self.0.first.take().transpose()
    }
}

/// Follows the gradient of the scaled loss back through the modules, starting with the last module,
/// until a gradient is not finite.
fn backward(
    seen: &[ModuleRun],
    scaled: &Tensor,
    parameters: &[Parameter],
) -> Result<Option<Provenance>> {
    // Frozen parameters have no gradient, so only trained parameters are read.
    let trained = parameters.iter().filter(|parameter| parameter.tensor.requires_grad());
    let parameters: Vec<&Parameter> = trained.collect();
    let inputs: Vec<&Tensor> = parameters.iter().map(|parameter| &parameter.tensor).collect();
    let weights = Tensor::f_run_backward(&[scaled], &inputs, false, false)?;
    // The gradients are read in the reverse order of the forward pass. `from` is the largest
    // absolute value of the gradient that was read before this one.
    let mut from = None;
    for (at, ModuleRun { kind, elements, gradient, .. }) in seen.iter().enumerate().rev() {
        let Some(gradient) = gradient else { continue };
        let Some((nan, inf, largest)) = gradient.read()? else { continue };
        if nan + inf > 0 {
            // The output of this module is the input of the next module, whose backward pass
            // computed this gradient.
            let cause = match seen.get(at + 1) {
                None => Cause::LossGradient,
                Some(next) => Cause::InputGradient(next.path.clone()),
            };
            let dtype = dtype_name(*kind).to_owned();
            return Ok(Some(Provenance { cause, dtype, nan, inf, of: *elements, from }));
        }
        from = Some(largest).filter(|largest| largest.is_finite());
    }
    for (Parameter { name, .. }, gradient) in parameters.iter().zip(&weights) {
        if let Some(found) = check(Cause::WeightGradient(name.clone()), gradient, None)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Returns a [`Provenance`] if `tensor` has values that are not finite, and otherwise `None`.
/// `source` is the tensor from which `tensor` was computed, if known.
fn check(cause: Cause, tensor: &Tensor, source: Option<&Tensor>) -> Result<Option<Provenance>> {
    if !tensor.defined() || !is_floating(tensor.kind()) {
        return Ok(None);
    }
    let count = |mask: Tensor| -> Result<i64> { Ok(mask.f_sum(Kind::Int64)?.f_int64_value(&[])?) };
    tch::no_grad(|| {
        let finite = tensor.f_isfinite()?;
        if finite.f_all()?.f_int64_value(&[])? != 0 {
            return Ok(None);
        }
        let source = source.filter(|source| source.defined() && is_floating(source.kind()));
        let from = source.map(|source| -> Result<f64> {
            Ok(source.f_abs()?.f_max()?.f_to_kind(Kind::Double)?.f_double_value(&[])?)
        });
        Ok(Some(Provenance {
            cause,
            dtype: dtype_name(tensor.kind()).to_owned(),
            nan: count(tensor.f_isnan()?)?,
            inf: count(tensor.f_isinf()?)?,
            of: tensor.numel() as i64,
            from: from.transpose()?.filter(|largest| largest.is_finite()),
        }))
    })
}

/// Returns the text for a step whose repetition did not find the cause.
pub(crate) fn unexplained(error: Option<&Error>) -> String {
    match error {
        Some(error) => format!("the search for the cause of the skipped step failed: {error}"),
        None => "the skipped step was run once more, and everything was finite".to_owned(),
    }
}
