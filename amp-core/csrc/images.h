// Images in channels_last and 16 bits, as read by the kernels of batch norm and max pooling.
#pragma once

#include <ATen/core/Tensor.h>

namespace amp::images {

constexpr auto format = at::MemoryFormat::ChannelsLast;
// The number of a pixel's channels that a thread reads at once: 16 bytes.
constexpr int eight = 8;

// Returns whether the images are in channels_last, and aligned for reads of eight channels.
inline bool has_layout(const at::Tensor& images) {
  return images.is_contiguous(format) && reinterpret_cast<uintptr_t>(images.const_data_ptr()) % 16 == 0;
}

// Returns the images if they have this layout, and otherwise a copy with this layout.
inline at::Tensor in_layout(const at::Tensor& images) {
  return has_layout(images) ? images : images.clone(format);
}

}  // namespace amp::images
