//! Whole steps as CUDA graphs: captured once, then started with one call each.
//!
//! The graph holds the forward and backward passes of a step's batches, unscaling, the look for
//! what is not finite, clipping, the optimizers' kernels where those are ours, the scaler's update and
//! the sums of what is logged. Other optimizers' kernels follow it in the stream, because their rates
//! are the host's. Some steps are [queued](queue) at a time, so that the device need not wait for
//! the host.
//!
//! A step that is not finite stops the device: neither it nor any step after it moves a parameter.
//! The host finds that out, takes back what those steps left, and runs the step once more the way
//! steps run without a graph. So whatever follows from such a step (the scaler's back-off, its
//! explanation, recovery) has one implementation, and a run has the same numbers, bit for bit,
//! with and without graphs.

mod capture;
mod queue;

pub(super) use queue::Replay;

use crate::{
    Error, LightningModule, Result,
    callback::Callback,
    module::StepAccess,
    trainer::config::{Averaging, Check, NonFinite, TrainerConfig},
};

/// Steps queued at a time where no observer needs to see each.
const QUEUED: usize = 4;

/// Steps that run without a graph first: libraries choose their kernels and take their workspaces.
const WARM_UP: u64 = 3;

/// The closest access that any observer of a run needs.
pub(in crate::trainer) fn step_access(
    model: &dyn LightningModule,
    callbacks: &[Box<dyn Callback + '_>],
    config: &TrainerConfig,
) -> StepAccess {
    let callbacks = callbacks.iter().map(|callback| callback.step_access());
    let checks = match config.checks.level {
        Check::Full => StepAccess::EachStep,
        Check::Off | Check::Cheap => StepAccess::Late,
    };
    let average = match config.optimization.averaging {
        Some(Averaging::Ema { .. }) => StepAccess::EachStep,
        Some(Averaging::Swa { .. }) | None => StepAccess::Late,
    };
    callbacks.fold(model.step_access().and(average).and(checks), StepAccess::and)
}

/// How many steps may be queued; an error says why none can.
fn capacity(config: &TrainerConfig, access: StepAccess) -> Result<usize> {
    if !config.device.is_cuda() {
        return Err(refused("they need a CUDA device"));
    }
    let restores = config.recovery.on_non_finite == NonFinite::RestoreLastGood;
    match if restores { access.and(StepAccess::EachStep) } else { access } {
        StepAccess::Late => Ok(QUEUED),
        StepAccess::EachStep => Ok(1),
        StepAccess::Within(who) => Err(refused(who)),
    }
}

fn refused(why: &str) -> Error {
    Error::config(format!("steps do not run as CUDA graphs: {why}"))
}
