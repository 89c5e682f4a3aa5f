// The backward pass of layer normalisation after a residual addition (post-norm) or inside a residual branch
// (pre-norm), with kernels/norm_rows.cu.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>

#include "dropout.h"

namespace amp::norm_rows {

// The input of the normalisation, its statistics and the weights.
struct Normalised {
  at::Tensor in, weight, means, inverses;
  // The dtype of the cached cast of the output, under autocast.
  at::ScalarType cast;
};

// The gradients of the residual stream around the norm, of the norm's output, and of the cached cast of the output.
// Each may be undefined.
struct Incoming {
  at::Tensor stream, out, twin;
};

struct Outgoing {
  // `in` is the gradient of the norm's input, including the gradient of the residual stream. `branch` is the gradient
  // of the branch: the gradient `in` after dropout, in the dtype of the cached cast. `column_sums` are the sums of the
  // columns of `branch`.
  at::Tensor in, branch, column_sums;
  at::Tensor weight, bias;
};

// Returns whether the kernels have enough registers for this number of columns.
bool fits(int64_t columns);

// Runs the backward pass. With `wants_branch`, the gradient of the branch is a separate tensor. Without it, the
// gradient of the branch is the gradient of the norm's input.
Outgoing backward(const Normalised& from, const Incoming& given, const amp::Dropout& before,
                  bool wants_branch);

}  // namespace amp::norm_rows
