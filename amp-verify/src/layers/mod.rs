//! Measures the rounding error of each layer in a training step under a precision. The exact values
//! come from a 64-true step with the same weights, batch and random numbers on the same machine.
//! Each layer's error is also compared with its error in a 32-true step. For layers that
//! `Trainer::fit` fuses, a [`Group`] compares the fused kernel with the same layers run one after
//! another.

mod args;
mod error;
mod groups;
mod inside;
mod masks;
mod measure;
mod own_error;
mod parts;
mod pass;
mod products;

pub use args::{LayersArgs, measure_case};
pub use error::{Bias, Growth, bias, growth, relative_change, rms, rmse};
pub use groups::{Group, groups};
pub use measure::{Options, audit, measure, module_paths};
pub use own_error::{Lost, Own, WITHIN};
pub(crate) use products::products;

use std::{collections::BTreeMap, rc::Rc};

use amp_core::{
    LightningModule, Result,
    data::AnyBatch,
    hardware::Fingerprint,
    precision::{Precision, Region},
    random,
    tch::Device,
};
use serde::{Deserialize, Serialize};

use crate::{
    case::Case,
    exponents::{CommonWindow, Histogram, Losses, Window},
    reset::ResetModel,
};

/// A function that builds the model whose layers are measured.
pub type Build<'a> = dyn Fn() -> Result<Box<dyn LightningModule>> + 'a;

/// A function that wraps the model for one forward and backward pass.
pub type Wrap<'a> =
    dyn for<'m> Fn(&'m mut dyn LightningModule) -> Box<dyn LightningModule + 'm> + 'a;

/// The model whose layers are measured, and the batch on which it runs.
#[derive(Clone)]
pub struct Subject<'a> {
    /// Builds the model that is measured. Every call gives the same weights.
    pub build: &'a Build<'a>,
    /// Wraps the model before each forward and backward pass, for example to put a fault of the
    /// self-test into it. `None` to measure the model as it is.
    pub wrap: Option<&'a Wrap<'a>>,
    /// The training batch.
    pub batch: &'a AnyBatch,
    /// The device on which the training step runs.
    pub device: Device,
    /// The seed of the random numbers in the step, for example of dropout.
    pub seed: u64,
    /// The precisions of single modules, by the module's path. They replace the precisions that the
    /// model's code sets.
    pub overrides: Rc<BTreeMap<String, Region>>,
    /// The number of batches in an optimizer step. The gradients of a batch are divided by it.
    pub batches_per_step: i64,
}

impl<'a> Subject<'a> {
    /// Prepares to measure the layers of a model with the device, the seed and the precisions of
    /// single modules in `case`.
    pub fn new(case: &Case, build: &'a Build<'a>, batch: &'a AnyBatch) -> Self {
        Self {
            build,
            wrap: None,
            batch,
            device: case.trainer.device,
            seed: case.trainer.seed,
            overrides: case.trainer.numerics.overrides.clone(),
            batches_per_step: case.trainer.optimization.accumulate_grad_batches,
        }
    }

    /// Sets a function that wraps the model for each pass.
    #[must_use]
    pub fn wrapped(self, wrap: &'a Wrap<'a>) -> Self {
        Self { wrap: Some(wrap), ..self }
    }

    /// Builds the model. It is reset to its initial state before each pass of the measurement.
    fn model(&self) -> Result<ResetModel> {
        let _section = random::seeded(self.seed)?;
        ResetModel::new((self.build)()?, self.device, self.seed)
    }

    /// Resets the model before a forward and backward pass, and wraps it.
    fn prepared<'m>(&self, model: &'m mut ResetModel) -> Result<Prepared<'m>> {
        let model = model.reset()?;
        Ok(match self.wrap {
            Some(wrap) => Prepared::Wrapped(wrap(model)),
            None => Prepared::Plain(model),
        })
    }
}

/// The model during one pass: reset, and wrapped if a wrapper is set.
enum Prepared<'m> {
    Plain(&'m mut dyn LightningModule),
    Wrapped(Box<dyn LightningModule + 'm>),
}

impl<'m> Prepared<'m> {
    fn as_mut(&mut self) -> &mut (dyn LightningModule + 'm) {
        match self {
            Self::Plain(model) => *model,
            Self::Wrapped(model) => model.as_mut(),
        }
    }
}

/// The measured rounding errors under one precision, layer by layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The version of this format. The version changes if a field gets another meaning.
    pub schema: String,
    /// The name of the model.
    pub model: String,
    /// The precision whose rounding errors were measured.
    pub precision: Precision,
    /// The description of the machine on which the layers were measured.
    pub fingerprint: Fingerprint,
    /// The seed of the random numbers in the step, for example of dropout.
    pub seed: u64,
    /// The number of examples in the batch.
    pub batch_size: i64,
    /// The loss scale is 2 to the power of this number. The number is 0 if the precision has no
    /// loss scale.
    pub log2_scale: i32,
    /// Whether dropout was on in the measured steps. It is on only if it zeroes the same elements
    /// in all dtypes.
    pub dropout: bool,
    /// The loss of the step under the precision. Like every measured value of the report, it is
    /// null if it is not finite.
    pub loss: Option<f64>,
    /// The loss of the 64-true step.
    pub exact_loss: f64,
    /// The layers, in the order in which they run.
    pub layers: Vec<Layer>,
    /// The groups of layers that `Trainer::fit` fuses on this device. Each group is compared with
    /// the same layers run one after another.
    #[serde(default)]
    pub groups: Vec<Group>,
    /// How the relative bias of activations changes from layer to layer. Null if there are fewer
    /// than three layers.
    pub growth: Option<Growth>,
    /// The loss scales at which no layer's 16-bit gradients overflow and few of their values become
    /// zero. Null if no layer has 16-bit gradients.
    pub window: Option<CommonWindow>,
    /// Describes the random numbers (for example of a dropout mask) that differ from the 64-true
    /// step's, because the model draws them in another dtype. These differences are part of the
    /// layers' errors. Null if all random numbers are the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draws: Option<String>,
}

/// What was measured for one layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Layer {
    /// The path of the module. If a module runs several times in a step, its second run has the
    /// path followed by `#2`.
    pub path: String,
    /// The dtype of the layer's output.
    pub dtype: String,
    /// The errors of the layer's output.
    pub forward: Flow,
    /// The errors of the gradient of the layer's input. Null if the input has no gradient.
    pub input_gradient: Option<Flow>,
    /// The errors of the gradients of the layer's parameters. Null if the layer has no parameters.
    pub weight_gradient: Option<Flow>,
    /// The loss scales at which the layer's gradients do not overflow and few of their values
    /// become zero. Null if the gradients are not in a 16-bit dtype.
    pub window: Option<Window>,
    /// How far the loss scale is from the nearer end of `window`, in powers of 2. Negative if the
    /// loss scale is outside `window`.
    pub margin_bits: Option<i32>,
    /// The kinds of tensors (output or gradients) in which this layer makes the largest relative
    /// error of all layers. Errors inherited from earlier layers do not count.
    pub worst: Vec<Kind>,
}

/// A kind of tensor of a layer: its output or one of its gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The layer's output (its activations).
    Forward,
    /// The gradient of the layer's input.
    InputGradient,
    /// The gradients of the layer's parameters.
    WeightGradient,
}

impl Kind {
    /// All three kinds of tensors.
    pub const ALL: [Self; 3] = [Self::Forward, Self::InputGradient, Self::WeightGradient];
}

/// The errors of one kind of tensor of a layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Flow {
    /// The root mean square of the exact values.
    pub rms: Option<f64>,
    /// The root mean square of the difference between the step under the precision and the 64-true
    /// step.
    pub error: Option<f64>,
    /// The root mean square of the difference between the 32-true step and the 64-true step.
    pub baseline_error: Option<f64>,
    /// `error` divided by `baseline_error`: how many times larger the error is than under 32-true.
    /// Null if 32-true is exact.
    pub ratio: Option<f64>,
    /// The error that the layer itself makes. The layer runs separately, on the inputs of the
    /// 64-true step, rounded to the layer's input dtypes. Its results are compared with those of
    /// 64-true on the same rounded inputs.
    pub local_error: Option<f64>,
    /// The error that the layer inherits from earlier layers. The layer runs in 64-true on the
    /// inputs of the step under the precision. The results are compared with those of the 64-true
    /// step.
    pub inherited_error: Option<f64>,
    /// The fraction of the error that the layer itself makes: local² / (local² + inherited²). Null
    /// if both errors are zero, or if one of them is not finite.
    pub local_share: Option<f64>,
    /// The bias (the mean) of the errors that the layer itself makes.
    pub bias: Option<Bias>,
    /// How many values overflow or underflow in the layer's dtype, predicted from the exponents of
    /// the values in 32-true. Gradients are multiplied by the loss scale first. Null if the layer's
    /// output is not in a 16-bit dtype.
    pub predicted: Option<Losses>,
    /// Counts the values that are finite in the 32-true step, but not under the precision, and the
    /// values that are zero only under the precision. If an input of a ReLU is positive in the
    /// 32-true step, but negative under the precision, its output is counted as zero too.
    pub observed: Losses,
    /// The exponents of the values in the 32-true step.
    pub histogram: Histogram,
}

impl Layer {
    /// Returns the rounding errors of the layer's output, input gradient or weight gradients, as
    /// `kind` says.
    pub fn flow(&self, kind: Kind) -> Option<&Flow> {
        match kind {
            Kind::Forward => Some(&self.forward),
            Kind::InputGradient => self.input_gradient.as_ref(),
            Kind::WeightGradient => self.weight_gradient.as_ref(),
        }
    }
}

impl Flow {
    /// Returns the error that the layer itself makes, divided by the root mean square of the exact
    /// values. Returns infinity if the quotient is not finite.
    pub fn relative_local_error(&self) -> f64 {
        match (self.local_error, self.rms) {
            (Some(_), Some(0.0)) => 0.0,
            (Some(error), Some(rms)) => error / rms,
            _ => f64::INFINITY,
        }
    }
}

impl Report {
    /// Returns the layer that makes the largest relative error in tensors of this kind, without the
    /// errors inherited from earlier layers.
    pub fn worst(&self, kind: Kind) -> Option<&Layer> {
        self.layers.iter().find(|layer| layer.worst.contains(&kind))
    }
}

/// Marks for each kind of tensor the layer that makes the largest relative error, without the
/// errors inherited from earlier layers.
fn mark_worst(layers: &mut [Layer]) {
    for kind in Kind::ALL {
        let blame = |layer: &Layer| layer.flow(kind).map_or(0.0, Flow::relative_local_error);
        // If several layers have the same largest error, for example infinity, marks the first one,
        // which may have caused the others.
        let worst = layers.iter().map(blame).fold(0.0, f64::max);
        let first = layers.iter_mut().find(|layer| worst > 0.0 && blame(layer) == worst);
        if let Some(layer) = first {
            layer.worst.push(kind);
        }
    }
}
