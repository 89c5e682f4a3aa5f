//! Data for the gate's tests: rows of numbers that look random, and their sums.

use amp_core::{
    Result,
    data::{Batch, DataModule},
    tch::{Device, Kind, Tensor},
};

/// Returns 64 rows of four numbers, and the sum of each row as `[64, 1]`. The numbers are sines of
/// the squares of the integers from `first`.
pub(super) fn rows(first: i64) -> Result<(Tensor, Tensor)> {
    let x = Tensor::f_arange_start(first, first + 256, (Kind::Float, Device::Cpu))?;
    let x = x.f_square()?.f_sin()?.f_view([64, 4])?;
    let sums = x.f_sum_dim_intlist([1_i64].as_slice(), true, Kind::Float)?;
    Ok((x, sums))
}

/// Returns data for regression: the inputs are rows, the targets the sums of the rows. The training
/// set and the validation set have different rows.
pub(crate) fn waves(batch_size: i64) -> Result<DataModule> {
    let part = |first: i64| {
        let (x, sums) = rows(first)?;
        Batch::new(x, sums)
    };
    Ok(DataModule::new("waves", part(0)?, part(256)?, batch_size))
}

/// Returns sequences of ten words, in which some words have a tag as their target. In example i,
/// only the first i mod 11 words have one. So one of eleven examples has no target at all.
pub(super) fn words(batch_size: i64) -> Result<DataModule> {
    let part = |first: i64, count: i64| {
        let x =
            Tensor::f_arange_start(first * 40, (first + count) * 40, (Kind::Float, Device::Cpu))?;
        let x = x.f_view([count, 10, 4])?.f_sin()?;
        let tags = x.f_narrow(2, 0, 3)?.f_argmax(2, false)?;
        let example = Tensor::f_arange(count, (Kind::Int64, Device::Cpu))?.f_remainder(11)?;
        let place = Tensor::f_arange(10, (Kind::Int64, Device::Cpu))?;
        let is_padding = place.f_view([1, 10])?.f_ge_tensor(&example.f_view([-1, 1])?)?;
        Batch::new(x, tags.f_masked_fill(&is_padding, -1)?)
    };
    Ok(DataModule::new("words", part(0, 88)?, part(88, 22)?, batch_size).in_order())
}
