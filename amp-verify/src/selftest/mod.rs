//! Tests the gate. The gate must report each fault (a mistake that is put into training on
//! purpose), and it must pass training without a fault.

mod args;
mod report;
mod run;
mod subject;
mod unchanged;

pub use crate::faults::{Area, Fault, Faulty};
pub use args::SelftestArgs;
pub use report::{FaultResult, Report, fault_list};
pub use run::run;
