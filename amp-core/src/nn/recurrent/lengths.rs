//! Packs sequences of different lengths, which are given in one padded tensor.

use tch::{Device, Kind, Tensor};

use crate::{Error, Result, precision::dtype_name};

/// The lengths of the sequences of a batch, and the order in which the sequences are packed. The
/// longest sequence comes first.
pub(super) struct Lengths {
    /// The lengths in the order in which the sequences are packed, int64 on the CPU.
    sorted: Tensor,
    /// For each packed sequence, its index in the batch, on the batch's device.
    order: Tensor,
    /// For each sequence of the batch, its index among the packed sequences.
    back: Tensor,
}

impl Lengths {
    /// Reads and checks the lengths `[N]` of sequences that have at most `steps` steps.
    pub(super) fn of(lengths: &Tensor, batch: i64, steps: i64, device: Device) -> Result<Self> {
        let kind = lengths.kind();
        if !matches!(kind, Kind::Int64 | Kind::Int | Kind::Int16 | Kind::Int8 | Kind::Uint8) {
            return Err(refused(format!("lengths are {}, but must be integers", dtype_name(kind))));
        }
        if lengths.size() != [batch] {
            return Err(refused(format!(
                "lengths have the shape {:?}, but must be [{batch}], one for each sequence",
                lengths.size()
            )));
        }
        let read = lengths.f_to_device(Device::Cpu)?.f_to_kind(Kind::Int64)?;
        let lengths = Vec::<i64>::try_from(read)?;
        if let Some(at) = lengths.iter().position(|length| !(1..=steps).contains(length)) {
            return Err(refused(format!(
                "sequence {at} has length {}, but lengths must be from 1 to {steps}",
                lengths[at]
            )));
        }
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        order.sort_by_key(|place| std::cmp::Reverse(lengths[*place]));
        let mut back = vec![0_i64; order.len()];
        for (packed, place) in (0..).zip(&order) {
            back[*place] = packed;
        }
        let sorted: Vec<i64> = order.iter().map(|place| lengths[*place]).collect();
        let order: Vec<i64> = order.into_iter().map(|place| place as i64).collect();
        Ok(Self {
            sorted: Tensor::f_from_slice(&sorted)?,
            order: Tensor::f_from_slice(&order)?.f_to_device(device)?,
            back: Tensor::f_from_slice(&back)?.f_to_device(device)?,
        })
    }

    /// Reorders the batch dimension `dim` of a tensor: from the order of the batch to the order in
    /// which the sequences are packed.
    pub(super) fn sort(&self, tensor: &Tensor, dim: i64) -> Result<Tensor> {
        Ok(tensor.f_index_select(dim, &self.order)?)
    }

    /// Reorders the batch dimension `dim` of a tensor: from the packing order back to the order of
    /// the batch.
    pub(super) fn unsort(&self, tensor: &Tensor, dim: i64) -> Result<Tensor> {
        Ok(tensor.f_index_select(dim, &self.back)?)
    }

    /// Packs sequences that are in the packing order: removes the steps after the end of each
    /// sequence. Also returns, for each step, the number of sequences that have this step.
    pub(super) fn pack(&self, sorted: &Tensor, batch_first: bool) -> Result<(Tensor, Tensor)> {
        Ok(sorted.f_internal_pack_padded_sequence(&self.sorted, batch_first)?)
    }

    /// Converts packed sequences to a padded tensor with `steps` steps. Steps after the end of a
    /// sequence are zero.
    pub(super) fn pad(
        data: &Tensor,
        batch_sizes: &Tensor,
        batch_first: bool,
        steps: i64,
    ) -> Result<Tensor> {
        let padded =
            Tensor::f_internal_pad_packed_sequence(data, batch_sizes, batch_first, 0.0, steps)?;
        Ok(padded.0)
    }
}

pub(super) fn refused(why: String) -> Error {
    Error::config(format!("recurrent layer: {why}"))
}
