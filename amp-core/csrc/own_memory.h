// Decides whether a tensor's memory may be overwritten in a backward pass.
#pragma once

#include <ATen/core/Tensor.h>

namespace amp {

// Returns whether no other tensor uses the memory of this tensor. A view shares its memory with the tensor of which it
// is a view. For a view, nothing else may refer to that tensor. (Autograd makes views of gradients in backward
// passes.)
inline bool has_own_memory(const at::Tensor& tensor) {
  const size_t tensors = tensor.storage().use_count();
  return tensor.is_view() ? tensor._base().use_count() == 1 && tensors == 2 : tensors == 1;
}

}  // namespace amp
