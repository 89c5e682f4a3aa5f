//! The slots of an optimizer's state: which state tensors a parameter has.

/// Declares one tensor in the optimizer state of a parameter. The tensor is initially zero.
#[derive(Debug, Clone, PartialEq)]
pub struct Slot {
    pub(in crate::optim) name: &'static str,
    pub(in crate::optim) shape: SlotShape,
}

#[derive(Debug, Clone, PartialEq)]
pub(in crate::optim) enum SlotShape {
    /// A tensor of the parameter's shape, such as a running average. The dtype is the parameter's,
    /// or f32 if the parameter is updated in f32. `signed` says whether values may be negative.
    Parameter { signed: bool },
    /// A tensor of the given shape, in the dtype in which the parameter is updated.
    Own(Vec<i64>),
    /// A single f32 value on the parameter's device.
    Scalar,
    /// A single f32 value on the CPU.
    HostScalar,
}

impl Slot {
    /// Declares a running average with the shape of the parameter. The average may be stored in
    /// fewer bits than f32 (see [`Moments`](super::Moments)).
    pub const fn like_parameter(name: &'static str) -> Self {
        Self { name, shape: SlotShape::Parameter { signed: true } }
    }

    /// Declares a running average of squares, which is never negative.
    pub const fn of_squares(name: &'static str) -> Self {
        Self { name, shape: SlotShape::Parameter { signed: false } }
    }

    /// Declares a tensor of the given shape, to which [`Moments`](super::Moments) does not apply.
    pub fn of_shape(name: &'static str, shape: impl Into<Vec<i64>>) -> Self {
        Self { name, shape: SlotShape::Own(shape.into()) }
    }

    /// Declares the number of steps in which the parameter was updated
    /// ([`ParameterStep::count`](crate::optim::ParameterStep::count)).
    pub const fn count(name: &'static str) -> Self {
        Self { name, shape: SlotShape::Scalar }
    }
}
