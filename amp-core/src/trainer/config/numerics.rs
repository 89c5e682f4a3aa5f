//! In which formats a run keeps what it computes.

use std::{collections::BTreeMap, rc::Rc};

use crate::{
    optim::{Moments, WeightUpdate},
    precision::{GradScalerConfig, GradientStorage, Region},
};

/// How the loss is scaled, and in which formats weights, optimizer state and gradients are kept.
#[derive(Debug, Clone, Default)]
pub struct NumericsConfig {
    /// The loss scaler's constants, used by `16-mixed`.
    pub scaler: GradScalerConfig,
    /// Precision regions by module path, over those the model declares.
    pub overrides: Rc<BTreeMap<String, Region>>,
    /// How optimizers write to 16-bit parameters, which the `*-true` precisions have.
    pub weight_update: WeightUpdate,
    /// How optimizers keep their running averages.
    pub moments: Moments,
    /// How gradients are kept from the backward pass to the step.
    pub gradients: GradientStorage,
}
