// Replaces libtorch's CPU kernels of some operators in the whole process.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <memory>
#include <optional>

namespace amp::cpu_kernels {

// Returns a library that holds the kernels which `add` registers in it. The kernels are in use while the library exists.
template <typename Add>
std::unique_ptr<torch::Library> replace(const char* file, uint32_t line, Add&& add) {
  // libtorch warns when a kernel is replaced.
  struct Silent final : c10::WarningHandler {
    void process(const c10::Warning&) override {}
  } silent;
  const c10::WarningUtils::WarningHandlerGuard guard(&silent);
  auto library =
      std::make_unique<torch::Library>(torch::Library::IMPL, "aten", c10::DispatchKey::CPU, file, line);
  add(*library);
  return library;
}

inline at::Tensor wide(const at::Tensor& tensor) { return tensor.to(at::kFloat); }

inline std::optional<at::Tensor> wide(const std::optional<at::Tensor>& tensor) {
  return tensor && tensor->defined() ? std::optional(wide(*tensor)) : tensor;
}

// Casts a result to the caller's dtype. Leaves a result undefined that was not asked for.
inline at::Tensor rounded(const at::Tensor& wide, at::ScalarType type) {
  return wide.defined() ? wide.to(type) : wide;
}

}  // namespace amp::cpu_kernels
