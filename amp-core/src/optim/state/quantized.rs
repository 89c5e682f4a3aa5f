//! Storage of optimizer state in fewer bits than f32.

use std::rc::Rc;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::optim::weight_update::{wide, write, write_stochastically};
use crate::{Result, ffi, named::named};

/// How an optimizer stores its moments: the running averages of the gradients and of their squares.
/// Each average has as many elements as the parameter. If averages are stored as bf16 or in 8 bits,
/// a step converts them to f32 piece by piece, so that the f32 copies need little memory. On CUDA,
/// Adam's kernel for f32 parameters reads and writes the stored averages directly. Averages of f64
/// parameters are always f64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Moments {
    /// Stored in the dtype of the parameters, or in f32 if the parameters are updated in f32.
    #[default]
    Full,
    /// Stored in bfloat16, 2 bytes per element, with stochastic rounding. With rounding to the
    /// nearest number, an average would never change if each step changes it by less than 1/512 of
    /// its value, as is usual for averages of squares. The random numbers for the rounding come
    /// from libtorch's generator of the parameters' device.
    Bf16,
    /// Stored in 8 bits, with an f32 scale for each 256 elements: 1.016 bytes per element (Dettmers
    /// et al. 2022, "8-bit Optimizers via Block-wise Quantization", §2: dynamic tree quantization).
    /// Each element is rounded to the nearest number that has a code. A positive average of squares
    /// is never rounded to zero, because a step divides by it: dividing by eps alone would make the
    /// step far too large.
    EightBit,
}

named!(Moments, "moments", {
    Full => "full",
    Bf16 => "bf16",
    EightBit => "8-bit",
});

/// The number of consecutive elements that have a common scale.
pub(in crate::optim) const BLOCK: i64 = 256;

/// One running average of a parameter, as it is stored.
#[derive(Debug)]
pub(in crate::optim) enum Moment {
    /// The values, in the dtype in which the kernels compute.
    Plain(Tensor),
    /// The values in bf16, as a flat tensor.
    Bf16(Tensor),
    /// Codes of shape `[blocks · 256]` and scales of shape `[blocks]`.
    EightBit { codes: Tensor, scales: Tensor, code: Rc<Code> },
}

impl Moment {
    /// Returns a running average in bf16, initially zero, for a parameter of `elements` elements.
    pub(in crate::optim) fn bf16(elements: i64, device: Device) -> Result<Self> {
        Ok(Self::Bf16(Tensor::f_zeros([elements], (Kind::BFloat16, device))?))
    }

    /// Returns a running average in 8 bits, initially zero, for a parameter of `elements` elements.
    /// `code` maps the stored codes to numbers. The tensors are created on the device of `code`.
    pub(in crate::optim) fn eight_bit(elements: i64, code: Rc<Code>) -> Result<Self> {
        let (blocks, device) = ((elements + BLOCK - 1) / BLOCK, code.values.device());
        Ok(Self::EightBit {
            codes: Tensor::f_full([blocks * BLOCK], code.zero, (Kind::Uint8, device))?,
            scales: Tensor::f_zeros([blocks], (Kind::Float, device))?,
            code,
        })
    }

    /// Reads `count` elements from `start` on, in f32. The result is a view if the average is
    /// stored in f32, and otherwise a copy. `start` must be a multiple of [`BLOCK`] if the average
    /// is stored in 8 bits.
    pub(in crate::optim) fn read(&self, start: i64, count: i64) -> Result<Tensor> {
        match self {
            Self::Plain(tensor) => Ok(tensor.f_reshape([-1])?.f_narrow(0, start, count)?),
            Self::Bf16(tensor) => wide(&tensor.f_narrow(0, start, count)?),
            Self::EightBit { codes, scales, code } => {
                let (codes, scales) = part(codes, scales, start, count)?;
                code.decode(&codes, &scales, count)
            }
        }
    }

    /// Stores the elements from `start` on. `values` is the result of [`read`](Self::read) after a
    /// step has changed it in place.
    pub(in crate::optim) fn write(&self, start: i64, values: &Tensor) -> Result<()> {
        let (values, count) = (&values.f_reshape([-1])?, values.numel() as i64);
        match self {
            Self::Plain(_) => Ok(()),
            Self::Bf16(tensor) => write_stochastically(&tensor.f_narrow(0, start, count)?, values),
            Self::EightBit { codes, scales, code } => {
                let (codes, scales) = part(codes, scales, start, count)?;
                code.encode(values, &codes, &scales)
            }
        }
    }

    /// Returns the stored tensor, which the kernels read and write. For an average in 8 bits, this
    /// is the tensor of codes.
    pub(in crate::optim) fn kept(&self) -> &Tensor {
        let (Self::Plain(tensor) | Self::Bf16(tensor) | Self::EightBit { codes: tensor, .. }) =
            self;
        tensor
    }

    /// Returns the scales of the blocks, and the numbers that the codes stand for. Returns `None`
    /// if the average is not stored in 8 bits.
    pub(in crate::optim) fn coded(&self) -> Option<(&Tensor, &Code)> {
        match self {
            Self::EightBit { scales, code, .. } => Some((scales, code)),
            _ => None,
        }
    }

    /// Returns the tensors to save, each with the suffix that is appended to the slot's name.
    pub(in crate::optim) fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        match self {
            Self::Plain(tensor) | Self::Bf16(tensor) => vec![("", tensor)],
            Self::EightBit { codes, scales, .. } => vec![("", codes), ("_scale", scales)],
        }
    }
}

/// Returns the codes and the scales of the blocks that contain the `count` elements from `start`.
fn part(codes: &Tensor, scales: &Tensor, start: i64, count: i64) -> Result<(Tensor, Tensor)> {
    debug_assert!(start % BLOCK == 0, "a part begins at the start of a block");
    let (from, blocks) = (start / BLOCK, (count + BLOCK - 1) / BLOCK);
    Ok((codes.f_narrow(0, from * BLOCK, blocks * BLOCK)?, scales.f_narrow(0, from, blocks)?))
}

/// The 256 numbers that the codes stand for (dynamic tree quantization). There are seven decades
/// from 10⁻⁷ to 1. Each decade has twice as many numbers as the decade below. In a decade that ends
/// at d, the range from d/10 to d is divided into equal intervals, and the numbers are the centres
/// of these intervals. If averages may be negative, the negatives of these numbers are added. 0 and
/// 1 are always added.
#[derive(Debug)]
pub(in crate::optim) struct Code {
    /// The numbers that the codes stand for, in ascending order.
    values: Tensor,
    /// The midpoint of each pair of neighbouring numbers. The midpoint decides to which of the two
    /// numbers an element between them is rounded.
    bounds: Tensor,
    /// The code that stands for 0.
    zero: i64,
    signed: bool,
}

/// The code tables: for each device one for averages that may be negative and one for averages that
/// may not. Each table is created once.
#[derive(Debug, Default)]
pub(in crate::optim) struct Codes(Vec<(bool, Device, Rc<Code>)>);

impl Codes {
    /// Returns the code table for averages on this device. `signed` says whether averages may be
    /// negative.
    pub(in crate::optim) fn of(&mut self, signed: bool, device: Device) -> Result<Rc<Code>> {
        let found = self.0.iter().find(|(own, place, _)| (*own, *place) == (signed, device));
        if let Some((.., code)) = found {
            return Ok(code.clone());
        }
        let code = Rc::new(Code::new(signed, device)?);
        self.0.push((signed, device, code.clone()));
        Ok(code)
    }
}

impl Code {
    /// Returns the numbers that the codes stand for, and the bounds between them.
    pub(in crate::optim) fn tables(&self) -> [&Tensor; 2] {
        [&self.values, &self.bounds]
    }

    fn new(signed: bool, device: Device) -> Result<Self> {
        let values = dynamic_tree(signed);
        let zero = values.iter().position(|value| *value == 0.0).unwrap_or_default() as i64;
        let bounds: Vec<f32> =
            values.windows(2).map(|pair| f32::midpoint(pair[0], pair[1])).collect();
        Ok(Self {
            values: Tensor::f_from_slice(&values)?.f_to_device(device)?,
            bounds: Tensor::f_from_slice(&bounds)?.f_to_device(device)?,
            zero,
            signed,
        })
    }

    /// Decodes the first `count` elements of these blocks. On the CPU this crate's loop decodes
    /// them, and on other devices operations of libtorch do. The results are bit-identical.
    fn decode(&self, codes: &Tensor, scales: &Tensor, count: i64) -> Result<Tensor> {
        if codes.device() == Device::Cpu {
            let out = Tensor::f_empty([count], (Kind::Float, Device::Cpu))?;
            ffi::moments_decode(codes, scales, &self.values, &out)?;
            return Ok(out);
        }
        self.decode_by_operations(codes, scales, count)
    }

    fn decode_by_operations(&self, codes: &Tensor, scales: &Tensor, count: i64) -> Result<Tensor> {
        let values = self.values.f_index_select(0, &codes.f_to_kind(Kind::Int)?)?;
        let values = values.f_view([-1, BLOCK])?.f_mul(&scales.f_unsqueeze(1)?)?;
        Ok(values.f_view(-1)?.f_narrow(0, 0, count)?.f_contiguous()?)
    }

    /// Encodes elements as codes and scales. Each element becomes the code of the nearest number.
    /// If the average is never negative, an element above 0 becomes at least the smallest positive
    /// number, never 0.
    fn encode(&self, elements: &Tensor, codes: &Tensor, scales: &Tensor) -> Result<()> {
        if codes.device() == Device::Cpu {
            return ffi::moments_encode(elements, &self.bounds, !self.signed, codes, scales);
        }
        self.encode_by_operations(elements, codes, scales)
    }

    fn encode_by_operations(
        &self,
        elements: &Tensor,
        codes: &Tensor,
        scales: &Tensor,
    ) -> Result<()> {
        let rest = codes.numel() as i64 - elements.numel() as i64;
        let blocks = elements.f_constant_pad_nd([0, rest])?.f_view([-1, BLOCK])?;
        let largest = blocks.f_abs()?.f_amax([1_i64].as_slice(), true)?;
        // The elements of a block are divided by their largest magnitude. The lower limit avoids a
        // division by 0 in a block of zeros.
        let shares = blocks.f_div(&largest.f_clamp_min(f64::from(f32::MIN_POSITIVE))?)?;
        let mut nearest = shares.f_bucketize(&self.bounds, true, false)?;
        if !self.signed {
            nearest = nearest.f_maximum(&shares.f_gt(0.0)?.f_to_kind(Kind::Int)?)?;
        }
        write(&codes.f_view([-1, BLOCK])?, &nearest)?;
        write(scales, &largest.f_view(-1)?)
    }
}

fn dynamic_tree(signed: bool) -> Vec<f32> {
    let mut values = vec![0.0_f64, 1.0];
    for decade in 0..7 {
        let count = if signed { 1 << decade } else { 2 << decade };
        let scale = 10.0_f64.powi(decade - 6);
        for part in 0..count {
            let middle = 0.1 + 0.9 * (f64::from(part) + 0.5) / f64::from(count);
            values.push(scale * middle);
            if signed {
                values.push(-scale * middle);
            }
        }
    }
    values.sort_by(f64::total_cmp);
    values.into_iter().map(|value| value as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks that the loops that encode and decode on the CPU give the same bits as the operations
    /// for other devices. The test runs these operations on the CPU, too.
    #[test]
    fn both_ways_have_the_same_bits() -> Result<()> {
        let _section = crate::random::seeded(0)?;
        for (signed, count) in [(true, 1000), (false, 1000), (true, 256), (false, 3)] {
            let code = Code::new(signed, Device::Cpu)?;
            let blocks = (count + BLOCK - 1) / BLOCK;
            let kept = || -> Result<(Tensor, Tensor)> {
                Ok((
                    Tensor::f_zeros([blocks * BLOCK], (Kind::Uint8, Device::Cpu))?,
                    Tensor::f_zeros([blocks], (Kind::Float, Device::Cpu))?,
                ))
            };
            let draw =
                Tensor::f_randn([count], (Kind::Float, Device::Cpu))?.f_pow_tensor_scalar(5)?;
            let elements = if signed { draw } else { draw.f_abs()? };
            let _ = elements.f_narrow(0, 0, 2)?.f_zero_()?;
            let ((codes, scales), (other_codes, other_scales)) = (kept()?, kept()?);
            code.encode(&elements, &codes, &scales)?;
            code.encode_by_operations(&elements, &other_codes, &other_scales)?;
            assert_eq!((&codes, &scales), (&other_codes, &other_scales));
            let decoded = code.decode(&codes, &scales, count)?;
            assert_eq!(decoded, code.decode_by_operations(&codes, &scales, count)?);
        }
        Ok(())
    }
}
