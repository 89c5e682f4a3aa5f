//! Data sets for the tests of data loading.

use amp_core::{
    Result,
    data::Batch,
    tch::{Device, Kind, Tensor},
};

/// Returns examples whose input and target equal their index.
pub(crate) fn numbered(count: i64) -> Result<Batch> {
    let numbers = Tensor::arange(count, (Kind::Int64, Device::Cpu));
    Batch::new(numbers.to_kind(Kind::Float).reshape([-1, 1]), numbers)
}
