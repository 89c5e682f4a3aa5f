// The cached cast ("twin") of a tensor: its values in the dtype of autocast. The kernel that wrote the tensor
// also wrote the cached cast, so that the next layer need not cast the tensor.
#pragma once

#include <optional>

#include "tensor_metadata.h"

namespace amp {

struct Twin;

inline void note_twin(const at::Tensor& tensor, const at::Tensor& cast) {
  note_beside<Twin>(tensor, cast);
}

// Returns the cached cast of `tensor` in the shape of `tensor`. If `tensor` is a view of all elements of another
// tensor, returns the cached cast of that tensor. Returns std::nullopt in three cases: no cast to this dtype is cached,
// the tensor was written to after the cast, or gradients through the cast would not reach the tensor.
inline std::optional<at::Tensor> twin_of(const at::Tensor& tensor, at::ScalarType dtype) {
  const at::TensorBase& whole = tensor.is_view() ? tensor._base() : tensor;
  const auto twin = known_beside<Twin>(whole);
  if (!twin.defined() || twin.scalar_type() != dtype || tensor.numel() != whole.numel() ||
      !tensor.is_contiguous() || tensor.storage_offset() != whole.storage_offset()) {
    return std::nullopt;
  }
  // The cast can replace the tensor if both have an autograd history, or if neither of the two requires a
  // gradient. A leaf that requires a gradient has no history, so gradients through the cast would not reach it.
  const bool follows = tensor.requires_grad() && !tensor.is_leaf();
  if (twin.requires_grad() != follows || tensor.requires_grad() != follows) return std::nullopt;
  return twin.sizes() == tensor.sizes() ? twin : twin.view(tensor.sizes());
}

}  // namespace amp
