// Images in channels_last and 16 bits, as read by the kernels of batch norm and max pooling.
#pragma once

#include <ATen/core/Tensor.h>

namespace amp::images {

constexpr auto format = at::MemoryFormat::ChannelsLast;
// A thread reads eight channels of a pixel at once. In 16 bits these are 16 bytes.
constexpr int eight = 8;

// Returns whether the images are in channels_last, and aligned for reads of eight channels.
inline bool has_layout(const at::Tensor& images) {
  return images.is_contiguous(format) && reinterpret_cast<uintptr_t>(images.const_data_ptr()) % 16 == 0;
}

// Returns the images if `has_layout` accepts them, and otherwise a copy in channels_last.
inline at::Tensor in_layout(const at::Tensor& images) {
  return has_layout(images) ? images : images.clone(format);
}

}  // namespace amp::images
