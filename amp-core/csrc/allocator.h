// CUDA's caching allocator. It can be used even before the process has used CUDA for the first time.
#pragma once

#include <ATen/Context.h>
#include <c10/core/CachingDeviceAllocator.h>

namespace amp {

// Until CUDA is initialised the allocator has no devices and rejects every device as an invalid argument.
inline auto* cuda_allocator() {
  at::globalContext().lazyInitDevice(c10::DeviceType::CUDA);
  return at::getDeviceAllocator(c10::DeviceType::CUDA);
}

}  // namespace amp
