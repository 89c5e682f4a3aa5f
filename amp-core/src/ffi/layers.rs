//! Layers, a loss and a metric with kernels of this crate (`csrc/linear.cpp`, `csrc/conv.cpp`,
//! `csrc/max_pool.cpp`, `csrc/batch_norm.cpp`, `csrc/batch_norm_images.cpp`, `csrc/layer_norm.cpp`,
//! `csrc/residual_norm.cpp`, `csrc/dropout.cpp`, `csrc/classification.cpp`).

use std::{
    ffi::{c_double, c_int},
    ops::Range,
};

use tch::Tensor;
use torch_sys::C_tensor;

use super::{Handle, handle, take_error};
use crate::Result;

/// The options of a batch norm of `[rows, columns]`, and of ReLU and dropout after it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchNormOptions {
    pub(crate) momentum: c_double,
    pub(crate) eps: c_double,
    /// The probability of dropout, below 1.
    pub(crate) p: c_double,
    /// Whether ReLU runs after the batch norm and before the dropout: 0 or 1.
    pub(crate) relu: c_int,
}

/// The options of a batch norm of images.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct ImageNormOptions {
    pub(crate) momentum: c_double,
    pub(crate) eps: c_double,
    /// Whether ReLU follows the batch norm: 0 or 1. If a residual is added, ReLU always follows.
    pub(crate) relu: c_int,
}

/// The options of a layer norm, of the dropout before it, and of GELU and dropout after it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct LayerNormOptions {
    pub(crate) eps: c_double,
    /// The probability, below 1, of dropout on the input. Dropout runs first, then the residual, if
    /// given, is added.
    pub(crate) before: c_double,
    /// The probability of the dropout after the layer norm and GELU.
    pub(crate) after: c_double,
    /// Whether GELU follows the normalization: 0 or 1.
    pub(crate) gelu: c_int,
}

#[repr(C)]
struct LinearOptions {
    first: i64,
    count: i64,
    p: c_double,
    activation: c_int,
}

impl LinearOptions {
    /// The options of a layer that computes all outputs, without an activation or dropout.
    const PLAIN: Self = Self { first: 0, count: 0, p: 0.0, activation: 0 };
}

/// The activations that can follow a linear layer. The C++ code uses the same numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FollowingOp {
    Relu = 1,
    Gelu = 2,
    GeluTanh = 3,
}

/// The running mean, the running variance, and the number of batches that were averaged.
pub(crate) type Statistics<'a> = [&'a Tensor; 3];

unsafe extern "C" {
    fn amp_linear(
        input: Handle,
        weight: Handle,
        bias: Handle,
        options: *const LinearOptions,
        out: *mut *mut C_tensor,
    ) -> c_int;
    fn amp_conv2d_and_input(
        input: Handle,
        weight: Handle,
        stride: i64,
        padding: i64,
        out: *mut *mut C_tensor,
        again: *mut *mut C_tensor,
    ) -> c_int;
    fn amp_conv2d(
        input: Handle,
        weight: Handle,
        bias: Handle,
        stride: i64,
        padding: i64,
        channels_last: c_int,
        out: *mut *mut C_tensor,
    ) -> c_int;
    fn amp_max_pool2d(
        input: Handle,
        windows: *const i64,
        ceil_mode: c_int,
        out: *mut *mut C_tensor,
    ) -> c_int;
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
    fn amp_batch_norm_images(
        input: Handle,
        residual: Handle,
        weight: Handle,
        bias: Handle,
        running_mean: Handle,
        running_var: Handle,
        tracked: Handle,
        options: *const ImageNormOptions,
        out: *mut *mut C_tensor,
    ) -> c_int;
    fn amp_layer_norm(
        input: Handle,
        residual: Handle,
        weight: Handle,
        bias: Handle,
        options: *const LayerNormOptions,
        out: *mut *mut C_tensor,
    ) -> c_int;
    fn amp_residual_norm(
        input: Handle,
        weight: Handle,
        bias: Handle,
        eps: c_double,
        narrow: c_int,
        stream: *mut *mut C_tensor,
        normal: *mut *mut C_tensor,
    ) -> c_int;
    fn amp_residual_add(stream: Handle, branch: Handle, out: *mut *mut C_tensor) -> c_int;
    fn amp_dropout(input: Handle, p: c_double, together: i64, out: *mut *mut C_tensor) -> c_int;
    fn amp_cross_entropy(
        logits: Handle,
        targets: Handle,
        smoothing: c_double,
        left_out: i64,
        z: c_double,
        out: *mut *mut C_tensor,
    ) -> c_int;
    fn amp_counted_classes(targets: Handle, classes: i64, out: *mut *mut C_tensor) -> c_int;
    fn amp_hits(logits: Handle, targets: Handle, out: *mut *mut C_tensor) -> c_int;
}

/// Calls `call`, which writes a new tensor or null, and returns the tensor. Returns `None` for
/// null.
pub(super) fn optional_tensor(
    call: impl FnOnce(*mut *mut C_tensor) -> Result<()>,
) -> Result<Option<Tensor>> {
    let mut out = std::ptr::null_mut();
    call(&mut out)?;
    // SAFETY: on success `out` is null or a new tensor without another owner.
    Ok((!out.is_null()).then(|| unsafe { Tensor::from_ptr(out) }))
}

/// Calls `call`, which writes two new tensors or null, and returns the tensors. Returns `None` for
/// null.
fn optional_pair(
    call: impl FnOnce(*mut *mut C_tensor, *mut *mut C_tensor) -> Result<()>,
) -> Result<Option<(Tensor, Tensor)>> {
    let mut second = std::ptr::null_mut();
    let first = optional_tensor(|out| call(out, &raw mut second))?;
    // SAFETY: if `call` wrote a first tensor, `second` is a new tensor as well, without another
    // owner.
    Ok(first.map(|first| (first, unsafe { Tensor::from_ptr(second) })))
}

/// Calls `call`, which writes a new tensor, and returns the tensor.
pub(super) fn made(call: impl FnOnce(*mut *mut C_tensor) -> Result<()>) -> Result<Tensor> {
    Ok(optional_tensor(call)?.expect("a successful call writes a tensor"))
}

/// Computes a linear layer, `input`·Wᵀ + b.
pub(crate) fn linear(input: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    linear_with(input, weight, bias, &LinearOptions::PLAIN)
}

/// Computes [`linear`] followed by an activation and by dropout with probability `p`, which is
/// below 1.
pub(crate) fn linear_activated(
    input: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    behind: FollowingOp,
    p: f64,
) -> Result<Tensor> {
    let activation = behind as c_int;
    linear_with(input, weight, bias, &LinearOptions { p, activation, ..LinearOptions::PLAIN })
}

/// Computes only some outputs of a [`linear`] layer. `outputs` is the range of their indices.
pub(crate) fn linear_part(
    input: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    outputs: Range<i64>,
) -> Result<Tensor> {
    let (first, count) = (outputs.start, outputs.end - outputs.start);
    linear_with(input, weight, bias, &LinearOptions { first, count, ..LinearOptions::PLAIN })
}

fn linear_with(
    input: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    options: &LinearOptions,
) -> Result<Tensor> {
    let (input, weight, bias) = (input.as_ptr(), weight.as_ptr(), handle(bias));
    made(|out| checked!(amp_linear(input, weight, bias, &raw const *options, out)))
}

/// Computes a convolution of images `[N, C, H, W]` with square filters. In 16 bits, the computation
/// and the output are in channels_last if the caller requests it. The gradient of the weight has
/// the layout of the weight.
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

/// Computes [`conv2d`] without a bias, in channels_last and 16 bits on CUDA. Returns the output,
/// and an alias of the input for a second use, for example in a residual connection. The backward
/// pass adds up the gradients of the convolution and of the alias, if possible within one matrix
/// product. Returns `None` if the kernels do not support the convolution.
pub(crate) fn conv2d_and_input(
    input: &Tensor,
    weight: &Tensor,
    [stride, padding]: [i64; 2],
) -> Result<Option<(Tensor, Tensor)>> {
    let (input, weight) = (input.as_ptr(), weight.as_ptr());
    optional_pair(|out, again| {
        checked!(amp_conv2d_and_input(input, weight, stride, padding, out, again))
    })
}

/// Computes max pooling: the largest value of each window of `[N, C, H, W]`, in channels_last and
/// 16 bits on CUDA. `windows` are sizes, strides, padding and dilation, each for rows and columns.
/// Returns `None` if the kernels do not support these arguments.
pub(crate) fn max_pool2d(
    input: &Tensor,
    windows: [[i64; 2]; 4],
    ceil_mode: bool,
) -> Result<Option<Tensor>> {
    let windows = windows.as_flattened();
    optional_tensor(|out| {
        checked!(amp_max_pool2d(input.as_ptr(), windows.as_ptr(), ceil_mode.into(), out))
    })
}

/// Computes batch norm of `[rows, columns]` over the rows, in training mode, followed by ReLU and
/// dropout as in `options`. Returns `None` if the kernels do not support these tensors.
pub(crate) fn batch_norm(
    input: &Tensor,
    [weight, bias]: [&Tensor; 2],
    statistics: Option<Statistics<'_>>,
    options: &BatchNormOptions,
) -> Result<Option<Tensor>> {
    let [mean, var, tracked] = [0, 1, 2].map(|at| handle(statistics.map(|all| all[at])));
    optional_tensor(|out| {
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
    })
}

/// Computes batch norm of 16-bit images `[N, C, H, W]` in channels_last, over all dimensions except
/// the channels, in training mode. If a residual is given, then adds the residual and applies ReLU.
/// Otherwise, applies ReLU only if `options` say so. Returns `None` if the kernels do not support
/// these tensors.
pub(crate) fn batch_norm_images(
    input: &Tensor,
    residual: Option<&Tensor>,
    [weight, bias]: [&Tensor; 2],
    statistics: Option<Statistics<'_>>,
    options: &ImageNormOptions,
) -> Result<Option<Tensor>> {
    let [mean, var, tracked] = [0, 1, 2].map(|at| handle(statistics.map(|all| all[at])));
    let (input, residual) = (input.as_ptr(), handle(residual));
    let (weight, bias) = (weight.as_ptr(), bias.as_ptr());
    optional_tensor(|out| {
        checked!(amp_batch_norm_images(
            input,
            residual,
            weight,
            bias,
            mean,
            var,
            tracked,
            &raw const *options,
            out,
        ))
    })
}

/// Computes layer norm along the last dimension, in training mode, followed by GELU and dropout as
/// in `options`. If a residual is given, normalizes the sum of the residual and of `input` after
/// dropout. Returns `None` if the kernels do not support these tensors.
pub(crate) fn layer_norm(
    input: &Tensor,
    residual: Option<&Tensor>,
    [weight, bias]: [&Tensor; 2],
    options: &LayerNormOptions,
) -> Result<Option<Tensor>> {
    let (input, residual) = (input.as_ptr(), handle(residual));
    let (weight, bias) = (weight.as_ptr(), bias.as_ptr());
    optional_tensor(|out| {
        checked!(amp_layer_norm(input, residual, weight, bias, &raw const *options, out))
    })
}

/// Computes the layer norm of `input` along the last dimension. Returns an alias of `input`, to be
/// passed to [`residual_add`], and the layer norm's output. If `narrow` is true, the output has the
/// autocast dtype. In the backward pass, the layer norm's kernel also adds the gradient of the
/// alias to the gradient of `input`. Returns `None` if the kernels do not support these tensors.
pub(crate) fn residual_norm(
    input: &Tensor,
    [weight, bias]: [&Tensor; 2],
    eps: f64,
    narrow: bool,
) -> Result<Option<(Tensor, Tensor)>> {
    let (input, weight, bias) = (input.as_ptr(), weight.as_ptr(), bias.as_ptr());
    let narrow = narrow.into();
    optional_pair(|stream, normal| {
        checked!(amp_residual_norm(input, weight, bias, eps, narrow, stream, normal))
    })
}

/// Computes `stream` + `branch`, the addition of a residual block.
pub(crate) fn residual_add(stream: &Tensor, branch: &Tensor) -> Result<Tensor> {
    made(|out| checked!(amp_residual_add(stream.as_ptr(), branch.as_ptr(), out)))
}

/// Computes the mean cross entropy of logits. The targets are int64 class indices or probabilities.
/// Targets of the class `left_out` are ignored. The fraction `smoothing` of each target is divided
/// equally among all classes. If `z` is not 0, adds z·(log Σ exp(logits))² for each target. Returns
/// `None` if `z` is not 0 and the kernels do not support these arguments.
pub(crate) fn cross_entropy(
    logits: &Tensor,
    targets: &Tensor,
    smoothing: f64,
    left_out: i64,
    z: f64,
) -> Result<Option<Tensor>> {
    let (logits, targets) = (logits.as_ptr(), targets.as_ptr());
    optional_tensor(|out| checked!(amp_cross_entropy(logits, targets, smoothing, left_out, z, out)))
}

/// Returns the number of int64 targets other than -100, as an f64 scalar on the device of the
/// targets.
///
/// # Errors
/// When a target on the CPU is not from 0 to `classes` - 1. On other devices, such a target makes
/// the returned number NaN.
pub(crate) fn counted_classes(targets: &Tensor, classes: i64) -> Result<Tensor> {
    made(|out| checked!(amp_counted_classes(targets.as_ptr(), classes, out)))
}

/// Counts the correct predictions. Returns two numbers, f64 `[2]` on the device. The first is the
/// number of examples whose largest logit, along the second dimension, is that of the target's
/// class. If an example has a NaN logit and its target is not -100, this number is NaN. The second
/// is the number of targets other than -100.
pub(crate) fn correct_counts(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    made(|out| checked!(amp_hits(logits.as_ptr(), targets.as_ptr(), out)))
}

/// Sets elements of a CUDA tensor to zero with probability `p`, between 0 and 1. Each group of
/// `together` neighbouring elements is set to zero or kept as a whole.
pub(crate) fn dropout(input: &Tensor, p: f64, together: i64) -> Result<Tensor> {
    made(|out| checked!(amp_dropout(input.as_ptr(), p, together, out)))
}
