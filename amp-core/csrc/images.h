// Images in channels_last and 16 bits, as the kernels of batch norms and of max pooling read them.
#pragma once

#include <ATen/core/Tensor.h>

namespace amp::images {

constexpr auto format = at::MemoryFormat::ChannelsLast;
// The channels of a pixel that a thread reads at once: 16 bytes.
constexpr int eight = 8;

// Whether the images are in channels_last, and aligned for reads of eight channels.
inline bool has_layout(const at::Tensor& images) {
  return images.is_contiguous(format) && reinterpret_cast<uintptr_t>(images.const_data_ptr()) % 16 == 0;
}

// The images, or a copy in that layout.
inline at::Tensor in_layout(const at::Tensor& images) {
  return has_layout(images) ? images : images.clone(format);
}

}  // namespace amp::images
