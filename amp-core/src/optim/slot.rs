//! What an optimizer keeps for a parameter.

/// One tensor of a parameter's state, zero at first.
#[derive(Debug, Clone, PartialEq)]
pub struct Slot {
    pub(super) name: &'static str,
    pub(super) shape: SlotShape,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum SlotShape {
    /// The parameter's, and its dtype unless that is widened: a running average, which may be
    /// negative where it is signed.
    Parameter { signed: bool },
    /// Another, in the dtype that the parameter is stepped in.
    Own(Vec<i64>),
    /// One f32, on the parameter's device.
    Scalar,
    /// One f32 on the CPU.
    HostScalar,
}

impl Slot {
    /// A running average of the parameter's shape. It may be kept in fewer bits ([`Moments`](super::Moments)).
    pub const fn like_parameter(name: &'static str) -> Self {
        Self { name, shape: SlotShape::Parameter { signed: true } }
    }

    /// A running average of squares, which is not negative.
    pub const fn of_squares(name: &'static str) -> Self {
        Self { name, shape: SlotShape::Parameter { signed: false } }
    }

    /// A tensor of another shape, which is kept in full.
    pub fn of_shape(name: &'static str, shape: impl Into<Vec<i64>>) -> Self {
        Self { name, shape: SlotShape::Own(shape.into()) }
    }

    /// A count of steps ([`ParameterStep::count`](super::ParameterStep::count)).
    pub const fn count(name: &'static str) -> Self {
        Self { name, shape: SlotShape::Scalar }
    }
}
