//! Measures the memory that a training step needs.

use std::collections::HashSet;

use serde::Serialize;
use tch::Tensor;

use crate::{
    LightningModule, Result, Step,
    data::AnyBatch,
    ffi,
    log::Log,
    memory::{MemoryMeter, tensor_bytes},
    module::first_loss,
    nn::{self, Context},
    optim::Scheduled,
    trainer::{TrainerConfig, step::average_bytes},
    weights,
};

/// The bytes that a training step keeps in memory, by their use. The peak of a step is higher than
/// their sum, because operators need temporary memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct StepMemory {
    /// The bytes of the parameters, in the dtype of the precision.
    pub parameters: u64,
    /// The bytes of the buffers, such as the running statistics of batch norm.
    pub buffers: u64,
    /// The bytes of the gradients of trained parameters, in the parameters' dtype.
    pub gradients: u64,
    /// The bytes of the optimizers' state, including f32 copies of 16-bit weights.
    pub optimizer_state: u64,
    /// The bytes of the averages of parameters and buffers. 0 if the run computes no averages.
    pub averages: u64,
    /// The measured number of bytes that the forward pass of one batch keeps for the backward pass.
    /// These are activations and, under autocast, the 16-bit copies of weights. Layers that are
    /// recomputed keep only their inputs. The batch is measured in one part, and without the
    /// recomputation that a memory budget would require.
    pub activations: u64,
    /// The bytes of the tensors of the batch.
    pub batch: u64,
}

impl StepMemory {
    /// Returns the sum of all fields.
    pub fn total(&self) -> u64 {
        let Self { parameters, buffers, gradients, optimizer_state, averages, .. } = self;
        parameters
            + buffers
            + gradients
            + optimizer_state
            + averages
            + self.activations
            + self.batch
    }
}

/// Measures the memory of a training step with these options. The model must already be on its
/// device. Parameters that the step does not train must be frozen.
pub(super) fn of(
    model: &mut dyn LightningModule,
    batch: &AnyBatch,
    optimizers: &[Scheduled],
    config: &TrainerConfig,
) -> Result<StepMemory> {
    let parameters = nn::parameters(model);
    let tensors = parameters.iter().map(|parameter| &parameter.tensor);
    let of_parameters = tensors.clone().map(tensor_bytes).sum::<u64>();
    let gradients = tensors.filter(|tensor| tensor.requires_grad()).map(tensor_bytes).sum();
    let distinct = weights::distinct(model);
    let all: u64 = distinct.iter().map(|(_, tensor)| tensor_bytes(tensor)).sum();
    let of_averages = || distinct.iter().map(|(_, tensor)| average_bytes(tensor)).sum();
    let mut seen: HashSet<usize> =
        parameters.iter().map(|parameter| ffi::identity(&parameter.tensor)).collect();
    let mut optimizer_state = 0;
    for scheduled in optimizers {
        let state = scheduled.optimizer.state()?;
        let new = |tensor: &&Tensor| seen.insert(ffi::identity(tensor));
        optimizer_state +=
            state.tensors().map(|(_, tensor)| tensor).filter(new).map(tensor_bytes).sum::<u64>();
    }
    Ok(StepMemory {
        parameters: of_parameters,
        buffers: all - of_parameters,
        gradients,
        optimizer_state,
        averages: config.optimization.averaging.map_or(0, |_| of_averages()),
        activations: activations(model, batch, config)?,
        batch: batch.bytes(),
    })
}

/// Returns the number of bytes that the forward pass allocates and that autograd keeps as long as
/// the loss exists.
fn activations(
    model: &mut dyn LightningModule,
    batch: &AnyBatch,
    config: &TrainerConfig,
) -> Result<u64> {
    let policy = config.policy();
    let context =
        Context::new(policy, true).with_overrides(config.numerics.overrides.clone()).again();
    let meter = MemoryMeter::untracked(config.device)?;
    let loss = {
        let _autocast = policy.autocast()?;
        let mut log = Log::default();
        first_loss(model, batch, &mut Step::new(&context, &mut log, 0, 0))?
    };
    let bytes = meter.allocated()?.max(0).cast_unsigned();
    drop(loss);
    Ok(bytes)
}
