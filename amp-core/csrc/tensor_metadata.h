// Attaches a second result of a kernel, such as a sum or a cast, to the tensor that the kernel wrote.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/TensorImpl.h>
#include <c10/util/intrusive_ptr.h>

#include <utility>

namespace amp {

// A result that is attached to a tensor. `What` is the kind of result.
template <typename What>
struct Beside : c10::BackendMeta {
  Beside(at::Tensor found, int64_t of_version) : value(std::move(found)), version(of_version) {}

  at::Tensor value;
  // The tensor's version when the result was attached.
  int64_t version;
};

template <typename What>
void note_beside(const at::Tensor& tensor, const at::Tensor& value) {
  auto* impl = tensor.unsafeGetTensorImpl();
  impl->set_backend_meta(c10::make_intrusive<Beside<What>>(value, tensor._version()));
}

// Returns the result of the kind `What` that was attached to `tensor`. The result is undefined if nothing was
// attached, or if the tensor was written to after that.
template <typename What>
at::Tensor known_beside(const at::TensorBase& tensor) {
  const auto known = tensor.unsafeGetTensorImpl()->get_backend_meta_intrusive_ptr();
  const auto* own = dynamic_cast<const Beside<What>*>(known.get());
  return own != nullptr && own->version == tensor._version() ? own->value : at::Tensor();
}

}  // namespace amp
