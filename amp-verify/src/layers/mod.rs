//! Measures the rounding error of each layer. The reference is a 64-true step with the same
//! weights, batch and random numbers on the same machine. Errors are shown relative to the errors
//! of 32-true. Layers are measured one by one; [`Group`] compares the fused groups of `fit` with
//! them.

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

/// The model and batch of a measurement.
pub struct Subject<'a> {
    /// Builds the model with the same weights on every call.
    pub build: &'a dyn Fn() -> Result<Box<dyn LightningModule>>,
    /// The training batch.
    pub batch: &'a AnyBatch,
    /// The device.
    pub device: Device,
    /// The seed of dropout.
    pub seed: u64,
    /// Precision regions by module path; they replace the model's own regions.
    pub overrides: Rc<BTreeMap<String, Region>>,
}

/// The figures of one precision, layer by layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The version of this format; a changed meaning of a field changes it.
    pub schema: String,
    /// The model.
    pub model: String,
    /// The precision.
    pub precision: Precision,
    /// The machine.
    pub fingerprint: Fingerprint,
    /// The seed of dropout.
    pub seed: u64,
    /// The number of examples in the batch.
    pub batch_size: i64,
    /// The loss scale's exponent; 0 if the precision has no loss scale.
    pub log2_scale: i32,
    /// Whether dropout was on. It is on only if all dtypes drop the same elements.
    pub dropout: bool,
    /// The loss under the precision. This and all other figures are null if they are not finite.
    pub loss: Option<f64>,
    /// The loss in 64-true.
    pub exact_loss: f64,
    /// The layers in the order in which they run.
    pub layers: Vec<Layer>,
    /// The groups that `fit` fuses on this device, each compared with its layers one by one.
    #[serde(default)]
    pub groups: Vec<Group>,
    /// How the relative bias of activations changes with depth.
    pub growth: Option<Growth>,
    /// The loss scales that are safe in every 16-bit layer; null if there are none.
    pub window: Option<CommonWindow>,
}

/// The figures of one layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Layer {
    /// The module's path; for the second run of a module followed by `#2`.
    pub path: String,
    /// The dtype of its output.
    pub dtype: String,
    /// The figures of the layer's output.
    pub forward: Flow,
    /// The figures of the gradient of the layer's input; null if there is no gradient.
    pub input_gradient: Option<Flow>,
    /// The figures of the gradients of the layer's own parameters; null for a layer without parameters.
    pub weight_gradient: Option<Flow>,
    /// The loss scales that are safe for the layer's gradients; null if they do not have 16 bits.
    pub window: Option<Window>,
    /// The distance in bits from the loss scale to the nearer end of the window; negative outside
    /// the window.
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

/// The figures of one kind of a layer's tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Flow {
    /// The root mean square of the exact values.
    pub rms: Option<f64>,
    /// The root mean square error of the precision against 64-true.
    pub error: Option<f64>,
    /// The root mean square error of 32-true against 64-true.
    pub baseline_error: Option<f64>,
    /// The ratio error / baseline_error; null if 32-true is exact.
    pub ratio: Option<f64>,
    /// The layer's own error. The layer runs on exact values rounded to its input dtypes, and is
    /// compared with 64-true on the same rounded values.
    pub local_error: Option<f64>,
    /// The inherited error: 64-true on the layer's actual inputs, compared with 64-true on the
    /// exact inputs.
    pub inherited_error: Option<f64>,
    /// local² / (local² + inherited²); null if both are zero or one is not finite.
    pub local_share: Option<f64>,
    /// The bias of the layer's own error.
    pub bias: Option<Bias>,
    /// How many values the layer's format loses, predicted from the exponents of 32-true's values;
    /// gradients are multiplied by the loss scale. Null if the layer does not compute in 16 bits.
    pub predicted: Option<Losses>,
    /// How many values were lost in the actual step. A ReLU unit that is inactive in only one of
    /// the two steps counts as underflow.
    pub observed: Losses,
    /// The exponents of the values in the 32-true run.
    pub histogram: Histogram,
}

impl Layer {
    /// Returns the figures of this kind.
    pub fn flow(&self, kind: Kind) -> Option<&Flow> {
        match kind {
            Kind::Forward => Some(&self.forward),
            Kind::InputGradient => self.input_gradient.as_ref(),
            Kind::WeightGradient => self.weight_gradient.as_ref(),
        }
    }
}

impl Flow {
    /// Returns the own error relative to the exact values; infinite if it is not finite.
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

/// Marks the layers whose own error is the largest of all.
fn mark_worst(layers: &mut [Layer]) {
    for kind in Kind::ALL {
        let blame = |layer: &Layer| layer.flow(kind).map_or(0.0, Flow::relative_local_error);
        // The first of equal errors: a later layer may only pass on the error of an earlier one.
        let worst = layers.iter().map(blame).fold(0.0, f64::max);
        let first = layers.iter_mut().find(|layer| worst > 0.0 && blame(layer) == worst);
        if let Some(layer) = first {
            layer.worst.push(kind);
        }
    }
}
