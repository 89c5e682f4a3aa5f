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

/// Returns a regression of the sums, with other rows for validation.
pub(super) fn waves(batch_size: i64) -> Result<DataModule> {
    let part = |first: i64| {
        let (x, sums) = rows(first)?;
        Batch::new(x, sums)
    };
    Ok(DataModule::new("waves", part(0)?, part(256)?, batch_size))
}
