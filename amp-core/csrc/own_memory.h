// Decides whether a tensor's memory may be overwritten in a backward pass.
#pragma once

#include <ATen/core/Tensor.h>

namespace amp {

// Returns whether no other tensor uses the memory of this tensor. A view shares its memory with its base tensor.
// Therefore the function returns true for a view only if nothing else refers to the base tensor. (Autograd makes views
// of gradients in backward passes.)
inline bool has_own_memory(const at::Tensor& tensor) {
  const size_t tensors = tensor.storage().use_count();
  return tensor.is_view() ? tensor._base().use_count() == 1 && tensors == 2 : tensors == 1;
}

}  // namespace amp
