// An optimizer's step on a CUDA device, by a kernel of our own.
#pragma once

#include <ATen/core/Tensor.h>

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
  // The lists are a kernel's (see StepTensors), of `count` tensors each; parameters, gradients and
  // state are of one dtype, and state lies as its parameter does.
  Step(const Handle* const* lists, size_t count, const AmpOnDevice& known);

  // Starts kernel `name` of `source` with a thread for each tensor.
  void for_tensors(KernelSource& source, const char* name);

  // Starts kernel "step" of `source` on all elements.
  void run(KernelSource& source, const void* options);

 private:
  std::vector<Start<StepTensors>> starts_;
  c10::Device device_;
  OnDevice known_{};
  at::Tensor factor_;
  // Gradients of another layout than their parameter's.
  std::vector<at::Tensor> copies_;
};

}  // namespace amp
