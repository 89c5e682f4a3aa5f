//! Finds, for each tensor of a model, the values of a file that are to be loaded into it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
};

use tch::{Kind, Tensor};

use crate::{
    Error, Result, ffi,
    nn::{Visit, named_tensors},
    precision::{dtype_name, is_floating},
};

/// Returns each tensor of a model once, under the first of its names.
pub(crate) fn distinct(module: &(impl Visit + ?Sized)) -> Vec<(String, Tensor)> {
    tied(module).into_iter().map(|(tensor, mut names)| (names.swap_remove(0), tensor)).collect()
}

/// Returns each tensor of the model once, with all its names in order of declaration. A tied tensor
/// has several names.
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

/// Returns whether a tensor of a file is a weight. In a checkpoint, the names of other tensors,
/// such as optimizer state, contain a `/`.
pub(super) fn is_weight(name: &str) -> bool {
    !name.contains('/')
}

fn is_float8(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Float8e4m3fn | Kind::Float8e5m2 | Kind::Float8e4m3fnuz | Kind::Float8e5m2fnuz
    )
}

/// Returns the reason why `values` cannot be loaded into `tensor`, or `None` if they can. If the
/// tensor is floating-point, the cast may round, but a finite value must not become infinite. If
/// the tensor is an integer tensor, the values must be integers and the cast must not change any.
fn loses(name: &str, values: &Tensor, tensor: &Tensor) -> Result<Option<String>> {
    let (there, here) = (values.kind(), tensor.kind());
    let has_fractions = is_floating(there) || is_float8(there);
    if has_fractions && !is_floating(here) {
        let (there, here) = (dtype_name(there), dtype_name(here));
        return Ok(Some(format!(
            "`{name}` is {there} in the file, but {here} in the model: {here} cannot represent \
             fractions"
        )));
    }
    if there == here {
        return Ok(None);
    }
    let cast = values.f_to_kind(here)?;
    let lost = match is_floating(here) {
        true if here.elt_size_in_bytes() >= there.elt_size_in_bytes() => return Ok(None),
        true => cast.f_isinf()?.f_logical_and(&values.f_isfinite()?)?,
        false => cast.f_to_kind(there)?.f_ne_tensor(values)?,
    };
    Ok((lost.f_any()?.f_int64_value(&[])? != 0).then(|| {
        format!(
            "`{name}`: the file contains values that cannot be represented in {}, the dtype of \
             this tensor in the model",
            dtype_name(here)
        )
    }))
}

/// Returns whether two tensors have equal values.
fn equal(a: &Tensor, b: &Tensor) -> Result<bool> {
    // libtorch cannot compare 8-bit floats, so they are converted first.
    let wide = |tensor: &Tensor| -> Result<Tensor> {
        Ok(match is_float8(tensor.kind()) {
            true => tensor.f_to_kind(Kind::Float)?,
            false => tensor.shallow_clone(),
        })
    };
    Ok(wide(a)?.f_equal(&wide(b)?)?)
}

/// A tensor of a model and the values to load into it.
pub(super) struct Pair {
    /// The model's tensor.
    pub(super) tensor: Tensor,
    /// The tensor's name in the file. If the file does not have the tensor, the tensor's first name
    /// in the model.
    pub(super) name: String,
    /// The values from the file; `None` if the tensor keeps its initial values.
    pub(super) values: Option<Tensor>,
    /// The shape of the file's tensor of this name, if the model's tensor has another shape. The
    /// file's values are then not used.
    pub(super) other_shape: Option<Vec<i64>>,
}

/// Returns whether `name` is a batch norm's count of batches. Files of old versions of torch and of
/// other programs lack this count, and torch accepts such files.
fn is_count_of_batches(name: &str) -> bool {
    name.rsplit('.').next() == Some("num_batches_tracked")
}

/// Pairs every tensor of a model with its values in `tensors`, the tensors of a file. It is a
/// mismatch if the file has no tensor with the same name and shape. There are two exceptions: names
/// for which `keeps` returns true, and the count of batches of a batch norm, if the file does not
/// have it. Such tensors keep their initial values. Returns the pairs, and one text for each
/// mismatch. The pairs are complete only if there is no mismatch.
pub(super) fn pair(
    module: &(impl Visit + ?Sized),
    tensors: &BTreeMap<String, Tensor>,
    keeps: impl Fn(&str) -> bool,
) -> Result<(Vec<Pair>, Vec<String>)> {
    let mut unused: BTreeSet<&str> = tensors.keys().map(String::as_str).collect();
    let (mut pairs, mut misfits) = (Vec::new(), Vec::new());
    for (tensor, names) in tied(module) {
        let kept = names.iter().any(|name| keeps(name));
        let present: Vec<&String> =
            names.iter().filter(|name| unused.remove(name.as_str())).collect();
        let found = present.first().and_then(|name| tensors.get_key_value(name.as_str()));
        let Some((name, values)) = found else {
            match kept || names.iter().any(|name| is_count_of_batches(name)) {
                true => {
                    let name = names[0].clone();
                    pairs.push(Pair { tensor, name, values: None, other_shape: None });
                }
                false => misfits.push(format!("the file has no tensor `{}`", names.join("` or `"))),
            }
            continue;
        };
        let (there, here) = (values.size(), tensor.size());
        if there != here {
            let name = name.clone();
            match kept {
                true => pairs.push(Pair { tensor, name, values: None, other_shape: Some(there) }),
                false => misfits.push(format!(
                    "`{name}` has shape {there:?} in the file, but {here:?} in the model"
                )),
            }
            continue;
        }
        for other in &present[1..] {
            if !equal(&tensors[other.as_str()], values)? {
                misfits.push(format!(
                    "`{name}` and `{other}` are the same tensor in the model, but have different \
                     values in the file"
                ));
            }
        }
        misfits.extend(loses(name, values, &tensor)?);
        let values = Some(values.shallow_clone());
        pairs.push(Pair { tensor, name: name.clone(), values, other_shape: None });
    }
    misfits.extend(unused.iter().map(|name| format!("the model has no tensor `{name}`")));
    Ok((pairs, misfits))
}

/// Joins the texts of the mismatches to one line, and shortens a long list.
pub(super) fn listed(misfits: &[String]) -> String {
    const SHOWN: usize = 4;
    let shown = misfits.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("; ");
    match misfits.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown}; and {more} more"),
    }
}

/// A model's tensors, each paired with its values from a file.
pub(crate) struct Found {
    pairs: Vec<Pair>,
}

impl Found {
    /// Finds the values of a model's tensors among the tensors of the file at `path`.
    ///
    /// # Errors
    /// When the names or shapes of the tensors differ from the model's, or the model's dtypes
    /// cannot represent the values.
    pub(crate) fn in_file(
        module: &(impl Visit + ?Sized),
        path: &Path,
        tensors: &BTreeMap<String, Tensor>,
    ) -> Result<Self> {
        let weights = tensors.iter().filter(|(name, _)| is_weight(name));
        let weights =
            weights.map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
        let (pairs, misfits) = pair(module, &weights, |_| false)?;
        match misfits.is_empty() {
            true => Ok(Self { pairs }),
            false => Err(Error::config(format!(
                "{}: these are the weights of another model: {}",
                path.display(),
                listed(&misfits)
            ))),
        }
    }

    /// Copies the paired values into the model's tensors.
    ///
    /// # Errors
    /// When libtorch cannot copy a tensor.
    pub(crate) fn apply(self) -> Result<()> {
        apply(&self.pairs)
    }
}

/// Copies the values of each pair into the pair's tensor. Tensors without values stay unchanged.
pub(super) fn apply(pairs: &[Pair]) -> Result<()> {
    for Pair { tensor, values, .. } in pairs {
        if let Some(values) = values {
            tch::no_grad(|| tensor.shallow_clone().f_copy_(values))?;
        }
    }
    Ok(())
}
