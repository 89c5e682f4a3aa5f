//! The results of the benchmark. Also the types with which a registry declares what the benchmark
//! trains (workloads), and which speed and memory to reach (targets).

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
