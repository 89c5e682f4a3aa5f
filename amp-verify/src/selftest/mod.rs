//! The gate's own test: faults that must turn it red, and unchanged runs that must not.

mod args;
mod report;
mod run;
mod subject;

pub use crate::faults::{Area, Fault, Faulty};
pub use args::SelftestArgs;
pub use report::{Fate, Report};
pub use run::run;
