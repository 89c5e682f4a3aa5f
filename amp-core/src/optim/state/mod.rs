//! The state of an optimizer: its [slots](slot), the values of the slots for a [parameter], and
//! their [storage in fewer bits](quantized).

mod parameter;
mod quantized;
mod slot;

pub(super) use parameter::{Kept, ParameterState, laid_out};
pub use quantized::Moments;
pub(super) use quantized::{BLOCK, Code, Codes, Moment};
pub use slot::Slot;
pub(super) use slot::SlotShape;
