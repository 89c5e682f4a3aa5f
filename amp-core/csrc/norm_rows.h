// The backward pass of layer normalisation with a residual before it or around it (kernels/norm_rows.cu).
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>

#include "dropout.h"

namespace amp::norm_rows {

// What was normalised, and how.
struct Normalised {
  at::Tensor in, weight, means, inverses;
  // Of what came out in an autocast region.
  at::ScalarType cast;
};

// Gradients of the residual stream around it, of what came out and of that cast; each may be undefined.
struct Incoming {
  at::Tensor stream, out, twin;
};

struct Outgoing {
  // Of what was normalised with that of the stream; and what goes on of it in the dtype of the cast, behind
  // dropout, with the sums of its columns.
  at::Tensor in, branch, column_sums;
  at::Tensor weight, bias;
};

// Whether the kernels have registers for so many columns.
bool fits(int64_t columns);

// `wants_branch` is whether the branch's gradient is another tensor than that of what was normalised.
Outgoing backward(const Normalised& from, const Incoming& given, const amp::Dropout& before,
                  bool wants_branch);

}  // namespace amp::norm_rows
