//! Mixed-precision training: precisions with Lightning's names, autocast, precision regions, the
//! gradient scaler and gradient clipping.

mod autocast;
mod clip;
mod gradient_storage;
mod kernels;
mod region;
mod scaler;
mod tensors;

pub(crate) use autocast::KeptCasts;
pub use autocast::{AutocastGuard, AutocastState, autocast_state};
pub use clip::{Clip, clip_grad_norm, clip_grad_value, grad_norm};
pub use gradient_storage::GradientStorage;
pub(crate) use gradient_storage::{NarrowGradients, upcast_gradients};
pub use kernels::{Kernels, KernelsGuard};
pub use region::{Region, RegionPlan};
#[doc(hidden)]
pub use scaler::GrowsOnHostAlone;
pub use scaler::{
    Deferred, GradScaler, GradScalerConfig, Gradients, Scaled, ScaledLoss, ScalerState,
    StepOutcome, Unscaled,
};
pub use tensors::{Arguments, Kept, Tensors};

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use tch::{Device, Kind};

use crate::Error;

/// The dtypes in which a run computes, and in which it stores its weights. The names are
/// Lightning's.
///
/// ```
/// use amp_core::{precision::Precision, tch::Kind};
///
/// let precision: Precision = "16-mixed".parse()?;
/// assert_eq!((precision.storage(), precision.compute()), (Kind::Float, Kind::Half));
/// assert!(precision.scales_loss());
/// # Ok::<(), amp_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Precision {
    /// `32-true`: everything in f32. This is the baseline.
    #[serde(rename = "32-true")]
    F32True,
    /// `16-mixed`: f32 weights, f16 autocast, loss scaling.
    #[serde(rename = "16-mixed")]
    F16Mixed,
    /// `bf16-mixed`: f32 weights, bf16 autocast.
    #[serde(rename = "bf16-mixed")]
    Bf16Mixed,
    /// `64-true`: everything in f64.
    #[serde(rename = "64-true")]
    F64True,
    /// `16-true`: weights, inputs and gradients in f16.
    #[serde(rename = "16-true")]
    F16True,
    /// `bf16-true`: weights, inputs and gradients in bf16. By default, Adam, Lion and RMSprop also
    /// store their state in bf16.
    #[serde(rename = "bf16-true")]
    Bf16True,
}

impl Precision {
    /// All precisions. The first is the baseline, with which the other precisions are compared.
    pub const ALL: [Self; 6] = [
        Self::F32True,
        Self::F16Mixed,
        Self::Bf16Mixed,
        Self::F64True,
        Self::F16True,
        Self::Bf16True,
    ];

    /// Returns Lightning's name of the precision, such as `16-mixed`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32True => "32-true",
            Self::F16Mixed => "16-mixed",
            Self::Bf16Mixed => "bf16-mixed",
            Self::F64True => "64-true",
            Self::F16True => "16-true",
            Self::Bf16True => "bf16-true",
        }
    }

    /// Returns the dtype of parameters and of floating-point inputs.
    pub fn storage(self) -> Kind {
        match self {
            Self::F32True | Self::F16Mixed | Self::Bf16Mixed => Kind::Float,
            Self::F64True => Kind::Double,
            Self::F16True => Kind::Half,
            Self::Bf16True => Kind::BFloat16,
        }
    }

    /// Returns the autocast dtype of a mixed precision. Returns `None` for a `*-true` precision.
    pub fn autocast(self) -> Option<Kind> {
        match self {
            Self::F16Mixed => Some(Kind::Half),
            Self::Bf16Mixed => Some(Kind::BFloat16),
            _ => None,
        }
    }

    /// Returns the dtype in which matrix products are computed outside of precision regions.
    pub fn compute(self) -> Kind {
        self.autocast().unwrap_or(self.storage())
    }

    /// Returns whether the loss is scaled. This is so only if gradients are f16 and weights are
    /// f32, because small f16 gradients become zero.
    pub fn scales_loss(self) -> bool {
        self == Self::F16Mixed
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Precision {
    type Err = Error;

    /// Parses a name. Lightning's short forms `16`, `bf16`, `32` and `64` are accepted too.
    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "16" => return Ok(Self::F16Mixed),
            "bf16" => return Ok(Self::Bf16Mixed),
            "32" => return Ok(Self::F32True),
            "64" => return Ok(Self::F64True),
            _ => {}
        }
        Self::ALL.into_iter().find(|precision| precision.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::config(format!("unknown precision `{text}`: expected one of {names}"))
        })
    }
}

/// A precision and a device, which together determine all casts and autocast regions of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// The dtypes in which the run computes, and in which it stores its weights.
    pub precision: Precision,
    /// The device on which the run trains.
    pub device: Device,
}

impl Policy {
    /// Creates the policy of a run with this precision on this device.
    pub fn new(precision: Precision, device: Device) -> Self {
        Self { precision, device }
    }

    /// Switches autocast on until the guard is dropped. Returns `None` for `*-true` precisions,
    /// which do not use autocast.
    ///
    /// # Errors
    /// When libtorch cannot change the autocast state.
    pub fn autocast(self) -> Result<Option<AutocastGuard>, Error> {
        self.precision.autocast().map(|kind| AutocastGuard::enter(self.device, kind)).transpose()
    }
}

/// Returns PyTorch's short name of a dtype, as in `bfloat16`.
pub fn dtype_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Uint8 => "uint8",
        Kind::Int8 => "int8",
        Kind::Int16 => "int16",
        Kind::Int => "int32",
        Kind::Int64 => "int64",
        Kind::Half => "float16",
        Kind::Float => "float32",
        Kind::Double => "float64",
        Kind::BFloat16 => "bfloat16",
        Kind::Bool => "bool",
        Kind::Float8e4m3fn => "float8_e4m3fn",
        Kind::Float8e5m2 => "float8_e5m2",
        Kind::Float8e4m3fnuz => "float8_e4m3fnuz",
        Kind::Float8e5m2fnuz => "float8_e5m2fnuz",
        _ => "other",
    }
}

/// Returns f64 for f64, and f32 for any other dtype: the dtype for computations for which 16 bits
/// are too few.
pub(crate) fn f32_or_f64(kind: Kind) -> Kind {
    if kind == Kind::Double { Kind::Double } else { Kind::Float }
}

/// Returns whether `kind` is one of the floating-point dtypes in which models compute: f16, bf16,
/// f32 or f64.
pub fn is_floating(kind: Kind) -> bool {
    matches!(kind, Kind::Half | Kind::Float | Kind::Double | Kind::BFloat16)
}
