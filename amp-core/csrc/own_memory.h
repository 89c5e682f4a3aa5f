// Decides whether a tensor's memory may be overwritten in a backward pass.
#pragma once

#include <ATen/core/Tensor.h>

namespace amp {

// Returns whether no other tensor uses this tensor's memory. A view refers to the tensor of which it is a view;
// autograd also passes views of gradients to backward passes. Nothing else may then refer to that other tensor.
inline bool has_own_memory(const at::Tensor& tensor) {
  const size_t tensors = tensor.storage().use_count();
  return tensor.is_view() ? tensor._base().use_count() == 1 && tensors == 2 : tensors == 1;
}

}  // namespace amp
