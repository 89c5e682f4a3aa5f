//! Compares the kernels of a GPU, including those of fused layers, with the kernels of the CPU.
//! Both devices compute the gradient of the same batch, under 32-true and in training mode. Dropout
//! is off, because its random numbers differ between devices.

use std::collections::BTreeMap;

use amp_core::{
    LightningModule, Result, Step,
    data::AnyBatch,
    log::Log,
    nn::{self, Context},
    precision::{GradScaler, Policy, Precision},
    random,
    tch::{Device, Kind, Tensor, no_grad},
};

use super::{final_state::exact_on, run::Setup};
use crate::{
    gate::{
        checked::{Findings, Unit},
        conformance::{emulation::SUMS, tolerance_limit},
        hooks::copy_of,
        reason::Reason,
    },
    rounding::moved,
    scalars::{read, square, square_of_difference},
};

/// The number of passes with perturbed weights from which the bounds are computed.
const DRAWS: u64 = 12;
/// The smallest bound for [`GradientDifference::size`]. Sums in another order may cause a
/// difference as large as this.
const SIZE: f64 = 1e-3;
/// The smallest bound for [`GradientDifference::distance`]. Sums in another order may cause a
/// distance as large as this.
const DISTANCE: f64 = 1e-2;

/// How much a gradient a differs from a gradient b: that of the GPU from that of the CPU, or one
/// with perturbed weights from the one without.
struct GradientDifference {
    /// How far the projection of a onto b is from b, relative to b: |⟨a, b⟩/⟨b, b⟩ − 1|.
    size: f64,
    /// The distance, ‖a − b‖/‖b‖.
    distance: f64,
}

/// Compares the gradient of the first examples on the GPU with their gradient on the CPU. The two
/// devices sum in different orders, which changes the gradient of a deep model more than that of a
/// shallow one. So the bounds are measured for each model: the GPU repeats the pass with slightly
/// perturbed weights ([`SUMS`], the relative rounding error of an f32 sum). The bounds are upper
/// tolerance limits of the changes of the gradient that result.
pub(super) fn check(setup: &Setup<'_>, findings: &mut Findings) -> Result<()> {
    let device = setup.case.trainer.device;
    if !device.is_cuda() {
        return Ok(());
    }
    let batch = setup.budget.sample(setup.case)?;
    let (own, moved) = gradients(setup, device, &batch, DRAWS)?;
    let (exact, _) = gradients(setup, Device::Cpu, &batch, 0)?;
    let found = gradient_difference(&own, &exact)?;
    let limit =
        |figure: fn(&GradientDifference) -> f64| tolerance_limit(moved.iter().map(figure), 1);
    for (what, figure, bound) in [
        (
            "component along the CPU's gradient, relative difference from this gradient's norm",
            found.size,
            SIZE.max(limit(|gradient_difference| gradient_difference.size)),
        ),
        (
            "distance from the CPU's gradient, relative to its norm",
            found.distance,
            DISTANCE.max(limit(|gradient_difference| gradient_difference.distance)),
        ),
    ] {
        let over = "the first examples in 32-true with the device's kernels, without dropout";
        findings.measured(Reason::Gradient, what, over, Unit::Share, (figure, bound));
    }
    Ok(())
}

/// The gradient of each parameter, by name.
type Gradients = BTreeMap<String, Tensor>;

/// Computes the gradient of a batch under 32-true, with layers fused as in `fit`. Then repeats this
/// `draws` times with perturbed weights. Returns the unperturbed gradient, and how far each
/// perturbed gradient is from it.
fn gradients(
    setup: &Setup<'_>,
    device: Device,
    batch: &AnyBatch,
    draws: u64,
) -> Result<(Gradients, Vec<GradientDifference>)> {
    let policy = Policy::new(Precision::F32True, device);
    let mut model = setup.case.build()?;
    nn::place(model.as_ref(), policy, &BTreeMap::new())?;
    let batch = batch.place(policy)?;
    let own = gradient(model.as_mut(), policy, &batch)?;
    let parameters = nn::parameters(model.as_ref());
    let initial = parameters.iter().map(|parameter| copy_of(&parameter.tensor));
    let initial = initial.collect::<Result<Vec<_>>>()?;
    let mut away = Vec::new();
    for number in 1..=draws {
        let _section = random::seeded(setup.case.trainer.seed.wrapping_add(number))?;
        for (parameter, initial) in parameters.iter().zip(&initial) {
            let other = moved(initial, SUMS)?;
            no_grad(|| parameter.tensor.shallow_clone().f_copy_(&other))?;
        }
        away.push(gradient_difference(&gradient(model.as_mut(), policy, &batch)?, &own)?);
    }
    Ok((own, away))
}

fn gradient(
    model: &mut dyn LightningModule,
    policy: Policy,
    batch: &AnyBatch,
) -> Result<Gradients> {
    nn::clear_gradients(model)?;
    let context = Context::new(policy, true).without_dropout();
    let mut log = Log::default();
    let mut step = Step::new(&context, &mut log, 0, 0);
    let loss = model.training_step(batch, &mut step)?;
    GradScaler::disabled(policy.device)?.scale(&loss)?.backward()?;
    let mut gradients = BTreeMap::new();
    for parameter in nn::parameters(model) {
        let gradient = parameter.tensor.f_grad()?;
        if gradient.defined() {
            gradients.insert(parameter.name, copy_of(&gradient)?);
        }
    }
    Ok(gradients)
}

/// Computes the difference of the gradients `a` from the gradients `b`, on the device of `b`. If a
/// parameter has no gradient in `a`, its gradient there counts as zero.
fn gradient_difference(a: &Gradients, b: &Gradients) -> Result<GradientDifference> {
    let mut sums = Vec::new();
    for (name, exact) in b {
        let found = match a.get(name) {
            Some(found) => exact_on(exact.device(), found)?,
            None => exact.f_zeros_like()?,
        };
        let product = no_grad(|| found.f_mul(exact)?.f_sum(Kind::Double))?;
        sums.extend([product, square(exact)?, square_of_difference(&found, exact)?]);
    }
    let sums = read(&sums)?;
    let sum = |at: usize| sums.iter().skip(at).step_by(3).sum::<f64>();
    let (both, own, off) = (sum(0), sum(1), sum(2));
    Ok(GradientDifference { size: (both / own - 1.0).abs(), distance: (off / own).sqrt() })
}
