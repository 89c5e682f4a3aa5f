// Copies by a kernel (kernels/copy.cu).
#pragma once

#include <ATen/core/Tensor.h>

namespace amp::copy {

// Copies a contiguous CUDA tensor to contiguous pinned memory of the same size, on the device's current stream. The
// device pauses for 8 µs before and after a transfer of its own, but not around a kernel (H200), so that this is faster
// for a few bytes.
void to_pinned(const at::Tensor& to, const at::Tensor& from);

}  // namespace amp::copy
