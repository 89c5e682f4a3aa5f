//! The gate's own test: faults that must turn it red, and unchanged runs that must not.

mod args;
mod fault;
mod report;
mod run;

pub use args::SelftestArgs;
pub use fault::{Fault, Faulty};
pub use report::{Fate, Report};
pub use run::run;
