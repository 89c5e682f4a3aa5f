//! Decides on which tensors the update of a parameter is computed: on the parameter itself, on f32
//! copies, or on master weights. The choice depends on the parameter's dtype and on the options of
//! the run.

use tch::{Device, Kind, Tensor};

use super::{
    Algorithm, Moments, Slot, Storage, WeightUpdate,
    state::{Codes, Moment, SlotShape},
    weight_update::{is_half, wide},
};
use crate::{Result, parameter::Parameter};

/// The tensors on which the update of parameters of one dtype is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Working {
    Itself,
    /// f32 copies, which exist only during the step.
    Copies {
        stochastic: bool,
    },
    Masters,
}

/// Returns the device of the parameters; `None` if they are on several devices.
pub(super) fn common_device(parameters: &[Parameter]) -> Option<Device> {
    let mut devices = parameters.iter().map(|parameter| parameter.tensor.device());
    let first = devices.next()?;
    devices.all(|device| device == first).then_some(first)
}

/// Returns how running averages are stored for parameters of this dtype. Averages of f64 parameters
/// stay f64.
pub(super) fn moments(kind: Kind, storage: Storage) -> Moments {
    if kind == Kind::Double { Moments::Full } else { storage.moments }
}

pub(super) fn working<A: Algorithm>(kind: Kind, storage: Storage) -> Working {
    match storage.weights {
        WeightUpdate::MasterWeights if is_half(kind) => Working::Masters,
        WeightUpdate::StochasticRounding if is_half(kind) => Working::Copies { stochastic: true },
        _ if A::upcasts(kind).is_some() => Working::Copies { stochastic: false },
        // Averages that are stored as bf16 or in 8 bits are read as f32, so the parameters are
        // updated in f32 too.
        _ if is_half(kind) && storage.moments != Moments::Full => {
            Working::Copies { stochastic: false }
        }
        _ => Working::Itself,
    }
}

/// Returns whether the kernels update parameters with the dtype and device of `like` in place,
/// without f32 copies of the parameters or of their running averages.
pub(super) fn is_taken<A: Algorithm>(options: &A, like: &Tensor, storage: Storage) -> bool {
    let kind = like.kind();
    working::<A>(kind, storage) == Working::Itself
        && options.takes(moments(kind, storage), kind, like.device())
}

pub(super) fn zeros(
    slot: &Slot,
    parameter: &Tensor,
    working: Working,
    moments: Moments,
    codes: &mut Codes,
) -> Result<Moment> {
    let number = |device| Tensor::f_zeros([], (Kind::Float, device));
    let (elements, device) = (parameter.numel() as i64, parameter.device());
    let full = match working {
        Working::Itself if moments == Moments::Full => parameter.kind(),
        _ => Kind::Float,
    };
    Ok(Moment::Plain(match (&slot.shape, moments) {
        (SlotShape::Scalar, _) => number(device)?,
        (SlotShape::HostScalar, _) => number(Device::Cpu)?,
        (SlotShape::Own(shape), _) => Tensor::f_zeros(shape.as_slice(), (full, device))?,
        (SlotShape::Parameter { .. }, Moments::Bf16) => return Moment::bf16(elements, device),
        (SlotShape::Parameter { signed }, Moments::EightBit) => {
            return Moment::eight_bit(elements, codes.of(*signed, device)?);
        }
        (SlotShape::Parameter { .. }, Moments::Full) if working == Working::Itself => {
            parameter.f_zeros_like()?.f_detach()?
        }
        (SlotShape::Parameter { .. }, Moments::Full) => wide(&parameter.f_zeros_like()?)?,
    }))
}
