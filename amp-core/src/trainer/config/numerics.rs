//! Loss scaling, the formats of weights, optimizer state and gradients, and the choice of kernels.

use std::{collections::BTreeMap, rc::Rc};

use crate::{
    optim::{Moments, WeightUpdate},
    precision::{GradScalerConfig, GradientStorage, Kernels, Region},
};

/// Loss scaling, the formats of weights, optimizer state and gradients, and the choice of kernels.
#[derive(Debug, Clone, Default)]
pub struct NumericsConfig {
    /// The constants of the loss scaler. Only `16-mixed` scales the loss.
    pub scaler: GradScalerConfig,
    /// Maps the paths of modules to precision regions, which override the regions that the model
    /// declares.
    pub overrides: Rc<BTreeMap<String, Region>>,
    /// How optimizers update 16-bit parameters, which only runs with `16-true` or `bf16-true` have.
    pub weight_update: WeightUpdate,
    /// The format of the optimizers' running averages.
    pub moments: Moments,
    /// The format in which gradients are stored between the backward pass and the optimizer step.
    pub gradients: GradientStorage,
    /// Whether layers and losses on CUDA use this library's kernels or libtorch's.
    pub kernels: Kernels,
}
