//! Precision regions: modules that compute in another dtype than the rest of the model.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::{Arguments, AutocastGuard, Kept, Precision, Tensors, is_floating};
use crate::{Error, Result};

/// A precision region, as written in `#[precision(…)]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Region {
    /// f32: autocast is off, and inputs and parameters are f32. This region has no effect in a
    /// `64-true` run.
    Fp32,
    /// In runs with a mixed precision: autocast to f16. In a `bf16-true` run: inputs and parameters
    /// are f16. In other runs the region has no effect.
    Fp16,
    /// In runs with a mixed precision: autocast to bf16. In a `16-true` run: inputs and parameters
    /// are bf16. In other runs the region has no effect.
    Bf16,
    /// f64: autocast is off, and inputs and parameters are f64.
    Fp64,
    /// Autocast is off. Inputs are cast to the dtype of the parameters.
    AutocastOff,
}

/// The dtypes that a module uses in a run. Both the cast of the module's parameters and its forward
/// pass follow this plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionPlan {
    /// The dtype of parameters and floating-point buffers.
    pub storage: Kind,
    /// The dtype in which matrix products are computed.
    pub compute: Kind,
    /// The autocast dtype, if autocast is on.
    pub autocast: Option<Kind>,
}

impl RegionPlan {
    /// Returns the dtypes of modules that are in no precision region, for a run in `precision`.
    pub fn of(precision: Precision) -> Self {
        Self {
            storage: precision.storage(),
            compute: precision.compute(),
            autocast: precision.autocast(),
        }
    }

    /// Returns the plan of a module that is marked with `region`. `self` is the plan of the module
    /// that contains it. In a run with a mixed precision, the region always takes effect. In a run
    /// with a `*-true` precision, the region takes effect only if its dtype has at least as many
    /// bits as the run's dtype, so that a run in f32 or f64 contains no 16-bit computation.
    #[must_use]
    pub fn enter(self, region: Region, precision: Precision) -> Self {
        let mixed = precision.autocast().is_some();
        let own = match region {
            Region::AutocastOff => {
                return Self { compute: self.storage, autocast: None, ..self };
            }
            Region::Fp32 => Kind::Float,
            Region::Fp64 => Kind::Double,
            Region::Fp16 => Kind::Half,
            Region::Bf16 => Kind::BFloat16,
        };
        if mixed && bits(own) == 16 {
            return Self { storage: Kind::Float, compute: own, autocast: Some(own) };
        }
        let base = precision.storage();
        let raises = bits(own) > bits(base) || (bits(own) == bits(base) && own != base);
        if mixed || raises {
            return Self { storage: own, compute: own, autocast: None };
        }
        self
    }

    /// Runs `body`, a forward pass, on `inputs` with these dtypes. Switches autocast on or off if
    /// it differs from `outer`, the plan of the containing module. Casts the floating-point inputs
    /// and outputs that autocast does not cast.
    ///
    /// # Errors
    /// When a cast or `body` fails.
    pub fn run<A: Arguments, O: Tensors>(
        self,
        outer: Self,
        device: Device,
        inputs: A::At<'_>,
        body: impl for<'k> FnOnce(A::At<'k>) -> Result<O>,
    ) -> Result<O> {
        if self == outer {
            return body(inputs);
        }
        let output = {
            let _guard = match self.autocast {
                same if same == outer.autocast => None,
                None => Some(AutocastGuard::off(device)?),
                Some(kind) => Some(AutocastGuard::enter(device, kind)?),
            };
            match self.autocast {
                None => {
                    let kept = Kept::default();
                    body(A::each(&inputs, &kept, &mut |input| cast(input, self.storage))?)?
                }
                Some(_) => body(inputs)?,
            }
        };
        output.each(&mut |output| match outer.autocast {
            // Autocast of the containing module does not cast an f64 output, so it is cast here.
            Some(_) if output.kind() == Kind::Double => cast(output, Kind::Float),
            Some(_) => Ok(output.shallow_clone()),
            None => cast(output, outer.storage),
        })
    }
}

fn bits(kind: Kind) -> u32 {
    match kind {
        Kind::Double => 64,
        Kind::Float => 32,
        _ => 16,
    }
}

fn cast(tensor: &Tensor, kind: Kind) -> Result<Tensor> {
    if is_floating(tensor.kind()) && tensor.kind() != kind {
        return Ok(tensor.f_to_kind(kind)?);
    }
    Ok(tensor.shallow_clone())
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Fp32 => "fp32",
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
            Self::Fp64 => "fp64",
            Self::AutocastOff => "autocast_off",
        })
    }
}

impl FromStr for Region {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        [Self::Fp32, Self::Fp16, Self::Bf16, Self::Fp64, Self::AutocastOff]
            .into_iter()
            .find(|region| region.to_string() == text)
            .ok_or_else(|| {
                Error::config(format!(
                    "unknown precision region `{text}`: expected fp32, fp16, bf16, fp64 or autocast_off"
                ))
            })
    }
}
