//! Reads arrays from numpy's `.npy` files.

use std::{collections::HashMap, path::Path};

use tch::{Kind, Tensor};

use super::mapped;
use crate::{Error, Result};

/// Reads the array of a `.npy` file into memory.
///
/// ```no_run,standalone_crate
/// use amp_core::{Result, data::{Batch, DataModule, map_npy, read_npy}};
///
/// # fn main() -> Result<()> {
/// // The images may be larger than the memory: a batch is read from the file when it is used.
/// let train = Batch::new(map_npy("train_images.npy")?, read_npy("train_classes.npy")?)?;
/// let val = Batch::new(read_npy("val_images.npy")?, read_npy("val_classes.npy")?)?;
/// let data = DataModule::new("images", train, val, 64);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// When the file cannot be read or is truncated, or libtorch does not support the dtype of the
/// array.
pub fn read_npy(path: impl AsRef<Path>) -> Result<Tensor> {
    Ok(map_npy(path)?.f_contiguous()?.f_detach_copy()?)
}

/// Maps the array of a `.npy` file into memory. An element is read from the file when it is first
/// used. The file must not change while the tensor is used. If you write to the tensor, the file
/// stays unchanged.
///
/// # Errors
/// When [`read_npy`] would fail for this file.
pub fn map_npy(path: impl AsRef<Path>) -> Result<Tensor> {
    let path = path.as_ref();
    let bytes = mapped::bytes(path)?;
    let refused = |why: String| Error::config(format!("{}: {why}", path.display()));
    let header = Header::read(&bytes).map_err(&refused)?;
    let elements = header.shape.iter().try_fold(1_i64, |all, size| all.checked_mul(*size));
    let size = elements.and_then(|all| all.checked_mul(header.kind.elt_size_in_bytes() as i64));
    let given = bytes.numel() as i64 - header.bytes;
    if size != Some(given) {
        return Err(refused(format!(
            "the file has {given} bytes of data, but an array of shape {:?} and dtype {:?} needs \
             another number of bytes: write the file again",
            header.shape, header.kind
        )));
    }
    if given == 0 {
        return Ok(Tensor::f_zeros(&header.shape, (header.kind, tch::Device::Cpu))?);
    }
    let flat = bytes.f_narrow(0, header.bytes, given)?.f_view_dtype(header.kind)?;
    if !header.fortran_order {
        return Ok(flat.f_view(header.shape.as_slice())?);
    }
    let reversed: Vec<i64> = header.shape.iter().rev().copied().collect();
    let back: Vec<i64> = (0..header.shape.len() as i64).rev().collect();
    Ok(flat.f_view(reversed.as_slice())?.f_permute(&back)?)
}

/// The properties of an array, as the header of its `.npy` file states them.
struct Header {
    kind: Kind,
    fortran_order: bool,
    shape: Vec<i64>,
    /// The number of bytes before the array's data.
    bytes: i64,
}

impl Header {
    fn read(file: &Tensor) -> Result<Self, String> {
        let no_header = || "not a .npy file, or its header is damaged".to_owned();
        let part = |start: i64, length: i64| -> Option<Vec<u8>> {
            let fits = start + length <= file.numel() as i64;
            fits.then(|| file.f_narrow(0, start, length).ok()?.try_into().ok()).flatten()
        };
        let start = part(0, 8).ok_or_else(no_header)?;
        let (magic, version) = start.split_at(6);
        let width = match (magic, version[0]) {
            (b"\x93NUMPY", 1) => 2,
            (b"\x93NUMPY", 2 | 3) => 4,
            _ => return Err(no_header()),
        };
        let length = part(8, width).ok_or_else(no_header)?;
        let length = length.iter().rev().fold(0, |all, byte| all << 8 | i64::from(*byte));
        let bytes = 8 + width + length;
        let text = part(8 + width, length).and_then(|text| String::from_utf8(text).ok());
        let text = text.ok_or_else(no_header)?;
        let entries = entries(&text).ok_or_else(no_header)?;
        let entry = |name| entries.get(name).copied().ok_or_else(no_header);
        let kind = kind_of(entry("descr")?)?;
        let fortran_order = match entry("fortran_order")? {
            "True" => true,
            "False" => false,
            _ => return Err(no_header()),
        };
        let shape = entry("shape")?.trim_matches(['(', ')']).split(',').map(str::trim);
        let shape = shape.filter(|size| !size.is_empty()).map(|size| size.parse::<u32>());
        let shape: Result<Vec<u32>, _> = shape.collect();
        let shape = shape.map_err(|_| no_header())?.into_iter().map(i64::from).collect();
        Ok(Self { kind, fortran_order, shape, bytes })
    }
}

/// Parses the entries of a header such as `{'descr': '<f4', 'fortran_order': False, 'shape': (2,
/// 3), }`.
fn entries(text: &str) -> Option<HashMap<&str, &str>> {
    let mut rest = text.trim().strip_prefix('{')?.strip_suffix('}')?.trim();
    let mut found = HashMap::new();
    while let Some((name, behind)) = rest.split_once(':') {
        let behind = behind.trim_start();
        let end = match behind.chars().next()? {
            '(' => behind.find(')')? + 1,
            // A list describes the columns of a structured array. Such arrays are not supported.
            '[' => behind.rfind(']')? + 1,
            _ => behind.find(',').unwrap_or(behind.len()),
        };
        let (value, next) = behind.split_at(end);
        found.insert(name.trim().trim_matches('\''), value.trim().trim_matches('\''));
        rest = next.trim_start().strip_prefix(',').unwrap_or(next).trim_start();
    }
    Some(found)
}

fn kind_of(descr: &str) -> Result<Kind, String> {
    let kind = match descr {
        "<f2" => Kind::Half,
        "<f4" => Kind::Float,
        "<f8" => Kind::Double,
        "|i1" => Kind::Int8,
        "<i2" => Kind::Int16,
        "<i4" => Kind::Int,
        "<i8" => Kind::Int64,
        "|u1" => Kind::Uint8,
        "|b1" => Kind::Bool,
        _ => {
            return Err(format!(
                "the array has the dtype `{descr}`, which is not supported: save it as little-endian float16 to \
                 float64, int8 to int64, uint8 or bool"
            ));
        }
    };
    Ok(kind)
}
