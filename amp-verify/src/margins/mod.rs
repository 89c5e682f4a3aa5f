//! Measures how much the metrics of a project's models differ between precisions if nothing is
//! wrong. `cargo amp margins` computes the models' margins from this, and writes them to the file
//! `margins.json` in the project's folder, which the gate reads.

#[cfg(feature = "cli")]
mod goldens;
#[cfg(feature = "cli")]
mod kernel_sets;
#[cfg(feature = "cli")]
mod record;

pub use crate::margins_file::{Margins, MetricSpread, ModelMargin};
#[cfg(feature = "cli")]
pub use record::{MarginsArgs, command};
