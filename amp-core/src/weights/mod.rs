//! Weights as safetensors files, under PyTorch's names.
//!
//! A file is read whole and checked before the first tensor changes. A checkpoint of a whole run
//! ([`checkpoint`](crate::checkpoint)) is such a file too: what else it holds has names with a
//! `/`, which no weight has, and is passed over here. [`Import`] reads files whose names, layouts or heads
//! are not the model's.

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

/// Saves every tensor of `module` and some text beside them. A tied tensor is saved once, under
/// its first name, as `safetensors.torch.save_model` does.
///
/// # Errors
/// When two tensors have one name, or the folder is missing or cannot be written to.
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

/// Saves these tensors and some text beside them, in every dtype that safetensors and libtorch have.
///
/// # Errors
/// When a dtype is not among those, or the folder is missing or cannot be written to.
pub fn save_tensors<'t>(
    tensors: impl IntoIterator<Item = (String, &'t Tensor)>,
    path: &Path,
    metadata: BTreeMap<String, String>,
) -> Result<()> {
    tensor_file::write(path, tensors, metadata)
}

/// Loads every tensor of `module` from a file that has exactly its names and shapes; dtypes are
/// converted. Of a tied tensor any of its names will do: `safetensors.torch.save_model` keeps the
/// first of the alphabet. Returns the text beside them.
///
/// # Errors
/// When the file is missing, damaged, or another model's: then nothing has changed.
pub fn load(module: &(impl Visit + ?Sized), path: &Path) -> Result<BTreeMap<String, String>> {
    let TensorFile { tensors, metadata } = tensor_file::read(path)?;
    Found::in_file(module, path, &tensors)?.apply()?;
    Ok(metadata)
}
