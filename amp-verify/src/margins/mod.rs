//! How much the metrics of a project's models vary without a fault: the file `margins.json` in the
//! project's folder, which `cargo amp margins` writes and by which the gate judges.

#[cfg(feature = "cli")]
mod goldens;
#[cfg(feature = "cli")]
mod kernel_sets;
#[cfg(feature = "cli")]
mod record;

pub use crate::margins_file::{Margins, MetricSpread, ModelMargin};
#[cfg(feature = "cli")]
pub use record::{MarginsArgs, command};
