// 16-bit casts of weights, kept for the duration of an autocast region.
#pragma once

#include <ATen/core/Tensor.h>

namespace amp {

// Casts an f32 tensor on a CUDA device to 16 bits, without a gradient. The first cast in an autocast
// region looks for an earlier region that began with the same weight. If there is one, a single kernel
// casts all weights of the earlier region.
at::Tensor cast_weight(const at::Tensor& weight, at::ScalarType dtype);

// Casts a convolution's weight to 16 bits and channels_last, without a gradient. Within an autocast region
// an f32 weight is cast once.
at::Tensor cast_filter(const at::Tensor& weight, at::ScalarType dtype);

// Called when the thread's outermost autocast region has ended. Weights may change from then on.
void end_cast_weights();

}  // namespace amp
