// The backward pass of layer normalisation after a residual addition (post-norm) or inside a residual branch
// (pre-norm), with kernels/norm_rows.cu. In both cases, the norm's input is a sum: residual stream + dropout(branch).
// Here, `branch` is the last tensor that was added to the residual stream before the norm, such as the output of
// attention.
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

// The gradients of the residual stream that bypasses the norm, of the norm's output, and of the cached cast of the
// output. Each may be undefined.
struct Incoming {
  at::Tensor stream, out, twin;
};

struct Outgoing {
  // `in` is the gradient of the norm's input, including the gradient of the residual stream. `branch` is the gradient
  // of the branch: `in` after the backward pass of the branch's dropout, in the dtype of the cached cast. `column_sums`
  // are the sums of the columns of `branch`: the gradient of the bias of the layer that computed the branch.
  at::Tensor in, branch, column_sums;
  at::Tensor weight, bias;
};

// Returns whether the kernels have enough registers for this number of columns.
bool fits(int64_t columns);

// Runs the backward pass. `before` is the branch's dropout. With `wants_branch`, the gradient of the branch is a
// separate tensor. Without `wants_branch`, the caller uses the gradient of the norm's input as the gradient of the
// branch.
Outgoing backward(const Normalised& from, const Incoming& given, const amp::Dropout& before,
                  bool wants_branch);

}  // namespace amp::norm_rows
