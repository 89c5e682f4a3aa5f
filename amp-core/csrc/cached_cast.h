// The cached cast of a tensor: the tensor in an autocast region's dtype, written by the kernel that
// made the tensor.
#pragma once

#include <optional>

#include "auxiliary.h"

namespace amp {

struct CachedCast;

inline void attach_cached_cast(const at::Tensor& tensor, const at::Tensor& cast) {
  attach_auxiliary<CachedCast>(tensor, cast);
}

// The result of casting `tensor`, in its shape: its cached cast, or a view of its base's. Undefined
// if there is none of this dtype, the tensor was modified since, or gradients would take another
// path.
inline std::optional<at::Tensor> cached_cast_of(const at::Tensor& tensor, at::ScalarType dtype) {
  const at::TensorBase& whole = tensor.is_view() ? tensor._base() : tensor;
  const auto cached = attached_auxiliary<CachedCast>(whole);
  if (!cached.defined() || cached.scalar_type() != dtype || tensor.numel() != whole.numel() ||
      !tensor.is_contiguous() || tensor.storage_offset() != whole.storage_offset()) {
    return std::nullopt;
  }
  // A detached tensor has no history, or a history that begins with it.
  const bool follows = tensor.requires_grad() && !tensor.is_leaf();
  if (cached.requires_grad() != follows || tensor.requires_grad() != follows) return std::nullopt;
  return cached.sizes() == tensor.sizes() ? cached : cached.view(tensor.sizes());
}

}  // namespace amp
