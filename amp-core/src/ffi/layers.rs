//! Layers that are not libtorch's alone (`csrc/linear.cpp`, `csrc/conv.cpp`, `csrc/batch_norm.cpp`,
//! `csrc/dropout.cpp`).

use std::ffi::{c_double, c_int};

use tch::Tensor;
use torch_sys::C_tensor;

use super::{Handle, handle, take_error};
use crate::Result;

/// What comes behind a batch normalisation, and its options.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchNormOptions {
    pub(crate) momentum: c_double,
    pub(crate) eps: c_double,
    /// Dropout's probability, below 1.
    pub(crate) p: c_double,
    /// Whether ReLU comes before it: 0 or 1.
    pub(crate) relu: c_int,
}

/// Running mean, running variance and how many batches they have seen.
pub(crate) type Statistics<'a> = [&'a Tensor; 3];

unsafe extern "C" {
    fn amp_linear(input: Handle, weight: Handle, bias: Handle, out: *mut *mut C_tensor) -> c_int;
    fn amp_conv2d(
        input: Handle,
        weight: Handle,
        bias: Handle,
        stride: i64,
        padding: i64,
        channels_last: c_int,
        out: *mut *mut C_tensor,
    ) -> c_int;
    fn amp_batch_norm_fits(input: Handle, weight: Handle, bias: Handle, fits: *mut c_int) -> c_int;
    fn amp_batch_norm(
        input: Handle,
        weight: Handle,
        bias: Handle,
        running_mean: Handle,
        running_var: Handle,
        tracked: Handle,
        options: *const BatchNormOptions,
        out: *mut *mut C_tensor,
    ) -> c_int;
    fn amp_dropout(input: Handle, p: c_double, out: *mut *mut C_tensor) -> c_int;
}

/// The tensor that `call` makes.
fn made(call: impl FnOnce(*mut *mut C_tensor) -> Result<()>) -> Result<Tensor> {
    let mut out = std::ptr::null_mut();
    call(&mut out)?;
    // SAFETY: on success it is a new tensor that nobody else owns.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// x·Wᵀ + b. Under autocast on CUDA the gradients of an f32 weight and bias come from f32 sums of
/// products without being rounded to 16 bits in between.
pub(crate) fn linear(input: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    made(|out| checked!(amp_linear(input.as_ptr(), weight.as_ptr(), handle(bias), out)))
}

/// A square convolution of `[N, C, H, W]` with this stride and padding. Where it computes in 16 bits it
/// does so in channels_last, if that is wanted, and so gives its output; the weight's gradient lies as
/// the weight does.
pub(crate) fn conv2d(
    input: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    [stride, padding]: [i64; 2],
    channels_last: bool,
) -> Result<Tensor> {
    let (bias, wanted) = (handle(bias), channels_last.into());
    made(|out| {
        checked!(amp_conv2d(input.as_ptr(), weight.as_ptr(), bias, stride, padding, wanted, out))
    })
}

/// Batch normalisation of `[rows, columns]` over the rows, while training, with what comes behind it;
/// `None` where the kernels cannot take these tensors.
pub(crate) fn batch_norm(
    input: &Tensor,
    [weight, bias]: [&Tensor; 2],
    statistics: Option<Statistics<'_>>,
    options: &BatchNormOptions,
) -> Result<Option<Tensor>> {
    let mut fits = 0;
    checked!(amp_batch_norm_fits(input.as_ptr(), weight.as_ptr(), bias.as_ptr(), &mut fits))?;
    if fits == 0 {
        return Ok(None);
    }
    let [mean, var, tracked] = [0, 1, 2].map(|at| handle(statistics.map(|all| all[at])));
    let run = |out| {
        checked!(amp_batch_norm(
            input.as_ptr(),
            weight.as_ptr(),
            bias.as_ptr(),
            mean,
            var,
            tracked,
            &raw const *options,
            out,
        ))
    };
    made(run).map(Some)
}

/// Drops elements of a CUDA tensor with probability `p`, above 0 and below 1.
pub(crate) fn dropout(input: &Tensor, p: f64) -> Result<Tensor> {
    made(|out| checked!(amp_dropout(input.as_ptr(), p, out)))
}
