//! Runs whole training steps as CUDA graphs: a step is captured once, and then launched with one
//! call each time.
//!
//! The graph contains the forward and backward passes over a step's batches, unscaling, the check
//! for values that are not finite, clipping, the optimizer kernels of this crate, the update of the
//! loss scale, and the sums of logged values. Optimizer kernels of libtorch run after the graph in
//! the same stream, because the host passes the learning rate to these kernels at each launch.
//! Several steps are [queued](replay), so that the device does not wait for the host.
//!
//! If a step is not finite, the device changes no parameter in this step and in the steps queued
//! after it. The host reads the outcome, undoes all other changes of these steps, and repeats the
//! first of these steps without a graph. Therefore only the code for steps without a graph lowers
//! the scale, explains a skipped step and recovers. The results of a run are the same, bit for bit,
//! with and without graphs.

mod capture;
mod replay;

pub(super) use replay::Replay;

use crate::{
    Error, LightningModule, Result,
    callback::Callback,
    module::StepAccess,
    trainer::config::{Averaging, Check, NonFinite, TrainerConfig},
};

/// The largest number of steps in the queue, if no observer must run directly after each step.
const QUEUED: usize = 4;

/// The number of steps that run without a graph before the capture. In these steps, libraries
/// choose their kernels and allocate their workspaces.
const WARM_UP: u64 = 3;

/// Returns the moment at which the run must call its observers: directly after each step, within
/// the step, or later, when further steps may already be running. If the observers need different
/// moments, returns the strictest requirement.
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
