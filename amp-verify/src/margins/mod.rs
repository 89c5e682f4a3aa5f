//! Measures how much the metrics of a project's models differ between precisions in correct
//! training. `cargo amp margins` writes the result to the file `margins.json` in the project's
//! folder. The gate reads its margins from this file.

#[cfg(feature = "cli")]
mod goldens;
#[cfg(feature = "cli")]
mod kernel_sets;
#[cfg(feature = "cli")]
mod record;

pub use crate::margins_file::{Margins, MetricSpread, ModelMargin};
#[cfg(feature = "cli")]
pub use record::{MarginsArgs, command};
