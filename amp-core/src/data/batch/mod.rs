//! Batches: a pair of tensors, or any struct of tensors.

mod any;
mod field;
mod pair;

pub use any::{AnyBatch, FieldRole};
pub use field::{BatchField, BatchType, predictions, with_batch};
pub use pair::Batch;
