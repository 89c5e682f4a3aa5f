// Sums of a gradient's columns that the kernel that made it has found as well: the gradient of a bias.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/TensorImpl.h>
#include <c10/util/intrusive_ptr.h>

#include <optional>
#include <utility>

namespace amp {

// Travels with the tensor whose sums it has, as that was then.
struct ColumnSums : c10::BackendMeta {
  ColumnSums(at::Tensor of_columns, int64_t of_version)
      : sums(std::move(of_columns)), version(of_version) {}

  at::Tensor sums;
  int64_t version;
};

inline void note_column_sums(const at::Tensor& gradient, const at::Tensor& sums) {
  auto* impl = gradient.unsafeGetTensorImpl();
  impl->set_backend_meta(c10::make_intrusive<ColumnSums>(sums, gradient._version()));
}

// Nothing where nobody has found them, somebody has taken them, or something was added to the gradient
// since.
inline std::optional<at::Tensor> take_column_sums(const at::Tensor& gradient) {
  auto* impl = gradient.unsafeGetTensorImpl();
  const auto known = impl->get_backend_meta_intrusive_ptr();
  const auto* own = dynamic_cast<const ColumnSums*>(known.get());
  if (own == nullptr || own->version != gradient._version()) return std::nullopt;
  // Whose they are now can have them as they are, and not a copy.
  impl->set_backend_meta(nullptr);
  return own->sums;
}

}  // namespace amp
