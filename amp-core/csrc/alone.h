// Whether a gradient can be written to.
#pragma once

#include <ATen/core/Tensor.h>

namespace amp {

// Whether nobody else holds the tensor, or the tensor that it is a view of.
inline bool is_alone(const at::Tensor& tensor) {
  if (tensor.use_count() != 1) return false;
  const auto own = tensor.storage().use_count();
  return tensor.is_view() ? tensor._base().use_count() == 1 && own == 2 : own == 1;
}

}  // namespace amp
