//! The gate's own test: faults that the gate must report, and unchanged runs that must pass.

mod args;
mod report;
mod run;
mod subject;

pub use crate::faults::{Area, Fault, Faulty};
pub use args::SelftestArgs;
pub use report::{FaultResult, Report};
pub use run::run;
