//! Tensors and text in one safetensors file, with a checksum over the tensors and the text.
//!
//! The safetensors format itself has no checksum, so a flipped bit in a weight would not be
//! noticed.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
};

use safetensors::{
    Dtype, SafeTensors,
    tensor::{TensorView, serialize},
};
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use crate::{Error, Result, file::Staged, precision::dtype_name};

/// The header's key for the checksum.
const CHECKSUM: &str = "sha256";

/// The key under which Hugging Face's `transformers` looks for the framework that wrote the
/// tensors.
const FORMAT: &str = "format";
/// The value of [`FORMAT`] for tensors of PyTorch.
const PYTORCH: &str = "pt";

/// The header's key that marks a file that this crate wrote. Such a file must have a checksum, but
/// files of other programs need none. One flipped bit cannot remove both this key and the checksum,
/// so a damaged file is not mistaken for a file of another program.
const WRITER: &str = "amp";

/// The tensors (on the CPU) and the text of a file.
#[derive(Debug)]
pub(crate) struct TensorFile {
    pub(crate) tensors: BTreeMap<String, Tensor>,
    pub(crate) metadata: BTreeMap<String, String>,
}

/// Writes tensors from any device, and some text, to a file. A reader never sees a partly written
/// file.
///
/// # Errors
/// When the folder is missing or cannot be written to.
pub(crate) fn write<'t>(
    path: &Path,
    tensors: impl IntoIterator<Item = (String, &'t Tensor)>,
    mut metadata: BTreeMap<String, String>,
) -> Result<()> {
    let stored = tensors
        .into_iter()
        .map(|(name, tensor)| Ok((name, Stored::new(tensor)?)))
        .collect::<Result<BTreeMap<_, _>>>()?;
    let views = stored
        .iter()
        .map(|(name, stored)| {
            let view = TensorView::new(stored.dtype, stored.shape.clone(), &stored.bytes);
            Ok((name.as_str(), view.map_err(|error| damaged(path, error))?))
        })
        .collect::<Result<Vec<_>>>()?;
    // Hugging Face's `transformers` refuses a file without this entry.
    metadata.entry(FORMAT.to_owned()).or_insert_with(|| PYTORCH.to_owned());
    metadata.insert(WRITER.to_owned(), env!("CARGO_PKG_VERSION").to_owned());
    metadata.insert(CHECKSUM.to_owned(), checksum(&views, &metadata));
    let metadata: HashMap<_, _> = metadata.into_iter().collect();
    let bytes = serialize(views, Some(metadata)).map_err(|error| damaged(path, error))?;
    Staged::create(path)?.write(&bytes)
}

/// Reads all tensors and the text of a file. A file without a checksum comes from another program
/// and is accepted.
///
/// # Errors
/// When the file is missing, truncated or changed.
pub(crate) fn read(path: &Path) -> Result<TensorFile> {
    let bytes = fs::read(path).map_err(|error| Error::io(path, error))?;
    refuse_torch_save(path, &bytes)?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| damaged(path, error))?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| damaged(path, error))?;
    let mut metadata: BTreeMap<_, _> =
        header.metadata().clone().unwrap_or_default().into_iter().collect();
    let mut views = file.tensors();
    views.sort_by(|(one, _), (other, _)| one.cmp(other));
    let expected = metadata.remove(CHECKSUM);
    if expected.is_some() || metadata.contains_key(WRITER) {
        let views: Vec<_> =
            views.iter().map(|(name, view)| (name.as_str(), view.clone())).collect();
        if expected != Some(checksum(&views, &metadata)) {
            return Err(damaged(path, "its checksum does not match its content"));
        }
    }
    let tensors = views
        .into_iter()
        .map(|(name, view)| {
            let tensor = tensor(&view)?.ok_or_else(|| {
                Error::config(format!(
                    "{}: `{name}` is of type {:?}, and no dtype of libtorch represents all its values",
                    path.display(),
                    view.dtype()
                ))
            })?;
            Ok((name, tensor))
        })
        .collect::<Result<_>>()?;
    Ok(TensorFile { tensors, metadata })
}

/// Reads one entry of a file as a tensor. An entry whose dtype libtorch lacks gets a dtype that
/// represents all its values: i32 for `U16`, i64 for `U32` and `U64`, and f32 for `F8_E8M0`
/// (exponents of 8 bits). Returns `None` if libtorch has no such dtype.
fn tensor(view: &TensorView<'_>) -> Result<Option<Tensor>> {
    let shape: Vec<i64> = view.shape().iter().map(|size| *size as i64).collect();
    if let Some(kind) = kind(view.dtype()) {
        return Ok(Some(Tensor::f_from_data_size(view.data(), &shape, kind)?));
    }
    let made = match view.dtype() {
        Dtype::U16 => {
            let all = view.data().as_chunks().0.iter();
            Tensor::f_from_slice(
                &all.map(|own| u16::from_le_bytes(*own).into()).collect::<Vec<i32>>(),
            )
        }
        Dtype::U32 => {
            let all = view.data().as_chunks().0.iter();
            Tensor::f_from_slice(
                &all.map(|own| u32::from_le_bytes(*own).into()).collect::<Vec<i64>>(),
            )
        }
        Dtype::U64 => {
            let all = view.data().as_chunks().0.iter();
            let all = all.map(|own| i64::try_from(u64::from_le_bytes(*own)));
            let Ok(all) = all.collect::<Result<Vec<i64>, _>>() else { return Ok(None) };
            Tensor::f_from_slice(&all)
        }
        Dtype::F8_E8M0 => Tensor::f_from_slice(
            &view.data().iter().copied().map(power_of_two).collect::<Vec<f32>>(),
        ),
        _ => return Ok(None),
    };
    Ok(Some(made?.f_view(shape.as_slice())?))
}

/// Returns 2^(exponent − 127), and NaN for 255.
fn power_of_two(exponent: u8) -> f32 {
    match exponent {
        255 => f32::NAN,
        // 2⁻¹²⁷ is a subnormal f32. Only the highest bit of its mantissa is set.
        0 => f32::from_bits(1 << 22),
        _ => f32::from_bits(u32::from(exponent) << 23),
    }
}

/// Computes a checksum of the tensors' names, dtypes, shapes and bytes, and of the text. Tensors
/// and text are sorted by name. The length of each item is hashed, too. Otherwise the checksum
/// would stay the same if the last bytes of an item became the first bytes of the next one.
fn checksum(views: &[(&str, TensorView<'_>)], metadata: &BTreeMap<String, String>) -> String {
    let mut hash = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    for (name, view) in views {
        add(name.as_bytes());
        add(format!("{:?}{:?}", view.dtype(), view.shape()).as_bytes());
        add(view.data());
    }
    for (name, text) in metadata {
        add(name.as_bytes());
        add(text.as_bytes());
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Checks that a file with these first bytes is no file of torch.save.
///
/// # Errors
/// When it is one. The error names the way to convert it.
pub(crate) fn refuse_torch_save(path: &Path, bytes: &[u8]) -> Result<()> {
    match bytes.starts_with(ZIP) || bytes.starts_with(PICKLE) {
        true => Err(Error::config(format!(
            "{}: this is no safetensors file, but looks like a file of torch.save: read its \
             state_dict with torch.load, and convert it in Python with \
             `safetensors.torch.save_file(state_dict, new_path)`",
            path.display()
        ))),
        false => Ok(()),
    }
}

/// The first bytes of a file that torch.save writes.
const ZIP: &[u8] = b"PK\x03\x04";
/// The first bytes of a file that torch.save wrote before torch 1.6, a pickle.
const PICKLE: &[u8] = b"\x80\x02\x8a";

fn damaged(path: &Path, error: impl std::fmt::Display) -> Error {
    Error::config(format!("{}: damaged, or not a safetensors file: {error}", path.display()))
}

struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Stored {
    fn new(tensor: &Tensor) -> Result<Self> {
        let kind = tensor.kind();
        let dtype = dtype(kind)?;
        let tensor = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?;
        let mut bytes = vec![0; tensor.numel() * kind.elt_size_in_bytes()];
        tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
        let shape = tensor.size().into_iter().map(|size| size as usize).collect();
        Ok(Self { dtype, shape, bytes })
    }
}

const DTYPES: [(Kind, Dtype); 14] = [
    (Kind::Half, Dtype::F16),
    (Kind::BFloat16, Dtype::BF16),
    (Kind::Float, Dtype::F32),
    (Kind::Double, Dtype::F64),
    (Kind::Int64, Dtype::I64),
    (Kind::Int, Dtype::I32),
    (Kind::Int16, Dtype::I16),
    (Kind::Int8, Dtype::I8),
    (Kind::Uint8, Dtype::U8),
    (Kind::Bool, Dtype::BOOL),
    (Kind::Float8e4m3fn, Dtype::F8_E4M3),
    (Kind::Float8e5m2, Dtype::F8_E5M2),
    (Kind::Float8e4m3fnuz, Dtype::F8_E4M3FNUZ),
    (Kind::Float8e5m2fnuz, Dtype::F8_E5M2FNUZ),
];

/// Returns safetensors' dtype for libtorch's dtype `kind`.
///
/// # Errors
/// When safetensors has no corresponding dtype.
fn dtype(kind: Kind) -> Result<Dtype> {
    let found = DTYPES.iter().find(|(own, _)| *own == kind).map(|(_, dtype)| *dtype);
    found.ok_or_else(|| {
        Error::config(format!("tensors of type {} cannot be saved", dtype_name(kind)))
    })
}

/// Returns an error if a tensor cannot be stored in a file. The trainer calls this before training,
/// so that saving does not fail later.
///
/// # Errors
/// When a tensor cannot be stored in a file. The error names the first such tensor and the reason.
pub(crate) fn can_hold<'t>(tensors: impl IntoIterator<Item = (&'t str, &'t Tensor)>) -> Result<()> {
    tensors.into_iter().try_for_each(|(name, tensor)| {
        dtype(tensor.kind()).map(drop).map_err(|error| error.at(name))
    })
}

fn kind(dtype: Dtype) -> Option<Kind> {
    DTYPES.iter().find(|(_, own)| *own == dtype).map(|(kind, _)| *kind)
}
