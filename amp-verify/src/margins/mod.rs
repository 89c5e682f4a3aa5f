//! Measures how much the metrics of a project's models vary without a fault. `cargo amp margins`
//! writes the result to `margins.json` in the project's folder, and the gate uses it.

#[cfg(feature = "cli")]
mod goldens;
#[cfg(feature = "cli")]
mod kernel_sets;
#[cfg(feature = "cli")]
mod record;

pub use crate::margins_file::{Margins, MetricSpread, ModelMargin};
#[cfg(feature = "cli")]
pub use record::{MarginsArgs, command};
