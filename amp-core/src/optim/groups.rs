//! Parameter groups: options of their own for parameters chosen by name.

use super::{
    Optimizer, WeightUpdate,
    engine::{Algorithm, Engine},
};
use crate::{Result, nn::Parameter};

/// Builds over one group of all parameters.
pub(super) fn build<A: Algorithm>(
    options: A,
    parameters: Vec<Parameter>,
    update: WeightUpdate,
) -> Result<Box<dyn Optimizer>> {
    let group_of = vec![0; parameters.len()];
    Ok(Box::new(Engine::new(vec![options], parameters, &group_of, update)?))
}

/// Options of an [`Algorithm`] build one group of all parameters.
macro_rules! build_plainly {
    ($options:ty) => {
        impl $crate::optim::BuildOptimizer for $options {
            fn build_with(
                &self,
                parameters: Vec<$crate::nn::Parameter>,
                update: $crate::optim::WeightUpdate,
            ) -> $crate::Result<Box<dyn $crate::optim::Optimizer>> {
                $crate::optim::groups::build(*self, parameters, update)
            }
        }
    };
}
pub(super) use build_plainly;
