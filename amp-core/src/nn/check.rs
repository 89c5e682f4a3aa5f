//! Checks that hand-written `visit` methods list valid tensors, and that every precision override
//! names an existing module.

use std::collections::{BTreeMap, HashMap};

use super::{Role, Visit, named_tensors, parameters::Found};
use crate::{
    Error, Result, ffi,
    precision::{Region, dtype_name, is_floating},
};

/// Checks that a module exists for the path of every precision override.
pub(super) fn overrides_name_modules(
    overrides: &BTreeMap<String, Region>,
    modules: &[String],
) -> Result<()> {
    let Some(unknown) = overrides.keys().find(|path| !modules.contains(path)) else {
        return Ok(());
    };
    let instead = match closest(unknown, modules) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => "a precision override must name a module, for example `body.0`".to_owned(),
    };
    Err(Error::config(format!("the model has no module `{unknown}`: {instead}")))
}

/// Checks that all `sizes` are positive. The error names the layer `layer` and its option `name`.
pub(in crate::nn) fn are_positive(layer: &str, name: &str, sizes: &[i64]) -> Result<()> {
    match sizes.iter().find(|size| **size < 1) {
        Some(size) => {
            Err(Error::config(format!("{layer}: {name} is {size}, but must be at least 1")))
        }
        None => Ok(()),
    }
}

/// Checks that each name belongs to one tensor, that a tensor with several names has the same dtype
/// and role (parameter or buffer) under each of them, and that parameters have a floating-point
/// dtype.
pub(super) fn tensors_are_sound(found: &[Found]) -> Result<()> {
    names_are_unique(found.iter().map(|found| (found.name.as_str(), &found.tensor)))?;
    tied_tensors_have_one_place(found)?;
    parameters_share_no_memory(found)?;
    let integer =
        |found: &&Found| found.role == Role::Parameter && !is_floating(found.tensor.kind());
    match found.iter().find(integer) {
        Some(Found { name, tensor, .. }) => Err(Error::config(format!(
            "the parameter `{name}` is {}: only floating-point numbers can be trained, visit it \
             as a `Role::Buffer` or convert it",
            dtype_name(tensor.kind())
        ))),
        None => Ok(()),
    }
}

/// Checks that a tensor that several modules share has the same dtype and the same role (parameter
/// or buffer) in each of them.
fn tied_tensors_have_one_place(found: &[Found]) -> Result<()> {
    let mut seen: HashMap<_, &Found> = HashMap::new();
    for one in found {
        let first = *seen.entry(ffi::identity(&one.tensor)).or_insert(one);
        let (name, other) = (&first.name, &one.name);
        let (kind, wanted) = (first.plan.storage, one.plan.storage);
        if is_floating(one.tensor.kind()) && kind != wanted {
            return Err(Error::config(format!(
                "`{name}` and `{other}` are the same tensor, but the precision region of `{name}` \
                 stores it in {} and the precision region of `{other}` in {}: put both into one \
                 region, or give `{other}` a tensor of its own",
                dtype_name(kind),
                dtype_name(wanted)
            )));
        }
        if first.role != one.role {
            return Err(Error::config(format!(
                "`{name}` and `{other}` are the same tensor, but one of them is a parameter and \
                 the other is a buffer: visit both in the same role"
            )));
        }
    }
    Ok(())
}

/// Checks that no parameter shares memory with another tensor. The optimizer would change the shared
/// elements once for each tensor, and a change of dtype would separate the tensors. A parameter
/// that is used under two names is one tensor, and passes.
fn parameters_share_no_memory(found: &[Found]) -> Result<()> {
    let mut places: Vec<(usize, usize, &Found)> = Vec::new();
    for one in found.iter().filter(|one| one.tensor.numel() > 0 && !one.tensor.is_sparse()) {
        let elements = one.tensor.size().into_iter().zip(one.tensor.stride());
        let last: i64 = elements.map(|(size, stride)| (size - 1) * stride).sum();
        let bytes = (last as usize + 1) * one.tensor.kind().elt_size_in_bytes();
        let start = one.tensor.data_ptr() as usize;
        places.push((start, start + bytes, one));
    }
    places.sort_by_key(|(start, ..)| *start);
    // For each role, the tensor that reaches furthest among those that start before.
    let mut furthest: [Option<(usize, &Found)>; 2] = [None, None];
    for (start, end, one) in places {
        let is_parameter = one.role == Role::Parameter;
        let earlier = furthest.iter().flatten().find(|(end, other)| {
            (is_parameter || other.role == Role::Parameter)
                && start < *end
                && ffi::identity(&other.tensor) != ffi::identity(&one.tensor)
        });
        if let Some((_, other)) = earlier {
            return Err(Error::config(format!(
                "`{}` and `{}` are different tensors that share memory, so that each step would \
                 change it twice: copy one of them with `f_copy`, or tie them by giving both fields \
                 handles of one parameter (`shallow_clone` of a tensor that requires gradients)",
                other.name, one.name
            )));
        }
        let own = &mut furthest[usize::from(is_parameter)];
        if own.is_none_or(|(furthest, _)| furthest < end) {
            *own = Some((end, one));
        }
    }
    Ok(())
}

/// Checks that no two tensors have the same name.
pub(crate) fn names_are_unique<'t>(
    tensors: impl Iterator<Item = (&'t str, &'t tch::Tensor)>,
) -> Result<()> {
    let mut seen = HashMap::new();
    for (name, tensor) in tensors {
        let identity = ffi::identity(tensor);
        if *seen.entry(name).or_insert(identity) != identity {
            return Err(Error::config(format!(
                "two tensors are called `{name}`: give each a name of its own in `visit`"
            )));
        }
    }
    Ok(())
}

/// Checks that every parameter of a model requires a gradient, because training would never change
/// a parameter without a gradient.
///
/// # Errors
/// When a parameter requires no gradient.
pub(crate) fn parameters_require_gradients(module: &(impl Visit + ?Sized)) -> Result<()> {
    let frozen = named_tensors(module)
        .into_iter()
        .find(|(_, tensor, role)| *role == Role::Parameter && !tensor.requires_grad());
    match frozen {
        Some((name, ..)) => Err(Error::config(format!(
            "the parameter `{name}` requires no gradient and would never be trained: make it with \
             `f_set_requires_grad(true)`, or visit it as a `Role::Buffer`"
        ))),
        None => Ok(()),
    }
}

/// Returns the module path that is most similar to `path`, for an error message.
fn closest<'p>(path: &str, known: &'p [String]) -> Option<&'p str> {
    let near = known.iter().map(|known| (edits(path, known), known.as_str())).min()?;
    let allowed = (path.len() / 2).clamp(1, 3);
    let last = |path: &str| path.rsplit('.').next().map(str::to_owned);
    match near {
        (edits, found) if edits <= allowed => Some(found),
        // If no path is similar, suggests a module whose path ends with the same name.
        _ => known.iter().find(|known| last(known) == last(path)).map(String::as_str),
    }
}

/// Returns the Levenshtein distance of `a` and `b`: the smallest number of letters to insert,
/// remove or replace to get from `a` to `b`.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for j in 1..row.len() {
            let replaced = diagonal + usize::from(letter != b[j - 1]);
            diagonal = row[j];
            row[j] = replaced.min(row[j] + 1).min(row[j - 1] + 1);
        }
    }
    row[b.len()]
}
