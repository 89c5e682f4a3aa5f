//! Runs whole training steps as CUDA graphs: a step is captured once, and then launched with one
//! call each time.
//!
//! The graph contains the forward and backward passes over a step's batches, unscaling, the check
//! for values that are not finite, clipping, the optimizer kernels of this crate, the update of the
//! loss scale, and the sums of logged values. Optimizer kernels of libtorch get the learning rate
//! from the host at each launch. Therefore they run after the graph, in the same stream. The host
//! launches several steps in advance (a [queue](replay)), so that the device does not wait for the
//! host.
//!
//! If a step is not finite, the device changes no parameter in this step and in the steps queued
//! after it. The host reads this later, undoes all other changes of these steps, and repeats the
//! first of them without a graph. Therefore only steps without a graph need to lower the loss
//! scale, explain a skipped step, and recover. The results of a run are bit-identical with and
//! without graphs.

mod capture;
mod replay;

pub(super) use replay::Replay;

use crate::{
    Error, LightningModule, Result,
    callback::Callback,
    module::StepAccess,
    trainer::config::{Averaging, Check, NonFinite, TrainerConfig},
};

/// The largest number of steps in the queue. If an observer must run directly after each step, at
/// most one step is in the queue.
const QUEUED: usize = 4;

/// The number of steps that run without a graph before the capture. During these steps, libraries
/// choose their kernels and allocate their workspaces.
const WARM_UP: u64 = 3;

/// Returns when the run must call its observers: within the step, directly after each step, or
/// later, when further steps may already be running. If observers differ, the strictest requirement
/// counts.
pub(in crate::trainer) fn step_access(
    model: &dyn LightningModule,
    callbacks: &[Box<dyn Callback + '_>],
    config: &TrainerConfig,
) -> StepAccess {
    let callbacks = callbacks.iter().map(|callback| callback.step_access());
    let checks = match config.checks.level {
        Check::Full => StepAccess::PerStep,
        Check::Off | Check::Cheap => StepAccess::Deferred,
    };
    let average = match config.optimization.averaging {
        Some(Averaging::Ema { .. }) => StepAccess::PerStep,
        Some(Averaging::Swa { .. }) | None => StepAccess::Deferred,
    };
    callbacks.fold(model.step_access().and(average).and(checks), StepAccess::and)
}

/// Returns the number of steps that may be queued. If steps cannot run as CUDA graphs, returns an
/// error with the reason.
fn capacity(config: &TrainerConfig, access: StepAccess) -> Result<usize> {
    if !config.device.is_cuda() {
        return Err(refused("CUDA graphs need a CUDA device"));
    }
    let restores = config.recovery.on_non_finite == NonFinite::RestoreLastGood;
    match if restores { access.and(StepAccess::PerStep) } else { access } {
        StepAccess::Deferred => Ok(QUEUED),
        StepAccess::PerStep => Ok(1),
        StepAccess::InStep(who) => Err(refused(who)),
    }
}

fn refused(why: &str) -> Error {
    Error::config(format!("steps do not run as CUDA graphs: {why}"))
}
