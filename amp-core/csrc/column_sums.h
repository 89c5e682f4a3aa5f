// The sums of a gradient's columns, which are the gradient of a bias. The kernel that wrote the gradient also
// computed the sums.
#pragma once

#include "tensor_metadata.h"

namespace amp {

struct ColumnSums;

inline void note_column_sums(const at::Tensor& gradient, const at::Tensor& sums) {
  note_beside<ColumnSums>(gradient, sums);
}

// Returns the column sums of `gradient`, and detaches the sums from `gradient`. The result is undefined if no kernel
// computed the sums, if an earlier call has returned the sums, or if something was added to `gradient` after the
// kernel.
inline at::Tensor take_column_sums(const at::Tensor& gradient) {
  auto sums = known_beside<ColumnSums>(gradient);
  // After this, nothing else refers to the sums, so that autograd can use them without a copy.
  if (sums.defined()) gradient.unsafeGetTensorImpl()->set_backend_meta(nullptr);
  return sums;
}

}  // namespace amp
