// Copies tensors with a kernel (kernels/copy.cu).
#pragma once

#include <ATen/core/Tensor.h>

namespace amp::copy {

// Copies a contiguous CUDA tensor to contiguous pinned memory of the same size, with a kernel on the device's current
// stream. For a few bytes a kernel is faster than a transfer: the device (H200) pauses for 8 µs before and after each
// transfer, but not before and after a kernel.
void to_pinned(const at::Tensor& to, const at::Tensor& from);

}  // namespace amp::copy
