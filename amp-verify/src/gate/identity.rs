//! What both runs of a pair must share: initial weights, order of examples, validation set.

use std::{cell::RefCell, collections::HashSet, rc::Rc};

use amp_core::{
    LightningModule, Result,
    data::{AnyBatch, DataModule},
    nn::named_tensors,
    tch::{Device, Kind, Tensor},
};
use sha2::{Digest, Sha256};

/// The number of batches whose order is recorded. It tells two shuffles apart, and it is below the number
/// of steps before a CUDA graph is captured, in which nothing can be read.
const NOTED: usize = 3;

/// Records the order of a run's first examples.
#[derive(Debug, Clone, Default)]
pub(super) struct Order(Rc<RefCell<(usize, Sha256)>>);

impl Order {
    pub(super) fn add(&self, batch: &AnyBatch) -> Result<()> {
        let (count, hash) = &mut *self.0.borrow_mut();
        if *count < NOTED {
            *count += 1;
            for (_, tensor) in batch.tensors() {
                hash.update(bytes(tensor)?);
            }
        }
        Ok(())
    }

    pub(super) fn digest(&self) -> String {
        hex(&self.0.borrow().1.clone().finalize())
    }
}

/// A digest of the weights, in f32.
pub(super) fn weights(model: &dyn LightningModule) -> Result<String> {
    let mut hash = Sha256::new();
    for (name, tensor, _) in named_tensors(model) {
        hash.update(name);
        hash.update(bytes(&tensor)?);
    }
    Ok(hex(&hash.finalize()))
}

/// Whether every number of the model is finite.
pub(super) fn is_finite(model: &dyn LightningModule) -> Result<bool> {
    for (_, tensor, _) in named_tensors(model) {
        if tensor.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Properties of the data.
pub(super) struct Data {
    /// A digest of the validation set.
    pub(super) validation: String,
    /// The share of validation examples that are also training examples.
    pub(super) overlap: f64,
}

impl Data {
    pub(super) fn of(data: &DataModule) -> Result<Self> {
        let train: HashSet<String> =
            examples(&data.train.head(data.train.len())?)?.into_iter().collect();
        let mut val = Vec::new();
        for (_, set) in data.val.iter() {
            val.extend(examples(&set.head(set.len())?)?);
        }
        let shared = val.iter().filter(|example| train.contains(*example)).count();
        let validation = digest(&val.iter().map(String::as_str).collect::<Vec<_>>());
        Ok(Self { validation, overlap: shared as f64 / val.len().max(1) as f64 })
    }
}

/// A digest of each example, over all tensors of the batch.
fn examples(batch: &AnyBatch) -> Result<Vec<String>> {
    let length = batch.len();
    let tensors = batch.tensors().filter(|(_, tensor)| tensor.size().first() == Some(&length));
    let tensors = tensors.map(|(_, tensor)| bytes(tensor)).collect::<Result<Vec<_>>>()?;
    let row = |all: &[u8], at: usize| {
        let size = all.len() / length as usize;
        all[at * size..(at + 1) * size].to_vec()
    };
    Ok((0..length as usize)
        .map(|at| {
            let mut hash = Sha256::new();
            for tensor in &tensors {
                hash.update(row(tensor, at));
            }
            hex(&hash.finalize())
        })
        .collect())
}

/// Combines several digests into one.
pub(crate) fn digest<T: AsRef<str>>(parts: &[T]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_ref());
        hash.update([0]);
    }
    hex(&hash.finalize())
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The values of a tensor in f64, in which every dtype is exact.
fn bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    let flat = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?;
    let values = Vec::<f64>::try_from(flat.f_reshape([-1])?)?;
    Ok(values.iter().flat_map(|value| value.to_le_bytes()).collect())
}
