//! Datasets and the loader that cuts them into batches and brings those to the device.

mod batch;
mod dataset;
mod loader;
mod module;
mod placement;
mod prefetch;

pub use batch::Batch;
pub use dataset::{Dataset, SharedDataset};
pub use loader::DataLoader;
pub use module::DataModule;
pub use placement::{DEVICE_SHARE, Loading, Placement};
