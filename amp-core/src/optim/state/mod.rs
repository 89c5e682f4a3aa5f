//! The state of an optimizer. A [`slot`] declares a state tensor, such as a running average. Each
//! [`parameter`] has one state tensor for each slot. Running averages can be stored in [fewer bits
//! than f32](quantized).

mod parameter;
mod quantized;
mod slot;

pub(super) use parameter::{Kept, ParameterState, drop_unused, laid_out};
pub use quantized::Moments;
pub(super) use quantized::{BLOCK, Code, Codes, Moment};
pub use slot::Slot;
pub(super) use slot::SlotShape;
