//! Weights in safetensors files, with PyTorch's names.
//!
//! A file is read and checked completely before the first tensor changes. A checkpoint of a run
//! ([`checkpoint`](crate::checkpoint)) is such a file too. Its other entries have names with a `/`,
//! which weights never have, and are ignored here. [`Import`] reads files with other names, layouts
//! or heads.

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

/// Saves every tensor of `module`, with additional text. A tied tensor is saved once, under its
/// first name, as in `safetensors.torch.save_model`.
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

/// Saves these tensors, with additional text, in every dtype that safetensors and libtorch support.
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

/// Loads every tensor of `module` from a file that has exactly the same names and shapes. Dtypes
/// are converted. For a tied tensor the file needs only one of its names, because
/// `safetensors.torch.save_model` keeps only the alphabetically first name. Returns the file's
/// additional text.
///
/// # Errors
/// When the file is missing or damaged, or belongs to another model. Then nothing is changed.
pub fn load(module: &(impl Visit + ?Sized), path: &Path) -> Result<BTreeMap<String, String>> {
    let TensorFile { tensors, metadata } = tensor_file::read(path)?;
    Found::in_file(module, path, &tensors)?.apply()?;
    Ok(metadata)
}
