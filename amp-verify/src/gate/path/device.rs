//! Compares the device's kernels, including fused layers, with the CPU's: one gradient in 32-true,
//! in training mode. Dropout is off, because its random numbers differ between devices.

use std::collections::BTreeMap;

use amp_core::{
    Result, Step,
    data::AnyBatch,
    log::Log,
    nn::{self, Context},
    precision::{GradScaler, Policy, Precision},
    tch::{Device, Tensor, no_grad},
};

use super::{
    final_state::{dot, exact_on},
    run::Setup,
};
use crate::gate::{
    checked::{Findings, Unit},
    reason::Reason,
    sample::sample,
};

/// The accepted differences in the size and the distance of a gradient, because sums have another
/// order.
const SIZE: f64 = 1e-3;
const DISTANCE: f64 = 1e-2;

/// The difference between two gradients.
pub(super) struct GradientDifference {
    /// |⟨a, b⟩/⟨b, b⟩ − 1|.
    pub(super) size: f64,
    /// ‖a − b‖/‖b‖.
    pub(super) distance: f64,
}

/// Compares the first batch's gradient on the run's device with the CPU's.
pub(super) fn check(setup: &Setup<'_>, findings: &mut Findings) -> Result<()> {
    let device = setup.case.trainer.device;
    if !device.is_cuda() {
        return Ok(());
    }
    let batch = sample(setup.case)?;
    let gradient_difference = gradient_difference(
        &gradients(setup, device, &batch)?,
        &gradients(setup, Device::Cpu, &batch)?,
    )?;
    for (what, figure, bound) in [
        ("length along the CPU's gradient, away from 1", gradient_difference.size, SIZE),
        ("distance from the CPU's gradient", gradient_difference.distance, DISTANCE),
    ] {
        let over = "the first examples in 32-true with the device's kernels, without dropout";
        findings.measured(Reason::Gradient, what, over, Unit::Share, (figure, bound));
    }
    Ok(())
}

/// Computes the gradient of a batch in 32-true, with layers fused as in an unobserved run.
pub(super) fn gradients(
    setup: &Setup<'_>,
    device: Device,
    batch: &AnyBatch,
) -> Result<BTreeMap<String, Tensor>> {
    let policy = Policy::new(Precision::F32True, device);
    let mut model = setup.case.build()?;
    nn::place(model.as_ref(), policy, &BTreeMap::new())?;
    let context = Context::new(policy, true).without_dropout();
    let mut log = Log::default();
    let mut step = Step::new(&context, &mut log, 0, 0);
    let loss = model.training_step(&batch.place(policy)?, &mut step)?;
    GradScaler::disabled(device)?.scale(&loss)?.backward()?;
    let mut gradients = BTreeMap::new();
    for parameter in nn::parameters(model.as_ref()) {
        let gradient = parameter.tensor.f_grad()?;
        if gradient.defined() {
            gradients.insert(parameter.name, exact_on(Device::Cpu, &gradient)?);
        }
    }
    Ok(gradients)
}

/// Returns the difference of `a` from `b`. A gradient that only one of them has is compared with
/// zero.
pub(super) fn gradient_difference(
    a: &BTreeMap<String, Tensor>,
    b: &BTreeMap<String, Tensor>,
) -> Result<GradientDifference> {
    let (mut both, mut own, mut off) = (0.0, 0.0, 0.0);
    for (name, exact) in b {
        own += dot(exact, exact)?;
        match a.get(name) {
            Some(found) => {
                both += dot(found, exact)?;
                let difference = no_grad(|| found.f_sub(exact))?;
                off += dot(&difference, &difference)?;
            }
            None => off += dot(exact, exact)?,
        }
    }
    Ok(GradientDifference { size: (both / own - 1.0).abs(), distance: (off / own).sqrt() })
}
