//! Measures the rounding error of each layer in a training step under a precision. The exact values
//! come from a 64-true step with the same weights, batch and random numbers on the same machine.
//! The errors are compared with those of a 32-true step. Layers are measured one by one; a
//! [`Group`] compares layers that `Trainer::fit` fuses with the same layers run one by one.

mod args;
mod error;
mod groups;
mod measure;
mod own_error;
mod parts;
mod pass;
mod products;

pub use args::{LayersArgs, measure_case};
pub use error::{Bias, Growth, bias, growth, relative_change, rms, rmse};
pub use groups::{Group, groups};
pub use measure::{Options, audit, measure, module_paths};
pub use own_error::{LOST, Own, WITHIN};
pub(crate) use products::products;

use std::{collections::BTreeMap, rc::Rc};

use amp_core::{
    LightningModule, Result,
    data::AnyBatch,
    hardware::Fingerprint,
    precision::{Precision, Region},
    tch::Device,
};
use serde::{Deserialize, Serialize};

use crate::exponents::{CommonWindow, Histogram, Losses, Window};

/// The model, the batch and the device of a measurement.
pub struct Subject<'a> {
    /// Builds the model with the same weights on every call.
    pub build: &'a dyn Fn() -> Result<Box<dyn LightningModule>>,
    /// The training batch.
    pub batch: &'a AnyBatch,
    /// The device.
    pub device: Device,
    /// The seed of the random numbers in the step, for example those of dropout.
    pub seed: u64,
    /// The precisions of single modules, by path. They replace those that the model's code sets.
    pub overrides: Rc<BTreeMap<String, Region>>,
}

/// The measurements under one precision, layer by layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The version of this format. A new version means that a field has changed its meaning.
    pub schema: String,
    /// The model.
    pub model: String,
    /// The precision.
    pub precision: Precision,
    /// The description of the machine.
    pub fingerprint: Fingerprint,
    /// The seed of dropout.
    pub seed: u64,
    /// The number of examples in the batch.
    pub batch_size: i64,
    /// The loss scale as an exponent of 2; 0 if the precision has no loss scale.
    pub log2_scale: i32,
    /// Whether dropout was on. It is on only if dropout zeroes the same elements in all dtypes.
    pub dropout: bool,
    /// The loss under the precision. This and all other measured values are null if they are not
    /// finite.
    pub loss: Option<f64>,
    /// The loss in 64-true.
    pub exact_loss: f64,
    /// The layers in the order in which they run.
    pub layers: Vec<Layer>,
    /// The groups of layers that `Trainer::fit` fuses on this device, each compared with the same
    /// layers run one by one.
    #[serde(default)]
    pub groups: Vec<Group>,
    /// How the relative bias of activations changes with depth; null for fewer than three layers.
    pub growth: Option<Growth>,
    /// The loss scales that are safe for all layers with 16-bit gradients; null if there is no such
    /// layer.
    pub window: Option<CommonWindow>,
}

/// The measurements of one layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Layer {
    /// The module's path. If a module runs several times in a step, its second run has `#2` after the
    /// path.
    pub path: String,
    /// The dtype of the layer's output.
    pub dtype: String,
    /// The errors of the layer's output.
    pub forward: Flow,
    /// The errors of the gradient of the layer's input; null if there is no gradient.
    pub input_gradient: Option<Flow>,
    /// The errors of the gradients of the layer's parameters; null for a layer without parameters.
    pub weight_gradient: Option<Flow>,
    /// The loss scales that are safe for the layer's gradients; null if the gradients do not have
    /// 16 bits.
    pub window: Option<Window>,
    /// How many powers of 2 the loss scale is away from the nearer end of `window`; negative if it
    /// is outside the window.
    pub margin_bits: Option<i32>,
    /// The kinds of tensors for which this layer's own error is the largest of all layers.
    pub worst: Vec<Kind>,
}

/// The kinds of a layer's tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Activations.
    Forward,
    /// Gradients of inputs.
    InputGradient,
    /// Gradients of weights.
    WeightGradient,
}

impl Kind {
    /// All three kinds.
    pub const ALL: [Self; 3] = [Self::Forward, Self::InputGradient, Self::WeightGradient];
}

/// The errors of one kind of a layer's tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Flow {
    /// The root mean square of the exact values.
    pub rms: Option<f64>,
    /// The root mean square of the difference between the step under the precision and the 64-true
    /// step.
    pub error: Option<f64>,
    /// The root mean square of the difference between the 32-true step and the 64-true step.
    pub baseline_error: Option<f64>,
    /// The ratio error / baseline_error; null if 32-true is exact.
    pub ratio: Option<f64>,
    /// The layer's own error. The layer runs alone on exact inputs, rounded to its input dtypes.
    /// Its results are compared with those of 64-true on the same rounded inputs.
    pub local_error: Option<f64>,
    /// The error that the layer inherits from earlier layers. 64-true runs on the inputs that the
    /// layer had in the step. Its results are compared with those of 64-true on the exact inputs.
    pub inherited_error: Option<f64>,
    /// The layer's own part in the error, local² / (local² + inherited²); null if the two errors
    /// are zero or one of them is not finite.
    pub local_share: Option<f64>,
    /// The bias of the layer's own error.
    pub bias: Option<Bias>,
    /// How many values overflow or underflow in the layer's dtype, predicted from the exponents of
    /// the values in 32-true. Gradients are multiplied by the loss scale first. Null if the layer's
    /// output does not have 16 bits.
    pub predicted: Option<Losses>,
    /// How many values that are finite in the 32-true step are not finite under the precision, and
    /// how many that are not zero become zero. A ReLU unit that is active only in 32-true counts as
    /// zero.
    pub observed: Losses,
    /// The exponents of the values in the 32-true step.
    pub histogram: Histogram,
}

impl Layer {
    /// Returns the errors of the tensors of this kind.
    pub fn flow(&self, kind: Kind) -> Option<&Flow> {
        match kind {
            Kind::Forward => Some(&self.forward),
            Kind::InputGradient => self.input_gradient.as_ref(),
            Kind::WeightGradient => self.weight_gradient.as_ref(),
        }
    }
}

impl Flow {
    /// Returns the layer's own error divided by the root mean square of the exact values. Returns
    /// infinity if this is not finite.
    pub fn relative_local_error(&self) -> f64 {
        match (self.local_error, self.rms) {
            (Some(_), Some(0.0)) => 0.0,
            (Some(error), Some(rms)) => error / rms,
            _ => f64::INFINITY,
        }
    }
}

impl Report {
    /// Returns the layer with the largest own error for this kind.
    pub fn worst(&self, kind: Kind) -> Option<&Layer> {
        self.layers.iter().find(|layer| layer.worst.contains(&kind))
    }
}

/// Marks for each kind of tensor the layer whose own error is the largest.
fn mark_worst(layers: &mut [Layer]) {
    for kind in Kind::ALL {
        let blame = |layer: &Layer| layer.flow(kind).map_or(0.0, Flow::relative_local_error);
        // If several layers have the same error, marks the first, because a later layer may only
        // pass on what an earlier one has done.
        let worst = layers.iter().map(blame).fold(0.0, f64::max);
        let first = layers.iter_mut().find(|layer| worst > 0.0 && blame(layer) == worst);
        if let Some(layer) = first {
            layer.worst.push(kind);
        }
    }
}
