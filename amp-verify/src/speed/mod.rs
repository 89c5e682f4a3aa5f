//! What the benchmark measures, and what a registry declares for the benchmark: workloads and
//! targets.

mod feed;
mod measurement;
pub mod overhead;
pub mod report;
pub mod statistics;
pub mod target;
mod workload;

pub use feed::Feed;
pub use measurement::{Engine, Measurement};
pub use overhead::Overhead;
pub use report::Report;
pub use target::Target;
pub use workload::{Devices, Workload};
pub(crate) use workload::{Noise, NoiseInput};
