// Random numbers for the kernels of this crate.
#pragma once

#include <ATen/Context.h>
#include <ATen/core/Generator.h>
#include <ATen/cuda/PhiloxCudaState.h>
#include <c10/core/Device.h>

#include <cstdint>
#include <mutex>

#include "driver.h"

namespace amp {

// Reserves a range of the random numbers of libtorch's generator of the device. In a CUDA graph, each replay
// gets a new range. Kernels read the range as `Random` of kernels/common.cuh.
inline at::PhiloxCudaState draw_random(c10::Device device) {
  // This is at::CUDAGeneratorImpl::philox_cuda_state. Its first argument is the generator object.
  static const auto draw = cuda_symbol<at::PhiloxCudaState (*)(void*, uint64_t)>(
      "_ZN2at17CUDAGeneratorImpl17philox_cuda_stateEm");
  auto generator = at::globalContext().defaultGenerator(device);
  const std::lock_guard<std::mutex> lock(generator.mutex());
  // The generator requires that offsets are multiples of four.
  return draw(generator.unsafeGetGeneratorImpl(), 4);
}

}  // namespace amp
