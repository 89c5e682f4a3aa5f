//! Datasets, and the loader that splits them into batches and moves the batches to the device.

mod batch;
mod dataset;
mod epochs_differ;
mod example_indices;
mod image;
mod limit;
mod loader;
mod map_style;
mod module;
mod padded;
mod placement;
mod prefetch;
mod sampler;
mod sets;
mod shared_examples;
mod source;
mod stream;
#[cfg(feature = "tokenizers")]
mod tokenizer;
mod transformed;

pub use batch::{AnyBatch, Batch, BatchField, BatchType, FieldRole};
#[doc(hidden)]
pub use batch::{Compared, TensorInput, field_name, predictions, take_field, with_batch};
pub use dataset::{Dataset, SharedDataset};
pub use image::{
    CenterCrop, ColorJitter, Compose, CutMix, ImageGrid, Jitter, MixUp, Normalize, RandomCrop,
    RandomHorizontalFlip, RandomResizedCrop, Resize, Transform,
};
#[cfg(feature = "images")]
pub use image::{ImageFolder, decode_image, save_image};
pub use limit::Limit;
pub use loader::DataLoader;
pub use map_style::{Collate, MapDataset, Pad, SharedTensor};
pub use module::DataModule;
pub use placement::{DEVICE_SHARE, Loading, Placement};
pub use sampler::{
    Bucketed, Distributed, Epoch, InOrder, Order, Sampler, Shuffled, ShuffledBlocks, Subset, Tail,
    Weighted,
};
pub use sets::Sets;
pub(crate) use shared_examples::{share_memory, shared_part};
pub use source::{Categories, Columns, Table, TokenFile, TokenWidth, Windows, map_npy, read_npy};
#[cfg(feature = "parquet")]
pub use source::{ParquetSet, ParquetTable};
pub use stream::IterableDataset;
#[cfg(feature = "tokenizers")]
pub use tokenizer::{Tokenizer, Tokens};
pub use transformed::{BatchRandom, BatchTransform, Images};
