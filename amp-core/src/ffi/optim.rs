//! Optimizer steps (`csrc/optim.cpp`, `csrc/adam.cpp`).

use std::ffi::{c_double, c_int};

use tch::Tensor;

use super::{Handle, handle, handles, take_error};
use crate::Result;

/// Options of an Adam step.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct AdamStep {
    pub(crate) lr: c_double,
    pub(crate) beta1: c_double,
    pub(crate) beta2: c_double,
    pub(crate) eps: c_double,
    pub(crate) weight_decay: c_double,
    /// Whether the decay is AdamW's; 0 or 1, as are the other integers here.
    pub(crate) decoupled: c_int,
}

/// Options of an SGD step.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct SgdStep {
    pub(crate) lr: c_double,
    pub(crate) momentum: c_double,
    pub(crate) dampening: c_double,
    pub(crate) weight_decay: c_double,
    pub(crate) nesterov: c_int,
    pub(crate) first_step: c_int,
}

/// Options of an RMSprop step.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct RmspropStep {
    pub(crate) lr: c_double,
    pub(crate) alpha: c_double,
    pub(crate) eps: c_double,
    pub(crate) weight_decay: c_double,
    pub(crate) momentum: c_double,
    pub(crate) centered: c_int,
}

/// Options of a Lion step.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct LionStep {
    pub(crate) lr: c_double,
    pub(crate) beta1: c_double,
    pub(crate) beta2: c_double,
    pub(crate) weight_decay: c_double,
}

unsafe extern "C" {
    fn amp_adam_write_rates(rates: Handle, lr: c_double, beta1: c_double) -> c_int;
    fn amp_adam_on_device(
        lists: *const *const Handle,
        count: usize,
        options: *const AdamStep,
        rates: Handle,
        code: *const Handle,
        factor: Handle,
        found_inf: Handle,
    ) -> c_int;
    fn amp_fused_adam(
        lists: *const *const Handle,
        count: usize,
        step: *const AdamStep,
        found_inf: Handle,
    ) -> c_int;
    fn amp_foreach_adam(lists: *const *const Handle, count: usize, step: *const AdamStep) -> c_int;
    fn amp_fused_sgd(
        lists: *const *const Handle,
        count: usize,
        step: *const SgdStep,
        found_inf: Handle,
    ) -> c_int;
    fn amp_foreach_sgd(lists: *const *const Handle, count: usize, step: *const SgdStep) -> c_int;
    fn amp_foreach_rmsprop(
        lists: *const *const Handle,
        count: usize,
        step: *const RmspropStep,
    ) -> c_int;
    fn amp_foreach_lion(lists: *const *const Handle, count: usize, step: *const LionStep) -> c_int;
}

/// Calls `step` with the handles of lists of one length.
fn with_lists(
    lists: &[&[Tensor]],
    step: impl FnOnce(*const *const Handle, usize) -> Result<()>,
) -> Result<()> {
    let count = lists.first().map_or(0, |list| list.len());
    let lists: Vec<Vec<Handle>> = lists
        .iter()
        .map(|list| {
            assert_eq!(list.len(), count, "one gradient and one state per parameter");
            handles(*list)
        })
        .collect();
    let lists: Vec<*const Handle> = lists.iter().map(|list| list.as_ptr()).collect();
    step(lists.as_ptr(), count)
}

/// How a step's kernels work.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kernels<'a> {
    /// One for the whole step; nothing moves where this f32 scalar on the device is 1.
    Fused(Option<&'a Tensor>),
    /// Some, each over all parameters.
    Foreach,
}

/// Steps on parameters, gradients, exp_avgs, exp_avg_sqs and steps, which are counted up.
pub(crate) fn adam(lists: [&[Tensor]; 5], step: &AdamStep, kernels: Kernels<'_>) -> Result<()> {
    with_lists(&lists, |lists, count| match kernels {
        Kernels::Fused(found_inf) => {
            checked!(amp_fused_adam(lists, count, &raw const *step, handle(found_inf)))
        }
        Kernels::Foreach => checked!(amp_foreach_adam(lists, count, &raw const *step)),
    })
}

/// Makes `rates`, f64 `[2]` on a CUDA device, the learning rate and beta1.
pub(crate) fn adam_write_rates(rates: &Tensor, lr: f64, beta1: f64) -> Result<()> {
    checked!(amp_adam_write_rates(rates.as_ptr(), lr, beta1))
}

/// As [`adam`], of one dtype on a CUDA device, with kernels of our own: steps are not counted up
/// before, learning rate and beta1 are those of [`adam_write_rates`], `factor` multiplies the gradients, and where
/// `found_inf`, of f32, is not 0 nothing moves; both are scalars on the device.
///
/// The averages may be bfloat16, rounded at random, or, with the scales of both as the last lists,
/// codes (u8) of the values (f32 `[256]`) and bounds (f32 `[255]`) of each of them: `code`.
pub(crate) fn adam_on_device(
    lists: &[&[Tensor]],
    options: &AdamStep,
    rates: &Tensor,
    code: Option<[&Tensor; 4]>,
    factor: Option<&Tensor>,
    found_inf: Option<&Tensor>,
) -> Result<()> {
    assert_eq!(lists.len(), if code.is_some() { 7 } else { 5 }, "scales go with codes");
    let code = code.map(|tables| tables.map(Tensor::as_ptr));
    with_lists(lists, |lists, count| {
        checked!(amp_adam_on_device(
            lists,
            count,
            &raw const *options,
            rates.as_ptr(),
            code.as_ref().map_or(std::ptr::null(), |tables| tables.as_ptr()),
            handle(factor),
            handle(found_inf),
        ))
    })
}

/// Steps on parameters, gradients and, with momentum, its buffers.
pub(crate) fn sgd(lists: &[&[Tensor]], step: &SgdStep, kernels: Kernels<'_>) -> Result<()> {
    assert_eq!(lists.len(), if step.momentum == 0.0 { 2 } else { 3 }, "buffers go with momentum");
    with_lists(lists, |lists, count| match kernels {
        Kernels::Fused(found_inf) => {
            checked!(amp_fused_sgd(lists, count, &raw const *step, handle(found_inf)))
        }
        Kernels::Foreach => checked!(amp_foreach_sgd(lists, count, &raw const *step)),
    })
}

/// Steps on parameters, gradients, square_avgs and, in this order, the momentum's buffers and
/// the grad_avgs where the options want them.
pub(crate) fn rmsprop(lists: &[&[Tensor]], step: &RmspropStep) -> Result<()> {
    let wanted = 3 + usize::from(step.momentum > 0.0) + usize::from(step.centered != 0);
    assert_eq!(lists.len(), wanted, "state goes with the options");
    with_lists(lists, |lists, count| checked!(amp_foreach_rmsprop(lists, count, &raw const *step)))
}

/// Steps on parameters, gradients and exp_avgs.
pub(crate) fn lion(lists: [&[Tensor]; 3], step: &LionStep) -> Result<()> {
    with_lists(&lists, |lists, count| checked!(amp_foreach_lion(lists, count, &raw const *step)))
}
