// Whether a tensor's memory may be overwritten in a backward pass.
#pragma once

#include <ATen/core/Tensor.h>

namespace amp {

// Whether no other tensor has this tensor's memory. A view holds the tensor that it is a view of, also in backward passes,
// where autograd makes views of gradients; then that tensor may not be held by anything else.
inline bool has_own_memory(const at::Tensor& tensor) {
  const size_t tensors = tensor.storage().use_count();
  return tensor.is_view() ? tensor._base().use_count() == 1 && tensors == 2 : tensors == 1;
}

}  // namespace amp
