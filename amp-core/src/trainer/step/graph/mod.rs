//! Whole steps as CUDA graphs: captured once, then launched with one call each.
//!
//! The graph contains the forward and backward passes of a step's batches, unscaling, the check for
//! values that are not finite, clipping, the optimizers' kernels if they are this crate's, the
//! scaler's update, and the sums of logged values. Kernels of other optimizers run after the graph
//! in the stream, because the host passes their learning rates. Several steps are [queued](replay),
//! so that the device does not wait for the host.
//!
//! After a step that is not finite, the device changes no parameter, neither in this step nor in
//! later ones. The host reads the outcome, undoes the other changes of these steps, and repeats the
//! step without a graph. Everything that follows such a step (lowering the scale, explanation,
//! recovery) is therefore implemented only once, and a run has the same numbers, bit for bit, with
//! and without graphs.

mod capture;
mod replay;

pub(super) use replay::Replay;

use crate::{
    Error, LightningModule, Result,
    callback::Callback,
    module::StepAccess,
    trainer::config::{Averaging, Check, NonFinite, TrainerConfig},
};

/// The number of steps queued at a time, if no observer must follow each step.
const QUEUED: usize = 4;

/// The number of steps that run without a graph first. In these, libraries choose their kernels and
/// allocate their workspaces.
const WARM_UP: u64 = 3;

/// Returns the closest access to steps that any observer of the run needs.
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

/// Returns how many steps may be queued. If steps cannot be graphs, returns an error with the
/// reason.
fn capacity(config: &TrainerConfig, access: StepAccess) -> Result<usize> {
    if !config.device.is_cuda() {
        return Err(refused("they need a CUDA device"));
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
