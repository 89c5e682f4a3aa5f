//! Weights in safetensors files, with PyTorch's names.
//!
//! Loading reads and checks a file completely before it changes the first tensor. A run's
//! [`checkpoint`](crate::checkpoint) can be loaded as a weights file. Besides weights, a checkpoint
//! contains entries with a `/` in their names, which loading ignores. [`Import`] reads files with
//! other names, layouts or heads.

mod import;
mod pairs;
mod pattern;
mod report;
mod source;

pub use import::Import;
pub(crate) use pairs::{Found, distinct};
pub use report::{Imported, ImportedTensor, Origin};

use std::{collections::BTreeMap, path::Path};

use tch::Tensor;

use crate::{
    Result,
    nn::{Visit, names_are_unique},
    tensor_file::{self, TensorFile},
};

/// Saves every tensor of `module`, and `metadata`, a map from names to texts. A tied tensor (one
/// tensor with several names) is saved only once, as by `safetensors.torch.save_model`. Its name in
/// the file is the one that is declared first.
///
/// # Errors
/// When two tensors have the same name, or the folder is missing or cannot be written to.
pub fn save(
    module: &(impl Visit + ?Sized),
    path: &Path,
    metadata: BTreeMap<String, String>,
) -> Result<()> {
    let tensors = distinct(module);
    names_are_unique(tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)))?;
    let named = tensors.iter().map(|(name, tensor)| (name.clone(), tensor));
    tensor_file::write(path, named, metadata)
}

/// Saves these tensors, and `metadata`, a map from names to texts. Supports every dtype that both
/// safetensors and libtorch have.
///
/// # Errors
/// When a dtype is not supported, or the folder is missing or cannot be written to.
pub fn save_tensors<'t>(
    tensors: impl IntoIterator<Item = (String, &'t Tensor)>,
    path: &Path,
    metadata: BTreeMap<String, String>,
) -> Result<()> {
    tensor_file::write(path, tensors, metadata)
}

/// Loads every tensor of `module` from a file that has exactly the same names and shapes. Converts
/// dtypes if they differ. As in torch, the `num_batches_tracked` of a batch norm may be missing.
/// For a tied tensor (one tensor with several names) the file needs only one of the names, because
/// `safetensors.torch.save_model` writes only the alphabetically first one. Returns the file's
/// metadata, a map from names to texts.
///
/// # Errors
/// When the file is missing or damaged, or contains the weights of another model. After an error
/// the module is unchanged.
pub fn load(module: &(impl Visit + ?Sized), path: &Path) -> Result<BTreeMap<String, String>> {
    let TensorFile { tensors, metadata } = tensor_file::read(path)?;
    Found::in_file(module, path, &tensors)?.apply()?;
    Ok(metadata)
}
