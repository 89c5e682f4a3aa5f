// The CUDA kernels of this crate. NVRTC, which is part of libtorch, compiles the kernels on the
// machine on which they run, so the build needs no CUDA.
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

// Returns the name of a dtype in the kernels' sources. Returns null if the kernels do not support
// the dtype.
inline const char* kernel_dtype(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat: return "float";
    case at::kDouble: return "double";
    case at::kHalf: return "f16";
    case at::kBFloat16: return "bf16";
    default: return nullptr;
  }
}

// Returns whether the dtype is f16 or bf16.
inline bool is_half(at::ScalarType dtype) { return dtype == at::kHalf || dtype == at::kBFloat16; }

// Returns whether the tensor's memory is aligned for vectors of four elements.
inline bool is_aligned(const at::Tensor& tensor) {
  const auto size = 4 * tensor.element_size();
  return tensor.is_contiguous() && reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % size == 0;
}

// Returns the tensor, or a copy whose memory is aligned for vectors of four elements. The tensor
// may be undefined.
inline at::Tensor aligned(const at::Tensor& tensor) {
  if (!tensor.defined() || is_aligned(tensor)) return tensor;
  return tensor.clone(at::MemoryFormat::Contiguous);
}

// Returns the address of the memory that a kernel reads or writes. Returns null for an undefined
// tensor.
inline void* data(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.mutable_data_ptr() : nullptr;
}
inline const void* const_data(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr() : nullptr;
}

// Throws an exception if second derivatives are requested. Must be called in the backward pass of a
// layer whose gradient a kernel computes. Otherwise autograd would treat the kernel's results as
// constants.
inline void refuse_second_derivative(const char* layer) {
  if (!c10::GradMode::is_enabled()) return;
  throw std::runtime_error(std::string("second derivatives through ") + layer +
                           " (create_graph) exist only on the CPU, not on CUDA");
}

// A source file of `kernels/`, and the modules that were compiled from it.
class KernelSource {
 public:
  // Names a file of `kernels/`. `text` is its content, and must live as long as this object.
  KernelSource(const char* file, const char* text) : file_(file), text_(text) {}

  // Launches the kernel `name` on the device's current stream. `types` are the values of the macros
  // with which the file is compiled: AMP_T and, if the file uses them, AMP_P, AMP_Q, AMP_R and
  // AMP_N. AMP_N is a number, and the other macros are dtypes, as named by kernel_dtype. The first
  // launch on a device with these types compiles the file. A file cannot be compiled while a CUDA
  // graph is captured.
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
