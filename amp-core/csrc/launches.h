// Divides lists of tensors into the portions that one kernel launch can process.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace amp {

#include "kernels/common.h"

template <typename List>
struct Launch {
  at::ScalarType dtype;
  List tensors{};
  unsigned blocks = 0;
};

// Reserves space for this many elements of one dtype in the last launch, if they fit, and returns
// their position.
template <typename List>
int add(std::vector<Launch<List>>& launches, at::ScalarType dtype, int64_t size) {
  if (launches.empty() || launches.back().dtype != dtype ||
      launches.back().tensors.count == List::max_tensors) {
    launches.push_back({dtype});
  }
  auto& [_, tensors, blocks] = launches.back();
  const int at = tensors.count++;
  tensors.sizes[at] = size;
  tensors.first_blocks[at] = static_cast<int>(blocks);
  blocks += (size + List::elements_per_block - 1) / List::elements_per_block;
  return at;
}

template <typename List>
int add(std::vector<Launch<List>>& launches, const at::Tensor& tensor) {
  return add(launches, tensor.scalar_type(), tensor.numel());
}

}  // namespace amp
