// Auxiliary results: a second tensor that a kernel computed, attached to the kernel's output
// tensor.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/TensorImpl.h>
#include <c10/util/intrusive_ptr.h>

#include <utility>

namespace amp {

// `What` distinguishes the kinds.
template <typename What>
struct Auxiliary : c10::BackendMeta {
  Auxiliary(at::Tensor found, int64_t of_version) : value(std::move(found)), version(of_version) {}

  at::Tensor value;
  // The tensor's version at that time.
  int64_t version;
};

template <typename What>
void attach_auxiliary(const at::Tensor& tensor, const at::Tensor& value) {
  auto* impl = tensor.unsafeGetTensorImpl();
  impl->set_backend_meta(c10::make_intrusive<Auxiliary<What>>(value, tensor._version()));
}

// Undefined if there is none, or the tensor was modified since.
template <typename What>
at::Tensor attached_auxiliary(const at::TensorBase& tensor) {
  const auto known = tensor.unsafeGetTensorImpl()->get_backend_meta_intrusive_ptr();
  const auto* own = dynamic_cast<const Auxiliary<What>*>(known.get());
  return own != nullptr && own->version == tensor._version() ? own->value : at::Tensor();
}

}  // namespace amp
