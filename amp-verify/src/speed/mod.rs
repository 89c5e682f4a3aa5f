//! The benchmark's figures and what a registry declares of it: what is trained, and what is aimed at.

mod feed;
pub mod overhead;
pub mod report;
mod score;
pub mod statistics;
pub mod target;
mod workload;

pub use feed::Feed;
pub use overhead::Overhead;
pub use report::Report;
pub use score::{Engine, Score};
pub use target::Target;
pub use workload::{Devices, Workload};
pub(crate) use workload::{Noise, NoiseInput};
