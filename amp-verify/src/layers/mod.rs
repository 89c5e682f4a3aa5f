//! What each layer loses under a precision: its error against a 64-true step with the same
//! weights, batch and random numbers on the same machine, relative to what 32-true loses there.

mod args;
mod error;
mod measure;
mod own;
mod pass;

pub use args::{LayersArgs, measure_case};
pub use error::{Bias, Growth, bias, growth, relative_change, rms, rmse};
pub use measure::{Options, audit, measure, module_paths};
pub use own::{Own, WITHIN};

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

/// What is measured.
pub struct Subject<'a> {
    /// Makes the model, with the same weights each time.
    pub build: &'a dyn Fn() -> Result<Box<dyn LightningModule>>,
    /// The training batch.
    pub batch: &'a AnyBatch,
    /// Where it runs.
    pub device: Device,
    /// Seed of dropout.
    pub seed: u64,
    /// Precision regions by module path, over those the model declares.
    pub islands: Rc<BTreeMap<String, Region>>,
}

/// One precision's figures, layer by layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The form of this object; a change of meaning changes it.
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
    /// The loss scale's exponent; 0 where the precision has none.
    pub log2_scale: i32,
    /// Whether dropout was on: only where all dtypes drop the same elements.
    pub dropout: bool,
    /// The loss under the precision; null when it is not finite, as with every figure here.
    pub loss: Option<f64>,
    /// The loss in f64.
    pub exact_loss: f64,
    /// In the order in which they run.
    pub layers: Vec<Layer>,
    /// How the relative bias of activations grows with depth.
    pub growth: Option<Growth>,
    /// The loss scales that are safe in every 16-bit layer; null where there are none.
    pub window: Option<CommonWindow>,
}

/// One layer's figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Layer {
    /// The module's path; a second run of one module has `#2` after it.
    pub path: String,
    /// The dtype of its output.
    pub dtype: String,
    /// Its output.
    pub forward: Flow,
    /// The gradient with respect to its input; null where there is none.
    pub input_gradient: Option<Flow>,
    /// The gradients of its own parameters; null where it has none.
    pub weight_gradient: Option<Flow>,
    /// The loss scales that are safe for its gradients; null where it is not 16-bit.
    pub window: Option<Window>,
    /// Bits between the loss scale and the window's nearer end; negative outside.
    pub margin_bits: Option<i32>,
    /// What it loses more of by itself than any other layer does.
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
    /// Root mean square of the exact values.
    pub rms: Option<f64>,
    /// rmse(precision, 64-true).
    pub error: Option<f64>,
    /// rmse(32-true, 64-true).
    pub baseline_error: Option<f64>,
    /// E = error / baseline error; null where 32-true is exact.
    pub ratio: Option<f64>,
    /// The error the layer makes by itself: run on the exact values, rounded to the dtypes of what
    /// it is given, against 64-true on the same rounded values.
    pub local_error: Option<f64>,
    /// The error it passes on: 64-true on what it was really given, against 64-true on the exact
    /// values.
    pub inherited_error: Option<f64>,
    /// local² / (local² + inherited²); null where both are zero or one is not finite.
    pub local_share: Option<f64>,
    /// Of the local error.
    pub bias: Option<Bias>,
    /// What 32-true's exponents say the layer's format loses, gradients at the loss scale; null
    /// where it is not 16-bit.
    pub predicted: Option<Losses>,
    /// What the step under the precision lost of 32-true's values. A unit that a ReLU stops in one of
    /// the two alone counts as underflow.
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
    /// Local error over the exact values' size: infinite when it is not finite.
    pub fn relative_local_error(&self) -> f64 {
        match (self.local_error, self.rms) {
            (Some(_), Some(0.0)) => 0.0,
            (Some(error), Some(rms)) => error / rms,
            _ => f64::INFINITY,
        }
    }
}

impl Report {
    /// The layer that loses most of this kind by itself.
    pub fn worst(&self, kind: Kind) -> Option<&Layer> {
        self.layers.iter().find(|layer| layer.worst.contains(&kind))
    }
}
