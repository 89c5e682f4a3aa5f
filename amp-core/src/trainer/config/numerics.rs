//! Loss scaling, the formats of weights, optimizer state and gradients, and kernels.

use std::{collections::BTreeMap, rc::Rc};

use crate::{
    optim::{Moments, WeightUpdate},
    precision::{GradScalerConfig, GradientStorage, Kernels, Region},
};

/// Loss scaling, the formats of weights, optimizer state and gradients, and kernels.
#[derive(Debug, Clone, Default)]
pub struct NumericsConfig {
    /// The loss scaler's constants, used by `16-mixed`.
    pub scaler: GradScalerConfig,
    /// Precision regions by module path; they override those of the model.
    pub overrides: Rc<BTreeMap<String, Region>>,
    /// How optimizers update 16-bit parameters, which the `*-true` precisions have.
    pub weight_update: WeightUpdate,
    /// The format of the optimizers' running averages.
    pub moments: Moments,
    /// The format of gradients between the backward pass and the step.
    pub gradients: GradientStorage,
    /// Which kernels layers and losses run by on CUDA.
    pub kernels: Kernels,
}
