//! Weights as safetensors files, under PyTorch's names.
//!
//! A file is read whole and checked before the first tensor changes. A checkpoint of a whole run
//! ([`checkpoint`](crate::checkpoint)) is such a file too: what else it holds has names with a
//! `/`, which no weight has, and is passed over here.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
};

use tch::Tensor;

use crate::{
    Error, Result, ffi,
    nn::{Visit, named_tensors, names_are_unique},
    precision::{dtype_name, is_floating},
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

/// Saves these tensors and some text beside them, in every dtype that safetensors has.
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

/// A model's tensors, each under its first name.
pub(crate) fn distinct(module: &(impl Visit + ?Sized)) -> Vec<(String, Tensor)> {
    tied(module).into_iter().map(|(tensor, mut names)| (names.swap_remove(0), tensor)).collect()
}

/// Every tensor once, with its names in order of declaration.
fn tied(module: &(impl Visit + ?Sized)) -> Vec<(Tensor, Vec<String>)> {
    let mut places = HashMap::new();
    let mut all: Vec<(Tensor, Vec<String>)> = Vec::new();
    for (name, tensor, _) in named_tensors(module) {
        let place = *places.entry(ffi::identity(&tensor)).or_insert(all.len());
        match all.get_mut(place) {
            Some((_, names)) => names.push(name),
            None => all.push((tensor, vec![name])),
        }
    }
    all
}

/// Why these values cannot become those of `tensor`, where its dtype does not hold what they are.
fn loses(name: &str, values: &Tensor, tensor: &Tensor) -> Result<Option<String>> {
    let (there, here) = (values.kind(), tensor.kind());
    if is_floating(there) && !is_floating(here) {
        let (there, here) = (dtype_name(there), dtype_name(here));
        return Ok(Some(format!("`{name}` is {there} there, {here} here, which has no fractions")));
    }
    if !is_floating(here) || here.elt_size_in_bytes() >= there.elt_size_in_bytes() {
        return Ok(None);
    }
    let cast = values.f_to_kind(here)?;
    let overflows = cast.f_isinf()?.f_logical_and(&values.f_isfinite()?)?.f_any()?;
    Ok((overflows.f_int64_value(&[])? != 0).then(|| {
        format!("`{name}` has values there that {} here does not reach", dtype_name(here))
    }))
}

/// A model's tensors beside the values they are to have.
pub(crate) struct Found {
    pairs: Vec<(Tensor, Tensor)>,
}

impl Found {
    /// Pairs a model's tensors with those of the file at `path`.
    ///
    /// # Errors
    /// When names or shapes are not the model's, or its dtypes do not hold the values.
    pub(crate) fn in_file(
        module: &(impl Visit + ?Sized),
        path: &Path,
        tensors: &BTreeMap<String, Tensor>,
    ) -> Result<Self> {
        let foreign = |why: String| {
            Error::config(format!("{}: these are another model's weights: {why}", path.display()))
        };
        let mut unused: BTreeSet<&str> =
            tensors.keys().map(String::as_str).filter(|name| !name.contains('/')).collect();
        let mut pairs = Vec::new();
        for (tensor, names) in tied(module) {
            let present: Vec<&String> =
                names.iter().filter(|name| unused.remove(name.as_str())).collect();
            let Some((name, values)) =
                present.first().and_then(|name| tensors.get_key_value(name.as_str()))
            else {
                return Err(foreign(format!("it has no tensor `{}`", names.join("` or `"))));
            };
            let (there, here) = (values.size(), tensor.size());
            if there != here {
                return Err(foreign(format!("`{name}` has shape {there:?} there, {here:?} here")));
            }
            for other in &present[1..] {
                if !tensors[other.as_str()].f_equal(values)? {
                    return Err(foreign(format!(
                        "`{name}` and `{other}` are one tensor here, but have two values there"
                    )));
                }
            }
            if let Some(why) = loses(name, values, &tensor)? {
                return Err(foreign(why));
            }
            pairs.push((tensor, values.shallow_clone()));
        }
        match unused.first() {
            Some(name) => Err(foreign(format!("the model has no tensor `{name}`"))),
            None => Ok(Self { pairs }),
        }
    }

    /// Gives the model these values.
    ///
    /// # Errors
    /// When libtorch does.
    pub(crate) fn apply(self) -> Result<()> {
        for (mut tensor, values) in self.pairs {
            tch::no_grad(|| tensor.f_copy_(&values))?;
        }
        Ok(())
    }
}
