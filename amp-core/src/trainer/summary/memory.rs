//! The memory of a training step.

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
    trainer::TrainerConfig,
    weights,
};

/// The bytes that a training step holds, by their use. The peak of a step is higher, because
/// operators need temporary memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct StepMemory {
    /// Parameters, in the precision's dtype.
    pub parameters: u64,
    /// Buffers.
    pub buffers: u64,
    /// Gradients of the trained parameters, in the parameters' dtype.
    pub gradients: u64,
    /// The state of the optimizers, including f32 copies of 16-bit weights.
    pub optimizer_state: u64,
    /// Averages of parameters and buffers, if the run keeps them.
    pub averages: u64,
    /// The bytes that the forward pass of one batch keeps for the backward pass, as measured: activations,
    /// and under autocast the 16-bit copies of weights. Layers that are recomputed keep only their inputs.
    /// The batch is measured as a whole, without a memory budget.
    pub activations: u64,
    /// The tensors of the batch.
    pub batch: u64,
}

impl StepMemory {
    /// Returns the sum of all bytes.
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

/// Measures a step with these options. The model is already on its device, and its frozen
/// parameters are frozen.
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
    let all: u64 = weights::distinct(model).iter().map(|(_, tensor)| tensor_bytes(tensor)).sum();
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
        averages: config.optimization.averaging.map_or(0, |_| all),
        activations: activations(model, batch, config)?,
        batch: batch.bytes(),
    })
}

/// Returns the number of bytes that the forward pass allocates and that still exist while the loss
/// exists.
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
