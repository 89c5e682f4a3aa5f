//! The loss of precision in each layer: its error compared with a 64-true step with the same weights, batch
//! and random numbers on the same machine, relative to the error of 32-true. Layers are measured one by
//! one. The groups that `fit` fuses are compared with this as [`Group`]s.

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

/// The subject of a measurement.
pub struct Subject<'a> {
    /// Builds the model, with the same weights on every call.
    pub build: &'a dyn Fn() -> Result<Box<dyn LightningModule>>,
    /// The training batch.
    pub batch: &'a AnyBatch,
    /// The device.
    pub device: Device,
    /// Seed of dropout.
    pub seed: u64,
    /// Precision regions by module path; they override those of the model.
    pub overrides: Rc<BTreeMap<String, Region>>,
}

/// The figures of one precision, layer by layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The version of this format; it changes with the meaning of a field.
    pub schema: String,
    /// The model.
    pub model: String,
    /// The precision.
    pub precision: Precision,
    /// The machine.
    pub fingerprint: Fingerprint,
    /// Seed of dropout.
    pub seed: u64,
    /// Examples in the batch.
    pub batch_size: i64,
    /// The loss scale's exponent; 0 if the precision has no loss scale.
    pub log2_scale: i32,
    /// Whether dropout was on: only if all dtypes drop the same elements.
    pub dropout: bool,
    /// The loss under the precision; null if it is not finite, like every figure here.
    pub loss: Option<f64>,
    /// The loss in f64.
    pub exact_loss: f64,
    /// The layers in the order in which they run.
    pub layers: Vec<Layer>,
    /// The groups that `fit` fuses on this device, each compared with its layers one by one.
    #[serde(default)]
    pub groups: Vec<Group>,
    /// How the relative bias of activations grows with depth.
    pub growth: Option<Growth>,
    /// The loss scales that are safe in every 16-bit layer; null if there are none.
    pub window: Option<CommonWindow>,
}

/// The figures of one layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Layer {
    /// The module's path; `#2` follows for the second run of one module.
    pub path: String,
    /// The dtype of its output.
    pub dtype: String,
    /// The figures of its output.
    pub forward: Flow,
    /// The figures of the gradient of its input; null if there is none.
    pub input_gradient: Option<Flow>,
    /// The figures of the gradients of its own parameters; null if it has none.
    pub weight_gradient: Option<Flow>,
    /// The loss scales that are safe for its gradients; null if it is not in 16 bits.
    pub window: Option<Window>,
    /// The distance of the loss scale from the window's nearer end, in bits; negative outside the window.
    pub margin_bits: Option<i32>,
    /// The kinds of tensors for which its own error is the largest of all layers.
    pub worst: Vec<Kind>,
}

/// The three kinds of tensors.
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
    /// All three.
    pub const ALL: [Self; 3] = [Self::Forward, Self::InputGradient, Self::WeightGradient];
}

/// The figures of one kind of tensor of a layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Flow {
    /// The root mean square of the exact values.
    pub rms: Option<f64>,
    /// rmse(precision, 64-true).
    pub error: Option<f64>,
    /// rmse(32-true, 64-true).
    pub baseline_error: Option<f64>,
    /// E = error / baseline error; null if 32-true is exact.
    pub ratio: Option<f64>,
    /// The layer's own error: its result on exact values rounded to its input dtypes, against 64-true on
    /// the same rounded values.
    pub local_error: Option<f64>,
    /// The inherited error: 64-true on the layer's actual inputs, against 64-true on the exact inputs.
    pub inherited_error: Option<f64>,
    /// local² / (local² + inherited²); null if both are zero or one is not finite.
    pub local_share: Option<f64>,
    /// The bias of the local error.
    pub bias: Option<Bias>,
    /// The predicted losses of the layer's format, from 32-true's exponents, gradients at the loss scale;
    /// null if it is not in 16 bits.
    pub predicted: Option<Losses>,
    /// The observed losses of 32-true's values in the step under the precision. A ReLU unit that is
    /// inactive in only one of the two steps counts as underflow.
    pub observed: Losses,
    /// 32-true's values by exponent.
    pub histogram: Histogram,
}

impl Layer {
    /// The figures of this kind.
    pub fn flow(&self, kind: Kind) -> Option<&Flow> {
        match kind {
            Kind::Forward => Some(&self.forward),
            Kind::InputGradient => self.input_gradient.as_ref(),
            Kind::WeightGradient => self.weight_gradient.as_ref(),
        }
    }
}

impl Flow {
    /// The local error relative to the exact values; infinite if it is not finite.
    pub fn relative_local_error(&self) -> f64 {
        match (self.local_error, self.rms) {
            (Some(_), Some(0.0)) => 0.0,
            (Some(error), Some(rms)) => error / rms,
            _ => f64::INFINITY,
        }
    }
}

impl Report {
    /// The layer with the largest local error of this kind.
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
