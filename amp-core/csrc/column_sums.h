// Sums of a gradient's columns, which are the gradient of a bias, as an auxiliary result of the
// kernel that made the gradient.
#pragma once

#include "auxiliary.h"

namespace amp {

struct ColumnSums;

inline void note_column_sums(const at::Tensor& gradient, const at::Tensor& sums) {
  attach_auxiliary<ColumnSums>(gradient, sums);
}

// Undefined if no kernel computed them, they were taken already, or something was added to the
// gradient since.
inline at::Tensor take_column_sums(const at::Tensor& gradient) {
  auto sums = attached_auxiliary<ColumnSums>(gradient);
  // The caller becomes the only owner, so it may use them without a copy.
  if (sums.defined()) gradient.unsafeGetTensorImpl()->set_backend_meta(nullptr);
  return sums;
}

}  // namespace amp
