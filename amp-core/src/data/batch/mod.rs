//! Batches: inputs with targets, or any struct of tensors.

mod any;
mod changed;
mod field;
mod pair;
mod parts;
mod shared;
mod whole;

pub use any::{AnyBatch, FieldRole};
pub use field::{
    BatchField, BatchType, Compared, TensorInput, field_name, predictions, take_field, with_batch,
};
pub use pair::Batch;
