// Kernels of our own for CUDA devices, compiled where they run by the compiler that comes with
// libtorch (NVRTC), so that building needs no CUDA.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/core/GradMode.h>
#include <c10/core/ScalarType.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace amp {

using Types = std::vector<std::string>;

// The kernels' name of a dtype, or null.
inline const char* kernel_dtype(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat: return "float";
    case at::kDouble: return "double";
    case at::kHalf: return "f16";
    case at::kBFloat16: return "bf16";
    default: return nullptr;
  }
}

// Whether it has 16 bits.
inline bool is_half(at::ScalarType dtype) { return dtype == at::kHalf || dtype == at::kBFloat16; }

// Whether the kernels' vectors of four elements lie well in it.
inline bool is_aligned(const at::Tensor& tensor) {
  const auto size = 4 * tensor.element_size();
  return tensor.is_contiguous() && reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % size == 0;
}

// A tensor as the kernels' vectors read it; may be undefined.
inline at::Tensor aligned(const at::Tensor& tensor) {
  if (!tensor.defined() || is_aligned(tensor)) return tensor;
  return tensor.clone(at::MemoryFormat::Contiguous);
}

// What a kernel writes to, and what it reads; null for no tensor.
inline void* data(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.mutable_data_ptr() : nullptr;
}
inline const void* const_data(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr() : nullptr;
}

// For a backward pass that is a kernel: autograd would take what it gives for constants.
inline void refuse_second_derivative(const char* layer) {
  if (!c10::GradMode::is_enabled()) return;
  throw std::runtime_error(std::string("second derivatives through ") + layer +
                           " (create_graph) can be had on the CPU alone, not on CUDA");
}

// A source file of `kernels/`.
class KernelSource {
 public:
  // `text` must live as long as this does.
  KernelSource(const char* file, const char* text) : file_(file), text_(text) {}

  // Starts kernel `name` on the device's current stream. `types` are the file's T and, if it has
  // them, P, Q and R, by kernel_dtype's names, and then a number, AMP_N. The first start on a device with them compiles the
  // file, which cannot be done while a graph is captured.
  void launch(const char* name, const Types& types, c10::Device device, unsigned blocks,
              unsigned threads, void** arguments);

 private:
  void* module(c10::Device device, const Types& types);

  const char* file_;
  const char* text_;
  std::mutex mutex_;
  std::map<std::pair<int, Types>, void*> modules_;
};

}  // namespace amp
