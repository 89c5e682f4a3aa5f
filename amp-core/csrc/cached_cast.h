// A tensor's twin: the same in the dtype of an autocast region, from the kernel that made the tensor.
#pragma once

#include <optional>

#include "tensor_metadata.h"

namespace amp {

struct Twin;

inline void note_twin(const at::Tensor& tensor, const at::Tensor& cast) {
  note_beside<Twin>(tensor, cast);
}

// What casting `tensor` gives, in its shape: the twin of it, or of all of what it is a view of. Nothing
// where there is none of that dtype, the tensor was written to since, or gradients would go elsewhere.
inline std::optional<at::Tensor> twin_of(const at::Tensor& tensor, at::ScalarType dtype) {
  const at::TensorBase& whole = tensor.is_view() ? tensor._base() : tensor;
  const auto twin = known_beside<Twin>(whole);
  if (!twin.defined() || twin.scalar_type() != dtype || tensor.numel() != whole.numel() ||
      !tensor.is_contiguous() || tensor.storage_offset() != whole.storage_offset()) {
    return std::nullopt;
  }
  // One that was detached has no history, or one that begins with it.
  const bool follows = tensor.requires_grad() && !tensor.is_leaf();
  if (twin.requires_grad() != follows || tensor.requires_grad() != follows) return std::nullopt;
  return twin.sizes() == tensor.sizes() ? twin : twin.view(tensor.sizes());
}

}  // namespace amp
