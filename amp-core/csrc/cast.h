// Casts of weights to 16 bits, cached for an autocast region.
#pragma once

#include <ATen/core/Tensor.h>

namespace amp {

// An f32 tensor of a CUDA device, cast to 16 bits without a gradient. When a region requests its
// first weight, one kernel casts all weights that the previous region with the same first weight
// used.
at::Tensor cast_weight(const at::Tensor& weight, at::ScalarType dtype);

// A convolution's weight in 16 bits and channels_last, without a gradient. An f32 weight, which
// occurs only inside an autocast region, is cast once per region.
at::Tensor cast_filter(const at::Tensor& weight, at::ScalarType dtype);

// Called when the outermost autocast region of this thread ends, because weights may change
// afterwards.
void end_cast_weights();

}  // namespace amp
