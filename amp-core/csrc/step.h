// An optimizer's step on a CUDA device by our own kernel.
#pragma once

#include <ATen/core/Tensor.h>

#include <initializer_list>
#include <vector>

#include "kernel.h"
#include "list.h"
#include "launches.h"

// The values that only the device has, as passed from Rust: `rates` is f64 [2]; the others are
// scalars (`found_inf` is f32) and may be null.
extern "C" struct AmpOnDevice {
  amp::Handle rates, factor, found_inf;
};

namespace amp {

class Step {
 public:
  // The lists of a kernel (see StepTensors), with `count` tensors each. Parameters have one dtype,
  // and so do gradients. State with a parameter's shape has the parameter's layout.
  Step(const Handle* const* lists, size_t count, const AmpOnDevice& known);

  // Launches the kernel "step" of `source` on all elements; state has the parameters' dtype.
  void run(KernelSource& source, const void* options);

  // The types for which kernels are compiled if averages have this dtype.
  Types types(at::ScalarType averages) const;

  std::vector<Launch<StepTensors>>& launches() { return launches_; }

  // Launches a kernel with a thread for each tensor.
  void on_tensors(KernelSource& source, const Types& types, const char* name,
                  Launch<StepTensors>& launch);

  // Launches a kernel on all elements; `last` points to the arguments that follow the common ones.
  void on_elements(KernelSource& source, const Types& types, const char* name,
                   Launch<StepTensors>& launch, std::initializer_list<const void*> last);

 private:
  std::vector<Launch<StepTensors>> launches_;
  c10::Device device_;
  at::ScalarType dtype_ = at::kFloat, grad_dtype_ = at::kFloat;
  OnDevice known_{};
  at::Tensor factor_;
  // Gradients whose layout differs from their parameter's.
  std::vector<at::Tensor> copies_;
};

}  // namespace amp
