//! Finds examples that two data sets have in common.

use std::{
    collections::{HashSet, hash_map::RandomState},
    hash::BuildHasher,
};

use tch::{Device, Kind, Tensor};

use super::{AnyBatch, SharedDataset};
use crate::Result;

/// Returns whether the two sets have examples in common. This is so if they are the same set, or if
/// in every field at least one row of `one` is at the same memory address as a row of `other`.
/// `part` has the indices of the examples of `one` that count, in ascending order; `None` means all.
///
/// # Errors
/// When examples in memory do not form a batch.
pub(crate) fn share_memory(
    one: &SharedDataset,
    part: Option<&[i64]>,
    other: &SharedDataset,
) -> Result<bool> {
    if one.is_same(other) {
        return Ok(true);
    }
    let (Some(one), Some(other)) = (one.in_memory()?, other.in_memory()?) else {
        return Ok(false);
    };
    let mut overlapping = per_example(&one).peekable();
    let overlaps = |(name, tensor): (&str, &Tensor)| {
        let other = per_example(&other).find(|(other, _)| *other == name);
        match (Rows::of(tensor), other.and_then(|(_, other)| Rows::of(other))) {
            (Some(own), Some(other)) => own.share_one(part, &other),
            _ => false,
        }
    };
    Ok(overlapping.peek().is_some() && overlapping.all(overlaps))
}

/// Returns the fraction of the examples of `other` that are equal to an example of `one`. Returns
/// `None` if one of the sets is not in memory. `part` has the indices of the examples of `one` that
/// count; `None` means all.
///
/// # Errors
/// When the examples cannot be read from their device.
pub(crate) fn shared_part(
    one: &SharedDataset,
    part: Option<&[i64]>,
    other: &SharedDataset,
) -> Result<Option<f64>> {
    let (Some(one), Some(other)) = (one.in_memory()?, other.in_memory()?) else {
        return Ok(None);
    };
    // The hashes of both sets are computed with the same key, so that they can be compared.
    let keys = RandomState::new();
    let all = hashes(&one, &keys)?;
    let known: HashSet<u64> = match part {
        Some(part) => part.iter().map(|index| all[*index as usize]).collect(),
        None => all.into_iter().collect(),
    };
    let own = hashes(&other, &keys)?;
    let shared = own.iter().filter(|hash| known.contains(hash)).count();
    Ok(Some(shared as f64 / own.len().max(1) as f64))
}

/// Returns the tensors that have a row for each example.
fn per_example(batch: &AnyBatch) -> impl Iterator<Item = (&str, &Tensor)> {
    batch.tensors().filter(|(name, _)| !batch.is_shared(name))
}

/// The memory addresses of a tensor's rows.
struct Rows {
    first: i64,
    /// The number of bytes from the start of one row to the start of the next.
    apart: i64,
    count: i64,
    /// The sizes and strides of the dimensions within a row.
    form: (Vec<i64>, Vec<i64>),
}

impl Rows {
    /// Returns the memory addresses of a tensor's rows. Returns `None` if all rows are at the same
    /// address, or if there is no element.
    fn of(tensor: &Tensor) -> Option<Self> {
        let (size, stride) = (tensor.size(), tensor.stride());
        let apart = stride.first()? * tensor.kind().elt_size_in_bytes() as i64;
        let form = (size[1..].to_vec(), stride[1..].to_vec());
        let first = tensor.data_ptr() as i64;
        (apart > 0 && tensor.numel() > 0).then_some(Self { first, apart, count: size[0], form })
    }

    /// Returns whether a row of `self` and a row of `other` are at the same memory address. Rows of
    /// different shapes or strides are not compared; the result is then false. `part` has the
    /// indices of the rows of `self` that count, in ascending order; `None` means all.
    fn share_one(&self, part: Option<&[i64]>, other: &Self) -> bool {
        let between = other.first - self.first;
        // The rows of `self` that are also rows of `other`.
        let start = between / self.apart;
        let shared = start.max(0)..(start + other.count).min(self.count);
        let has_one = match part {
            Some(part) => {
                let next = part.partition_point(|index| *index < shared.start);
                part.get(next).is_some_and(|index| shared.contains(index))
            }
            None => !shared.is_empty(),
        };
        self.apart == other.apart && self.form == other.form && between % self.apart == 0 && has_one
    }
}

/// Returns a hash for each example. The hash covers the example's rows and the shared tensors.
/// Equal examples have equal hashes.
fn hashes(batch: &AnyBatch, keys: &RandomState) -> Result<Vec<u64>> {
    let length = batch.len();
    let shared = batch.tensors().filter(|(name, _)| batch.is_shared(name));
    let shared = shared.map(|(_, tensor)| bytes_of(tensor)).collect::<Result<Vec<_>>>()?;
    let shared = keys.hash_one(shared).to_ne_bytes().to_vec();
    let mut rows: Vec<Vec<u8>> = vec![shared; length as usize];
    for (_, tensor) in per_example(batch) {
        let bytes = bytes_of(tensor)?;
        let size = bytes.len() / length.max(1) as usize;
        if size > 0 {
            rows.iter_mut().zip(bytes.chunks(size)).for_each(|(row, own)| row.extend(own));
        }
    }
    Ok(rows.iter().map(|row| keys.hash_one(row)).collect())
}

/// Returns the bytes of a tensor's elements.
fn bytes_of(tensor: &Tensor) -> Result<Vec<u8>> {
    let flat = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?;
    Ok(Vec::<u8>::try_from(flat.f_reshape([-1])?.f_view_dtype(Kind::Uint8)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Batch, FieldRole};

    fn rows(from: i64, count: i64) -> SharedDataset {
        let input = Tensor::arange_start(from, from + count, (Kind::Float, Device::Cpu));
        let target = Tensor::zeros([count], (Kind::Int64, Device::Cpu));
        Batch::new(input.view([count, 1]), target).expect("a batch").into()
    }

    /// Checks that two sets of rows of one tensor count as sharing memory only if they have a row
    /// in common.
    #[test]
    fn parts_of_one_table_are_told_apart() -> Result<()> {
        let input = Tensor::arange(10, (Kind::Float, Device::Cpu)).view([10, 1]);
        let target = Tensor::zeros([10], (Kind::Int64, Device::Cpu));
        let part = |start, count| -> Result<SharedDataset> {
            let (input, target) = (input.narrow(0, start, count), target.narrow(0, start, count));
            Ok(Batch::new(input, target)?.into())
        };
        let train = part(0, 7)?;
        assert!(!share_memory(&train, None, &part(7, 3)?)?);
        assert!(share_memory(&train, None, &part(6, 3)?)?);
        assert!(share_memory(&train, None, &train.clone())?);
        assert!(
            !share_memory(&train, None, &rows(0, 7))?,
            "equal sets with separate tensors share no memory"
        );
        let every_other = |start| -> Result<SharedDataset> {
            let half = |tensor: &Tensor| tensor.slice(0, start, None, 2);
            Ok(Batch::new(half(&input), half(&target))?.into())
        };
        assert!(!share_memory(&every_other(0)?, None, &every_other(1)?)?);
        assert!(share_memory(&every_other(0)?, None, &every_other(4)?)?);
        Ok(())
    }

    /// Checks that only the given examples of the first set count.
    #[test]
    fn only_a_part_of_the_first_set_counts() -> Result<()> {
        let input = Tensor::arange(10, (Kind::Float, Device::Cpu)).view([10, 1]);
        let target = Tensor::zeros([10], (Kind::Int64, Device::Cpu));
        let part = |start, count| -> Result<SharedDataset> {
            let (input, target) = (input.narrow(0, start, count), target.narrow(0, start, count));
            Ok(Batch::new(input, target)?.into())
        };
        let all = part(0, 10)?;
        for (read, seen) in [(vec![0, 1, 2, 6, 7], false), (vec![0, 5, 9], true), (vec![3], true)] {
            assert_eq!(share_memory(&all, Some(&read), &part(3, 3)?)?, seen, "{read:?}");
        }
        assert_eq!(shared_part(&rows(0, 8), Some(&[0, 1, 2, 3]), &rows(4, 4))?, Some(0.0));
        assert_eq!(shared_part(&rows(0, 8), Some(&[3, 4, 5]), &rows(4, 4))?, Some(0.5));
        Ok(())
    }

    /// Checks the fraction of equal examples in two sets that do not share memory.
    #[test]
    fn equal_examples_are_counted() -> Result<()> {
        assert_eq!(shared_part(&rows(0, 8), None, &rows(6, 4))?, Some(0.5));
        assert_eq!(shared_part(&rows(0, 8), None, &rows(8, 4))?, Some(0.0));
        Ok(())
    }

    /// Checks that examples with equal rows count as different if the shared tensors of their sets
    /// differ. The shared tensor happens to have as many rows as there are examples, but is
    /// compared as a whole.
    #[test]
    fn shared_tensors_are_part_of_each_example() -> Result<()> {
        let set = |shared: i64, target: i64| -> Result<SharedDataset> {
            let numbers = |value| Tensor::full([4], value, (Kind::Int64, Device::Cpu));
            let mut batch = AnyBatch::new("Graphs");
            batch.push("nodes", &numbers(shared).f_cumsum(0, Kind::Int64)?, FieldRole::Shared)?;
            batch.push("target", &numbers(target), FieldRole::Value)?;
            Ok(batch.into())
        };
        assert_eq!(shared_part(&set(1, 5)?, None, &set(2, 5)?)?, Some(0.0));
        assert_eq!(shared_part(&set(1, 5)?, None, &set(1, 5)?)?, Some(1.0));
        assert_eq!(shared_part(&set(1, 5)?, None, &set(1, 6)?)?, Some(0.0));
        Ok(())
    }
}
