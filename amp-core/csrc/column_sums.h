// Sums of a gradient's columns that the kernel that made it has found as well: the gradient of a bias.
#pragma once

#include "tensor_metadata.h"

namespace amp {

struct ColumnSums;

inline void note_column_sums(const at::Tensor& gradient, const at::Tensor& sums) {
  note_beside<ColumnSums>(gradient, sums);
}

// Undefined where nobody has found them, somebody has taken them, or something was added to the gradient
// since.
inline at::Tensor take_column_sums(const at::Tensor& gradient) {
  auto sums = known_beside<ColumnSums>(gradient);
  // Whose they are now can have them as they are, and not a copy.
  if (sums.defined()) gradient.unsafeGetTensorImpl()->set_backend_meta(nullptr);
  return sums;
}

}  // namespace amp
