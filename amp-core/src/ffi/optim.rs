//! Optimizer steps (`csrc/optim.cpp`, `csrc/step.cpp`, `csrc/adam.cpp`).

use std::{
    ffi::{c_double, c_int},
    marker::PhantomData,
};

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
    /// Whether the weight decay is decoupled, as in AdamW. This and the other integers are 0 or 1.
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

/// The values of a step that this crate's kernels read on the device.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct DeviceValues<'a> {
    rates: Handle,
    factor: Handle,
    found_inf: Handle,
    tensors: PhantomData<&'a Tensor>,
}

impl<'a> DeviceValues<'a> {
    /// Creates the values for a step that reads its rates from `rates`, where [`write_rates`] wrote
    /// them, and multiplies the gradients by `factor`. If `found_inf` (f32) is not 0, the step
    /// changes nothing. `factor` and `found_inf` are scalars.
    pub(crate) fn new(
        rates: &'a Tensor,
        factor: Option<&'a Tensor>,
        found_inf: Option<&'a Tensor>,
    ) -> Self {
        let (rates, factor, found_inf) = (rates.as_ptr(), handle(factor), handle(found_inf));
        Self { rates, factor, found_inf, tensors: PhantomData }
    }
}

unsafe extern "C" {
    fn amp_write_rates(rates: Handle, lr: c_double, momentum: c_double) -> c_int;
    fn amp_adam_on_device(
        lists: *const *const Handle,
        count: usize,
        step: *const AdamStep,
        code: *const Handle,
        known: *const DeviceValues<'_>,
    ) -> c_int;
    fn amp_sgd_on_device(
        lists: *const *const Handle,
        count: usize,
        step: *const SgdStep,
        known: *const DeviceValues<'_>,
    ) -> c_int;
    fn amp_rmsprop_on_device(
        lists: *const *const Handle,
        count: usize,
        step: *const RmspropStep,
        known: *const DeviceValues<'_>,
    ) -> c_int;
    fn amp_lion_on_device(
        lists: *const *const Handle,
        count: usize,
        step: *const LionStep,
        known: *const DeviceValues<'_>,
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

/// The largest number of lists. Lists that an optimizer does not need are null.
const LISTS: usize = 7;

/// Calls `step` with the tensor handles of lists of equal length. Missing lists are empty.
fn with_lists(
    lists: &[&[&Tensor]],
    step: impl FnOnce(*const *const Handle, usize) -> Result<()>,
) -> Result<()> {
    let count = lists.first().map_or(0, |list| list.len());
    let handles = handles(lists.iter().copied().flatten().copied());
    let (mut pointers, mut rest) = ([std::ptr::null(); LISTS], handles.as_slice());
    for (pointer, list) in pointers.iter_mut().zip(lists).filter(|(_, list)| !list.is_empty()) {
        assert_eq!(list.len(), count, "one gradient and one state per parameter");
        *pointer = rest.as_ptr();
        rest = &rest[count..];
    }
    step(pointers.as_ptr(), count)
}

/// The kernels that compute a step.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kernels<'a> {
    /// This crate's kernel for the whole step, on a CUDA device.
    Ours(DeviceValues<'a>),
    /// libtorch's kernel for the whole step. If this f32 scalar on the device is 1, the step
    /// changes nothing.
    Fused(Option<&'a Tensor>),
    /// Several kernels of libtorch, each over all parameters.
    Foreach,
}

/// Writes these two rates to `rates`, f64 `[2]` on a CUDA device.
pub(crate) fn write_rates(rates: &Tensor, lr: f64, momentum: f64) -> Result<()> {
    checked!(amp_write_rates(rates.as_ptr(), lr, momentum))
}

/// Updates parameters from gradients, exp_avgs, exp_avg_sqs and steps. Only this crate's kernel
/// increments the steps and supports low-precision averages: bfloat16 with stochastic rounding, or
/// u8 codes. For u8 codes the last lists are the scales of both averages, and `code` has the values
/// (f32 `[256]`) and bounds (f32 `[255]`) for each average.
pub(crate) fn adam(
    lists: [&[&Tensor]; 7],
    code: Option<[&Tensor; 4]>,
    step: &AdamStep,
    kernels: Kernels<'_>,
) -> Result<()> {
    assert!(
        [5, 6].iter().all(|at| lists[*at].is_empty() == code.is_none()),
        "scales and codes are given together"
    );
    let code = code.map(|tables| tables.map(Tensor::as_ptr));
    let step = &raw const *step;
    with_lists(&lists, |lists, count| match kernels {
        Kernels::Ours(known) => {
            let code = code.as_ref().map_or(std::ptr::null(), |tables| tables.as_ptr());
            checked!(amp_adam_on_device(lists, count, step, code, &raw const known))
        }
        Kernels::Fused(found_inf) => {
            checked!(amp_fused_adam(lists, count, step, handle(found_inf)))
        }
        Kernels::Foreach => checked!(amp_foreach_adam(lists, count, step)),
    })
}

/// Updates parameters from gradients and, with momentum, momentum buffers.
pub(crate) fn sgd(lists: [&[&Tensor]; 3], step: &SgdStep, kernels: Kernels<'_>) -> Result<()> {
    assert_kept(step.momentum > 0.0, &lists, 2);
    let step = &raw const *step;
    with_lists(&lists, |lists, count| match kernels {
        Kernels::Ours(known) => checked!(amp_sgd_on_device(lists, count, step, &raw const known)),
        Kernels::Fused(found_inf) => checked!(amp_fused_sgd(lists, count, step, handle(found_inf))),
        Kernels::Foreach => checked!(amp_foreach_sgd(lists, count, step)),
    })
}

/// Updates parameters from gradients and square_avgs, and, if the options use them, momentum
/// buffers and grad_avgs.
pub(crate) fn rmsprop(
    lists: [&[&Tensor]; 5],
    step: &RmspropStep,
    kernels: Kernels<'_>,
) -> Result<()> {
    assert_kept(step.momentum > 0.0, &lists, 3);
    assert_kept(step.centered != 0, &lists, 4);
    let step = &raw const *step;
    with_lists(&lists, |lists, count| match kernels {
        Kernels::Ours(known) => {
            checked!(amp_rmsprop_on_device(lists, count, step, &raw const known))
        }
        _ => checked!(amp_foreach_rmsprop(lists, count, step)),
    })
}

/// Updates parameters from gradients and exp_avgs.
pub(crate) fn lion(lists: [&[&Tensor]; 3], step: &LionStep, kernels: Kernels<'_>) -> Result<()> {
    let step = &raw const *step;
    with_lists(&lists, |lists, count| match kernels {
        Kernels::Ours(known) => checked!(amp_lion_on_device(lists, count, step, &raw const known)),
        _ => checked!(amp_foreach_lion(lists, count, step)),
    })
}

fn assert_kept(wanted: bool, lists: &[&[&Tensor]], at: usize) {
    assert!(!wanted || lists[at].len() == lists[0].len(), "the state fits the options");
}
