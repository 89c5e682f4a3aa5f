//! Weights as safetensors files, under PyTorch's names.
//!
//! A file is read whole and checked before the first tensor changes.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    path::Path,
};

use safetensors::{
    Dtype, SafeTensors,
    tensor::{TensorView, serialize},
};
use tch::{Device, Kind, Tensor};

use crate::{
    Error, Result, ffi,
    file::Staged,
    nn::{Module, named_tensors},
    precision::dtype_name,
};

/// Saves every tensor of `module` and some text beside them. A tied tensor is saved once, under
/// its first name in order of declaration.
///
/// # Errors
/// When the folder is missing or cannot be written to.
pub fn save(
    module: &(impl Module + ?Sized),
    path: &Path,
    metadata: HashMap<String, String>,
) -> Result<()> {
    let tensors = tied(module)
        .into_iter()
        .map(|(tensor, mut names)| Ok((names.swap_remove(0), Stored::new(&tensor)?)))
        .collect::<Result<Vec<_>>>()?;
    let views = tensors
        .iter()
        .map(|(name, stored)| {
            let view = TensorView::new(stored.dtype, stored.shape.clone(), &stored.bytes);
            Ok((name, view.map_err(|error| refused(path, error))?))
        })
        .collect::<Result<Vec<_>>>()?;
    let bytes = serialize(views, Some(metadata)).map_err(|error| refused(path, error))?;
    Staged::create(path)?.write(&bytes)
}

/// Loads every tensor of `module` from a file that has exactly its names and shapes; dtypes are
/// converted. Of a tied tensor any of its names will do: `safetensors.torch.save_model` keeps the
/// first of the alphabet. Returns the text beside them.
///
/// # Errors
/// When the file is missing, damaged, or another model's: then nothing has changed.
pub fn load(module: &(impl Module + ?Sized), path: &Path) -> Result<BTreeMap<String, String>> {
    let bytes = fs::read(path).map_err(|error| Error::io(path, error))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| refused(path, error))?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| refused(path, error))?;
    let mut unused: HashSet<&str> = file.names().into_iter().collect();
    let mut loaded = Vec::new();
    for (tensor, names) in tied(module) {
        let present: Vec<&String> =
            names.iter().filter(|name| unused.remove(name.as_str())).collect();
        let Some(name) = present.first() else {
            return Err(foreign(path, &format!("it has no tensor `{}`", names.join("` or `"))));
        };
        let view = file.tensor(name).map_err(|error| refused(path, error))?;
        let shape: Vec<i64> = view.shape().iter().map(|size| *size as i64).collect();
        if shape != tensor.size() {
            let (found, wanted) = (shape, tensor.size());
            return Err(foreign(
                path,
                &format!("`{name}` has shape {found:?} there, {wanted:?} here"),
            ));
        }
        let kind = kind(view.dtype())
            .ok_or_else(|| foreign(path, &format!("`{name}` is of type {:?}", view.dtype())))?;
        loaded.push((tensor, Tensor::f_from_data_size(view.data(), &shape, kind)?));
    }
    if let Some(name) = unused.into_iter().min() {
        return Err(foreign(path, &format!("the model has no tensor `{name}`")));
    }
    for (mut tensor, values) in loaded {
        tch::no_grad(|| tensor.f_copy_(&values))?;
    }
    Ok(header.metadata().clone().unwrap_or_default().into_iter().collect())
}

/// Every tensor once, with its names in order of declaration.
fn tied(module: &(impl Module + ?Sized)) -> Vec<(Tensor, Vec<String>)> {
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

fn refused(path: &Path, error: impl std::fmt::Display) -> Error {
    Error::config(format!("{}: not a whole safetensors file: {error}", path.display()))
}

fn foreign(path: &Path, why: &str) -> Error {
    Error::config(format!("{}: these are another model's weights: {why}", path.display()))
}

struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Stored {
    fn new(tensor: &Tensor) -> Result<Self> {
        let kind = tensor.kind();
        let dtype = DTYPES.iter().find(|(own, _)| *own == kind).map(|(_, dtype)| *dtype);
        let dtype = dtype.ok_or_else(|| {
            Error::config(format!("tensors of type {} cannot be saved", dtype_name(kind)))
        })?;
        let tensor = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?;
        let mut bytes = vec![0; tensor.numel() * kind.elt_size_in_bytes()];
        tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
        let shape = tensor.size().into_iter().map(|size| size as usize).collect();
        Ok(Self { dtype, shape, bytes })
    }
}

const DTYPES: [(Kind, Dtype); 7] = [
    (Kind::Half, Dtype::F16),
    (Kind::BFloat16, Dtype::BF16),
    (Kind::Float, Dtype::F32),
    (Kind::Double, Dtype::F64),
    (Kind::Int64, Dtype::I64),
    (Kind::Int, Dtype::I32),
    (Kind::Uint8, Dtype::U8),
];

fn kind(dtype: Dtype) -> Option<Kind> {
    DTYPES.iter().find(|(_, own)| *own == dtype).map(|(kind, _)| *kind)
}
