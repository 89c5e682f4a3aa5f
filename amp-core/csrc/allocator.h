// CUDA's caching allocator, also before the process first uses CUDA.
#pragma once

#include <ATen/Context.h>
#include <c10/core/CachingDeviceAllocator.h>

namespace amp {

// It has no devices until CUDA is initialised, and refuses each as an invalid argument.
inline auto* cuda_allocator() {
  at::globalContext().lazyInitDevice(c10::DeviceType::CUDA);
  return at::getDeviceAllocator(c10::DeviceType::CUDA);
}

}  // namespace amp
