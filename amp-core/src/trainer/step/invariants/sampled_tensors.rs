//! A few elements of each parameter and buffer of a model, on the host.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use super::super::sampled_elements::sample;
use crate::{Result, nn::Role, precision::is_floating};

/// The approximate number of elements that are read from each tensor. It is small, so that little
/// memory is copied from the device to the host.
const MOST: i64 = 128;

/// A few elements of each of several tensors, all read at one moment.
#[derive(Debug)]
pub(super) struct Samples {
    tensors: Vec<Sampled>,
    /// The values in f64. All values except 64-bit integers with an absolute value above 2⁵³ are
    /// represented exactly.
    values: Vec<f64>,
}

/// A tensor from which elements were read.
#[derive(Debug)]
pub(super) struct Sampled {
    pub(super) name: String,
    pub(super) role: Role,
    /// Whether the tensor is a parameter that is trained.
    pub(super) trains: bool,
    pub(super) kind: Kind,
    range: Range<usize>,
}

/// The sampled elements of a tensor at two moments.
pub(super) struct Pair<'s> {
    pub(super) tensor: &'s Sampled,
    pub(super) before: &'s [f64],
    pub(super) now: &'s [f64],
}

impl Samples {
    pub(super) fn of(tensors: &[(String, Tensor, Role)]) -> Result<Self> {
        let (mut taken, mut sampled, mut end) = (Vec::new(), Vec::new(), 0);
        for (name, tensor, role) in tensors {
            let kind = tensor.kind();
            let piece = elements(tensor)?;
            let start = end;
            end += piece.as_ref().map_or(0, Tensor::numel);
            taken.extend(piece);
            let (name, role, trains) = (name.clone(), *role, tensor.requires_grad());
            sampled.push(Sampled { name, role, trains, kind, range: start..end });
        }
        Ok(Self { tensors: sampled, values: read(&taken)? })
    }

    /// Pairs the sampled elements of each tensor in `self`, the earlier sample, with those of the
    /// tensor with the same name in `now`. Omits tensors that `now` does not have.
    pub(super) fn pairs<'s>(&'s self, now: &'s Self) -> impl Iterator<Item = Pair<'s>> {
        self.tensors.iter().enumerate().filter_map(move |(at, tensor)| {
            let same = |other: &&Sampled| other.name == tensor.name;
            let found = now.tensors.get(at).filter(same);
            let other = found.or_else(|| now.tensors.iter().find(same))?;
            let (before, now) =
                (&self.values[tensor.range.clone()], &now.values[other.range.clone()]);
            Some(Pair { tensor, before, now })
        })
    }
}

impl Pair<'_> {
    /// Returns whether a sampled element has changed.
    pub(super) fn moved(&self) -> bool {
        // Comparing the bits makes a NaN equal to itself.
        let bits = |values: &[f64]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        self.before.len() == self.now.len() && bits(self.before) != bits(self.now)
    }
}

/// Returns the sampled elements of a tensor. Returns `None` if the tensor is undefined, or if its
/// elements are neither floating-point numbers nor integers nor booleans.
pub(super) fn elements(tensor: &Tensor) -> Result<Option<Tensor>> {
    if !tensor.defined() {
        return Ok(None);
    }
    let kind = tensor.kind();
    let whole = [Kind::Bool, Kind::Uint8, Kind::Int8, Kind::Int16, Kind::Int, Kind::Int64];
    if !(is_floating(kind) || whole.contains(&kind)) {
        return Ok(None);
    }
    Ok(Some(tch::no_grad(|| {
        Ok::<_, crate::Error>(sample(tensor, MOST)?.f_to_kind(Kind::Double)?)
    })?))
}

/// Reads the values of sampled elements in one copy from the device.
pub(super) fn read(pieces: &[Tensor]) -> Result<Vec<f64>> {
    if pieces.is_empty() {
        return Ok(Vec::new());
    }
    let one_device = pieces.iter().all(|piece| piece.device() == pieces[0].device());
    let joined = match one_device {
        true => Tensor::f_cat(pieces, 0)?.f_to_device(Device::Cpu)?,
        false => {
            let host = pieces.iter().map(|piece| piece.f_to_device(Device::Cpu));
            Tensor::f_cat(&host.collect::<Result<Vec<_>, _>>()?, 0)?
        }
    };
    Ok(Vec::<f64>::try_from(joined)?)
}
