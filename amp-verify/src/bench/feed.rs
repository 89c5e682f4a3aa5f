//! Compares the training speed with a large data set in host memory to the speed with the same data
//! in the device's memory.

use super::{
    interleaved::Engine,
    ours::seconds_of,
    workload::{Size, Task, config},
};
pub use crate::speed::Feed;
use amp_core::{
    Result, TrainerConfig,
    data::{Batch, BatchType, DataModule, Placement},
    precision::Precision,
    tch::{Device, Tensor},
    trainer::Graph,
};

/// The number of steps at the start of each run that are not measured, because they load kernels
/// and capture CUDA graphs.
const WARM_UP: u64 = 16;

/// Makes a data set of at least `bytes` bytes by repeating the workload's examples. Repeated
/// examples suffice, because the time to copy examples does not depend on their values.
fn data(workload: &Task, bytes: u64) -> Result<DataModule> {
    let some = workload.data(Size::Full)?;
    let block = Batch::from_any(&some.train.head(some.train.len())?)?;
    let bytes_of = |tensor: &Tensor| tensor.numel() * tensor.kind().elt_size_in_bytes();
    let block_bytes = (bytes_of(&block.input) + bytes_of(&block.target)) as u64;
    let blocks = i64::try_from(bytes.div_ceil(block_bytes)).unwrap_or(i64::MAX).max(1);
    let repeated = |tensor: &Tensor| -> Result<Tensor> {
        let mut size = tensor.size();
        let length = size[0];
        size[0] = length * blocks;
        let all = Tensor::f_empty(&size, (tensor.kind(), Device::Cpu))?;
        for at in 0..blocks {
            all.f_narrow(0, at * length, length)?.f_copy_(tensor)?;
        }
        Ok(all)
    };
    let train = Batch::new(repeated(&block.input)?, repeated(&block.target)?)?;
    let val = block.narrow(0, workload.batch)?;
    Ok(DataModule::new("feed", train, val, workload.batch))
}

/// Measures the training speed with the data in host memory and with the data in the device's
/// memory. Each round measures `steps` steps of both. The time of these steps is the time of a long
/// run minus the time of a short run, so it does not include the start of a run. The examples are
/// read in random order from the whole data set.
///
/// # Errors
/// When a run fails, or the data set does not fit into memory.
pub fn measure(
    workload: &Task,
    precision: Precision,
    device: Device,
    bytes: u64,
    rounds: usize,
    steps: i64,
) -> Result<Feed> {
    let mut data = data(workload, bytes)?;
    let batches = data.train.len() / workload.batch;
    let graph = if device.is_cuda() { Graph::On } else { Graph::Off };
    let engine = if device.is_cuda() { Engine::Graph } else { Engine::Eager };
    let mut model = workload.build(Size::Full)?;
    let mut seconds = |placement: Placement, steps: u64| -> Result<f64> {
        data.loading.placement = placement;
        let config = TrainerConfig {
            max_epochs: 1 + steps as i64 / batches.max(1),
            max_steps: Some(steps),
            graph,
            ..config(precision, device)
        };
        Ok(seconds_of(&config, 0, model.as_mut(), &data)?.0)
    };
    let steps = steps.cast_unsigned();
    let mut rate = |placement: Placement| -> Result<f64> {
        let short = seconds(placement, WARM_UP)?;
        Ok(steps as f64 / (seconds(placement, WARM_UP + steps)? - short))
    };
    // The first measurement with each placement is discarded, because it includes the time to load
    // kernels.
    rate(Placement::Host)?;
    rate(Placement::Device)?;
    let (mut host, mut resident) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        if round % 2 == 0 {
            host.push(rate(Placement::Host)?);
            resident.push(rate(Placement::Device)?);
        } else {
            resident.push(rate(Placement::Device)?);
            host.push(rate(Placement::Host)?);
        }
    }
    let workload = workload.name().to_owned();
    Ok(Feed { workload, precision, engine, bytes, host, device: resident })
}
