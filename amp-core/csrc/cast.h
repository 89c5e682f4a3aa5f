// Casts weights to 16 bits and keeps the casts until the autocast region ends.
#pragma once

#include <ATen/core/Tensor.h>

namespace amp {

// Casts an f32 tensor on a CUDA device to 16 bits, without a gradient. The first cast in an autocast region looks for
// an earlier region that began with the same weight. If such a region exists, a single kernel casts all weights that
// this earlier region used.
at::Tensor cast_weight(const at::Tensor& weight, at::ScalarType dtype);

// Casts the weight of a convolution to 16 bits and channels_last, without a gradient. Within an autocast
// region, an f32 weight is cast only once.
at::Tensor cast_filter(const at::Tensor& weight, at::ScalarType dtype);

// Drops all casts. Must be called when the outermost autocast region of the thread has ended, because the
// weights may change before the next region.
void end_cast_weights();

}  // namespace amp
