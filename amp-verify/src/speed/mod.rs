//! The benchmark's measurements, and the types with which a project's registry declares what the
//! benchmark measures (workloads) and which speed to reach (targets).

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
