//! Calls the kernels of optimizer steps (`csrc/optim.cpp`, `csrc/step.cpp`, `csrc/adam.cpp`).

use std::{
    ffi::{c_double, c_int},
    marker::PhantomData,
};

use tch::Tensor;

use super::{Handle, handle, handles, take_error};
use crate::Result;

/// The options of an Adam or AdamW step.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct AdamStep {
    pub(crate) lr: c_double,
    pub(crate) beta1: c_double,
    pub(crate) beta2: c_double,
    pub(crate) eps: c_double,
    pub(crate) weight_decay: c_double,
    /// Whether the weight decay is decoupled, as in AdamW: 0 or 1. The integer fields of the other
    /// optimizers' options are booleans, 0 or 1, too.
    pub(crate) decoupled: c_int,
}

/// The options of an SGD step.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct SgdStep {
    pub(crate) lr: c_double,
    pub(crate) momentum: c_double,
    pub(crate) dampening: c_double,
    pub(crate) weight_decay: c_double,
    pub(crate) nesterov: c_int,
    /// Whether this is the first step, so that the momentum buffers have no values yet: 0 or 1.
    pub(crate) first_step: c_int,
}

/// The options of an RMSprop step.
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

/// The options of a Lion step.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct LionStep {
    pub(crate) lr: c_double,
    pub(crate) beta1: c_double,
    pub(crate) beta2: c_double,
    pub(crate) weight_decay: c_double,
}

/// The values that the kernels of this crate read on the device in an optimizer step.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct DeviceValues<'a> {
    rates: Handle,
    factor: Handle,
    found_inf: Handle,
    tensors: PhantomData<&'a Tensor>,
}

impl<'a> DeviceValues<'a> {
    /// Creates the values for a step. The step reads its learning rate and momentum from `rates`,
    /// where [`write_rates`] wrote them. It multiplies the gradients by `factor`, a scalar. If
    /// `found_inf`, an f32 scalar, is not 0, the step changes nothing.
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

/// The number of lists of tensors that a step passes to C++: parameters, gradients and state
/// tensors. A list that an optimizer does not need is passed as null.
const LISTS: usize = 7;

/// Calls `step` with the tensor handles in `lists`. All lists have the same length, except that a
/// list that the optimizer does not need is empty.
fn with_lists(
    lists: &[&[&Tensor]],
    step: impl FnOnce(*const *const Handle, usize) -> Result<()>,
) -> Result<()> {
    let count = lists.first().map_or(0, |list| list.len());
    let handles = handles(lists.iter().copied().flatten().copied());
    let (mut pointers, mut rest) = ([std::ptr::null(); LISTS], handles.as_slice());
    for (pointer, list) in pointers.iter_mut().zip(lists).filter(|(_, list)| !list.is_empty()) {
        assert_eq!(list.len(), count, "each parameter needs a gradient and its states");
        *pointer = rest.as_ptr();
        rest = &rest[count..];
    }
    step(pointers.as_ptr(), count)
}

/// The kernels that compute an optimizer step.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kernels<'a> {
    /// This crate's kernel for the whole step, on a CUDA device.
    Ours(DeviceValues<'a>),
    /// libtorch's kernel for the whole step (PyTorch's `fused=True`). The argument is `found_inf`,
    /// an f32 scalar on the device: if it is 1, the step changes nothing.
    Fused(Option<&'a Tensor>),
    /// Several kernels of libtorch, each over all parameters (PyTorch's `foreach=True`).
    Foreach,
}

/// Writes the learning rate and the momentum to `rates`, an f64 tensor `[2]` on a CUDA device.
pub(crate) fn write_rates(rates: &Tensor, lr: f64, momentum: f64) -> Result<()> {
    checked!(amp_write_rates(rates.as_ptr(), lr, momentum))
}

/// Updates parameters from their gradients, exp_avgs, exp_avg_sqs and step counts. Only the kernel
/// of this crate increments the step counts. Only this kernel supports averages in low precision:
/// bfloat16 with stochastic rounding, or u8 codes. With u8 codes, the last two lists are the scales
/// of exp_avgs and exp_avg_sqs, and `code` contains the values (f32 `[256]`) and the bounds (f32
/// `[255]`) of the codes for each of the two averages.
pub(crate) fn adam(
    lists: [&[&Tensor]; 7],
    code: Option<[&Tensor; 4]>,
    step: &AdamStep,
    kernels: Kernels<'_>,
) -> Result<()> {
    assert!(
        [5, 6].iter().all(|at| lists[*at].is_empty() == code.is_none()),
        "state in u8 needs both its scales and its code tables"
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

/// Updates parameters from their gradients and, with momentum, from their momentum buffers.
pub(crate) fn sgd(lists: [&[&Tensor]; 3], step: &SgdStep, kernels: Kernels<'_>) -> Result<()> {
    assert_kept(step.momentum > 0.0, &lists, 2);
    let step = &raw const *step;
    with_lists(&lists, |lists, count| match kernels {
        Kernels::Ours(known) => checked!(amp_sgd_on_device(lists, count, step, &raw const known)),
        Kernels::Fused(found_inf) => checked!(amp_fused_sgd(lists, count, step, handle(found_inf))),
        Kernels::Foreach => checked!(amp_foreach_sgd(lists, count, step)),
    })
}

/// Updates parameters from their gradients and square_avgs. Also uses momentum buffers and
/// grad_avgs if the options need them.
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

/// Updates parameters from their gradients and exp_avgs.
pub(crate) fn lion(lists: [&[&Tensor]; 3], step: &LionStep, kernels: Kernels<'_>) -> Result<()> {
    let step = &raw const *step;
    with_lists(&lists, |lists, count| match kernels {
        Kernels::Ours(known) => checked!(amp_lion_on_device(lists, count, step, &raw const known)),
        _ => checked!(amp_foreach_lion(lists, count, step)),
    })
}

fn assert_kept(wanted: bool, lists: &[&[&Tensor]], at: usize) {
    assert!(!wanted || lists[at].len() == lists[0].len(), "the options need this state");
}
