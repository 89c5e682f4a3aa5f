// Column sums of a gradient, computed by the kernel that wrote the gradient. They are the gradient of a
// bias.
#pragma once

#include "tensor_metadata.h"

namespace amp {

struct ColumnSums;

inline void note_column_sums(const at::Tensor& gradient, const at::Tensor& sums) {
  note_beside<ColumnSums>(gradient, sums);
}

// Returns the column sums of `gradient` and removes them from it. The result is undefined if no kernel computed the
// sums, if they were taken before, or if something was added to the gradient since.
inline at::Tensor take_column_sums(const at::Tensor& gradient) {
  auto sums = known_beside<ColumnSums>(gradient);
  // Afterwards nothing else refers to the sums, so autograd can use them without a copy.
  if (sums.defined()) gradient.unsafeGetTensorImpl()->set_backend_meta(nullptr);
  return sums;
}

}  // namespace amp
