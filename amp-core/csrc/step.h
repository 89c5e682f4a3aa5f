// An optimizer's step on a CUDA device, by a kernel of our own.
#pragma once

#include <ATen/core/Tensor.h>

#include <initializer_list>
#include <vector>

#include "kernel.h"
#include "list.h"
#include "launch_lists.h"

// What the device knows of a step, as it crosses from Rust: `rates` is f64 [2], the others are scalars,
// `found_inf` of f32, and may be null.
extern "C" struct AmpOnDevice {
  amp::Handle rates, factor, found_inf;
};

namespace amp {

class Step {
 public:
  // The lists of one kernel call (see StepTensors), of `count` tensors each. All parameters have one
  // dtype, and so have all gradients. A tensor of a parameter's shape has that parameter's strides.
  Step(const Handle* const* lists, size_t count, const AmpOnDevice& known);

  // Starts kernel "step" of `source` on all elements; state is of the parameters' dtype.
  void run(KernelSource& source, const void* options);

  // What kernels are compiled for where averages have this dtype.
  Types types(at::ScalarType averages) const;

  std::vector<Start<StepTensors>>& starts() { return starts_; }

  // Starts a kernel with a thread for each tensor.
  void on_tensors(KernelSource& source, const Types& types, const char* name,
                  Start<StepTensors>& start);

  // Starts a kernel on all elements; `last` points to its arguments beyond those of all steps.
  void on_elements(KernelSource& source, const Types& types, const char* name,
                   Start<StepTensors>& start, std::initializer_list<const void*> last);

 private:
  std::vector<Start<StepTensors>> starts_;
  c10::Device device_;
  at::ScalarType dtype_ = at::kFloat, grad_dtype_ = at::kFloat;
  OnDevice known_{};
  at::Tensor factor_;
  // Gradients of another layout than their parameter's.
  std::vector<at::Tensor> copies_;
};

}  // namespace amp
