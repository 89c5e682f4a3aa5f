// Weights in 16 bits while an autocast region lasts.
#pragma once

#include <ATen/core/Tensor.h>

namespace amp {

// An f32 tensor of a CUDA device in 16 bits, without a gradient. The weights that a region used are
// cast by one kernel when the next that begins with the same one asks for its first.
at::Tensor cast_weight(const at::Tensor& weight, at::ScalarType dtype);

// A convolution's weight in 16 bits and channels_last, without a gradient. An f32 one, which is given
// within an autocast region, is made once a region.
at::Tensor cast_filter(const at::Tensor& weight, at::ScalarType dtype);

// The outermost autocast region of this thread has ended: weights may change.
void end_cast_weights();

}  // namespace amp
