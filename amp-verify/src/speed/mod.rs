//! The benchmark's figures, and the registry's declarations for it: workloads and targets.

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
