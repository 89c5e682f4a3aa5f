// A tensor's twin: the same in the dtype of an autocast region, from the kernel that made the tensor.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/TensorImpl.h>
#include <c10/util/intrusive_ptr.h>

#include <optional>
#include <utility>

namespace amp {

// Travels with the tensor, as that was then.
struct Twin : c10::BackendMeta {
  Twin(at::Tensor cast_then, int64_t of_version)
      : cast(std::move(cast_then)), version(of_version) {}

  at::Tensor cast;
  int64_t version;
};

inline void note_twin(const at::Tensor& tensor, const at::Tensor& cast) {
  auto* impl = tensor.unsafeGetTensorImpl();
  impl->set_backend_meta(c10::make_intrusive<Twin>(cast, tensor._version()));
}

// What casting `tensor` gives, in its shape: the twin of it, or of all of what it is a view of. Nothing
// where there is none of that dtype, the tensor was written to since, or gradients would go elsewhere.
inline std::optional<at::Tensor> twin_of(const at::Tensor& tensor, at::ScalarType dtype) {
  const at::TensorBase& whole = tensor.is_view() ? tensor._base() : tensor;
  const auto known = whole.unsafeGetTensorImpl()->get_backend_meta_intrusive_ptr();
  const auto* twin = dynamic_cast<const Twin*>(known.get());
  if (twin == nullptr || twin->cast.scalar_type() != dtype ||
      twin->version != tensor._version() || tensor.numel() != whole.numel() ||
      !tensor.is_contiguous() || tensor.storage_offset() != whole.storage_offset()) {
    return std::nullopt;
  }
  // One that was detached has no history, or one that begins with it.
  const bool follows = tensor.requires_grad() && !tensor.is_leaf();
  if (twin->cast.requires_grad() != follows || tensor.requires_grad() != follows) {
    return std::nullopt;
  }
  return twin->cast.sizes() == tensor.sizes() ? twin->cast : twin->cast.view(tensor.sizes());
}

}  // namespace amp
