// Divides a list of tensors into shorter lists, each for one launch of a kernel.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace amp {

#include "kernels/common.h"

template <typename List>
struct Start {
  at::ScalarType dtype;
  List tensors{};
  unsigned blocks = 0;
};

// Adds a tensor of `size` elements to the last launch if it fits, and otherwise to a new launch.
// Returns the index of the tensor in its launch.
template <typename List>
int add(std::vector<Start<List>>& starts, at::ScalarType dtype, int64_t size) {
  if (starts.empty() || starts.back().dtype != dtype ||
      starts.back().tensors.count == List::max_tensors) {
    starts.push_back({dtype});
  }
  auto& [_, tensors, blocks] = starts.back();
  const int at = tensors.count++;
  tensors.sizes[at] = size;
  tensors.first_blocks[at] = static_cast<int>(blocks);
  blocks += (size + List::elements_per_block - 1) / List::elements_per_block;
  return at;
}

template <typename List>
int add(std::vector<Start<List>>& starts, const at::Tensor& tensor) {
  return add(starts, tensor.scalar_type(), tensor.numel());
}

}  // namespace amp
