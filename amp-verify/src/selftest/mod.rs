//! Tests the gate: it must report each planted fault, and must pass unchanged runs.

mod args;
mod report;
mod run;
mod subject;

pub use crate::faults::{Area, Fault, Faulty};
pub use args::SelftestArgs;
pub use report::{FaultResult, Report, fault_list};
pub use run::run;
