//! By how much the metrics of unchanged runs of a project's models differ: the file `margins.json` in the
//! project's folder, which `cargo amp margins` writes and the gate judges by.

#[cfg(feature = "cli")]
mod goldens;
#[cfg(feature = "cli")]
mod kernel_sets;
#[cfg(feature = "cli")]
mod record;

pub use crate::margins_file::{Margins, MetricSpread, ModelMargin};
#[cfg(feature = "cli")]
pub use record::{MarginsArgs, command};
