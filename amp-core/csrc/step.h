// An optimizer's step on a CUDA device, by a kernel of our own.
#pragma once

#include <ATen/core/Tensor.h>

#include <initializer_list>
#include <vector>

#include "kernel.h"
#include "list.h"
#include "starts.h"

// What the device knows of a step, as it crosses from Rust: `rates` is f64 [2], the others are scalars,
// `found_inf` of f32, and may be null.
extern "C" struct AmpOnDevice {
  amp::Handle rates, factor, found_inf;
};

namespace amp {

class Step {
 public:
  // The lists are a kernel's (see StepTensors), of `count` tensors each; parameters and gradients are
  // of one dtype, and what has a parameter's shape lies as it does.
  Step(const Handle* const* lists, size_t count, const AmpOnDevice& known);

  // Starts kernel "step" of `source`, whose only dtype is the parameters', on all elements.
  void run(KernelSource& source, const void* options);

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
  OnDevice known_{};
  at::Tensor factor_;
  // Gradients of another layout than their parameter's.
  std::vector<at::Tensor> copies_;
};

}  // namespace amp
