// An optimizer's step on a CUDA device, by one of this crate's kernels.
#pragma once

#include <ATen/core/Tensor.h>

#include <initializer_list>
#include <vector>

#include "kernel.h"
#include "list.h"
#include "launch_lists.h"

// The values of a step that are in device memory, as Rust passes them. `rates` is f64 [2]. `factor` and
// `found_inf` are scalars and may be null. `found_inf` is f32.
extern "C" struct AmpOnDevice {
  amp::Handle rates, factor, found_inf;
};

namespace amp {

class Step {
 public:
  // Divides the lists into lists for single kernel calls (see StepTensors). Each list has `count` tensors. All
  // parameters have one dtype, and all gradients have one dtype. A gradient is copied if its strides differ from the
  // strides of its parameter. The optimizer state must have the parameter's strides.
  Step(const Handle* const* lists, size_t count, const AmpOnDevice& known);

  // Runs the kernel "step" of `source` on all elements. The optimizer state has the parameters' dtype.
  void run(KernelSource& source, const void* options);

  // Returns the dtypes for which the kernels are compiled if the averages have the dtype `averages`.
  Types types(at::ScalarType averages) const;

  std::vector<Start<StepTensors>>& starts() { return starts_; }

  // Launches a kernel with one thread for each tensor.
  void on_tensors(KernelSource& source, const Types& types, const char* name,
                  Start<StepTensors>& start);

  // Launches a kernel on all elements. `last` points to the arguments after those that every kernel gets.
  void on_elements(KernelSource& source, const Types& types, const char* name,
                   Start<StepTensors>& start, std::initializer_list<const void*> last);

 private:
  std::vector<Start<StepTensors>> starts_;
  c10::Device device_;
  at::ScalarType dtype_ = at::kFloat, grad_dtype_ = at::kFloat;
  OnDevice known_{};
  at::Tensor factor_;
  // Copies of those gradients whose layout differs from the layout of their parameter.
  std::vector<at::Tensor> copies_;
};

}  // namespace amp
